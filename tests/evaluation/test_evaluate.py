"""Evaluations from a model to a report, and the command."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modelscope_i2v import CheckpointError, InputError, OutputError, VideoGenerator
from modelscope_i2v.cli.main import main
from modelscope_i2v.data.degrade import enlarge
from modelscope_i2v.evaluation import evaluate, measure, run
from modelscope_i2v.evaluation.examples import examples
from modelscope_i2v.evaluation.generate import Saved
from modelscope_i2v.evaluation.measure import Made, of_clip, rows
from modelscope_i2v.evaluation.metrics import Estimate
from modelscope_i2v.evaluation.report import Row
from modelscope_i2v.spec.families import FAMILIES, I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO

TINY = {"num_inference_steps": 1, "num_frames": 3, "height": 32, "width": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def generator(checkpoint) -> VideoGenerator:
    return VideoGenerator.from_directory(checkpoint(TEXT_TO_VIDEO.name), device="cpu")


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_model_that_only_makes_noise_gets_a_report(checkpoint, tmp_path, family):
    size = TINY | ({"height": 80, "width": 64} if family.takes_video else {})
    report = evaluate(checkpoint(family.name), clips=2, output=tmp_path / "out", **size)
    assert len(report.clips) == 2 and report.family == family.name and not report.notes
    assert report["colour right", "all"].estimate.value == 0
    assert report["detector on true clips", "all"].estimate.n == 2
    far = report["Fréchet distance to true clips", "all"].estimate.value
    assert far > report["Fréchet distance between true clips", "all"].estimate.value > 0
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert [row["measure"] for row in written["rows"]] == [row.measure for row in report.rows]
    assert written["settings"]["num_inference_steps"] == 1
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert all(row.measure in text for row in report.rows)
    for picture in ("report.png", "clips.png"):
        assert min(Image.open(tmp_path / "out" / picture).size) > 100
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_a_perfect_model_reaches_every_goal(family):
    clips = []
    for example in examples(24, 3)[::8]:
        truth = example.render(16, 96, 96)
        clips.append(of_clip(family, Made(example, truth.frames, truth, truth.frames[0])))
    made = rows(family, clips)
    assert all(row.reached for row in made if row.goal is not None)
    assert any(row.goal is not None for row in made) or family is IMAGE_TO_VIDEO
    by_name = {row.measure: row for row in made}
    if family.reads_image:
        assert by_name["frame 1 and the reconstructed picture: PSNR"].estimate.value == 100
        assert by_name["optical flow"].estimate == by_name["optical flow of true clips"].estimate
    assert by_name["shape right"].estimate.value == 1


def test_bicubic_itself_gains_nothing():
    (example,) = examples(1, 0)
    truth = example.render(16, 96, 96)
    bicubic = enlarge(example.degraded(truth.frames), 96, 96)
    made = {
        row.measure: row
        for row in rows(VIDEO_TO_VIDEO, [of_clip(VIDEO_TO_VIDEO, Made(example, bicubic, truth))])
    }
    assert made["PSNR gain over bicubic"].estimate.value == 0 and not made["PSNR gain over bicubic"].reached
    assert not made["flicker, the input's being 1"].reached


def test_what_a_family_is_given():
    (example,) = examples(1, 0)
    frames = example.render(2, 48, 48).frames
    given = {family.name: example.inputs(family, frames) for family in FAMILIES.values()}
    assert {name: set(keys) for name, keys in given.items()} == {
        IMAGE_TO_VIDEO.name: {"image"},
        VIDEO_TO_VIDEO.name: {"frames", "text"},
        TEXT_TO_VIDEO.name: {"text"},
        I2VGEN_XL.name: {"image", "text"},
    }
    assert given[I2VGEN_XL.name]["text"] == example.scene.caption
    np.testing.assert_array_equal(given[IMAGE_TO_VIDEO.name]["image"], frames[0])


def test_clips_do_not_depend_on_the_batch(generator):
    size = {key: value for key, value in TINY.items() if key != "device"}
    alone, together = (evaluate(generator, clips=3, batch_size=size_, **size) for size_ in (1, 3))
    for one, other in zip(alone.clips, together.clips):
        assert one["seed"] == other["seed"] and one["seen"] == other["seen"]
    assert alone.notes and "image tower" in alone.notes[0]


def test_saved_clips_are_read_again(checkpoint, tmp_path, monkeypatch):
    made: list[int] = []
    original = VideoGenerator.generate

    def counted(self, batch):
        made.extend(job.seed for job in batch)
        return original(self, batch)

    monkeypatch.setattr(VideoGenerator, "generate", counted)
    wish = {"clips": 3, "output": tmp_path, "save_clips": True, **TINY}
    first = evaluate(checkpoint(TEXT_TO_VIDEO.name), **wish)
    assert len(made) == 3
    kept = sorted(tmp_path.glob("clips/*/*.npz"))
    kept[1].write_bytes(kept[1].read_bytes()[:100])  # as after a kill
    kept[2].unlink()
    again = evaluate(checkpoint(TEXT_TO_VIDEO.name), **wish)
    assert made[3:] == made[1:3] and again.clips == first.clips
    evaluate(checkpoint(TEXT_TO_VIDEO.name), **{**wish, "guidance_scale": 2.0})
    assert len(made) == 8
    evaluate(checkpoint(TEXT_TO_VIDEO.name), **{**wish, "attention": "matmul"})
    assert len(made) == 11


def test_damaged_saved_clips_are_made_again(tmp_path):
    saved = Saved(tmp_path, {})
    frames = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
    saved.write(3, frames)
    (file,) = saved.folder.glob("*.npz")
    whole = file.read_bytes()
    assert np.array_equal(saved.read(3), frames) and saved.read(4) is None
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 0xFF
    for content in (b"", whole[:-30], whole[: len(whole) // 2], bytes(changed), b"PK\x03\x04" + bytes(50)):
        file.write_bytes(content)
        assert saved.read(3) is None
    for array in (frames.astype(float), frames[0], frames[:0], np.array([None])):
        np.savez(file, frames=array)
        assert saved.read(3) is None
    np.savez(file, others=frames)
    assert saved.read(3) is None
    assert sorted(path.name for path in saved.folder.iterdir()) == ["00003.npz", "settings.json"]


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        ({"clips": 10**9}, InputError, "clips is too large"),
        ({"seed": 10**400}, InputError, "seed is too large"),
        ({"batch_size": 10**30}, InputError, "batch_size is too large"),
        ({"output": 5}, InputError, "output=5"),
        ({"output": "a\0b"}, OutputError, "cannot be written to"),
        ({"output": "a" * 5000}, OutputError, "cannot be written to: File name too long"),
        ({"output": "/dev/null"}, OutputError, "cannot be written to"),
    ],
    ids=["clips", "seed", "batch", "number", "null", "long", "device"],
)
def test_arguments_beyond_measure_are_told_first(generator, wrong, error, words):
    with pytest.raises(error, match=words) as told:
        evaluate(generator, **{"clips": 1, **wrong})
    assert len(str(told.value)) < 600


def test_saved_clips_are_those_of_a_model(checkpoint, tmp_path, generator, monkeypatch):
    place = shutil.copytree(checkpoint(TEXT_TO_VIDEO.name), tmp_path / "model")
    settings = json.loads((place / "configuration.json").read_text())
    clip = settings["model"]["model_args"]["ckpt_clip"]
    monkeypatch.setenv("MODELSCOPE_I2V_SHARED", str(tmp_path))
    (place / clip).rename(tmp_path / clip)  # outside, as the embedded models have it
    settings["model"]["model_args"]["ckpt_clip"] = f"../{clip}"
    (place / "configuration.json").write_text(json.dumps(settings))
    before = run._identity(str(place), None)
    assert run._identity(str(place), None) == before
    os.utime(tmp_path / clip, ns=(0, 0))
    assert run._identity(str(place), None) != before

    _, options = generator.resolve({}, {})
    plain = run._settings(generator, options, 1, 0)
    monkeypatch.setattr(generator, "runtime", dataclasses.replace(generator.runtime, quantization="int8"))
    assert run._settings(generator, options, 1, 0) == {**plain, "quantization": "int8"}


def test_a_setting_of_nothing_is_a_setting(generator):
    _, options = generator.resolve({}, {"guidance_rescale": 0, "eta": 0})
    settings = run._settings(generator, options, 1, 0)
    assert settings["guidance_rescale"] == settings["eta"] == 0 and "loop" not in settings


def test_distances_are_to_scenes_that_no_model_was_given():
    random = torch.Generator().manual_seed(0)
    true, others = (list(torch.randn(2, 12, 1, 8, generator=random).unbind())[0] for _ in range(2))
    made, floor = run._distances(list(true), list(true), list(others))
    assert made.estimate.value == floor.estimate.value > 0


def test_smooth_is_what_jerks_as_true_clips_of_its_kind_do():
    true = [("a bounces", 0.06), ("a moves", 0.001), ("b bounces", 0.05), ("b moves", 0.001)]
    made = [("a bounces", 0.055), ("a moves", 0.004), ("b moves", 0.05), ("b moves", float("nan"))]
    clips = [
        {"caption": caption, "true acceleration": least, "seen": seen, "acceleration": much}
        for (caption, least), (seen, much) in zip(true, made)
    ]
    assert measure._smooth(clips) == [True, True, False, False]


def test_the_table_tells_goals():
    row = Row("a", "b", Estimate(0.5, 0.4, 0.6, 20), goal=0.6)
    assert row.cells() == ("a", "b", "20", "50.0%", "40.0% … 60.0%", "≥ 60.0%", "no")
    below = Row("a", "b", Estimate(0.5, 0.4, 0.6, 20), "times", 1.0, below=True)
    assert below.cells()[3:] == ("0.500 times", "0.400 … 0.600", "< 1.000", "yes")
    nothing = Row("a", "b", Estimate(float("nan"), float("nan"), float("nan"), 0), "dB", 2.0)
    assert nothing.reached is None and nothing.cells()[3:] == ("–", "–", "≥ 2.0", "")


@pytest.mark.parametrize(
    "wish, error, message",
    [
        ({"clips": 0}, InputError, "clips=0"),
        ({"clips": 2.5}, InputError, "clips=2.5"),
        ({"batch_size": 0}, InputError, "batch_size=0"),
        ({"seed": -1}, InputError, "seed=-1"),
        ({"save_clips": True}, InputError, "output"),
        ({"save_clips": True, "output": "x"}, InputError, "directory"),
        ({"num_inference_step": 3}, InputError, "num_inference_steps"),
        ({"num_videos": 2}, InputError, "num_videos"),
        ({"task": "video-to-video"}, InputError, "video-to-video"),
        ({"output": __file__}, OutputError, "test_evaluate.py"),
        ({"output": Path(__file__) / "below"}, OutputError, "below"),
    ],
)
def test_what_does_not_work_is_told_first(generator, tmp_path, monkeypatch, wish, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        evaluate(generator, **wish)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no-such-model"):
        evaluate(tmp_path / "no-such-model", clips=1)


def test_the_command(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ["--num-inference-steps", "1", "--num-frames", "2", "--height", "32", "--width", "32"]
    model = str(checkpoint(TEXT_TO_VIDEO.name))
    assert main(["evaluate", model, "--clips", "1", "--device", "cpu", "-o", "here", *size]) == 0
    said = capsys.readouterr()
    assert "all three right" in said.out and "detector on true clips" in said.out
    assert {path.name for path in Path("here").iterdir()} == {
        "report.json",
        "report.md",
        "report.png",
        "clips.png",
    }


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["no-such-model"], 1, "no-such-model"),
        (["m", "--clips", "0"], 2, "whole number from 1 up"),
        (["m", "--clips", "many"], 2, "'many'"),
        (["m", "--seed", "-1"], 2, "whole number from 0 up"),
        (["m", "--step", "3"], 2, "--num-inference-steps"),
    ],
)
def test_a_command_that_does_not_work(tmp_path, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == code
    assert message in capsys.readouterr().err
