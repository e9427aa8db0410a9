"""The package as a whole: its syntax, and what it leaves alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modelscope_i2v

ROOT = Path(modelscope_i2v.__file__).resolve().parent
ONLY_STOCK = ("xformers", "fairscale", "rotary_embedding_torch", "pytorch_lightning", "cv2", "easydict")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_syntax_is_python_3_10s(path):
    ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_the_default_path_imports_nothing_that_only_stock_needs():
    code = f"""
import sys, torch
import modelscope_i2v
assert "torch" in sys.modules and "open_clip" not in sys.modules
from modelscope.pipelines import pipeline
from modelscope_i2v.embedded import model_directory, picture
small = dict(num_inference_steps=1, num_frames=1, height=64, width=64)
for task, given in (("image-to-video", str(picture())), ("text-to-video-synthesis", "a boat")):
    content = pipeline(task, model=str(model_directory(task)))(given, **small)["output_video"]
    pipe = pipeline("video-to-video", model=str(model_directory("video-to-video")))
    pipe({{"video_path": content, "text": "a boat"}}, **small)
print([name for name in {ONLY_STOCK!r} if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


def test_importing_the_package_is_light():
    code = (
        "import sys, modelscope_i2v; print([m for m in ('torch', 'open_clip', 'numpy') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
