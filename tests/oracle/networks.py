"""Stock networks at any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
from open_clip import factory
from torch import Tensor, nn

from modelscope_i2v.spec.network import AutoencoderConfig, CLIPConfig, STUNetConfig

from . import stock

UNETS = {
    "image-to-video": "Img2VidSDUNet",
    "video-to-video": "Vid2VidSDUNet",
    "text-to-video-synthesis": "UNetSD",
}
CLIP_ARCHITECTURE = "ViT-H-14"
"""The one that stock names."""


def build_unet(task: str, config: STUNetConfig) -> nn.Module:
    """A task's stock U-Net of that size, with its own initial weights, in evaluation mode."""
    module = stock.load()[stock.UNET_MODULES[task]]
    sizes = asdict(config)
    names = ("in_dim", "dim", "context_dim", "out_dim", "num_heads", "head_dim", "dropout")
    settings: dict[str, Any] = {name: sizes[name] for name in names}
    settings |= {"y_dim": config.image_dim, "num_res_blocks": config.res_blocks}
    settings |= {"dim_mult": list(config.dim_mult), "attn_scales": list(config.attn_scales)}
    if config.image_tokens:
        settings["num_tokens"] = config.image_tokens
    # The decoders name a context of 1024 channels as a number.
    spatial = module.SpatialTransformer

    def of_that_context(*args: Any, **kwargs: Any) -> nn.Module:
        return spatial(*args, **{**kwargs, "context_dim": config.context_dim})

    with mock.patch.object(module, "SpatialTransformer", of_that_context):
        return getattr(module, UNETS[task])(**settings).eval()


def stock_unet(task: str, config: STUNetConfig, state: Mapping[str, Tensor]) -> nn.Module:
    """A task's stock U-Net with the weights ``state``; called as ``unet(x, t, y=…, fps=…)``."""
    unet = build_unet(task, config)
    unet.load_state_dict(state, strict=True)
    return unet.requires_grad_(False)


def ddconfig(config: AutoencoderConfig) -> dict[str, Any]:
    """The sizes as stock's autoencoder takes them."""
    sizes = {**asdict(config), "ch_mult": list(config.ch_mult)}
    del sizes["embed_dim"]
    return {"double_z": True, "resolution": 256, "attn_resolutions": [], "dropout": 0.0, **sizes}


def stock_autoencoder(
    config: AutoencoderConfig, state: Mapping[str, Tensor], task: str = "image-to-video"
) -> nn.Module:
    """A task's stock autoencoder with the weights ``state``."""
    autoencoder = stock.model_module(task).AutoencoderKL(ddconfig(config), config.embed_dim)
    autoencoder.load_state_dict(state, strict=True)
    return autoencoder.eval().requires_grad_(False)


def clip_architecture(config: CLIPConfig) -> Any:
    """A context in which the architecture that stock names is the one of ``config``."""
    settings = config.custom or open_clip.get_model_config(config.architecture)
    return mock.patch.dict(factory._MODEL_CONFIGS, {CLIP_ARCHITECTURE: settings})


def stock_text_encoder(task: str, config: CLIPConfig, path: Path) -> nn.Module:
    """A task's stock text encoder; called with a text, it returns [1, 77, width]."""
    cls = stock.model_module(task).FrozenOpenCLIPEmbedder
    weights = {"version": str(path)} if task == "text-to-video-synthesis" else {"pretrained": str(path)}
    with stock.shims(), clip_architecture(config):
        return cls(**weights, device="cpu", layer="penultimate")


def stock_image_encoder(config: CLIPConfig, path: Path) -> nn.Module:
    """Stock's image encoder; called with [b, 3, 224, 224], it returns [b, embed_dim]."""
    cls = stock.model_module("image-to-video").FrozenOpenCLIPVisualEmbedder
    with stock.shims(), clip_architecture(config):
        return cls(pretrained=str(path), device="cpu", layer="penultimate")
