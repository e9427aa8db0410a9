"""From a file's tensors to a module that is ready to run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .kinds import identify
from .mapped import Scratch
from .tensors import TensorFile, select

AUTOENCODER_UNUSED = ("loss.", "model_ema.")
"""Prefixes that autoencoder files may hold beside the autoencoder: its discriminator and averages."""

CLIP_UNUSED = ("attn_mask", "logit_bias")
"""What OpenCLIP files of some versions hold, and the installed version does not know of."""

_READERS = 4
"""Threads that read a file: one waits for the disk while others cast."""

_SHOWN = 4


@dataclass(frozen=True)
class Differences:
    """How a file differs from the network that it should be."""

    missing: list[str]
    unexpected: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """By key: the shape in the file, and the one that is right."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def lines(self) -> list[str]:
        """One sentence for each sort of difference, with the first few keys."""
        lines = []
        for word, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            if keys:
                lines.append(f"{_count(keys, 'key')} {word}: {_first(keys)}")
        if self.shapes:
            shown = [
                f"{key} is {list(has)} and should be {list(right)}"
                for key, (has, right) in self.shapes.items()
            ]
            lines.append(f"{_count(shown, 'shape')} different: {_first(shown)}")
        return lines


def _count(items: Collection[str], noun: str) -> str:
    return f"{len(items):,} {noun}{' is' if len(items) == 1 else 's are'}"


def _first(items: Collection[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(list(items)[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def load_module(
    module: nn.Module,
    tensors: TensorFile | Mapping[str, Tensor],
    *,
    source: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    keep_float32: Collection[str] = (),
    ignore: Collection[str] = (),
    layouts: Mapping[str, torch.memory_format] | None = None,
) -> nn.Module:
    """Puts a file's tensors into a module that was built on the ``meta`` device.

    Nothing is initialised first, and each tensor is cast once, where it will live. On the CPU,
    tensors that have the right type and layout already are not copied: the module's parameters then are
    the mapped file, unless that was opened with ``mmap=False``. Others are read by several threads.

    Args:
        module: changed in place, then in evaluation mode and without gradients.
        tensors: a file, or tensors by name; a prefix of all the names is taken off.
        source: what errors call the tensors; the file's path by default.
        dtype: of all floating-point tensors but those whose keys are in ``keep_float32``.
        ignore: keys, or prefixes that end in a dot, that may be there and are not used.
        layouts: by key, of tensors that are not to lie in memory as their file has them.

    Returns:
        The module.

    Raises:
        CheckpointError: for missing or unexpected keys and other shapes, before anything is loaded.
    """
    file = tensors if isinstance(tensors, TensorFile) else None
    named = tensors.tensors if isinstance(tensors, TensorFile) else tensors
    expected = module.state_dict()
    given = select(named, expected)
    source = source or (file.path if file else "this file")
    if problems := differences(expected, given, ignore):
        raise CheckpointError(explain(problems, named, source))
    for key, tensor in expected.items():
        if tensor.is_floating_point() and not given[key].is_floating_point():
            kind = str(given[key].dtype).removeprefix("torch.")
            raise CheckpointError(f"{source}: {key} has numbers of the type {kind}; weights are floats.")

    device = torch.empty(0, device=device).device  # of a GPU also its number, which threads do not share
    layouts, scratch = layouts or {}, Scratch()

    def placed(key: str) -> Tensor:
        tensor = given[key]
        wanted = tensor.dtype
        if tensor.is_floating_point():
            wanted = torch.float32 if key in keep_float32 else dtype
        layout = layouts.get(key, torch.contiguous_format)
        fits = (tensor.device, tensor.dtype) == (device, wanted) and tensor.is_contiguous(
            memory_format=layout
        )
        if fits and (file is None or file.mmap):
            return tensor
        if file is not None:
            tensor = file.read(tensor, scratch)
        if tensor.dtype == torch.float64:  # MPS has none
            tensor = tensor.to(wanted)
        # Casting after the transfer leaves the work to the faster side.
        copy = tensor.to(device).to(wanted, memory_format=layout, copy=device.type == "cpu")
        if file is not None:
            file.release(given[key])
        return copy

    several = device.type in ("cpu", "cuda")  # MPS takes one thread at a time
    with ThreadPoolExecutor(_READERS if several else 1) as readers:
        state = dict(zip(expected, readers.map(placed, expected)))
    if device.type == "cuda":  # the threads' streams are not the caller's
        torch.cuda.synchronize(device)
    module.requires_grad_(False)
    module.load_state_dict(state, assign=True)
    return module.eval()


def differences(
    expected: Mapping[str, Tensor], given: Mapping[str, Tensor], ignore: Collection[str] = ()
) -> Differences:
    """How ``given`` tensors differ from the ``expected`` ones; false where they don't."""
    prefixes = tuple(entry for entry in ignore if entry.endswith("."))
    exact = set(ignore)
    return Differences(
        missing=[key for key in expected if key not in given],
        unexpected=[
            key for key in given if key not in expected and key not in exact and not key.startswith(prefixes)
        ],
        shapes={
            key: (tuple(given[key].shape), tuple(tensor.shape))
            for key, tensor in expected.items()
            if key in given and given[key].shape != tensor.shape
        },
    )


def explain(problems: Differences, named: Mapping[str, Tensor], source: str | Path) -> str:
    """A sentence on each of the ``problems`` of the tensors ``named``, which came from ``source``."""
    kind = identify(named)
    guess = f" The file looks like {kind.name}." if kind else ""
    return f"{source} does not fit the network. " + "; ".join(problems.lines()) + "." + guess
