"""The U-Net's blocks through ``torch.compile``, block by block.

The blocks stay as :mod:`modelscope_i2v.networks.blocks` has them. A compiled one gets tensors alone, whose
batch, frames, height and width are marked as dynamic: one graph serves all sizes. Blocks of one kind (one
class, weights of the same shapes and types, the same LoRAs) share a graph. So a network that is cast or gets
a LoRA compiles anew, and finds its former graphs again when it is as it was.
"""

from __future__ import annotations

import contextlib
import functools
import random
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..networks.blocks import Conditioning, ResBlock, SpatialTransformer, TemporalTransformer

REGIONS = (ResBlock, SpatialTransformer, TemporalTransformer)
"""The blocks that a network repeats, each compiled as one graph."""

_TOOLS = {
    "cpu": "a C++ compiler, such as g++ or clang, that the variable CXX may name",
    "cuda": "the package triton, and a C compiler such as gcc",
}


def compile_blocks(network: nn.Module, backend: str | Callable[..., Any] = "inductor") -> nn.Module:
    """Has a network's :data:`REGIONS` compiled when they first compute; returns the network.

    Args:
        network: a :class:`~modelscope_i2v.networks.stunet.STUNet`.
        backend: of ``torch.compile``, which compiles all of a block or raises its error.
    """
    functions: dict[Hashable, Callable[..., Tensor]] = {}
    for block in network.modules():
        if isinstance(block, REGIONS):
            block.forward = Compiled(block, functions, backend)
    return network


@contextlib.contextmanager
def as_written(network: nn.Module) -> Iterator[None]:
    """Within it, compiled blocks compute as they are written."""
    compiled = [block for block in network.modules() if isinstance(vars(block).get("forward"), Compiled)]
    forwards = [vars(block).pop("forward") for block in compiled]
    try:
        yield
    finally:
        for block, forward in zip(compiled, forwards):
            block.forward = forward


class Compiled:
    """A block's ``forward`` by a compiled function.

    Args:
        functions: those of the network, by the kind of block; grows as kinds are met.
        backend: of ``torch.compile``.
    """

    def __init__(
        self,
        block: nn.Module,
        functions: dict[Hashable, Callable[..., Tensor]],
        backend: str | Callable[..., Any],
    ) -> None:
        self.block, self.functions, self.backend = block, functions, backend

    def __call__(self, x: Tensor, cond: Conditioning) -> Tensor:
        """As the block's own."""
        kind = _kind(self.block)
        if kind not in self.functions:
            # PyTorch keeps graphs by code object, eight at most: each kind of block gets a copy of the code.
            run = types.FunctionType(_run.__code__.replace(), _run.__globals__)
            self.functions[kind] = torch.compile(run, fullgraph=True, backend=self.backend)
        keys = values = None
        if isinstance(self.block, SpatialTransformer):  # remembered from step to step, which no graph can
            (transformer,) = self.block.transformer_blocks
            keys, values = cond.context.keys_values(transformer.attn2)
            _mark(keys, 0, 2)
            _mark(values, 0, 2)
        video = x.unflatten(0, (-1, cond.frames))
        _mark(video, 0, 1, 3, 4)
        _mark(cond.embedding, 0)
        return self.functions[kind](self.block, video, cond.embedding, keys, values, cond.loop)


class _Attended:
    """A :class:`~modelscope_i2v.networks.blocks.Context` whose keys and values for one layer are there."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def __len__(self) -> int:
        return self.keys.shape[0]

    def keys_values(self, attention: nn.Module) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


def _run(
    block: nn.Module, video: Tensor, embedding: Tensor, keys: Tensor | None, values: Tensor | None, loop: bool
) -> Tensor:
    """video: [b, f, c, h, w]; returns [b·f, c, h, w]."""
    context = None if keys is None else _Attended(keys, values)
    cond = Conditioning(embedding, context, video.shape[1], loop)
    return type(block).forward(block, video.flatten(0, 1), cond)


def _kind(block: nn.Module) -> Hashable:
    """What blocks have in common that one graph computes."""
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
