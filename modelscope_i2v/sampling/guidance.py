"""From a network's output to clean latents: classifier-free guidance and prediction types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .schedules import Schedule
from .solvers import Denoiser

Predict = Callable[[Tensor, Tensor], Tensor]
"""A network's output for latents [b, …] and timesteps [b]."""


def guided(
    network: Callable[..., Tensor],
    prepare: Callable[..., Any],
    conditional: Mapping[str, Tensor],
    unconditional: Mapping[str, Tensor],
    *,
    scale: float,
    rescale: float = 0.0,
    one_batch: bool = True,
) -> Predict:
    """Classifier-free guidance: Ho and Salimans (arXiv:2207.12598).

    Args:
        network, prepare: ``network(latents, timesteps, prepare(**conditions))`` is its output; conditions
            are prepared once.
        conditional, unconditional: the conditions of both branches, each tensor [b, …].
        scale: 1 leaves the unconditional branch out.
        rescale: 0 to 1, how far the result's spread goes back to the conditional branch's, against
            overexposure: Lin et al. (arXiv:2305.08891), section 3.4.
        one_batch: both branches in one call, or one after the other with less memory.
    """
    if scale == 1:
        prepared = prepare(**conditional)
        return lambda x, t: network(x, t, prepared)
    if one_batch:
        both = prepare(**{name: torch.cat([unconditional[name], conditional[name]]) for name in conditional})

        def branches(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
            return network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
    else:
        apart = prepare(**unconditional), prepare(**conditional)

        def branches(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
            return tuple(network(x, t, prepared) for prepared in apart)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        without, with_conditions = branches(x, t)
        out = without + scale * (with_conditions - without)
        if rescale:
            ratio = with_conditions.flatten(1).std(dim=1) / (out.flatten(1).std(dim=1) + 1e-12)
            factor = rescale * ratio + (1 - rescale)
            out = out * factor.view(-1, *[1] * (out.ndim - 1))
        return out

    return predict


def guidance_interval(
    inside: Callable[[], Denoiser],
    outside: Callable[[], Denoiser],
    schedule: Schedule,
    interval: tuple[float, float],
) -> Denoiser:
    """Guidance where it matters: Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves
    Sample and Distribution Quality in Diffusion Models" (arXiv:2404.07724).

    Args:
        inside: makes the denoiser, with guidance, for noise levels in the interval.
        outside: makes the other, which can leave the unconditional branch out. Either is made when its turn
            comes and let go after it, so that only one's conditions are in memory.
        interval: noise levels sigma / alpha, without the lower end and with the upper.
    """
    low, high = interval
    levels = (schedule.sigmas / schedule.alphas).tolist()
    turn: tuple[bool, Denoiser] | None = None

    def denoise(x: Tensor, t: int) -> Tensor:
        nonlocal turn
        is_inside = low < levels[t] <= high
        if turn is None or turn[0] is not is_inside:
            turn = None  # what it holds is freed before the other is made
            turn = is_inside, (inside if is_inside else outside)()
        return turn[1](x, t)

    return denoise


def denoiser(predict: Predict, schedule: Schedule, prediction: str) -> Denoiser:
    """Turns what a network predicts into clean latents.

    ``prediction`` is ``eps`` (the noise) or ``v`` (the velocity alpha · noise − sigma · x_0 of
    Salimans and Ho, arXiv:2202.00512).
    """
    alphas: list[float] = schedule.alphas.tolist()
    sigmas: list[float] = schedule.sigmas.tolist()

    def denoise(x: Tensor, t: int) -> Tensor:
        out = predict(x, torch.full((len(x),), t, dtype=torch.long, device=x.device))
        if prediction == "v":
            return alphas[t] * x - sigmas[t] * out
        return (x - sigmas[t] * out) / alphas[t]

    return denoise
