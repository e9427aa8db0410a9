"""Output: latents and frames in the form the caller asked for; files by :mod:`modelscope_i2v.media.write`."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import InputError, OutputError
from ..media.transforms import tensor_to_uint8
from ..media.write import SUFFIXES, check_output, encode_video, keep_frames, write_video
from ..spec.table import shortened
from . import record
from .requests import Request

FOLDER = "MODELSCOPE_I2V_OUTPUT"
"""The environment variable by which calls without a path write a file and return its path."""


def output_argument(path: tuple[Any, ...], output_video: Any) -> Any:
    """``output_video`` of a call, which may also stand as its second argument.

    Raises:
        InputError: for a second argument that is no path with a video's suffix (a text, most likely), or
            in addition to the keyword.
    """
    if not path:
        return output_video
    if len(path) > 1 or output_video is not None:
        raise InputError("A call takes one input and one output_video; give the others by their keywords.")
    (given,) = path
    for one in given if isinstance(given, (list, tuple)) else [given]:
        if one is not None and Path(str(one)).suffix.lower() not in SUFFIXES:
            raise InputError(
                f"The second argument {shortened(one)} has no suffix of a video: a text is given by "
                "caption=…, a path by output_video=… (a folder of PNGs needs that keyword)."
            )
    return given


def check_paths(output_video: Any, output_types: list[str]) -> list[Path | None]:
    """The path of each video, checked before any is made; ``None`` for one that is returned.

    ``output_types`` has an entry for each video.

    One path for several videos is numbered: ``out.mp4`` becomes ``out-1.mp4``, ``out-2.mp4``, ….
    ``True`` asks for new files in the folder that :data:`FOLDER` names, or in the system's temporary one;
    with that variable, so does ``None`` for videos that would be returned as a file's bytes.

    Raises:
        InputError: for a list of another length, or a path with an output type that is not a file.
        OutputError: for a path that cannot be written.
    """
    count = len(output_types)
    folder = os.environ.get(FOLDER)
    if output_video is None:
        return [_new_file(folder) if folder and kind == "mp4" else None for kind in output_types]
    for other in sorted(set(output_types) - {"mp4"}):
        raise InputError(
            f"output_video={str(output_video)!r} asks for a file, but output_type={other!r} is returned as "
            "it is; leave one of them out."
        )
    if output_video is True:
        output_video = [_new_file(folder or tempfile.gettempdir()) for _ in output_types]
    if isinstance(output_video, (list, tuple)):
        if len(output_video) != count:
            raise InputError(f"output_video lists {len(output_video)} paths for {count} videos.")
        paths = [check_output(path) for path in output_video]
        for number, path in enumerate(paths):
            if path.resolve() in [other.resolve() for other in paths[:number]]:
                raise InputError(f"output_video lists {str(path)!r} twice; each video needs its own.")
        return [*paths]
    path = check_output(output_video)
    if count == 1:
        return [path]
    numbered = (path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(1, count + 1))
    return [check_output(each) for each in numbered]


def _new_file(folder: str) -> Path:
    return check_output(Path(folder, f"video-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}.mp4"))


def blacken(frames: Tensor, content: tuple[int, int, int, int] | None) -> Tensor:
    """Frames [f, 3, h, w] with black around ``content`` (top, left, height, width)."""
    if content is None:
        return frames
    top, left, height, width = content
    framed = frames.new_full(frames.shape, -1.0)
    area = (..., slice(top, top + height), slice(left, left + width))
    framed[area] = frames[area]
    return framed


def deliver(
    frames: Tensor, request: Request, seed: int | None, path: Path | None, model: Mapping[str, Any]
) -> Any:
    """Frames [f, 3, h, w], about -1..1, or latents, as ``output_type`` says; a file's path as text.

    ``model`` is what the file says of the model that made it: :attr:`.VideoGenerator.record`.
    """
    options = request.options
    if options.output_type == "latent":
        return frames
    if options.output_type == "pt":
        return (frames * 0.5 + 0.5).clamp(0, 1)
    pixels: np.ndarray = tensor_to_uint8(frames)
    if options.output_type == "np":
        return pixels
    if options.output_type == "pil":
        return [Image.fromarray(frame) for frame in pixels]
    settings = {
        "fps": request.fps,
        "crf": options.crf,
        "metadata": record.of_video(request, seed, model),
        "audio": request.audio,
    }
    try:
        return encode_video(pixels, **settings) if path is None else write_video(pixels, path, **settings)
    except OutputError as error:
        kept = keep_frames(pixels, path, request.fps)
        if kept is None:
            raise
        raise OutputError(f"{error} The frames are kept in {kept!r}.") from error
