"""The measures, against known values and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from checkpoints_factory import WIDTH
from scipy.linalg import sqrtm

from modelscope_i2v import InputError, VideoGenerator
from modelscope_i2v.data import synthetic
from modelscope_i2v.data.degrade import degrade, enlarge
from modelscope_i2v.evaluation import extras, metrics
from modelscope_i2v.evaluation.detector import find
from modelscope_i2v.evaluation.examples import CAMERA, GROUPS, HELD_OUT, TWO, examples


@pytest.fixture(scope="module")
def clip() -> synthetic.Clip:
    wish = ("red", "circle", "moves right")
    return synthetic.render(
        synthetic.draw(np.random.default_rng(1), shapes=1, camera=False, combination=wish)
    )


def test_wilson_interval():
    one = metrics.share([True] * 9 + [False])
    assert (one.value, one.n) == (0.9, 10)
    assert (one.low, one.high) == pytest.approx((0.5958, 0.9821), abs=1e-4)  # as tables have it
    assert metrics.share([True] * 100).high == 1 and metrics.share([True] * 100).low > 0.96
    assert metrics.share([False]).low == 0
    assert metrics.share([]).n == 0


def test_bootstrap_interval_covers_and_repeats():
    values = np.random.default_rng(0).normal(5, 2, 100)
    one = metrics.mean(values)
    assert one == metrics.mean(values)
    assert one.low < 5 < one.high
    assert one.high - one.low == pytest.approx(2 * 1.96 * 2 / 10, rel=0.25)
    assert metrics.mean([1.0, float("nan"), 3.0]).n == 2
    assert math.isnan(metrics.mean([]).value)


def test_psnr_and_ssim(clip):
    noisy = (clip.frames.astype(int) + 5).clip(0, 255).astype(np.uint8)
    assert metrics.psnr(noisy, clip.frames) == pytest.approx(20 * math.log10(255 / 5), abs=0.1)
    assert metrics.psnr(clip.frames, clip.frames) == 100
    assert metrics.ssim(clip.frames, clip.frames) == pytest.approx(1)
    assert metrics.ssim(np.zeros_like(clip.frames), clip.frames) < 0.3
    assert metrics.ssim(clip.frames[:, :5, :6], clip.frames[:, :5, :6]) == pytest.approx(1)


def test_flow_is_as_fast_as_the_picture_moves():
    texture = np.kron(np.random.default_rng(0).integers(0, 256, (16, 20)), np.ones((8, 8)))
    soft = np.stack([texture.astype(np.uint8)] * 3, -1)
    frames = np.stack([soft[:96, 2 * t : 96 + 2 * t] for t in range(4)])
    assert metrics.flow(frames) * 96 == pytest.approx(2, rel=0.2)
    assert metrics.flow(frames[:1].repeat(3, 0)) < 1e-4
    assert metrics.flow(frames[:1]) == 0


def test_jerks(clip):
    calm = metrics.acceleration(find(clip.frames), 96)
    shaken = np.stack([np.roll(frame, (-1) ** t * 2, 1) for t, frame in enumerate(clip.frames)])
    assert calm < 0.003 < 0.05 < metrics.acceleration(find(shaken), 96)
    assert math.isnan(metrics.acceleration([], 96))


def test_flicker_sees_the_still_ground_alone(clip):
    assert metrics.flicker(clip.frames, clip.frames) < 0.5
    bicubic = enlarge(degrade(clip.frames, np.random.default_rng(0)), 96, 96)
    assert metrics.flicker(bicubic, clip.frames) > 5
    assert math.isnan(metrics.flicker(clip.frames[:2], clip.frames[:2]))


def test_frechet_distance_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    other = 1.5 * torch.randn(60, 5, generator=generator, dtype=torch.float64) + 0.3
    a, b = np.cov(one.numpy(), rowvar=False), np.cov(other.numpy(), rowvar=False)
    gap = np.square(one.mean(0).numpy() - other.mean(0).numpy()).sum()
    expected = gap + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert metrics.frechet(one, other) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet(one, one) == pytest.approx(0, abs=1e-6)
    assert math.isnan(metrics.frechet(one[:1], other))


def test_features_tell_the_scene_and_the_motion(clip, checkpoint):
    generator = VideoGenerator.from_directory(checkpoint("image-to-video"), device="cpu")
    encoder = generator.image_encoder
    forwards, backwards, still = (
        metrics.features(frames, encoder)
        for frames in (clip.frames, clip.frames[::-1], clip.frames[:1].repeat(16, 0))
    )
    assert forwards.shape == (8, 2 * WIDTH) and metrics.features(clip.frames[:1], encoder).shape == (
        1,
        2 * WIDTH,
    )
    assert still[:, WIDTH:].abs().max() < 1e-4 < forwards[:, WIDTH:].abs().max()
    torch.testing.assert_close(backwards[-1, WIDTH:], -forwards[0, WIDTH:], atol=1e-4, rtol=1e-3)


def test_examples_are_the_same_every_time_balanced_and_never_trained_on():
    made = examples(240, 0)
    assert made == examples(240, 0) and made[0].scene != examples(240, 1)[0].scene
    groups = {group: [one for one in made if one.group == group] for group in GROUPS}
    assert len(groups[HELD_OUT]) >= 100 and sum(map(len, groups.values())) == 240
    for group, members in groups.items():
        for one in members:
            held = [synthetic.is_held_out(shape.combination) for shape in one.scene.shapes]
            assert held == [group == HELD_OUT] * (2 if group == TWO else 1)
            assert (one.scene.camera != synthetic.STILL) == (group == CAMERA)
    colours = [one.scene.shapes[0].colour for one in groups[HELD_OUT]]
    assert {colours.count(colour) for colour in synthetic.COLOURS} == {15}
    kinds = [one.scene.shapes[0].kind for one in groups[HELD_OUT]]
    assert min(map(kinds.count, synthetic.KINDS)) >= 20


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_few_examples(count: int):
    assert len(examples(count, 0)) == count


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras.importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"scikit-image.*modelscope-i2v\[evaluate\]"):
        extras.need("skimage.metrics")
