"""Compiled blocks: the same output, in one graph a kind of block, whatever the size."""

from __future__ import annotations

import functools

import pytest
import torch
from oracle.compare import relative_rms
from small_unet import small_unet

from modelscope_i2v.adapters.branches import Branch, attach, branches, detach
from modelscope_i2v.compute import attention, compilation
from modelscope_i2v.compute.attention import use_kernel
from modelscope_i2v.compute.compilation import check_compiler, compile_blocks
from modelscope_i2v.compute.formats import cast
from modelscope_i2v.embedded import model_directory
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.errors import InputError
from modelscope_i2v.memory.placement import Placement
from modelscope_i2v.networks.blocks import Attention

KINDS = 4
"""Residual blocks of two widths, and both transformers."""


class Graphs(list):
    """A backend that compiles nothing and keeps the graphs that it was given."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return graph.forward


def network():
    return small_unet(dim_mult=(1,))


@torch.inference_mode()
def evaluated(unet, batch=2, frames=8, height=8, width=8, loop=False):
    noise = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, frames, height, width, generator=noise)
    text = torch.randn(batch, 5, unet.config.context_dim, generator=noise)
    prepared = unet.prepare(text=text, loop=loop)
    unet(latents, torch.full((batch,), 900), prepared)  # now the context's keys and values are there
    return unet(latents, torch.full((batch,), 500), prepared)


def same(unet, **size):
    """Whether compiled blocks compute what they are written to; nothing is rounded otherwise here."""
    with torch.compiler.set_stance("force_eager"):
        wanted = evaluated(unet, **size)
    return torch.equal(evaluated(unet, **size), wanted)


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        (torch.float32, [(9, 16, 8), (32, 8, 24), (16, 16, 16), (8, 32, 16)]),
        (torch.bfloat16, [(9, 16, 8), (12, 8, 24), (3, 16, 16), (2, 32, 16)]),  # which many CPUs emulate
    ],
    ids=["fp32", "bf16"],
)
def test_one_graph_a_kind_serves_all_frames_heights_and_widths(dtype, sizes):
    unet, graphs = cast(network(), dtype), Graphs()
    compile_blocks(unet, graphs)
    assert same(unet) and len(graphs) == KINDS
    for frames, height, width in sizes:
        assert same(unet, frames=frames, height=height, width=width)
    assert len(graphs) == KINDS


def test_one_frame_one_branch_and_loops():
    unet = compile_blocks(network(), Graphs())
    for size in ({"frames": 1}, {"batch": 1}, {"batch": 1, "frames": 1, "width": 2}, {"loop": True}):
        assert same(unet, **size)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_generated_code_computes_the_same(dtype, most):
    unet = cast(network(), dtype)
    compile_blocks(unet.middle_block)
    for size in ({}, {"frames": 11, "height": 16, "width": 24}):
        with torch.compiler.set_stance("force_eager"):
            wanted = evaluated(unet, **size)
        assert 0 < relative_rms(evaluated(unet, **size), wanted) < most


def lora(scale):
    noise = torch.Generator().manual_seed(2)

    def branch(rank, inner, out):
        down, up = (torch.randn(*shape, generator=noise) for shape in ((rank, *inner), (out, rank)))
        return Branch("small", 0.1 * down, up.view(out, rank, *[1] * (len(inner) - 1)), 1.0, scale)

    return branch


def adapt(unet, scale):
    residual, spatial, _ = unet.input_blocks[1]
    attach(residual.in_layers[2], lora(scale)(4, (32, 3, 3), 32))
    attach(residual.temopral_conv.conv1[-1], lora(scale)(4, (32, 3, 1, 1), 32))
    attach(spatial.transformer_blocks[0].attn1.to_q, lora(scale)(4, (32,), 32))


def test_loras_before_and_after():
    unet, graphs = network(), Graphs()
    plain = evaluated(unet)
    adapt(unet, 0.5)
    half = evaluated(unet)
    compile_blocks(unet, graphs)
    assert torch.equal(evaluated(unet), half) and not torch.equal(half, plain)
    detach(unet)
    assert torch.equal(evaluated(unet), plain)
    count = len(graphs)
    adapt(unet, 0.5)
    assert torch.equal(evaluated(unet), half) and len(graphs) == count
    for branch in branches(unet):
        branch.scale = 1.5
    assert same(unet) and not torch.equal(evaluated(unet), half)


def test_fp32_for_once_and_back():
    unet, graphs = cast(network(), torch.bfloat16), Graphs()
    compile_blocks(unet, graphs)
    short = evaluated(unet)
    cast(unet, torch.float32)
    assert same(unet) and not torch.equal(evaluated(unet), short)
    count = len(graphs)
    cast(unet, torch.bfloat16)
    assert torch.equal(evaluated(unet), short) and len(graphs) == count == 2 * KINDS


@pytest.mark.parametrize("kernel", ["auto", "blocked"])
def test_any_number_of_launches_is_one_graph(monkeypatch, kernel):
    """PyTorch gives a function up at its ninth graph."""
    layer, graphs = Attention(8, 8, heads=2, head_dim=4), Graphs()
    use_kernel(layer.requires_grad_(False), kernel)
    compiled = torch.compile(layer.forward, fullgraph=True, dynamic=True, backend=graphs)
    monkeypatch.setattr(attention, "MAX_BATCH", 7)
    with torch.inference_mode():
        for count in range(2, 90, 8):
            x = torch.randn(count, 3, 8)
            assert torch.equal(compiled(x), layer(x))
    assert len(graphs) <= 2


def test_memory_modes():
    unet, graphs = network(), Graphs()
    wanted, names = evaluated(unet), list(unet.state_dict())
    compile_blocks(unet, graphs)
    assert list(unet.state_dict()) == names
    with Placement(torch.device("cpu"), "minimal", moves=True).on_device(unet):
        assert relative_rms(evaluated(unet), wanted) < 1e-6
    assert not graphs  # layers that compute in parts do so as they are written
    for _ in range(2):
        with Placement(torch.device("cpu"), "offload", moves=True).on_device(unet):
            assert torch.equal(evaluated(unet), wanted)
    assert len(graphs) == KINDS


def test_a_video_of_a_compiled_network(monkeypatch):
    graphs = Graphs()
    options = {"num_inference_steps": 2, "num_frames": 3, "height": 64, "width": 64, "seed": 1}
    options |= {"output_type": "latent", "progress": False}
    load = functools.partial(
        VideoGenerator.from_directory, model_directory("text-to-video-synthesis"), device="cpu"
    )
    (wanted,) = load()(["a red ball"], **options)
    monkeypatch.setattr(compilation, "compile_blocks", functools.partial(compile_blocks, backend=graphs))
    monkeypatch.setattr(compilation, "check_compiler", lambda device: None)
    (made,) = load(compile=True)(["a red ball"], **options)
    assert graphs and torch.equal(made, wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": "minimal"}, "does not go with memory='minimal'.*memory='offload'"),
        ({"attention": "xformers"}, "does not go with attention='xformers'.*attention='auto'"),
    ],
)
def test_what_does_not_go_together_is_told(settings, message):
    with pytest.raises(InputError, match=message):
        VideoGenerator.from_directory(
            model_directory("text-to-video-synthesis"), device="cpu", compile=True, **settings
        )


def test_a_missing_compiler_is_told_before_work_starts():
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(InputError, match=r"on cpu PyTorch needs a C\+\+ compiler, .*CXX"),
    ):
        check_compiler.__wrapped__("cpu")
