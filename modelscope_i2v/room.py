"""Room on the device for a generator's video: which mode is taken, and what is said when there is none."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from . import memory_model
from .checkpoints.directory import ModelDirectory
from .devices import free_memory, out_of_memory_told
from .networks.quantization import stored
from .options import Options, resolve
from .placement import Placement, check_mode

if TYPE_CHECKING:
    from .generator import VideoGenerator


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


def making(generator: VideoGenerator, options: Options, frames: int) -> AbstractContextManager[None]:
    """Makes a video of these options, or a part of it, within the memory that there is.

    A mode that ``auto`` found, and that has too little room for this video, gives way to a smaller one.
    Memory that runs out all the same becomes an error that says what would fit.

    Args:
        frames: of this video.
    """
    options = dataclasses.replace(options, num_frames=frames)
    place, device = generator.placement, generator.device
    networks = memory_model.Model(
        generator.unet.config,
        generator.autoencoder.config,
        generator.clip,
        generator.family.reads_text,
        generator.quantization,
    )
    every = (generator.unet, generator.autoencoder, generator.text_encoder, generator.image_encoder)
    parts = [part for part in every if part is not None]
    weights = [tensor for part in parts for tensor in stored(part.parameters())]
    there = sum(tensor.nbytes for tensor in weights if tensor.device.type == device.type)
    if place.adapts:
        place.shrink(memory_model.choose(networks, options, generator.dtype, device, there), parts)

    def advice() -> str:
        free = (free_memory(device) or 0) + there
        return memory_model.advice(networks, options, generator.dtype, place.mode, free, device.type)

    return out_of_memory_told(advice if device.type == "cuda" else None)
