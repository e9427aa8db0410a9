"""What I2VGen-XL makes of its picture's latent: tokens to attend to, and channels beside the noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..compute.attention import in_launches, sdpa
from .blocks import fold, unfold
from .layers import Conv2d, LayerNorm, Linear

CHANNELS = 4
"""Channels of the picture's latent, and of what is concatenated to the noisy latents."""

HEADS, HEAD_DIM = 2, 4
"""Of the temporal encoder."""


def local_tokens(context_dim: int) -> nn.Sequential:
    """A small net from a picture's latent [b, 4, h, w] to a grid of tokens [b, context_dim, 8, 8]."""
    return nn.Sequential(
        Conv2d(CHANNELS, 32, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d((32, 32)),
        Conv2d(32, 64, 3, stride=2, padding=1),
        nn.SiLU(),
        Conv2d(64, context_dim, 3, stride=2, padding=1),
    )


def local_channels() -> nn.Sequential:
    """A small net over each frame of the local image [n, 4, h, w]."""
    return nn.Sequential(
        Conv2d(CHANNELS, 16, 3, padding=1),
        nn.SiLU(),
        Conv2d(16, 16, 3, padding=1),
        nn.SiLU(),
        Conv2d(16, CHANNELS, 3, padding=1),
    )


class Attention(nn.Module):
    """Self-attention with one projection for queries, keys and values, as the files have it."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = Linear(CHANNELS, 3 * HEADS * HEAD_DIM, bias=False)
        self.to_out = nn.Sequential(Linear(HEADS * HEAD_DIM, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, f, 4]; returns the same shape."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        return self.to_out(in_launches(sdpa, q, k, v).transpose(1, 2).flatten(2))


class PreNorm(nn.Module):
    """A layer norm in front of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = LayerNorm(CHANNELS)
        self.fn = Attention()

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class FeedForward(nn.Module):
    """To four times the width and back."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(Linear(CHANNELS, 4 * CHANNELS), nn.GELU())
        self.net = nn.Sequential(first, nn.Identity(), Linear(4 * CHANNELS, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TemporalEncoder(nn.Module):
    """One transformer layer over the frames of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleList([PreNorm(), FeedForward()])])

    def forward(self, video: Tensor) -> Tensor:
        """video: [b, 4, f, h, w]; returns the same shape."""
        b, _, _, h, w = video.shape
        x = video.permute(0, 3, 4, 2, 1).flatten(0, 2)  # [b·h·w, f, 4]
        for attention, feed_forward in self.layers:
            x = x + attention(x)
            x = x + feed_forward(x)
        return x.unflatten(0, (b, h, w)).permute(0, 4, 3, 1, 2)


def over_time(picture: Tensor, frames: int, loop: bool = False) -> Tensor:
    """A picture's latent [b, 4, h, w] as a video [b, 4, f, h, w]: the picture, then planes that count.

    Behind the picture, frame i of f is (i - 1) / (f - 1) in every channel, which is all that the
    weights were ever shown there. In a loop they count how far the picture is in either direction.
    """
    if frames == 1:
        return picture.unsqueeze(2)
    count = torch.arange(1, frames, device=picture.device, dtype=picture.dtype)
    if loop:
        count = torch.minimum(count, frames - count)
    count = count / (frames - 1)
    planes = count.view(1, 1, -1, 1, 1).expand(*picture.shape[:2], -1, *picture.shape[2:])
    return torch.cat([picture.unsqueeze(2), planes], dim=2)


def concatenated(
    net: nn.Module, encoder: TemporalEncoder, picture: Tensor, frames: int, loop: bool = False
) -> Tensor:
    """The channels beside the noisy latents [b, 4, f, h, w].

    The original adds them twice, and the weights were trained so.
    """
    video = over_time(picture, frames, loop)
    return 2 * encoder(unfold(net(fold(video)), frames))
