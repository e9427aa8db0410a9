"""Small networks and LoRAs for them, by PEFT."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from checkpoints_factory import WIDTH, configs, random_state
from torch import Tensor, nn

from modelscope_i2v.adapters.lora import add_lora, save_lora
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.spec.network import STUNetConfig


@functools.cache
def _state(sizes: STUNetConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = STUNet(sizes)
    return random_state(network)


def _network(family: str) -> STUNet:
    sizes = dataclasses.replace(configs(family).unet, dim=32, dim_mult=(1, 2), attn_scales=(1, 0.5))
    with torch.device("meta"):
        network = STUNet(sizes)
    network.load_state_dict(_state(sizes), assign=True)  # which is far faster than a copy
    return network.eval().requires_grad_(False)


@pytest.fixture
def unet() -> Callable[[str], STUNet]:
    """A family's small network; a new one with the same weights for each call."""
    return lambda family="i2vgen-xl": _network(family)


@pytest.fixture
def inputs() -> Callable[[STUNet], dict[str, Tensor]]:
    """What a network takes: 2 frames of 8×8 latents, the same each time."""

    def of(network: STUNet) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        random = functools.partial(torch.randn, generator=generator)
        config = network.config
        given = {"latents": random(1, 4, 2, 8, 8), "timesteps": torch.tensor([500])}
        if not config.image_tokens or config.local_image:
            given["text"] = random(1, 77, config.context_dim)
        if config.image_tokens:
            given["image_embeds"] = random(1, 1, WIDTH)
        if config.fps_embedding:
            given["fps"] = torch.tensor([8])
        if config.local_image:
            given["image_latents"] = random(1, 4, 8, 8)
        return given

    return of


@pytest.fixture(scope="session")
def learned() -> Callable[..., nn.Module]:
    """Gives the adapters in a network values that they could have after training."""

    def of(network: nn.Module, seed: int = 0) -> nn.Module:
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        return network

    return of


@pytest.fixture
def trained(unet: Callable[[str], STUNet], learned: Callable[..., nn.Module]) -> Callable[..., STUNet]:
    """A network with PEFT's adapters in it."""

    def of(family: str = "i2vgen-xl", seed: int = 0, targets: Sequence[str] | None = None) -> STUNet:
        torch.manual_seed(seed)
        return learned(add_lora(unet(family), 4, 8, targets), seed).eval()

    return of


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, learned: Callable[..., nn.Module]) -> Path:
    """A LoRA for I2VGen-XL's small network, of the first attention's queries only. Not to be changed."""
    network = add_lora(_network("i2vgen-xl"), 4, 8, ["attn1.to_q"])
    return save_lora(learned(network), tmp_path_factory.mktemp("small") / "a")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
