"""Views of a video whose frames are folded into the batch; of channels-last memory, none copies."""

from __future__ import annotations

from torch import Tensor


def unfold(x: Tensor, frames: int) -> Tensor:
    """[b·f, c, h, w] → [b, c, f, h, w]."""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


def fold(x: Tensor) -> Tensor:
    """[b, c, f, h, w] → [b·f, c, h, w]."""
    return x.transpose(1, 2).flatten(0, 1)


def along_time(x: Tensor, frames: int) -> Tensor:
    """[b·f, c, h, w] → [b, c, f, h·w]."""
    return unfold(x.flatten(2), frames)


def by_frames(x: Tensor, height: int, width: int) -> Tensor:
    """The way back: [b, c, f, h·w] → [b·f, c, h, w]."""
    return fold(x).unflatten(2, (height, width))
