"""The weights of a network's linear layers in eight bits, by torchao.

A row of a weight is kept as integers and one scale, and products are computed in the input's type: weights
take less memory, and the work is no less. Convolutions stay as they are; torchao has no such kernel for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import InputError
from . import wrapping
from .layers import Linear

QUANTIZATIONS = ("int8",)
"""What the argument ``quantization`` can be, beside None."""


def check(quantization: str | None) -> None:
    """Raises InputError for a name that is not in :data:`QUANTIZATIONS`, and where torchao is missing."""
    if quantization is None:
        return
    if quantization not in QUANTIZATIONS:
        raise InputError(f"quantization={quantization!r} is unknown; it can be int8, or None for none.")
    try:
        import torchao.quantization  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"quantization={quantization!r} needs the package torchao: "
            "pip install modelscope-i2v[quantization]."
        ) from error


def quantize(network: nn.Module, quantization: str | None) -> nn.Module:
    """Quantises the weights of a network's linear layers, in place; None leaves them. Returns the network."""
    check(quantization)
    if quantization == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        with torch.inference_mode(False):
            quantize_(network, Int8WeightOnlyConfig(version=2), lambda layer, _: isinstance(layer, Linear))
        wrapping.changed()
    return network


def stored(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """The tensors that really lie in memory: of a quantised weight, its integers and its scales."""
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            yield from stored(getattr(tensor, name) for name in names)
        else:
            yield tensor
