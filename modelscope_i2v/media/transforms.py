"""From pictures and frames to the networks' tensors, and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..errors import InputError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

FITS = ("stretch", "crop", "pad")
"""Ways to bring a video to another aspect ratio."""

_MAX_RESIZED = 1 << 28
"""Pixels of the largest picture that a crop may pass through; only a sliver of a picture needs more."""


def center_crop(image: Image.Image, width: int, height: int, *, fill_short: bool = False) -> Image.Image:
    """Shrink or grow a picture until it just covers ``width`` x ``height``, and cut out the middle.

    The original pipelines compute the resized size with a floor division of floats. For some sizes it
    ends one pixel short of the target, and the crop then has a black line at its right or lower edge.

    Args:
        fill_short: resize to the full size where the originals fall short. ``False`` repeats them
            exactly; elsewhere both are the same.
    """
    scale = min(image.width / width, image.height / height)
    resized = [max(1, round(side // scale)) for side in image.size]
    if fill_short and (resized[0] < width or resized[1] < height):
        resized = [max(goal, round(side / scale)) for goal, side in zip((width, height), image.size)]
    _check_strip(image.width, image.height, resized[0] * resized[1])
    image = image.resize((resized[0], resized[1]), resample=Image.Resampling.BOX)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def clip_pixels(image: Image.Image, size: int = 224) -> torch.Tensor:
    """A picture as CLIP takes it: bilinear to ``size`` x ``size``, CLIP's mean and deviation.

    Returns:
        float32 [3, size, size].
    """
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return pixels.float().div(255).sub(mean).div(std)


def content_box(
    frame_height: int, frame_width: int, height: int, width: int, fit: str = "stretch"
) -> tuple[int, int, int, int]:
    """Where the content lies in a ``height`` x ``width`` picture that :func:`frames_to_tensor` made.

    The whole picture, except with ``fit="pad"``. To cut an output back to its content:
    ``top, left, h, w = content_box(...); video[..., top : top + h, left : left + w]``.

    Returns:
        top, left, height, width in pixels.
    """
    _check_fit(fit)
    if fit != "pad":
        return 0, 0, height, width
    scale = min(height / frame_height, width / frame_width)
    inner_height = min(height, max(1, round(frame_height * scale)))
    inner_width = min(width, max(1, round(frame_width * scale)))
    return (height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width


def frames_to_tensor(frames: np.ndarray, height: int, width: int, fit: str = "stretch") -> torch.Tensor:
    """Bring frames to the size and range that the autoencoder takes.

    Args:
        frames: [f, h, w, 3], uint8 or floats in 0..1.
        fit: ``stretch`` ignores the aspect ratio, as the original video-to-video does; ``crop`` keeps
            it and cuts what hangs over on both sides; ``pad`` keeps it and repeats the edges outwards
            (:func:`content_box` tells where the content is).

    Returns:
        float32 [f, 3, height, width] in -1..1. Resizing is bilinear without antialiasing, as in the
        original.
    """
    _check_fit(fit)
    count, frame_height, frame_width, _ = frames.shape
    peak = 255 if frames.dtype == np.uint8 else 1
    video = torch.empty(count, 3, height, width)
    for frame, out in zip(frames, video):  # one at a time: 32 frames of 4K as floats would be 3 GB
        pixels = (
            torch.tensor(frame).permute(2, 0, 1)[None].contiguous().float().div_(peak).sub_(0.5).div_(0.5)
        )
        if fit == "stretch":
            out.copy_(_resize(pixels, height, width)[0])
        elif fit == "crop":
            scale = max(height / frame_height, width / frame_width)
            grown_height = max(height, round(frame_height * scale))
            grown_width = max(width, round(frame_width * scale))
            _check_strip(frame_width, frame_height, grown_height * grown_width)
            top, left = (grown_height - height) // 2, (grown_width - width) // 2
            grown = _resize(pixels, grown_height, grown_width)
            out.copy_(grown[0, :, top : top + height, left : left + width])
        else:
            top, left, inner_height, inner_width = content_box(frame_height, frame_width, height, width, fit)
            below, beside = height - inner_height - top, width - inner_width - left
            inner = _resize(pixels, inner_height, inner_width)
            out.copy_(F.pad(inner, (left, beside, top, below), mode="replicate")[0])
    return video


def tensor_to_uint8(video: torch.Tensor) -> np.ndarray:
    """Decoded frames as bytes, by the originals' rule: scaled, clamped, and cut (not rounded) to integers.

    Args:
        video: [f, 3, h, w] of any float type, nominally in -1..1, on any device.

    Returns:
        uint8 [f, h, w, 3].
    """
    pixels = video.detach().float().mul(0.5).add_(0.5).clamp_(0, 1).mul_(255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)


def _check_fit(fit: str) -> None:
    if fit not in FITS:
        raise InputError(f"fit={fit!r} is unknown; it is one of {', '.join(FITS)}.")


def _check_strip(width: int, height: int, resized: int) -> None:
    if resized > _MAX_RESIZED:
        raise InputError(f"{width}x{height} pixels are too narrow a strip to be cropped to this shape.")
