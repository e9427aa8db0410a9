"""Less memory for a U-Net's layers: each works on a part of its input at a time, with the same result.

What is independent is what makes the parts: a frame for convolutions and for transformers over its pixels,
a pixel for transformers over the frames, a token for feed-forward layers, a group for group norms. Statistics
that a temporal transformer's norm takes over all frames and pixels are taken first.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..compute import ops
from ..compute.layers import GroupNorm
from ..compute.wrapping import Order, wrap, wrapped
from ..networks.blocks import (
    Attention,
    BlockInputs,
    Context,
    Downsample,
    FeedForward,
    InputConv,
    ResBlock,
    SpatialTransformer,
    TemporalConv,
    TemporalTransformer,
    Upsample,
    along_time,
)

Forward = Callable[..., Tensor]


@contextlib.contextmanager
def chunked(network: nn.Module, tokens: int) -> Iterator[nn.Module]:
    """Within it, the network's layers compute in parts; afterwards they are as before.

    Compiled blocks run eagerly meanwhile. Layers that compute in parts already keep their own parts.

    Args:
        network: a :class:`~modelscope_i2v.networks.stunet.STUNet`, or a part of one.
        tokens: pixels, over all frames and samples, that a layer computes at a time; a frame, or a row of
            pixels over all frames, is the least that some can.
    """
    wraps = []
    try:
        for module in list(network.modules()):
            for layer, rule in _rules(module, tokens):
                if not wrapped(layer, Order.CHUNKING):
                    wraps.append(wrap(layer, Order.CHUNKING, rule))
        yield network
    finally:
        for each in wraps:
            each.remove()


def _rules(module: nn.Module, tokens: int) -> Iterable[tuple[nn.Module, Callable[..., Tensor]]]:
    """The layers in a module that work in parts, each with how; its parts' own rules apply within."""
    if isinstance(module, ResBlock):
        frames = functools.partial(_frames, tokens)
        return [(part, frames) for part in (module.in_layers, module.out_layers, module.skip_connection)]
    if isinstance(module, TemporalConv):
        stages = (module.conv1, module.conv2, module.conv3, module.conv4)
        return [(stage, functools.partial(_groups, tokens, stage)) for stage in stages]
    if isinstance(module, TemporalTransformer):
        rows = _Rows(tokens, module.norm)
        return [(module, rows.transformer), (module.norm, rows.normalised)]
    rules = {
        InputConv: _frames,
        Downsample: _frames,
        Upsample: _frames,
        SpatialTransformer: _samples,
        FeedForward: _tokens,
    }
    rule = rules.get(type(module))
    return [] if rule is None else [(module, functools.partial(rule, tokens))]


def _written(parts: Iterable[Tensor], x: Tensor, dim: int) -> Tensor:
    """Parts side by side, as long as ``x`` along ``dim`` and in memory in the order of its dimensions.

    ``torch.cat`` would keep all of the parts beside the result.
    """
    whole, start, size = None, 0, x.shape[dim]
    for part in parts:
        if whole is None:
            if part.shape[dim] == size:
                return part
            shape = (*part.shape[:dim], size, *part.shape[dim + 1 :])
            order = sorted(range(x.ndim), key=x.stride, reverse=True)
            whole = torch.empty_permuted(shape, order, dtype=part.dtype, device=part.device)
        whole.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]
    return whole


def _frames(tokens: int, forward: Forward, x: Tensor, *rest: object) -> Tensor:
    """x: [b·f, c, h, w]."""
    count = max(tokens // x.shape[2:].numel(), 1)
    return _written((forward(part, *rest) for part in x.split(count)), x, 0)


class _OneSample(NamedTuple):
    """A sample's part of a :class:`~modelscope_i2v.networks.blocks.Context`."""

    context: Context
    index: int

    def __len__(self) -> int:
        return 1

    def keys_values(self, attention: Attention) -> tuple[Tensor, ...]:
        own = slice(self.index, self.index + 1)
        return tuple(values[own] for values in self.context.keys_values(attention))


def _samples(tokens: int, forward: Forward, x: Tensor, inputs: BlockInputs) -> Tensor:
    """x: [b·f, c, h, w]; frames of one sample share a context."""
    count = max(tokens // x.shape[2:].numel(), 1)

    def parts() -> Iterator[Tensor]:
        for index, sample in enumerate(x.chunk(len(inputs.context))):
            own = inputs._replace(context=_OneSample(inputs.context, index))
            for part in sample.split(count):
                yield forward(part, own)

    return _written(parts(), x, 0)


class _Rows:
    """A temporal transformer by rows of pixels, after its norm's statistics of all of them."""

    def __init__(self, tokens: int, norm: GroupNorm) -> None:
        self.tokens, self.norm = tokens, norm
        self.statistics: tuple[Tensor, Tensor] | None = None

    def transformer(self, forward: Forward, x: Tensor, inputs: BlockInputs) -> Tensor:
        """x: [b·f, c, h, w]."""
        count = max(self.tokens // (len(x) * x.shape[3]), 1)
        if count >= x.shape[2]:
            return forward(x, inputs)
        self.statistics = _statistics(self.norm, x, inputs.frames)
        try:
            return _written((forward(part, inputs) for part in x.split(count, dim=2)), x, 2)
        finally:
            self.statistics = None

    def normalised(self, forward: Forward, x: Tensor) -> Tensor:
        """x: [b, c, f, n]."""
        return forward(x) if self.statistics is None else _normalised(self.norm, *self.statistics, x)


def _statistics(norm: GroupNorm, x: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of a video's groups [b, groups], which take a group's memory."""
    groups = along_time(x, frames).unflatten(1, (norm.num_groups, -1))
    kind = norm.weight.dtype
    parts = [
        torch.var_mean(groups[:, i].to(kind).flatten(1), dim=1, correction=0) for i in range(norm.num_groups)
    ]
    variance, mean = (torch.stack(values, dim=1) for values in zip(*parts))
    return mean, variance


def _normalised(norm: GroupNorm, mean: Tensor, variance: Tensor, x: Tensor) -> Tensor:
    """A group norm with given statistics [b, groups]; x: [b, c, f, n]."""
    shape = (len(x), norm.num_groups, *[1] * (x.ndim - 1))
    groups = x.to(norm.weight.dtype).unflatten(1, (norm.num_groups, -1)) - mean.view(shape)
    groups = groups * (variance + norm.eps).rsqrt().view(shape)
    channels = (-1, *[1] * (x.ndim - 2))
    return groups.flatten(1, 2) * norm.weight.view(channels) + norm.bias.view(channels)


def _groups(tokens: int, stage: nn.Sequential, forward: Forward, x: Tensor) -> Tensor:
    """A norm with its activation, and a convolution; x: [b, c, f, n]."""
    norm, between, conv = stage[0], stage[1:-1], stage[-1]
    positions = x.numel() // x.shape[1]
    count = max(norm.num_groups * tokens // positions, 1)
    if count >= norm.num_groups:
        return forward(x)
    each = norm.num_channels // norm.num_groups

    def parts() -> Iterator[Tensor]:
        for first in range(0, norm.num_channels, count * each):
            own = slice(first, first + count * each)
            groups = x[:, own].shape[1] // each
            part = ops.group_norm(x[:, own], groups, norm.weight[own], norm.bias[own], norm.eps, norm.silu)
            yield between(part).to(conv.weight.dtype)

    return conv(_written(parts(), x, 1))


def _tokens(tokens: int, forward: Forward, x: Tensor) -> Tensor:
    """x: [n, tokens, dim]."""
    rows = x.flatten(0, 1).unsqueeze(0)
    return _written((forward(part) for part in rows.split(tokens, dim=1)), rows, 1).view(x.shape)
