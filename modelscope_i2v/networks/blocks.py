"""The building blocks of the ST-UNet. All share one call: ``block(x, inputs)``.

``x`` is a video whose frames are folded into the batch, [b·f, c, h, w], channels-last in memory. So the
tokens of a frame and, for temporal layers, the frames of each pixel (``along_time``) are views of it,
not copies. Attribute names are the ones in the checkpoint files.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute import ops
from ..compute.compilation import Region
from ..compute.layers import Conv2d, FrameConv, GroupNorm, LayerNorm, Linear, Pointwise
from ..compute.views import along_time, by_frames


class Context:
    """The tokens that the spatial layers attend to, [b, tokens, context_dim].

    Without gradients each layer's keys and values of them are computed once, and kept as long as this object.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self._kept: dict[Attention, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def keys_values(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """The tokens as that layer projects them."""
        if torch.is_grad_enabled():
            return attention.keys_values(self.tokens)
        if attention not in self._kept:
            self._kept[attention] = attention.keys_values(self.tokens)
        return self._kept[attention]


class BlockInputs(NamedTuple):
    """The inputs that all blocks share."""

    embedding: Tensor
    """Time (and fps) embedding [b, embedding_dim], after the activation that all blocks begin with."""
    context: Context
    frames: int
    """f, the number of frames of each sample."""
    loop: bool = False
    """The first frame follows the last."""


class Stage(nn.ModuleList):
    """Blocks, one after the other."""

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        for block in self:
            x = block(x, inputs)
        return x


class InputConv(Conv2d):
    """The first convolution: latents → features."""

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        return super().forward(x)


class Downsample(nn.Module):
    """Halves height and width by a strided convolution; ``extra_rows`` pads two rows on each side."""

    def __init__(self, channels: int, extra_rows: bool) -> None:
        super().__init__()
        self.op = Conv2d(channels, channels, 3, stride=2, padding=(2, 1) if extra_rows else 1)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles height and width (nearest), then convolves; ``extra_rows`` drops first and last row."""

    def __init__(self, channels: int, extra_rows: bool) -> None:
        super().__init__()
        self.extra_rows = extra_rows
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x[..., 1:-1, :] if self.extra_rows else x)


def norm_silu(channels: int) -> tuple[nn.Module, nn.Module]:
    """A norm with its activation, which the files count as a layer of its own."""
    return GroupNorm(channels, silu=True), nn.Identity()


class TemporalConv(nn.Module):
    """Four convolutions over time with a residual; their norms see all frames."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()

        def conv(*between: nn.Module) -> nn.Sequential:
            kernel = FrameConv(channels, channels, (3, 1, 1), padding=(1, 0, 0))
            return nn.Sequential(*norm_silu(channels), *between, kernel)

        self.conv1 = conv()
        self.conv2, self.conv3, self.conv4 = (conv(nn.Dropout(dropout)) for _ in range(3))

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


class ResBlock(Region):
    """A residual block on each frame, then a temporal convolution over all of them."""

    def __init__(self, channels: int, out_channels: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(*norm_silu(channels), Conv2d(channels, out_channels, 3, padding=1))
        # The activation is the same for all blocks, so it is not computed here; the files count it.
        self.emb_layers = nn.Sequential(nn.Identity(), Linear(embedding_dim, out_channels))
        self.out_layers = nn.Sequential(
            *norm_silu(out_channels), nn.Dropout(dropout), Conv2d(out_channels, out_channels, 3, padding=1)
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else Conv2d(channels, out_channels, 1)
        )
        self.temopral_conv = TemporalConv(out_channels, dropout)  # spelled as in the files

    def operands(self, inputs: BlockInputs) -> tuple[Tensor, bool]:
        return inputs.embedding, inputs.loop

    def compute(self, x: Tensor, frames: int, embedding: Tensor, loop: bool) -> Tensor:
        embedding = self.emb_layers(embedding).repeat_interleave(frames, dim=0)
        h = self.in_layers(x) + embedding[..., None, None]
        h = self.skip_connection(x) + self.out_layers(h)
        return by_frames(self.temopral_conv(along_time(h, frames), loop), *h.shape[2:])


class Attention(nn.Module):
    """Multi-head attention, over the input itself or over a context.

    Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762).
    """

    kernel = "auto"
    """One of :data:`modelscope_i2v.compute.attention.KERNELS`."""

    def __init__(self, dim: int, context_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = Linear(dim, inner, bias=False)
        self.to_k = Linear(context_dim, inner, bias=False)
        self.to_v = Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(Linear(inner, dim))

    def forward(self, x: Tensor, keys: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """x: [b, n, dim]; keys and values as :meth:`keys_values` has them, of x itself if None.

        Returns [b, n, dim].
        """
        x = x.to(self.to_q.weight.dtype)
        q = self._heads(self.to_q(x))
        k, v = self.keys_values(x) if keys is None else (keys, values)
        return self.to_out(ops.attention(q, k, v, self.kernel).transpose(1, 2).flatten(2))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a context [b, m, context_dim]: each [b, heads, m, head_dim]."""
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GEGLU(nn.Module):
    """Gated linear unit with GELU: Shazeer, "GLU Variants Improve Transformer" (arXiv:2002.05202)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = Linear(dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return ops.geglu(self.proj(x))


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(dropout), Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, tokens, dim]; returns the same shape."""
        return ops.per_token(self.net, x)


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

    def forward(self, x: Tensor, keys: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """x: [n, tokens, dim]; keys and values of a context whose b divides n, or None."""
        x = x + self.attn1(self.norm1(x))
        if keys is None:
            x = x + self.attn2(self.norm2(x))
        else:  # all frames of a sample look at one context: their tokens stand in one row
            n = len(x)
            queries = self.norm2(x).reshape(len(keys), -1, x.shape[-1])
            x = x + self.attn2(queries, keys, values).reshape(n, -1, x.shape[-1])
        return x + self.ff(self.norm3(x))


class SpatialTransformer(Region):
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

    def operands(self, inputs: BlockInputs) -> tuple[Tensor, ...]:
        return inputs.context.keys_values(self.transformer_blocks[0].attn2)

    def compute(self, x: Tensor, frames: int, keys: Tensor, values: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.proj_in(self.norm(x).flatten(2).transpose(1, 2)).float()  # [b·f, h·w, c]
        tokens = self.transformer_blocks[0](tokens, keys, values)
        return x + self.proj_out(tokens).transpose(1, 2).unflatten(2, (height, width))


class TemporalTransformer(Region):
    """A transformer over the frames of each pixel; both of its attentions are to the frames."""

    def __init__(self, channels: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = Pointwise(channels, heads * head_dim)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(heads * head_dim, heads, head_dim)])
        self.proj_out = Pointwise(heads * head_dim, channels)

    def compute(self, x: Tensor, frames: int) -> Tensor:
        video = along_time(x, frames)
        rows = self.proj_in(self.norm(video).permute(0, 2, 3, 1))  # [b, f, n, c]
        tokens = rows.transpose(1, 2).flatten(0, 1).float()  # [b·n, f, c]
        tokens = self.transformer_blocks[0](tokens)
        out = self.proj_out(tokens).unflatten(0, (len(video), -1))  # [b, n, f, c]
        return by_frames(video + out.permute(0, 3, 2, 1), *x.shape[2:])
