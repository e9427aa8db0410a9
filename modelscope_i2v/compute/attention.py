"""Attention, and the one place where its kernel is chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..networks.layers import Linear

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention of q [b, h, n, d] over k and v [b, h, m, d], scaled by d^-0.5: [b, h, n, d]."""

MAX_BATCH_HEADS = 65_535
"""The largest batch × heads that GPU kernels take in one launch (the limit of a CUDA grid's y and z)."""

CACHED = 1 << 21
"""Attention weights that :func:`blocked` has at a time: 4 MB in bf16."""


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own kernels: flash, memory-efficient or plain, whatever suits device and type."""
    return F.scaled_dot_product_attention(q, k, v)


def in_launches(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A kernel over so many samples at a time as a GPU takes in one launch."""
    rows = max(MAX_BATCH_HEADS // q.shape[1], 1)
    if len(q) <= rows:
        return kernel(q, k, v)
    return torch.cat([kernel(*part) for part in zip(q.split(rows), k.split(rows), v.split(rows))])


def blocked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Matrix products over so many rows at a time that the weights between them stay in a CPU's cache.

    Scores are rounded to the inputs' type. PyTorch's flash kernel keeps them in fp32, and in bf16 on a CPU
    multiplies at the rate of fp32 too: this is twice as fast.
    """
    if torch.compiler.is_compiling():
        return _opaque(q, k, v)
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
def _opaque(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """:func:`blocked` as one operation of a graph, which knows no loops."""
    return blocked(q, k, v)


@_opaque.register_fake
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


class Attention(nn.Module):
    """Multi-head attention, over the input itself or over a context.

    Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762).
    """

    kernel: Kernel = staticmethod(auto)

    def __init__(self, dim: int, context_dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = Linear(dim, inner, bias=False)
        self.to_k = Linear(context_dim, inner, bias=False)
        self.to_v = Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(Linear(inner, dim))

    def forward(self, x: Tensor, keys: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """x: [b, n, dim]; keys and values as :meth:`keys_values` has them, of x itself if None.

        Returns [b, n, dim].
        """
        x = x.to(self.to_q.weight.dtype)
        q = self._heads(self.to_q(x))
        k, v = self.keys_values(x) if keys is None else (keys, values)
        return self.to_out(in_launches(self.kernel, q, k, v).transpose(1, 2).flatten(2))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Of a context [b, m, context_dim]: each [b, heads, m, head_dim]."""
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def use_kernel(network: nn.Module, name: str) -> nn.Module:
    """Makes every :class:`Attention` in ``network`` use the kernel of that name; returns the network.

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
        if isinstance(module, Attention):
            module.kernel = KERNELS[name]
    return network
