"""The picture itself as the first frame."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from .noise import SolverNoise
from .schedules import Schedule
from .solvers import Denoiser, Solver


def anchored(solver: Solver, picture: Tensor, noise: Tensor) -> Solver:
    """A solver that holds frame 1 to a picture while the other frames are denoised.

    Whatever the solver asks of the network, frame 1 goes in as the picture with ``noise`` at that
    timestep, and comes out as the picture; the last latents hold it exactly. The others learn of it
    through the network's temporal layers. That is the replacement of Lugmayr et al., "RePaint"
    (arXiv:2201.09865), equation 8, with frames for pixels, and with one noise for all steps.

    Args:
        picture: its scaled latent [b, 4, h, w].
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
            clean = denoise(_with_first(x, alphas[t] * picture + sigmas[t] * noise), t)
            return _with_first(clean, picture)

        for step, latents in enumerate(solver(held, x, schedule, steps, start, fresh, eta), start=1):
            yield _with_first(latents, picture) if step == steps else latents

    return solve


def _with_first(latents: Tensor, frame: Tensor) -> Tensor:
    """Latents [b, 4, f, h, w] with another first frame."""
    latents = latents.clone()
    latents[:, :, 0] = frame
    return latents
