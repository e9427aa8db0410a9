"""Degraded clips: what video-to-video learns from, and is measured on."""

from __future__ import annotations

import numpy as np
import pytest

from modelscope_i2v.data import synthetic
from modelscope_i2v.data.degrade import BLUR, FACTORS, NOISE, degrade, enlarge


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return synthetic.render(synthetic.draw(np.random.default_rng(1)), 4).frames


def test_same_generator_same_clip(frames: np.ndarray) -> None:
    one, two, other = (degrade(frames, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(one, two)
    assert one.shape != other.shape or not np.array_equal(one, other)


def test_every_factor_occurs(frames: np.ndarray) -> None:
    heights = {degrade(frames, np.random.default_rng(seed)).shape[1] for seed in range(12)}
    assert heights == {frames.shape[1] // factor for factor in FACTORS}


def test_noise_differs_between_frames_and_has_the_stated_strength() -> None:
    grey = np.full((6, 96, 96, 3), 128, np.uint8)
    small = degrade(grey, np.random.default_rng(0), 2) / 255
    assert BLUR[0] > 0
    assert NOISE[0] * 0.95 < small.std() < NOISE[1] * 1.05
    assert not np.array_equal(small[0], small[1])


def test_worse_than_the_truth_but_still_the_same_clip(frames: np.ndarray) -> None:
    large = enlarge(degrade(frames, np.random.default_rng(2)), *frames.shape[1:3])
    assert large.shape == frames.shape and large.dtype == np.uint8
    psnr = 10 * np.log10(255**2 / np.square(large.astype(float) - frames).mean())
    assert 21 < psnr < 27


def test_frames_of_any_size() -> None:
    assert degrade(np.zeros((2, 50, 70, 3), np.uint8), np.random.default_rng(0), 3).shape == (2, 16, 23, 3)


@pytest.mark.parametrize("factor", [0, -1, 97])
def test_a_factor_that_leaves_nothing(frames: np.ndarray, factor: int) -> None:
    with pytest.raises(ValueError, match=f"factor={factor}"):
        degrade(frames, np.random.default_rng(0), factor)
