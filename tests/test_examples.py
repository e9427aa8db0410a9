"""The examples run as they are, with the embedded models, and write what they say."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import av
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def frames(path: str) -> int:
    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


def test_model_card() -> None:
    runpy.run_path(str(EXAMPLES / "model_card.py"))
    assert frames("cat.mp4") == 16


def test_options() -> None:
    runpy.run_path(str(EXAMPLES / "options.py"))
    sheets = {Image.open(f"{name}.png").tobytes() for name in ("ddim", "dpmpp_2m", "unipc")}
    assert len(sheets) == 3


def test_two_stages() -> None:
    runpy.run_path(str(EXAMPLES / "two_stages.py"))
    assert frames("star-first.mp4") == frames("star.mp4") == 8


def test_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    notebook = ModuleType("IPython.display")
    notebook.Video, notebook.display = lambda path, embed: path, shown.append
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    content = json.loads((EXAMPLES / "first_video.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    exec("\n".join(code), {})
    sheet, path = shown
    assert isinstance(sheet, Image.Image) and frames(str(path)) == 8


def test_every_example_is_run() -> None:
    run = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert len(scripts) == 3 and scripts <= run
    assert [path.name for path in EXAMPLES.glob("*.ipynb")] == ["first_video.ipynb"]
