"""AdamW and Muon."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .config import TrainConfig

SMALLEST = 16
"""AdamW updates matrices with fewer rows or columns, such as the first convolution's."""
RMS = 0.6
"""Root mean square of Muon's update at a learning rate of 1; about that of AdamW."""


def optimizers(config: TrainConfig, network: nn.Module) -> list[torch.optim.Optimizer]:
    """The configured optimizers, one or two, for the parameters that require a gradient.

    Vectors, that is, norms and biases, have no weight decay.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    muon = [p for p in matrices if config.optimizer == "muon" and min(p.flatten(1).shape) >= SMALLEST]
    taken = {id(parameter) for parameter in muon}
    groups = [
        {"params": [p for p in matrices if id(p) not in taken], "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = trained[0].device.type in ("cpu", "cuda")
    made: list[torch.optim.Optimizer] = []
    if groups := [group for group in groups if group["params"]]:
        made.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused))
    if muon:
        made.append(Muon(muon, lr=config.lr, weight_decay=config.weight_decay))
    return made


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates, whose singular values are all about 1.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); updates are scaled to
    a given root mean square, after Liu et al., "Muon is Scalable for LLM Training" (arXiv:2502.16982). A
    convolution's weight [o, i, …] is taken as the matrix [o, i·…]; PyTorch's own Muon takes matrices only.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            shapes: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._momentum(parameter, group["momentum"]).flatten(1)
                    shapes.setdefault(update.shape, []).append((parameter, update))
            for shape, members in shapes.items():
                updates = orthogonal(torch.stack([update for _, update in members]))
                far = -group["lr"] * RMS * math.sqrt(max(shape))
                for (parameter, _), update in zip(members, updates):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.reshape(parameter.shape), alpha=far)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The update with Nesterov momentum."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """The matrices [n, o, i] with their singular values brought to about 1 (0.7 … 1.2).

    A Newton-Schulz iteration in bf16, with Muon's coefficients.
    """
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)
