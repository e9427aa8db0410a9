"""What the commands do, with the embedded model."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import modelscope_i2v
from modelscope_i2v import OutputError
from modelscope_i2v.cli import make
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.media.videos import read_video
from modelscope_i2v.media.write import read_metadata, write_video
from modelscope_i2v.memory import machine as memory
from modelscope_i2v.spec.families import FAMILIES, I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO

SMALL = ("--num-inference-steps", 1, "--num-frames", 2, "--height", 32, "--width", 32, "--device", "cpu")


def stages(first, second) -> tuple[object, ...]:
    directories = map(model_directory, (first.name, second.name))
    return tuple(itertools.chain(*zip(("--first-model", "--second-model"), directories)))


@pytest.fixture
def video(tmp_path) -> Path:
    path = tmp_path / "in.mp4"
    write_video(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8), path, fps=5)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_picture_becomes_a_video_named_after_it(run, tmp_path):
    Image.open(picture()).save(tmp_path / "my cat; é.png")
    arguments = ("image-to-video", "my cat; é.png", "--model", model_directory(IMAGE_TO_VIDEO.task), *SMALL)
    ended = run(*arguments)
    assert ended.code == 0, ended.err
    assert ended.out == "Wrote my cat; é.mp4\n"
    first = read_video("my cat; é.mp4")
    assert first.frames.shape == (2, 32, 32, 3) and first.fps == 8

    seed = read_metadata("my cat; é.mp4")["seed"]
    assert f"--seed {seed} makes it again" in ended.err
    again = run(*arguments, "--seed", seed)
    assert again.out == "Wrote my cat; é-1.mp4\n" and "makes it again" not in again.err
    np.testing.assert_array_equal(read_video("my cat; é-1.mp4").frames, first.frames)
    assert names(tmp_path) == {"my cat; é.png", "my cat; é.mp4", "my cat; é-1.mp4"}


def test_a_picture_and_a_text_become_a_video(run, tmp_path):
    ended = run(
        *("image-to-video", picture(), "--text", "A boat sails.", "--negative-prompt", "rain"),
        *("--model", model_directory(I2VGEN_XL.name), "--target-fps", 12, "-o", "out.mp4", *SMALL),
    )
    assert ended.code == 0, ended.err
    assert len(read_video("out.mp4").frames) == 2
    made = read_metadata("out.mp4")
    assert (made["text"], made["negative_prompt"], made["target_fps"]) == ("A boat sails.", "rain", 12)


SMALL_STAGES = (
    *("--num-frames", 2, "--num-inference-steps", 1, "--refine-num-inference-steps", 3, "--device", "cpu"),
    *("--first-height", 64, "--first-width", 64, "--height", 80, "--width", 64),
)


@pytest.mark.parametrize("first", [IMAGE_TO_VIDEO, I2VGEN_XL], ids=lambda family: family.name)
def test_animate_makes_a_large_video_and_keeps_the_small_one(run, tmp_path, first):
    arguments = (*stages(first, VIDEO_TO_VIDEO), *SMALL_STAGES, "--seed", 5, "--text", "A boat.")
    ended = run("animate", picture(), "-o", "out.mp4", "--keep-first", *arguments)
    assert ended.code == 0, ended.err
    assert ended.out == f"Wrote {tmp_path / 'out.mp4'}\nWrote {tmp_path / 'out-first.mp4'}\n".replace(
        f"{tmp_path}{os.sep}", ""
    )
    assert read_video("out.mp4").frames.shape[:3] == (2, 80, 64)
    assert read_video("out-first.mp4").frames.shape[:3] == (2, 64, 64)
    direct = modelscope_i2v.animate(
        str(picture()),
        "A boat.",
        models=(model_directory(first.name), model_directory(VIDEO_TO_VIDEO.name)),
        **{"num_frames": 2, "num_inference_steps": 1, "height": 80, "width": 64, "seed": 5, "device": "cpu"},
        first_options={"height": 64, "width": 64},
        refine_options={"num_inference_steps": 3},
    )
    (tmp_path / "direct.mp4").write_bytes(direct)
    np.testing.assert_array_equal(read_video("out.mp4").frames, read_video("direct.mp4").frames)


def test_animate_continues_from_a_first_video(run, video, tmp_path):
    ended = run(
        *("animate", "--refine", video, "--text", "a", "--strength", 0.5, "--num-videos", 2),
        *stages(IMAGE_TO_VIDEO, VIDEO_TO_VIDEO),
        *("--num-frames", 2, "--height", 80, "--width", 64, "--refine-num-inference-steps", 3),
    )
    assert ended.code == 0, ended.err
    assert ended.out == "Wrote in-1.mp4\nWrote in-2.mp4\n" and "makes it again" in ended.err
    assert read_metadata("in-1.mp4")["strength"] == 0.5


@pytest.mark.parametrize("model", [model_directory(IMAGE_TO_VIDEO.name), *IMAGE_TO_VIDEO.hub_ids])
@pytest.mark.parametrize("flag", ["--text", "--negative-prompt"])
def test_what_only_other_models_of_the_task_take_is_bad_use(run, tmp_path, monkeypatch, model, flag):
    monkeypatch.setattr(make, "load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    if model in IMAGE_TO_VIDEO.hub_ids:
        monkeypatch.setattr(make, "find_model", lambda *_: pytest.fail("a model was fetched"))
    ended = run("image-to-video", picture(), "--model", model, flag, "a boat")
    assert ended.code == 2 and ended.err.count("\n") == 1 and not list(tmp_path.iterdir())
    assert f"family image-to-video, which does not take {flag}" in ended.err
    assert "--model damo/I2VGen-XL is one that does" in ended.err and str(model) in ended.err


def test_a_video_becomes_a_video(run, video, tmp_path):
    ended = run(
        *("video-to-video", video, "--text", "a", "--model", model_directory(VIDEO_TO_VIDEO.task)),
        *("-o", "out.gif", "--seed", 3, "--no-progress", *SMALL, "--num-inference-steps", 3),
    )
    assert ended.code == 0, ended.err
    assert ended.out == "Wrote out.gif\n" and len(read_video("out.gif").frames) == 2
    assert read_metadata("out.gif")["text"] == "a"


def test_a_text_becomes_several_videos(run, tmp_path):
    ended = run(
        *("text-to-video", "Ein Boot, am Meer!", "--model", model_directory(TEXT_TO_VIDEO.task)),
        *("--num-videos", 2, "--dtype", "bf16", *SMALL),
    )
    assert ended.code == 0, ended.err
    assert names(tmp_path) == {"ein-boot-am-meer-1.mp4", "ein-boot-am-meer-2.mp4"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["image-to-video", "none.png"], "no file none.png"),
        (["image-to-video", "."], "is a directory"),
        (["image-to-video", "empty"], "is empty"),
        (["image-to-video", "note.txt"], "not a picture"),
        (["image-to-video", picture(), "--max-pixels", 100], "max_pixels"),
        (["video-to-video", "none.mp4"], "no file none.mp4"),
        (["video-to-video", "."], "is a directory"),
        (["video-to-video", "empty"], "is empty"),
        (["video-to-video", "note.txt"], "not a video"),
        (["text-to-video", "a", "-o", "none/a.mp4"], "folder 'none'"),
        (["text-to-video", "a", "-o", "a.avi"], "'.avi'"),
        (["text-to-video", "a", "-o", ""], "names no file"),
        (["text-to-video", "a", "-o", "."], "names no file"),
        (["text-to-video", "a", "--device", "cuda:99"], "cuda:99"),
        (["text-to-video", "a", "--model", "none"], "no model directory 'none'"),
        (["text-to-video", "a", "--model", "x" * 500], "no model directory"),
        (["text-to-video", "a", "--model", "."], "configuration.json"),
        (["text-to-video", "a", "--model", "note.txt"], "is a file"),
        (["text-to-video", "a", "--model", model_directory(IMAGE_TO_VIDEO.task)], "image-to-video"),
        (["animate", "none.png"], "no file none.png"),
        (["animate", "--refine", "note.txt"], "not a video"),
        (["animate", picture(), "-o", "none/a.mp4"], "folder 'none'"),
        (["animate", picture(), "--first-model", "none"], "no model directory 'none'"),
        (["animate", picture(), *stages(VIDEO_TO_VIDEO, IMAGE_TO_VIDEO)], "the other way round"),
        (["convert", "none", "a", "--to", "hub"], "no file or directory none"),
        (["convert", ".", "a", "--to", "hub"], "no model directory"),
        (["inspect", "none"], "none"),
        (["inspect", "note.txt"], "is text"),
        (["demo", "-o", "note.txt"], "'note.txt' cannot be made"),
    ],
)
def test_what_cannot_be_used_is_told_before_a_model_loads(run, tmp_path, monkeypatch, arguments, said):
    monkeypatch.setattr(make, "load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    tmp_path.joinpath("empty").touch()
    tmp_path.joinpath("note.txt").write_text("hello")
    ended = run(*arguments)
    assert ended.code == 1
    assert ended.err.startswith("modelscope-i2v: error: ") and ended.err.count("\n") == 1, ended.err
    assert said in ended.err and names(tmp_path) == {"empty", "note.txt"}


@pytest.mark.parametrize("output, count", [("in.mp4", 1), ("./in.mp4", 1), ("i.mp4", 2)])
def test_the_input_is_never_overwritten(run, video, output, count):
    source = video.rename(video.with_name("i-2.mp4")) if count == 2 else video
    before = source.read_bytes()
    ended = run("video-to-video", source, "-o", output, "--num-videos", count)
    assert ended.code == 1 and "is the input itself" in ended.err and source.read_bytes() == before


@pytest.mark.parametrize(
    ("family", "source", "stem"),
    [
        (IMAGE_TO_VIDEO, "some/where/cat.v2.jpeg", "cat.v2"),
        (IMAGE_TO_VIDEO, "https://a.b/c/My%20Cat.png?size=big", "my-cat"),
        (IMAGE_TO_VIDEO, "https://a.b/", "video"),
        (VIDEO_TO_VIDEO, "cat.mov", "cat"),
        (TEXT_TO_VIDEO, "A panda, eating: bamboo?", "a-panda-eating-bamboo"),
        (TEXT_TO_VIDEO, "../..", "video"),
        (TEXT_TO_VIDEO, "熊猫", "熊猫"),
        (TEXT_TO_VIDEO, "word " * 40, "-".join(["word"] * 12)),
        (TEXT_TO_VIDEO, "x" * 500, "x" * 60),
    ],
)
def test_outputs_are_named_after_their_inputs(family, source, stem):
    assert make._stem(family, source) == stem


def test_an_id_is_fetched_from_the_hub(run, monkeypatch, tmp_path):
    from importlib import import_module

    from modelscope_i2v.checkpoints import hub

    download = import_module("modelscope.hub.snapshot_download")  # the package has a function of that name
    asked = []

    def fetch(model, revision=None):
        asked.append(model)
        if len(asked) > 1:
            raise ConnectionError("no\nnetwork")
        return str(model_directory(TEXT_TO_VIDEO.task))

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(download, "snapshot_download", fetch)
    ended = run("text-to-video", "a", *SMALL)
    assert ended.code == 0 and "fetching damo/text-to-video-synthesis" in ended.err
    ended = run("text-to-video", "a", "--model", "iic/other", *SMALL)
    assert ended.code == 1 and asked == ["damo/text-to-video-synthesis", "iic/other"]
    assert ended.err.endswith("iic/other cannot be fetched from the ModelScope hub: no network\n")
    assert names(tmp_path) == {"a.mp4"}


def test_ctrl_c_while_denoising_leaves_nothing(run, monkeypatch, tmp_path):
    from modelscope_i2v.engine.generator import VideoGenerator

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoGenerator, "denoise", stop)
    ended = run("text-to-video", "a", "--model", model_directory(TEXT_TO_VIDEO.task), *SMALL)
    assert ended.code == 130 and names(tmp_path) == set()


def test_convert_there_and_back(run, tmp_path):
    source = model_directory(I2VGEN_XL.name)
    for arguments in (
        (source, "folder", "--to", "hub"),
        ("folder", "again", "--to", "safetensors"),
        (source / "unet.safetensors", "unet.safetensors", "--to", "safetensors", "--dtype", "fp32"),
    ):
        ended = run("convert", *arguments)
        assert (ended.code, ended.out) == (0, f"Wrote {arguments[1]}\n"), ended.err
    ended = run("convert", source, "none", "--to", "diffusers")  # which builds with 8 heads only
    assert ended.code == 1 and "unet_num_heads is 2 and should be 8" in ended.err
    assert names(tmp_path) == {"folder", "again", "unet.safetensors"}
    ended = run("inspect", "folder", "unet.safetensors")
    assert ended.code == 0 and "folder: model for i2vgen-xl" in ended.out and "in float32" in ended.out
    made = []
    for model in (source, "folder", "again"):
        size = ("--height", 64, "--width", 64, "--num-frames", 2, "--num-inference-steps", 1)
        ended = run("image-to-video", picture(), "--model", model, *size, "--seed", 1, "-o", "out.mp4")
        assert ended.code == 0, ended.err
        made.append(read_video("out.mp4").frames)
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])


def test_convert_replaces_nothing_unasked(run, tmp_path):
    arguments = ("convert", model_directory(TEXT_TO_VIDEO.name), "model", "--to", "hub", "--no-progress")
    assert run(*arguments).code == 0
    before = names(tmp_path / "model")
    ended = run(*arguments, "--dtype", "fp32")
    assert ended.code == 1 and "exists" in ended.err and names(tmp_path / "model") == before
    assert run(*arguments, "--force", "--dtype", "fp32").code == 0 and names(tmp_path) == {"model"}


def test_inspect_goes_on_after_a_file_that_cannot_be_read(run):
    ended = run("inspect", "none", model_directory(TEXT_TO_VIDEO.task))
    assert ended.code == 1 and "none" in ended.err
    assert "model for text-to-video-synthesis" in ended.out and "parameters:" in ended.out


def test_enable_and_disable(run, monkeypatch):
    from modelscope_i2v.plugin import startup

    there: list[Path] = []
    monkeypatch.setattr(startup, "enable", lambda: there.append(Path("some.pth")) or there[0])
    monkeypatch.setattr(startup, "disable", lambda: [there.pop()] if there else [])
    assert "some.pth" in run("enable").out
    assert "removed some.pth" in run("disable").out
    ended = run("disable")
    assert ended.code == 0 and "not enabled" in ended.out

    def refuse():
        raise OutputError("no permission")

    monkeypatch.setattr(startup, "enable", refuse)
    assert run("enable") == (1, "", "modelscope-i2v: error: no permission\n")


def test_the_doctor_tells_everything(run):
    ended = run("doctor")
    assert ended.code == 0, ended.out
    for said in ("modelscope ", "torch ", "xformers ", "cpu ", "libx264 ", "enable ", "I2VGenXLPipeline"):
        assert said in ended.out
    assert ended.out.count(" GB in fp32") >= len(FAMILIES)
    assert "cannot be told" not in ended.out and "missing" not in ended.out


def test_the_doctor_works_where_nothing_is_installed():
    lacking = ["torch", "torchvision", "modelscope", "open_clip", "av", "numpy", "PIL", "torchsde", "tqdm"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({lacking!r}))\n"
        "from modelscope_i2v.cli.main import main; sys.exit(main(['doctor']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and ended.stderr == ""
    last = ended.stdout.splitlines()[-1]
    assert "pip install" in last and '"open_clip_torch"' in last and '"modelscope[framework]"' in last
    assert ended.stdout.count("cannot be told") == 4


def test_the_doctor_tells_of_a_package_that_is_there_and_broken(run, monkeypatch):
    from modelscope_i2v.media import write

    def codecs():
        raise ImportError("av's libraries\nare not there")

    monkeypatch.setattr(write, "codecs", codecs)
    ended = run("doctor")
    assert ended.code == 1 and "  cannot be told: ImportError: av's libraries are not there\n" in ended.out
    assert ended.out.count("cannot be told") == 1 and "Full-size models" in ended.out


def test_memory_verdicts(monkeypatch):
    from modelscope_i2v.cli.doctor import _fits
    from modelscope_i2v.memory import count as memory_model

    gigabytes = 10**9
    of_mode = {"resident": 20, "offload": 10, "minimal": 4}

    def peak(model, options, dtype, mode, device):
        size = 2 if dtype.itemsize == 4 else 1
        return size * of_mode[mode] * gigabytes * options.num_frames // VIDEO_TO_VIDEO.num_frames

    monkeypatch.setattr(memory_model, "peak", peak)
    monkeypatch.setattr(memory_model, "BESIDE", 1.0)

    def told(total, device="cuda", free=None):
        there = memory.Memory(total * gigabytes, (total if free is None else free) * gigabytes)
        return _fits(VIDEO_TO_VIDEO, there, device)

    assert told(20) == "fits: 20.0 GB in fp16"
    assert "other programs" in told(20, free=3)
    assert told(19).startswith("fits with --memory offload (10.0 GB)")
    assert told(9).startswith("fits with --memory minimal (4.0 GB)")
    assert told(3).startswith("fits only with --memory minimal and --num-frames 24:")
    assert told(0).startswith("too large")
    assert told(40, "cpu") == "fits: 40.0 GB in fp32"
    assert told(20, "cpu").startswith("fits with --dtype bf16 (20.0 GB)")
    assert told(10, "cpu").startswith("fits only with --dtype bf16 and --num-frames 16:")
    assert _fits(VIDEO_TO_VIDEO, None, "cuda") == "needs 20.0 GB in fp16"


def test_this_machines_memory():
    found = memory.main_memory()
    assert found is not None and 0 < found.free <= found.total
