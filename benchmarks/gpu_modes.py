"""The memory modes beside each other: what they compute, how long they take and how much memory."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from modelscope_i2v.compute.formats import cast, channels_last
from modelscope_i2v.devices import encoder_dtype
from modelscope_i2v.encoders.clip import ImageEncoder, TextEncoder
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.memory import count as memory_model
from modelscope_i2v.memory.count import MODES, Live, Model
from modelscope_i2v.memory.placement import Placement, send
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.spec.families import Family

STEPS = 2
"""Of the videos that are made; the times of longer ones follow from these."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One video in one mode."""

    mode: str
    frames: np.ndarray
    seconds: float
    """Of a video with the family's own number of steps, reckoned from one step and from all the rest."""
    peak: int
    """Bytes on the device at most, weights included."""
    counted: int
    """What :func:`modelscope_i2v.memory.count.peak` says."""


def random_generator(
    family: Family, model: Model, device: torch.device, dtype: torch.dtype
) -> VideoGenerator:
    """Networks of those sizes on the device, with random weights of about unit gain."""
    with torch.device(device):
        unet, autoencoder = STUNet(model.unet), AutoencoderKL(model.autoencoder)
        text = TextEncoder(model.clip) if model.reads_text else None
        image = ImageEncoder(model.clip) if model.reads_image else None
    torch.manual_seed(0)
    for network in filter(None, (unet, autoencoder, text, image)):
        network.eval().requires_grad_(False)
        for name, parameter in network.named_parameters():
            if parameter.ndim < 2:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1)
            else:
                # Halved outputs keep frames off black and white.
                gain = 0.5 if name.endswith(("decoder.conv_out.weight", "out.2.weight")) else 1.0
                parameter.normal_(0.0, gain * parameter[0].numel() ** -0.5)
    for network in (unet, autoencoder):
        cast(network, dtype)
    channels_last(unet)  # as a checkpoint's is
    for tower in filter(None, (text, image)):
        tower.to(encoder_dtype(device, dtype))
    return VideoGenerator(family, unet, autoencoder, text, image, device=device, dtype=dtype, clip=model.clip)


def in_every_mode(
    family: Family,
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    given: Any,
    options: Mapping[str, Any],
) -> Iterator[Measured]:
    """The same video in each mode, of random weights; on a CPU weights are moved all the same."""
    held = _allocated(device)
    generator = random_generator(family, model, device, dtype)
    every = (generator.unet, generator.autoencoder, generator.text_encoder, generator.image_encoder)
    networks = [network for network in every if network is not None]
    options = {"seed": 1, **options, "num_inference_steps": STEPS, "progress": False}
    for mode in MODES:
        generator.placement = Placement(device, mode, moves=True)
        for network in networks:
            send(network, generator.placement.storage_device)
        # The first call page-locks weights, and the libraries choose their kernels.
        generator([given], **{**options, "num_inference_steps": 1, "output_type": "latent"})
        ends: list[float] = []

        def step_over(*_: Any, ends: list[float] = ends) -> None:
            _wait(device)
            ends.append(time.perf_counter())

        with _peak(device, networks, mode) as peak:
            began = time.perf_counter()
            (frames,) = generator([given], **options, output_type="np", callback=step_over)
            _wait(device)
            seconds = time.perf_counter() - began
        step = ends[1] - ends[0]
        _, checked = generator.resolve(given, options)
        yield Measured(
            mode,
            frames,
            seconds + (family.num_inference_steps - STEPS) * step,
            peak["bytes"] - held,
            memory_model.peak(model, checked, dtype, mode, device.type),
        )


@contextlib.contextmanager
def _peak(device: torch.device, networks: list[nn.Module], mode: str) -> Iterator[dict[str, int]]:
    """Within it the device's memory is watched; after it ``bytes`` tells the most that was taken."""
    found = {"bytes": 0}
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found["bytes"] = torch.cuda.max_memory_allocated(device)
        return
    with Live(*networks) as live:
        yield found
    there = sum(p.nbytes for network in networks for p in network.parameters()) if mode == "resident" else 0
    found["bytes"] = live.peak + there


def _allocated(device: torch.device) -> int:
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
