"""Solvers of the reverse diffusion: from noise, or from a noised video, to clean latents.

Each is a generator function of (denoiser, latents, schedule, options): it yields the latents after
every step, and what it yields last is the result. So whoever drives it can show progress, look at
what is there so far, or stop.

Latents ``x`` are variance preserving (see :mod:`.schedules`) on the way in and whenever they are
yielded. Those after Karras et al. work inside on x / alpha, whose noise level is sigma / alpha.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .noise import SolverNoise
from .schedules import Schedule

Denoiser = Callable[[Tensor, int], Tensor]
"""Clean latents x_0 as the network sees them in x_t, at integer timestep t."""

Solver = Callable[[Denoiser, Tensor, Schedule, int, int, SolverNoise, float], Iterator[Tensor]]

_ORIGINALS_LOWEST = 4.0
"""No original pipeline starts at a noise level below this: video-to-video, at timestep 599, is just above."""


def ddim_timesteps(steps: int, start: int = 999) -> list[tuple[int, int]]:
    """Pairs (timestep, next timestep) of DDIM, from the noisiest on.

    Evenly spaced from 1 on, as in the originals: for 50 steps of 1000 these are 981 → 961, …,
    21 → 1, 1 → 0. The originals stride by 1000 // steps, which takes more steps than asked for where
    steps don't divide 1000; here they are always as many as asked for.
    """
    n = start + 1
    pairs = []
    for index in reversed(range(steps)):
        position = index * n // steps
        timestep = min(1 + position, start)
        stride = position - (index - 1) * n // steps
        pairs.append((timestep, max(timestep - stride, 0)))
    return pairs


def trailing(
    schedule: Schedule, steps: int, start: int, *, drop_penultimate: bool = False
) -> tuple[list[int], Tensor]:
    """Timesteps [steps] from ``start`` down, and noise levels sigma / alpha [steps + 1] ending in 0.

    Lin et al. (arXiv:2305.08891), table 2: evenly spaced, with the noisiest included. Timesteps may
    lie between two integers. ``drop_penultimate`` leaves out the level before the last, where
    stochastic solvers gain nothing.
    """
    start = min(start, schedule.last_finite)
    n = steps + 1 if drop_penultimate else steps
    timesteps = torch.arange(start, -1, -((start + 1) / n))[:n].clamp(0, start)[:steps]
    levels = schedule.ratio(timesteps).float()
    return timesteps.round().long().tolist(), torch.cat([levels, levels.new_zeros(1)])


def ddim(
    denoise: Denoiser, x: Tensor, schedule: Schedule, steps: int, start: int, noise: SolverNoise, eta: float
) -> Iterator[Tensor]:
    """DDIM: Song et al., "Denoising Diffusion Implicit Models" (arXiv:2010.02502), equation 12.

    ``eta`` from 0 (deterministic) to 1 (as much noise as DDPM). The last step lands on timestep 0,
    whose alpha is a little below 1, as in the originals.
    """
    alphas, sigmas = schedule.alphas.tolist(), schedule.sigmas.tolist()
    for t, s in ddim_timesteps(steps, start):
        x0 = denoise(x, t)
        direction = (x - alphas[t] * x0) / sigmas[t]
        fresh = 0.0
        if eta > 0:
            variance = (sigmas[s] / sigmas[t]) ** 2 * (1 - (alphas[t] / alphas[s]) ** 2)
            fresh = min(eta * max(variance, 0.0) ** 0.5, sigmas[s])
        x = alphas[s] * x0 + (sigmas[s] ** 2 - fresh**2) ** 0.5 * direction
        if fresh:
            x = x + fresh * noise.normal(x)
        yield x


def inversion_timesteps(steps: int, reach: int) -> range:
    """Timesteps of :func:`ddim_inversion`, as in the original: 0, reach / steps, … below ``reach``.

    Where the stride is no whole number it is rounded down, and they are more than ``steps``.
    """
    return range(0, reach, max(reach // steps, 1))


def ddim_inversion(denoise: Denoiser, x: Tensor, schedule: Schedule, timesteps: range) -> Iterator[Tensor]:
    """DDIM backwards: from clean latents to the noise, after the last timestep, that they would come from.

    Song et al. (arXiv:2010.02502), section 4.3.
    """
    alphas, sigmas = [*schedule.alphas.tolist(), 0.0], [*schedule.sigmas.tolist(), 1.0]
    for t in timesteps:
        x0 = denoise(x, t)
        direction = (x - alphas[t] * x0) / sigmas[t]
        s = min(t + timesteps.step, len(schedule))
        x = alphas[s] * x0 + sigmas[s] * direction
        yield x


def _enter(x: Tensor, levels: Tensor) -> Tensor:
    """x → x / alpha at the first level.

    The originals multiply by the level itself, which is alike for pure noise and shrinks a diffused video by
    its sigma. Where they start that is 3% at most, and kept; at levels below, which they never see, it would
    leave little of the video.
    """
    level = levels[0]
    return x * (level if level >= _ORIGINALS_LOWEST else (1 + level**2).sqrt())


def _leave(x: Tensor, level: Tensor) -> Tensor:
    """x / alpha → x at a noise level."""
    return x / (1 + level**2).sqrt()


def heun(
    denoise: Denoiser, x: Tensor, schedule: Schedule, steps: int, start: int, noise: SolverNoise, eta: float
) -> Iterator[Tensor]:
    """Heun's second-order method: Karras et al. (arXiv:2206.00364), algorithm 1.

    Evaluates the network twice a step, but once in the last.
    """
    timesteps, levels = trailing(schedule, steps, start)
    levels = levels.to(x.device)
    x = _enter(x, levels)
    for i, t in enumerate(timesteps):
        here, there = levels[i], levels[i + 1]
        slope = (x - denoise(_leave(x, here), t)) / here
        end = x + slope * (there - here)
        if i + 1 < steps:
            end_slope = (end - denoise(_leave(end, there), timesteps[i + 1])) / there
            end = x + (slope + end_slope) / 2 * (there - here)
        x = end
        yield _leave(x, there)


def dpmpp_2m(
    denoise: Denoiser, x: Tensor, schedule: Schedule, steps: int, start: int, noise: SolverNoise, eta: float
) -> Iterator[Tensor]:
    """DPM-Solver++(2M): Lu et al., "DPM-Solver++" (arXiv:2211.01095), algorithm 2."""
    timesteps, levels = trailing(schedule, steps, start)
    yield from _dpmpp_2m(denoise, x, timesteps, levels, fresh_noise=None)


def dpmpp_2m_sde(
    denoise: Denoiser, x: Tensor, schedule: Schedule, steps: int, start: int, noise: SolverNoise, eta: float
) -> Iterator[Tensor]:
    """The stochastic DPM-Solver++(2M), midpoint variant: Lu et al. (arXiv:2211.01095), appendix.

    Its noise is read off one Brownian path, so that the video depends little on the number of steps.
    """
    timesteps, levels = trailing(schedule, steps, start, drop_penultimate=True)
    path = noise.brownian(x, float(levels[-2]), float(levels[0])) if steps > 1 else None
    yield from _dpmpp_2m(denoise, x, timesteps, levels, fresh_noise=path)


def _dpmpp_2m(
    denoise: Denoiser,
    x: Tensor,
    timesteps: list[int],
    levels: Tensor,
    fresh_noise: Callable[[Tensor, Tensor], Tensor] | None,
) -> Iterator[Tensor]:
    """Both multistep solvers: x moves towards x_0, which is extrapolated from the last two steps."""
    device_levels = levels.to(x.device)
    x = _enter(x, device_levels)
    stochastic = fresh_noise is not None
    last: tuple[Tensor, Tensor] | None = None  # x_0 and h of the step before
    for i, t in enumerate(timesteps):
        here, there = device_levels[i], device_levels[i + 1]
        x0 = denoise(_leave(x, here), t)
        if levels[i + 1] == 0:
            yield x0
            return
        h = here.log() - there.log()
        pull = -torch.expm1(-2 * h if stochastic else -h)
        x = there / here * torch.exp(-h if stochastic else torch.zeros_like(h)) * x + pull * x0
        if last is not None:
            last_x0, last_h = last
            x = x + 0.5 * pull * (h / last_h) * (x0 - last_x0)
        if fresh_noise is not None:
            x = x + fresh_noise(levels[i], levels[i + 1]) * there * (-torch.expm1(-2 * h)).sqrt()
        last = x0, h
        yield _leave(x, there)


def unipc(
    denoise: Denoiser, x: Tensor, schedule: Schedule, steps: int, start: int, noise: SolverNoise, eta: float
) -> Iterator[Tensor]:
    """UniPC of order 2 on x_0, with B_2(h): Zhao et al., "UniPC" (arXiv:2302.04867), algorithms 5 and 8.

    One evaluation a step: the one at the predicted point also corrects it.
    """
    timesteps, levels = trailing(schedule, steps, start)
    log_snr = -levels.double().log()
    alphas = (1 / (1 + levels.double() ** 2).sqrt()).tolist()
    sigmas = (1 - torch.tensor(alphas, dtype=torch.float64) ** 2).clamp(min=0).sqrt().tolist()

    def advance(
        x: Tensor, i: int, x0: Tensor, older: Tensor | None
    ) -> tuple[Tensor, float, Tensor | None, float, float]:
        """First-order move from level i to i + 1, and what the second order adds for a difference."""
        h = log_snr[i + 1] - log_snr[i]
        growth = float(torch.expm1(-h))
        base = sigmas[i + 1] / sigmas[i] * x - alphas[i + 1] * growth * x0
        slope, ratio = None, 0.0
        if older is not None:
            ratio = float((log_snr[i - 1] - log_snr[i]) / h)
            slope = (older - x0) / ratio
        return base, alphas[i + 1] * growth, slope, ratio, float(h)

    older: Tensor | None = None  # x_0 of the step before
    before: tuple[Tensor, float, Tensor | None, float, float] | None = None  # what the last move started from
    for i, t in enumerate(timesteps):
        x0 = denoise(x, t)
        if before is not None and older is not None:
            base, weight, slope, ratio, h = before
            if slope is None:
                x = base - weight * 0.5 * (x0 - older)
            else:
                # Two unknowns: the weights of the older slope and of the new difference.
                growth = float(torch.expm1(torch.tensor(-h, dtype=torch.float64)))
                first = growth / -h - 1
                second = first / -h - 0.5
                b1, b2 = first / growth, 2 * second / growth
                new = (b2 - ratio * b1) / (1 - ratio)
                x = base - weight * ((b1 - new) * slope + new * (x0 - older))
        if i + 1 == steps:
            yield x0
            return
        before = advance(x, i, x0, older)
        base, weight, slope, _, _ = before
        x = base if slope is None else base - weight * 0.5 * slope
        older = x0
        yield x


SOLVERS: dict[str, Solver] = {
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "heun": heun,
    "unipc": unipc,
}
"""The solvers by the names that the option ``scheduler`` takes."""
