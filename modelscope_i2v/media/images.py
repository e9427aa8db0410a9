"""Pictures in: whatever a caller may call an image becomes one upright 8-bit RGB picture."""

from __future__ import annotations

import os
import struct
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError
from ..spec.options import CHANNEL_ORDERS, MAX_PIXELS
from .sources import Source, open_source, plain

ImageSource = Source | Image.Image | np.ndarray

_MAX_BYTES = 500_000_000
# PIL knows these by their first bytes, but runs another program to draw them, or cannot read them at all.
_NOT_PICTURES = {"EPS", "WMF", "MPEG", "BUFR", "GRIB", "HDF5"}


def load_image(
    source: ImageSource,
    *,
    max_pixels: int = MAX_PIXELS,
    channel_order: str | None = None,
    public_only: bool = False,
) -> Image.Image:
    """Read a picture as RGB, upright.

    Args:
        source: a path, an ``http(s)://`` or ``file://`` URL, bytes, a binary file object, a PIL image, an
            array or a tensor. Arrays follow ModelScope's convention: [h, w, 3] is **BGR**, [h, w, 4] is
            BGRA, [h, w] and [h, w, 1] are grey. Tensors [3, h, w] (or a batch of one) are RGB, as
            PyTorch's are. So frames that this package returned as arrays (RGB) need
            ``channel_order="rgb"`` here; as tensors or PIL images they need nothing. Integers of 8 bits
            count 0..255, unsigned ones of 16 bits 0..65535; floats 0..1, or 0..255 where one exceeds 1.
        max_pixels: the largest area; a file's is taken from its header, before decoding.
        channel_order: ``rgb`` or ``bgr``, of an array; ``None`` is ``bgr``.
        public_only: no paths, and only URLs on the public internet, for a server.

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
    if channel_order not in (None, *CHANNEL_ORDERS):
        raise InputError(f"channel_order={channel_order!r} is unknown; it is rgb or bgr.")
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels, channel_order or "bgr")
    if hasattr(source, "permute"):
        return _from_array(_tensor_to_array(source), max_pixels, "rgb")
    with open_source(source, what="picture", max_bytes=_MAX_BYTES, public_only=public_only) as (file, name):
        image = open_picture(file, name)
        if image is None:
            raise InputError(_not_a_picture(file, name))
        with image:
            check_pixels(image.size, max_pixels, name)
            return _to_rgb(image, name)


def open_picture(file: BinaryIO, name: str, formats: tuple[str, ...] = ()) -> Image.Image | None:
    """A picture of which only the header is read; ``None`` if it is of no known format.

    ``Image.open`` has a limit of its own on the area, which is one for the whole process: too low for some,
    and no other thread's to change. Here :func:`check_pixels` belongs right after instead.

    Args:
        formats: the formats of PIL to try; all that are safe.
    """
    Image.init()
    start = file.tell()
    head = file.read(16)
    try:
        for format in formats or (each for each in Image.ID if each not in _NOT_PICTURES):
            factory, accept = Image.OPEN[format]
            accepted = accept is None or accept(head)
            if not accepted or isinstance(accepted, str):
                continue
            file.seek(start)
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, KeyError, struct.error):
                continue  # the next may know it
    except Exception as error:  # PIL's readers raise whatever the damage led them to
        raise InputError(f"{name} is damaged or cut short: {plain(error)}.") from error
    file.seek(start)
    return None


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
        image = upright(image)
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
        raise InputError(f"{name} is damaged or cut short: {plain(error)}.") from error


def upright(image: Image.Image) -> Image.Image:
    """A picture turned and mirrored as its EXIF data say."""
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        return image
    return ImageOps.exif_transpose(image) if orientation in range(2, 9) else image


def _tensor_to_array(tensor: Any) -> np.ndarray:
    """[h, w, 3] of a tensor [3, h, w] or [1, 3, h, w] of any type, on any device."""
    shape = list(tensor.shape)
    if len(shape) not in (3, 4) or shape[-3] != 3 or (len(shape) == 4 and shape[0] != 1):
        raise InputError(f"The picture's tensor {shape} is not [3, height, width].")
    try:
        tensor = tensor.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        return tensor.reshape(shape[-3:]).permute(1, 2, 0).numpy()
    except Exception as error:  # sparse, or without data
        raise InputError(
            f"The picture's tensor {shape} {tensor.dtype} holds no values of a picture."
        ) from error


def _from_array(array: np.ndarray, max_pixels: int, channel_order: str) -> Image.Image:
    name = f"The picture's array {list(array.shape)} {array.dtype}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        hint = " (this one has its channels first)" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise InputError(
            f"{name} is not [h, w], [h, w, 3] or [h, w, 4], the channels as channel_order says{hint}."
        )
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
        array = array[:, :, :3] if channel_order == "rgb" else array[:, :, 2::-1]
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
    from .probe import is_video  # PyAV, which pictures do without

    if is_video(file):
        return f"{name} is a video, not a picture; take a frame out of it, or use video-to-video."
    accepts = (Image.OPEN[each][1] for each in Image.ID if each not in _NOT_PICTURES)
    if any(accept is not None and accept(head.ljust(16, b"\0")) for accept in accepts):
        return f"{name} is a damaged picture, or of a kind that cannot be read; save it as JPEG or PNG."
    return f"{name} is not a picture that can be read; JPEG, PNG, WebP and their like can."
