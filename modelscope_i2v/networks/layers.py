"""Layers that take care of their own precision.

A network whose weights were cast to fp16 or bf16 computes as under PyTorch's autocast: layers with
matrix work cast their input to their weight's type, norms and activations compute in fp32. In fp32
every cast below is a no-op and the layers compute what PyTorch's own do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` that casts its input to the weight's type: [..., i], [o, i], [o] → [..., o].

    PyTorch multiplies fp32 on a CPU by MKL, which on AMD's processors has half the speed of oneDNN. So where
    there is no gradient to keep, which oneDNN's product does not, it is asked for directly.
    """
    x = x.to(weight.dtype)
    if x.dtype == torch.float16 and is_traceable_wrapper_subclass(weight):
        weight = weight.dequantize()  # torchao scales what it has summed up, which is too large before
    if _HAS_ONEDNN and _plain(x) and _plain(weight):
        return (_opaque if torch.compiler.is_compiling() else _onednn)(x, weight, bias)
    return F.linear(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.custom_op("modelscope_i2v::linear", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`_onednn` as one operation of a graph, whose compiler takes it with constant weights only."""
    return _onednn(x, weight, bias)


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _plain(x: Tensor) -> bool:
    """Whether a tensor is an ordinary one in fp32 on the CPU, without gradient, to be multiplied as it is."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch.is_autocast_enabled("cpu")
    )


class Linear(nn.Linear):
    """``nn.Linear`` that casts its input to the weight's type."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` that casts its input to the weight's type."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class FrameConv(nn.Conv3d):
    """A ``Conv3d`` as the files have it, (3, 1, 1), over each pixel's frames: [b, c, f, n] → [b, o, f, n].

    As a 2-D convolution it has several times the speed, where memory is channels-last.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.squeeze(-1)
        return F.conv2d(x.to(weight.dtype), weight, self.bias, self.stride[:2], self.padding[:2])


class Pointwise(nn.Conv1d):
    """A 1×1 ``Conv1d`` as the files have it, applied to the last dimension: [..., c] → [..., o]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.squeeze(-1), self.bias)


class GroupNorm(nn.GroupNorm):
    """Group norm with 32 groups, computed and returned in fp32."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(32, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last dimension, computed and returned in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def layouts(network: nn.Module) -> dict[str, torch.memory_format]:
    """How the weights of 2-D convolutions best lie in memory, by their names in the state dict.

    Laid out otherwise, every call would first make such a copy of them.
    """
    return {
        f"{name}.weight": torch.channels_last if module.weight.ndim == 4 else torch.channels_last_3d
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, FrameConv))
    }


def channels_last(network: nn.Module) -> nn.Module:
    """Lays a network's weights out in place as :func:`layouts` has them; returns it."""
    for name, layout in layouts(network).items():
        weight = network.get_parameter(name)
        weight.data = weight.data.contiguous(memory_format=layout)
    return network


def float32_names(network: nn.Module) -> set[str]:
    """The parameters that stay fp32 when a network is cast to fp16 or bf16: those of its norms.

    The layers above count on it: norms compute in the type of their weights.
    """
    return {
        f"{name}.{parameter}"
        for name, module in network.named_modules()
        if isinstance(module, (GroupNorm, LayerNorm))
        for parameter, _ in module.named_parameters(recurse=False)
    }


@torch.inference_mode(False)
def cast(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Casts a network in place, but for its :func:`float32_names`."""
    kept = float32_names(network)
    for name, parameter in network.named_parameters():
        if is_traceable_wrapper_subclass(parameter):
            _cast_quantized(network, name, dtype)
        else:
            parameter.data = parameter.data.to(torch.float32 if name in kept else dtype)
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


def sinusoidal_embedding(positions: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of ``positions`` [b] at ``dim`` // 2 frequencies from 1 to 1/10000: [b, dim].

    "Attention Is All You Need" (arXiv:1706.03762), section 3.5, in the order of the originals.
    """
    half = dim // 2
    exponents = -torch.arange(half, device=positions.device, dtype=torch.float32) / half
    angles = torch.outer(positions.float(), torch.pow(10000, exponents))
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, dim % 2))


def embedding_mlp(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """The two-layer perceptron that all of the family's embeddings share."""
    return nn.Sequential(Linear(in_dim, hidden_dim), nn.SiLU(), Linear(hidden_dim, out_dim))
