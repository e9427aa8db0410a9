"""What a run leaves behind, and the ways to start one."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from modelscope_i2v.checkpoints.convert import convert
from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.cli.main import main
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.errors import CheckpointError, InputError, NumericalError, OutputError
from modelscope_i2v.evaluation import evaluate
from modelscope_i2v.spec.families import FAMILIES
from modelscope_i2v.training import card, result
from modelscope_i2v.training.curves import running_mean
from modelscope_i2v.training.machine import Machine
from modelscope_i2v.training.progress import remaining
from modelscope_i2v.training.result import write_model
from modelscope_i2v.training.trainer import Trainer


def front_matter(path):
    return yaml.safe_load(path.read_text(encoding="utf-8").split("---\n")[1])


def test_the_model_is_loaded_by_a_pipeline(configured, tmp_path, pictures):
    example = tmp_path / "cat.png"
    Image.new("RGB", (80, 64), "red").save(example)
    config = configured(
        "image-to-video",
        steps=2,
        sample_every=2,
        sample_inputs=[str(example)],
        sample_options={"num_inference_steps": 2},
        card={"license": "MIT", "name": "Cats", "example": {"off": "a: b"}, "#1: \x7f": ["\u2028"]},
    )
    trainer = Trainer(config, progress=False)
    model = trainer.run()
    assert Image.open(tmp_path / "run" / "samples" / "step-000002.png").width > 500
    assert Image.open(model / "curve.png").width == 900
    assert any((tmp_path / "run" / "tensorboard").iterdir())

    written = load_file(model / "unet.safetensors")
    for name, value in trainer.average.values.items():
        assert torch.equal(written[name], value.half())
    from modelscope.pipelines import pipeline

    make = pipeline("image-to-video", str(model), device="cpu")
    video = make(str(example), num_inference_steps=2, output_type="np", seed=0, progress=False)
    assert np.asarray(video["output_video"]).shape == (4, 64, 64, 3)

    content = front_matter(model / "README.md")
    assert content["tasks"] == ["image-to-video"] and content["license"] == "MIT"
    assert content["example"] == {"off": "a: b"} and content["#1: \x7f"] == ["\u2028"]
    assert json.loads((model / "train.json").read_text())["sample_inputs"] == ["cat.png"]
    for name in ("train.json", "README.md", "configuration.json"):
        assert str(tmp_path) not in (model / name).read_text(encoding="utf-8"), name
    weights, text = (model / name for name in ("unet.safetensors", "README.md"))
    assert weights.stat().st_mode == text.stat().st_mode  # what new files get, not 0600
    (widget,) = content["widgets"]
    assert widget["task"] == "image-to-video" and widget["inputs"][0]["type"] == "image"
    assert widget["examples"][0]["inputs"] == [{"name": "image", "data": "git://example.png"}]
    assert (model / "example.png").is_file()
    assert set(widget["inferencespec"]) == {"cpu", "memory", "gpu", "gpu_memory"}
    assert "# Cats" in (model / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_cards_name_the_inputs_of_their_task(family, tmp_path):
    example = card.example(family, tmp_path, [], 'a "boat": small')
    text = card.front_matter(family, {"memory": 2000}, example)
    widget = yaml.safe_load(text.split("---\n")[1])["widgets"][0]
    assert widget["task"] == family.task
    names = [wanted["name"] for wanted in widget["inputs"]]
    from modelscope_i2v.engine.requests import input_keys

    assert set(names) <= set(input_keys(family))
    assert ("text" in names) == family.reads_text
    given = {item["name"]: item["data"] for item in widget["examples"][0]["inputs"]}
    assert given.get("text", 'a "boat": small') == 'a "boat": small'


def test_full_size_models_need_what_they_do():
    family = FAMILIES["text-to-video-synthesis"]
    spec = card.memory(2_800_000_000, family.unet, 16, 256, 256)
    assert 5000 <= spec["gpu_memory"] < 20_000 and spec["memory"] > spec["gpu_memory"]


def test_full_fine_tuning_begins_with_the_model(configured, models):
    before = load_file(models("i2vgen-xl") / "unet.safetensors")
    trainer = Trainer(configured("i2vgen-xl", mode="full", steps=2), progress=False)
    assert all(torch.equal(value, before[name]) for name, value in trainer.trained.items())
    model = trainer.run()
    after = load_file(model / "unet.safetensors")
    assert after.keys() == before.keys()
    assert not torch.equal(after["out.2.weight"], before["out.2.weight"].half())


def test_a_folder_of_diffusers_becomes_a_directory_of_the_hub(models, tmp_path):
    directory = models("text-to-video-synthesis")
    folder = convert(directory, tmp_path / "folder", to="diffusers", progress=False)
    weights = load_file(directory / "unet.safetensors")
    model = write_model(tmp_path / "model", ModelDirectory.open(folder), weights)
    assert (model / "unet.safetensors").is_file() and not (model / "converted").exists()
    options = {"num_inference_steps": 2, "seed": 0, "output_type": "pt", "progress": False}
    videos = [
        VideoGenerator.from_directory(place, device="cpu")(["a"], num_frames=2, **options)[0]
        for place in (directory, model)
    ]
    assert torch.allclose(*videos, atol=0.02)


def test_lora(configured, models):
    config = configured("text-to-video-synthesis", mode="lora", lora={"rank": 2}, steps=3, lr=0.1, warmup=0)
    trainer = Trainer(config, progress=False)
    assert all("lora" in name for name in trainer.trained)
    file = trainer.run()
    assert file.name == "lora.safetensors"
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    base = models("text-to-video-synthesis")
    assert header["base"] == base.name and str(base.parent) not in str(header)
    generator = VideoGenerator.from_directory(models("text-to-video-synthesis"), device="cpu")
    options = {"num_inference_steps": 2, "seed": 1, "output_type": "pt", "progress": False}
    (plain,) = generator(["a"], **options)
    generator.load_lora(file)
    (changed,) = generator(["a"], **options)
    generator.unload_lora()
    (again,) = generator(["a"], **options)
    assert torch.equal(plain, again) and (plain - changed).abs().mean() > 1e-3
    again = Trainer(config, resume=True, progress=False)
    assert again.step == 3
    for name, value in trainer.trained.items():
        assert torch.equal(value, again.trained[name])


def test_weights_too_large_for_fp16_are_not_written(configured, tmp_path):
    trainer = Trainer(configured(), progress=False)
    trainer.average.values["out.2.bias"][0] = 1e6
    trainer._point = lambda: None
    with pytest.raises(NumericalError, match=r"out\.2\.bias is NaN, or too large for fp16"):
        trainer.write(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_samples_need_inputs_that_the_pipeline_takes(configured, tmp_path):
    with pytest.raises(InputError, match="sample_every needs sample_inputs: image-to-video"):
        Trainer(configured("image-to-video", sample_every=2))
    with pytest.raises(InputError, match=r"none\.png"):
        Trainer(configured("image-to-video", sample_every=2, sample_inputs=[str(tmp_path / "none.png")]))
    with pytest.raises(InputError, match="num_inference_step"):
        Trainer(configured(sample_every=2, sample_options={"num_inference_step": 2}))
    trainer = Trainer(configured(sample_every=2), progress=False)
    assert trainer.previews.inputs == ["one", "two"]


def test_build_trainer(configured, tmp_path):
    from modelscope.trainers import build_trainer

    config = configured("i2vgen-xl", steps=2)
    file = tmp_path / "train.json"
    file.write_text(json.dumps(config.to_dict()))
    trainer = build_trainer("i2vgen-xl-trainer", {"cfg_file": str(file), "progress": False})
    assert trainer.train() == tmp_path / "run" / "model"
    values = {**config.to_dict(), "work_dir": str(tmp_path / "other"), "progress": False}
    del values["output"]
    with pytest.raises(InputError, match="is a i2vgen-xl model; its trainer is 'i2vgen-xl-trainer'"):
        build_trainer("image-to-video-trainer", values)
    with pytest.raises(InputError, match="there is no key 'stepps'; did you mean 'steps'"):
        build_trainer("i2vgen-xl-trainer", {**values, "stepps": 1})


def test_a_data_set_for_a_trainer(models, tmp_path):
    from modelscope.trainers import build_trainer

    pixels = np.random.default_rng(0).integers(0, 255, (3, 40, 40, 3), dtype=np.uint8)
    rows = [{"image": Image.fromarray(each), "caption": "c"} for each in pixels]
    settings = {"frames": 1, "steps": 1, "warmup": 0, "batch_size": 2, "device": "cpu"}
    settings |= {"data": {"height": 32, "width": 32}, "progress": False, "train_dataset": rows}
    directory = str(models("text-to-video-synthesis"))
    trainer = build_trainer(
        "text-to-video-synthesis-trainer", {"model": directory, "work_dir": str(tmp_path), **settings}
    )
    assert trainer.train() == tmp_path / "model" and len(trainer.trainer.batches.data) == 3


def test_a_data_set_is_read_as_the_file_says(models, tmp_path):
    from modelscope.trainers import build_trainer

    pixels = np.zeros((40, 40, 3), np.uint8)
    rows = [{"picture": Image.fromarray(pixels), "words": "c"}]
    data = {"folder": "elsewhere", "height": 16, "width": 24}
    data |= {"file_column": "picture", "caption_column": "words"}
    values = {"data": data, "frames": 1, "steps": 1, "warmup": 0, "batch_size": 1, "device": "cpu"}
    file = tmp_path / "train.json"
    file.write_text(json.dumps({**values, "model": str(models("text-to-video-synthesis")), "output": "x"}))
    settings = {"cfg_file": str(file), "work_dir": str(tmp_path), "train_dataset": rows, "progress": False}
    trainer = build_trainer("text-to-video-synthesis-trainer", settings).trainer
    cut = trainer.batches.data.cut
    assert (cut.height, cut.width) == (16, 24) and trainer.batches.data.captions == ("", "c")


def test_lora_is_evaluated_beside_its_model(configured, tmp_path):
    from modelscope.trainers import build_trainer

    name = "text-to-video-synthesis"
    config = configured(name, mode="lora", lora={"rank": 2}, steps=3, lr=0.1, warmup=0)
    file = tmp_path / "train.json"
    file.write_text(json.dumps(config.to_dict()))
    trainer = build_trainer(f"{name}-trainer", {"cfg_file": str(file), "progress": False})
    trainer.train()
    wish = {"clips": 2, "num_inference_steps": 2, "height": 32, "width": 32, "num_frames": 3}
    wish["output"] = tmp_path / "evaluation"
    assert "colour right, all" in trainer.evaluate(**wish)
    generator = VideoGenerator.from_directory(config.model, device="cpu")
    plain = [clip["seen"] for clip in evaluate(generator, **{**wish, "output": None}).clips]
    generator.load_lora(config.output + "/lora.safetensors")
    changed = [clip["seen"] for clip in evaluate(generator, **{**wish, "output": None}).clips]
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert [clip["seen"] for clip in report["clips"]] == json.loads(json.dumps(changed)) != plain


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "x"), "The disk is full: .*model was not written"),
        (OSError(errno.EIO, "x"), "model cannot be written: x"),
    ],
    ids=["full", "broken"],
)
def test_a_full_disk_leaves_the_model_that_was_there(configured, tmp_path, monkeypatch, error, words):
    trainer = Trainer(configured(steps=1, warmup=0), progress=False)
    model = trainer.run()
    before = {file.name: file.read_bytes() for file in model.iterdir()}

    def full(*_):
        raise error

    monkeypatch.setattr(result, "write_safetensors", full)
    with pytest.raises(OutputError, match=words):
        trainer.write(model)
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before
    assert [path.name for path in model.parent.iterdir() if path.name.startswith(".")] == [".lock"]


def test_the_command(configured, tmp_path, capsys):
    file = tmp_path / "train.json"
    file.write_text(json.dumps(configured(steps=3).to_dict()))
    command = ["train", str(file), "--no-progress"]
    assert main([*command, "--set", "max_minutes=0.0000001"]) == 0
    assert "Stopped after step 1 of 3; --resume goes on." in capsys.readouterr().out
    assert main(command) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert main([*command, "--resume", "--set", "lr=0.5"]) == 1
    assert "made with lr = 0.001" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert str(tmp_path / "run" / "model") in capsys.readouterr().out
    assert main([*command, "--set", "lr"]) == 2
    assert main([*command, "--set", "sead=1"]) == 1
    assert "did you mean 'seed'" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "none.json")]) == 1


def test_a_model_that_is_not_there(configured, tmp_path):
    with pytest.raises(CheckpointError, match="There is no model directory"):
        Trainer(configured(model=str(tmp_path / "none")))


def test_other_things_that_are_told():
    assert [remaining(s) for s in (4.4, 300, 7500)] == ["4 s", "5 min", "2 h 05 min"]
    assert running_mean(np.array([1.0, 3.0, 5.0]), 0.67).tolist() == [1.0, 2.0, 4.0]


def test_an_error_of_the_main_process_ends_the_run():
    machine = Machine("cpu")
    with pytest.raises(ZeroDivisionError):
        machine.on_main(lambda: 1 / 0)
    assert machine.main and not machine.any(False) and machine.mean(torch.ones(())) == 1
