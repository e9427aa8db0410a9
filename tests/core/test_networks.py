"""What the networks promise beyond parity with the originals."""

import contextlib
import os
import platform
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle.compare import relative_rms
from small_unet import predicted
from torch.utils._python_dispatch import TorchDispatchMode

import modelscope_i2v
from modelscope_i2v.compute import attention, ops
from modelscope_i2v.compute.attention import use_kernel
from modelscope_i2v.compute.formats import cast, float32_names
from modelscope_i2v.compute.layers import Linear
from modelscope_i2v.compute.ops import linear
from modelscope_i2v.errors import InputError
from modelscope_i2v.memory.allocator import kept_memory
from modelscope_i2v.networks import autoencoder, local_image
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.blocks import Attention, FeedForward, SpatialTransformer
from modelscope_i2v.networks.stunet import STUNet, sinusoidal_embedding
from modelscope_i2v.spec.families import FAMILIES
from modelscope_i2v.spec.network import AutoencoderConfig, STUNetConfig

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


class Called(TorchDispatchMode):
    """The names of the operations that run within it."""

    def __enter__(self):
        self.names = set()
        return super().__enter__()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(str(operation))
        return operation(*args, **(kwargs or {}))


ONEDNN = "mkldnn._linear_pointwise.default"


@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (0, 24), (24,)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_in_fp32_are_onednns_and_compute_what_pytorchs_do(shape, bias):
    layer, x = Linear(24, 7, bias=bias).requires_grad_(False), torch.randn(shape)
    with Called() as called:
        result = layer(x)
    assert (ONEDNN in called.names) == torch.backends.mkldnn.is_available()
    torch.testing.assert_close(result, torch.nn.functional.linear(x, layer.weight, layer.bias))
    across = torch.randn(24, 9).T  # another order in memory
    torch.testing.assert_close(layer(across), torch.nn.functional.linear(across, layer.weight, layer.bias))


def test_linear_layers_keep_gradients_autocast_and_types():
    layer, x = Linear(24, 7), torch.randn(5, 24)
    layer(x).square().sum().backward()
    assert layer.weight.grad.abs().max() > 0
    y = x.clone().requires_grad_()
    linear(y, layer.weight.detach(), None).sum().backward()
    torch.testing.assert_close(y.grad, layer.weight.detach().sum(0).expand(5, 24))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.bfloat16()(x).dtype == torch.bfloat16
    assert linear(x.to("meta"), torch.empty(7, 24, device="meta"), None).shape == (5, 7)


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
            assert predicted(network, latents, t, text=y).shape == latents.shape
    with pytest.raises(ValueError, match="next size"):
        predicted(network, torch.randn(1, 4, 2, 9, 9), t, text=y)


def test_attention_splits_what_a_gpu_kernel_cannot_take(monkeypatch):
    """A batch of more than a launch's; batch times heads, as large as it may be, is none of its limits."""
    seen = []

    def kernel(q, k, v):
        seen.append(len(q))
        return attention.sdpa(q, k, v)

    monkeypatch.setitem(attention.KERNELS, "sdpa", kernel)
    for module, width in ((Attention(32, 32, heads=4, head_dim=8), 32), (local_image.Attention(), 4)):
        use_kernel(module, "sdpa")
        x = torch.randn(50, 6, width)
        whole = module(x)
        assert seen == [50]
        monkeypatch.setattr(attention, "MAX_BATCH", 35)
        assert torch.allclose(module(x), whole, atol=1e-6)
        assert seen == [50, 35, 15]
        monkeypatch.undo()
        monkeypatch.setitem(attention.KERNELS, "sdpa", kernel)
        seen.clear()


def test_the_autoencoders_attention_gives_kernels_the_order_they_take(monkeypatch):
    """In the memory order that networks have on a GPU, fused kernels refuse anything else."""
    seen = []

    def kernel(*parts):
        seen.extend(part.stride(-1) for part in parts)
        return attention.sdpa(*parts)

    monkeypatch.setitem(attention.KERNELS, "sdpa", kernel)
    autoencoder.AttnBlock(32)(torch.randn(2, 32, 4, 6))
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("cached", [1, 60, 350, 10_000])  # a row, some rows, some samples, all at a time
@pytest.mark.parametrize("keys", [5, 11])
def test_attention_in_blocks_is_attention(monkeypatch, cached, keys):
    monkeypatch.setattr(attention, "CACHED", cached)
    q, k, v = torch.randn(7, 2, 11, 8), torch.randn(7, 2, keys, 8), torch.randn(7, 2, keys, 8)
    assert torch.allclose(attention.blocked(q, k, v), attention.sdpa(q, k, v), atol=1e-6)


def test_attention_in_bf16_on_a_cpu_runs_in_blocks_but_in_training(monkeypatch):
    monkeypatch.setattr(attention, "blocked", lambda q, k, v: torch.full_like(q, 7))
    q = torch.randn(2, 2, 9, 8)
    with torch.no_grad():
        assert (attention.auto(*3 * [q.bfloat16()]) == 7).all()
        assert not (attention.auto(q, q, q) == 7).any()
    assert not (attention.auto(*3 * [q.bfloat16()]) == 7).any()


def test_networks_are_built_on_compute_and_compute_on_none():
    package = Path(modelscope_i2v.__file__).parent

    def imported(folder):
        lines = [line for path in (package / folder).glob("*.py") for line in path.read_text().splitlines()]
        return {line.split()[1].split(".")[2] for line in lines if line.strip().startswith("from ..")}

    assert imported("networks") == {"compute", "spec"}
    assert imported("compute") == {"errors"}


def test_unknown_or_missing_attention_kernels_are_told():
    with pytest.raises(InputError, match="'blocked' or 'xformers'"):
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
        both = predicted(network, latents, t, text=y)
        alone = predicted(network, latents[1:], t[1:], text=y[1:])
        other = predicted(network, latents[1:], t[1:], text=y[:1])
    assert relative_rms(both[1:], alone) < 1e-5  # another batch size rounds otherwise
    assert relative_rms(other, alone) > 1e-3


def test_posterior_sample_follows_its_moments():
    network = AutoencoderKL(AutoencoderConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)).eval()
    with torch.no_grad():
        posterior = network.encode(torch.rand(1, 3, 16, 16) * 2 - 1)
    zero = torch.zeros_like(posterior.mean)
    assert posterior.mean.shape == (1, 4, 8, 8)
    assert torch.equal(posterior.sample(zero), posterior.mean)
    spread = posterior.sample(zero + 1) - posterior.mean
    assert torch.allclose(spread, (0.5 * posterior.logvar).exp(), atol=1e-5)


def test_what_a_video_is_told_is_computed_once():
    told = {"local_image": True, "image_tokens": 2, "image_dim": 24, "fps_embedding": True}
    network = STUNet(STUNetConfig(**told, **SMALL)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else None
    conditions = {
        "text": torch.randn(2, 5, 24),
        "image_embeds": torch.randn(2, 1, 24),
        "fps": torch.tensor([8, 16]),
        "image_latents": torch.randn(2, 4, 8, 8),
    }
    once = [network.local_image_embedding, network.context_embedding, network.fps_embedding]
    once += [network.local_image_concat, network.local_temporal_encoder]
    once += [
        projection
        for module in network.modules()
        if isinstance(module, SpatialTransformer)
        for block in module.transformer_blocks
        for projection in (block.attn2.to_k, block.attn2.to_v)
    ]
    counts = dict.fromkeys(once, 0)

    def count(module, args, output):
        counts[module] += 1

    for module in once:
        module.register_forward_hook(count)
    steps = [(torch.randn(2, 4, 3, 8, 8), torch.tensor([t, t])) for t in (900, 500, 20)]
    with torch.no_grad():
        prepared = network.prepare(**conditions, frames=3)
        outs = [network(*step, prepared) for step in steps]
        assert set(counts.values()) == {1} and len(counts) > 12
        for step, out in zip(steps, outs):
            assert torch.equal(predicted(network, *step, **conditions), out)


@pytest.mark.parametrize("loop", [False, True])
def test_a_window_of_frames_has_its_planes_by_absolute_position(loop):
    still, total = torch.randn(1, 4, 2, 2), 7
    whole = local_image.over_time(still, total, loop)
    for offset, frames in ((0, 7), (0, 3), (2, 4), (6, 1)):
        window = local_image.over_time(still, frames, loop, offset, total)
        assert torch.equal(window, whole[:, :, offset : offset + frames])
    round_and_round = local_image.over_time(still, 4, loop, 5, total)
    assert torch.equal(round_and_round, whole[:, :, [5, 6, 0, 1]])

    told = {"local_image": True, "image_tokens": 2, "image_dim": 24}
    network = STUNet(STUNetConfig(**told, **SMALL)).eval()
    given = {"image_embeds": torch.randn(1, 1, 24), "image_latents": torch.randn(1, 4, 8, 8), "loop": loop}
    with torch.no_grad():
        alone = network.prepare(**given, frames=4)
        part = network.prepare(**given, frames=4, offset=2, total=total)
    assert alone.concatenated.shape == part.concatenated.shape
    assert not torch.equal(alone.concatenated, part.concatenated)
    assert alone.loop == loop and not part.loop, "a window's last frame is not the one before its first"


def test_conditions_that_are_missing_are_told():
    told = {"local_image": True, "image_tokens": 2, "image_dim": 24, "fps_embedding": True}
    with pytest.raises(ValueError, match="trained with image_embeds, fps, image_latents, frames, which"):
        STUNet(STUNetConfig(**told, **SMALL)).prepare(text=torch.randn(1, 5, 24))
    with pytest.raises(ValueError, match="trained with text, which"):
        STUNet(STUNetConfig(**SMALL)).prepare()


def test_training_keeps_nothing_of_the_context():
    network = STUNet(STUNetConfig(**SMALL)).eval()
    prepared = network.prepare(text=torch.randn(1, 5, 24))
    step = torch.randn(1, 4, 2, 8, 8), torch.tensor([3])
    for _ in range(2):  # the second would fail on a graph that the first has freed
        network(*step, prepared).square().mean().backward()


def test_feed_forward_by_rows_is_the_whole(monkeypatch):
    layer = FeedForward(32, dropout=0.0)
    x = torch.randn(3, 50, 32)
    monkeypatch.setattr(ops, "CPU_TOKENS", 16)
    seen = []
    layer.net.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    with torch.no_grad():
        by_rows = layer(x)
    assert max(seen) == 16 and sum(seen) == 150
    assert torch.allclose(by_rows, layer(x), atol=1e-6)  # with gradients, in one


def test_memory_layout_of_the_input_does_not_matter():
    network = STUNet(STUNetConfig(**SMALL)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim > 1 else None
    latents, t, y = torch.randn(2, 4, 3, 8, 16), torch.tensor([3, 8]), torch.randn(2, 5, 24)
    strange = latents.permute(4, 1, 0, 3, 2).contiguous().permute(2, 1, 4, 3, 0)
    with torch.no_grad():
        assert torch.equal(predicted(network, strange, t, text=y), predicted(network, latents, t, text=y))


def test_memory_is_kept_for_the_next_tensors_and_handed_back():
    """glibc gives a large block back at once by default; inside it stays, and afterwards it goes."""
    cpu, size = torch.device("cpu"), 64 * 2**20

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with contextlib.suppress(ValueError), kept_memory(cpu), kept_memory(cpu):
        raise ValueError
    if sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc":
        before = resident()
        with kept_memory(cpu):
            with kept_memory(cpu):
                torch.ones(size, dtype=torch.uint8)
            assert resident() - before > size * 0.9
        assert resident() - before < size * 0.5
    with kept_memory(torch.device("meta")):
        pass
