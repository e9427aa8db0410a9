"""I2VGen-XL's image as the network sees it: tokens to attend to, and channels with the noisy latents."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..compute import ops
from ..compute.layers import Conv2d, LayerNorm, Linear
from ..compute.views import fold, unfold

CHANNELS = 4
"""Channels of the image's latents, and of those that are concatenated to the noisy ones."""

HEADS, HEAD_DIM = 2, 4
"""Of the temporal encoder."""


def local_tokens(context_dim: int) -> nn.Sequential:
    """A small net from an image's latents [b, 4, h, w] to a grid of tokens [b, context_dim, 8, 8]."""
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
        return self.to_out(ops.attention(q, k, v, "sdpa").transpose(1, 2).flatten(2))


class TemporalEncoder(nn.Module):
    """One transformer layer over the frames of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        attention = nn.Sequential(OrderedDict(norm=LayerNorm(CHANNELS), fn=Attention()))
        wider = nn.Sequential(Linear(CHANNELS, 4 * CHANNELS), nn.GELU())
        net = nn.Sequential(wider, nn.Identity(), Linear(4 * CHANNELS, CHANNELS))
        feed_forward = nn.Sequential(OrderedDict(net=net))
        self.layers = nn.ModuleList([nn.ModuleList([attention, feed_forward])])

    def forward(self, video: Tensor) -> Tensor:
        """video: [b, 4, f, h, w]; returns the same shape."""
        b, _, _, h, w = video.shape
        x = video.permute(0, 3, 4, 2, 1).flatten(0, 2)  # [b·h·w, f, 4]
        for attention, feed_forward in self.layers:
            x = x + attention(x)
            x = x + feed_forward(x)
        return x.unflatten(0, (b, h, w)).permute(0, 4, 3, 1, 2)


def over_time(
    image_latents: Tensor, frames: int, loop: bool = False, offset: int = 0, total: int | None = None
) -> Tensor:
    """An image's latents [b, 4, h, w] as a video [b, 4, f, h, w]: the image, then planes that count.

    Frame i of n, from 0, is i / (n - 1) in every channel, which is all that the weights were ever shown
    after the image. In a loop the planes count how far the image is in either direction.

    Args:
        frames: f.
        offset, total: the f frames are those from ``offset`` on of a video of n = ``total``, in a loop
            round and round; by default they are the whole.
    """
    total = frames if total is None else total
    index = torch.arange(offset, offset + frames, device=image_latents.device, dtype=image_latents.dtype)
    index = (index % total).view(1, 1, -1, 1, 1)
    count = torch.minimum(index, total - index) if loop else index
    return torch.where(index == 0, image_latents.unsqueeze(2), count / max(total - 1, 1))


def concatenated(net: nn.Module, encoder: TemporalEncoder, video: Tensor) -> Tensor:
    """The channels that are concatenated to the noisy latents, of a video of :func:`over_time`, and as large.

    The original adds them twice, and the weights were trained so.
    """
    return 2 * encoder(unfold(net(fold(video)), video.shape[2]))
