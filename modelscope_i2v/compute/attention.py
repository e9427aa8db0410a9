"""Attention, and the one place where its kernel is chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of q [b, h, n, d] over k and v [b, h, m, d], scaled by d^-0.5: [b, h, n, d]."""

MAX_BATCH = 65_535
"""The largest batch that GPU kernels take in one launch: the limit of a CUDA grid's y and z, where they have
batch and heads, each for itself."""

CACHED = 1 << 21
"""Attention weights that :func:`blocked` has at a time: 4 MB in bf16."""


def attention(q: Tensor, k: Tensor, v: Tensor, kernel: str = "auto") -> Tensor:
    """Attention by one of :data:`KERNELS`, as :data:`Kernel` has it, in as few launches as a GPU takes."""
    if len(q) <= MAX_BATCH:
        return KERNELS[kernel](q, k, v)
    in_a_graph = torch.compiler.is_compiling() and not torch.is_grad_enabled()
    return (_launches_in_a_graph if in_a_graph else _launches)(q, k, v, kernel)


def _launches(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> Tensor:
    parts = zip(*(tensor.split(MAX_BATCH) for tensor in (q, k, v)))
    return torch.cat([KERNELS[kernel](*part) for part in parts])


@torch.library.custom_op("modelscope_i2v::attention_launches", mutates_args=())
def _launches_in_a_graph(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> Tensor:
    """:func:`_launches` as one operation of a graph, or each number of launches would be one of its own."""
    return _launches(q, k, v, kernel).contiguous()


@_launches_in_a_graph.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> Tensor:
    return q.new_empty(q.shape)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own kernels: flash, memory-efficient or plain, whatever suits device and type."""
    return F.scaled_dot_product_attention(q, k, v)


def blocked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Matrix products over so many rows at a time that the weights between them stay in a CPU's cache.

    Scores are rounded to the inputs' type. PyTorch's flash kernel keeps them in fp32, and in bf16 on a CPU
    multiplies at the rate of fp32 too: this is twice as fast.
    """
    if torch.compiler.is_compiling():
        return _blocked_in_a_graph(q, k, v)
    (batch, heads, queries, dim), keys = q.shape, k.shape[2]
    out = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    rows = min(max(CACHED // (heads * keys), 1), queries)
    samples = max(CACHED // (heads * keys * rows), 1)
    q, k = q * dim**-0.5, k.transpose(-1, -2)
    for sample in range(0, batch, samples):
        part = slice(sample, sample + samples)
        for row in range(0, queries, rows):
            weights = (q[part, :, row : row + rows] @ k[part]).softmax(dim=-1)
            out[part, :, row : row + rows] = weights @ v[part]
    return out


@torch.library.custom_op("modelscope_i2v::blocked_attention", mutates_args=())
def _blocked_in_a_graph(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """:func:`blocked` as one operation of a graph, which knows no loops."""
    return blocked(q, k, v)


@_blocked_in_a_graph.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.transpose(1, 2).shape).transpose(1, 2)


def auto(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """:func:`blocked` in bf16 on a CPU, :func:`sdpa` everywhere else and in training."""
    on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    return (blocked if on_cpu and not torch.is_grad_enabled() else sdpa)(q, k, v)


def matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two matrix products and a softmax in fp32: backwards in bf16 on a CPU, several times faster."""
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


def xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """xFormers' memory-efficient attention, which the originals use."""
    from xformers.ops import memory_efficient_attention

    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return memory_efficient_attention(q, k, v).transpose(1, 2)


KERNELS: dict[str, Kernel] = {
    "auto": auto,
    "sdpa": sdpa,
    "blocked": blocked,
    "xformers": xformers,
    "matmul": matmul,
}
"""The attention kernels by name."""


def use_kernel(network: nn.Module, name: str) -> nn.Module:
    """Makes every layer with a ``kernel`` in ``network`` use the one of that name; returns the network.

    Raises InputError for a name that is not in :data:`KERNELS` or whose package is not installed.
    """
    if name not in KERNELS:
        raise InputError(f"attention={name!r} is not known; it can be {' or '.join(map(repr, KERNELS))}.")
    if name == "xformers":
        try:
            import xformers.ops  # noqa: F401
        except ImportError as error:
            raise InputError(
                "attention='xformers' needs the package xformers: pip install modelscope-i2v[xformers]."
            ) from error
    for module in network.modules():
        if hasattr(module, "kernel"):
            module.kernel = name
    return network
