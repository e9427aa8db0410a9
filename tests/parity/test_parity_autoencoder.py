"""The autoencoder against stock's, both ways, on the same weights."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from checkpoints_factory import configs, random_state
from oracle.compare import relative_rms
from oracle.networks import stock_autoencoder
from torch import nn

from modelscope_i2v.memory.tiling import tiled_decode, tiled_encode
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.spec.families import TASKS
from modelscope_i2v.spec.network import AutoencoderConfig

SMALL = configs("image-to-video").autoencoder
SIZES = {
    "small": SMALL,
    "two blocks": dataclasses.replace(SMALL, ch_mult=(1, 2), num_res_blocks=2),
}
LIMIT = 1e-5


@functools.cache
def both(size: str, task: str) -> tuple[AutoencoderKL, nn.Module]:
    ours = AutoencoderKL(SIZES[size]).eval().requires_grad_(False)
    ours.load_state_dict(random_state(ours), strict=True)
    return ours, stock_autoencoder(SIZES[size], ours.state_dict(), task)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 80), (96, 16)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_encoding_equals_stock(task, size, height, width):
    ours, theirs = both(size, task)
    pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        posterior, expected = ours.encode(pixels), theirs.encode(pixels)
    assert relative_rms(posterior.mean, expected.mean) <= LIMIT
    assert relative_rms(posterior.logvar, expected.logvar) <= LIMIT


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 10), (12, 2)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_decoding_equals_stock(task, size, height, width):
    ours, theirs = both(size, task)
    latents = 5 * torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative_rms(ours.decode(latents), theirs.decode(latents)) <= LIMIT


@pytest.mark.parametrize("tile", [64, 96])
@pytest.mark.parametrize("size", SIZES)
def test_tiles_equal_stock(size, tile):
    ours, theirs = both(size, "image-to-video")
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, 3, 128, 160, generator=generator) * 2 - 1
    latents = 5 * torch.randn(2, 4, 16, 20, generator=generator)
    with torch.no_grad():
        posterior, expected = tiled_encode(ours, pixels, tile), theirs.encode(pixels)
        assert relative_rms(tiled_decode(ours, latents, tile), theirs.decode(latents)) <= LIMIT
    assert relative_rms(posterior.mean, expected.mean) <= LIMIT
    assert relative_rms(posterior.logvar, expected.logvar) <= LIMIT


def test_a_sample_of_the_posterior_equals_stock():
    ours, theirs = both("small", "video-to-video")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        posterior, expected = ours.encode(pixels), theirs.encode(pixels)
    torch.manual_seed(5)
    drawn = expected.sample()
    torch.manual_seed(5)
    assert relative_rms(posterior.sample(torch.randn(posterior.mean.shape)), drawn) <= LIMIT


def test_extreme_variances_are_clamped_as_in_stock():
    ours, theirs = both("small", "video-to-video")
    pixels = 1e4 * torch.ones(1, 3, 16, 16)
    weights = {key: 1e3 * value if "quant_conv" in key else value for key, value in ours.state_dict().items()}
    ours = AutoencoderKL(SMALL).eval().requires_grad_(False)
    ours.load_state_dict(weights)
    theirs = stock_autoencoder(SMALL, weights, "video-to-video")
    with torch.no_grad():
        posterior, expected = ours.encode(pixels), theirs.encode(pixels)
    assert float(expected.logvar.max()) == 20 or float(expected.logvar.min()) == -30
    assert relative_rms(posterior.logvar, expected.logvar) <= LIMIT


def test_keys_and_shapes_at_full_size_are_stocks():
    from oracle import networks, stock

    with torch.device("meta"):
        ours = AutoencoderKL(AutoencoderConfig()).state_dict()
        cls = stock.model_module("image-to-video").AutoencoderKL
        theirs = cls(networks.ddconfig(AutoencoderConfig()), 4).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}
