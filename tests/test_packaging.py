"""The package as an archive: a wheel that is built from the source archive works by itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
USE = """
import modelscope_i2v
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.generator import VideoGenerator

generator = VideoGenerator.from_directory(model_directory("i2vgen-xl"), device="cpu", progress=False)
inputs = [{"image": picture(), "text": "a red circle"}]
(video,) = generator(inputs, num_inference_steps=1, num_frames=1, output_type="np")
print(modelscope_i2v.__file__, video.shape)
"""


def test_the_source_archive_makes_a_wheel_that_works(tmp_path: Path) -> None:
    checkout, dist, installed = (tmp_path / name for name in ("checkout", "dist", "installed"))
    unwanted = shutil.ignore_patterns(
        ".*", "*.egg-info", "__pycache__", "build", "tests", "benchmarks", "docs"
    )
    shutil.copytree(ROOT, checkout, ignore=unwanted)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, checkout]
    subprocess.run(build, check=True, capture_output=True)  # the wheel out of the source archive
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        archive.extractall(installed)
    package = ROOT / "modelscope_i2v"
    wanted = {
        file.relative_to(ROOT).as_posix()
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in inside if ".dist-info/" not in name} == wanted
    assert "modelscope_i2v/py.typed" in wanted
    metadata = next(installed.glob("*.dist-info")) / "METADATA"
    required = [line for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist")]
    assert "Requires-Dist: torchvision" in required and "Requires-Dist: torch>=2.5" in required
    used = subprocess.run(
        [sys.executable, "-c", USE], cwd=installed, env={"PATH": ""}, capture_output=True, text=True
    )
    assert used.returncode == 0, used.stderr
    assert used.stdout.split()[0].startswith(str(installed))


def test_the_baseline_of_types_names_modules_that_are_there() -> None:
    tomllib = pytest.importorskip("tomllib")
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"][
        "overrides"
    ]
    (excused,) = (entry["module"] for entry in overrides if "ignore_errors" in entry)
    paths = [ROOT / name.replace(".", "/") for name in excused]
    assert all(path.with_suffix(".py").is_file() or (path / "__init__.py").is_file() for path in paths)
    (core,) = (entry["module"] for entry in overrides if "disallow_untyped_defs" in entry)
    assert not [name for name in excused if any(name.startswith(part.rstrip("*")) for part in core)]
