"""Videos in any form: a file, a folder of pictures, an array, a tensor, or a list."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..spec.options import (
    CHANNEL_ORDERS,
    MAX_AUDIO_SECONDS,
    MAX_FPS,
    MAX_PIXELS,
    MAX_VIDEO_PIXELS,
    MIN_FPS,
)
from .images import ImageSource, load_image
from .sources import Source, plain
from .videos import DEFAULT_FPS, Frames, Video, read_video

VideoSource = Source | np.ndarray | list[ImageSource] | tuple[ImageSource, ...]

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


def as_video(
    source: Any,
    *,
    max_frames: int | None = None,
    fps: float = DEFAULT_FPS,
    channel_order: str | None = None,
    max_pixels: int = MAX_PIXELS,
    max_video_pixels: int = MAX_VIDEO_PIXELS,
    max_audio_seconds: float = MAX_AUDIO_SECONDS,
    each: Callable[[np.ndarray], Any] | None = None,
    public_only: bool = False,
) -> Video:
    """Frames of whatever a caller may call a video.

    Args:
        source: what :func:`~modelscope_i2v.media.videos.read_video` takes; the path of a folder of pictures,
            in the order of the numbers in their names; an array [f, h, w, 3], uint8 or floats in 0..1; a
            tensor [f, 3, h, w] of the same; or a list of pictures: PIL images, arrays [h, w, 3], tensors
            [3, h, w], paths. Arrays are **RGB** here, as the frames that this package returns; a single
            picture's array is BGR (see :func:`~modelscope_i2v.media.images.load_image`).
        max_frames: how many frames to take at most.
        fps: the rate of what has none; a folder that this package wrote knows its own.
        channel_order: ``rgb`` or ``bgr``, of arrays; ``None`` is ``rgb``.
        max_pixels, max_video_pixels, max_audio_seconds, each, public_only: as for ``read_video``.

    Returns:
        The frames as they were given: uint8, or float32 in 0..1.

    Raises:
        InputError: as ``read_video``; for frames of other types or ranges, or that differ in size.
    """
    limits: dict[str, Any] = {"max_frames": max_frames, "max_pixels": max_pixels, "each": each}
    if channel_order not in (None, *CHANNEL_ORDERS):
        raise InputError(f"channel_order={channel_order!r} is unknown; it is rgb or bgr.")
    order, name, total = channel_order or "rgb", "The input video", None
    given: Iterable[tuple[str, Any]]
    if hasattr(source, "permute") or isinstance(source, np.ndarray):
        values = _array(source)
        if values.ndim != 4 or values.shape[3] != 3:
            raise InputError(
                f"The frames' {'tensor' if hasattr(source, 'permute') else 'array'} has the shape "
                f"{list(source.shape)}; an array is [frames, height, width, 3], a tensor "
                "[frames, 3, height, width]."
            )
        order = "rgb" if hasattr(source, "permute") else order
        given, total = ((f"Frame {n}", frame) for n, frame in enumerate(values)), len(values)
        max_video_pixels = max(max_video_pixels, values.size)  # it is in memory
    elif isinstance(source, (list, tuple)):
        given = ((f"Frame {n}", frame) for n, frame in enumerate(source))
        total = len(source)
    elif not public_only and _is_folder(source):
        paths = _pictures(source)
        name, given, total = repr(os.fspath(source)), ((repr(str(path)), path) for path in paths), len(paths)
        fps = _folder_fps(paths[0], fps)
    else:
        return read_video(
            source,
            max_video_pixels=max_video_pixels,
            max_audio_seconds=max_audio_seconds,
            public_only=public_only,
            **limits,
        )
    frames = Frames(name, max_video_pixels=max_video_pixels, **limits)
    for label, frame in given:
        if frames.full:
            break
        pixels = _frame(frame, label, order, max_pixels, public_only)
        if frames.size is not None and pixels.shape[:2] != frames.size:
            raise InputError(
                f"{label} is {pixels.shape[1]}x{pixels.shape[0]} pixels; all frames of a video have one "
                f"size, and the first has {frames.size[1]}x{frames.size[0]}."
            )
        frames.take(pixels)
    if not len(frames):
        raise InputError(f"{name} has no frames.")
    return frames.video(fps, None, total)


def _frame(given: Any, label: str, order: str, max_pixels: int, public_only: bool) -> np.ndarray:
    """RGB [h, w, 3], uint8 or float32 in 0..1."""
    if not (hasattr(given, "permute") or isinstance(given, np.ndarray)):
        try:
            image = load_image(given, max_pixels=max_pixels, public_only=public_only)
        except InputError as error:
            raise InputError(f"{label}: {error}") from error
        return np.asarray(image)
    pixels = _array(given)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(
            f"{label} has the shape {list(given.shape)}; an array is [height, width, 3], a tensor "
            "[3, height, width]."
        )
    if pixels.dtype != np.uint8:
        if not np.issubdtype(pixels.dtype, np.floating):
            raise InputError(f"{label} holds {pixels.dtype}; uint8, or floats in 0..1, were expected.")
        pixels = pixels.astype(np.float32, copy=False)
        low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
        if not (low >= 0 and high <= 1):  # NaN fails this too
            raise InputError(f"{label} has values from {low:g} to {high:g}; floats are in 0..1.")
    return pixels if order == "rgb" or hasattr(given, "permute") else np.ascontiguousarray(pixels[:, :, ::-1])


def _array(given: Any) -> np.ndarray:
    """An array as it is; a tensor's values with the channels last."""
    if isinstance(given, np.ndarray):
        return given
    try:
        tensor = given.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        return tensor.movedim(-3, -1).numpy() if tensor.ndim >= 3 else tensor.numpy()
    except Exception as error:  # sparse, or without data
        raise InputError(
            f"The frames' tensor {list(given.shape)} {given.dtype} holds no values of frames."
        ) from error


def _is_folder(source: Any) -> bool:
    try:
        return isinstance(source, (str, os.PathLike)) and os.path.isdir(source)
    except ValueError:
        return False


def _pictures(folder: str | os.PathLike[str]) -> list[Path]:
    try:
        found = [each for each in Path(os.fsdecode(folder)).iterdir() if each.suffix.lower() in _PICTURES]
    except OSError as error:
        raise InputError(f"The folder {os.fspath(folder)!r} cannot be read: {plain(error)}.") from error
    paths = sorted((each for each in found if each.name[0] != "."), key=_natural)
    if not paths:
        raise InputError(f"{os.fspath(folder)!r} is a directory without pictures; a video was expected.")
    return paths


def _natural(path: Path) -> list[Any]:
    """A key that sorts numbers in names by their value."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part[:18]), part) if index % 2 else (0, part) for index, part in enumerate(parts)]


def _folder_fps(first: Path, otherwise: float) -> float:
    """The rate that :func:`~modelscope_i2v.media.write.write_video` left in a folder's pictures."""
    try:
        with Image.open(first) as image:
            fps = float(image.info.get("fps", otherwise))
    except Exception:  # whoever reads the picture itself says what is wrong
        return otherwise
    return fps if MIN_FPS <= fps <= MAX_FPS else otherwise
