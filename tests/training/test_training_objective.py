"""What networks are trained to say, against hand calculation and against sampling."""

from __future__ import annotations

import pytest
import torch

from modelscope_i2v.sampling.guidance import denoiser
from modelscope_i2v.sampling.schedules import SCHEDULES
from modelscope_i2v.spec.families import FAMILIES, I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO
from modelscope_i2v.training.objective import HEAVIEST, Objective, loss

SHAPE = (3, 4, 2, 3, 3)


def random(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    objective = Objective(torch.tensor([0.8, 0.6]), torch.tensor([0.6, 0.8]), "v")
    clean, noise = torch.full((2, 1, 1, 1, 1), 2.0), torch.full((2, 1, 1, 1, 1), 1.0)
    noised = objective.noised(clean, noise, torch.tensor([0, 1]))
    assert torch.allclose(noised.latents.flatten(), torch.tensor([2.2, 2.0]))
    assert torch.allclose(noised.target.flatten(), torch.tensor([0.8 - 1.2, 0.6 - 1.6]))
    values = loss(lambda x, t: torch.zeros_like(x), noised, {})
    assert torch.allclose(values, torch.tensor([0.16, 1.0]))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("t", [0, 7, 250, 450, 599])
def test_a_perfect_network_denoises_to_the_clean_clip(family, t):
    objective = Objective.of(family)
    clean, noise = random(0), random(1)
    source = random(2) if family.takes_video else None
    noised = objective.noised(clean, noise, torch.full((3,), t), source)
    denoise = denoiser(lambda x, _: noised.target, SCHEDULES[family.schedule](), family.prediction)
    limit = 2e-3 if family.prediction == "eps" else 2e-4
    assert torch.allclose(denoise(noised.latents, t), clean, atol=limit)


def test_restoring_starts_where_sampling_starts():
    objective, start = Objective.of(VIDEO_TO_VIDEO), VIDEO_TO_VIDEO.start_timestep(0.6)
    clean, noise, source = random(0), random(1), random(2)
    noisy = objective.noised(clean, noise, torch.full((3,), start), source).latents
    alpha, sigma = objective.alphas[start], objective.sigmas[start]
    assert torch.allclose(noisy, alpha * source + sigma * noise, atol=1e-5)
    half = objective.noised(clean, noise, torch.full((3,), start // 2), source)
    assert torch.allclose(half.target, objective.noised(clean, noise, half.timesteps).target)


@pytest.mark.parametrize("how", ["uniform", "stratified", {"power": 0.5}])
def test_timesteps(how):
    objective = Objective.of(IMAGE_TO_VIDEO, timesteps=how)
    drawn = torch.cat([objective.draw(10, torch.Generator().manual_seed(seed)) for seed in range(300)])
    assert drawn.min() >= 0 and drawn.max() <= 999
    expected = 1000 / 1.5 if how == {"power": 0.5} else 500
    assert abs(drawn.float().mean() - expected) < 20
    one = objective.draw(10, torch.Generator().manual_seed(1)).sort().values
    if how == "stratified":
        assert (one // 100).tolist() == list(range(10))


def test_restoring_draws_below_its_start():
    objective = Objective.of(VIDEO_TO_VIDEO, strength=0.3)
    drawn = torch.cat([objective.draw(50, torch.Generator().manual_seed(seed)) for seed in range(20)])
    assert drawn.max() == 299 and drawn.min() < 10


def test_noise_offset():
    offset = Objective.of(IMAGE_TO_VIDEO)
    assert offset.noise_offset == 0.1
    noise = offset.noise((64, 4, 8, 16, 16), torch.Generator().manual_seed(0))
    means = noise.mean((3, 4))
    assert abs(noise.var() - 1.01) < 0.01
    assert abs(means.var() - (0.1**2 + 1 / 256)) < 1e-3
    plain = Objective.of(IMAGE_TO_VIDEO, noise_offset=0.0).noise((64, 4, 8, 16, 16), torch.Generator())
    assert abs(plain.mean((3, 4)).var() - 1 / 256) < 1e-3


def test_weights():
    t = torch.tensor([0, 500, 999])
    alpha = Objective.of(TEXT_TO_VIDEO).alphas[t]
    assert Objective.of(TEXT_TO_VIDEO).weight(t).tolist() == [1, 1, 1]
    as_v = Objective.of(TEXT_TO_VIDEO, weighting="v").weight(t)
    assert torch.allclose(as_v, (1 / alpha**2).clamp(max=HEAVIEST))
    assert Objective.of(I2VGEN_XL, weighting="v").weight(t).tolist() == [1, 1, 1]
    snr = (alpha**2 / (1 - alpha**2)).double()
    capped = Objective.of(TEXT_TO_VIDEO, weighting={"min_snr": 5}).weight(t)
    assert torch.allclose(capped.double(), snr.clamp(max=5) / snr, rtol=1e-3)


def test_the_weight_v_makes_an_error_in_noise_one_in_velocity():
    objective = Objective.of(TEXT_TO_VIDEO, weighting="v")
    t = torch.tensor([300, 600, 900])
    noised = objective.noised(random(0), random(1), t)
    wrong = noised.target + 0.1
    alpha, sigma = (part[t].view(-1, 1, 1, 1, 1) for part in (objective.alphas, objective.sigmas))

    def velocity(eps: torch.Tensor) -> torch.Tensor:
        return alpha * eps - sigma * (noised.latents - sigma * eps) / alpha

    expected = (velocity(wrong) - velocity(noised.target)).square().flatten(1).mean(1)
    assert torch.allclose(loss(lambda x, t: wrong, noised, {}), expected, rtol=1e-3)
