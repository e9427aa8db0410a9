"""A video's file says how it was made; ``inspect`` shows it and ``--like`` makes it again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modelscope_i2v import VideoGenerator
from modelscope_i2v.cli import make
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.record import fingerprint
from modelscope_i2v.media.videos import read_video
from modelscope_i2v.media.write import read_metadata, write_video

SMALL = ("--num-frames", 2, "--height", 64, "--width", 64, "--num-inference-steps", 3, "--device", "cpu")


def frames(path: str) -> np.ndarray:
    return read_video(path).frames


def again(run, first: str, *arguments: object) -> None:
    """Makes a video with some arguments, and once more from nothing but its file."""
    ended = run(*arguments, "-o", first)
    assert ended.code == 0, ended.err
    ended = run(arguments[0], "--like", first, "-o", f"again-{first}")
    assert ended.code == 0, ended.err
    np.testing.assert_array_equal(frames(f"again-{first}"), frames(first))
    one, two = read_metadata(first), read_metadata(f"again-{first}")
    assert one == two


def test_each_command_makes_its_video_again(run, tmp_path):
    shutil.copy(picture(), tmp_path / "star.png")
    again(run, "i.mp4", "image-to-video", tmp_path / "star.png", "--model", "embedded", *SMALL, "--eta", 0.5)
    again(
        *(run, "t.webp", "text-to-video", "--prompt", "a red star moves up", "--model", "embedded", *SMALL),
        *("--dtype", "bf16", "--negative-prompt", "", "--scheduler", "dpmpp_2m"),
    )
    write_video(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8), "noise.mp4", fps=5)
    again(run, "v.mp4", "video-to-video", "noise.mp4", "--text", "a star", "--model", "embedded", *SMALL)
    ended = run("image-to-video", "--like", "i.mp4", "--seed", 99, "-o", "other.mp4")
    assert ended.code == 0 and read_metadata("other.mp4")["seed"] == 99  # a flag wins
    assert not np.array_equal(frames("other.mp4"), frames("i.mp4"))

    made = read_metadata("i.mp4")
    assert made["input"] == {"name": "star.png", "hash": fingerprint("star.png")}
    assert made["model"] == "embedded/image-to-video" and len(made["weights"]) == 16
    assert "strength" not in made and "text" not in made  # which the model has not
    assert str(tmp_path) not in json.dumps(made) and os.sep not in json.dumps(made["input"])
    ended = run("inspect", "i.mp4", "t.webp", "noise.mp4")
    assert ended.code == 0 and '  model: "embedded/image-to-video"' in ended.out
    assert '  text: "a red star moves up"' in ended.out
    assert ended.out.endswith("noise.mp4: a video without a record of how it was made\n")


def test_loras_are_in_the_record_with_their_scales(tmp_path, monkeypatch):
    from modelscope_i2v.engine import generator as engine

    generator = VideoGenerator.from_directory("embedded", "text-to-video")
    tmp_path.joinpath("my style.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(engine.adapters, "load_lora", lambda unet, path, scale, name, family: "1")
    monkeypatch.setattr(engine.adapters, "loras", lambda unet: {"1": 0.5})
    generator.load_lora(tmp_path / "my style.safetensors", 0.5, "1")
    expected = {"name": "my style.safetensors", "hash": fingerprint(tmp_path / "my style.safetensors")}
    assert generator.record["loras"] == [{**expected, "scale": 0.5}]


@pytest.fixture
def recorded(tmp_path):
    """Writes a video with a record."""

    def write(**made: object) -> Path:
        path = tmp_path / "made.mp4"
        write_video(np.zeros((1, 16, 16, 3), np.uint8), path, metadata=made)
        return path

    return write


KNOWN = {"family": "image-to-video", "model": "embedded/image-to-video", "seed": 1}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({}, "holds no record"),
        ({"software": "x"}, "holds no record"),
        ({**KNOWN, "family": "video-to-video"}, "was made by video-to-video"),
        ({"family": "image-to-video", "model": "embedded/image-to-video"}, "noise that no seed gives again"),
        ({**KNOWN, "model": "../secret"}, "give its --model"),
        ({**KNOWN, "model": "someone/else"}, "give its --model"),
        (KNOWN, "does not say what it was made of"),
        ({**KNOWN, "input": {"name": "cat.png", "hash": "0"}}, "cat.png, which is not here"),
        ({**KNOWN, "input": {"name": "made.mp4", "hash": "0"}}, "made.mp4, which is not here"),
        ({**KNOWN, "input": {"name": "x"}, "height": 7}, "height=7 does not work"),
    ],
)
def test_a_record_that_is_not_enough_is_said_before_a_model_loads(run, recorded, monkeypatch, made, said):
    monkeypatch.setattr(make, "load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    ended = run("image-to-video", "--like", recorded(**made))
    assert ended.code in (1, 2) and said in ended.err, ended.err


def test_prompt_is_the_text(run, tmp_path, monkeypatch):
    given = []

    def load(*_, **__):
        return lambda inputs, **_: given.append(inputs) or {"output_video": "a.mp4"}

    monkeypatch.setattr(make, "load_pipeline", load)
    Image.new("RGB", (8, 8)).save("cat.png")
    model = ("--model", "embedded/i2vgen-xl")
    assert run("image-to-video", "cat.png", "--prompt", "A cat.", *model).code == 0
    assert run("text-to-video", "--prompt", "A dog.", "--model", "embedded").code == 0
    assert given == [{"image": "cat.png", "text": "A cat."}, {"text": "A dog."}]
    assert run("text-to-video", "--model", "embedded").code == 2


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_waiting_threads_do_not_spin_unless_asked_to(given, expected):
    code = (
        "import os, sys; from modelscope_i2v.cli.main import main; main(['--version'])\n"
        "sys.exit('torch' in sys.modules or print(os.environ['OMP_WAIT_POLICY']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if given:
        environment["OMP_WAIT_POLICY"] = given
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment
    )
    assert ended.returncode == 0 and ended.stdout.split()[-1] == expected


def test_a_fingerprint_tells_files_apart(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"a" * 5_000_000)
    two.write_bytes(b"a" * 5_000_000)
    assert fingerprint(one) == fingerprint(two) and fingerprint(tmp_path / "none") is None
    two.write_bytes(b"a" * 4_999_999 + b"b")
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(tmp_path) not in (fingerprint(one), None)
    assert fingerprint(model_directory("i2vgen-xl") / "unet.safetensors") is not None
