"""Media as a call takes and returns them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modelscope_i2v.engine.outputs import deliver
from modelscope_i2v.engine.requests import Request, read, resolve
from modelscope_i2v.errors import InputError, OutputError
from modelscope_i2v.media import write
from modelscope_i2v.media.transforms import frames_to_tensor
from modelscope_i2v.media.videos import Audio, read_video
from modelscope_i2v.media.write import read_metadata, write_video
from modelscope_i2v.spec.families import IMAGE_TO_VIDEO, VIDEO_TO_VIDEO
from modelscope_i2v.spec.options import Options

SMALL = {"height": 64, "width": 64}


def request(family, given, **options) -> Request:
    return read(family, *resolve(family, given, {**SMALL, **options}, {}))


@pytest.mark.parametrize("key", ["video_path", "video", "frames"])
def test_frames_are_taken_wherever_a_path_is(key: str, moving_square, tmp_path: Path) -> None:
    frames = moving_square(4, 32, 48)
    write_video(frames, tmp_path / "frames", fps=12)
    expected = frames_to_tensor(frames[:3], 64, 64, "crop")
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for source in (frames, tensor, list(frames), [Image.fromarray(f) for f in frames], tmp_path / "frames"):
        made = request(VIDEO_TO_VIDEO, {key: source, "text": "x"}, num_frames=3, fit="crop")
        assert torch.equal(made.frames, expected)
        assert made.fps == (12 if isinstance(source, Path) else VIDEO_TO_VIDEO.fps)
    bgr = np.ascontiguousarray(frames[..., ::-1])
    given = {key: bgr, "text": "x", "channel_order": "bgr"}
    assert torch.equal(request(VIDEO_TO_VIDEO, given, num_frames=3, fit="crop").frames, expected)
    path = write_video(frames, tmp_path / "a.mp4", fps=10)
    whole = frames_to_tensor(read_video(path).frames, 64, 64, "pad")
    made = request(VIDEO_TO_VIDEO, {key: path, "text": "x"}, fit="pad")
    assert torch.equal(made.frames, whole) and made.content == (10, 0, 43, 64)


def test_frames_of_other_sizes_are_told(moving_square) -> None:
    frames = [np.zeros((32, 48, 3), np.uint8), np.zeros((32, 40, 3), np.uint8)]
    with pytest.raises(InputError, match="Frame 1 is 40x32 pixels"):
        request(VIDEO_TO_VIDEO, {"frames": frames, "text": "x"})


def test_a_pictures_channels() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    order = {"channel_order": "rgb"}
    for made in (
        request(IMAGE_TO_VIDEO, {"image": red, **order}),
        request(IMAGE_TO_VIDEO, red, **order),
        request(IMAGE_TO_VIDEO, torch.from_numpy(red).permute(2, 0, 1) / 255),
    ):
        assert made.image.getpixel((0, 0)) == (200, 0, 0)
    assert request(IMAGE_TO_VIDEO, red).image.getpixel((0, 0)) == (0, 0, 200)


def test_limits_are_options_of_a_call(moving_square, encode) -> None:
    data = encode(moving_square(20, 32, 48), tone=440.0)
    for options in ({"max_video_pixels": 1000}, {"max_audio_seconds": 0.5}):
        with pytest.raises(InputError, match=f"option {next(iter(options))}"):
            request(VIDEO_TO_VIDEO, {"video_path": data, "text": "x"}, **options)


def options(**given) -> Options:
    return replace(resolve(VIDEO_TO_VIDEO, {"text": "x"}, {}, {})[1], **given)


def test_a_finished_video_outlives_its_text_and_sound(tmp_path: Path, caplog) -> None:
    broken = Audio(np.full((1, 48_000), np.nan, np.float32))
    made = Request(options(), text="caf\udce9", audio=broken)
    path = deliver(torch.zeros(3, 3, 32, 32), made, 1, tmp_path / "a.mp4", {})
    assert len(read_video(path).frames) == 3 and read_metadata(path)["text"] == "caf\udce9"


def test_frames_are_kept_when_the_file_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    made = Request(options(), text="x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("put there while the video was made")
    with pytest.raises(OutputError, match=r"notes.txt.*The frames are kept in '.*out-frames'"):
        deliver(torch.zeros(3, 3, 32, 32), made, 1, tmp_path / "out", {})
    assert len(list((tmp_path / "out-frames").iterdir())) == 3
    monkeypatch.setitem(write._WRITERS, ".mp4", lambda job, path: 1 / 0)
    monkeypatch.setattr(write.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(OutputError, match=r"could not be written.*kept in '.*b-frames'"):
        deliver(torch.zeros(3, 3, 32, 32), made, 1, tmp_path / "b.mp4", {})
    with pytest.raises(OutputError, match=r"kept in '.*video-frames'"):
        deliver(torch.zeros(3, 3, 32, 32), made, 1, None, {})
