"""A checkpoint's networks, with its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..checkpoints.directory import ModelDirectory
from ..checkpoints.load import AUTOENCODER_UNUSED, CLIP_UNUSED, load_module
from ..devices import encoder_dtype, out_of_memory_told
from ..encoders.clip import ImageEncoder, TextEncoder
from ..networks.autoencoder import AutoencoderKL
from ..networks.layers import float32_names, layouts
from ..networks.stunet import STUNet
from ..progress import bar


def load_networks(
    model: ModelDirectory,
    device: torch.device,
    dtype: torch.dtype,
    home: torch.device,
    ready: Mapping[str, nn.Module] | None = None,
    progress: bool | None = None,
) -> dict[str, nn.Module | None]:
    """The networks of a checkpoint: ``unet``, ``autoencoder``, ``text_encoder`` and ``image_encoder``.

    Args:
        device: where they will work, which decides the type of CLIP's weights.
        dtype: of the U-Net's and the autoencoder's weights.
        home: where the weights go.
        ready: those that are loaded already, by name; their files stay unread.

    Returns:
        By name; a tower of CLIP that the family does not read is None.

    Raises:
        CheckpointError: for a file that is not what it should be.
        OutOfMemoryError: where a device has no room for them.
    """
    family, ready = model.family, ready or {}
    kinds = {
        "text_encoder": TextEncoder,
        "image_encoder": ImageEncoder,
        "unet": STUNet,
        "autoencoder": AutoencoderKL,
    }
    networks: dict[str, nn.Module | None] = dict.fromkeys(kinds)
    networks |= ready
    towers = {"text_encoder": family.reads_text, "image_encoder": family.reads_image}
    missing = [name for name in kinds if name not in ready and towers.get(name, True)]
    with bar(len(missing), "Loading", progress, "file") as loading, out_of_memory_told():
        for name in missing:
            part = "clip" if name in towers else name
            with torch.device("meta"):
                network = kinds[name](getattr(model, part))
            # On a GPU, group norms of the autoencoder's large frames would copy them for it.
            laid_out = name == "unet" or device.type == "cpu"
            unused = {"clip": CLIP_UNUSED, "autoencoder": AUTOENCODER_UNUSED}.get(part, ())
            networks[name] = load_module(
                network,
                model.read(part),
                dtype=encoder_dtype(device, dtype) if name in towers else dtype,
                device=home,
                keep_float32=float32_names(network),
                ignore=(*unused, *getattr(network, "unused", ())),
                layouts=layouts(network) if laid_out else None,
            )
            loading.update()
    return networks
