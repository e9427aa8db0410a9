"""The training objective: noised latents, prediction targets, weights of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..sampling.schedules import SCHEDULES
from ..spec.families import Family

HEAVIEST = 200.0
"""The largest weight of a squared error; at zero terminal SNR it would be infinite."""


@dataclass(frozen=True)
class Noised:
    """A noised batch, with its target."""

    latents: Tensor
    """x_t [b, 4, f, h, w]."""
    timesteps: Tensor
    """[b], int64."""
    target: Tensor
    """The prediction that the network should make, of the shape of ``latents``."""
    weight: Tensor
    """Weight of each sample's squared error [b]."""


@dataclass(frozen=True)
class Objective:
    """The training objective of a family.

    Attributes:
        alphas, sigmas: the family's schedule, fp32 [1000].
        prediction: ``v`` or ``eps``.
        timesteps, weighting: ``timesteps`` and ``loss_weighting`` of
            :class:`modelscope_i2v.training.config.TrainConfig`.
        noise_offset: weight of the noise that all pixels of a frame's channel share.
        start: for families that take a video, the timestep at which sampling starts.
    """

    alphas: Tensor
    sigmas: Tensor
    prediction: str
    timesteps: Any = "stratified"
    weighting: Any = "none"
    noise_offset: float = 0.0
    start: int | None = None

    @classmethod
    def of(
        cls,
        family: Family,
        *,
        timesteps: Any = "stratified",
        weighting: Any = "none",
        noise_offset: float | None = None,
        strength: float | None = None,
        device: torch.device | str = "cpu",
    ) -> Objective:
        """The family's objective; arguments that are not None replace its settings."""
        schedule = SCHEDULES[family.schedule]()
        reach = family.strength if strength is None else strength
        return cls(
            schedule.alphas.float().to(device),
            schedule.sigmas.float().to(device),
            family.prediction,
            timesteps,
            weighting,
            family.noise_offset if noise_offset is None else noise_offset,
            family.start_timestep(reach) if family.takes_video else None,
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps [count], int64, on the generator's device.

        Stratified: one from each of ``count`` equal parts of the range, in a random order.
        """
        u = torch.rand(count, generator=generator, device=generator.device)
        if self.timesteps != "uniform":
            order = torch.randperm(count, generator=generator, device=generator.device)
            u = (order + u) / count
        if isinstance(self.timesteps, Mapping):
            u = u ** self.timesteps["power"]
        reach = len(self.alphas) if self.start is None else self.start + 1
        return (u * reach).long().clamp(max=reach - 1)

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise [b, 4, f, h, w] with the noise offset, as in sampling."""
        noise = torch.randn(shape, generator=generator, device=generator.device)
        if self.noise_offset:
            shared = torch.randn((*shape[:3], 1, 1), generator=generator, device=generator.device)
            noise = noise + self.noise_offset * shared
        return noise

    def noised(self, clean: Tensor, noise: Tensor, timesteps: Tensor, source: Tensor | None = None) -> Noised:
        """Noised latents with their target.

        With a ``source`` (a degraded clip), the latents before noising are an interpolation: the source at
        :attr:`start`, where sampling begins, linearly down to ``clean`` at half of it, and ``clean`` below.
        At every timestep the target is the prediction whose denoised latents are ``clean``.

        Args:
            clean, noise, source: [b, 4, f, h, w], fp32.
            timesteps: [b].
        """
        shape = (-1, *[1] * (clean.ndim - 1))
        alpha, sigma = self.alphas[timesteps].view(shape), self.sigmas[timesteps].view(shape)
        v, eps = alpha * noise - sigma * clean, noise
        latents = alpha * clean + sigma * noise
        if source is not None:
            share = (2 * timesteps / max(self.start or len(self.alphas) - 1, 1) - 1).clamp(0, 1).view(shape)
            away = share * (source - clean)
            latents = latents + alpha * away
            # From (alpha x_t − clean) / sigma and (x_t − alpha clean) / sigma, without their cancellation.
            v = v + alpha**2 / sigma * away
            eps = eps + alpha / sigma * away
        target = v if self.prediction == "v" else eps
        return Noised(latents, timesteps, target, self.weight(timesteps))

    def weight(self, timesteps: Tensor) -> Tensor:
        """Weight of each sample's squared error [b].

        ``v``: the squared error of v, whatever the network predicts. ``min_snr``: Hang et al.,
        "Efficient Diffusion Training via Min-SNR Weighting Strategy" (arXiv:2303.09556).
        """
        alpha, sigma = self.alphas[timesteps], self.sigmas[timesteps]
        predicts_v = self.prediction == "v"
        if self.weighting == "v":
            return torch.ones_like(alpha) if predicts_v else (1 / alpha**2).clamp(max=HEAVIEST)
        if isinstance(self.weighting, Mapping):
            snr = (alpha / sigma) ** 2
            kept = snr.clamp(max=self.weighting["min_snr"])
            return kept / (snr + 1) if predicts_v else torch.where(snr > 0, kept / snr, torch.ones_like(snr))
        return torch.ones_like(alpha)


def loss(unet: Callable[..., Tensor], noised: Noised, conditions: Mapping[str, Tensor]) -> Tensor:
    """The weighted squared error of each sample [b], fp32.

    Args:
        unet: called as ``unet(latents, timesteps, **conditions)``.
        conditions: each [b, …].
    """
    predicted = unet(noised.latents, noised.timesteps, **conditions)
    return noised.weight * (predicted.float() - noised.target).square().flatten(1).mean(dim=1)
