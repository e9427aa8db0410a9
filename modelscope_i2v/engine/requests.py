"""Input: what a caller hands in becomes a request, pictures and frames read and options checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..encoders.prompts import check_text, rows_needed
from ..errors import InputError
from ..media.frames import as_video
from ..media.images import load_image
from ..media.transforms import center_crop, clip_pixels, content_box, frames_to_tensor
from ..spec import options as option_table
from ..spec.families import Family
from ..spec.options import Options

logger = logging.getLogger(__name__)


TEXTS = ("text", "caption", "prompt")
"""Names of the text that leads a video."""

ALIASES = {
    "out_height": "height",
    "out_width": "width",
    "positive_prompt": "prompt_suffix",
    "total_noise_levels": "strength",  # of 1000
}
"""Names of options in calls that were written for stock's pipelines and their relatives."""

PER_VIDEO = (*TEXTS, "negative_prompt", "seed")
"""Keywords of a call that may be lists, one value a video."""

_FILES = ("image", "image_path", "video_path", "video")


@dataclass(frozen=True, eq=False)
class Request:
    """One input, ready for the networks."""

    options: Options
    text: str = ""
    image: Image.Image | None = None
    frames: Tensor | None = None
    """Frames of the input video [f, 3, height, width], -1..1."""
    content: tuple[int, int, int, int] | None = None
    """Area of the frames that the input video covers (top, left, height, width), if not all of it."""
    fps: float = 8.0
    """Frame rate of the written file."""
    audio: Any = None
    source: Mapping[str, Any] | None = None
    """The file that the input came from, see :func:`modelscope_i2v.engine.record.of_input`."""
    text_rows: int = 1
    """Rows of 77 tokens that the text, or what the video should not show, takes."""

    def alike(self, other: Request) -> bool:
        """True if both can be made in one batch."""
        mine, theirs = self.options, other.options
        if mine.latents is not None or theirs.latents is not None:
            return False
        mine_too, theirs_too = (self.num_frames, self.text_rows), (other.num_frames, other.text_rows)
        return mine == theirs and mine_too == theirs_too

    @property
    def num_frames(self) -> int:
        """Frames of the video that is made of this."""
        return self.options.num_frames if self.frames is None else len(self.frames)


def input_keys(family: Family) -> tuple[str, ...]:
    """The keys of an input dict that are no options; the first is what a bare input means."""
    texts = TEXTS if family.reads_text else ()
    if family.takes_video:
        return "video_path", "video", "frames", *texts
    return (*(("image", "image_path") if family.reads_image else ()), *texts)


class Spread(list[tuple[Any, dict[str, Any]]]):
    """The inputs of a call, each with its options.

    Attributes:
        several: whether the caller gave a list, and gets one.
    """

    def __init__(self, items: Iterable[tuple[Any, dict[str, Any]]], several: bool) -> None:
        super().__init__(items)
        self.several = several


def spread(inputs: Any, options: Mapping[str, Any]) -> Spread:
    """One input or a list, with options of which some may be lists, one value a video, as in diffusers.

    Raises InputError for lists of unequal length.
    """
    lists = {name: options[name] for name in PER_VIDEO if isinstance(options.get(name), (list, tuple))}
    lengths = {name: len(values) for name, values in lists.items()}
    if isinstance(inputs, list):
        lengths["the input"] = len(inputs)
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise InputError(f"Lists must be equally long, one entry a video: {said}.")
    if not lengths:
        return Spread([(inputs, dict(options))], several=False)
    count = next(iter(lengths.values()))
    given = inputs if isinstance(inputs, list) else [inputs] * count
    owns = [{**options, **{name: values[i] for name, values in lists.items()}} for i in range(count)]
    return Spread(zip(given, owns), several=True)


def check(family: Family, inputs: Mapping[str, Any], options: Options) -> None:
    """Opens an input before the first video of several is made, so that a missing one costs nothing.

    What is read from the network or a stream, which cannot be read twice, is left to :func:`read`.

    Raises:
        InputError: as :func:`read`.
    """
    source = next((inputs[key] for key in _FILES if key in inputs), None)
    if not isinstance(source, (str, os.PathLike)) or str(source).lower().startswith(("http:", "https:")):
        return
    if family.takes_video:
        as_video(source, max_frames=1, max_pixels=options.max_pixels)
    else:
        load_image(source, max_pixels=options.max_pixels)


def resolve(
    family: Family, given: Any, options: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> tuple[dict[str, Any], Options]:
    """Separates an input, bare or a dict, from its options, and checks those.

    Args:
        given: a picture, a video, a text, or a dict of those that may also hold options.
        options: the call's options; they come before those in the dict.
        checkpoint: the checkpoint's own defaults.

    Returns:
        What to make a video of, and how. Nothing is read yet.

    Raises:
        InputError: for an option that is unknown or out of range.
    """
    keys = input_keys(family)
    if given is None:
        given = {}
    elif not isinstance(given, Mapping):
        given = {keys[0]: given}
    inputs = {key: value for key, value in given.items() if key in keys and value is not None}
    of_call = {key: options[key] for key in TEXTS if key in keys and options.get(key) is not None}
    text, stated = _one_text(of_call, "the call"), _one_text(inputs, "the input")
    inputs = {key: value for key, value in inputs.items() if key not in TEXTS}
    if text is not None and stated not in (None, text):
        logger.warning("The input's text and the call's differ; the call's is used.")
    if text is not None or stated is not None:
        inputs["text"] = stated if text is None else text
    options = _renamed({key: value for key, value in options.items() if key not in keys or key not in TEXTS})
    others = _renamed({key: value for key, value in given.items() if key not in keys})
    stated_options = {key: value for key, value in options.items() if value is not None or key not in others}
    return inputs, option_table.resolve(family, {**others, **stated_options}, checkpoint, keys)


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their own names, also where a client of stock's pipelines uses :data:`ALIASES`."""
    renamed = dict(values)
    for alias in ALIASES.keys() & values.keys():
        name, value = ALIASES[alias], renamed.pop(alias)
        if name in renamed:
            raise InputError(f"{name} and {alias} mean the same; give one of them.")
        levels = name == "strength" and isinstance(value, (int, float))
        renamed[name] = value / 1000 if levels else value
    return renamed


def _one_text(values: Mapping[str, Any], where: str) -> Any:
    """The text among values that may have it under any of :data:`TEXTS`; None if there is none."""
    found = {key: values[key] for key in TEXTS if key in values}
    texts = list(found.values())
    if any(text != texts[0] for text in texts):
        raise InputError(f"{' and '.join(found)} of {where} mean the same and differ; give one of them.")
    return texts[0] if texts else None


def read(family: Family, inputs: Mapping[str, Any], options: Options) -> Request:
    """Reads what :func:`resolve` returned.

    Raises:
        InputError: for an input that is missing or cannot be read.
    """
    text = inputs.get("text", "")
    if not isinstance(text, str):
        raise InputError(f"The text is a {type(text).__name__}; it must be a string.")
    if family.reads_text:
        check_text(text, long=options.long_prompt)
        check_text(options.negative_prompt, long=options.long_prompt, what="negative_prompt")
    rows = _text_rows(family, text, options)
    if family.takes_video:
        return replace(_video_sample(family, inputs, options, text), text_rows=rows)
    fps = options.fps or family.fps
    if family.reads_image:
        image = load_image(
            _one_of(family, inputs, "image", "image_path"),
            max_pixels=options.max_pixels,
            channel_order=options.channel_order,
        )
        return Request(options, text=text, image=image, fps=fps, text_rows=rows)
    if "text" not in inputs:
        raise InputError(f'{family.name} needs a text: a string, or {{"text": "…"}}.')
    return Request(options, text=text, fps=fps, text_rows=rows)


def _text_rows(family: Family, text: str, options: Options) -> int:
    """Both branches of guidance need equally many."""
    if not (family.reads_text and options.long_prompt):
        return 1
    return max(map(rows_needed, (text + options.prompt_suffix, options.negative_prompt)))


def _one_of(family: Family, inputs: Mapping[str, Any], *keys: str) -> Any:
    found = [inputs[key] for key in keys if key in inputs]
    if len(found) != 1:
        names = " or ".join(map(repr, keys))
        raise InputError(f"{family.name} needs one input under {names}; it got {len(found) or 'none'}.")
    return found[0]


def _video_sample(family: Family, inputs: Mapping[str, Any], options: Options, text: str) -> Request:
    source = _one_of(family, inputs, "video_path", "video", "frames")
    height, width = options.height, options.width
    video = as_video(
        source,
        max_frames=options.num_frames,
        fps=options.fps or family.fps,
        channel_order=options.channel_order,
        max_pixels=options.max_pixels,
        max_video_pixels=options.max_video_pixels,
        max_audio_seconds=options.max_audio_seconds,
        each=lambda frame: frames_to_tensor(frame[None], height, width, options.fit)[0],
    )
    if video.total_frames and video.total_frames > len(video.frames) == options.num_frames:
        logger.warning(
            "The input video has %d frames; its first %d are used. num_frames says how many.",
            video.total_frames,
            options.num_frames,
        )
    content = None
    if options.fit == "pad":
        content = content_box(*video.size, height, width, "pad")
    return Request(
        options,
        text=text,
        frames=torch.stack(video.frames),
        content=content,
        fps=options.fps or video.fps,
        audio=video.audio if options.fps in (None, video.fps) else None,  # it would run apart
    )


def clip_input(family: Family, batch: list[Request], image_size: int) -> Tensor:
    """The pictures as CLIP's image tower takes them: [b, 3, image_size, image_size].

    The originals' crop may fall a pixel short, and is kept so here because the embedding is part of
    the result.
    """
    sides = (family.clip_crop or request.options.width for request in batch)
    cropped = (center_crop(request.image, side, side) for request, side in zip(batch, sides))
    return torch.stack([clip_pixels(image, image_size) for image in cropped])


def picture_frame(request: Request) -> Tensor:
    """The picture cut to the video's size, as a frame [1, 3, height, width] in -1..1."""
    height, width = request.options.height, request.options.width
    image = center_crop(request.image, width, height, fill_short=True)
    return frames_to_tensor(np.asarray(image)[None], height, width)
