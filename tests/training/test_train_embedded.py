"""The script that trains the embedded models, every step of it, with a few steps each."""

import json
import subprocess
import sys
from pathlib import Path

from modelscope_i2v.families import FAMILIES

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_embedded.sh"


def test_it_makes_all_four_models_and_their_scores_from_nothing(tmp_path):
    command = ["bash", str(SCRIPT), "--smoke", str(tmp_path / "made")]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "HOME": str(tmp_path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for name in FAMILIES:
        model = tmp_path / "made" / "embedded" / name
        assert {file.name for file in model.iterdir()} == {"configuration.json", "unet.safetensors"}
        assert json.loads((tmp_path / "made" / "evaluation" / name / "report.json").read_text())
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "==" not in again.stdout  # all is there
