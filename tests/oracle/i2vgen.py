"""diffusers' I2VGen-XL U-Net at any size, on our weights."""

from __future__ import annotations

from collections.abc import Mapping

from diffusers import I2VGenXLUNet
from torch import Tensor

from modelscope_i2v.checkpoints.key_maps import Layout, unet_names
from modelscope_i2v.spec.network import STUNetConfig


def in_diffusers(
    config: STUNetConfig, state: Mapping[str, Tensor], doubled: bool = True
) -> dict[str, Tensor]:
    """A state dict by diffusers' names; ``doubled``: what sees the picture as strong as in the original."""
    shapes = {key: tensor.shape for key, tensor in state.items()}
    layout = Layout("unet", unet_names(config), shapes, doubled=doubled)
    return {name: part for key in state for name, part in layout.to_theirs(key, state[key]).items()}


def build(config: STUNetConfig) -> I2VGenXLUNet:
    """diffusers' network of that size. Its first transformer has eight heads whatever the sizes."""
    attends = [0.5**level in config.attn_scales for level in range(len(config.dim_mult))]
    return I2VGenXLUNet(
        block_out_channels=tuple(config.dim * multiple for multiple in config.dim_mult),
        down_block_types=tuple("CrossAttnDownBlock3D" if a else "DownBlock3D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock3D" if a else "UpBlock3D" for a in reversed(attends)),
        layers_per_block=config.res_blocks,
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.head_dim,
    ).eval()


def planes(picture: Tensor, frames: int) -> Tensor:
    """The picture's latent [b, 4, h, w] as diffusers takes it: frame 1, then planes that count up to 1."""
    video = picture.unsqueeze(2).repeat(1, 1, frames, 1, 1)
    for index in range(1, frames):
        video[:, :, index] = index / (frames - 1)
    return video


def run(network: I2VGenXLUNet, given: Mapping[str, Tensor]) -> Tensor:
    """Its output for the arguments of ours."""
    return network(
        given["latents"],
        given["timesteps"],
        fps=given["fps"],
        image_latents=planes(given["image_latents"], given["latents"].shape[2]),
        image_embeddings=given["image_embeds"],
        encoder_hidden_states=given["text"],
    ).sample
