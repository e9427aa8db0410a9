from __future__ import annotations

import contextlib
import functools
import http.server
import io
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelscope_i2v.errors import InputError
from modelscope_i2v.media.images import load_image


@pytest.fixture
def picture() -> np.ndarray:
    """uint8 [20, 30, 3] RGB."""
    y, x = np.mgrid[0:20, 0:30]
    return np.stack([x * 8, y * 12, 255 - x * 4], -1).astype(np.uint8)


def as_bytes(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["str", "path", "file_url", "bytes", "file", "pil", "array"])
def test_every_kind_of_source_gives_the_same_picture(kind: str, picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a picture; 'of' ünï.png"
    Image.fromarray(picture).save(path)
    source = {
        "str": str(path),
        "path": path,
        "file_url": path.as_uri(),
        "bytes": path.read_bytes(),
        "file": io.BytesIO(path.read_bytes()),
        "pil": Image.fromarray(picture),
        "array": np.ascontiguousarray(picture[:, :, ::-1]),
    }[kind]
    image = load_image(source)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), picture)


def test_http_url(picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(picture).save(tmp_path / "a b.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *args: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        np.testing.assert_array_equal(np.asarray(load_image(f"{address}/a b.png")), picture)
        with pytest.raises(InputError, match="could not be downloaded.*missing.png.*404"):
            load_image(f"{address}/missing.png")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(InputError, match="could not be downloaded"):
        load_image(f"{address}/a b.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 255  # the top left quarter is white
    # What a camera held that way stores, so that applying the orientation shows it upright again.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = as_bytes(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(data)), upright)
    np.testing.assert_array_equal(np.asarray(load_image(Image.open(io.BytesIO(data)))), upright)


def test_damaged_exif_is_ignored(picture: np.ndarray) -> None:
    data = as_bytes(Image.fromarray(picture), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(np.asarray(load_image(data)), picture)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK"])
def test_modes_match_pil(mode: str, picture: np.ndarray) -> None:
    image = Image.fromarray(picture)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(picture[:, :, 0]))
    data = as_bytes(image.convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    loaded = load_image(data)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert loaded.mode == "RGB"


def test_palette_with_transparency_does_not_warn(picture: np.ndarray) -> None:
    image = Image.fromarray(picture).quantize(8)
    data = as_bytes(image, transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(data)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image.convert("RGB")))


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for source in (as_bytes(Image.fromarray(values)), as_bytes(Image.fromarray(values), "TIFF"), values):
        np.testing.assert_array_equal(np.asarray(load_image(source))[..., 0], values >> 8)


def test_32_bit_grey_is_scaled() -> None:
    values = np.linspace(0, 2**30, 256).astype(np.int32).reshape(16, 16)
    grey = np.asarray(load_image(as_bytes(Image.fromarray(values), "TIFF")))[..., 1]
    assert grey[0, 0] == 0 and grey.max() >= 127 and (np.diff(grey.ravel().astype(int)) >= 0).all()


def test_arrays(picture: np.ndarray) -> None:
    bgr = picture[:, :, ::-1]
    bgra = np.concatenate([bgr, np.full((20, 30, 1), 7, np.uint8)], -1)
    for array in (
        bgra,
        bgr.astype(np.int64),
        bgr / 255.0,
        bgr.astype(np.float32),
        bgr.astype(np.uint16) * 257,
    ):
        np.testing.assert_array_equal(np.asarray(load_image(array)), picture)
    grey = picture[:, :, 0]
    for array in (grey, grey[:, :, None]):
        np.testing.assert_array_equal(np.asarray(load_image(array)), np.repeat(grey[:, :, None], 3, -1))
    assert np.asarray(load_image(grey > 100)).max() == 255


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 20, 30), np.uint8), "channels first"),
        (np.zeros((2, 20, 30, 3), np.uint8), r"\[h, w, 3\]"),
        (np.zeros((0, 30, 3), np.uint8), "no content"),
        (np.full((4, 4, 3), 300), "0..255 was expected"),
        (np.full((4, 4, 3), -1.0), "0..1 or 0..255"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (np.full((4, 4, 3), "a"), "does not hold numbers"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_image(array)


def test_bad_files_are_named(tmp_path: Path, picture: np.ndarray, moving_square, encode) -> None:
    empty, text, cut = tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "cut.png"
    empty.touch()
    text.write_text("hello " * 100)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cut.write_bytes(as_bytes(Image.fromarray(noise))[:3000])
    video = tmp_path / "film.mp4"
    video.write_bytes(encode(moving_square(3, 32, 32)))
    heic = tmp_path / "photo.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 200)
    for path, message in (
        (tmp_path / "no such.png", "no file"),
        (tmp_path, "is a directory"),
        (empty, "is empty"),
        (text, "not a picture"),
        (cut, "damaged or cut short"),
        (video, "is a video"),
        (heic, "HEIC"),
        (tmp_path / ("x" * 5000), "xxx….*File name too long"),
        (str(tmp_path / "a\0b"), "is no path"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_image(path)
        assert repr(str(path))[1:50] in str(caught.value) and "\n" not in str(caught.value)
    for source, message in (
        ("", "path of the picture is empty"),
        (b"", "is empty"),
        (3, "cannot be read from int"),
        (io.StringIO("text"), "open as text"),
    ):
        with pytest.raises(InputError, match=message):
            load_image(source)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_cut_or_garbled_anywhere_is_an_input_error_or_a_picture(format: str, picture: np.ndarray) -> None:
    data = as_bytes(Image.fromarray(picture), format)
    random = np.random.default_rng(1)
    for cut in range(1, len(data), max(1, len(data) // 25)):
        garbled = bytearray(data)
        garbled[int(random.integers(len(data)))] ^= 0xFF
        for damaged in (data[:cut], bytes(garbled)):
            with contextlib.suppress(InputError):
                assert load_image(damaged).mode == "RGB"


def test_eps_runs_no_other_program() -> None:
    with pytest.raises(InputError, match="not a picture"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def test_area_is_limited_by_the_header_alone(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    # A header that claims 12000 x 10000 pixels; there is nothing behind it that could be decoded.
    header = bytearray(as_bytes(Image.new("RGB", (8, 8)), "BMP"))
    header[18:26] = (12000).to_bytes(4, "little") + (10000).to_bytes(4, "little")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"120,000,000 pixels.*100,000,000.*max_pixels"):
            load_image(bytes(header))
        with pytest.raises(InputError, match="cut short"):
            load_image(bytes(header), max_pixels=200_000_000)
        # Between PIL's own limits and ours nothing warns.
        big = Image.new("1", (10000, 9500))
        assert load_image(as_bytes(big)).size == (10000, 9500)
    assert limit == Image.MAX_IMAGE_PIXELS
    for source in (Image.new("RGB", (40, 30)), np.zeros((30, 40, 3), np.uint8)):
        with pytest.raises(InputError, match="max_pixels"):
            load_image(source, max_pixels=1199)
        assert load_image(source, max_pixels=1200).size == (40, 30)
