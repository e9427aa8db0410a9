"""A U-Net of a few thousand weights, for tests of how it runs rather than of what it computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.spec.network import STUNetConfig

SMALL = STUNetConfig(
    dim=32, dim_mult=(1, 2), res_blocks=1, head_dim=16, num_heads=2, context_dim=24, attn_scales=(1.0,)
)


def small_unet(**settings: Any) -> STUNet:
    """Like :data:`SMALL` but for ``settings``, with random weights that are the same every time."""
    torch.manual_seed(0)
    unet = STUNet(replace(SMALL, **settings)).eval().requires_grad_(False)
    for parameter in unet.parameters():  # the last layers of blocks are zero at first in some networks
        parameter.data += 0.02 * torch.randn_like(parameter)
    return unet


def predicted(unet: STUNet, latents: Tensor, timesteps: Tensor, **conditions: Any) -> Tensor:
    """The network's output for conditions that are prepared for this call alone."""
    return unet(latents, timesteps, unet.prepare(**{"frames": latents.shape[2], **conditions}))
