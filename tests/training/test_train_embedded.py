"""The script that trains the embedded models, every step of it, with a few steps each."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from warm_python import warm_python

from modelscope_i2v.data.synthetic import STILL
from modelscope_i2v.spec.families import FAMILIES
from tools.embedded import cache

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "train_embedded.sh"
MODULES = ["cli.main", "training.trainer", "evaluation.run", "data.encode"]


@pytest.mark.timeout(900)
def test_it_makes_all_four_models_and_their_scores_from_nothing(tmp_path):
    command = ["bash", str(SCRIPT), "--smoke", str(tmp_path / "made")]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment |= {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
    with warm_python(tmp_path, [f"modelscope_i2v.{name}" for name in MODULES], environment) as python:
        environment["PYTHON"] = str(python)
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for name in FAMILIES:
        model = tmp_path / "made" / "embedded" / name
        assert {file.name for file in model.iterdir()} == {"configuration.json", "unet.safetensors"}
        assert json.loads((tmp_path / "made" / "evaluation" / name / "report.json").read_text())
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "==" not in again.stdout  # all is there


def test_half_of_the_scenes_teach_one_thing():
    def drawn(half):
        generator = np.random.default_rng(0)
        return [cache.draw(generator, None, half) for _ in range(200)]

    one_way, cameras = ({s.camera for s in drawn(half)} - {STILL} for half in ("one-way", "cameras"))
    assert one_way == set(cache.ONE_WAY) < cameras and len(cameras) == 6
    assert 80 < sum(scene.camera != STILL for scene in drawn("one-way")) < 120
    assert 100 < sum(len(scene.shapes) == 2 for scene in drawn("pairs")) < 150
