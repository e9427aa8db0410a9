"""A network's blocks through ``torch.compile``, block by block.

The blocks stay as the network has them. A compiled one gets tensors alone, whose batch, frames, height and
width are marked as dynamic: one graph serves all sizes. Blocks of one kind (one class, weights of the same
shapes and types, the same LoRAs) share a graph. So a network that is cast or gets a LoRA compiles anew, and
finds its former graphs again when it is as it was.
"""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from . import wrapping
from .wrapping import Order, wrap, wrapped


class Region(nn.Module):
    """A block that a network repeats, and that compiles as one graph: ``block(x, inputs)``."""

    def operands(self, inputs: Any) -> tuple[Tensor | bool, ...]:
        """The inputs that it computes with, beside x and the number of frames.

        A tensor's sizes may differ from call to call in its dimensions 0 (batch) and 2 (tokens).
        """
        return ()

    def compute(self, x: Tensor, frames: int, *operands: Any) -> Tensor:
        """x: [b·f, c, h, w]; returns [b·f, c', h, w]."""
        raise NotImplementedError

    def forward(self, x: Tensor, inputs: Any) -> Tensor:
        """x: as :meth:`compute` has it; ``inputs.frames`` is f."""
        return self.compute(x, inputs.frames, *self.operands(inputs))


_TOOLS = {
    "cpu": "a C++ compiler, such as g++ or clang, that the variable CXX may name",
    "cuda": "the package triton, and a C compiler such as gcc",
}


def compile_blocks(network: nn.Module, backend: str | Callable[..., Any] = "inductor") -> nn.Module:
    """Has a network's :class:`Region` blocks compiled when they first compute; returns the network.

    Blocks that compute in parts do so eagerly: how many parts there are depends on the size.

    Args:
        backend: of ``torch.compile``, which compiles all of a block or raises its error.
    """
    functions: dict[Hashable, Callable[..., Tensor]] = {}
    for block in network.modules():
        if isinstance(block, Region) and not wrapped(block, Order.COMPILATION):
            wrap(block, Order.COMPILATION, _Compiled(block, functions, backend))
    return network


class _Compiled:
    """A block by a compiled function.

    Args:
        functions: those of the network, by the kind of block; grows as kinds are met.
        backend: of ``torch.compile``.
    """

    def __init__(
        self,
        block: Region,
        functions: dict[Hashable, Callable[..., Tensor]],
        backend: str | Callable[..., Any],
    ) -> None:
        self.block, self.functions, self.backend = block, functions, backend
        self._known: tuple[int, Hashable] = -1, None
        """The block's kind, and how often layers had changed by then."""

    def __call__(self, forward: Callable[..., Tensor], x: Tensor, inputs: Any) -> Tensor:
        """As the block's own ``forward``."""
        kind = self._kind()
        if kind is None:
            return forward(x, inputs)
        if kind not in self.functions:
            # PyTorch keeps graphs by code object, eight at most: each kind of block gets a copy of the code.
            run = types.FunctionType(_run.__code__.replace(), _run.__globals__)
            self.functions[kind] = torch.compile(run, fullgraph=True, backend=self.backend)
        operands = self.block.operands(inputs)
        for operand in operands:
            if isinstance(operand, Tensor):
                _mark(operand, *range(0, operand.ndim, 2))
        video = x.unflatten(0, (-1, inputs.frames))
        _mark(video, 0, 1, 3, 4)
        return self.functions[kind](self.block, video, *operands)

    def _kind(self) -> Hashable:
        """:func:`_kind`, which walks through all weights, once a change."""
        changes, kind = self._known
        if changes != wrapping.changes():
            changes = wrapping.changes()
            kind = _kind(self.block)
            self._known = changes, kind  # at once, for other threads
        return kind


def _run(block: Region, video: Tensor, *operands: Any) -> Tensor:
    """video: [b, f, c, h, w]; returns [b·f, c, h, w]."""
    return block.compute(video.flatten(0, 1), video.shape[1], *operands)


def _kind(block: Region) -> Hashable:
    """All that one graph's blocks have in common; None for a block that no graph can compute."""
    inside = any(wrapped(module, Order.CHUNKING) for module in block.modules())
    if inside or any(wrapped(block, order) for order in Order if order < Order.COMPILATION):
        return None
    weights = (*block.named_parameters(), *block.named_buffers())
    scales = tuple(module.strength for module in block.modules() if hasattr(module, "strength"))
    return type(block), tuple((name, weight.shape, weight.dtype) for name, weight in weights), scales


def _mark(tensor: Tensor, *dims: int) -> None:
    """Sizes that one graph takes all of, but for 1, which is a graph of its own."""
    for dim in dims:
        if tensor.shape[dim] > 1:
            torch._dynamo.mark_dynamic(tensor, dim)


def check(device: torch.device, attention: str, memory: str) -> None:
    """Raises InputError where ``compile=True`` does not go with the other settings, or with the machine."""
    if attention == "xformers":
        raise InputError(
            "compile=True does not go with attention='xformers', whose kernels PyTorch cannot trace: "
            "attention='auto' takes PyTorch's own."
        )
    if memory == "minimal":
        raise InputError(
            "compile=True does not go with memory='minimal', whose layers compute in parts that depend on "
            "the video's size: use memory='offload', or leave compile out."
        )
    check_compiler(device.type)


@functools.cache
def check_compiler(device: str) -> None:
    """Compiles something small for a type of device, such as ``cpu``, once a process.

    Raises InputError, with what is missing, where that does not work.
    """
    number = random.random()  # so that no file of an earlier process will do

    def probe(x: Tensor) -> Tensor:
        return x * number + x.sin()

    try:
        torch.compile(probe, fullgraph=True, dynamic=False)(torch.ones(64, device=device))
    except Exception as error:  # compilers fail in any way
        tools = _TOOLS.get(device, "what PyTorch's documentation of torch.compile says of this device")
        reason = next((line for line in map(str.strip, str(error).splitlines()) if line), "")
        raise InputError(
            f"compile=True does not work here: on {device} PyTorch needs {tools}. "
            f"({type(error).__name__}: {reason})"
        ) from error
