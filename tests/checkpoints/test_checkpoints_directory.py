"""What configuration.json says, and what is said about a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import SMALL_CLIP, touch_weights, write_configuration

from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.errors import CheckpointError
from modelscope_i2v.spec.families import FAMILIES
from modelscope_i2v.spec.network import AutoencoderConfig, CLIPConfig

NAMES = list(FAMILIES)
T2V, I2V, V2V, XL = "text-to-video-synthesis", "image-to-video", "video-to-video", "i2vgen-xl"


def opened(directory: Path, name: str, asked: str | None = None, /, **changes: Any) -> ModelDirectory:
    write_configuration(directory, name, **changes)
    touch_weights(directory)
    return ModelDirectory.open(directory, asked)


def test_the_hub_text_to_video_configuration(tmp_path: Path) -> None:
    configuration = {
        "framework": "pytorch",
        "task": T2V,
        "model": {
            "type": "latent-text-to-video-synthesis",
            "model_args": {
                "ckpt_clip": "open_clip_pytorch_model.bin",
                "ckpt_unet": "text2video_pytorch_model.pth",
                "ckpt_autoencoder": "VQGAN_autoencoder.pth",
                "max_frames": 16,
                "tiny_gpu": 1,
            },
            "model_cfg": {
                "unet_in_dim": 4,
                "unet_dim": 320,
                "unet_y_dim": 768,
                "unet_context_dim": 1024,
                "unet_out_dim": 4,
                "unet_dim_mult": [1, 2, 4, 4],
                "unet_num_heads": 8,
                "unet_head_dim": 64,
                "unet_res_blocks": 2,
                "unet_attn_scales": [1, 0.5, 0.25],
                "unet_dropout": 0.1,
                "temporal_attention": "True",
                "num_timesteps": 1000,
                "mean_type": "eps",
                "var_type": "fixed_small",
                "loss_type": "mse",
            },
        },
        "pipeline": {"type": "latent-text-to-video-synthesis"},
    }
    (tmp_path / "configuration.json").write_text(json.dumps(configuration), encoding="utf-8-sig")
    for name in ("open_clip_pytorch_model.bin", "text2video_pytorch_model.pth", "VQGAN_autoencoder.pth"):
        (tmp_path / name).touch()
    directory = ModelDirectory.open(str(tmp_path))
    assert directory.family is FAMILIES[T2V]
    assert directory.unet == FAMILIES[T2V].unet
    assert directory.autoencoder == AutoencoderConfig() and directory.clip == CLIPConfig()
    assert directory.defaults == {"num_frames": 16}
    assert directory.unet_path == tmp_path / "text2video_pytorch_model.pth"
    assert directory.clip_path.name == "open_clip_pytorch_model.bin"
    assert directory.autoencoder_path.name == "VQGAN_autoencoder.pth"


HUB_MODEL_CFG = {"batch_size": 1, "target_fps": 8, "max_frames": 32, "latent_hei": 32, "latent_wid": 56}


def test_the_hub_image_to_video_configuration(tmp_path: Path) -> None:
    directory = opened(tmp_path, I2V, model__model_cfg=HUB_MODEL_CFG, model__model_args__seed=8888)
    assert directory.unet == FAMILIES[I2V].unet
    assert directory.defaults == {"num_frames": 32, "height": 256, "width": 448, "target_fps": 8}


@pytest.mark.parametrize(
    ("mode", "solver"),
    [
        ("fast", {"scheduler": "dpmpp_2m_sde", "num_inference_steps": 30}),
        ("normal", {"scheduler": "heun", "num_inference_steps": 50}),
        (None, {}),
    ],
)
def test_the_hub_video_to_video_configuration(tmp_path: Path, mode: str | None, solver: Any) -> None:
    directory = opened(tmp_path, V2V, model__model_cfg=HUB_MODEL_CFG, model__model_args__solver_mode=mode)
    assert directory.unet == FAMILIES[V2V].unet
    assert directory.defaults == {"num_frames": 32, **solver}  # its size is not the configuration's


def test_small_models(tmp_path: Path) -> None:
    changes = {
        "unet_attn_scales": [1, 0.5],
        "unet_y_dim": 16,
        "unet_image_tokens": 2,
        "unet_dropout": 0,
        "latent_hei": 8,
        "latent_wid": 12,
        "target_fps": 16,
        "num_inference_steps": 4,
        "guidance_scale": 2,
        "scheduler": "unipc",
    }
    changes = {f"model__model_cfg__{key}": value for key, value in changes.items()}
    directory = opened(tmp_path, I2V, **changes)
    unet = directory.unet
    assert (unet.dim, unet.head_dim, unet.num_heads, unet.context_dim) == (32, 8, 4, 16)
    assert (unet.attn_scales, unet.image_dim, unet.image_tokens, unet.dropout) == ((1.0, 0.5), 16, 2, 0)
    assert unet.fps_embedding and unet.dim_mult == (1, 2, 4, 4)
    assert directory.autoencoder == AutoencoderConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1)
    assert directory.clip == CLIPConfig(custom=SMALL_CLIP)
    assert directory.defaults == {
        "height": 16,
        "width": 24,
        "target_fps": 16,
        "num_inference_steps": 4,
        "guidance_scale": 2,
        "scheduler": "unipc",
    }


@pytest.mark.parametrize("name", NAMES)
def test_own_keys_set_sizes_for_every_family(tmp_path: Path, name: str) -> None:
    directory = opened(
        tmp_path,
        name,
        model__model_cfg__height=64,
        model__model_cfg__width=80,
        model__model_cfg__clip="ViT-B-32",
    )
    assert (directory.defaults["height"], directory.defaults["width"]) == (64, 80)
    assert directory.clip == CLIPConfig("ViT-B-32")
    assert directory.unet.image_dim == 1024


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("absent", [(), ("task",), ("task", "pipeline"), ("task", "model__type")])
def test_each_name_alone_tells_the_family(tmp_path: Path, name: str, absent: tuple[str, ...]) -> None:
    task = FAMILIES[name].task
    assert opened(tmp_path, name, task, **dict.fromkeys(absent, ...)).family.name == name
    assert ModelDirectory.open(tmp_path).family.name == name


@pytest.mark.parametrize("type_of_model", ["i2vgen", "UNetSD_I2VGen", None])
def test_i2vgen_xl_by_its_pipeline_whatever_its_model_type(tmp_path: Path, type_of_model: Any) -> None:
    assert opened(tmp_path, XL, model__type=type_of_model).family.name == XL
    assert opened(tmp_path, XL, I2V, model__type=type_of_model, task=...).family.name == XL


MARKS = (
    "input_blocks.0.0.weight",
    "input_blocks.1.0.temopral_conv.conv1.2.weight",
    "context_embedding.0.weight",
)


@pytest.mark.parametrize(("name", "marks"), [(I2V, MARKS), (XL, (*MARKS, "local_image_concat.0.weight"))])
@pytest.mark.parametrize("asked", [None, I2V])
def test_the_task_alone_leaves_it_to_the_weights(tmp_path: Path, name: str, marks: Any, asked: Any) -> None:
    write_configuration(tmp_path, I2V, pipeline=..., model__type=...)
    touch_weights(tmp_path)
    torch.save({key: torch.zeros(1) for key in marks}, tmp_path / "unet.pth")
    assert ModelDirectory.open(tmp_path, asked).family.name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [None, ".safetensors"])
def test_weights_alone_tell_the_family_by_their_names(tmp_path: Path, name: str, suffix: str | None) -> None:
    family = FAMILIES[name]
    files = [tmp_path / file for file in (family.unet_file, family.clip_file, family.autoencoder_file)]
    files[0] = files[0].with_suffix(suffix or files[0].suffix)
    for file in files:
        file.touch()
    directory = ModelDirectory.open(tmp_path)
    assert directory.family is family and directory.unet == family.unet and directory.defaults == {}
    assert [directory.unet_path, directory.clip_path, directory.autoencoder_path] == files
    assert ModelDirectory.open(tmp_path, family.task).family is family
    files[2].unlink()
    with pytest.raises(CheckpointError, match=r"ckpt_autoencoder is missing; it should name"):
        ModelDirectory.open(tmp_path)


def test_the_usual_names_also_beside_a_configuration_that_names_none(tmp_path: Path) -> None:
    write_configuration(tmp_path, I2V, pipeline=..., model=...)
    for file in (FAMILIES[XL].unet_file, FAMILIES[XL].clip_file, FAMILIES[XL].autoencoder_file):
        (tmp_path / file).touch()
    assert ModelDirectory.open(tmp_path).family.name == XL


def test_the_task_asked_for_is_enough(tmp_path: Path) -> None:
    absent = dict.fromkeys(("task", "pipeline", "model__type"), ...)
    assert opened(tmp_path, V2V, V2V, **absent).family.task == V2V
    with pytest.raises(CheckpointError, match="task is missing; it should be one of image-to-video"):
        ModelDirectory.open(tmp_path)


def test_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"is a {T2V} model; image-to-video was asked"):
        opened(tmp_path, T2V, I2V)
    with pytest.raises(CheckpointError, match="'image-to-image' is no task of this package"):
        ModelDirectory.open(tmp_path, "image-to-image")


def test_a_configuration_that_contradicts_itself(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"contradicts itself: pipeline\.type '.*' means video-to-video, task '.*' means image-to-",
    ):
        opened(tmp_path, I2V, pipeline__type="video-to-video-pipeline")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt", ".pt"])
def test_the_same_file_with_another_suffix(tmp_path: Path, suffix: str) -> None:
    write_configuration(tmp_path, T2V)
    touch_weights(tmp_path)
    (tmp_path / "clip.bin").rename(tmp_path / f"clip{suffix}")
    (tmp_path / "clip.txt").touch()
    assert ModelDirectory.open(tmp_path).clip_path == tmp_path / f"clip{suffix}"


def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path) -> None:
    write_configuration(tmp_path, T2V)
    with pytest.raises(CheckpointError, match="holds no weights at all"):
        ModelDirectory.open(tmp_path)
    touch_weights(tmp_path)
    (tmp_path / "unet.pth").rename(tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError,
        match=r"There is no file .*unet\.pth, which model\.model_args\.ckpt_unet names.*bin, other\.pth",
    ):
        ModelDirectory.open(tmp_path)


def test_what_is_no_model_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no directory .*nowhere"):
        ModelDirectory.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no configuration\.json"):
        ModelDirectory.open(tmp_path)
    (tmp_path / "configuration.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"configuration\.json is not valid JSON"):
        ModelDirectory.open(tmp_path)
    (tmp_path / "configuration.json").write_bytes(b'{"task": "\xff"}')
    with pytest.raises(CheckpointError, match=r"configuration\.json is not valid JSON"):
        ModelDirectory.open(tmp_path)
    (tmp_path / "configuration.json").write_text("[]")
    with pytest.raises(CheckpointError, match="should hold a JSON object, and holds a list"):
        ModelDirectory.open(tmp_path)
    with pytest.raises(CheckpointError, match="is a file; the model directory"):
        ModelDirectory.open(tmp_path / "configuration.json")


BAD: list[tuple[str, Any, str]] = [
    ("task", 3, "a text"),
    ("model", [], "an object"),
    ("pipeline__type", "text-to-speech", "image-to-video-task-pipeline"),
    ("pipeline", "image-to-video-task-pipeline", "an object"),
    ("model__model_args", "unet.pth", "an object"),
    ("model__model_args__ckpt_unet", ["unet.pth"], "a text"),
    ("model__model_args__ckpt_unet", "", "a text"),
    ("model__model_args__max_frames", "16", "a whole number from 1 up"),
    ("model__model_cfg__max_frames", 0, "a whole number from 1 up"),
    ("model__model_cfg__max_frames", True, "a whole number from 1 up"),
    ("model__model_cfg__max_frames", 16.0, "a whole number from 1 up"),
    ("model__model_cfg__latent_hei", -32, "a whole number from 1 up"),
    ("model__model_cfg__target_fps", "8", "a whole number from 1 up"),
    ("model__model_cfg__guidance_scale", "3", "a number from 0 up"),
    ("model__model_cfg__guidance_scale", float("nan"), "a number from 0 up"),
    ("model__model_cfg__scheduler", "euler", "one of ddim, dpmpp_2m, dpmpp_2m_sde, heun, unipc"),
    ("model__model_cfg__scheduler", ["ddim"], "one of ddim"),
    ("model__model_cfg__unet_dim", "320", "a whole number from 1 up"),
    ("model__model_cfg__unet_dim", 40, "a multiple of 32"),
    ("model__model_cfg__unet_head_dim", 7, "should divide"),
    ("model__model_cfg__unet_dim_mult", 4, "a list of whole numbers from 1 up"),
    ("model__model_cfg__unet_dim_mult", [1, "2"], "a list of whole numbers from 1 up"),
    ("model__model_cfg__unet_dim_mult", [], "a list of whole numbers from 1 up"),
    ("model__model_cfg__unet_attn_scales", ["1"], "a list of numbers"),
    ("model__model_cfg__unet_dropout", -1, "a number from 0 up"),
    ("model__model_cfg__temporal_attention", "False", "true"),
    ("model__model_cfg__ddconfig", 3, "an object"),
    ("model__model_cfg__ddconfig__ch", 20, "a multiple of 32"),
    ("model__model_cfg__ddconfig__ch_mult", [0], "a list of whole numbers from 1 up"),
    ("model__model_cfg__clip", 3, "the name of an open_clip architecture"),
    ("model__model_cfg__clip", "", "the name of an open_clip architecture"),
    ("model__model_cfg__clip__embed_dim", None, "a whole number from 1 up"),
    ("model__model_cfg__clip__text_cfg", {}, "an object as in open_clip"),
]


@pytest.mark.parametrize(("key", "value", "right"), BAD)
def test_a_wrong_value_is_named_by_its_dotted_key(tmp_path: Path, key: str, value: Any, right: str) -> None:
    with pytest.raises(CheckpointError) as raised:
        opened(tmp_path, I2V, **{key: value})
    text = str(raised.value)
    assert "configuration.json" in text and right in text
    assert f"{key.replace('__', '.')} is " in text


@pytest.mark.parametrize(
    ("absent", "key", "right"),
    [
        (("pipeline",), "task", "image-to-video, video-to-video"),
        (("pipeline", "task"), "model__type", "image-to-video-model"),
    ],
)
def test_a_name_that_tells_nothing(tmp_path: Path, absent: Any, key: str, right: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{key.replace('__', '.')} is 'x' and .* runs: {right}"):
        opened(tmp_path, I2V, **dict.fromkeys(absent, ...), **{key: "x"})


@pytest.mark.parametrize("key", ["ckpt_unet", "ckpt_clip", "ckpt_autoencoder"])
def test_a_missing_file_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.model_args\.{key} is missing"):
        opened(tmp_path, T2V, **{f"model__model_args__{key}": ...})


def test_text_to_video_says_what_its_weights_predict(tmp_path: Path) -> None:
    assert opened(tmp_path, T2V, model__model_cfg__mean_type="v").family.prediction == "v"
    assert opened(tmp_path, T2V, model__model_cfg__mean_type="eps").family is FAMILIES[T2V]
    assert opened(tmp_path, I2V, model__model_cfg__mean_type="eps").family is FAMILIES[I2V]
    with pytest.raises(CheckpointError, match="mean_type is 'x0' and should be 'eps' or 'v'"):
        opened(tmp_path, T2V, model__model_cfg__mean_type="x0")
