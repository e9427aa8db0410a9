"""Metrics of clips and of sets of clips, with confidence intervals; standard libraries compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..encoders.clip import ImageEncoder
from ..media.transforms import clip_pixels
from .detector import Track
from .extras import need

_Z = 1.959964
"""Quantile of the normal distribution that leaves 2.5% above it."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A number measured on ``n`` clips, and the interval that holds the true one with 95% confidence."""

    value: float
    low: float
    high: float
    n: int


def share(hits: Sequence[bool]) -> Estimate:
    """Share of hits, 0 … 1, with Wilson's interval (1927), which is valid near 0 and 1 and for few clips."""
    n, hit = len(hits), sum(map(bool, hits))
    if not n:
        return Estimate(float("nan"), 0.0, 1.0, 0)
    p = hit / n
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * (p * (1 - p) / n + _Z**2 / (4 * n**2)) ** 0.5
    return Estimate(p, max(min(middle - half, p), 0.0), min(max(middle + half, p), 1.0), n)


def mean(values: Sequence[float]) -> Estimate:
    """Mean of one number a clip, with a percentile bootstrap interval that is the same every time."""
    numbers = np.asarray([value for value in values if np.isfinite(value)], dtype=np.float64)
    if not len(numbers):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    picks = np.random.default_rng(0).integers(len(numbers), size=(_RESAMPLES, len(numbers)))
    low, high = np.quantile(numbers[picks].mean(1), [0.025, 0.975])
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))


def psnr(clip: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 frames in dB; of equal ones 100."""
    if np.array_equal(clip, truth):
        return 100.0
    return float(need("skimage.metrics").peak_signal_noise_ratio(truth, clip, data_range=255))


def ssim(clip: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity (Wang et al., 2004) of uint8 frames [f, h, w, 3], the mean of the frames.

    The window is 7 pixels wide, or as wide as a smaller frame allows.
    """
    similarity = need("skimage.metrics").structural_similarity
    window = min(7, *(side - 1 + side % 2 for side in clip.shape[1:3]))
    return float(np.mean([similarity(t, c, channel_axis=-1, win_size=window) for t, c in zip(truth, clip)]))


def flow(frames: np.ndarray) -> float:
    """Length of the optical flow between frames (OpenCV's, after Farneback), mean, in widths per frame."""
    cv2 = need("cv2")
    if len(frames) < 2:
        return 0.0
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    lengths = [
        np.linalg.norm(cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0), axis=-1).mean()
        for a, b in zip(grey, grey[1:])
    ]
    return float(np.mean(lengths)) / frames.shape[2]


def acceleration(tracks: Sequence[Track], width: int) -> float:
    """Mean second difference of the largest shape's centre, in widths per frame².

    NaN if no shape is found in three consecutive frames.
    """
    if not tracks:
        return float("nan")
    jerks = np.linalg.norm(np.diff(tracks[0].centres, 2, axis=0), axis=-1)
    jerks = jerks[np.isfinite(jerks)]
    return float(jerks.mean()) / width if len(jerks) else float("nan")


def flicker(frames: np.ndarray, truth: np.ndarray) -> float:
    """Mean second difference in time, 0 … 255, of pixels that stand still in the truth; NaN without any."""
    if len(frames) < 3:
        return float("nan")
    low = np.minimum(np.minimum(truth[:-2], truth[1:-1]), truth[2:])
    high = np.maximum(np.maximum(truth[:-2], truth[1:-1]), truth[2:])
    still = (high - low).max(-1) <= 1
    second = np.abs(np.diff(frames.astype(np.float32), 2, axis=0)).mean(-1)
    return float(second[still].mean()) if still.any() else float("nan")


@torch.inference_mode()
def features(frames: np.ndarray, encoder: ImageEncoder) -> Tensor:
    """A clip's features by CLIP's image tower, float64 [f // 2, 2 · embed_dim], of one frame [1, …].

    Each frame's embedding (the content), concatenated with its change until half a clip later (the motion).
    """
    pixels = torch.stack([clip_pixels(Image.fromarray(frame), encoder.image_size) for frame in frames])
    embedded = encoder.encode(pixels)[:, 0].double().cpu()
    half = len(embedded) // 2
    if not half:
        return torch.cat([embedded, torch.zeros_like(embedded)], dim=1)
    return torch.cat([embedded[:half], embedded[half : 2 * half] - embedded[:half]], dim=1)


def frechet(one: Tensor, other: Tensor) -> float:
    """Fréchet distance (Heusel et al., arXiv:1706.08500) of two sets of features [n, d], by torchmetrics.

    NaN for sets of fewer than two features. It grows as sets get smaller, so only distances between sets of
    one size can be compared.
    """
    if min(len(one), len(other)) < 2:
        return float("nan")
    same = nn.Identity()
    same.num_features = one.shape[1]
    metric = need("torchmetrics.image.fid").FrechetInceptionDistance(feature=same, normalize=False)
    metric.set_dtype(torch.float64)
    metric.update(one.double(), real=True)
    metric.update(other.double(), real=False)
    return max(float(metric.compute()), 0.0)
