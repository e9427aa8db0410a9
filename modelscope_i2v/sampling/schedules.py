"""Noise schedules: how much of the clean latents (alpha) and of noise (sigma) a timestep holds.

All are variance preserving, x_t = alpha_t · x_0 + sigma_t · noise with alpha² + sigma² = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """Alphas and sigmas of timesteps 0 … n-1, both [n]; equal is only the same object."""

    alphas: Tensor
    sigmas: Tensor

    def __len__(self) -> int:
        return len(self.alphas)

    @property
    def last_finite(self) -> int:
        """The last timestep that still holds some signal (alpha > 0)."""
        return int((self.alphas > 0).nonzero().max())

    def ratio(self, timesteps: Tensor) -> Tensor:
        """sigma / alpha at timesteps that may lie between two others, interpolated in the logarithm.

        This is the noise level of "Elucidating the Design Space of Diffusion-Based Generative
        Models" (Karras et al., arXiv:2206.00364); infinity where alpha is 0.
        """
        logs = (self.sigmas / self.alphas).log()
        low, weight = timesteps.floor().long(), timesteps.frac()
        high = timesteps.ceil().long()
        mixed = torch.where(weight > 0, (1 - weight) * logs[low] + weight * logs[high], logs[low])
        return mixed.exp()


def from_betas(betas: Tensor) -> Schedule:
    """The schedule of forward-process variances ``betas`` [n] (DDPM, Ho et al., arXiv:2006.11239)."""
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    return Schedule(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())


def sqrt_linear(n: int = 1000, first: float = 0.00085, last: float = 0.0120) -> Schedule:
    """Betas whose square roots are evenly spaced, as latent diffusion has it (arXiv:2112.10752)."""
    return from_betas(torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64) ** 2)


def cosine(n: int = 1000, s: float = 0.008) -> Schedule:
    """Squared-cosine alphas: Nichol and Dhariwal, "Improved DDPM" (arXiv:2102.09672), equation 17."""
    t = torch.arange(n + 1, dtype=torch.float64) / n
    levels = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    return from_betas((1 - levels[1:] / levels[:-1]).clamp(max=0.999))


def logsnr_cosine_interp(
    n: int = 1000, limit: float = 15.0, scale_min: float = 2.0, scale_max: float = 4.0
) -> Schedule:
    """The log-SNR of a cosine schedule, shifted for large pictures, at zero terminal SNR.

    Hoogeboom et al., "Simple diffusion" (arXiv:2301.11093), equations 4 to 6: the shift goes from
    ``scale_min`` at the clean end to ``scale_max`` at the noisy end; the log-SNR spans ±``limit``.
    In fp32, as the original has it: a Brownian path is read at these levels, and it moves by the
    square root of what they move.
    """
    t = torch.linspace(0, 1, n)
    first, last = (math.atan(math.exp(-0.5 * end)) for end in (limit, -limit))
    logsnr = -2 * torch.log(torch.tan(first + t * (last - first)))
    logsnr = logsnr - 2 * ((1 - t) * math.log(scale_min) + t * math.log(scale_max))
    sigmas = torch.sigmoid(-logsnr).sqrt()
    sigmas = sigmas[0] + (sigmas - sigmas[0]) * (1 - sigmas[0]) / (sigmas[-1] - sigmas[0])
    return Schedule((1 - sigmas**2).clamp(min=0).sqrt(), sigmas)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shifts and stretches the alphas so that the last is 0 and the first stays.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891),
    algorithm 1.
    """
    first, last = schedule.alphas[0], schedule.alphas[-1]
    alphas = (schedule.alphas - last) * first / (first - last)
    return Schedule(alphas, (1 - alphas**2).sqrt())


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "sqrt_linear": sqrt_linear,
    "logsnr_cosine_interp": logsnr_cosine_interp,
    "cosine": lambda: zero_terminal_snr(cosine()),
}
"""The schedules that :class:`modelscope_i2v.spec.families.Family` names."""
