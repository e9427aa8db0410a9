"""Holding the first frame to a given picture while the others are denoised."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .noise import SolverNoise
from .schedules import Schedule
from .solvers import Denoiser, Solver


def hold_first_frame(solver: Solver, image_latents: Tensor, noise: Tensor) -> Solver:
    """A solver that holds frame 1 to a picture while the other frames are denoised.

    Whatever the solver asks of the network, frame 1 goes in as the picture with ``noise`` at that
    timestep, and comes out as the picture; the last latents hold it exactly. It reaches the other frames
    through the network's temporal layers. That is the replacement of Lugmayr et al., "RePaint"
    (arXiv:2201.09865), equation 8, with frames for pixels, and with one noise for all steps.

    Args:
        image_latents: the picture's scaled latents [b, 4, h, w].
        noise: [b, 4, h, w], standard normal.
    """

    def solve(
        denoise: Denoiser,
        x: Tensor,
        schedule: Schedule,
        steps: int,
        start: int,
        fresh: SolverNoise,
        eta: float,
    ) -> Iterator[Tensor]:
        alphas, sigmas = schedule.alphas.tolist(), schedule.sigmas.tolist()

        def held(x: Tensor, t: int) -> Tensor:
            clean = denoise(_with_first(x, alphas[t] * image_latents + sigmas[t] * noise), t)
            return _with_first(clean, image_latents)

        for step, latents in enumerate(solver(held, x, schedule, steps, start, fresh, eta), start=1):
            yield _with_first(latents, image_latents) if step == steps else latents

    return solve


def _with_first(latents: Tensor, frame: Tensor) -> Tensor:
    """Latents [b, 4, f, h, w] with another first frame."""
    latents = latents.clone()
    latents[:, :, 0] = frame
    return latents
