"""Schedules and solvers against stock's, on a denoiser that costs nothing."""

from __future__ import annotations

import pytest
import torch
from oracle import stock
from oracle.compare import relative_rms
from torch import Tensor

from modelscope_i2v.sampling.guidance import denoiser, guided
from modelscope_i2v.sampling.noise import NoiseSource, SolverNoise
from modelscope_i2v.sampling.schedules import SCHEDULES
from modelscope_i2v.sampling.solvers import SOLVERS
from modelscope_i2v.spec.families import FAMILIES, Family

WEIGHT = 0.5 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
WANTED, WITHOUT = torch.randn(2, 1, 4, 1, 1, 1, generator=torch.Generator().manual_seed(1))
START = torch.randn(1, 4, 3, 6, 10, generator=torch.Generator().manual_seed(2))


def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Bends with latents, time and condition, as a network does."""
    time = torch.sin(t.float() / 100).view(-1, 1, 1, 1, 1)
    return torch.einsum("oc,bcfhw->bofhw", WEIGHT, torch.tanh(x)) + y + time


def ours(family: Family, solver: str, steps: int, eta: float = 0.0, one_batch: bool = True) -> Tensor:
    schedule = SCHEDULES[family.schedule]()
    predict = guided(
        network,
        lambda y: y,
        {"y": WANTED},
        {"y": WITHOUT},
        scale=family.guidance_scale,
        rescale=family.guidance_rescale,
        one_batch=one_batch,
    )
    denoise = denoiser(predict, schedule, family.prediction)
    noise = SolverNoise([NoiseSource()])
    start = family.start_timestep(family.strength)
    *_, last = SOLVERS[solver](denoise, START, schedule, steps, start, noise, eta)
    return last


def gaussian_diffusion(task: str):
    """Stock's diffusion of image-to-video or text-to-video, as its model builds it."""
    if task == "image-to-video":
        module = stock.utility(task, "utils.diffusion")
        betas = stock.utility(task, "utils.shedule" if _misspelled() else "utils.schedule").beta_schedule
    else:
        module = stock.utility(task, "diffusion")
        betas = module.beta_schedule
    return module.GaussianDiffusion(
        betas=betas("linear_sd", 1000, init_beta=0.00085, last_beta=0.0120),
        mean_type=FAMILIES[task].prediction,
        var_type="fixed_small",
    )


def _misspelled() -> bool:
    return stock.PACKAGES["image-to-video"] + ".utils.shedule" in stock.load()


def sdedit():
    """Stock's diffusion of video-to-video, as its model builds it."""
    sigmas = stock.utility("video-to-video", "utils.schedules_sdedit").noise_schedule(
        schedule="logsnr_cosine_interp", n=1000, zero_terminal_snr=True, scale_min=2.0, scale_max=4.0
    )
    module = stock.utility("video-to-video", "utils.diffusion_sdedit")
    return module.GaussianDiffusion_SDEdit(sigmas=sigmas, prediction_type="v")


@pytest.mark.parametrize("task", ["image-to-video", "text-to-video-synthesis"])
def test_the_square_root_linear_schedule_equals_stock(task):
    theirs, schedule = gaussian_diffusion(task), SCHEDULES[FAMILIES[task].schedule]()
    torch.testing.assert_close(schedule.alphas, theirs.sqrt_alphas_cumprod, rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.sigmas, theirs.sqrt_one_minus_alphas_cumprod, rtol=1e-12, atol=0)


def test_the_video_to_video_schedule_equals_stock():
    theirs, schedule = sdedit(), SCHEDULES[FAMILIES["video-to-video"].schedule]()
    torch.testing.assert_close(schedule.sigmas.float(), theirs.sigmas, rtol=0, atol=1e-6)
    torch.testing.assert_close(schedule.alphas.float(), theirs.alphas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("timestep", [0, 300, 599, 999])
def test_diffusing_a_video_equals_stock(timestep):
    theirs, schedule = sdedit(), SCHEDULES[FAMILIES["video-to-video"].schedule]()
    noise = torch.randn(START.shape, generator=torch.Generator().manual_seed(3))
    expected = theirs.diffuse(START, torch.tensor([timestep]), noise)
    mixed = schedule.alphas[timestep].item() * START + schedule.sigmas[timestep].item() * noise
    assert relative_rms(mixed, expected) <= 1e-5


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50, 100])
@pytest.mark.parametrize("task", ["image-to-video", "text-to-video-synthesis"])
def test_ddim_equals_stock(task, steps):
    expected = gaussian_diffusion(task).ddim_sample_loop(
        noise=START,
        model=network,
        model_kwargs=[{"y": WANTED}, {"y": WITHOUT}],
        guide_scale=FAMILIES[task].guidance_scale,
        ddim_timesteps=steps,
        eta=0.0,
    )
    for one_batch in (True, False):
        assert relative_rms(ours(FAMILIES[task], "ddim", steps, one_batch=one_batch), expected) <= 1e-5


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("task", ["image-to-video", "text-to-video-synthesis"])
def test_ddim_with_noise_equals_stock(task, eta):
    torch.manual_seed(11)
    expected = gaussian_diffusion(task).ddim_sample_loop(
        noise=START,
        model=network,
        model_kwargs=[{"y": WANTED}, {"y": WITHOUT}],
        guide_scale=FAMILIES[task].guidance_scale,
        ddim_timesteps=20,
        eta=eta,
    )
    torch.manual_seed(11)
    assert relative_rms(ours(FAMILIES[task], "ddim", 20, eta), expected) <= 1e-5


@pytest.mark.parametrize("steps", [2, 5, 30, 50])
@pytest.mark.parametrize(("solver", "limit"), [("heun", 1e-5), ("dpmpp_2m_sde", 1e-4)])
def test_video_to_video_solvers_equal_stock(solver, limit, steps):
    """The stochastic one reads its Brownian path at noise levels whose last bits differ."""
    family = FAMILIES["video-to-video"]
    torch.manual_seed(12)
    expected = sdedit().sample(
        noise=START,
        model=network,
        model_kwargs=[{"y": WANTED}, {"y": WITHOUT}],
        guide_scale=family.guidance_scale,
        guide_rescale=family.guidance_rescale,
        solver=solver,
        steps=steps,
        t_max=family.start_timestep(family.strength),
        t_min=0,
        discretization="trailing",
    )
    torch.manual_seed(12)
    assert relative_rms(ours(family, solver, steps), expected) <= limit
