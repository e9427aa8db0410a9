"""Room on the device for a generator's video: which mode is taken, and what is said when there is none."""

from __future__ import annotations

import dataclasses
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from ..checkpoints.directory import ModelDirectory
from ..compute.quantization import stored
from ..devices import free_memory, out_of_memory_told
from ..spec.options import Options, resolve
from . import count as memory_model
from .placement import Placement, check_mode

if TYPE_CHECKING:
    from ..engine.generator import VideoGenerator


def placement(
    memory: str,
    model: ModelDirectory,
    device: torch.device,
    dtype: torch.dtype,
    quantization: str | None = None,
) -> Placement:
    """What ``memory`` means for a checkpoint on a device; ``auto`` asks what its default video takes.

    Raises InputError for an unknown mode.
    """
    if check_mode(memory) != "auto":
        return Placement(device, memory)
    networks = memory_model.Model(
        model.unet, model.autoencoder, model.clip, model.family.reads_text, quantization
    )
    options = resolve(model.family, {}, model.defaults)
    return Placement(device, memory_model.choose(networks, options, dtype, device), adapts=True)


class making(out_of_memory_told):
    """Makes videos of these options, or a part of them, within the memory that there is.

    A mode that ``auto`` found, and that has too little room for them, gives way to a smaller one meanwhile.
    Memory that runs out all the same becomes an error that says what would fit.

    Args:
        frames: of each video.
        videos: how many are made at once.
    """

    def __init__(self, generator: VideoGenerator, options: Options, frames: int, videos: int = 1) -> None:
        self.options = dataclasses.replace(options, num_frames=frames, batch_size=videos)
        self.place, self.device, self.dtype = generator.placement, generator.device, generator.dtype
        self.model = memory_model.Model(
            generator.unet.config,
            generator.autoencoder.config,
            generator.clip,
            generator.family.reads_text,
            generator.quantization,
        )
        every = (generator.unet, generator.autoencoder, generator.text_encoder, generator.image_encoder)
        self.networks = [network for network in every if network is not None]
        super().__init__(self._advice if self.device.type == "cuda" else None)

    def __enter__(self) -> None:
        mode = self.place.mode
        if self.place.adapts:
            there = self._there()
            mode = memory_model.choose(self.model, self.options, self.dtype, self.device, there)
        self.place.begin(mode, self.networks)

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        del trace  # it leads to the frames of the call, which the base lets go
        try:
            super().__exit__(kind, error, None)
        finally:
            self.place.end()

    def _there(self) -> int:
        """Bytes of weights on the device."""
        weights = [tensor for network in self.networks for tensor in stored(network.parameters())]
        return sum(tensor.nbytes for tensor in weights if tensor.device.type == self.device.type)

    def _advice(self) -> str:
        free = (free_memory(self.device) or 0) + self._there()
        place = self.place.mode, free, self.device.type
        return memory_model.advice(self.model, self.options, self.dtype, *place)
