"""Clips as a poor camera would have taken them: what a video-to-video model learns to repair."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

FACTORS = (2, 3)
"""How many times smaller a degraded clip is; one of them for each clip."""

BLUR = (0.5, 0.9)
"""Range of the blur's standard deviation, in pixels of the small clip."""

NOISE = (0.05, 0.08)
"""Range of the noise's standard deviation, where white is 1.

A bicubic enlargement is then 23 to 26 dB from the truth: well below what the embedded autoencoder can
show, so that there is something to win.
"""


def degrade(frames: np.ndarray, generator: np.random.Generator, factor: int | None = None) -> np.ndarray:
    """Shrinks, blurs and adds noise that is another in every frame.

    The strengths are drawn once for the clip, so they are the same in all of its frames.

    Args:
        frames: uint8 [f, height, width, 3].
        generator: the only source of chance.
        factor: how many times smaller, 1 or more; by default one of :data:`FACTORS`.

    Returns:
        uint8 [f, height // factor, width // factor, 3].

    Raises:
        ValueError: for a factor that leaves no pixel.
    """
    factor = int(generator.choice(FACTORS)) if factor is None else factor
    blur, strength = generator.uniform(*BLUR), generator.uniform(*NOISE)
    height, width = frames.shape[1] // max(factor, 1), frames.shape[2] // max(factor, 1)
    if factor < 1 or not height or not width:
        size = f"{frames.shape[2]}x{frames.shape[1]}"
        raise ValueError(f"factor={factor} does not suit frames of {size}; it must leave a pixel.")
    soft = ImageFilter.GaussianBlur(blur)
    small = np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX).filter(soft))
            for frame in frames
        ]
    )
    noise = generator.standard_normal(small.shape, dtype=np.float32) * np.float32(255 * strength)
    return (small + noise + 0.5).clip(0, 255).astype(np.uint8)


def enlarge(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames uint8 [f, h, w, 3] resized with a bicubic filter: what a model must do better than."""
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
            for frame in frames
        ]
    )
