"""LoRAs beside our networks: against PEFT, and what is left when they go."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_unet import predicted

from modelscope_i2v.adapters import lora
from modelscope_i2v.adapters.load import load_lora, loras, scale_lora, unload_lora
from modelscope_i2v.adapters.lora import FEED_FORWARD, TARGETS, add_lora, save_lora
from modelscope_i2v.compute.formats import cast
from modelscope_i2v.errors import CheckpointError, InputError, OutputError
from modelscope_i2v.spec.families import FAMILIES

EVERY_KIND = ("proj_in", "proj_out", "op", "conv", "conv1.2", "skip_connection", "out.2", "to_qkv", *TARGETS)
"""Linear layers, 1×1 convolutions that are linear, convolutions in space and over time."""


def test_an_adapter_begins_as_nothing_and_is_all_there_is_to_train(unet, inputs):
    network = unet()
    before = predicted(network, **inputs(network))
    count = sum(1 for _ in network.parameters())
    assert add_lora(network, rank=2) is network
    torch.testing.assert_close(predicted(network, **inputs(network)), before, rtol=1e-5, atol=1e-5)
    trainable = [name for name, value in network.named_parameters() if value.requires_grad]
    assert trainable and all(".lora_" in name for name in trainable)
    assert len(trainable) == sum(1 for _ in network.parameters()) - count
    assert any(".1.transformer_blocks." in name for name in trainable), "attention over pixels"
    assert any(".2.transformer_blocks." in name for name in trainable), "attention over time"
    with torch.enable_grad():
        predicted(network, **inputs(network)).square().mean().backward()
    assert all(value.grad is not None for value in network.parameters() if value.requires_grad)


@pytest.mark.parametrize("targets", [None, EVERY_KIND, [*TARGETS, *FEED_FORWARD]], ids=["", "every", "more"])
def test_a_lora_computes_what_pefts_adapters_do(trained, unet, inputs, tmp_path, targets):
    theirs, ours = trained(targets=targets), unet()
    given = inputs(ours)
    before, expected = predicted(ours, **given), predicted(theirs, **given)
    assert load_lora(ours, save_lora(theirs, tmp_path / "style")) == "style"
    assert (expected - before).abs().max() > 0.1, "a LoRA without effect proves nothing"
    torch.testing.assert_close(predicted(ours, **given), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_file_is_enough_and_says_what_it_is_for(trained, unet, inputs, tmp_path, family):
    theirs, ours = trained(family), unet(family)
    path = save_lora(theirs, tmp_path / "new" / "style.v1.safetensors", family=family, base="a/model")
    assert [file.name for file in path.parent.iterdir()] == ["style.v1.safetensors"]
    assert load_lora(ours, path, family=family) == "style.v1"
    torch.testing.assert_close(
        predicted(ours, **inputs(ours)), predicted(theirs, **inputs(ours)), rtol=1e-5, atol=1e-5
    )
    other = "video-to-video" if family != "video-to-video" else "image-to-video"
    with pytest.warns(UserWarning, match=f"of the family {family}, and this one is of the family {other}"):
        load_lora(ours, path, name="again", family=other)


def test_peft_reads_what_is_saved(trained, unet, inputs, tmp_path):
    theirs, network = trained(), unet()
    save_lora(theirs, tmp_path / "style", base="damo/I2VGen-XL")
    again = peft.PeftModel.from_pretrained(network, tmp_path / "style")
    assert torch.equal(predicted(again, **inputs(theirs)), predicted(theirs, **inputs(theirs)))
    assert again.peft_config["default"].base_model_name_or_path == "damo/I2VGen-XL"


def test_what_pefts_own_model_saves_is_read(unet, inputs, tmp_path):
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=["to_q", "to_v", "proj_in"],
        exclude_modules=r".*\.2\.proj_in|input_blocks\.0\.1\.proj_in",  # convolutions, to PEFT
        rank_pattern={"attn2.to_q": 3},
        alpha_pattern={"middle_block.*to_v": 5, "to_v": 7},
    )
    theirs = peft.get_peft_model(unet(), config)
    for name, value in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    expected = predicted(theirs.eval(), **inputs(unet()))
    theirs.save_pretrained(tmp_path / "safe")
    torch.save(peft.get_peft_model_state_dict(theirs), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_bytes((tmp_path / "safe/adapter_config.json").read_bytes())
    for path in (tmp_path / "safe", tmp_path, tmp_path / "safe" / "adapter_model.safetensors"):
        ours = unet()
        load_lora(ours, path)
        torch.testing.assert_close(predicted(ours, **inputs(ours)), expected, rtol=1e-5, atol=1e-5)


def test_a_file_holds_no_local_path(trained, tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for base in (str(tmp_path / "models" / "mine"), "/nowhere/mine"):
        save_lora(trained(), tmp_path / "style", base=base)
        for file in (tmp_path / "style").iterdir():
            content = file.read_bytes()
            assert b"mine" in content and str(tmp_path).encode() not in content and b"/nowhere" not in content


def test_float8_matrices_are_added(trained, unet, inputs, tmp_path):
    network = trained()
    save_lora(network, tmp_path / "half", dtype=torch.float16)
    tensors = load_file(tmp_path / "half" / "adapter_model.safetensors")
    small = {key: value.to(torch.float8_e4m3fn) for key, value in tensors.items()}
    save_file(small, tmp_path / "small.safetensors")
    save_file({key: value.float() for key, value in small.items()}, tmp_path / "large.safetensors")
    made = []
    for name in ("small", "large"):
        network = unet()
        load_lora(network, tmp_path / f"{name}.safetensors")
        made.append(predicted(network, **inputs(network)))
    assert torch.equal(*made) and not torch.equal(made[0], predicted(unet(), **inputs(unet())))


def test_averages_can_be_saved_in_place_of_the_weights(trained, tmp_path):
    network = trained()
    average = {
        name: torch.full_like(value, 0.5) for name, value in network.named_parameters() if ".lora_" in name
    }
    save_lora(network, tmp_path, weights=average, dtype=torch.float16)
    saved = load_file(tmp_path / "adapter_model.safetensors").values()
    assert all(bool((value == 0.5).all()) and value.dtype == torch.float16 for value in saved)
    assert len(saved) == len(average)


def test_two_at_once_add_up_and_each_can_go(trained, unet, inputs, tmp_path):
    for seed, name in enumerate("ab"):
        save_lora(trained(seed=seed, targets=["attn1.to_q" if seed else "proj_in", "to_k"]), tmp_path / name)
    # One layer is linear in both adapters: there the sum of the two is exact.
    network = unet()
    layer = network.get_submodule("middle_block.1.transformer_blocks.0.attn1.to_k")
    x = torch.randn(3, layer.in_features)
    plain, state = layer(x), network.state_dict()
    given = inputs(network)
    before = predicted(network, **given)
    added = {}
    for name in "ab":
        load_lora(network, tmp_path / name)
        added[name], only = layer(x) - plain, predicted(network, **given)
        unload_lora(network, name)
        assert torch.equal(predicted(network, **given), before) and not torch.equal(only, before)
    load_lora(network, tmp_path / "a", 0.5)
    load_lora(network, tmp_path / "b", name="second", scale=-2)
    assert loras(network) == {"a": 0.5, "second": -2}
    torch.testing.assert_close(layer(x), plain + 0.5 * added["a"] - 2 * added["b"])
    scale_lora(network, "second", 0)
    torch.testing.assert_close(layer(x), plain + 0.5 * added["a"])
    unload_lora(network, "a")
    assert loras(network) == {"second": 0} and torch.equal(predicted(network, **given), before)
    scale_lora(network, "second", 1)
    assert not torch.equal(predicted(network, **given), before)
    assert network.state_dict().keys() == state.keys()
    copied = copy.deepcopy(network)
    unload_lora(network)
    unload_lora(network)
    assert loras(network) == {} and torch.equal(predicted(network, **given), before)
    assert all(value.data_ptr() == state[key].data_ptr() for key, value in network.state_dict().items())
    assert loras(copied) == {"second": 1} and not torch.equal(predicted(copied, **given), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_is_of_the_networks_type_and_follows_to_fp32_and_back(trained, unet, inputs, tmp_path, dtype):
    save_lora(trained(targets=EVERY_KIND), tmp_path / "style")
    full, half = unet(), cast(unet(), dtype)
    given = inputs(full)
    load_lora(full, tmp_path / "style")
    load_lora(half, tmp_path / "style")
    right, first = predicted(full, **given), predicted(half, **given)
    assert {value.dtype for name, value in half.named_buffers() if name.endswith((".up", ".down"))} == {dtype}
    torch.testing.assert_close(first, right, rtol=0, atol=0.1)
    cast(half, torch.float32)
    assert not torch.equal(predicted(half, **given), first)
    assert torch.equal(predicted(cast(half, dtype), **given), first)


def test_saving_replaces_a_lora_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    network, path = trained(), tmp_path / "style"
    save_lora(network, path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    assert set(before) == {"adapter_config.json", "adapter_model.safetensors"}

    def full(at: Path, *_: object, **__: object) -> None:
        at.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lora, "write_safetensors", full)
    with pytest.raises(OutputError, match="The disk is full: .*style.* was not written"):
        save_lora(network, path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_lora(network, tmp_path / "file" / "style")
    torch.nn.init.zeros_(next(value for name, value in network.named_parameters() if "lora_A" in name))
    save_lora(network, path)
    assert (path / "adapter_model.safetensors").read_bytes() != before["adapter_model.safetensors"]
    assert len(os.listdir(path)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0; it must be a whole number from 1 up"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"alpha": -1}, "alpha is -1; it must be a number above 0"),
        ({"dropout": 1}, "dropout is 1; it must be a number from 0 up, below 1"),
        ({"targets": "to_q"}, "must be a list of layers' names"),
        ({"targets": ["to_q", "to_w"]}, "'to_w' is the name of no layer of this network; 'to_q', "),
        ({"targets": ["norm1"]}, "'norm1' means .*norm1, a LayerNorm; only layers of the kinds Linear"),
    ],
)
def test_settings_that_make_no_adapter(unet, settings, message):
    network = unet()
    keys = network.state_dict().keys()
    with pytest.raises(InputError, match=message):
        add_lora(network, **settings)
    assert network.state_dict().keys() == keys


def test_training_needs_peft_and_a_plain_network(unet, trained, monkeypatch):
    with pytest.raises(InputError, match="has adapters in training already"):
        add_lora(trained())
    with pytest.raises(InputError, match="no adapters to save"):
        save_lora(unet(), "nowhere")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install modelscope-i2v\[train\]"):
        add_lora(unet())


@pytest.mark.parametrize("scale", ["1", None, True, float("nan"), float("inf")])
def test_a_scale_is_a_number(small, unet, scale):
    network = unet()
    with pytest.raises(InputError, match="scale is .*; it must be a number"):
        load_lora(network, small, scale)
    assert loras(network) == {}
    load_lora(network, small)
    with pytest.raises(InputError, match="scale is .*; it must be a number"):
        scale_lora(network, "a", scale)


def test_names_are_taken_once_and_must_be_known(small, unet):
    network = unet()
    with pytest.raises(InputError, match="There is no LoRA 'b': none is loaded"):
        unload_lora(network, "b")
    load_lora(network, small)
    with pytest.raises(InputError, match="A LoRA 'a' is loaded already: give this one another name"):
        load_lora(network, small / "adapter_model.safetensors")
    with pytest.raises(InputError, match="There is no LoRA 'b': loaded are 'a'"):
        scale_lora(network, "b", 1)
    with pytest.raises(InputError, match="name is ''"):
        load_lora(network, small, name="")


Change = Callable[[dict[str, torch.Tensor], dict], None]


def _rename(tensors: dict, config: dict) -> None:
    for key in list(tensors)[:2]:
        tensors[key.replace("attn1", "attn9")] = tensors.pop(key)


def _resize(tensors: dict, config: dict) -> None:
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = torch.zeros(4, 999)


def _alone(tensors: dict, config: dict) -> None:
    del tensors[next(key for key in tensors if "lora_B" in key)]


def _nan(tensors: dict, config: dict) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


def _more(tensors: dict, config: dict) -> None:
    tensors["base_model.model.time_embed.0.lora_magnitude_vector"] = torch.zeros(4)


def _ranks(tensors: dict, config: dict) -> None:
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = tensors[key][:3].contiguous()


def _none(tensors: dict, config: dict) -> None:
    tensors.clear()
    tensors["input_blocks.0.0.weight"] = torch.zeros(1)


def _alpha(value: float) -> Change:
    def change(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        layer = next(key for key in tensors if "to_q.lora_A" in key).removesuffix(".lora_A.weight")
        tensors[f"{layer}.alpha"] = torch.tensor(value)

    return change


def _set(**settings: object) -> Change:
    return lambda tensors, config: config.update(settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _rename,
            "another network.*has 14 of the 15 layers.*it has no .*attn9.to_q.*Nothing was changed",
        ),
        (_resize, r"1 of its layers are of another size: .*attn1.to_q is .*\[\d+, 999\], and here it is \["),
        (_alone, r"is incomplete: the second \(up, B\) matrix of .*attn1.to_q is missing"),
        (_nan, "is damaged: there is NaN or infinity in its matrices of .*attn1.to_q"),
        (_more, "more than a LoRA: it also holds base_model.model.time_embed.0.lora_magnitude_vector"),
        (_ranks, r"the matrices of .*attn1.to_q, \[3, \d+\] and \[\d+, 4\], make no pair"),
        (_none, "is no LoRA: there are no low-rank matrices in it"),
        (_set(use_dora=True), "adapter_config.json: use_dora is True and should be off"),
        (_set(peft_type="LOHA"), "peft_type is 'LOHA' and should be 'LORA'"),
        (
            _set(init_lora_weights="pissa_niter_4"),
            "init_lora_weights is 'pissa_niter_4' and should be another",
        ),
        (_set(lora_alpha="much"), "lora_alpha is 'much' and should be a number"),
        (_set(alpha_pattern={"a(": 1}), r"alpha_pattern is .*should be of names of layers.*; 'a\(' is not"),
        (_set(alpha_pattern={"(a|aa)+b": 1}), r"alpha_pattern is .*should be of names of layers"),
        (_set(alpha_pattern={f"a.*{i}": 1 for i in range(300)}), r"alpha_pattern is .*should be of names"),
        (_set(lora_alpha=1e308), r"lora_alpha is 1e\+308 and should be a number from 0 up to 1e\+06"),
        (_set(lora_alpha=float("nan")), "lora_alpha is nan and should be a number from 0 up"),
        (_set(alpha_pattern={"to_q": 1e300}), r"alpha_pattern.to_q is 1e\+300 and should be a number from 0"),
        (_alpha(float("nan")), r"to_q.alpha is nan and should be from 0 to 1e\+06"),
        (_alpha(1e30), r"to_q.alpha is 1e\+30 and should be from 0 to 1e\+06"),
        (_set(alpha_pattern=[1]), "alpha_pattern is .* and should be an object"),
    ],
)
def test_a_lora_that_cannot_be_used_changes_nothing(small, unet, tmp_path, change, message):
    path = tmp_path / "style"
    path.mkdir()
    tensors = load_file(small / "adapter_model.safetensors")
    config = json.loads((small / "adapter_config.json").read_text())
    change(tensors, config)
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps(config))
    network = unet()
    with pytest.raises(CheckpointError, match=message) as raised:
        load_lora(network, path)
    assert str(path) in str(raised.value)
    assert loras(network) == {} and not any(module._forward_hooks for module in network.modules())


def test_a_lora_for_another_family_is_told(trained, unet, tmp_path):
    save_lora(trained(), tmp_path / "style", family="i2vgen-xl")
    message = "another network \\(of the family i2vgen-xl\\).*it has no local_temporal_encoder"
    with pytest.raises(CheckpointError, match=message):
        load_lora(unet("text-to-video-synthesis"), tmp_path / "style")


def test_places_where_there_is_no_lora(unet, tmp_path):
    network = unet()
    with pytest.raises(CheckpointError, match="There is no LoRA .*nowhere"):
        load_lora(network, tmp_path / "nowhere")
    with pytest.raises(
        CheckpointError, match="is a directory, and there is no adapter_model.safetensors in it"
    ):
        load_lora(network, tmp_path)
    save_file({"input_blocks.0.0.weight": torch.zeros(1)}, tmp_path / "b.safetensors")
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="there are several: a.bin, b.safetensors. Name one of them"):
        load_lora(network, tmp_path)
    with pytest.raises(CheckpointError, match="is empty"):
        load_lora(network, tmp_path / "a.bin")


def test_a_pickle_is_read_without_running_it(unet, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a.lora_A.weight": Hostile()}, tmp_path / "lora.bin")
    with pytest.raises(CheckpointError, match="none of it was run"):
        load_lora(unet(), tmp_path / "lora.bin")
    assert not (tmp_path / "ran").exists()
