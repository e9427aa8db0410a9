"""LoRAs through VideoGenerator, ModelScope's pipelines and the command line, with the embedded models."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from modelscope.pipelines import pipeline

from modelscope_i2v.adapters.lora import add_lora, save_lora
from modelscope_i2v.cli import make
from modelscope_i2v.cli.main import main
from modelscope_i2v.cli.parser import _lora
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.errors import CheckpointError, InputError
from modelscope_i2v.media.videos import read_video
from modelscope_i2v.spec.families import I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO, Family

SMALL = {"num_inference_steps": 1, "num_frames": 2, "height": 64, "width": 64, "seed": 7, "output_type": "np"}


@pytest.fixture(scope="module")
def style(tmp_path_factory: pytest.TempPathFactory, learned: Callable) -> Callable[[Family], Path]:
    """A LoRA for a family's embedded model."""
    made: dict[str, Path] = {}

    def of(family: Family) -> Path:
        if family.name not in made:
            network = VideoGenerator.from_directory(model_directory(family.name), device="cpu").unet
            torch.manual_seed(0)
            path = tmp_path_factory.mktemp("lora") / f"{family.name}.safetensors"
            made[family.name] = save_lora(learned(add_lora(network, 2)), path, family=family.name)
        return made[family.name]

    return of


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs a command in an empty folder: its exit code, and what it said."""

    def run(*arguments: object) -> tuple[int, str]:
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = main([str(argument) for argument in arguments])
        return code, said.getvalue()

    monkeypatch.chdir(tmp_path)
    return run


def test_a_generator_makes_other_videos_with_it_and_the_same_again_without(style):
    generator = VideoGenerator.from_directory(model_directory(TEXT_TO_VIDEO.name), device="cpu")
    (before,) = generator(["a boat"], **SMALL)
    assert generator.load_lora(style(TEXT_TO_VIDEO), 2.0, "strong") == "strong"
    assert generator.loras == {"strong": 2.0}
    (strong,) = generator(["a boat"], **SMALL)
    generator.scale_lora("strong", 0.5)
    (weak,) = generator(["a boat"], **SMALL)
    assert not any(np.array_equal(a, b) for a, b in ((before, strong), (before, weak), (weak, strong)))
    generator.unload_lora("strong")
    assert np.array_equal(generator(["a boat"], **SMALL)[0], before)


def test_it_stays_when_fp16_overflows_and_fp32_takes_over(style):
    generator = VideoGenerator.from_directory(model_directory(TEXT_TO_VIDEO.name), device="cpu")
    generator.load_lora(style(TEXT_TO_VIDEO))
    (right,) = generator(["a boat"], **SMALL)
    half = VideoGenerator.from_directory(model_directory(TEXT_TO_VIDEO.name), device="cpu", dtype="fp16")
    half.load_lora(style(TEXT_TO_VIDEO))
    layer = half.unet.time_embed[0]
    # What fp16 cannot hold, the first time only.
    layer.register_forward_hook(
        lambda module, args, output: output * float("inf") if module.weight.dtype == torch.float16 else output
    )
    with pytest.warns(UserWarning, match="Denoising in torch.float16 gave NaN or infinity"):
        (found,) = half(["a boat"], **SMALL)
    assert np.abs(found.astype(int) - right).mean() < 1
    assert half.loras == {TEXT_TO_VIDEO.name: 1.0}


def test_a_pipeline_takes_them(style):
    pipe = pipeline(TEXT_TO_VIDEO.task, model=str(model_directory(TEXT_TO_VIDEO.name)), device="cpu")
    before = pipe("a boat", **SMALL)["output_video"]
    name = pipe.load_lora(style(TEXT_TO_VIDEO), scale=1.5)
    assert pipe.loras == {TEXT_TO_VIDEO.name: 1.5} == {name: 1.5}
    changed = pipe("a boat", **SMALL)["output_video"]
    with pytest.raises(InputError, match="stage='first' does not work: only a cascade has stages"):
        pipe.load_lora(style(TEXT_TO_VIDEO), stage="first")
    with pytest.raises(CheckpointError, match=r"another network \(of the family i2vgen-xl\)"):
        pipe.load_lora(style(I2VGEN_XL))
    with pytest.raises(InputError, match="There is no LoRA 'other': loaded are 'text-to-video-synthesis'"):
        pipe.unload_lora("other")
    assert np.array_equal(pipe("a boat", **SMALL)["output_video"], changed)
    pipe.scale_lora(name, 0)
    assert np.array_equal(pipe("a boat", **SMALL)["output_video"], before)
    pipe.unload_lora()
    assert pipe.loras == {} and np.array_equal(pipe("a boat", **SMALL)["output_video"], before)
    assert not np.array_equal(before, changed)


def test_a_cascade_is_told_which_stage(style):
    models = [str(model_directory(family.name)) for family in (IMAGE_TO_VIDEO, VIDEO_TO_VIDEO)]
    pipe = pipeline(IMAGE_TO_VIDEO.task, model=models, device="cpu")
    sizes = {"num_frames": 1, "num_inference_steps": 1, "height": 64, "width": 64, "seed": 1}
    sizes |= {"first_options": {"height": 64, "width": 64}, "refine_options": {"num_inference_steps": 2}}

    def videos() -> tuple[np.ndarray, np.ndarray]:
        made = pipe(str(picture()), output_type="np", keep_first=True, **sizes)
        return made["first_video"], made["output_video"]

    before = videos()
    with pytest.raises(
        InputError, match="stage=None does not work: in a cascade it must be 'first' or 'refine'"
    ):
        pipe.load_lora(style(VIDEO_TO_VIDEO))
    pipe.load_lora(style(VIDEO_TO_VIDEO), stage="refine")
    refined = videos()
    assert np.array_equal(refined[0], before[0]) and not np.array_equal(refined[1], before[1])
    pipe.load_lora(style(IMAGE_TO_VIDEO), stage="first")
    assert set(pipe.loras) == {IMAGE_TO_VIDEO.name, VIDEO_TO_VIDEO.name}
    pipe.unload_lora(VIDEO_TO_VIDEO.name)
    assert not np.array_equal(videos()[0], before[0])
    pipe.unload_lora()
    assert all(np.array_equal(*pair) for pair in zip(videos(), before))


def test_the_command_line_takes_several(run, style, tmp_path):
    model = model_directory(TEXT_TO_VIDEO.name)
    small = ("--num-inference-steps", 1, "--num-frames", 1, "--height", 64, "--width", 64, "--seed", 3)
    path = style(TEXT_TO_VIDEO)
    for output, *more in (
        ("plain.mp4",),
        ("none.mp4", "--lora", f"{path}:0"),
        ("half.mp4", "--lora", f"{path}:0.5"),
        ("twice.mp4", "--lora", f"{path}:0.25", "--lora", f"{path}:0.25"),
    ):
        code, said = run("text-to-video", "a boat", "--model", model, "-o", output, *small, *more)
        assert code == 0, said
    plain, none, half, twice = (
        read_video(name).frames.astype(int) for name in ("plain.mp4", "none.mp4", "half.mp4", "twice.mp4")
    )
    assert np.array_equal(plain, none)
    assert np.abs(half - plain).mean() > 5 * np.abs(half - twice).mean()


def test_a_bad_lora_is_told_before_a_model_loads(run, style, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "find_model", lambda *_: pytest.fail("a model was fetched"))
    code, said = run("text-to-video", "a boat", "--lora", "nowhere.safetensors:0.5")
    assert code == 1 and "error: There is no LoRA nowhere.safetensors: neither" in said
    (tmp_path / "file.safetensors").write_text("hello")
    code, said = run("text-to-video", "a boat", "--lora", "file.safetensors")
    assert code == 1 and "file.safetensors is text, not weights" in said
    code, said = run("text-to-video", "a boat", "--lora", f"{style(TEXT_TO_VIDEO)}:nan")
    assert code == 2 and "must be a path, a colon and a number" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a:-0.5", ("a", -0.5)),
        ("C:\\loras\\a.bin", ("C:\\loras\\a.bin", 1.0)),
        ("C:\\loras\\a.bin:2", ("C:\\loras\\a.bin", 2.0)),
    ],
)
def test_a_path_may_have_a_scale_behind_it(text, read):
    assert _lora(text) == read


def test_a_path_that_ends_in_a_number_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        Path("take:2").mkdir()
    except OSError:  # Windows knows no such name
        return
    assert _lora("take:2") == ("take:2", 1.0)
