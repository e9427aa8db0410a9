"""The building blocks of the ST-UNet. All share one call: ``block(x, cond)``.

``x`` is a video whose frames are folded into the batch, [b·f, c, h, w], channels-last in memory. So the
tokens of a frame and, for temporal layers, the frames of each pixel (:func:`along_time`) are views of it,
not copies. Attribute names are the ones in the checkpoint files.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.attention import Attention
from .layers import Conv2d, FrameConv, GroupNorm, LayerNorm, Linear, Pointwise


class Context:
    """What the spatial layers attend to, [b, tokens, context_dim].

    Without gradients each layer's keys and values of it are computed once, and kept as long as this object.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self._kept: dict[Attention, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def keys_values(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """Of the tokens, as that layer projects them."""
        if torch.is_grad_enabled():
            return attention.keys_values(self.tokens)
        if attention not in self._kept:
            self._kept[attention] = attention.keys_values(self.tokens)
        return self._kept[attention]


class Conditioning(NamedTuple):
    """What every block is told beside its input; once a sample, not once a frame."""

    embedding: Tensor
    """Time (and fps) embedding [b, embedding_dim], after the activation that all blocks begin with."""
    context: Context
    frames: int
    """f, the number of frames of each sample."""
    loop: bool = False
    """The first frame follows the last."""


def unfold(x: Tensor, frames: int) -> Tensor:
    """[b·f, c, h, w] → [b, c, f, h, w]."""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


def fold(x: Tensor) -> Tensor:
    """[b, c, f, h, w] → [b·f, c, h, w]."""
    return x.transpose(1, 2).flatten(0, 1)


def along_time(x: Tensor, frames: int) -> Tensor:
    """[b·f, c, h, w] → [b, c, f, h·w]; both channels-last in memory, so that none is copied."""
    return unfold(x.flatten(2), frames)


def by_frames(x: Tensor, height: int, width: int) -> Tensor:
    """The way back: [b, c, f, h·w] → [b·f, c, h, w]."""
    return fold(x).unflatten(2, (height, width))


class Stage(nn.ModuleList):
    """Blocks, one after the other."""

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        for block in self:
            x = block(x, cond)
        return x


class InputConv(Conv2d):
    """The first convolution: latents → features."""

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return super().forward(x)


class Downsample(nn.Module):
    """Halves height and width by a strided convolution; ``extra_rows`` pads two rows on each side."""

    def __init__(self, channels: int, extra_rows: bool) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=(2, 1) if extra_rows else 1)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles height and width (nearest), then convolves; ``extra_rows`` drops first and last row."""

    def __init__(self, channels: int, extra_rows: bool) -> None:
        super().__init__()
        self.extra_rows = extra_rows
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x[..., 1:-1, :] if self.extra_rows else x)


class TemporalConv(nn.Module):
    """Four convolutions over time with a residual; their norms see all frames."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()

        def conv(*before: nn.Module) -> nn.Sequential:
            kernel = FrameConv(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            return nn.Sequential(GroupNorm(channels), nn.SiLU(), *before, kernel)

        self.conv1 = conv()
        self.conv2 = conv(nn.Dropout(dropout))
        self.conv3 = conv(nn.Dropout(dropout))
        self.conv4 = conv(nn.Dropout(dropout))

    def forward(self, x: Tensor, loop: bool = False) -> Tensor:
        """x: [b, c, f, n]; returns the same shape. ``loop``: the first frame follows the last."""
        h = x
        for stage in (self.conv1, self.conv2, self.conv3, self.conv4):
            h = _around(stage, h) if loop else stage(h)
        return x + h


def _around(stage: nn.Sequential, x: Tensor) -> Tensor:
    """A norm, an activation and a convolution that finds the last frame before the first.

    Its norm sees each frame once, as without the loop.
    """
    h = stage[:-1](x)
    return stage[-1](torch.cat([h[:, :, -1:], h, h[:, :, :1]], dim=2))[:, :, 1:-1]


class ResBlock(nn.Module):
    """A residual block on each frame, then a temporal convolution over all of them."""

    def __init__(self, channels: int, out_channels: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm(channels), nn.SiLU(), Conv2d(channels, out_channels, 3, padding=1)
        )
        # The activation is the same for all blocks, so it is not computed here; the files count it.
        self.emb_layers = nn.Sequential(nn.Identity(), Linear(embedding_dim, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else Conv2d(channels, out_channels, 1)
        )
        self.temopral_conv = TemporalConv(out_channels, dropout)  # spelled as in the files

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        embedding = self.emb_layers(cond.embedding).repeat_interleave(cond.frames, dim=0)
        h = self.in_layers(x) + embedding[..., None, None]
        h = self.skip_connection(x) + self.out_layers(h)
        return by_frames(self.temopral_conv(along_time(h, cond.frames), cond.loop), *h.shape[2:])


class GEGLU(nn.Module):
    """Gated linear unit with GELU: Shazeer, "GLU Variants Improve Transformer" (arXiv:2002.05202)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = Linear(dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    rows = 1024
    """Tokens that a CPU takes at a time, so that what is between the layers stays in its caches."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(dropout), Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, tokens, dim]; returns the same shape."""
        if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.net(x)
        parts = x.flatten(0, 1).split(self.rows)
        return torch.cat([self.net(part) for part in parts]).view(x.shape)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context (to itself without one), feed-forward; all residual."""

    def __init__(self, dim: int, heads: int, head_dim: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.attn1 = Attention(dim, dim, heads, head_dim)
        self.attn2 = Attention(dim, context_dim or dim, heads, head_dim)
        self.ff = FeedForward(dim, dropout=0.0)
        self.norm1 = LayerNorm(dim)
        self.norm2 = LayerNorm(dim)
        self.norm3 = LayerNorm(dim)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """x: [n, tokens, dim]; the context's b divides n, or None."""
        x = x + self.attn1(self.norm1(x))
        if context is None:
            x = x + self.attn2(self.norm2(x))
        else:  # all frames of a sample look at one context: their tokens stand in one row
            n = len(x)
            queries = self.norm2(x).reshape(len(context), -1, x.shape[-1])
            out = self.attn2(queries, *context.keys_values(self.attn2))
            x = x + out.reshape(n, -1, x.shape[-1])
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer over the pixels of each frame, with attention to the context."""

    def __init__(self, channels: int, head_dim: int, context_dim: int) -> None:
        super().__init__()
        heads = channels // head_dim
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = Linear(channels, heads * head_dim)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(heads * head_dim, heads, head_dim, context_dim)]
        )
        self.proj_out = Linear(heads * head_dim, channels)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2)).float()  # [b·f, h·w, c]
        for block in self.transformer_blocks:
            tokens = block(tokens, cond.context)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, (height, width))


class TemporalTransformer(nn.Module):
    """A transformer over the frames of each pixel; both of its attentions are to the frames."""

    def __init__(self, channels: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = Pointwise(channels, heads * head_dim)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(heads * head_dim, heads, head_dim)])
        self.proj_out = Pointwise(heads * head_dim, channels)

    def forward(self, x: Tensor, cond: Conditioning) -> Tensor:
        video = along_time(x, cond.frames)
        rows = self.proj_in(self.norm(video).permute(0, 2, 3, 1))  # [b, f, n, c]
        tokens = rows.transpose(1, 2).flatten(0, 1).float()  # [b·n, f, c]
        for block in self.transformer_blocks:
            tokens = block(tokens)
        out = self.proj_out(tokens).unflatten(0, (len(video), -1))  # [b, n, f, c]
        return by_frames(video + out.permute(0, 3, 2, 1), *x.shape[2:])
