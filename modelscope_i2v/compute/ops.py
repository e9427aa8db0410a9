"""What layers compute, and how this machine does it: the one place where another kernel can come in.

Layers hand over their weights as they are. Here inputs are cast to them, so that a network whose weights
were cast to fp16 or bf16 computes as under PyTorch's autocast: matrix work in the weights' type, norms in
fp32. In fp32 every cast is a no-op, and all functions compute what PyTorch's own do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .attention import attention

__all__ = ["attention", "conv2d", "frame_conv", "geglu", "group_norm", "layer_norm", "linear", "per_token"]

CPU_TOKENS = 1024
"""Tokens that a CPU takes at a time in :func:`per_token`, so that its caches hold what is in between."""

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[..., i], [o, i], [o] → [..., o].

    PyTorch multiplies fp32 on a CPU by MKL, which on AMD's processors has half the speed of oneDNN. So where
    there is no gradient to keep, which oneDNN's product does not, it is asked for directly.
    """
    x = x.to(weight.dtype)
    if x.dtype == torch.float16 and is_traceable_wrapper_subclass(weight):
        weight = weight.dequantize()  # torchao scales what it has summed up, which is too large before
    if _HAS_ONEDNN and _plain(x) and _plain(weight):
        return (_onednn_in_a_graph if torch.compiler.is_compiling() else _onednn)(x, weight, bias)
    return F.linear(x, weight, bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.custom_op("modelscope_i2v::linear", mutates_args=())
def _onednn_in_a_graph(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`_onednn` as one operation of a graph, whose compiler takes it with constant weights only."""
    return _onednn(x, weight, bias)


@_onednn_in_a_graph.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _plain(x: Tensor) -> bool:
    """An ordinary tensor in fp32 on the CPU, without gradient, to be multiplied as it is."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch.is_autocast_enabled("cpu")
    )


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """[n, i, h, w], [o, i, kh, kw], [o] → [n, o, h', w']."""
    return F.conv2d(x.to(weight.dtype), weight, bias, stride, padding)


def frame_conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """A convolution over each pixel's frames: [b, i, f, n], [o, i, k, 1, 1], [o] → [b, o, f, n].

    As a 2-D convolution it has several times the speed, where memory is channels-last.
    """
    return F.conv2d(x.to(weight.dtype), weight.squeeze(-1), bias, padding=(padding, 0))


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool = False
) -> Tensor:
    """Group norm of [n, c, ...] in the weights' type (fp32), followed by SiLU if asked for."""
    x = F.group_norm(x.to(weight.dtype), groups, weight, bias, eps)
    return F.silu(x) if silu else x


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of [..., c] over its last dimension, in the weights' type (fp32)."""
    return F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias, eps)


def geglu(x: Tensor) -> Tensor:
    """[..., 2·c] → [..., c]: the first half, gated by GELU of the second."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def per_token(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of each token by itself, which keeps their shape, of x [n, tokens, c]."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x)
    parts = [function(part) for part in x.flatten(0, 1).split(CPU_TOKENS)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x.shape)
