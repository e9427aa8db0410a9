from __future__ import annotations

import errno
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modelscope_i2v.errors import InputError, OutOfMemoryError, OutputError
from modelscope_i2v.media import write
from modelscope_i2v.media.sheet import contact_sheet
from modelscope_i2v.media.videos import Audio, read_video
from modelscope_i2v.media.write import (
    check_output,
    codecs,
    encode_video,
    keep_frames,
    read_metadata,
    write_video,
)

METADATA = {
    "seed": 7,
    "prompt": "a cat; \"quoted\" 'twice', ünï 一只猫",
    "guidance_scale": 9.0,
    "size": [256, 448],
}
FILES = ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.gif", "a.webp", "a.MP4"]
LIMITS = {".gif": 12.0, ".webp": 3.0}
"""Mean difference out of 255 that a format's coding may make; 3 for the others."""


@pytest.fixture
def frames(moving_square) -> np.ndarray:
    return moving_square(9, 48, 64)


def tone(seconds: float, channels: int = 2) -> Audio:
    wave = 0.4 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 48000)) / 48000)
    return Audio(np.stack([wave] * channels).astype(np.float32))


def sounds_like(samples: np.ndarray, expected: np.ndarray) -> bool:
    """Equal up to coding, and to the milliseconds in which Matroska counts."""
    inner = slice(100, expected.shape[1] - 100)
    errors = (
        np.abs(np.roll(samples, lag, 1)[:, inner] - expected[:, inner]).mean() for lag in range(-72, 73)
    )
    return samples.shape == expected.shape and min(errors) < 0.02


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_can_be_read(name: str, frames: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / name
    assert write_video(frames, path, metadata=METADATA) == str(path)
    video = read_video(path)
    assert video.frames.shape == frames.shape
    assert np.abs(video.frames.astype(int) - frames).mean() < LIMITS.get(path.suffix, 3.0)
    assert video.fps == pytest.approx(8, rel=0.02)
    assert read_metadata(path) == METADATA
    assert os.listdir(tmp_path) == [name]


def test_folder_of_pngs(frames: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    assert write_video(frames, str(folder) + "/", metadata=METADATA) == str(folder) + "/"
    assert sorted(os.listdir(folder)) == [f"frame_{index:05d}.png" for index in range(1, 10)]
    for index, path in enumerate(sorted(folder.iterdir())):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), frames[index])
    assert read_metadata(folder) == METADATA
    write_video(frames[:2], folder)  # a second, shorter run leaves no picture of the first
    assert len(os.listdir(folder)) == 2
    assert os.listdir(tmp_path) == ["pictures"]


def test_mp4_is_what_browsers_play(frames: np.ndarray) -> None:
    data = encode_video(frames)
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 8)
        frame = next(container.decode(video=0))
    # BT.709, limited range, and said so: without it players guess by the size of the picture.
    assert (frame.colorspace, context.color_primaries, context.color_trc, frame.color_range) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    "color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (120, 90, 60)]
)
def test_colors_survive(color: tuple[int, int, int]) -> None:
    frames = np.full((2, 64, 64, 3), color, np.uint8)
    for format in ("mp4", "webm"):
        assert np.abs(read_video(encode_video(frames, format=format)).frames.astype(int) - color).max() <= 4


def test_crf_is_heeded(moving_square) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    for format in ("mp4", "webm"):
        assert len(encode_video(noise, format=format, crf=10)) > 2 * len(
            encode_video(noise, format=format, crf=45)
        )


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 4), st.sampled_from(["mp4", "webm", "gif", "webp"])
)
def test_any_size_is_written_whole(height: int, width: int, count: int, format: str) -> None:
    y, x = np.mgrid[0:height, 0:width]
    frames = np.stack([np.stack([x * 3, y * 3, x + y], -1).astype(np.uint8)] * count)
    video = read_video(encode_video(frames, format=format)).frames
    even = format in ("mp4", "webm")
    assert video.shape[1:3] == ((height + height % 2, width + width % 2) if even else (height, width))
    assert video.shape[0] == count or format in ("gif", "webp")  # these may merge equal frames
    if even:  # the extra row and column repeat their neighbours
        edge = np.pad(frames[0], ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        assert np.abs(video[0].astype(int) - edge).mean() < 6


@pytest.mark.parametrize("fps", [1, 7.5, 12, 30000 / 1001, 24.0, 60, 0.5])
def test_rates(fps: float, frames: np.ndarray) -> None:
    assert read_video(encode_video(frames, fps=fps)).fps == pytest.approx(fps, rel=1e-6)
    assert read_video(encode_video(frames, fps=fps, format="webp")).fps == pytest.approx(fps, rel=0.01)


@pytest.mark.parametrize("format", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize(("seconds", "channels"), [(5.0, 2), (0.5, 1)])
def test_sound_is_cut_to_the_frames(
    format: str, seconds: float, channels: int, frames: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{format}"
    write_video(frames, path, audio=tone(seconds, channels))
    with av.open(str(path)) as container:
        expected = "opus" if format == "webm" else "aac"
        assert container.streams.audio[0].codec_context.name.endswith(expected)
        length = sum(frame.samples for frame in container.decode(audio=0)) / 48000
        assert length == pytest.approx(min(seconds, 9 / 8), abs=0.05)
    audio = read_video(path).audio.samples
    assert audio.shape[0] == channels
    heard = slice(2400, round(min(seconds, 9 / 8) * 48000) - 2400)
    assert sounds_like(audio[:, heard], tone(seconds, channels).samples[:, heard])


def test_a_videos_own_sound_goes_along(moving_square, encode) -> None:
    source = read_video(encode(moving_square(10, 32, 48), tone=440.0))
    copy = read_video(encode_video(source.frames, fps=source.fps, audio=source.audio))
    assert sounds_like(copy.audio.samples[:, 2400:], source.audio.samples[:, 2400:])


def test_formats_without_sound_leave_it_out(frames: np.ndarray) -> None:
    assert read_video(encode_video(frames, format="gif", audio=tone(1))).audio is None


def test_gif_and_webp_loop_and_keep_their_time(frames: np.ndarray) -> None:
    for format in ("gif", "webp"):
        image = Image.open(io.BytesIO(encode_video(frames, format=format)))
        assert image.info["loop"] == 0 and image.n_frames == 9
        total = 0
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            total += image.info["duration"]
        assert total == pytest.approx(9 * 125, abs=10)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ""])
def test_odd_names_just_work(suffix: str, frames: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["with space", "it's; rm -rf $HOME & 'q'", "ünï 视频", "-dash", "100%d", "." + "hidden"]
    if os.name != "nt":
        names += ['quo"te', "con:cat|a", "back\\slash", "new\nline"]
    for name in names:
        assert write_video(frames[:2], name + suffix) == name + suffix
    assert sorted(os.listdir(tmp_path)) == sorted(name + suffix for name in names)


@pytest.mark.parametrize("name", [*FILES, "folder"])
@pytest.mark.parametrize(
    "error",
    [RuntimeError("midway"), KeyboardInterrupt(), OutOfMemoryError("x"), OSError(errno.ENOSPC, "No space")],
)
def test_breaking_off_leaves_everything_as_it_was(
    name: str, error: BaseException, frames: np.ndarray, tmp_path: Path
) -> None:
    target = tmp_path / name
    write_video(frames[:2], target)
    before = read_video(target / "frame_00001.png" if target.is_dir() else target).frames

    def midway() -> Iterator[np.ndarray]:
        yield from frames[:5]
        raise error

    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        write_video(midway(), target)
    if expected is OutputError:
        assert str(target) in str(caught.value) and "disk is full" in str(caught.value)
    assert os.listdir(tmp_path) == [name]
    after = read_video(target / "frame_00001.png" if target.is_dir() else target).frames
    np.testing.assert_array_equal(after, before)


def test_a_failing_rename_leaves_nothing(frames: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, "the file is open in a player")

    monkeypatch.setattr(write.os, "replace", refuse)
    with pytest.raises(OutputError, match="cannot be written.*open in a player"):
        write_video(frames, tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == []


def test_bad_targets_are_refused_before_any_frame_is_taken(frames: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe.mp4")

    def untouched() -> Iterator[np.ndarray]:
        raise AssertionError("a frame was asked for")
        yield

    for path, message in (
        (tmp_path / "no such" / "a.mp4", "no such.*does not exist"),
        (tmp_path / "file" / "a.mp4", "does not exist"),
        (tmp_path / "folder.mp4", "is a directory; a file was expected"),
        (tmp_path / "full", "other things in it.*letter.txt"),
        (tmp_path / "file", "is a file without an extension.*file.mp4"),
        (tmp_path / "a.mpeg", r"'\.mpeg'.*\.mp4, .*\.webp.*folder of PNG"),
        ("", "names no file"),
        ("..", "names no file"),
        ("a\0b.mp4", "cannot be written"),
        (tmp_path / ("x" * 300 + ".mp4"), "cannot be written"),
        (tmp_path / "pipe.mp4", "is not a regular file"),
        (5, "a string or a pathlib.Path, not int"),
        (b"a.mp4", "not bytes"),
    ):
        for attempt in (check_output, lambda path: write_video(untouched(), path)):
            with pytest.raises(OutputError, match=message):
                attempt(path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4", "full", "pipe.mp4"]


def test_a_folder_without_permission(tmp_path: Path, monkeypatch) -> None:
    def refuse(**options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(write.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match="a.mp4.*cannot be written.*Permission denied"):
        check_output(tmp_path / "a.mp4")


def test_a_write_protected_file(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.mp4").touch()
    monkeypatch.setattr(write.os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="write-protected"):
        check_output(tmp_path / "a.mp4")


def test_check_output_leaves_no_trace(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.gif", "pictures"):
        assert check_output(str(tmp_path / name)) == tmp_path / name
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "no frames"),
        (np.zeros((2, 8, 8, 3), np.float32), "Frame 0 is float32.*uint8"),
        (np.zeros((2, 8, 8), np.uint8), r"Frame 0 is uint8 \[8, 8\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), "Frame 0"),
        (np.zeros((2, 0, 8, 3), np.uint8), "Frame 0"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], "Frame 1 is 10x8.*first has 8x8"),
        (["frame"], "Frame 0 is str"),
        (5, "from int"),
    ],
)
def test_bad_frames(bad: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_video(bad, tmp_path / "a.mp4")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps=0"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": 1001}, "fps=1001"),
        ({"fps": 1e-7}, "fps=1e-07.*from 0.01 to 1000"),
        ({"fps": "fast"}, "fps=fast"),
        ({"crf": 52}, "crf=52"),
        ({"crf": -1}, "crf=-1"),
        ({"format": "avi"}, "format='avi'.*mp4"),
    ],
)
def test_bad_options(options: dict[str, object], message: str, frames: np.ndarray) -> None:
    with pytest.raises(InputError, match=message):
        encode_video(frames, **options)


def test_files_without_our_metadata(frames: np.ndarray, tmp_path: Path) -> None:
    for name in (*FILES, "folder"):
        write_video(frames[:2], tmp_path / name)
        assert read_metadata(tmp_path / name) == {}
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(InputError, match="text.mp4"):
        read_metadata(tmp_path / "text.mp4")


def test_frames_are_consumed_one_at_a_time(frames: np.ndarray, tmp_path: Path) -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            taken.append(1)
            if len(taken) > 500:
                return
            yield frames[len(taken) % len(frames)]

    taken: list[int] = []
    write_video(endless(), tmp_path / "a.mp4")
    assert read_video(tmp_path / "a.mp4", max_frames=1).total_frames == 500


def test_a_missing_encoder_is_told_before_sampling(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(write, "_encodes", lambda codec: codec != "libx264")
    with pytest.raises(OutputError, match="libx264.*pip install av"):
        check_output(tmp_path / "a.mp4")
    assert check_output(tmp_path / "a.webm")
    assert codecs()["libx264"] is False and codecs()["aac"] is True


def test_codecs() -> None:
    assert codecs() == dict.fromkeys(["aac", "gif", "libopus", "libvpx-vp9", "libx264", "webp"], True)


def test_two_threads_write_the_same_name(frames: np.ndarray, tmp_path: Path) -> None:
    threads = [threading.Thread(target=write_video, args=(frames, tmp_path / "a.mp4")) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert read_video(tmp_path / "a.mp4").total_frames == 9


@pytest.mark.parametrize(
    ("count", "columns", "rows", "grid"),
    [(32, 4, 2, (4, 2)), (3, 4, 2, (3, 1)), (1, 4, 2, (1, 1)), (5, 2, 9, (2, 3))],
)
def test_contact_sheet(count: int, columns: int, rows: int, grid: tuple[int, int], moving_square) -> None:
    frames = moving_square(count, 90, 160)
    sheet = contact_sheet(frames, columns=columns, rows=rows, fps=8)
    across, down = grid
    assert sheet.size == (40 + across * 160 + (across - 1) * 10, 40 + down * (90 + 24) + (down - 1) * 10)
    pixels = np.asarray(sheet)
    np.testing.assert_array_equal(pixels[20:110, 20:180], frames[0])
    last = divmod(min(count, columns * rows) - 1, across)
    top, left = 20 + last[0] * 124, 20 + last[1] * 170
    np.testing.assert_array_equal(pixels[top : top + 90, left : left + 160], frames[-1])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 6), st.integers(1, 5))
@settings(deadline=None, max_examples=30)
def test_contact_sheet_keeps_to_its_width(height: int, width: int, count: int, columns: int) -> None:
    frames = np.zeros((count, height * 20, width * 20, 3), np.uint8)
    assert contact_sheet(frames, columns=columns, max_width=400).width <= 400


def test_contact_sheet_of_nothing() -> None:
    with pytest.raises(InputError, match="at least one frame"):
        contact_sheet(np.zeros((0, 8, 8, 3), np.uint8))


# ---- nothing is lost ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FILES, "folder"])
def test_odd_metadata_is_written_or_left_out(name: str, frames: np.ndarray, tmp_path: Path, caplog) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    odd = {"text": "caf\udce9 \0 \ud800", "nan": float("inf"), "long": "x" * 60_000}
    write_video(frames, tmp_path / name, metadata=odd)
    assert read_metadata(tmp_path / name) == odd and not caplog.records
    circle: dict[str, object] = {}
    circle["me"] = circle
    for metadata in ({"x": Odd()}, {(1, 2): 3}, circle):
        write_video(frames, tmp_path / name, metadata=metadata)
        assert read_metadata(tmp_path / name) == {} and "metadata" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_odd_sound_is_repaired_or_left_out(name: str, frames: np.ndarray, tmp_path: Path, caplog) -> None:
    broken = tone(2)
    broken.samples[:, 20_000:21_000] = np.nan
    broken.samples[:, 22_000:22_100] = np.inf
    write_video(frames, tmp_path / name, audio=broken, metadata=METADATA)
    audio = read_video(tmp_path / name).audio.samples
    assert np.isfinite(audio).all() and sounds_like(audio[:, 4800:19_000], tone(2).samples[:, 4800:19_000])
    assert "no numbers" in caplog.text and read_metadata(tmp_path / name) == METADATA
    for audio in (
        Audio(np.zeros((3, 100), np.float32)),
        Audio(np.zeros(100, np.float32)),
        Audio(np.zeros((1, 100), np.int16)),
        Audio(np.zeros((1, 48000), np.float32), 12_345),
        Audio(np.zeros((1, 48000), np.float32), 0),
    ):
        caplog.clear()
        write_video(frames, tmp_path / name, audio=audio, metadata=METADATA)
        video = read_video(tmp_path / name)
        assert video.audio is None and len(video.frames) == 9 and read_metadata(tmp_path / name) == METADATA
        assert "sound" in caplog.text


def test_metadata_that_a_format_refuses_are_left_out(
    frames: np.ndarray, tmp_path: Path, monkeypatch, caplog
) -> None:
    def refuse(data: bytes, comment: bytes) -> bytes:
        raise RuntimeError("no place for it")

    monkeypatch.setattr(write, "_gif_with_comment", refuse)
    write_video(frames, tmp_path / "a.gif", metadata=METADATA)
    assert read_metadata(tmp_path / "a.gif") == {} and "without its metadata (no place for it)" in caplog.text
    write_video(frames, tmp_path / "a.mov", metadata={"text": "x" * 70_000}, audio=tone(1))
    assert read_metadata(tmp_path / "a.mov") == {} and "without its metadata (MOV" in caplog.text
    assert read_video(tmp_path / "a.mov").audio is not None
    with pytest.raises(RuntimeError):  # from an iterator there is no second attempt
        write_video(iter(frames), tmp_path / "a.gif", metadata=METADATA)


def test_a_folder_that_is_a_link(frames: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("new")
    for name, real in (("link", "real"), ("dangling", "new")):
        for count in (3, 2):
            assert write_video(frames[:count], tmp_path / name) == str(tmp_path / name)
            assert (tmp_path / name).is_symlink() and len(os.listdir(tmp_path / real)) == count
    assert sorted(os.listdir(tmp_path)) == ["dangling", "link", "new", "real"]
    (tmp_path / "nowhere").symlink_to("no such/x")
    with pytest.raises(OutputError, match="no such' of the output .* does not exist"):
        check_output(tmp_path / "nowhere")


def test_what_is_put_into_a_folder_meanwhile_is_kept(frames: np.ndarray, tmp_path: Path) -> None:
    write_video(frames[:5], tmp_path / "out")

    def meanwhile() -> Iterator[np.ndarray]:
        yield from frames[:2]
        (tmp_path / "out" / "notes.txt").write_text("mine")

    write_video(meanwhile(), tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["frame_00001.png", "frame_00002.png", "notes.txt"]
    assert os.listdir(tmp_path) == ["out"]


def test_two_threads_write_the_same_folder(frames: np.ndarray, tmp_path: Path) -> None:
    failures = []

    def run(count: int) -> None:
        for _ in range(15):
            try:
                write_video(frames[:count, :8, :8], tmp_path / "out")
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=run, args=(count,)) for count in (2, 5, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(os.listdir(tmp_path / "out")) in (2, 5, 9) and os.listdir(tmp_path) == ["out"]


def test_a_replaced_file_keeps_its_mode(frames: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch(0o600)
    (tmp_path / "out").mkdir(0o700)
    for name, mode in (("a.mp4", 0o600), ("out", 0o700)):
        os.chmod(tmp_path / name, mode)
        write_video(frames[:2], tmp_path / name)
        assert os.stat(tmp_path / name).st_mode & 0o777 == mode


def durations(path: Path) -> list[int]:
    """Milliseconds of each frame."""
    with Image.open(path) as image:
        found = []
        for index in range(image.n_frames):
            image.seek(index)
            image.load()
            found.append(round(image.info["duration"]))
    return found


@pytest.mark.parametrize(
    ("fps", "count"), [(8, 32), (12, 30), (24, 48), (30, 30), (60, 30), (100, 20), (0.01, 2)]
)
def test_a_gif_keeps_its_time_in_the_mean(fps: float, count: int, moving_square, tmp_path: Path) -> None:
    write_video(moving_square(count, 32, 32), tmp_path / "a.gif", fps=fps)
    found = durations(tmp_path / "a.gif")
    assert len(found) == count and max(found) - min(found) <= 10
    assert sum(found) == pytest.approx(1000 * count / fps, abs=10)


def test_a_gif_leaves_out_what_it_cannot_show(moving_square, tmp_path: Path, caplog) -> None:
    write_video(moving_square(48, 32, 32), tmp_path / "a.gif", fps=240)
    assert sum(durations(tmp_path / "a.gif")) == pytest.approx(200, abs=10)
    assert "27 of 48 frames are left out" in caplog.text


def test_a_webp_says_that_it_merges_equal_frames(frames: np.ndarray, tmp_path: Path, caplog) -> None:
    write_video(frames[[0, 0, 0, 5, 5, 8]], tmp_path / "a.webp", fps=10)
    assert "3 frames for 6" in caplog.text
    assert durations(tmp_path / "a.webp") == [300, 200, 100]
    caplog.clear()
    write_video(frames, tmp_path / "a.webp", fps=10)
    assert not caplog.records


@pytest.mark.parametrize("name", [*FILES, "folder"])
@pytest.mark.parametrize("fps", [0.01, 1000])
def test_extreme_rates(name: str, fps: float, frames: np.ndarray, tmp_path: Path) -> None:
    write_video(frames[:3], tmp_path / name, fps=fps, audio=tone(1) if fps > 1 else None)
    path = tmp_path / name
    video = read_video(path / "frame_00001.png" if path.is_dir() else path)
    assert video.frames.shape[1:] == frames.shape[1:]
    if path.suffix not in ("", ".gif"):
        assert video.fps == pytest.approx(fps, rel=0.01)


def test_frames_are_kept_where_a_video_cannot_be(frames: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    assert keep_frames(frames, tmp_path / "a.mp4", 8) == str(tmp_path / "a-frames")
    assert keep_frames(frames, tmp_path / "a.mp4", 8) == str(tmp_path / "a-frames-2")
    monkeypatch.setattr(write.tempfile, "gettempdir", lambda: str(tmp_path))
    assert keep_frames(frames, None, 8) == str(tmp_path / "video-frames")
    assert keep_frames(frames, tmp_path / "gone" / "b.mp4", 8) == str(tmp_path / "b-frames")
    assert len(os.listdir(tmp_path / "b-frames")) == 9
    monkeypatch.setattr(write.tempfile, "gettempdir", lambda: str(tmp_path / "gone"))
    assert keep_frames(frames, None, 8) is None


def test_metadata_of_pipes_and_of_what_is_no_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (tmp_path / "c.webp").write_text("hello")
    for name in ("a.mp4", "b.png", "c.webp", "d.gif"):
        with pytest.raises(InputError, match=name) as caught:
            read_metadata(tmp_path / name)
        assert "\n" not in str(caught.value)
