"""Media that were made to break the reader: none may crash it, fill the memory or take its time."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from modelscope_i2v.errors import InputError
from modelscope_i2v.media import download, videos
from modelscope_i2v.media.images import load_image
from modelscope_i2v.media.sources import open_source
from modelscope_i2v.media.videos import AUDIO_RATE, read_video

FORMATS = ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "PPM", "JPEG2000", "PCX", "SGI"]
WITH_EXIF = ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"]

# A crash of the interpreter must be a failing test, not the end of all tests.
READ = """
import sys, numpy as np
from pathlib import Path
from modelscope_i2v.media.videos import read_video
for path in sorted(Path(sys.argv[1]).iterdir()):
    frames = read_video(path).frames
    np.save(path.with_name(path.name + ".npy"), frames)
"""


def stored(picture: np.ndarray, orientation: int) -> np.ndarray:
    """A camera's file: applying the EXIF orientation shows ``picture`` again."""
    turned = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, 1),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture, -1),
    }[orientation]
    return np.ascontiguousarray(turned)


def test_pictures_with_profiles_and_exif_as_videos(tmp_path: Path) -> None:
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:8, :12] = 255
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for format in FORMATS:
        for orientation in range(1, 9) if format in WITH_EXIF else [1]:
            exif = Image.Exif()
            exif[0x0112] = orientation
            kinds = {
                "plain": {},
                "both": {"exif": exif, "icc_profile": profile},
                "icc": {"icc_profile": profile},
            }
            for kind, options in kinds.items() if format in WITH_EXIF else [("plain", {})]:
                image = Image.fromarray(stored(picture, orientation if kind == "both" else 1))
                image.save(tmp_path / f"{format}-{orientation}-{kind}", format, **options)
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = sorted(tmp_path.glob("*.npy"))
    assert len(results) == 5 * 8 * 3 + 6
    for path in results:
        (frame,) = np.load(path)
        assert frame.shape == picture.shape and np.abs(frame.astype(int) - picture).mean() < 2, path.name


def test_a_film_of_pictures_with_a_profile(tmp_path: Path) -> None:
    """Frames of an animated PNG carry side data with text of their own, too."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    images = [Image.new("RGB", (24, 16), (shade, 0, 0)) for shade in (10, 90, 200)]
    images[0].save(tmp_path / "a", "PNG", save_all=True, append_images=images[1:], icc_profile=profile)
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.load(tmp_path / "a.npy")[:, 0, 0, 0].tolist() == [10, 90, 200]


# ---- memory and time ---------------------------------------------------------------------------------


def test_pixels_of_all_frames_are_limited(moving_square, encode) -> None:
    data = encode(moving_square(9, 32, 48))
    area = 32 * 48
    assert read_video(data, max_video_pixels=9 * area).frames.shape[0] == 9
    assert read_video(data, max_frames=2, max_video_pixels=2 * area).frames.shape[0] == 2
    with pytest.raises(InputError, match=r"9 frames or more of 48x32.*13,824.*13,823.*max_video_pixels"):
        read_video(data, max_video_pixels=9 * area - 1)
    raw = encode(moving_square(9, 32, 48), format="h264")  # no header tells how many
    with pytest.raises(InputError, match="max_video_pixels"):
        read_video(raw, max_video_pixels=3 * area)
    assert read_video(raw, max_frames=3, max_video_pixels=3 * area).frames.shape[0] == 3
    images = [Image.fromarray(frame) for frame in moving_square(4, 32, 48)]
    file = io.BytesIO()
    images[0].save(file, "WEBP", save_all=True, append_images=images[1:], lossless=True)
    with pytest.raises(InputError, match="max_video_pixels"):
        read_video(file.getvalue(), max_video_pixels=3 * area)


def test_a_small_file_of_huge_frames_is_refused_at_once(tmp_path: Path) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width = stream.height = 4000
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((6000, 4000), np.uint8), format="yuv420p")
        for index in range(3):
            frame.pts, frame.time_base = index, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="max_video_pixels"):
        read_video(file.getvalue(), max_video_pixels=40_000_000)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB; one frame has 48 MB


def test_frames_are_kept_as_each_makes_them(moving_square, encode) -> None:
    data = encode(moving_square(5, 32, 48))
    video = read_video(data, each=lambda frame: frame[0, 0, 0], max_frames=3)
    assert video.frames == list(read_video(data).frames[:3, 0, 0, 0]) and video.size == (32, 48)


def test_frames_that_are_days_apart_with_sound(moving_square, encode) -> None:
    for step in (1_000_000, 150):
        data = encode(
            moving_square(3, 32, 48), format="matroska", rate=1, times=[0, step, 2 * step], tone=None
        )
        file = io.BytesIO()
        with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="matroska") as container:
            picture = container.add_stream_from_template(source.streams.video[0])
            sound = container.add_stream("libopus", rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = picture
                    container.mux(packet)
        video = read_video(file.getvalue())
        assert video.fps == 8.0, "less than a frame in 100 seconds is no rate"
        assert video.audio.samples.shape == (1, 3 * AUDIO_RATE // 8)


def flac(seconds: float, rate: int = 8000) -> bytes:
    """A film of one frame, and silence that takes hardly a byte."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        picture = container.add_stream("ffv1", rate=8)
        picture.width = picture.height = 16
        picture.pix_fmt = "yuv420p"
        sound = container.add_stream("flac", rate=rate, layout="mono", format="s16")
        container.mux(
            picture.encode(av.VideoFrame.from_ndarray(np.zeros((24, 16), np.uint8), format="yuv420p"))
        )
        container.mux(picture.encode(None))
        silence = np.zeros((1, rate * 60), np.int16)
        for minute in range(round(seconds / 60)):
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = minute * silence.shape[1]
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return file.getvalue()


def test_hours_of_silence_are_not_decoded(monkeypatch) -> None:
    decoded = []
    plain = videos._resampler

    class Counting:
        def __init__(self, stream: av.AudioStream):
            self.plain = plain(stream)

        def resample(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
            decoded.append(frame.samples)
            return self.plain.resample(frame)

    monkeypatch.setattr(videos, "_resampler", Counting)
    assert read_video(flac(1200)).audio.samples.shape == (1, AUDIO_RATE // 8)
    assert sum(decoded) < 8000 * 10


def test_sound_is_limited_by_an_option(moving_square, encode) -> None:
    data = encode(moving_square(20, 32, 48), tone=440.0)
    assert read_video(data, max_audio_seconds=2).audio.samples.shape == (1, 2 * AUDIO_RATE)
    assert read_video(data, max_frames=10, max_audio_seconds=1).audio is not None
    with pytest.raises(InputError, match="2 seconds of sound with its 20 frames.*max_audio_seconds"):
        read_video(data, max_audio_seconds=1.9)


# ---- files that are none -----------------------------------------------------------------------------


@pytest.mark.parametrize("read", [load_image, read_video])
def test_pipes_and_devices_are_refused_at_once(read: Callable, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, kind in ((tmp_path / "pipe.png", "a named pipe"), ("/dev/zero", "a device")):
        with pytest.raises(InputError, match=kind):
            read(path)


@pytest.mark.parametrize("read", [load_image, read_video])
def test_files_that_cannot_be_read(read: Callable, tmp_path: Path) -> None:
    closed = io.BytesIO(b"abc")
    closed.close()

    class Failing(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise RuntimeError(f"{object()} gave up\n\x1b[31m")

    with (tmp_path / "w").open("wb") as write_only, socket.socket() as closed_socket:
        for source in (closed, write_only, Failing(), "/proc/self/mem", closed_socket.makefile("rb")):
            with pytest.raises(InputError, match="cannot be read") as caught:
                read(source)
            assert not set("\n\x1b") & set(str(caught.value)) and " at 0x" not in str(caught.value)


def test_a_pipe_may_give_less_than_it_is_asked_for(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (200, 150), "red").save(file, "BMP")
    reading, writing = os.pipe()
    threading.Thread(
        target=lambda: (os.write(writing, file.getvalue()), os.close(writing)), daemon=True
    ).start()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        assert load_image(pipe).size == (200, 150)


def test_messages_hold_nothing_of_python() -> None:
    dds = io.BytesIO()
    Image.new("RGB", (8, 8)).save(dds, "DDS")
    unknown = bytearray(dds.getvalue())
    unknown[80:88] = b"\4\0\0\0XYZW"
    for data in (bytes(unknown), dds.getvalue()[:40], b"\xff\xd8\xff" + bytes(50), b"GIF89a" + bytes(3)):
        with pytest.raises(InputError) as caught:
            load_image(data)
        assert "Error" not in str(caught.value) and "object" not in str(caught.value)
    for array in (
        np.zeros((8, 8, 3), complex),
        np.zeros((8, 8, 3), object),
        np.zeros((8, 8, 3), "datetime64[s]"),
    ):
        with pytest.raises(InputError, match="does not hold numbers of a picture"):
            load_image(array)


def test_a_damaged_jpeg_is_no_video() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "JPEG")
    data = file.getvalue()
    sof = data.index(b"\xff\xc0")
    broken = data[: sof + 1] + b"\xcd" + data[sof + 2 :]  # a coding that nobody decodes
    with pytest.raises(InputError, match="damaged") as caught:
        load_image(broken)
    assert "video" not in str(caught.value)


def test_pils_limit_is_left_alone(monkeypatch) -> None:
    """Also while a picture is opened: another thread may rely on it."""
    seen = []
    factory, accept = Image.OPEN["BMP"]

    def spy(*args):
        seen.append(Image.MAX_IMAGE_PIXELS)
        return factory(*args)

    Image.init()
    monkeypatch.setitem(Image.OPEN, "BMP", (spy, accept))
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "BMP")
    load_image(file.getvalue())
    assert seen == [Image.MAX_IMAGE_PIXELS] and seen[0] is not None


def test_channel_order() -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[..., 0] = 200
    assert load_image(rgb).getpixel((0, 0)) == (0, 0, 200)
    assert load_image(rgb, channel_order="rgb").getpixel((0, 0)) == (200, 0, 0)
    for tensor in (torch.tensor(rgb).permute(2, 0, 1), torch.tensor(rgb).permute(2, 0, 1)[None] / 255):
        assert load_image(tensor).getpixel((0, 0)) == (200, 0, 0)
    with pytest.raises(InputError, match="channel_order='gbr'"):
        load_image(rgb, channel_order="gbr")
    for tensor in (torch.zeros(4, 6, 3), torch.zeros(2, 3, 4, 6), torch.zeros(3, 4, 6, device="meta")):
        with pytest.raises(InputError, match="tensor"):
            load_image(tensor)


# ---- addresses ---------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as its path says."""

    def do_GET(self) -> None:
        if self.path == "/ftp":
            self.answer(302, Location="ftp://127.0.0.1/x.png")
        elif self.path == "/file":
            self.answer(302, Location="file:///etc/passwd")
        elif self.path == "/loop":
            self.answer(302, Location="/loop")
        elif self.path == "/cut":
            self.answer(200, **{"Content-Length": "1000"})
            self.wfile.write(b"x" * 10)
        elif self.path == "/chunk":
            self.answer(200, **{"Transfer-Encoding": "chunked"})
            self.wfile.write(b"ff\r\nx")
        elif self.path == "/status":
            self.wfile.write(b"nonsense\r\n\r\n")
        elif self.path == "/large":
            self.answer(200, **{"Content-Length": "9" * 12})
        elif self.path == "/odd":
            self.answer(200, **{"Content-Length": "many"})
        elif self.path == "/drip":
            self.answer(200)
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif self.path == "/headers":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)

    def answer(self, code: int, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/ftp", "ftp"),
        ("/file", "not allowed"),
        ("/loop", "infinite loop|redirect"),
        ("/cut", "cut short"),
        ("/chunk", "cut short"),
        ("/status", "not valid HTTP"),
        ("/large", "larger than 500 MB"),
        ("/odd", "many|valid"),
    ],
)
def test_servers_that_answer_oddly(server: str, path: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_image(server + path)
    assert "\n" not in str(caught.value) and "IncompleteRead" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:port/x",
        "http://[::1/x",
        "http://",
        "http://" + "a" * 70 + ".com/",
        "http://a\udce9/",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InputError, match="could not be downloaded") as caught:
        load_image(url)
    assert "codec" not in str(caught.value)


@pytest.mark.parametrize("path", ["/drip", "/headers"])
def test_a_download_ends_in_time(server: str, path: str, monkeypatch) -> None:
    monkeypatch.setattr(download, "_DEADLINE", 0.5)
    start = time.monotonic()
    with pytest.raises(InputError, match="takes longer than"):
        load_image(server + path)
    assert time.monotonic() - start < 5


def test_public_only(server: str, tmp_path: Path, monkeypatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", (tmp_path / "a.png").as_uri()):
        with pytest.raises(InputError, match="neither an http"):
            load_image(source, public_only=True)
    port = server.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0.0.0.0"):
        with pytest.raises(InputError, match="public internet|could not be downloaded"):
            load_image(f"http://{host}:{port}/cut", public_only=True)
    assert load_image((tmp_path / "a.png").read_bytes(), public_only=True).size == (8, 8)


def test_public_only_heeds_each_answer_of_the_name_server(server: str, monkeypatch) -> None:
    """A name that is public when it is asked for and private when it is opened leads nowhere."""
    connected = []
    plain = socket.getaddrinfo

    def answer(host: str, port: int, *args: object, **options: object) -> list:
        if host == "mixed.example":
            numbers = ["10.0.0.1", "93.184.215.14"]
        elif host == "inner.example":
            numbers = [
                "192.168.1.1",
                "169.254.169.254",
                "fe80::1%1",
                "fd00::1",
                "64:ff9b::7f00:1",
                "2002:7f00:1::",
            ]
        else:
            return plain(host, port, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port)) for number in numbers]

    def connect(address: tuple[str, int], *args: object) -> socket.socket:
        connected.append(address[0])
        raise OSError("unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(socket, "create_connection", connect)
    for host in ("mixed.example", "inner.example"):
        with pytest.raises(InputError, match="unreachable|public internet"):
            load_image(f"http://{host}/a.png", public_only=True)
    assert connected == ["93.184.215.14"]


def test_public_only_heeds_redirects(server: str, monkeypatch) -> None:
    monkeypatch.setattr(download, "_is_public", lambda address: address == "127.0.0.1")
    location = "http://127.0.0.2:9/x.png"
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.answer(302, Location=location))
    with pytest.raises(InputError, match=r"'127.0.0.2' is not an address of the public internet"):
        load_image(f"{server}/a.png", public_only=True)


def test_open_source_closes_what_it_opened(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with open_source(tmp_path / "a", what="picture", max_bytes=10) as (file, _):
        assert file.read() == b"abc"
    assert file.closed
