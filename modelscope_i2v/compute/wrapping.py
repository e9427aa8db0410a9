"""The one way to change from outside how a layer computes: functions around its ``forward``, in one order.

A function gets what it is put around, and the layer's inputs: ``function(forward, *inputs)``. One that does
not call ``forward`` takes the layer's place.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

_WRAPS = "_wraps"

_changes = 0


class Order(enum.IntEnum):
    """What is put around a layer, from the innermost to the outermost, whatever was put there first."""

    LORA = 1
    """Adds to the layer's output."""
    CHUNKING = 2
    """Computes on a part of the input at a time, LoRAs with it."""
    COMPILATION = 3
    """Takes the layer's place by one graph; steps back where anything in it works in parts."""
    STREAMING = 4
    """Brings the layer's weights before anything computes with them; for inference, as they go again."""
    CHECKPOINTING = 5
    """Computes again for the backward pass, with all that is inside."""


class Wrap:
    """One function around one layer's ``forward``."""

    def __init__(self, layer: nn.Module, order: Order, function: Callable[..., Any]) -> None:
        self.layer, self.order, self.function = layer, order, function

    def remove(self) -> None:
        """Takes it away; after the last one the layer is as it was made."""
        _set(self.layer, [wrap for wrap in _wraps(self.layer) if wrap is not self])


def wrap(layer: nn.Module, order: Order, function: Callable[..., Any]) -> Wrap:
    """Puts ``function(forward, *inputs)`` around a layer's ``forward``; hooks stay outside of all."""
    made = Wrap(layer, order, function)
    _set(layer, [*_wraps(layer), made])
    return made


def wrapped(layer: nn.Module, order: Order) -> bool:
    """Whether a layer has anything of that kind around it."""
    return any(wrap.order == order for wrap in _wraps(layer))


def changes() -> int:
    """How often any layer has changed: what was found out about one holds while this stays."""
    return _changes


def changed() -> None:
    """Counts a change of layers that is not a wrap, such as of their weights' type."""
    global _changes
    _changes += 1


def _wraps(layer: nn.Module) -> list[Wrap]:
    return vars(layer).get(_WRAPS, [])


def _set(layer: nn.Module, wraps: list[Wrap]) -> None:
    changed()
    for name in (_WRAPS, "forward"):
        vars(layer).pop(name, None)
    if wraps:
        vars(layer)[_WRAPS] = sorted(wraps, key=lambda wrap: wrap.order)
        layer.forward = functools.partial(_forward, layer)


def _forward(layer: nn.Module, *inputs: Any) -> Any:
    """All wraps of a layer, put together at each call: a graph then depends on no object of theirs."""
    forward = functools.partial(type(layer).forward, layer)
    for wrap in vars(layer)[_WRAPS]:
        forward = functools.partial(wrap.function, forward)
    return forward(*inputs)
