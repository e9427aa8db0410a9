"""The number types and memory formats of a network's weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import wrapping
from .layers import FrameConv, GroupNorm, LayerNorm


def memory_formats(network: nn.Module) -> dict[str, torch.memory_format]:
    """The best memory formats of convolutions' weights, by their names in the state dict.

    In another one, every call would first make such a copy of them.
    """
    return {
        f"{name}.weight": torch.channels_last if module.weight.ndim == 4 else torch.channels_last_3d
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, FrameConv))
    }


def channels_last(network: nn.Module) -> nn.Module:
    """Gives a network's weights their :func:`memory_formats` in place; returns the network."""
    for name, memory_format in memory_formats(network).items():
        weight = network.get_parameter(name)
        weight.data = weight.data.contiguous(memory_format=memory_format)
    return network


def float32_names(network: nn.Module) -> set[str]:
    """The parameters that stay fp32 when a network is cast to fp16 or bf16: those of its norms.

    Norms compute in the type of their weights.
    """
    return {
        f"{name}.{parameter}"
        for name, module in network.named_modules()
        if isinstance(module, (GroupNorm, LayerNorm))
        for parameter, _ in module.named_parameters(recurse=False)
    }


@torch.inference_mode(False)
def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts a network in place, but for its :func:`float32_names`; returns the network."""
    kept = float32_names(network)
    for name, parameter in network.named_parameters():
        if is_traceable_wrapper_subclass(parameter):
            _cast_quantized(network, name, dtype)
        else:
            parameter.data = parameter.data.to(torch.float32 if name in kept else dtype)
    wrapping.changed()
    return network


def _cast_quantized(network: nn.Module, name: str, dtype: torch.dtype) -> None:
    """Has a quantised weight compute in another type; its integers and scales stay."""
    weight = network.get_parameter(name)
    names, settings = weight.__tensor_flatten__()
    inner = {part: getattr(weight, part) for part in names}
    made = type(weight).__tensor_unflatten__(
        inner, {**settings, "dtype": dtype}, weight.shape, weight.stride()
    )
    layer, _, own = name.rpartition(".")
    setattr(network.get_submodule(layer), own, nn.Parameter(made, requires_grad=False))
