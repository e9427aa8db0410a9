"""How far apart two results are."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def relative_rms(ours: Tensor, theirs: Tensor) -> float:
    """The difference's root mean square over that of ``theirs``."""
    ours, theirs = ours.double(), theirs.double()
    assert ours.shape == theirs.shape, f"{list(ours.shape)} against {list(theirs.shape)}"
    return float((ours - theirs).norm() / theirs.norm())


def frame_difference(ours: np.ndarray, theirs: np.ndarray) -> int:
    """The largest difference of two uint8 videos, in steps of 1/255."""
    assert ours.shape == theirs.shape, f"{ours.shape} against {theirs.shape}"
    assert ours.dtype == theirs.dtype == np.uint8
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())
