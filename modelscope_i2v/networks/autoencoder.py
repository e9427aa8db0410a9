"""The KL autoencoder between pictures and latents, frame by frame."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute import ops
from ..compute.layers import Conv2d, GroupNorm
from ..spec.network import AutoencoderConfig


class Posterior(NamedTuple):
    """A diagonal Gaussian over latents; both tensors are [n, z, h, w] in fp32."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The latents that standard normal ``noise`` [n, z, h, w] picks."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


class ResnetBlock(nn.Module):
    """Two normalised convolutions and a skip."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels, eps=1e-6, silu=True)
        self.conv1 = Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, eps=1e-6, silu=True)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head attention over the pixels of the smallest level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.q = Conv2d(channels, channels, 1)
        self.k = Conv2d(channels, channels, 1)
        self.v = Conv2d(channels, channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # A GPU's fused kernels take no other order of memory, and the plain one makes all scores.
        q, k, v = (conv(h).flatten(2).transpose(1, 2).contiguous() for conv in (self.q, self.k, self.v))
        h = ops.attention(*(part.unsqueeze(1) for part in (q, k, v)), "sdpa").squeeze(1)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[-2:]))


class Downsample(nn.Module):
    """Halves height and width; the padding is on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width (nearest), then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, and the way to the next."""

    def __init__(self, channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(channels if index == 0 else out_channels, out_channels) for index in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        if hasattr(self, "upsample"):
            x = self.upsample(x)
        return x


class Middle(nn.Module):
    """What encoder and decoder do at the smallest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pictures [n, 3, H, W] → moments [n, 2z, H/factor, W/factor]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in config.ch_mult]
        self.conv_in = Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.ch
        for width in widths:
            self.down.append(Level(channels, width, config.num_res_blocks))
            channels = width
        for level in self.down[:-1]:
            level.downsample = Downsample(level.block[-1].conv2.out_channels)
        self.mid = Middle(channels)
        self.norm_out = GroupNorm(channels, eps=1e-6, silu=True)
        self.conv_out = Conv2d(channels, 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nn.Module):
    """Latents [n, z, h, w] → pictures [n, 3, h·factor, w·factor]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.ch * multiple for multiple in config.ch_mult]
        channels = widths[-1]
        self.conv_in = Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels)
        levels = []
        for width in reversed(widths):
            levels.append(Level(channels, width, config.num_res_blocks + 1))
            channels = width
        for level in levels[:-1]:
            level.upsample = Upsample(level.block[-1].conv2.out_channels)
        self.up = nn.ModuleList(reversed(levels))  # the files count from the largest resolution
        self.norm_out = GroupNorm(channels, eps=1e-6, silu=True)
        self.conv_out = Conv2d(channels, config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))


class AutoencoderKL(nn.Module):
    """The autoencoder of Stable Diffusion: Rombach et al., "High-Resolution Image Synthesis with
    Latent Diffusion Models" (arXiv:2112.10752). Latents here are unscaled; see
    :data:`modelscope_i2v.spec.families.LATENT_SCALE`.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv2d(2 * config.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = Conv2d(config.embed_dim, config.z_channels, 1)

    def encode(self, pixels: Tensor) -> Posterior:
        """pixels: [n, 3, H, W] in -1..1, H and W multiples of ``config.factor``."""
        mean, logvar = self.quant_conv(self.encoder(pixels)).float().chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """latents: [n, embed_dim, h, w]. Returns fp32 [n, 3, h·factor, w·factor], about -1..1."""
        return self.decoder(self.post_quant_conv(latents)).float()
