"""Random numbers: the same ones on every device, and the originals' where no seed is given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class NoiseSource:
    """The random numbers of one video.

    With a ``seed`` they come from a CPU generator of its own, so they are the same on every device.
    With a ``generator`` they come from that. With neither they come from PyTorch's global CPU
    generator, as in the originals: ``torch.manual_seed(s)`` before the call fixes the video.
    """

    def __init__(self, seed: int | None = None, generator: torch.Generator | None = None) -> None:
        self.generator = torch.Generator().manual_seed(seed) if seed is not None else generator
        self.device = "cpu" if self.generator is None else self.generator.device

    def state(self) -> Tensor:
        """The state of the generator, for :meth:`restore`."""
        return (self.generator or torch.default_generator).get_state()

    def restore(self, state: Tensor) -> None:
        """Has the generator draw again what it drew after :meth:`state`."""
        (self.generator or torch.default_generator).set_state(state)

    def normal(self, shape: Sequence[int], original_device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers of that shape, fp32, on the CPU.

        ``original_device`` is where the originals draw them: it counts for PyTorch's global
        generators, of which each device has its own.
        """
        device = original_device if self.generator is None else self.device
        return torch.randn(*shape, generator=self.generator, device=device).cpu()

    def normal_by_frames(self, shape: Sequence[int], original_device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers as :meth:`normal`, for [c, f, h, w] stored frame by frame.

        PyTorch draws other numbers for a tensor that is not contiguous, and the original asks for noise
        like latents that it has transposed.
        """
        channels, frames, height, width = shape
        device = original_device if self.generator is None else self.device
        noise = torch.empty(frames, channels, height, width, device=device).transpose(0, 1)
        return noise.normal_(generator=self.generator).cpu()

    def integer(self, low: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Integers from ``low`` up to, not including, ``high``."""
        return torch.randint(low, high, tuple(shape), generator=self.generator, device=self.device)

    @functools.cached_property
    def entropy(self) -> int:
        """The seed of this video's Brownian path, drawn when it is first asked for."""
        return int(self.integer(0, 2**63 - 1))


class SolverNoise:
    """Noise that stochastic solvers draw while they run, for a batch of videos."""

    def __init__(self, sources: Sequence[NoiseSource]) -> None:
        self.sources = sources

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers for latents ``like`` [b, c, f, h, w]."""
        return torch.stack([source.normal(like.shape[1:]) for source in self.sources]).to(like)

    def brownian(self, like: Tensor, low: float, high: float) -> Callable[[Tensor, Tensor], Tensor]:
        """A function (level, next level) → that stretch of a Brownian path, scaled to unit variance.

        The path lives on the CPU between levels ``low`` and ``high``, for latents ``like``.
        """
        import torchsde

        start = torch.zeros(like.shape[1:])
        trees = [torchsde.BrownianTree(low, start, high, entropy=source.entropy) for source in self.sources]

        def stretch(here: Tensor, there: Tensor) -> Tensor:
            # The tree keeps six digits of its ends, and warns of a query that passes them by less.
            low, high = sorted((round(float(here), 6), round(float(there), 6)))
            # Towards lower levels the path is walked backwards.
            sign = -1.0 if here > there else 1.0
            path = torch.stack([tree(low, high) for tree in trees]) * sign
            return (path / (there - here).abs().sqrt()).to(like)

        return stretch
