"""Conversion: exact, verified, all or nothing; and diffusers folders in all the shapes that they come in."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_files import change, little_state, save_lightning
from torch import Tensor

from modelscope_i2v.checkpoints import convert as conversion
from modelscope_i2v.checkpoints.convert import convert
from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.checkpoints.tensors import read_tensors, select
from modelscope_i2v.errors import CheckpointError, InputError, OutputError
from modelscope_i2v.spec.families import FAMILIES

T2V, I2V, V2V, XL = "text-to-video-synthesis", "image-to-video", "video-to-video", "i2vgen-xl"
PARTS = ("unet", "clip", "autoencoder")
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

Make = Callable[[str], Path]


def weights(directory: Path) -> dict[str, dict[str, Tensor]]:
    """By part, what its network reads: without the tensors that no family has a use for."""
    model = ModelDirectory.open(directory)
    return {part: select(model.read(part).tensors, conversion._needed(model, part)) for part in PARTS}


def same(found: dict[str, Tensor], expected: dict[str, Tensor], keys: Any = None) -> bool:
    return all(
        found[key].dtype == expected[key].dtype and torch.equal(found[key], expected[key])
        for key in (keys or expected)
    )


def needed(directory: Path) -> dict[str, dict[str, Any]]:
    model = ModelDirectory.open(directory)
    return {part: conversion._needed(model, part) for part in PARTS}


def left(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


@pytest.mark.parametrize("name", [XL, T2V])
@pytest.mark.parametrize("through", ["hub", "safetensors"])
def test_round_trips_through_diffusers_are_exact(
    hub: Make, folder: Make, tmp_path: Path, name: str, through: Any
) -> None:
    back = convert(folder(name), tmp_path / "back", to=through)
    keys, before, after = needed(hub(name)), weights(hub(name)), weights(back)
    for part in PARTS:
        assert same(after[part], before[part], keys[part]), part
    ours, source = ModelDirectory.open(back), ModelDirectory.open(hub(name))
    assert (ours.family, ours.unet, ours.autoencoder) == (source.family, source.unet, source.autoencoder)
    again = convert(back, tmp_path / "again", to="diffusers")
    for file in sorted(folder(name).rglob("*")):
        if file.is_file():
            assert file.read_bytes() == (again / file.relative_to(folder(name))).read_bytes(), file
    assert left(tmp_path) == ["again", "back"]


@pytest.mark.parametrize(
    ("name", "to", "dtype"),
    [(name, to, None) for name in FAMILIES for to in ("hub", "safetensors")]
    + [(XL, "safetensors", "fp16"), (XL, "hub", "bf16"), (V2V, "hub", "fp32"), (T2V, "hub", "fp16")],
)
def test_hub_directories(checkpoint: Make, tmp_path: Path, name: str, dtype: Any, to: Any) -> None:
    source, made = checkpoint(name), convert(checkpoint(name), tmp_path / "made", to=to, dtype=dtype)
    model, original = ModelDirectory.open(made), ModelDirectory.open(source)
    assert (model.family, model.unet, model.clip) == (original.family, original.unet, original.clip)
    assert model.defaults == original.defaults
    before, after = weights(source), weights(made)
    for part in PARTS:
        kind = TYPES.get(dtype)
        expected = {key: value.to(kind or value.dtype) for key, value in before[part].items()}
        assert same(after[part], {key: expected[key] for key in needed(source)[part]}), part
    files = [model.unet_path, model.clip_path, model.autoencoder_path]
    if to == "safetensors":
        assert {file.suffix for file in files} == {".safetensors"}
        assert safetensors.torch.load_file(model.unet_path).keys() == after["unet"].keys()
        assert model.read("unet").step == original.read("unet").step
        return
    assert [file.name for file in files] == [
        original.unet_path.name,
        original.clip_path.name,
        original.autoencoder_path.name,
    ]
    # As the original pipelines read them, with torch's own reader.
    unet, clip, autoencoder = (torch.load(file, weights_only=True) for file in files)
    assert same(unet if name == T2V else unet["state_dict"], after["unet"])
    assert clip.keys() == original.read("clip").tensors.keys()
    assert all(key.startswith("first_stage_model.") for key in autoencoder["state_dict"])


@pytest.mark.parametrize("dtype", [None, "fp16"])
def test_a_single_file_takes_the_place_of_the_hubs(checkpoint: Make, tmp_path: Path, dtype: Any) -> None:
    shutil.copytree(checkpoint(I2V), tmp_path / "model")
    model = ModelDirectory.open(tmp_path / "model")
    before = {key: value.clone() for key, value in model.read("unet").tensors.items()}
    made = convert(
        model.unet_path, model.unet_path.with_suffix(".safetensors"), to="safetensors", dtype=dtype
    )
    size = model.unet_path.stat().st_size
    model.unet_path.unlink()
    assert made.stat().st_size < size * (0.52 if dtype else 1.01)
    model = ModelDirectory.open(tmp_path / "model")
    assert model.unet_path == made and model.read("unet").step == 789_000
    kind = TYPES.get(dtype, torch.float32)
    assert same(model.read("unet").tensors, {key: value.to(kind) for key, value in before.items()})
    back = convert(made, tmp_path / "back.pth", to="hub", dtype="fp32")
    content = torch.load(back, weights_only=True)
    assert content["step"] == 789_000
    assert same(content["state_dict"], {key: value.to(kind).float() for key, value in before.items()})


def test_a_single_stable_diffusion_file_becomes_its_autoencoder(checkpoint: Make, tmp_path: Path) -> None:
    source = ModelDirectory.open(checkpoint(I2V)).autoencoder_path
    made = convert(source, tmp_path / "vae.safetensors", to="safetensors")
    tensors = safetensors.torch.load_file(made)
    assert tensors.keys() == needed(checkpoint(I2V))["autoencoder"].keys()
    assert same(weights(checkpoint(I2V))["autoencoder"], tensors)


def test_numbers_beyond_fp16_are_refused(tmp_path: Path, checkpoint: Make) -> None:
    state = dict(ModelDirectory.open(checkpoint(T2V)).read("unet").tensors)
    state["out.2.bias"] = torch.tensor([1.0, 7e4, 0.0, 0.0])
    torch.save(state, tmp_path / "unet.pth")
    with pytest.raises(CheckpointError, match=r"out\.2\.bias has numbers beyond 65504.*bf16"):
        convert(tmp_path / "unet.pth", tmp_path / "half.safetensors", to="safetensors", dtype="fp16")
    assert left(tmp_path) == ["unet.pth"]
    convert(tmp_path / "unet.pth", tmp_path / "half.safetensors", to="safetensors", dtype="bf16")


def test_doubled_channels_are_marked_and_read_back(hub: Make, folder: Make, tmp_path: Path) -> None:
    key = "input_blocks.0.0.weight"
    original = weights(hub(XL))["unet"][key]
    config = json.loads((folder(XL) / "unet" / "config.json").read_text())
    (mark,) = [name for name in config if "doubled" in name]
    assert config[mark] is True
    stored = safetensors.torch.load_file(folder(XL) / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(stored["conv_in.weight"][:, 4:], 2 * original[:, 4:])
    assert torch.equal(weights(folder(XL))["unet"][key], original)

    published = convert(hub(XL), tmp_path / "published", to="diffusers", as_published=True)
    assert mark not in (published / "unet" / "config.json").read_text()
    stored = safetensors.torch.load_file(published / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(stored["conv_in.weight"], original)
    assert torch.equal(weights(published)["unet"][key], original)
    doubled = convert(published, tmp_path / "doubled", to="diffusers")
    assert torch.equal(weights(doubled)["unet"][key], original)
    change(doubled / "unet" / "config.json", **{mark: "yes"})
    with pytest.raises(CheckpointError, match=f"{mark} is 'yes' and should be true or false"):
        ModelDirectory.open(doubled)


# What diffusers folders look like.


@pytest.fixture
def copy(folder: Make, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(folder(name), tmp_path / "folder"))


def components(path: Path) -> dict[Path, dict[str, Tensor]]:
    return {file: safetensors.torch.load_file(file) for file in sorted(path.rglob("*.safetensors"))}


def rename_variant(path: Path) -> None:
    for file, state in components(path).items():
        half = {key: value.half() for key, value in state.items()}
        safetensors.torch.save_file(half, file.with_suffix(".fp16.safetensors"))
        file.unlink()


def as_bin(path: Path) -> None:
    for file, state in components(path).items():
        name = "pytorch_model.bin" if file.stem == "model" else "diffusion_pytorch_model.bin"
        torch.save(state, file.with_name(name))
        file.unlink()


def sharded(path: Path, pattern: str, index: str) -> None:
    for file, state in components(path).items():
        keys = list(state)
        places = {}
        for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), start=1):
            shard = pattern.format(stem=file.stem, number=number)
            safetensors.torch.save_file({key: state[key] for key in part}, file.with_name(shard))
            places |= dict.fromkeys(part, shard)
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
        file.with_name(index.format(stem=file.stem)).write_text(text)
        file.unlink()


def shards(path: Path) -> None:
    sharded(path, "{stem}-0000{number}-of-00002.safetensors", "{stem}.safetensors.index.json")


def shards_of_a_variant(path: Path) -> None:
    sharded(path, "{stem}-0000{number}-of-00002.fp16.safetensors", "{stem}.safetensors.index.fp16.json")


def old_names(path: Path) -> None:
    """As diffusers before 0.18 and transformers before 4.31 wrote, and as transformers 5 does."""
    renames = {
        "vae": {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"},
        "text_encoder": {"text_model.": ""},
    }
    for file, state in components(path).items():
        for new, old in renames.get(file.parent.name, {}).items():
            state = {key.replace(new, old): value for key, value in state.items()}
        if file.parent.name == "image_encoder":
            state["vision_model.embeddings.position_ids"] = torch.arange(17)
        safetensors.torch.save_file(state, file)


@pytest.mark.parametrize("name", [XL, T2V])
@pytest.mark.parametrize("form", [rename_variant, as_bin, shards, shards_of_a_variant, old_names])
def test_every_form_of_a_folder_is_read(hub: Make, copy: Make, name: str, form: Any) -> None:
    path, expected = copy(name), weights(hub(name))
    form(path)
    found, keys = weights(path), needed(path)
    for part in PARTS:
        right = {key: expected[part][key] for key in keys[part]}
        if form is rename_variant:
            right = {key: value.half() for key, value in right.items()}
        assert same(found[part], right), part


def test_full_precision_comes_before_a_variant(copy: Make) -> None:
    path = copy(T2V)
    whole = components(path)
    rename_variant(path)
    for file, state in whole.items():
        safetensors.torch.save_file(state, file)
    assert ModelDirectory.open(path).read("unet").tensors["out.2.bias"].dtype == torch.float32


def test_a_mirrors_configuration_does_not_hide_a_folder(copy: Make) -> None:
    path = copy(XL)
    (path / "configuration.json").write_text('{"framework": "pytorch", "task": "image-to-video"}')
    model = ModelDirectory.open(path)
    assert model.folder is not None and model.family.name == XL and model.defaults == {}


def test_the_size_in_a_text_to_video_folder_is_the_default(copy: Make) -> None:
    path = copy(T2V)
    assert ModelDirectory.open(path).defaults == {"height": 256, "width": 256}
    change(path / "unet" / "config.json", sample_size=[40, 72])
    assert ModelDirectory.open(path).defaults == {"height": 320, "width": 576}


def test_full_size_configurations_mean_the_hubs_networks(copy: Make) -> None:
    """What the published folders' configurations say, most of it by leaving it out."""
    for name in (XL, T2V):
        path = copy(name)
        (path / "unet" / "config.json").write_text('{"sample_size": 32}')
        (path / "vae" / "config.json").write_text('{"block_out_channels": [128, 256, 512, 512]}')
        layers = 24 if name == XL else 23
        text = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
        (path / "text_encoder" / "config.json").write_text(json.dumps({**text, "num_hidden_layers": layers}))
        image = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16}
        image |= {"num_hidden_layers": 32, "patch_size": 14, "projection_dim": 1024}
        if name == XL:
            (path / "image_encoder" / "config.json").write_text(json.dumps(image))
        model = ModelDirectory.open(path)
        assert model.unet == FAMILIES[name].unet
        assert model.autoencoder == type(model.autoencoder)() and model.clip == type(model.clip)()
        shutil.rmtree(path)


BAD_FILES: list[tuple[str, dict[str, Any], str]] = [
    (
        "model_index",
        {"_class_name": "StableVideoDiffusionPipeline"},
        "is 'Stable.* are read here: I2VGen",
    ),
    ("model_index", {"_class_name": ...}, "_class_name is None"),
    ("unet/config", {"block_out_channels": [64, 96, 64, 64]}, "multiples of the first"),
    ("unet/config", {"block_out_channels": [40, 40, 40, 40]}, "a multiple of 32"),
    ("unet/config", {"down_block_types": ["DownBlock3D"]}, "4 names, as many as block_out_channels"),
    ("unet/config", {"up_block_types": ["UpBlock3D"] * 4}, "up_block_types is"),
    ("unet/config", {"attention_head_dim": [16, 16]}, "a whole number from 1 up"),
    ("unet/config", {"attention_head_dim": 7}, "a divisor of all block_out_channels"),
    ("vae/config", {"scaling_factor": 0.13025}, "scaling_factor is 0.13025 and should be 0.18215"),
    ("vae/config", {"block_out_channels": [64, 96]}, "multiples of the first"),
    ("text_encoder/config", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu' and should be 'gelu'"),
    ("text_encoder/config", {"hidden_size": ...}, "hidden_size is None"),
    ("image_encoder/config", {"num_attention_heads": 7}, r"a divisor of hidden_size \(64\)"),
    ("scheduler/scheduler_config", {"prediction_type": "epsilon"}, "'epsilon' and should be 'v_prediction'"),
]


@pytest.fixture
def configurations(folder: Make, tmp_path: Path) -> Path:
    """I2VGen-XL's folder without its weights."""
    ignored = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(folder(XL), tmp_path / "folder", ignore=ignored))


@pytest.mark.parametrize(("file", "values", "message"), BAD_FILES)
def test_a_bad_value_is_told_by_file_and_remedy(
    configurations: Path, file: str, values: Any, message: str
) -> None:
    ModelDirectory.open(configurations)
    change(configurations / f"{file}.json", **values)
    with pytest.raises(CheckpointError, match=rf"{file}\.json: .*{message}"):
        ModelDirectory.open(configurations)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "image_encoder"])
def test_a_missing_component(configurations: Path, component: str) -> None:
    shutil.rmtree(configurations / component)
    with pytest.raises(CheckpointError, match=f"lacks its component {component}: .*Get the folder again"):
        ModelDirectory.open(configurations)
    (configurations / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model_index\.json is not valid JSON"):
        ModelDirectory.open(configurations)


def test_another_task_than_the_folders(folder: Make) -> None:
    with pytest.raises(CheckpointError, match="is a text-to-video-synthesis model; image-to-video was asked"):
        ModelDirectory.open(folder(T2V), I2V)


def test_weights_that_do_not_fit_their_configuration(copy: Make) -> None:
    path = copy(XL)
    change(path / "unet" / "config.json", cross_attention_dim=32)
    with pytest.raises(
        CheckpointError, match=r"unet does not fit its config\.json\. 25 shapes are different"
    ):
        ModelDirectory.open(path).read("unet")
    file = path / "vae" / "diffusion_pytorch_model.safetensors"
    state = safetensors.torch.load_file(file)
    del state["quant_conv.bias"]
    safetensors.torch.save_file({**state, "extra": torch.zeros(1)}, file)
    with pytest.raises(
        CheckpointError, match=r"1 key is missing: quant_conv\.bias; 1 key is unexpected: extra"
    ):
        ModelDirectory.open(path).read("autoencoder")


def test_missing_weights_and_shards(copy: Make) -> None:
    path = copy(XL)
    (path / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights in .*image_encoder.*should hold"):
        ModelDirectory.open(path).read("clip")
    shards(path)
    shard = path / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors"
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{shard.name}, which .*index\.json names, is missing"):
        ModelDirectory.open(path).read("unet")
    index = path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    with pytest.raises(CheckpointError, match="weight_map is .*of the same folder"):
        ModelDirectory.open(path).read("unet")


# What is refused, and what a failure leaves behind.


@pytest.mark.parametrize("name", [I2V, V2V])
def test_what_diffusers_has_no_pipeline_for(checkpoint: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"is a {name} model, which diffusers has no pipeline for"):
        convert(checkpoint(name), tmp_path / "made", to="diffusers")
    assert left(tmp_path) == []


def test_networks_that_diffusers_cannot_build(checkpoint: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="unet_num_heads is 3 and should be 8"):
        convert(checkpoint(XL), tmp_path / "made", to="diffusers")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onnx"}, "to='onnx' is no layout; it can be hub, diffusers, safetensors"),
        ({"dtype": "int8"}, "dtype='int8' is not known; it can be fp16, bf16, fp32"),
        ({"as_published": True}, "as_published is for to='diffusers'"),
    ],
)
def test_unknown_options(hub: Make, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(hub(T2V), tmp_path / "made", **options)


def test_one_file_is_no_folder(hub: Make, tmp_path: Path) -> None:
    file = ModelDirectory.open(hub(T2V)).unet_path
    with pytest.raises(InputError, match="needs the model directory around it"):
        convert(file, tmp_path / "made", to="diffusers")
    torch.save(little_state(), tmp_path / "little.pth")
    with pytest.raises(CheckpointError, match="of no kind that is known here"):
        convert(tmp_path / "little.pth", tmp_path / "made.safetensors", to="safetensors")
    with pytest.raises(CheckpointError, match="There is no file or directory .*nowhere"):
        convert(tmp_path / "nowhere", tmp_path / "made")


def test_an_existing_target_is_replaced_by_force_only(hub: Make, tmp_path: Path) -> None:
    made = convert(hub(T2V), tmp_path / "made", to="safetensors")
    (made / "old.txt").touch()
    with pytest.raises(OutputError, match=r"The directory .*made exists.*\(--force\)"):
        convert(hub(T2V), made, to="diffusers")
    assert (made / "old.txt").exists()
    convert(hub(T2V), made, to="diffusers", force=True)
    assert not (made / "old.txt").exists() and (made / "model_index.json").exists()
    file = tmp_path / "unet.safetensors"
    file.write_text("mine")
    with pytest.raises(OutputError, match=r"The file .*unet\.safetensors exists"):
        convert(ModelDirectory.open(hub(T2V)).unet_path, file, to="safetensors")
    convert(ModelDirectory.open(hub(T2V)).unet_path, file, to="safetensors", force=True)
    assert read_tensors(file).format == "safetensors"
    assert left(tmp_path) == ["made", "unet.safetensors"]


def test_what_force_does_not_replace(hub: Make, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").touch()
    with pytest.raises(OutputError, match="is no model directory, so it is not replaced"):
        convert(hub(T2V), tmp_path / "letters", force=True)
    with pytest.raises(OutputError, match=r"dear\.txt is a file, and a directory would be written"):
        convert(hub(T2V), tmp_path / "letters" / "dear.txt", force=True)
    for target in (hub(T2V), hub(T2V).parent):
        with pytest.raises(OutputError, match="holds the source"):
            convert(hub(T2V), target, force=True)
    with pytest.raises(OutputError, match="The folder .*nowhere of the target does not exist"):
        convert(hub(T2V), tmp_path / "nowhere" / "made")


@pytest.mark.parametrize("single", [False, True])
def test_a_full_disk_leaves_nothing_behind(
    hub: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single: bool
) -> None:
    source = ModelDirectory.open(hub(XL)).unet_path if single else hub(XL)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"needs \d.*GB; its disk has 0\.00 GB left"):
        convert(source, tmp_path / "made", to="safetensors")
    assert left(tmp_path) == []
    monkeypatch.undo()

    written = []

    def write(path: Path, tensors: Any, **_: Any) -> None:
        written.append(path)
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(conversion, "write_safetensors", write)
    with pytest.raises(OutputError, match="The disk is full: .*made was not written"):
        convert(source, tmp_path / "made", to="safetensors")
    assert written and left(tmp_path) == []


def test_a_failure_leaves_the_old_target_alone(
    hub: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = convert(hub(T2V), tmp_path / "made", to="safetensors")
    before = {file: file.read_bytes() for file in made.iterdir()}
    monkeypatch.setattr(conversion, "_alike", lambda *_: False)
    with pytest.raises(OutputError, match="was not read as it was written"):
        convert(hub(T2V), made, to="safetensors", dtype="fp16", force=True)
    assert {file: file.read_bytes() for file in made.iterdir()} == before and left(tmp_path) == ["made"]


def test_special_numbers_survive(hub: Make, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in ModelDirectory.open(hub(T2V)).read("unet").tensors.items()}
    state["out.2.bias"] = torch.tensor([float("nan"), float("-inf"), -0.0, 1e-42])
    save = tmp_path / "unet.pth"
    save_lightning(save, state)
    for to, dtype in (("hub", None), ("safetensors", None), ("safetensors", "fp16")):
        made = convert(save, tmp_path / f"{to}-{dtype}", to=to, dtype=dtype)
        found = read_tensors(made).tensors["out.2.bias"]
        assert str(found) == str(state["out.2.bias"].to(TYPES.get(dtype, torch.float32)))


def test_neither_diffusers_nor_transformers_is_needed(hub: Make, tmp_path: Path) -> None:
    program = (  # which could not import them
        "import sys; sys.modules['diffusers'] = sys.modules['transformers'] = None;"
        "from modelscope_i2v.checkpoints.convert import convert;"
        f"convert({str(hub(XL))!r}, {str(tmp_path / 'made')!r}, to='diffusers');"
        f"convert({str(tmp_path / 'made')!r}, {str(tmp_path / 'back')!r}, to='hub');"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_terminated_conversion_leaves_nothing(hub: Callable[[str], Path], tmp_path: Path) -> None:
    code = (
        "import sys, time; from modelscope_i2v.checkpoints import convert\n"
        "def wait(*args): print('half', flush=True); time.sleep(60)\n"
        "convert._verify = wait; convert.convert(sys.argv[1], sys.argv[2], to='safetensors')\n"
    )
    arguments = [sys.executable, "-c", code, str(hub(T2V)), str(tmp_path / "new")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        assert len(os.listdir(tmp_path)) == 1
        process.terminate()
        assert process.wait(60) == -15
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_converted_file_keeps_the_mode_of_the_one_before(
    hub: Callable[[str], Path], tmp_path: Path
) -> None:
    source, target = ModelDirectory.open(hub(T2V)).unet_path, tmp_path / "unet.safetensors"
    target.touch()
    target.chmod(0o640)
    convert(source, target, to="safetensors", force=True)
    assert target.stat().st_mode & 0o777 == 0o640 and target.stat().st_size > 1000
