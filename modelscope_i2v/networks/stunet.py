"""The one denoising network of all the tasks."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.layers import Conv2d, Linear
from ..compute.views import fold, unfold
from ..spec.network import STUNetConfig
from . import local_image
from .blocks import (
    BlockInputs,
    Context,
    Downsample,
    InputConv,
    ResBlock,
    SpatialTransformer,
    Stage,
    TemporalTransformer,
    Upsample,
    norm_silu,
)


class Prepared(NamedTuple):
    """The conditions of one batch of videos, or of a window of their frames, as every step takes them.

    Made by :meth:`STUNet.prepare`, once.
    """

    context: Context
    """The tokens that the spatial layers attend to."""
    fps_embedding: Tensor | None
    """[b, 4·dim], of members with ``fps_embedding``."""
    concatenated: Tensor | None
    """The channels that are concatenated to the noisy latents [b, 4, f, h, w], with ``local_image``."""
    loop: bool
    """The first frame follows the last."""


class STUNet(nn.Module):
    """Space-time U-Net: spatial blocks like Stable Diffusion 2's, each followed by temporal ones.

    Wang et al., "ModelScope Text-to-Video Technical Report" (arXiv:2308.06571); Zhang et al.,
    "I2VGen-XL" (arXiv:2311.04145). Which member of the family it is, its configuration says; its
    state-dict keys are those of the hub's files.

    ``prepared = unet.prepare(text=…)`` once a video, then ``unet(latents, timesteps, prepared)`` once a step.
    """

    def __init__(self, config: STUNetConfig) -> None:
        super().__init__()
        self.config = config
        dim, embedding_dim = config.dim, 4 * config.dim
        widths = [dim * multiple for multiple in config.dim_mult]

        self.time_embed = embedding_mlp(dim, embedding_dim, embedding_dim)
        if config.image_tokens:
            self.context_embedding = embedding_mlp(
                config.image_dim, embedding_dim, config.context_dim * config.image_tokens
            )
        if config.fps_embedding:
            self.fps_embedding = embedding_mlp(dim, embedding_dim, embedding_dim)

        residual = functools.partial(ResBlock, embedding_dim=embedding_dim, dropout=config.dropout)

        def blocks(channels: int, out_channels: int, level: int) -> list[nn.Module]:
            """A residual block, and transformers on the levels that have them."""
            attends = 0.5**level in config.attn_scales
            return [residual(channels, out_channels), *(transformers(out_channels) if attends else [])]

        def transformers(channels: int) -> list[nn.Module]:
            return [
                SpatialTransformer(channels, config.head_dim, config.context_dim),
                TemporalTransformer(channels, channels // config.head_dim, config.head_dim),
            ]

        in_dim = config.in_dim
        if config.local_image:
            in_dim += local_image.CHANNELS
            self.local_image_concat = local_image.local_channels()
            self.local_temporal_encoder = local_image.TemporalEncoder()
            self.local_image_embedding = local_image.local_tokens(config.context_dim)

        first = TemporalTransformer(dim, config.num_heads, config.head_dim)
        self.input_blocks = nn.ModuleList([Stage([InputConv(in_dim, dim, 3, padding=1), first])])
        skips, channels = [dim], dim
        for level, width in enumerate(widths):
            for _ in range(config.res_blocks):
                self.input_blocks.append(Stage(blocks(channels, width, level)))
                skips.append(width)
                channels = width
            if level != len(widths) - 1:
                self.input_blocks.append(Downsample(width, config.extra_rows))
                skips.append(width)

        self.middle_block = Stage(
            [residual(channels, channels), *transformers(channels), residual(channels, channels)]
        )

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for index in range(config.res_blocks + 1):
                stage = Stage(blocks(channels + skips.pop(), width, level))
                if level != 0 and index == config.res_blocks:
                    stage.append(Upsample(width, config.extra_rows))
                self.output_blocks.append(stage)
                channels = width

        self.out = nn.Sequential(*norm_silu(dim), Conv2d(dim, config.out_dim, 3, padding=1))

    def prepare(
        self,
        *,
        text: Tensor | None = None,
        image_embeds: Tensor | None = None,
        fps: Tensor | None = None,
        image_latents: Tensor | None = None,
        frames: int | None = None,
        loop: bool = False,
        offset: int = 0,
        total: int | None = None,
    ) -> Prepared:
        """Computes what stays the same from step to step.

        Args:
            text: text states [b, tokens, context_dim], for members that read text.
            image_embeds: image embeddings [b, 1, image_dim], for members with ``image_tokens``.
            fps: frames per second [b], for members with ``fps_embedding``.
            image_latents: the scaled latents of the first frame's image [b, 4, h, w], for members with
                ``local_image``.
            frames: f, for members with ``local_image``.
            loop: the first frame follows the last, for a video that repeats without a jump.
            offset, total: the f frames are those from ``offset`` on of a video of ``total``; by default they
                are the whole.

        Raises:
            ValueError: for conditions that the member needs and that are missing.
        """
        config = self.config
        needs = {
            "text": (text, not config.image_tokens),
            "image_embeds": (image_embeds, config.image_tokens),
            "fps": (fps, config.fps_embedding),
            "image_latents": (image_latents, config.local_image),
            "frames": (frames, config.local_image),
        }
        if missing := [name for name, (value, needed) in needs.items() if needed and value is None]:
            raise ValueError(f"This network was trained with {', '.join(missing)}, which prepare() needs.")
        tokens = [] if text is None else [text]
        rate = concatenated = None
        if config.fps_embedding:
            rate = self.fps_embedding(sinusoidal_embedding(fps, config.dim))
        if config.local_image:
            tokens.append(self.local_image_embedding(image_latents).flatten(2).transpose(1, 2))
            video = local_image.over_time(image_latents, frames, loop, offset, total)
            concatenated = local_image.concatenated(
                self.local_image_concat, self.local_temporal_encoder, video
            )
        if config.image_tokens:
            embedded = self.context_embedding(image_embeds)
            tokens.append(embedded.unflatten(-1, (-1, config.context_dim)).flatten(1, 2))
        context = Context(torch.cat([part.to(tokens[0].dtype) for part in tokens], dim=1))
        return Prepared(context, rate, concatenated, loop and total in (None, frames))

    def forward(self, latents: Tensor, timesteps: Tensor, prepared: Prepared) -> Tensor:
        """Predicts noise or velocity, whatever the weights were trained for.

        Args:
            latents: noisy latents [b, in_dim, f, h, w]; h and w must be their own
                :meth:`STUNetConfig.canvas`.
            timesteps: [b], 0 to 999.
            prepared: see :meth:`prepare`.

        Returns:
            [b, out_dim, f, h, w] in fp32.

        Raises:
            ValueError: for a size that the levels can't halve and double back.
        """
        frames, height, width = latents.shape[2:]
        if self.config.canvas(height, width) != (height, width):
            raise ValueError(
                f"Latents of {height}×{width} don't survive this network's levels; "
                "the next size that does is {}×{}.".format(*self.config.canvas(height, width))
            )
        embedding = self.time_embed(sinusoidal_embedding(timesteps, self.config.dim))
        if prepared.fps_embedding is not None:
            embedding = embedding + prepared.fps_embedding
        inputs = BlockInputs(F.silu(embedding), prepared.context, frames, prepared.loop)
        if prepared.concatenated is not None:
            latents = torch.cat([latents, prepared.concatenated], dim=1)
        x = fold(latents).contiguous(memory_format=torch.channels_last)
        skips = []
        for block in self.input_blocks:
            x = block(x, inputs)
            skips.append(x)
        x = self.middle_block(x, inputs)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), inputs)
        return unfold(self.out(x).float(), frames)


def sinusoidal_embedding(positions: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of ``positions`` [b] at ``dim`` // 2 frequencies from 1 to 1/10000: [b, dim].

    "Attention Is All You Need" (arXiv:1706.03762), section 3.5, in the order of the originals.
    """
    half = dim // 2
    exponents = -torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angles = torch.outer(positions.float(), torch.pow(10000, exponents))
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


def embedding_mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """The two-layer perceptron that all of the family's embeddings share."""
    return nn.Sequential(Linear(in_dim, hidden_dim), nn.SiLU(), Linear(hidden_dim, out_dim))
