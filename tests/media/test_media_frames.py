from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modelscope_i2v.errors import InputError
from modelscope_i2v.media.frames import as_video
from modelscope_i2v.media.write import write_video


@pytest.fixture
def frames(moving_square) -> np.ndarray:
    return moving_square(4, 16, 24)


@pytest.mark.parametrize(
    "kind",
    ["array", "bgr", "tensor", "pictures", "arrays", "tensors", "paths", "folder", "floats", "float-tensor"],
)
def test_every_form_gives_the_same_frames(kind: str, frames: np.ndarray, tmp_path: Path) -> None:
    write_video(frames, tmp_path / "frames", fps=12)
    paths = sorted((tmp_path / "frames").iterdir())
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    source = {
        "array": frames,
        "bgr": np.ascontiguousarray(frames[..., ::-1]),
        "tensor": tensor,
        "pictures": [Image.fromarray(frame) for frame in frames],
        "arrays": list(frames),
        "tensors": tuple(tensor),
        "paths": paths,
        "folder": tmp_path / "frames",
        "floats": frames / 255.0,
        "float-tensor": tensor.to(torch.float64).div(255),
    }[kind]
    video = as_video(source, fps=5, channel_order="bgr" if kind == "bgr" else None)
    scale = 1 if video.frames.dtype == np.uint8 else 255
    np.testing.assert_array_equal(np.rint(video.frames * np.float32(scale)), frames)
    assert (video.frames.dtype == np.float32) == ("float" in kind)
    assert (video.fps, video.total_frames) == (12 if kind == "folder" else 5, 4)
    first = as_video(source, max_frames=2, each=lambda frame: frame.shape)
    assert first.frames == [(16, 24, 3)] * 2 and first.size == (16, 24) and first.total_frames == 4


def test_a_file_is_read_as_ever(frames: np.ndarray, tmp_path: Path) -> None:
    path = write_video(frames, tmp_path / "a.mp4", fps=10)
    assert as_video(path, fps=5).fps == 10
    with pytest.raises(InputError, match="no file"):
        as_video(tmp_path / "b.mp4")


def test_numbers_in_names_count_and_other_files_do_not(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    video = as_video(tmp_path)
    assert video.frames[:, 0, 0, 0].tolist() == [1, 2, 10] and video.fps == 8.0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), r"array has the shape \[8, 8, 3\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), "shape"),
        (torch.zeros(2, 8, 8, 3), r"tensor has the shape \[2, 8, 8, 3\].*\[frames, 3, height, width\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        ([], "no frames"),
        (np.zeros((2, 0, 8, 3), np.uint8), "no content"),
        (np.zeros((2, 8, 8, 3), np.int64), "Frame 0 holds int64"),
        (np.zeros((2, 8, 8, 3), complex), "Frame 0 holds complex128"),
        (np.full((2, 8, 8, 3), 9.0), "from 9 to 9; floats are in 0..1"),
        (torch.full((2, 3, 8, 8), torch.nan), "nan"),
        (torch.zeros(2, 3, 8, 8, device="meta"), "holds no values"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], "Frame 1 is 10x8.*first has 8x8"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], "Frame 1 is 8x9"),
        ([Image.new("RGB", (8, 8)), 5], "Frame 1.*int"),
        (5, "cannot be read from int"),
    ],
)
def test_what_is_no_video(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_video(source)


def test_folders_without_pictures_or_with_others(frames: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory without pictures"):
        as_video(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "2.png")
    with pytest.raises(InputError, match="2.png' is 9x8 pixels.*first has 8x8"):
        as_video(tmp_path)
    with pytest.raises(InputError, match="max_video_pixels"):
        as_video([Image.new("RGB", (8, 8))] * 3, max_video_pixels=190)
    with pytest.raises(InputError, match="neither an http"):
        as_video(tmp_path, public_only=True)
