"""The U-Nets against stock's, on the same weights."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from checkpoints_factory import configs, random_state
from oracle.compare import relative_rms
from oracle.networks import build_unet, stock_unet
from small_unet import predicted
from torch import Tensor, nn

from modelscope_i2v.compute.formats import cast
from modelscope_i2v.memory.chunking import chunked
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.spec.families import FAMILIES, TASKS
from modelscope_i2v.spec.network import STUNetConfig

TOKENS = 7
LIMIT = 1e-5


def small(task: str) -> STUNetConfig:
    """Four levels, as the hub's, with attention on three of them; one residual block."""
    return configs(task).unet


def shallow(task: str) -> STUNetConfig:
    """Two levels, attention on the first and in the middle only, two residual blocks."""
    return dataclasses.replace(
        small(task), dim_mult=(1, 3), res_blocks=2, attn_scales=(1.0,), num_heads=2, head_dim=32
    )


SIZES = {"small": small, "shallow": shallow}


@functools.cache
def both(task: str, size: str) -> tuple[nn.Module, nn.Module]:
    """Ours and stock's with the same weights."""
    config = SIZES[size](task)
    state = random_state(build_unet(task, config))
    ours = STUNet(config).eval().requires_grad_(False)
    ours.load_state_dict(state, strict=True)
    return ours, stock_unet(task, config, state)


def inputs(config: STUNetConfig, batch: int, frames: int, height: int, width: int, seed: int = 0) -> list:
    """Latents, timesteps, conditions; every sample of the batch has its own."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, config.in_dim, frames, height, width, generator=generator)
    timesteps = torch.randint(0, 1000, (batch,), generator=generator)
    if config.image_tokens:
        conditions = {"image_embeds": torch.randn(batch, 1, config.image_dim, generator=generator)}
    else:
        conditions = {"text": torch.randn(batch, TOKENS, config.context_dim, generator=generator)}
    if config.fps_embedding:
        conditions["fps"] = torch.randint(1, 60, (batch,), generator=generator)
    return [latents, timesteps, conditions]


def run(network: nn.Module, given: list) -> Tensor:
    latents, timesteps, conditions = given
    with torch.no_grad():
        if isinstance(network, STUNet):
            return predicted(network, latents, timesteps, **conditions)
        return network(latents, timesteps, **stocks(conditions))


def stocks(conditions: dict[str, Tensor]) -> dict[str, Tensor]:
    """The conditions as stock calls them: text and image are both ``y``."""
    return {{"text": "y", "image_embeds": "y"}.get(name, name): value for name, value in conditions.items()}


@pytest.mark.parametrize(
    ("batch", "frames", "height", "width"),
    [(2, 1, 16, 16), (2, 3, 16, 24), (1, 5, 24, 16), (1, 2, 32, 16), (3, 4, 16, 16)],
)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_unet_equals_stock(task, size, batch, frames, height, width):
    """Down to 2×2 pixels: norms over a pixel or two would blow rounding up to anything."""
    ours, theirs = both(task, size)
    if ours.config.extra_rows:
        height += 2
    given = inputs(ours.config, batch, frames, height, width)
    assert relative_rms(run(ours, given), run(theirs, given)) <= LIMIT


@pytest.mark.parametrize("tokens", [20, 500])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_unet_in_parts_equals_stock(task, size, tokens):
    ours, theirs = both(task, size)
    given = inputs(ours.config, 2, 3, 18 if ours.config.extra_rows else 16, 24)
    with chunked(ours, tokens):
        found = run(ours, given)
    assert relative_rms(found, run(theirs, given)) <= LIMIT


@pytest.mark.parametrize("timestep", [0, 1, 500, 999])
@pytest.mark.parametrize("task", TASKS)
def test_every_timestep_equals_stock(task, timestep):
    ours, theirs = both(task, "shallow")
    given = inputs(ours.config, 1, 2, 18 if ours.config.extra_rows else 16, 16)
    given[1] = torch.tensor([timestep])
    assert relative_rms(run(ours, given), run(theirs, given)) <= LIMIT


@pytest.mark.parametrize("height", [10, 18, 26, 34])
def test_video_to_video_levels_have_stocks_rows(height):
    ours, theirs = both("video-to-video", "small")
    given = inputs(ours.config, 1, 2, height, 16)
    assert relative_rms(run(ours, given), run(theirs, given)) <= LIMIT


@pytest.mark.parametrize("task", TASKS)
def test_keys_and_shapes_at_full_size_are_stocks(task):
    with torch.device("meta"):
        ours = STUNet(FAMILIES[task].unet).state_dict()
        theirs = build_unet(task, FAMILIES[task].unet).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("task", TASKS)
def test_every_weight_and_input_takes_part_in_the_comparison(task):
    """With these weights no layer of stock is dead, so none of ours is compared in vain."""
    config = small(task)
    network = build_unet(task, config)
    network.load_state_dict(random_state(network))
    given = inputs(config, 1, 3, 18 if config.extra_rows else 16, 16)
    given[0].requires_grad_()
    conditions = stocks(given[2])
    conditions["y"].requires_grad_()
    output = network(given[0], given[1], **conditions)
    output.square().sum().backward()
    largest = max(float(p.grad.abs().max()) for p in network.parameters())
    dead = [n for n, p in network.named_parameters() if float(p.grad.abs().max()) < 1e-7 * largest]
    assert not dead
    assert float(given[0].grad.abs().max()) > 1e-4
    assert float(conditions["y"].grad.abs().max()) > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("task", TASKS)
def test_reduced_precision_is_no_worse_than_stock_under_autocast(task, dtype):
    ours, theirs = both(task, "small")
    reduced = STUNet(ours.config).eval().requires_grad_(False)
    reduced.load_state_dict(ours.state_dict())
    cast(reduced, dtype)
    errors = {"ours": [], "stock's": []}
    for seed in range(4):
        given = inputs(ours.config, 1, 3, 18 if ours.config.extra_rows else 16, 16, seed)
        exact = run(theirs, given)
        with torch.autocast("cpu", dtype=dtype):
            errors["stock's"].append(relative_rms(run(theirs, given), exact))
        errors["ours"].append(relative_rms(run(reduced, given), exact))
    assert sum(errors["ours"]) <= sum(errors["stock's"]), errors
    assert sum(errors["ours"]) > 0
