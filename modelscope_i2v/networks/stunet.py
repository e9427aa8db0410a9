"""The one denoising network of all the tasks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..spec.network import STUNetConfig
from . import local_image
from .blocks import (
    Conditioning,
    Context,
    Downsample,
    InputConv,
    ResBlock,
    SpatialTransformer,
    Stage,
    TemporalTransformer,
    Upsample,
    fold,
    unfold,
)
from .layers import Conv2d, GroupNorm, embedding_mlp, sinusoidal_embedding


class STUNet(nn.Module):
    """Space-time U-Net: spatial blocks like Stable Diffusion 2's, each followed by temporal ones.

    Wang et al., "ModelScope Text-to-Video Technical Report" (arXiv:2308.06571); Zhang et al.,
    "I2VGen-XL" (arXiv:2311.04145). Which member of the family it is, its configuration says; its
    state-dict keys are those of the hub's files.
    """

    def __init__(self, config: STUNetConfig) -> None:
        super().__init__()
        self.config = config
        dim, embedding_dim = config.dim, 4 * config.dim
        widths = [dim * multiple for multiple in config.dim_mult]
        last = len(widths) - 1

        self.time_embed = embedding_mlp(dim, embedding_dim, embedding_dim)
        if config.image_tokens:
            self.context_embedding = embedding_mlp(
                config.image_dim, embedding_dim, config.context_dim * config.image_tokens
            )
        if config.fps_embedding:
            self.fps_embedding = embedding_mlp(dim, embedding_dim, embedding_dim)

        def blocks(channels: int, out_channels: int, level: int) -> list[nn.Module]:
            """A residual block, and transformers on the levels that have them."""
            residual = ResBlock(channels, out_channels, embedding_dim, config.dropout)
            if 0.5**level not in config.attn_scales:
                return [residual]
            return [residual, *transformers(out_channels)]

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
            if level != last:
                self.input_blocks.append(Downsample(width, config.extra_rows))
                skips.append(width)

        self.middle_block = Stage(
            [
                ResBlock(channels, channels, embedding_dim, config.dropout),
                *transformers(channels),
                ResBlock(channels, channels, embedding_dim, config.dropout),
            ]
        )

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for index in range(config.res_blocks + 1):
                stage = Stage(blocks(channels + skips.pop(), width, level))
                if level != 0 and index == config.res_blocks:
                    stage.append(Upsample(width, config.extra_rows))
                self.output_blocks.append(stage)
                channels = width

        self.out = nn.Sequential(GroupNorm(dim), nn.SiLU(), Conv2d(dim, config.out_dim, 3, padding=1))

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor | None = None,
        image: Tensor | None = None,
        fps: Tensor | None = None,
        picture: Tensor | None = None,
        loop: bool = False,
    ) -> Tensor:
        """Predicts noise or velocity, whatever the weights were trained for.

        Args:
            latents: noisy latents [b, in_dim, f, h, w]; h and w must be their own
                :meth:`STUNetConfig.canvas`.
            timesteps: [b], 0 to 999.
            text, image, fps, picture, loop: see :meth:`conditioned`.

        Returns:
            [b, out_dim, f, h, w] in fp32.

        Raises:
            ValueError: for a size that the levels can't halve and double back.
        """
        return self.conditioned(text, image, fps, picture, loop)(latents, timesteps)

    def conditioned(
        self,
        text: Tensor | None = None,
        image: Tensor | None = None,
        fps: Tensor | None = None,
        picture: Tensor | None = None,
        loop: bool = False,
    ) -> Conditioned:
        """The network for one batch of videos, as a function of latents and timesteps.

        What it makes of the conditions is computed once, not once a step.

        Args:
            text: text states [b, tokens, context_dim], for members that read text.
            image: image embeddings [b, 1, image_dim], for members with ``image_tokens``.
            fps: frames per second [b], for members with ``fps_embedding``.
            picture: the picture's scaled latent [b, 4, h, w], for members with ``local_image``.
            loop: the first frame follows the last, for a video that repeats without a jump.

        Raises:
            ValueError: for conditions that the member needs and that are missing.
        """
        rate: Tensor | int = 0
        if self.config.fps_embedding:
            if fps is None:
                raise ValueError("This network was trained with the frame rate as an input: fps is missing.")
            rate = self.fps_embedding(sinusoidal_embedding(fps, self.config.dim))
        return Conditioned(self, Context(self._context(text, image, picture)), rate, picture, loop)

    def denoise(
        self, latents: Tensor, embedding: Tensor, context: Context, loop: bool, beside: Tensor | None = None
    ) -> Tensor:
        """The network itself: ``embedding`` [b, 4·dim], ``beside`` [b, 4, f, h, w] for ``local_image``."""
        f, h, w = latents.shape[2:]
        if self.config.canvas(h, w) != (h, w):
            raise ValueError(
                f"Latents of {h}×{w} don't survive this network's levels; the next size that does is "
                "{}×{}.".format(*self.config.canvas(h, w))
            )
        cond = Conditioning(F.silu(embedding), context, f, loop)
        x = fold(latents if beside is None else torch.cat([latents, beside], dim=1))
        x = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for block in self.input_blocks:
            x = block(x, cond)
            skips.append(x)
        x = self.middle_block(x, cond)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), cond)
        return unfold(self.out(x).float(), f)

    def _context(self, text: Tensor | None, image: Tensor | None, picture: Tensor | None) -> Tensor:
        """The tokens that spatial layers attend to: [b, tokens, context_dim]."""
        tokens = []
        if text is not None:
            tokens.append(text)
        if self.config.local_image:
            tokens.append(self.local_image_embedding(picture).flatten(2).transpose(1, 2))
        if self.config.image_tokens:
            tokens.append(
                self.context_embedding(image).unflatten(-1, (-1, self.config.context_dim)).flatten(1, 2)
            )
        return torch.cat([part.to(tokens[0].dtype) for part in tokens], dim=1)


class Conditioned:
    """A network with the conditions of one batch; see :meth:`STUNet.conditioned`."""

    def __init__(
        self,
        network: STUNet,
        context: Context,
        rate: Tensor | int,
        picture: Tensor | None,
        loop: bool,
    ) -> None:
        self.network, self.context, self.rate, self.picture, self.loop = network, context, rate, picture, loop
        self._beside: Tensor | None = None

    def __call__(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        """As :meth:`STUNet.forward`."""
        network = self.network
        embedding = network.time_embed(sinusoidal_embedding(timesteps, network.config.dim)) + self.rate
        return network.denoise(
            latents, embedding, self.context, self.loop, self._concatenated(latents.shape[2])
        )

    def _concatenated(self, frames: int) -> Tensor | None:
        """The channels beside the latents of so many frames, of members with ``local_image``."""
        network = self.network
        if not network.config.local_image:
            return None
        if self._beside is None or self._beside.shape[2] != frames:
            self._beside = local_image.concatenated(
                network.local_image_concat, network.local_temporal_encoder, self.picture, frames, self.loop
            )
        return self._beside
