"""What a configuration may hold, and what is said of what it may not."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

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
    ],
)
def test_mistakes(tmp_path, content, words):
    with pytest.raises(InputError) as told:
        TrainConfig.read(written(tmp_path, content))
    assert all(word in str(told.value) for word in words), str(told.value)


def test_what_json_cannot_hold_is_told_at_once():
    config = TrainConfig.of(
        {**LEAST, "sample_inputs": [Path("cat.png"), {"image": Path("dog.png"), "text": "a"}]}
    )
    assert config.to_dict()["sample_inputs"] == ["cat.png", {"image": "dog.png", "text": "a"}]
    for key, value in (("sample_inputs", [{"image": object()}]), ("card", {"name": object()})):
        with pytest.raises(InputError, match=f"{key} is .* should be made of what JSON can hold"):
            TrainConfig.of({**LEAST, key: value})


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.json cannot be read"):
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
    text = (pytestconfig.rootpath / "docs" / "training.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(TrainConfig):
        assert f"| `{field.name}` |" in text, field.name


def test_needs_no_torch():
    code = "import sys, modelscope_i2v.training.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
