"""The trained network: initialisation, gradient checkpointing, the moving average of its weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checkpoints.tensors import read_tensors, select
from ..compute.wrapping import Order, wrap
from ..errors import InputError
from ..networks.blocks import ResBlock, SpatialTransformer, TemporalConv, TemporalTransformer
from ..networks.stunet import STUNet
from ..spec.network import STUNetConfig


def new_network(config: STUNetConfig, seed: int) -> STUNet:
    """A new U-Net, fp32, in training mode, whose residual branches end in a zero layer, as in the originals.

    The output layer is zero too: the first prediction is zero, the mean of all targets.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = STUNet(config)
    last: list[nn.Module] = [network.out[-1]]
    for module in network.modules():
        if isinstance(module, ResBlock):
            last.append(module.out_layers[-1])
        elif isinstance(module, TemporalConv):
            last.append(module.conv4[-1])
        elif isinstance(module, (SpatialTransformer, TemporalTransformer)):
            last.append(module.proj_out)
    for module in last:
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    return network.train()


def load_matching(network: nn.Module, path: str | Path) -> tuple[int, int]:
    """Loads the tensors of a weights file that match the network's by name and shape.

    Returns the number of these tensors and of all tensors of the network. Raises InputError if none matches.
    """
    own = network.state_dict()
    given = select(read_tensors(path).tensors, own)
    fitting = {key: tensor for key, tensor in given.items() if key in own and own[key].shape == tensor.shape}
    if not fitting:
        raise InputError(f"initial_weights: no tensor in {path} fits this network by name and shape.")
    with torch.no_grad():
        for key, tensor in fitting.items():
            own[key].copy_(tensor)
    return len(fitting), len(own)


def in_memory(network: STUNet) -> STUNet:
    """Copies the parameters into memory: loaded ones may belong to a mapped file."""
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()
    return network


def checkpoint_gradients(network: STUNet) -> None:
    """Gradient checkpointing: each stage keeps only its input and recomputes its activations backwards."""
    for stage in (*network.input_blocks, network.middle_block, *network.output_blocks):
        wrap(stage, Order.CHECKPOINTING, functools.partial(checkpoint, use_reentrant=False))


class InOneCall(nn.Module):
    """A U-Net that prepares its conditions at every call, whose gradients then reach all weights."""

    def __init__(self, unet: STUNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, timesteps: Tensor, **conditions: Tensor) -> Tensor:
        """As :meth:`STUNet.forward`; ``conditions`` are :meth:`STUNet.prepare`'s."""
        prepared = self.unet.prepare(**conditions, frames=latents.shape[2])
        return self.unet(latents, timesteps, prepared)


class EMA:
    """The exponential moving average of parameters.

    The decay at update n is min(decay, (1 + n) / (10 + n)), so that the initial weights soon lose influence.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.live = dict(parameters)
        self.values = {name: value.detach().clone() for name, value in self.live.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.values.values()), [v.detach() for v in self.live.values()], 1 - decay)

    def load(self, values: dict[str, Tensor], updates: int) -> None:
        self.updates = updates
        for name, value in values.items():
            self.values[name].copy_(value)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the network has the averaged weights."""
        kept = {name: value.detach().clone() for name, value in self.live.items()}
        try:
            self._put(self.values)
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.live[name].copy_(value)
