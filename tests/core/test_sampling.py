"""Schedules, solvers, guidance and noise on problems whose answer is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelscope_i2v.sampling.guidance import denoiser, guided
from modelscope_i2v.sampling.noise import NoiseSource, SolverNoise
from modelscope_i2v.sampling.schedules import SCHEDULES, sqrt_linear, zero_terminal_snr
from modelscope_i2v.sampling.solvers import (
    SOLVERS,
    ddim_inversion,
    ddim_timesteps,
    inversion_timesteps,
    trailing,
)

MEAN, SPREAD = 0.7, 0.4
SHAPE = (2, 4, 3, 8, 8)


def gaussian_denoiser(schedule):
    """The best possible denoiser where the clean data are normal with MEAN and SPREAD."""

    def denoise(x, t):
        alpha, sigma = schedule.alphas[t].item(), schedule.sigmas[t].item()
        gain = SPREAD**2 * alpha / (SPREAD**2 * alpha**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    return denoise


def solve(name, steps, schedule, start=999, eta=0.0, seed=0):
    noise = SolverNoise([NoiseSource(seed + index) for index in range(SHAPE[0])])
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    *_, last = SOLVERS[name](gaussian_denoiser(schedule), x, schedule, steps, start, noise, eta)
    return x, last


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_preserve_variance_and_get_noisier(name):
    schedule = SCHEDULES[name]()
    assert len(schedule) == 1000
    assert torch.allclose(schedule.alphas**2 + schedule.sigmas**2, torch.ones_like(schedule.alphas))
    assert (schedule.alphas.diff() <= 0).all()
    assert schedule.alphas[0] > 0.99


@pytest.mark.parametrize("name", ["cosine", "logsnr_cosine_interp"])
def test_zero_terminal_snr_ends_in_pure_noise(name):
    schedule = SCHEDULES[name]()
    assert schedule.alphas[-1] == 0 and schedule.last_finite == 998
    assert schedule.ratio(torch.tensor([999.0])).isinf()


def test_noise_level_between_two_timesteps_is_their_geometric_mean():
    schedule = sqrt_linear()
    low, middle, high = schedule.ratio(torch.tensor([10.0, 10.5, 11.0]))
    assert middle == pytest.approx(math.sqrt(low * high))


@given(st.integers(1, 1000), st.sampled_from([999, 599]))
def test_ddim_takes_as_many_steps_as_asked_for(steps, start):
    pairs = ddim_timesteps(steps, start)
    assert len(pairs) == steps
    assert all(0 <= s <= t <= start and t > 0 for t, s in pairs)
    assert pairs[-1][1] == 0


@pytest.mark.parametrize("steps", [n for n in range(1, 1001) if 1000 % n == 0])
def test_ddim_timesteps_are_the_originals_where_they_divide(steps):
    stride = 1000 // steps
    original = (1 + torch.arange(0, 1000, stride)).clamp(0, 999).flip(0).tolist()
    assert ddim_timesteps(steps) == [(t, max(t - stride, 0)) for t in original]


@given(st.integers(1, 400), st.sampled_from([999, 599]), st.booleans())
@settings(max_examples=60)
def test_trailing_levels_fall_to_zero_and_stay_finite(steps, start, drop):
    timesteps, levels = trailing(SCHEDULES["logsnr_cosine_interp"](), steps, start, drop_penultimate=drop)
    assert len(timesteps) == steps and len(levels) == steps + 1
    assert levels.isfinite().all() and (levels.diff() < 0).all() and levels[-1] == 0
    assert timesteps[0] == min(start, 998)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "heun", "unipc"])
def test_deterministic_solvers_find_the_exact_solution(name):
    """With a Gaussian the probability flow only shifts and scales: its end is known for each start."""
    schedule = sqrt_linear()
    errors = {}
    for steps in (40, 160):
        x, found = solve(name, steps, schedule)
        alpha, sigma = schedule.alphas[-1].item(), schedule.sigmas[-1].item()
        exact = MEAN + SPREAD * (x - alpha * MEAN) / math.sqrt(alpha**2 * SPREAD**2 + sigma**2)
        errors[steps] = float((found - exact).square().mean().sqrt() / SPREAD)
    assert errors[40] < 0.08
    assert errors[160] < 0.4 * errors[40]


@pytest.mark.parametrize(
    ("name", "theirs"), [("dpmpp_2m", "DPMSolverMultistep"), ("unipc", "UniPCMultistep")]
)
def test_multistep_solvers_equal_diffusers(name, theirs):
    import diffusers

    schedule, steps = sqrt_linear(), 20
    scheduler = getattr(diffusers, theirs + "Scheduler")(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.0120,
        prediction_type="sample",
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.set_timesteps(steps)
    x, found = solve(name, steps, schedule)
    # Ours enters as the originals do, which scales the first latents by their sigma.
    sample = x * schedule.sigmas[-1].item() if name == "dpmpp_2m" else x
    denoise = gaussian_denoiser(schedule)
    for t in scheduler.timesteps:
        sample = scheduler.step(denoise(sample, int(t)), t, sample).prev_sample
    assert torch.allclose(found, sample, atol=2e-4)


@pytest.mark.parametrize(("name", "eta"), [("ddim", 1.0), ("dpmpp_2m_sde", 0.0)])
def test_stochastic_solvers_keep_the_distribution(name, eta):
    _, found = solve(name, 200, sqrt_linear(), eta=eta)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.06)
    assert float(found.std()) == pytest.approx(SPREAD, rel=0.1)
    assert torch.equal(found, solve(name, 200, sqrt_linear(), eta=eta)[1])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 9, 27, 36, 37, 50])
def test_every_solver_is_finite_at_zero_terminal_snr(name, steps):
    _, found = solve(name, steps, zero_terminal_snr(sqrt_linear()))
    assert found.isfinite().all()


@pytest.mark.parametrize("name", SOLVERS)
def test_one_yield_a_step(name):
    schedule, noise = sqrt_linear(), SolverNoise([NoiseSource(0), NoiseSource(1)])
    yields = list(
        SOLVERS[name](gaussian_denoiser(schedule), torch.zeros(SHAPE), schedule, 7, 999, noise, 0.0)
    )
    assert len(yields) == 7


def test_prediction_types_agree():
    schedule, t = sqrt_linear(), 400
    clean, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    alpha, sigma = schedule.alphas[t].item(), schedule.sigmas[t].item()
    x = alpha * clean + sigma * noise
    from_eps = denoiser(lambda *_: noise, schedule, "eps")(x, t)
    from_v = denoiser(lambda *_: alpha * noise - sigma * clean, schedule, "v")(x, t)
    assert torch.allclose(from_eps, clean, atol=1e-4) and torch.allclose(from_v, clean, atol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_is_the_same_in_one_batch_and_in_two(rescale):
    def network(x, t, y):
        return x * y.mean() + y.flatten(1).sum(1).view(-1, 1, 1, 1, 1) * t.view(-1, 1, 1, 1, 1) / 1000

    def network_by_sample(x, t, y):
        return torch.cat([network(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(len(x))])

    x, t = torch.randn(SHAPE), torch.tensor([5, 900])
    conditions = {"y": torch.randn(2, 3, 4)}, {"y": torch.randn(2, 3, 4)}
    outs = [
        guided(network_by_sample, lambda y: y, *conditions, scale=7.5, rescale=rescale, one_batch=one)(x, t)
        for one in (True, False)
    ]
    assert torch.allclose(*outs, atol=1e-5)
    wanted = network_by_sample(x, t, **conditions[0])
    if rescale == 0:
        without = network_by_sample(x, t, **conditions[1])
        assert torch.allclose(outs[0], without + 7.5 * (wanted - without), atol=1e-5)


def test_guidance_of_one_runs_one_branch():
    calls = []

    def network(x, t, y):
        calls.append(len(x))
        return x

    guided(network, lambda y: y, {"y": torch.ones(2, 1)}, {"y": torch.zeros(2, 1)}, scale=1)(
        torch.zeros(SHAPE), torch.zeros(2)
    )
    assert calls == [2]


def test_noise_comes_from_seed_generator_or_the_global_generator():
    assert torch.equal(NoiseSource(3).normal((4, 5)), NoiseSource(3).normal((4, 5)))
    given = NoiseSource(generator=torch.Generator().manual_seed(3)).normal((4, 5))
    assert torch.equal(given, NoiseSource(3).normal((4, 5)))
    torch.manual_seed(3)
    assert torch.equal(NoiseSource().normal((4, 5)), given)
    before = torch.get_rng_state()
    NoiseSource(11).normal((4, 5))
    assert torch.equal(torch.get_rng_state(), before)


def test_brownian_stretches_have_unit_variance_and_do_not_overlap():
    noise = SolverNoise([NoiseSource(0)])
    path = noise.brownian(torch.zeros(1, 4, 8, 32, 32), 0.1, 10.0)
    first, second = path(torch.tensor(9.0), torch.tensor(4.0)), path(torch.tensor(4.0), torch.tensor(0.1))
    assert float(first.std()) == pytest.approx(1, abs=0.03)
    assert float((first * second).mean()) == pytest.approx(0, abs=0.05)


def test_ddim_inversion_undoes_ddim():
    schedule = sqrt_linear()
    clean = MEAN + SPREAD * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    *_, noise = ddim_inversion(gaussian_denoiser(schedule), clean, schedule, inversion_timesteps(200, 1000))
    assert float(noise.std()) == pytest.approx(1, rel=0.05) and abs(float(noise.mean())) < 0.1
    sources = SolverNoise([NoiseSource(0), NoiseSource(1)])
    *_, back = SOLVERS["ddim"](gaussian_denoiser(schedule), noise, schedule, 200, 999, sources, 0.0)
    assert float((back - clean).abs().mean()) < 0.1 * SPREAD


def test_ddim_inversion_takes_vgens_steps():
    asked = []
    timesteps = inversion_timesteps(30, 600)
    steps = ddim_inversion(lambda x, t: asked.append(t) or x, torch.ones(SHAPE), sqrt_linear(), timesteps)
    assert len(list(steps)) == 30 and asked == list(range(0, 600, 20))
    assert len(inversion_timesteps(350, 600)) == 600  # as the original rounds
