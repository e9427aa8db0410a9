"""What the networks promise beyond parity with the originals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelscope_i2v.errors import InputError
from modelscope_i2v.families import FAMILIES
from modelscope_i2v.networks import attention
from modelscope_i2v.networks.attention import Attention, use_kernel
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.config import AutoencoderConfig, STUNetConfig
from modelscope_i2v.networks.layers import cast, float32_names, sinusoidal_embedding
from modelscope_i2v.networks.stunet import STUNet

SMALL = {
    "dim": 32,
    "dim_mult": (1, 1, 1, 1),
    "head_dim": 16,
    "num_heads": 2,
    "context_dim": 24,
    "res_blocks": 1,
}


@pytest.mark.parametrize(
    ("task", "parameters"),
    [
        ("image-to-video", 1_419_907_204),
        ("video-to-video", 1_411_387_204 + 0),
        ("text-to-video-synthesis", 1_411_387_204 + 0),
    ],
)
def test_full_size_networks_have_the_hubs_sizes(task, parameters):
    with torch.device("meta"):
        network = STUNet(FAMILIES[task].unet)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(parameters, rel=0.02)
    assert len(network.state_dict()) == {"image-to-video": 1488, "i2vgen-xl": 1509}.get(task, 1480)


@given(st.integers(1, 200), st.integers(1, 200), st.booleans())
def test_canvas_is_the_smallest_size_that_fits(height, width, extra_rows):
    config = STUNetConfig(extra_rows=extra_rows)
    rows, columns = config.canvas(height, width)
    assert config.canvas(rows, columns) == (rows, columns)
    assert rows >= height and columns >= width and columns - width < 8
    assert rows % 8 == (2 if extra_rows else 0)
    assert rows - height < 8 or rows == 2


@pytest.mark.parametrize("extra_rows", [False, True])
def test_network_keeps_its_canvas_and_refuses_others(extra_rows):
    network = STUNet(STUNetConfig(extra_rows=extra_rows, **SMALL)).eval()
    y, t = torch.randn(1, 5, 24), torch.tensor([3])
    for wish in ((1, 1), (9, 9), (17, 20)):
        size = network.config.canvas(*wish)
        latents = torch.randn(1, 4, 2, *size)
        with torch.no_grad():
            assert network(latents, t, y).shape == latents.shape
    with pytest.raises(ValueError, match="next size"):
        network(torch.randn(1, 4, 2, 9, 9), t, y)


def test_attention_splits_what_a_gpu_kernel_cannot_take(monkeypatch):
    module = Attention(32, 32, heads=4, head_dim=8)
    x = torch.randn(50, 6, 32)
    whole = module(x)
    seen = []

    def kernel(q, k, v):
        seen.append(q.shape[0] * q.shape[1])
        return attention.sdpa(q, k, v)

    monkeypatch.setattr(attention, "MAX_BATCH_HEADS", 35)
    module.kernel = kernel
    assert torch.allclose(module(x), whole, atol=1e-6)
    assert len(seen) == 7 and max(seen) <= 35


def test_unknown_or_missing_attention_kernels_are_told():
    with pytest.raises(InputError, match="'sdpa' or 'xformers'"):
        use_kernel(torch.nn.Identity(), "flash")


def test_cast_leaves_norms_in_fp32_and_comes_back_exactly():
    network = STUNet(STUNetConfig(**SMALL)).half().float()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cast(network, torch.bfloat16)
    kept = float32_names(network)
    assert kept and all(
        (parameter.dtype == torch.float32) == (name in kept) for name, parameter in network.named_parameters()
    )
    cast(cast(network.float(), torch.float16), torch.float32)
    assert before.keys() == network.state_dict().keys()


def test_sinusoidal_embedding_of_odd_width_ends_in_zero():
    embedding = sinusoidal_embedding(torch.tensor([0, 5]), 7)
    assert embedding.shape == (2, 7) and (embedding[:, -1] == 0).all()
    assert torch.equal(embedding[0, :3], torch.ones(3))


def test_frames_of_one_sample_do_not_touch_another():
    network = STUNet(STUNetConfig(**SMALL)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else None
    latents, y = torch.randn(2, 4, 3, 32, 32), torch.randn(2, 5, 24)
    t = torch.tensor([10, 700])
    with torch.no_grad():
        both = network(latents, t, y)
        alone = network(latents[1:], t[1:], y[1:])
        other = network(latents[1:], t[1:], y[:1])
    assert torch.allclose(both[1:], alone, atol=1e-5)
    assert not torch.allclose(alone, other, atol=1e-4)


def test_posterior_sample_follows_its_moments():
    network = AutoencoderKL(AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)).eval()
    with torch.no_grad():
        posterior = network.encode(torch.rand(1, 3, 16, 16) * 2 - 1)
    zero = torch.zeros_like(posterior.mean)
    assert posterior.mean.shape == (1, 4, 8, 8)
    assert torch.equal(posterior.sample(zero), posterior.mean)
    spread = posterior.sample(zero + 1) - posterior.mean
    assert torch.allclose(spread, (0.5 * posterior.logvar).exp(), atol=1e-5)
