"""The layers that networks are made of: parameters with the files' names, computed by :mod:`.ops`."""

from __future__ import annotations

from torch import Tensor, nn

from . import ops


class Linear(nn.Linear):
    """A linear layer: [..., i] → [..., o]."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class Pointwise(nn.Conv1d):
    """A linear layer that the files have as a 1×1 ``Conv1d``: [..., i] → [..., o]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight.squeeze(-1), self.bias)


class Conv2d(nn.Conv2d):
    """A convolution of each frame: [n, i, h, w] → [n, o, h', w']."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class FrameConv(nn.Conv3d):
    """A ``Conv3d`` as the files have it, (3, 1, 1), over each pixel's frames: [b, i, f, n] → [b, o, f, n]."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.frame_conv(x, self.weight, self.bias, self.padding[0])


class GroupNorm(nn.GroupNorm):
    """Group norm with 32 groups, in fp32; ``silu``: with the activation behind it."""

    def __init__(self, channels: int, eps: float = 1e-5, silu: bool = False) -> None:
        super().__init__(32, channels, eps=eps)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        return ops.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, self.silu)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last dimension, in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)
