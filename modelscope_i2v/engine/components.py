"""The networks of a checkpoint, loaded and set up as the runtime table says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..checkpoints.directory import ModelDirectory
from ..checkpoints.load import AUTOENCODER_UNUSED, CLIP_UNUSED, load_module
from ..compute import compilation, quantization
from ..compute.attention import use_kernel
from ..compute.formats import float32_names, memory_formats
from ..devices import encoder_dtype, out_of_memory_advice
from ..encoders.clip import ImageEncoder, TextEncoder
from ..networks.autoencoder import AutoencoderKL
from ..networks.stunet import STUNet
from ..progress import bar
from ..spec.runtime import Runtime


def check(runtime: Runtime, device: torch.device) -> None:
    """Raises InputError for settings that the machine or the installation cannot follow."""
    quantization.check(runtime.quantization)
    if runtime.compile:
        compilation.check(device, runtime.attention, runtime.memory)


def load(
    model: ModelDirectory,
    runtime: Runtime,
    device: torch.device,
    dtype: torch.dtype,
    storage: torch.device,
    preloaded: Mapping[str, nn.Module] | None = None,
) -> dict[str, nn.Module | None]:
    """The networks of a checkpoint: ``unet``, ``autoencoder``, ``text_encoder`` and ``image_encoder``.

    Args:
        device: where they will compute, which decides the number type of CLIP's weights.
        dtype: number type of the U-Net's and the autoencoder's weights.
        storage: the device that holds the weights.
        preloaded: networks that are loaded already, by name; their files are not read.

    Returns:
        By name; a tower of CLIP that the family does not read is None.

    Raises:
        CheckpointError: for a file that is not what it should be.
        InputError: as :func:`check`.
        OutOfMemoryError: where a device has too little memory for them.
    """
    check(runtime, device)
    networks = _read(model, runtime, device, dtype, storage, preloaded or {})
    unet = networks["unet"]
    use_kernel(quantization.quantize(unet, runtime.quantization), runtime.attention)
    if runtime.compile:
        compilation.compile_blocks(unet)
    return networks


def _read(
    model: ModelDirectory,
    runtime: Runtime,
    device: torch.device,
    dtype: torch.dtype,
    storage: torch.device,
    preloaded: Mapping[str, nn.Module],
) -> dict[str, nn.Module | None]:
    family = model.family
    kinds = {
        "text_encoder": TextEncoder,
        "image_encoder": ImageEncoder,
        "unet": STUNet,
        "autoencoder": AutoencoderKL,
    }
    networks: dict[str, nn.Module | None] = dict.fromkeys(kinds)
    networks |= preloaded
    towers = {"text_encoder": family.reads_text, "image_encoder": family.reads_image}
    missing = [name for name in kinds if name not in preloaded and towers.get(name, True)]
    with bar(len(missing), "Loading", runtime.progress, "file") as loading, out_of_memory_advice():
        for name in missing:
            part = "clip" if name in towers else name
            with torch.device("meta"):
                network = kinds[name](getattr(model, part))
            # On a GPU, group norms of the autoencoder's large frames would copy them for this memory format.
            laid_out = name == "unet" or device.type == "cpu"
            unused = {"clip": CLIP_UNUSED, "autoencoder": AUTOENCODER_UNUSED}.get(part, ())
            networks[name] = load_module(
                network,
                model.read(part, mmap=runtime.mmap),
                dtype=encoder_dtype(device, dtype) if name in towers else dtype,
                device=storage,
                keep_float32=float32_names(network),
                ignore=(*unused, *getattr(network, "unused", ())),
                layouts=memory_formats(network) if laid_out else None,
            )
            loading.update()
    return networks
