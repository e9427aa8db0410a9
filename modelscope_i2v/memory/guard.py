"""Memory guard: which memory mode a video gets, and out-of-memory advice where none suffices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from types import TracebackType

import torch
from torch import nn

from ..devices import free_memory, out_of_memory_advice
from ..spec.options import Options
from . import count
from .placement import Placement, send


def place(
    memory: str, model: count.Model, default: Options, dtype: torch.dtype, device: torch.device
) -> Placement:
    """The placement for the setting ``memory``; ``auto``: the fastest mode that fits the default video."""
    if memory != "auto":
        return Placement(device, memory)
    return Placement(device, count.choose(model, default, dtype, device), adapts=True)


class MemoryGuard(out_of_memory_advice):
    """Context of a call that makes videos, or a part of them, in the memory there is.

    Where the placement may adapt and its mode has too little memory for these options, the call gets a
    smaller mode. Memory that runs out all the same becomes an error that says what would fit.

    Args:
        model: sizes of the networks.
        dtype: the U-Net's number type during the call.
        frames: of each video.
        videos: how many are made at once.
        adapt: take a smaller mode where memory requires it, also in a placement whose mode is fixed.

    Raises:
        OutOfMemoryError: on leaving it, for an out-of-memory error within.
    """

    def __init__(
        self,
        placement: Placement,
        model: count.Model,
        options: Options,
        dtype: torch.dtype,
        frames: int,
        videos: int = 1,
        *,
        adapt: bool = False,
    ) -> None:
        self.adapt = adapt or placement.adapts
        self.placement, self.model, self.dtype = placement, model, dtype
        self.options = dataclasses.replace(options, num_frames=frames, batch_size=videos)
        super().__init__(self._advice if placement.device.type == "cuda" else None)

    def __enter__(self) -> None:
        placement = self.placement
        mode = placement.mode
        if self.adapt:
            there = placement.bytes_on_device()
            mode = count.choose(self.model, self.options, self.dtype, placement.device, there)
        placement.begin(mode)

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        del trace  # it leads to the frames of the call, which the base lets go
        try:
            super().__exit__(kind, error, None)
        finally:
            self.placement.end()

    def _advice(self) -> str:
        device = self.placement.device
        free = (free_memory(device) or 0) + self.placement.bytes_on_device()
        return count.advice(self.model, self.options, self.dtype, self.placement.mode, free, device.type)


def make_space(network: nn.Module, needed: int, free: int | None) -> None:
    """Sends a network to the host's memory where a device has fewer than ``needed`` bytes left."""
    if free is not None and free < needed:
        send(network, "cpu")


def bring(
    network: nn.Module,
    placement: Placement,
    needed: Iterable[int],
    displaced: nn.Module | None = None,
    free: int | None = None,
) -> None:
    """Puts a resident network on its device before a run, in place of another one if memory requires it.

    In modes other than ``resident`` a network comes to the device by itself when it computes.

    Args:
        needed: bytes in addition to its weights, of each video.
        displaced: goes to the host's memory where both do not fit.
        free: bytes that the device has left; None where that does not matter.
    """
    if placement.mode != "resident":
        return
    with out_of_memory_advice():
        if displaced is not None and free is not None:
            missing = sum(p.nbytes for p in network.parameters() if p.device.type != placement.device.type)
            make_space(displaced, missing + max(needed), free)
        send(network, placement.device)
