"""What a configuration may hold, and what is said of what it may not."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modelscope_i2v.errors import InputError
from modelscope_i2v.training.config import TrainConfig

LEAST = {"model": "m", "output": "o", "data": {"cache": "c"}}


def written(tmp_path, content) -> str:
    path = tmp_path / "train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_reads_and_writes_itself(tmp_path):
    config = TrainConfig.read(written(tmp_path, {**LEAST, "timesteps": {"power": 0.5}}), {"steps": 500})
    assert config.steps == 500 and config.timesteps == {"power": 0.5} and config.betas == (0.9, 0.99)
    assert TrainConfig.of(config.to_dict()) == config


@pytest.mark.parametrize(
    "content, words",
    [
        ({**LEAST, "learning_rate": 1}, ["train.json", "'learning_rate'"]),
        ({**LEAST, "step": 1}, ["'step'", "'steps'"]),
        ({**LEAST, "batch_sise": 1}, ["did you mean 'batch_size'"]),
        ({"model": "m", "output": "o"}, ["'data' is missing"]),
        ({**LEAST, "steps": "many"}, ["steps is 'many'", "whole number from 1"]),
        ({**LEAST, "steps": True}, ["steps is True"]),
        ({**LEAST, "lr": 0}, ["lr is 0", "above 0"]),
        ({**LEAST, "lr": float("nan")}, ["lr is nan"]),
        ({**LEAST, "image_ratio": 2}, ["image_ratio is 2", "from 0 to 1"]),
        ({**LEAST, "mode": "new"}, ["'scratch' or 'full' or 'lora'"]),
        ({**LEAST, "betas": [0.9]}, ["betas"]),
        ({**LEAST, "timesteps": "often"}, ["timesteps is 'often'", "stratified"]),
        ({**LEAST, "loss_weighting": {"min": 5}}, ["loss_weighting", "min_snr"]),
        ({**LEAST, "data": {}}, ["data is {}", "cache, folder, msdataset"]),
        ({**LEAST, "data": {"cache": "a", "folder": "b"}}, ["one of the keys"]),
        ({**LEAST, "data": {"cache": "a", "fold": "b"}}, ["'fold'"]),
        ({**LEAST, "compile": 1}, ["compile is 1", "true or false"]),
        ({**LEAST, "steps": 10, "warmup": 10}, ["warmup (10)", "steps (10)"]),
        ({**LEAST, "mode": "lora", "initial_weights": "w"}, ["initial_weights"]),
        ({**LEAST, "card": ["name"]}, ["card is ['name']", "an object"]),
        ({**LEAST, "lora": {"rank": 0}}, ["'rank' is a whole number"]),
        ([1], ["should hold a JSON object"]),
        ("{", ["not valid JSON"]),
        ("[" * 100_000, ["train.json", "nested too deep"]),
        ('{"steps": ' + "1" * 5000 + "}", ["train.json", "number that is too long"]),
        ('{"card": {"name": ' + "[" * 500 + "]" * 500 + "}}", ["card is", "at most 20 levels"]),
        ({**LEAST, "lr": 10**400}, ["lr is 1000", "above 0"]),
        ({**LEAST, "steps": 10**400}, ["steps is 1000", "whole number from 1 to 1,000,000,000"]),
        ({**LEAST, "batch_size": 10**9}, ["batch_size is 1000000000", "to 65,536"]),
        ({**LEAST, "betas": [1, 1]}, ["betas is [1, 1]", "below 1"]),
        ({**LEAST, "betas": {"a": 1}}, ["betas", "two numbers"]),
        ({**LEAST, "loss_weighting": {"min_snr": 1e300}}, ["loss_weighting", "min_snr"]),
        ({**LEAST, "data": {"folder": "f", "fps": 1e-300}}, ["'fps' is a number from 0.01 to 1000"]),
        ({**LEAST, "data": {"folder": "f", "height": 10**9}}, ["'height' is a whole number from 8 to 8,192"]),
        ({**LEAST, "model": "m" * 5000}, ["model is 'mmm", "at most 4,095 bytes", "255"]),
        ({**LEAST, "output": "a\0b"}, ["output", "null characters"]),
        ({**LEAST, "output": "a/\ud800"}, ["output", "valid Unicode"]),
        ({**LEAST, "dropped_text": "\ud800"}, ["dropped_text", "valid Unicode"]),
        ({**LEAST, "card": {"license": "\ud800"}}, ["card", "valid Unicode"]),
        ({**LEAST, "card": {"license": float("nan")}}, ["card", "finite numbers"]),
        ({**LEAST, "sample_inputs": [{"text": float("inf")}]}, ["sample_inputs", "finite numbers"]),
        ({**LEAST, "sample_options": {"guidance_scale": 10**400}}, ["sample_options", "finite numbers"]),
        ({**LEAST, "k" * 5000: 1}, ["there is no key 'kkk"]),
        ({**LEAST, "data": {"cache": "c", "k" * 5000: 1}}, ["keys are of cache", "'kkk"]),
        ({**LEAST, "mode": ["lora"]}, ["mode is ['lora']"]),
        ({**LEAST, "timesteps": ["uniform"]}, ["timesteps is ['uniform']"]),
    ],
    ids=lambda value: type(value).__name__,  # some of them are too long for a name
)
def test_mistakes(tmp_path, content, words):
    with pytest.raises(InputError) as told:
        TrainConfig.read(written(tmp_path, content))
    message = str(told.value)
    assert all(word in message for word in words), message
    assert len(message) < 1500 and "\n" not in message and "Error" not in message


@pytest.mark.parametrize(
    "value", [10**5000, object(), np.zeros(3), {1: 2}, b"a"], ids=["int", "object", "array", "keys", "bytes"]
)
def test_no_value_of_any_key_raises_another_error(value):
    for field in dataclasses.fields(TrainConfig):
        with pytest.raises(InputError, match=f"{field.name} is .* should be"):
            TrainConfig.of({**LEAST, field.name: value})


@pytest.mark.parametrize("kind", ["pipe", "folder", "large"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "train.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(10**10)
    words = {"pipe": "a named pipe", "folder": "a directory", "large": "too large"}[kind]
    with pytest.raises(InputError, match=f"train.json.*{words}"):
        TrainConfig.read(path)


def test_what_others_read_names_no_place_on_this_machine(tmp_path):
    image = tmp_path / "cat.png"
    image.touch()
    values = {
        "model": str(tmp_path / "private" / "model"),
        "output": str(tmp_path / "private" / "run"),
        "data": {"folder": str(tmp_path / "private" / "clips"), "captions": "private/words.csv"},
        "cache": "private/cache",
        "initial_weights": "C:\\private\\unet.pth",
        "sample_inputs": ["a boat, and/or a ship", {"image": str(image), "text": "a boat"}],
        "sample_options": {"output_video": "~/private/a.mp4"},
        "card": {"example": {"image": f"file://{tmp_path}/private/b.png"}},
    }
    config = TrainConfig.of(values)
    published = config.published()
    assert "private" not in json.dumps(published) and str(tmp_path) not in json.dumps(published)
    assert published["model"] == "model" and published["data"] == {"folder": "clips", "captions": "words.csv"}
    assert published["sample_inputs"] == ["a boat, and/or a ship", {"image": "cat.png", "text": "a boat"}]
    assert config.to_dict()["model"] == values["model"]
    hub = TrainConfig.of({**LEAST, "model": "damo/Image-to-Video"})
    assert hub.published()["model"] == "damo/Image-to-Video"


def test_what_json_cannot_hold_is_told_at_once():
    config = TrainConfig.of(
        {**LEAST, "sample_inputs": [Path("cat.png"), {"image": Path("dog.png"), "text": "a"}]}
    )
    assert config.to_dict()["sample_inputs"] == ["cat.png", {"image": "dog.png", "text": "a"}]
    for key, value in (("sample_inputs", [{"image": object()}]), ("card", {"name": object()})):
        with pytest.raises(InputError, match=f"{key} is .* should be made of what JSON can hold"):
            TrainConfig.of({**LEAST, key: value})


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"There is no file .*none\.json"):
        TrainConfig.read(tmp_path / "none.json")


def test_what_a_resumed_run_may_change():
    config = TrainConfig.of(LEAST)
    earlier = config.to_dict()
    config.check_resume(earlier, "step-5")
    harmless = {"max_minutes": 5.0, "checkpoint_every": 7, "num_threads": 2, "compile": True, "output": "p"}
    dataclasses.replace(config, **harmless).check_resume(earlier, "step-5")
    for change in ({"lr": 1.0}, {"seed": 1}, {"batch_size": 3}, {"data": {"cache": "d"}}, {"steps": 20_000}):
        with pytest.raises(InputError, match=f"step-5 was made with {next(iter(change))} = "):
            dataclasses.replace(config, **change).check_resume(earlier, "step-5")
    more = dataclasses.replace(config, data={**config.data, "workers": 3})
    more.check_resume(earlier, "step-5")
    constant = dataclasses.replace(config, lr_schedule="constant")
    dataclasses.replace(constant, steps=20_000).check_resume(constant.to_dict(), "step-5")


def test_every_field_is_documented(pytestconfig):
    text = (pytestconfig.rootpath / "docs" / "guide" / "training.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(TrainConfig):
        mark = " *" if field.metadata["harmless"] else ""
        row = rf"^\| `{field.name}` \| .* \| {re.escape(field.metadata['help'] + mark)} \|$"
        assert re.search(row, text, re.MULTILINE), field.name


def test_needs_no_torch():
    code = "import sys, modelscope_i2v.training.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
