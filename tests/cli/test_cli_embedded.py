"""The embedded models by their names, and both names of text-to-video."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from modelscope.pipelines import pipeline

import modelscope_i2v
from modelscope_i2v import CheckpointError, VideoGenerator, embedded
from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.checkpoints.hub import fetch
from modelscope_i2v.cli import main, make
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.media.videos import read_video
from modelscope_i2v.spec.families import I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO

SMALL = {"num_inference_steps": 1, "num_frames": 2, "height": 64, "width": 64, "seed": 0, "output_type": "np"}


def test_names_lead_to_directories(tmp_path, monkeypatch):
    assert fetch("embedded", task=VIDEO_TO_VIDEO.task) == model_directory(VIDEO_TO_VIDEO.name)
    assert fetch("embedded", task="text-to-video") == fetch("embedded/text-to-video")
    assert ModelDirectory.open("embedded/i2vgen-xl", "image-to-video").family is I2VGEN_XL
    with pytest.raises(CheckpointError, match="embedded/image-to-video, embedded/video-to-video"):
        fetch("embedded")
    with pytest.raises(CheckpointError, match="'embedded/cat' names no embedded model"):
        fetch("embedded/cat")
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("embedded").mkdir()
    assert str(fetch("embedded", task="image-to-video")) == "embedded"  # a directory of one's own comes first


def test_the_names_work_with_every_loader():
    by_name = pipeline("image-to-video", model="embedded")
    assert by_name.generator.family is IMAGE_TO_VIDEO
    frames = by_name(str(picture()), **SMALL)["output_video"]
    generator = VideoGenerator.from_directory("embedded", task="image-to-video")
    np.testing.assert_array_equal(generator([str(picture())], **SMALL)[0], frames)
    assert pipeline("image-to-video", model="embedded/i2vgen-xl").generator.family is I2VGEN_XL
    both = pipeline("image-to-video", model=["embedded", "embedded"])
    assert [model.family for model in both.models] == [IMAGE_TO_VIDEO, VIDEO_TO_VIDEO]
    made = modelscope_i2v.animate(
        str(picture()), models=("embedded", "embedded"), refine_options={"num_inference_steps": 3}, **SMALL
    )
    assert made.shape == (2, 64, 64, 3)


def test_the_command_line_takes_them_and_says_what_they_never_saw(run, monkeypatch):
    monkeypatch.setattr(embedded, "_reported", set())
    small = ("--num-inference-steps", 1, "--num-frames", 2, "--height", 32, "--width", 32, "--seed", 0)
    ended = run("text-to-video-synthesis", "A panda eats.", "--model", "embedded", *small, "-o", "a.mp4")
    assert ended.code == 0 and ended.out == "Wrote a.mp4\n", ended.err
    assert "trained on 16 frames of 96x96, not 2 of 32x32" in ended.err
    assert "words such as 'a red star moves right', not 'panda'" in ended.err
    again = run("text-to-video", "A red star moves right.", "--model", "embedded", *small, "-o", "b.mp4")
    assert again.code == 0 and "trained on" not in again.err  # once is enough
    assert not np.array_equal(read_video("a.mp4").frames, read_video("b.mp4").frames)


def test_nothing_is_said_of_what_they_saw(monkeypatch, caplog):
    monkeypatch.setattr(embedded, "_reported", set())
    generator = VideoGenerator.from_directory("embedded", task="text-to-video")
    with caplog.at_level(logging.WARNING):
        for text in (
            "An orange square turns, the camera zooms in.",
            "a white circle and a blue star",
        ):
            generator.prepare(text)
        assert not caplog.records
        generator.prepare("a red cat moves right")
        generator.prepare("a red dog moves right")
    assert [record.message for record in caplog.records] == [
        "The embedded text-to-video-synthesis model was trained on words such as 'a red star moves right', "
        "not 'cat': expect little of this video."
    ]


@pytest.mark.parametrize("name", ["text-to-video", TEXT_TO_VIDEO.name])
def test_text_to_video_has_two_names(run, name):
    parser, commands = main.build_parser()
    assert parser.parse_args([name, "a"]).run.args == (TEXT_TO_VIDEO,)
    assert parser.parse_args(["demo", "--task", name]).task == TEXT_TO_VIDEO.name
    assert parser.parse_args(["evaluate", "embedded", "--task", name]).task == TEXT_TO_VIDEO.name
    assert commands[name].prog.endswith("text-to-video")
    ended = run(name, "a", "--stpes", 4)
    assert ended.code == 2 and "did you mean --num-inference-steps?" in ended.err


def test_an_unknown_embedded_model_is_told_before_anything_loads(run, monkeypatch):
    monkeypatch.setattr(make, "load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    ended = run("text-to-video", "a", "--model", "embedded/cat")
    assert ended.code == 1 and "there are embedded/image-to-video" in ended.err
