"""Pictures in: whatever a caller may call an image becomes one upright 8-bit RGB picture."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from .sources import Source, open_source

ImageSource = Source | Image.Image | np.ndarray

MAX_PIXELS = 100_000_000
"""Default limit on a picture's area, and on that of one frame of a video."""

_MAX_BYTES = 500_000_000
# PIL knows these by their first bytes, but runs another program to draw them, or cannot read them at all.
_NOT_PICTURES = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}
_PIL_LOCK = threading.Lock()


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as RGB, upright.

    Args:
        source: a path, an ``http(s)://`` or ``file://`` URL, bytes, a binary file object, a PIL image, or
            an array. Arrays follow ModelScope's convention: [h, w, 3] is BGR, [h, w, 4] is BGRA, [h, w]
            and [h, w, 1] are grey. Integers of 8 bits count 0..255, unsigned ones of 16 bits 0..65535;
            floats 0..1, or 0..255 where one exceeds 1.
        max_pixels: the largest area; a file's is taken from its header, before decoding.

    Returns:
        A PIL image of mode ``RGB``. EXIF orientation is applied. 16 bits are scaled to 8. Alpha is
        dropped as ``Image.convert('RGB')`` does it, which is what ModelScope's pipelines see; of an
        animation the first frame is read.

    Raises:
        InputError: if it is missing, empty, not a picture, damaged, or too large.
    """
    if isinstance(source, Image.Image):
        check_pixels(source.size, max_pixels, "The picture")
        return _to_rgb(source, "The picture")
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    with open_source(source, what="picture", max_bytes=_MAX_BYTES) as (file, name):
        start = file.tell()
        try:
            with without_pil_limit():
                image = Image.open(file, formats=_formats())
        except UnidentifiedImageError:
            file.seek(start)
            raise InputError(_not_a_picture(file, name)) from None
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise InputError(f"{name} is damaged or cut short: {error}.") from error
        with image:
            check_pixels(image.size, max_pixels, name)
            return _to_rgb(image, name)


@contextmanager
def without_pil_limit() -> Iterator[None]:
    """Read a header without the limit that PIL has of its own; :func:`check_pixels` belongs right after."""
    with _PIL_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _NOT_PICTURES]


def check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    """Refuse a (width, height) with more pixels than ``max_pixels``, or with none."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width}x{height} pixels; it has no content.")
    if width * height > max_pixels:
        raise InputError(
            f"{name} has {width}x{height} = {width * height:,} pixels, more than the limit of "
            f"{max_pixels:,}; make it smaller, or raise the limit with the option max_pixels."
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        image = _upright(image)
        if image.mode.startswith("I;16"):
            # PIL would clip at 255; the high byte is what it takes of 16-bit colour pictures.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode == "I":
            values = np.asarray(image).clip(0)
            bits = max(16, int(values.max()).bit_length())
            image = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
        elif image.mode == "F":
            image = Image.fromarray(_floats_to_uint8(np.asarray(image), name))
        elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # the same colours; straight to RGB, PIL warns
        return image.convert("RGB")
    except (MemoryError, InputError):
        raise
    except Exception as error:  # PIL's decoders raise whatever the damage led them to
        raise InputError(f"{name} is damaged or cut short: {error}.") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    name = f"The picture's array {list(array.shape)} {array.dtype}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        hint = " (this one has its channels first)" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise InputError(f"{name} is not [h, w], [h, w, 3] (BGR) or [h, w, 4] (BGRA){hint}.")
    check_pixels((array.shape[1], array.shape[0]), max_pixels, name)
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        array = _floats_to_uint8(array, name)
    elif np.issubdtype(array.dtype, np.integer):
        if array.min() < 0 or array.max() > 255:
            raise InputError(f"{name} has values from {array.min()} to {array.max()}; 0..255 was expected.")
        array = array.astype(np.uint8)
    else:
        raise InputError(f"{name} does not hold numbers of a picture; uint8 was expected.")
    if array.ndim == 3:
        array = array[:, :, 2::-1]
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _floats_to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 255):  # NaN fails this too
        raise InputError(f"{name} has values from {low:g} to {high:g}; 0..1 or 0..255 was expected.")
    return np.rint(array * (255.0 if high <= 1 else 1.0)).astype(np.uint8)


def _not_a_picture(file: BinaryIO, name: str) -> str:
    head = file.read(12)
    file.seek(-len(head), os.SEEK_CUR)
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1"):
        return f"{name} is a HEIC picture, which cannot be read here; save it as JPEG or PNG."
    from .videos import is_video

    if is_video(file):
        return f"{name} is a video, not a picture; take a frame out of it, or use video-to-video."
    return f"{name} is not a picture that can be read; JPEG, PNG, WebP and their like can."
