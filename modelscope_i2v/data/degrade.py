"""Degraded clips, as a poor camera takes them: the inputs that a video-to-video model learns to restore."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

FACTORS = (2, 3)
"""Downscaling factors; one is drawn for each clip."""

BLUR = (0.5, 0.9)
"""Range of the blur's standard deviation, in pixels of the downscaled clip."""

NOISE = (0.05, 0.08)
"""Range of the noise's standard deviation, where white is 1.

Bicubic upscaling then has a PSNR of 23 to 26 dB, well below the embedded autoencoder's reconstructions, so a
model can do better.
"""


def degrade(frames: np.ndarray, generator: np.random.Generator, factor: int | None = None) -> np.ndarray:
    """Downscales and blurs a clip, and adds noise, which is drawn anew for every frame.

    Factor, blur and noise level are drawn once for a clip and are the same in all of its frames.

    Args:
        frames: uint8 [f, height, width, 3].
        generator: source of all random numbers.
        factor: downscaling factor, 1 or more; by default one of :data:`FACTORS`.

    Returns:
        uint8 [f, height // factor, width // factor, 3].

    Raises:
        ValueError: ``factor`` is below 1, or leaves no pixel.
    """
    factor = int(generator.choice(FACTORS)) if factor is None else factor
    blur, strength = generator.uniform(*BLUR), generator.uniform(*NOISE)
    height, width = frames.shape[1] // max(factor, 1), frames.shape[2] // max(factor, 1)
    if factor < 1 or not height or not width:
        size = f"{frames.shape[2]}x{frames.shape[1]}"
        raise ValueError(
            f"factor={factor} is wrong for frames of {size}; it must be 1 or more and leave a pixel."
        )
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
    """Frames uint8 [f, h, w, 3] resized with a bicubic filter: the baseline of video-to-video."""
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
            for frame in frames
        ]
    )
