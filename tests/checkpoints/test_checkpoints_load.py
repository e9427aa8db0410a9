"""Tensors become modules: cast once, checked first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from checkpoint_files import Little, little_state, on_meta
from safetensors.torch import save_file

from modelscope_i2v.checkpoints.load import load_module
from modelscope_i2v.checkpoints.tensors import read_tensors
from modelscope_i2v.compute.formats import memory_formats
from modelscope_i2v.compute.layers import Conv2d, FrameConv, Linear
from modelscope_i2v.errors import CheckpointError


class Convolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = Conv2d(5, 6, 3)
        self.temporal = FrameConv(6, 7, (3, 1, 1))
        self.linear = Linear(7, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.float64])
def test_values_types_and_modes(tmp_path: Path, dtype: torch.dtype, stored: torch.dtype) -> None:
    state = little_state(dtype=stored)
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}, tmp_path / "a.pth")
    module = load_module(
        on_meta(),
        read_tensors(tmp_path / "a.pth"),
        dtype=dtype,
        keep_float32={"norm.weight", "norm.bias"},
    )
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())
    for key, tensor in module.state_dict().items():
        right = state[key]
        if right.is_floating_point():
            right = right.to(torch.float32 if key.startswith("norm.") else dtype)
        assert tensor.dtype == right.dtype and torch.equal(tensor, right), key
    x = torch.ones(1, 3, dtype=dtype)
    reference = Little()
    reference.load_state_dict(little_state())
    expected = reference.first(torch.ones(1, 3))
    assert torch.allclose(module.first(x).float(), expected, atol=2e-2)


def test_tensors_of_the_right_type_are_not_copied(tmp_path: Path) -> None:
    torch.save(little_state(), tmp_path / "a.pth")
    file = read_tensors(tmp_path / "a.pth")
    module = load_module(on_meta(), file)
    assert module.first.weight.data_ptr() == file.tensors["first.weight"].data_ptr()
    half = load_module(on_meta(), file, dtype=torch.float16)
    assert torch.equal(half.first.weight, file.tensors["first.weight"].half())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_lie_as_their_layers_want_them(tmp_path: Path, stored: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        right = Convolutions().requires_grad_(False)
    torch.save({key: tensor.to(stored) for key, tensor in right.state_dict().items()}, tmp_path / "a.pth")
    with torch.device("meta"):
        network = Convolutions()
    load_module(network, read_tensors(tmp_path / "a.pth"), layouts=memory_formats(network))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, right.state_dict()[name].to(stored).float()), name
    assert network.spatial.weight.is_contiguous(memory_format=torch.channels_last)
    assert network.temporal.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert network.linear.weight.is_contiguous()


def test_many_tensors_by_several_threads_are_each_their_own(tmp_path: Path) -> None:
    layers = {str(i): torch.full((40 + i, 7), float(i), dtype=torch.float64) for i in range(200)}
    save_file(layers, tmp_path / "a.safetensors")
    network = torch.nn.ParameterDict({key: torch.empty_like(tensor) for key, tensor in layers.items()})
    load_module(network.to("meta"), read_tensors(tmp_path / "a.safetensors"))
    for key, tensor in network.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor.double(), layers[key]), key


def test_a_file_that_is_cut_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(little_state(), path)
    file = read_tensors(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"a\.safetensors changed or went away"):
        load_module(on_meta(), file, dtype=torch.float16)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_without_mmap_the_file_may_be_cut_afterwards(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    state = {**little_state(), "first.weight": little_state()["first.weight"].t().contiguous().t()}
    if kind == "pth":
        torch.save(state, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    file = read_tensors(path, mmap=False)
    module = load_module(on_meta(), file)
    inside = {tensor.data_ptr() for tensor in file.tensors.values()}
    assert not inside & {tensor.data_ptr() for tensor in module.state_dict().values()}
    del file
    os.truncate(path, 1)  # under a mapped file, the comparison would end this process
    assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())


def test_the_module_outlives_the_file_object(tmp_path: Path) -> None:
    torch.save(little_state(), tmp_path / "a.pth")
    module = load_module(on_meta(), read_tensors(tmp_path / "a.pth"))
    assert torch.equal(module.last.weight, little_state()["last.weight"])


def test_missing_unexpected_and_other_shapes_are_named() -> None:
    state = little_state()
    del state["first.weight"], state["count"]
    state |= {"extra.a": torch.zeros(1), "last.bias": torch.zeros(5)}
    with pytest.raises(CheckpointError) as raised:
        load_module(on_meta(), state, source="somewhere/unet.pth")
    text = str(raised.value)
    assert text.startswith("somewhere/unet.pth does not fit")
    assert "2 keys are missing: count, first.weight" in text
    assert "1 key is unexpected: extra.a" in text
    assert "1 shape is different: last.bias is [5] and should be [2]" in text


def test_only_the_first_few_keys_are_named() -> None:
    state = {**little_state(), **{f"extra.{index}": torch.zeros(1) for index in range(1500)}}
    with pytest.raises(
        CheckpointError, match=r"1,500 keys are unexpected: extra\.0, .*extra\.3 and 1,496 more\.$"
    ):
        load_module(on_meta(), state)


def test_nothing_is_loaded_when_something_is_wrong() -> None:
    module = on_meta()
    with pytest.raises(CheckpointError, match="^this file does not fit the network"):
        load_module(module, {"first.weight": torch.zeros(4, 3)})
    assert all(tensor.is_meta for tensor in module.state_dict().values())


def test_ignored_keys_and_prefixes() -> None:
    state = {**little_state(), "loss.logvar": torch.zeros(1), "logit_scale": torch.zeros(1)}
    load_module(on_meta(), state, ignore=("loss.", "logit_scale"))
    with pytest.raises(CheckpointError, match="logit_scale"):
        load_module(on_meta(), state, ignore=("loss.", "logit"))


@pytest.mark.parametrize("device", ["cpu", *(["cuda:0"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_straight_to_the_device(tmp_path: Path, device: str, dtype: torch.dtype) -> None:
    torch.save(little_state(), tmp_path / "a.pth")
    module = load_module(on_meta(), read_tensors(tmp_path / "a.pth"), dtype=dtype, device=device)
    assert {str(tensor.device) for tensor in module.state_dict().values()} == {device}
    assert module.first.weight.dtype == dtype
    assert torch.equal(module.first.weight.cpu(), little_state()["first.weight"].to(dtype))
