"""inspect says what a file or a directory is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from checkpoint_files import numbers, save_lightning, write_configuration
from torch import nn

from modelscope_i2v.checkpoints import tensors
from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.checkpoints.inspect import inspect
from modelscope_i2v.checkpoints.kinds import identify
from modelscope_i2v.checkpoints.load import load_module
from modelscope_i2v.checkpoints.tensors import read_tensors
from modelscope_i2v.encoders.clip import ImageEncoder, TextEncoder, build
from modelscope_i2v.errors import CheckpointError
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.spec.families import FAMILIES

T2V, I2V, V2V = "text-to-video-synthesis", "image-to-video", "video-to-video"


def shapes(module: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def make_model(directory: Path, task: str) -> ModelDirectory:
    """A small model of a task in the hub's layout."""
    write_configuration(directory, task, model__model_cfg__unet_y_dim=16)
    for name in ("unet.pth", "clip.bin", "v2-1_512-ema-pruned.ckpt"):
        (directory / name).touch()
    model = ModelDirectory.open(directory)
    with torch.device("meta"):
        unet, autoencoder, clip = STUNet(model.unet), AutoencoderKL(model.autoencoder), build(model.clip)
    torch.save({"state_dict": numbers(shapes(unet)), "step": 789000}, model.unet_path)
    torch.save(numbers(shapes(clip), dtype=torch.float16), model.clip_path)
    wrapped = shapes(autoencoder, "first_stage_model.") | {"model.diffusion_model.x": (3,)}
    save_lightning(model.autoencoder_path, numbers(wrapped))
    return model


@pytest.mark.parametrize("task", FAMILIES)
def test_a_directory(tmp_path: Path, task: str) -> None:
    model = make_model(tmp_path, task)
    report = inspect(tmp_path)
    assert report.task == task and [file.path for file in report.files] == [
        model.unet_path,
        model.clip_path,
        model.autoencoder_path,
    ]
    unet, clip, autoencoder = report.files
    assert not unet.differences and not clip.differences and not autoencoder.differences
    assert (unet.step, clip.step, autoencoder.step) == (789000, None, 875000)
    assert set(unet.dtypes) == {"float32"} and set(clip.dtypes) == {"float16"}
    assert unet.parameters == unet.used and clip.used < clip.parameters
    assert autoencoder.parameters == autoencoder.used + 3
    assert unet.memory(torch.float16) == 2 * unet.used
    assert unet.size == model.unet_path.stat().st_size
    text = str(report)
    assert text.startswith(f"{tmp_path}: model for {task}")
    assert "step 789,000" in text and "all there, nothing else" in text and "All weights together" in text


@pytest.mark.parametrize("task", FAMILIES)
def test_what_inspect_approves_loads(tmp_path: Path, task: str) -> None:
    model = make_model(tmp_path, task)
    tower = ImageEncoder if model.family.reads_image else TextEncoder
    with torch.device("meta"):
        encoder, unet, autoencoder = tower(model.clip), STUNet(model.unet), AutoencoderKL(model.autoencoder)
    load_module(encoder, read_tensors(model.clip_path), ignore=encoder.unused)
    load_module(unet, read_tensors(model.unet_path), dtype=torch.bfloat16)
    load_module(autoencoder, read_tensors(model.autoencoder_path))
    for module in (encoder, unet, autoencoder):
        assert not [name for name, tensor in module.named_parameters() if tensor.is_meta]
        assert not [name for name, tensor in module.named_buffers() if tensor.is_meta]


def test_a_directory_with_another_unet(tmp_path: Path) -> None:
    make_model(tmp_path / "t2v", T2V)
    model = make_model(tmp_path / "i2v", I2V)
    (tmp_path / "t2v" / "unet.pth").replace(model.unet_path)
    report = inspect(tmp_path / "i2v")
    assert len(report.files[0].differences.missing) == 8
    assert "8 keys are missing: context_embedding.0.weight" in str(report)
    with torch.device("meta"):
        unet = STUNet(model.unet)
    with pytest.raises(
        CheckpointError,
        match=r"unet\.pth does not fit.*8 keys are missing.*looks like a text-to-video or video",
    ):
        load_module(unet, read_tensors(model.unet_path))
    told = (
        rf"configuration\.json describes a {I2V} model, and .*unet\.pth is a text-to-video or video-to-video"
    )
    with pytest.raises(CheckpointError, match=told):
        model.read("unet")


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files may hold numbers that are repeated over large tensors, which are refused otherwise."""
    monkeypatch.setattr(tensors, "_SPARE", 1 << 40)


def full_size(tmp_path: Path, module: nn.Module, prefix: str = "") -> Path:
    """A file with a full-size network's keys and shapes, where each tensor is one number, repeated."""
    path = tmp_path / "weights.bin"
    one = torch.ones((), dtype=torch.float16)
    torch.save({key: one.expand(shape) for key, shape in shapes(module, prefix).items()}, path)
    return path


def on_meta(build_it, *args) -> nn.Module:
    with torch.device("meta"):
        return build_it(*args)


@pytest.mark.usefixtures("repeated")
@pytest.mark.parametrize(
    ("task", "parameters", "words"),
    [
        (I2V, 1_420_000_000, "image-to-video U-Net"),
        (V2V, 1_410_000_000, "text-to-video or video-to-video U-Net (both have the same keys)"),
        (T2V, 1_410_000_000, "text-to-video or video-to-video U-Net (both have the same keys)"),
    ],
)
def test_a_full_size_unet_alone(tmp_path: Path, task: str, parameters: int, words: str) -> None:
    path = full_size(tmp_path, on_meta(STUNet, FAMILIES[task].unet), "module.")
    report = inspect(path)
    (file,) = report.files
    assert report.task is None and words in file.kind and not file.differences
    assert abs(file.parameters - parameters) < 1e7 and file.used == file.parameters
    assert "in float16" in str(report) and "GB in fp32" in str(report)


@pytest.mark.usefixtures("repeated")
def test_a_full_size_autoencoder_and_clip_alone(tmp_path: Path) -> None:
    from modelscope_i2v.spec.network import AutoencoderConfig, CLIPConfig

    (file,) = inspect(full_size(tmp_path, on_meta(AutoencoderKL, AutoencoderConfig()))).files
    assert file.kind == "a KL autoencoder" and not file.differences and file.parameters == 83_653_863
    (file,) = inspect(full_size(tmp_path, on_meta(build, CLIPConfig()))).files
    assert file.kind == "an OpenCLIP network (text and image)" and not file.differences
    assert 0.98e9 < file.parameters < 0.99e9


@pytest.mark.usefixtures("repeated")
def test_a_damaged_full_size_unet(tmp_path: Path) -> None:
    unet = on_meta(STUNet, FAMILIES[I2V].unet)
    path = full_size(tmp_path, unet)
    state = {key: torch.ones(()).expand(shape) for key, shape in shapes(unet).items()}
    del state["out.0.bias"]
    state |= {"other": torch.ones(1), "out.2.bias": torch.ones(7)}
    torch.save(state, path)
    text = str(inspect(path))
    assert "1 key is missing: out.0.bias" in text and "1 key is unexpected: other" in text
    assert "out.2.bias is [7] and should be [4]" in text


def test_a_file_of_a_small_model(tmp_path: Path) -> None:
    model = make_model(tmp_path, I2V)
    for path in (model.unet_path, model.clip_path, model.autoencoder_path):
        report = inspect(path)
        assert report.task is None and not report.files[0].differences
        assert report.files[0].compared_with == "what the configuration describes"
    other = tmp_path / "other.pth"
    model.unet_path.rename(other)
    assert inspect(other).files[0].differences.shapes  # no longer the configuration's file


def test_an_unknown_file(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3, 2)}, tmp_path / "a.pt")
    (file,) = inspect(tmp_path / "a.pt").files
    assert (file.kind, file.differences, file.parameters) == ("unknown", None, 6)


UNET = ["input_blocks.0.0.weight", "input_blocks.1.0.temopral_conv.conv1.2.weight"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ([*UNET, "context_embedding.0.weight", "local_image_concat.0.weight"], "I2VGen-XL U-Net"),
        ([*UNET, "context_embedding.0.weight"], "an image-to-video U-Net"),
        (UNET, "text-to-video or video-to-video"),
        (
            ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"],
            "whole Stable Diffusion",
        ),
        (["input_blocks.0.0.weight", "middle_block.1.norm.weight"], "image U-Net of Stable Diffusion"),
        (["conv_in.weight", "transformer_in.proj_in.weight"], "video U-Net in diffusers"),
        (["unet.a.lora_A.weight"], "LoRA"),
        (["text_model.encoder.layers.0.self_attn.k_proj.weight"], "transformers' layout"),
    ],
)
def test_kinds(keys: Iterable[str], words: str) -> None:
    kind = identify(keys)
    assert kind is not None and words in kind.name
    assert identify([f"module.{key}" for key in keys]) is kind
    assert identify([]) is None


def test_what_cannot_be_inspected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no directory"):
        inspect(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no configuration\.json"):
        inspect(tmp_path)
