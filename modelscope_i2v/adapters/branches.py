"""Low-rank branches beside the layers of a network, which itself stays as it is.

A branch adds to what its layer returns; the layer's weights are neither changed nor copied. So they may be
a mapped file, a branch that is taken away leaves no trace, and several add up. The branches' matrices are
buffers outside ``state_dict``: they move with the network, and its keys stay those of the files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute import wrapping
from ..compute.layers import Conv2d, FrameConv, Linear, Pointwise
from ..compute.wrapping import Order, wrap

ADAPTABLE = (Linear, Pointwise, Conv2d, FrameConv)
"""The layers that can have a branch."""

_ATTRIBUTE = "lora"


class Branch(nn.Module):
    """``scale · factor · up(down(x))`` of one LoRA beside one layer.

    Attributes:
        name: the LoRA's.
        scale: what the user multiplies it with.
        factor: what the file does.
    """

    def __init__(self, name: str, down: Tensor, up: Tensor, factor: float, scale: float) -> None:
        super().__init__()
        self.name, self.factor, self._scale = name, factor, scale
        self.register_buffer("down", down, persistent=False)
        self.register_buffer("up", up, persistent=False)

    @property
    def scale(self) -> float:
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        self._scale = scale
        wrapping.changed()

    @property
    def strength(self) -> float:
        """What its matrices' product is multiplied with."""
        return self.scale * self.factor

    def forward(self, layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """``layer``'s ``output`` for ``x`` with this branch's added."""
        # The type is the layer's of now: a network is cast to fp32 and back where fp16 overflows.
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(layer, FrameConv):
            added = F.conv2d(F.conv2d(x, down.squeeze(-1), padding=layer.padding[:2]), up.squeeze(-1))
        elif isinstance(layer, Conv2d):
            hidden = F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
            added = F.conv2d(hidden, up)
        else:
            added = F.linear(F.linear(x, down), up)
        return torch.add(output, added, alpha=self.strength)


class Branches(nn.ModuleList):
    """All branches of a layer, which are around its ``forward``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.wrap = wrap(layer, Order.LORA, functools.partial(_add, layer))


def _add(layer: nn.Module, forward: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
    output, x = forward(x, *rest), x.to(layer.weight.dtype)
    for branch in getattr(layer, _ATTRIBUTE):
        output = branch(layer, x, output)
    return output


def attach(layer: nn.Module, branch: Branch) -> None:
    """Puts a branch beside a layer; its matrices get the layer's device and type."""
    if not hasattr(layer, _ATTRIBUTE):
        setattr(layer, _ATTRIBUTE, Branches(layer))
    getattr(layer, _ATTRIBUTE).append(branch.to(layer.weight.device, layer.weight.dtype))
    wrapping.changed()


def detach(network: nn.Module, name: str | None = None) -> None:
    """Takes the branches of one LoRA away, or of all."""
    for layer, beside in list(_adapted(network)):
        for index in reversed(range(len(beside))):
            if name in (None, beside[index].name):
                del beside[index]
        if not beside:
            beside.wrap.remove()
            delattr(layer, _ATTRIBUTE)
    wrapping.changed()


def branches(network: nn.Module) -> Iterator[Branch]:
    """All branches in a network."""
    for _, beside in _adapted(network):
        yield from beside


def _adapted(network: nn.Module) -> Iterator[tuple[nn.Module, Branches]]:
    for layer in network.modules():
        beside = getattr(layer, _ATTRIBUTE, None)
        if isinstance(beside, Branches):
            yield layer, beside
