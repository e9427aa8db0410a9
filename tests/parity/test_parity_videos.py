"""Whole pipelines against stock's: one seed, one checkpoint, the same frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints_factory import make_checkpoint
from memory_modes import MODES, OPTIONS, working_in
from oracle.compare import frame_difference
from oracle.videos import stock_model, stock_video

from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.spec.families import TASKS

SEED = 20
V2V_SIZE = (80, 128)


def ours(directory: Path, task: str, given, seed: int = SEED, **options) -> np.ndarray:
    """The frames that ``pipeline(...)`` would encode, from PyTorch's global generator."""
    from modelscope.pipelines import pipeline

    import modelscope_i2v  # noqa: F401

    pipe = pipeline(task, model=str(directory), device="cpu")
    torch.manual_seed(seed)
    return pipe(given, output_type="np", progress=False, **options)["output_video"]


def assert_same(frames: np.ndarray, expected: np.ndarray) -> None:
    assert frame_difference(frames, expected) <= 1
    assert expected.std() > 20, "a flat video proves nothing"


@pytest.mark.parametrize("kind", ["image", "path", "array"])
def test_image_to_video_equals_stock(kind, checkpoint, picture, tmp_path):
    task, given = "image-to-video", picture
    if kind == "path":
        given = str(tmp_path / "picture.png")
        picture.save(given)
    elif kind == "array":  # BGR, as ModelScope has arrays
        given = np.asarray(picture)[:, :, ::-1]
    directory = checkpoint(task)
    expected = stock_video(stock_model(directory, task), task, given, SEED, steps=4)
    assert expected.shape == (4, 64, 128, 3)
    assert_same(ours(directory, task, given, num_inference_steps=4), expected)


def test_text_to_video_equals_stock(checkpoint):
    task, given = "text-to-video-synthesis", {"text": "A panda on a rock.", "height": 64, "width": 128}
    directory = checkpoint(task)
    expected = stock_video(stock_model(directory, task), task, given, SEED, steps=4)
    assert expected.shape == (4, 64, 128, 3)
    assert_same(ours(directory, task, given, num_inference_steps=4), expected)


@pytest.mark.parametrize(("mode", "steps"), [("fast", 5), ("slow", 3)])
def test_video_to_video_equals_stock(mode, steps, tmp_path, video):
    task, given = "video-to-video", {"video_path": str(video), "text": "a boat"}
    directory = make_checkpoint(tmp_path, task, model_args={"solver_mode": mode})
    model = stock_model(directory, task)
    expected = stock_video(model, task, given, SEED, steps=steps, size=V2V_SIZE)
    assert expected.shape == (3, *V2V_SIZE, 3)
    height, width = V2V_SIZE
    frames = ours(directory, task, given, num_inference_steps=steps, height=height, width=width)
    assert_same(frames, expected)


def test_stocks_own_number_of_steps_gives_stocks_frames(checkpoint, picture):
    """All 50 steps and every other default, for two frames of 64×64."""
    task = "image-to-video"
    directory = make_checkpoint(
        checkpoint(task).parent / "tiny",
        task,
        model_cfg={"max_frames": 2, "latent_hei": 8, "latent_wid": 8},
    )
    expected = stock_video(stock_model(directory, task), task, picture, SEED)
    assert_same(ours(directory, task, picture), expected)


@pytest.mark.parametrize("format", ["pth", "safetensors"])
def test_a_half_precision_file_gives_its_own_numbers_in_fp32(format, tmp_path):
    """Pruned fp16 files are computed in fp32, as stock does after loading them into fp32 modules."""
    task, given = "text-to-video-synthesis", {"text": "rain", "height": 64, "width": 64}
    settings = {"model_args": {"max_frames": 2}, "dtype": torch.float16}
    stocks = make_checkpoint(tmp_path / "stock", task, **settings)
    directory = make_checkpoint(tmp_path / "ours", task, unet_format=format, **settings)
    expected = stock_video(stock_model(stocks, task), task, given, SEED, steps=2)
    assert_same(ours(directory, task, given, num_inference_steps=2), expected)


def test_another_seed_gives_another_video(checkpoint):
    task, given = "text-to-video-synthesis", {"text": "A panda.", "height": 64, "width": 64}
    frames = [
        ours(checkpoint(task), task, given, seed, num_inference_steps=2, num_frames=2) for seed in (1, 2)
    ]
    assert frame_difference(*frames) > 20


def test_two_models_of_one_task_keep_their_own_settings(checkpoint, picture, tmp_path):
    """Stock keeps one mutable table of settings a task; loading a second model changes the first."""
    task = "image-to-video"
    first = VideoGenerator.from_directory(checkpoint(task), device="cpu")
    other = make_checkpoint(tmp_path, task, model_cfg={"max_frames": 2, "latent_hei": 16})
    second = VideoGenerator.from_directory(other, device="cpu")
    options = {"output_type": "np", "num_inference_steps": 1, "progress": False}
    assert first([picture], **options)[0].shape == (4, 64, 128, 3)
    assert second([picture], **options)[0].shape == (2, 128, 128, 3)


@pytest.fixture(scope="module", params=TASKS)
def compared(request, checkpoint, picture, video):
    """A generator, what it is given with which options, and stock's frames."""
    task, directory = request.param, checkpoint(request.param)
    options = {"height": 80, "width": 128, "num_frames": 3, "num_inference_steps": 2}
    resized = {}
    if task == "image-to-video":
        given, options = picture, {"num_inference_steps": 2}  # the other numbers are in the directory
    elif task == "video-to-video":
        given, resized = {"video_path": str(video), "text": "a boat"}, {"size": V2V_SIZE}
    else:
        given, options = {"text": "A panda.", "height": 64, "width": 128}, {"num_inference_steps": 2}
    model = stock_model(directory, task)
    expected = stock_video(model, task, given, SEED, steps=2, **resized)
    return VideoGenerator.from_directory(directory, task, device="cpu"), given, options, expected


@pytest.mark.parametrize("mode", MODES)
def test_every_memory_mode_and_option_equals_stock(mode, compared):
    generator, given, options, expected = compared
    for less in OPTIONS:
        with working_in(generator, mode):
            torch.manual_seed(SEED)
            (frames,) = generator([given], output_type="np", progress=False, **options, **less)
        assert_same(frames, expected)
