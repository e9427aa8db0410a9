"""Linear layers in eight bits: nearly the same output from less memory, in every mode."""

from __future__ import annotations

import sys

import pytest
import torch
from oracle.compare import relative_rms
from small_unet import predicted, small_unet

from modelscope_i2v.adapters.branches import Branch, attach, detach
from modelscope_i2v.compute.compilation import compile_blocks
from modelscope_i2v.compute.formats import cast
from modelscope_i2v.compute.layers import Linear
from modelscope_i2v.compute.quantization import quantize, stored
from modelscope_i2v.embedded import model_directory
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.errors import InputError
from modelscope_i2v.evaluation.metrics import psnr
from modelscope_i2v.memory import count as memory_model
from modelscope_i2v.memory.placement import Placement
from modelscope_i2v.spec.families import FAMILIES

TASK = "text-to-video-synthesis"
QUICK = {"num_inference_steps": 4, "num_frames": 4, "height": 64, "width": 64, "seed": 1, "progress": False}


@torch.inference_mode()
def evaluated(unet):
    noise = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 3, 8, 8, generator=noise)
    text = torch.randn(2, 5, unet.config.context_dim, generator=noise)
    return predicted(unet, latents, torch.full((2,), 500), text=text)


def size(tensors):
    return sum(tensor.nbytes for tensor in stored(tensors))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.02), (torch.bfloat16, 0.04)])
def test_weights_are_smaller_and_the_output_is_close(dtype, most):
    unet = cast(small_unet(), dtype)
    plain, names = evaluated(unet), list(unet.state_dict())
    linear = [layer for layer in unet.modules() if isinstance(layer, Linear)]
    before, whole = size(layer.weight for layer in linear), size(unet.parameters())
    quantize(unet, "int8")
    after = size(layer.weight for layer in linear)
    assert after < 0.75 * before * (2 / dtype.itemsize)  # an integer a weight; a scale a row, of 32 here
    assert size(unet.parameters()) == whole - before + after
    assert list(unet.state_dict()) == names
    assert 1e-4 < relative_rms(evaluated(unet), plain) < most


def test_outputs_of_a_hundred_are_finite_in_fp16():
    """A sum of products with integers, before it is scaled, would be past fp16's largest number."""
    torch.manual_seed(0)
    layer = Linear(640, 640).requires_grad_(False)
    x = 40 * torch.randn(4, 640)
    plain = layer(x)
    found = quantize(torch.nn.Sequential(layer).half(), "int8")(x)
    assert plain.abs().max() > 70 and found.dtype == torch.float16
    assert 1e-4 < relative_rms(found, plain) < 0.02


def test_a_network_is_cast_and_cast_back():
    unet = quantize(cast(small_unet(), torch.bfloat16), "int8")
    short = evaluated(unet)
    wide = evaluated(cast(unet, torch.float32))
    assert unet.time_embed[0].weight.dtype == torch.float32
    assert 1e-4 < relative_rms(short, wide) < 0.04
    assert torch.equal(evaluated(cast(unet, torch.bfloat16)), short)


@pytest.mark.parametrize("mode", ["offload", "minimal"])
def test_quantised_weights_move_with_the_rest(mode):
    unet = quantize(small_unet(), "int8")
    wanted, home = evaluated(unet), [tensor.data_ptr() for tensor in stored(unet.parameters())]
    placement = Placement(torch.device("cpu"), mode, moves=True)
    layer = unet.middle_block[1].proj_in
    there = []
    hook = layer.register_forward_hook(lambda *_: there.append(layer.weight.qdata.data_ptr()))
    for _ in range(2):
        with placement.on_device(unet):
            assert relative_rms(evaluated(unet), wanted) < 1e-6
    hook.remove()
    assert there and not set(there) & set(home)


def test_a_lora_goes_beside_quantised_layers():
    unet = quantize(small_unet(), "int8")
    plain, layer = evaluated(unet), unet.middle_block[1].proj_in
    attach(layer, Branch("one", torch.randn(4, 64), torch.randn(64, 4), 1.0, 1.0))
    assert relative_rms(evaluated(unet), plain) > 1e-3
    detach(unet)
    assert torch.equal(evaluated(unet), plain)


def test_quantised_layers_compile():
    unet, graphs = quantize(small_unet(), "int8"), []
    wanted = evaluated(unet)
    compile_blocks(unet.middle_block[1], lambda graph, inputs: graphs.append(graph) or graph.forward)
    assert torch.equal(evaluated(unet), wanted) and len(graphs) == 1


def test_a_video_and_what_memory_it_is_counted_with():
    def load(**settings):
        return VideoGenerator.from_directory(model_directory(TASK), device="cpu", **settings)

    plain, small = load(), load(quantization="int8")
    (wanted,), (made,) = (
        generator(["a red ball moves to the left"], output_type="np", **QUICK) for generator in (plain, small)
    )
    assert 30 < psnr(made, wanted) < 100
    kind = {"autoencoder": plain.autoencoder.config, "clip": plain.clip, "reads_text": True}
    for generator in (plain, small):
        counted = memory_model.Model(
            generator.unet.config, **kind, quantization=generator.runtime.quantization
        )
        assert memory_model.weight(counted, "unet", torch.float32) == size(generator.unet.parameters())


def test_the_peak_is_less_by_what_the_weights_are():
    full = memory_model.Model.full_size(FAMILIES[TASK])
    small = memory_model.dataclasses.replace(full, quantization="int8")
    plain, int8 = (memory_model.weight(model, "unet", torch.float16) for model in (full, small))
    assert 0.5e9 < plain - int8 < 0.6e9


def test_what_cannot_be_is_told_before_anything_loads(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="quantization='int3' does not work: it must be one of int8"):
        VideoGenerator.from_directory(model_directory(TASK), quantization="int3")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(InputError, match=r"needs the package torchao: pip install modelscope-i2v\[quantiz"):
        VideoGenerator.from_directory(model_directory(TASK), quantization="int8")
