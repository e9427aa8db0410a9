"""``pipeline(task, model=<a folder of diffusers>)``, as diffusers itself writes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, I2VGenXLUNet
from modelscope.outputs import OutputKeys
from modelscope.pipelines import pipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from modelscope_i2v.checkpoints.inspect import inspect
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.errors import CheckpointError
from modelscope_i2v.plugin import pipelines
from modelscope_i2v.spec.families import I2VGEN_XL, TEXT_TO_VIDEO, VIDEO_TO_VIDEO

TASK = I2VGEN_XL.task
SMALL = {"num_inference_steps": 1, "num_frames": 2, "height": 64, "width": 64, "output_type": "np"}


def write_index(folder: Path, name: str) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A small I2VGen-XL."""
    folder = tmp_path_factory.mktemp("diffusers")
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "hidden_act": "gelu"}
    text = CLIPTextConfig(**tower, vocab_size=49408, num_hidden_layers=3)
    vision = CLIPVisionConfig(**tower, num_hidden_layers=2, image_size=32, patch_size=16, projection_dim=32)
    components = {
        "unet": I2VGenXLUNet(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=16,
            num_attention_heads=16,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(32,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
        ),
        "text_encoder": CLIPTextModel(text),
        "image_encoder": CLIPVisionModelWithProjection(vision),
    }
    for name, component in components.items():
        component.save_pretrained(folder / name)
    write_index(folder, "I2VGenXLPipeline")
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(written, tmp_path / "model"))


def test_a_folder_runs_without_a_configuration(folder):
    pipe = pipeline(TASK, model=str(folder), device="cpu")
    assert type(pipe) is pipelines.I2VGenXLPipeline
    made = pipe(str(picture()), caption="A boat.", **SMALL)[OutputKeys.OUTPUT_VIDEO]
    assert made.shape == (2, 64, 64, 3)


def test_a_mirrors_configuration_that_tells_nothing_is_no_hindrance(folder):
    (folder / "configuration.json").write_text('{"framework": "Pytorch", "task": "text-to-video-synthesis"}')
    assert type(pipeline(TASK, model=str(folder), device="cpu")) is pipelines.I2VGenXLPipeline


def test_a_folder_and_a_hub_directory_are_a_cascade(folder):
    models = [str(folder), str(model_directory(VIDEO_TO_VIDEO.name))]
    pipe = pipeline(TASK, model=models, device="cpu")
    assert [model.family for model in pipe.models] == [I2VGEN_XL, VIDEO_TO_VIDEO]


def test_what_is_wrong_with_a_folder_is_told(folder):
    with pytest.raises(CheckpointError, match="is a i2vgen-xl model; text-to-video-synthesis was asked"):
        pipeline(TEXT_TO_VIDEO.task, model=str(folder))
    write_index(folder, "StableDiffusionPipeline")
    with pytest.raises(CheckpointError, match="_class_name is 'StableDiffusionPipeline' and should be"):
        pipeline(TASK, model=str(folder))
    write_index(folder, "I2VGenXLPipeline")
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match="lacks its component vae"):
        pipeline(TASK, model=str(folder))


def test_inspect_tells_what_a_folder_holds(written):
    report = inspect(written)
    assert report.task == I2VGEN_XL.name
    assert [file.path.name for file in report.files] == ["unet", "text_encoder", "vae"]
    for file in report.files:
        assert not file.differences and file.size > 0 and file.used <= file.parameters
