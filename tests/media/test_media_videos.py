from __future__ import annotations

import io
import logging
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from modelscope_i2v.errors import InputError
from modelscope_i2v.media.videos import AUDIO_RATE, read_video

MATRICES = {
    # a, b, c, d of the display matrix: what a player does to the stored frame [f, h, w, 3]
    (0, 1, -1, 0): lambda v: np.rot90(v, -1, (1, 2)),  # 90 degrees clockwise, an upright phone
    (-1, 0, 0, -1): lambda v: v[:, ::-1, ::-1],
    (0, -1, 1, 0): lambda v: np.rot90(v, 1, (1, 2)),
    (-1, 0, 0, 1): lambda v: v[:, :, ::-1],  # a mirrored front camera
    (1, 0, 0, -1): lambda v: v[:, ::-1],
    (0, 1, 1, 0): lambda v: v.transpose(0, 2, 1, 3),
}


def with_matrix(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """The same MP4 or MOV with another display matrix in its track header."""
    start = data.index(b"tkhd") + 44  # version, flags, times, ids, duration, layer, volume
    a, b, c, d = (value << 16 for value in matrix)
    return data[:start] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[start + 36 :]


def near(frames: np.ndarray, expected: np.ndarray) -> bool:
    """The same but for what lossy coding and halved colour resolution change."""
    return frames.shape == expected.shape and np.abs(frames.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("kind", ["str", "path", "file_url", "bytes", "file", "pipe"])
def test_every_kind_of_source(kind: str, tmp_path: Path, moving_square, encode) -> None:
    frames = moving_square(5, 32, 48)
    path = tmp_path / "a film; 'of' ünï: 1.mp4"
    path.write_bytes(encode(frames))

    class Pipe(io.RawIOBase):
        read = io.BytesIO(path.read_bytes()).read

    source = {
        "str": str(path),
        "path": path,
        "file_url": path.as_uri(),
        "bytes": path.read_bytes(),
        "file": path.open("rb"),
        "pipe": Pipe(),
    }[kind]
    video = read_video(source)
    assert near(video.frames, frames)
    assert video.frames.dtype == np.uint8 and video.frames.flags.c_contiguous
    assert (video.fps, video.total_frames, video.audio) == (10.0, 5, None)
    if kind == "file":
        assert not source.closed
        source.close()


@pytest.mark.parametrize(
    ("format", "codec", "pix_fmt"),
    [
        ("mov", "libx264", "yuv420p"),
        ("matroska", "libx264", "yuv444p"),
        ("webm", "libvpx-vp9", "yuv420p"),
        ("avi", "mpeg4", "yuv420p"),
        ("mpegts", "mpeg2video", "yuv420p"),
        ("matroska", "ffv1", "yuv420p10le"),
        ("apng", "apng", "rgb24"),
        ("gif", "gif", "rgb8"),
        ("h264", "libx264", "yuv420p"),
    ],
)
def test_formats(format: str, codec: str, pix_fmt: str, moving_square, encode) -> None:
    frames = moving_square(6, 32, 48)
    data = encode(frames, format=format, codec=codec, pix_fmt=pix_fmt, rate=25)
    video = read_video(data)
    assert video.frames.shape == frames.shape
    assert np.abs(video.frames.astype(int) - frames).mean() < (30 if codec == "gif" else 5)
    assert video.fps == pytest.approx(25, rel=0.02)


@pytest.mark.parametrize("matrix", MATRICES)
def test_rotation_and_mirroring_of_the_display_matrix(matrix, moving_square, encode) -> None:
    frames = moving_square(3, 32, 48)
    video = read_video(with_matrix(encode(frames, format="mov"), matrix))
    assert near(video.frames, MATRICES[matrix](frames))
    assert video.frames.flags.c_contiguous


def test_anamorphic_pixels_become_square(moving_square, encode) -> None:
    assert read_video(encode(moving_square(2, 32, 48), aspect=Fraction(4, 3))).frames.shape == (2, 32, 64, 3)
    # An encoder's rounding of the aspect is no reason to resample.
    assert read_video(encode(moving_square(2, 32, 48), aspect=Fraction(405, 404))).frames.shape == (
        2,
        32,
        48,
        3,
    )


def test_max_frames_takes_the_first_and_reads_little_more(moving_square, encode) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 96, 128, 3), dtype=np.uint8)
    data = encode(noise, options={"movflags": "frag_keyframe+empty_moov"})

    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int = -1) -> bytes:
            piece = super().read(size)
            self.count += len(piece)
            return piece

    file = Counting(data)
    assert near(read_video(file, max_frames=3).frames, read_video(data).frames[:3])
    assert file.count < len(data) / 2
    frames = moving_square(9, 32, 48)
    assert near(read_video(encode(frames), max_frames=4).frames, frames[:4])
    assert read_video(encode(frames), max_frames=100).frames.shape[0] == 9
    with pytest.raises(InputError, match="max_frames=0"):
        read_video(encode(frames), max_frames=0)


def test_variable_rate(moving_square, encode) -> None:
    frames = moving_square(6, 32, 48)
    data = encode(frames, rate=30, times=[0, 1, 2, 15, 28, 30])
    video = read_video(data)
    assert near(video.frames, frames)
    assert video.fps == pytest.approx(5 / 1.0, rel=0.1)
    assert read_video(data, max_frames=3).fps == pytest.approx(30, rel=0.01)


def test_fractional_rate_is_exact(moving_square, encode) -> None:
    assert read_video(encode(moving_square(8, 32, 48), rate=Fraction(30000, 1001))).fps == 30000 / 1001


@pytest.mark.parametrize(("format", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9")])
def test_sound_is_as_long_as_the_frames(format: str, codec: str, moving_square, encode) -> None:
    data = encode(moving_square(30, 32, 48), format=format, codec=codec, tone=440.0)
    whole, part = read_video(data), read_video(data, max_frames=12)
    assert whole.audio.samples.shape == (1, 3 * AUDIO_RATE)
    assert part.audio.samples.shape == (1, AUDIO_RATE * 12 // 10)
    for audio in (whole.audio, part.audio):
        middle = audio.samples[0, 4800:48000]
        assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)
        peak = np.abs(np.fft.rfft(middle)).argmax() * AUDIO_RATE / len(middle)
        assert peak == pytest.approx(440, abs=2)


def test_sound_begins_with_the_first_frame(moving_square, encode) -> None:
    # The pictures begin half a second after the sound.
    data = encode(moving_square(10, 32, 48), times=list(range(5, 15)), tone=440.0)
    audio = read_video(data).audio
    assert audio.samples.shape == (1, AUDIO_RATE)
    assert np.abs(audio.samples[0, -2400:]).max() > 0.4


def test_one_frame(moving_square, encode) -> None:
    frames = moving_square(1, 32, 48)
    video = read_video(encode(frames))
    assert near(video.frames, frames) and video.fps == 8.0
    file = io.BytesIO()
    Image.fromarray(frames[0]).save(file, "PNG")
    video = read_video(file.getvalue())
    np.testing.assert_array_equal(video.frames, frames)
    assert video.fps == 8.0


def test_animated_webp(moving_square) -> None:
    frames = moving_square(5, 32, 48)
    images = [Image.fromarray(frame) for frame in frames]
    file = io.BytesIO()
    images[0].save(file, "WEBP", save_all=True, append_images=images[1:], duration=40, lossless=True)
    video = read_video(file.getvalue())
    np.testing.assert_array_equal(video.frames, frames)
    assert (video.fps, video.total_frames) == (25.0, 5)
    np.testing.assert_array_equal(read_video(file.getvalue(), max_frames=2).frames, frames[:2])
    with pytest.raises(InputError, match="max_pixels"):
        read_video(file.getvalue(), max_pixels=100)
    with pytest.raises(InputError, match="damaged or cut short"):
        read_video(file.getvalue()[:60])


@pytest.mark.parametrize("format", ["mp4", "matroska", "webm"])
def test_zero_frames(format: str, moving_square, encode) -> None:
    codec = "libvpx-vp9" if format == "webm" else "libx264"
    with pytest.raises(InputError, match="no frame that can be decoded|no moving pictures|not a video"):
        read_video(encode(moving_square(1, 32, 48)[:0], format=format, codec=codec))


def test_what_breaks_off_gives_its_first_frames_and_a_warning(moving_square, encode, caplog) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    data = encode(noise, codec="mpeg4", options={"movflags": "frag_keyframe+empty_moov"})
    with caplog.at_level(logging.WARNING):
        video = read_video(data[: len(data) * 6 // 10])
    assert 1 <= len(video.frames) < 20
    assert "cut short" in caplog.text


def test_cut_or_garbled_anywhere_is_an_input_error_or_a_video(moving_square, encode) -> None:
    random = np.random.default_rng(2)
    for format, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9")):
        data = encode(moving_square(4, 32, 48), format=format, codec=codec, tone=300.0)
        for cut in range(1, len(data), len(data) // 25):
            garbled = bytearray(data)
            garbled[int(random.integers(len(data)))] ^= 0xFF
            for damaged in (data[:cut], bytes(garbled)):
                try:
                    assert len(read_video(damaged, max_frames=4, max_pixels=10_000).frames) >= 1
                except InputError as error:
                    assert "\n" not in str(error)


def test_bad_files_are_named(tmp_path: Path, moving_square, encode) -> None:
    empty, text, cut, sound, playlist = (
        tmp_path / name for name in ("e.mp4", "t.mp4", "c.mp4", "s.mp4", "p.m3u8")
    )
    empty.touch()
    text.write_text("hello " * 1000)
    film = encode(moving_square(5, 32, 48))
    cut.write_bytes(film[: len(film) - 200])  # its index is at the end
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (tmp_path / "film.mp4").write_bytes(film)
    playlist.write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path / 'film.mp4'}\n#EXT-X-ENDLIST\n"
    )
    for path, message in (
        (tmp_path / "no such.mp4", "no file"),
        (tmp_path, "is a directory"),
        (empty, "is empty"),
        (text, "not a video|no frame"),
        (cut, "cut short"),
        (sound, "only sound"),
        (playlist, "not a video"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read_video(path)
        assert repr(str(path))[1:-1] in str(caught.value)


def test_area_is_limited(moving_square, encode) -> None:
    data = encode(moving_square(2, 32, 48))
    assert read_video(data, max_pixels=32 * 48).frames.shape == (2, 32, 48, 3)
    with pytest.raises(InputError, match=r"48x32 = 1,536 pixels.*limit of 1,535.*max_pixels"):
        read_video(data, max_pixels=32 * 48 - 1)


@pytest.mark.parametrize("matrix", [1, 5])
@pytest.mark.parametrize("full", [False, True])
def test_tagged_matrix_and_range_are_heeded(matrix: int, full: bool) -> None:
    """A red plane in BT.709 or BT.601, in limited or full range."""
    planes = {
        (1, False): (63, 102, 240),
        (5, False): (81, 90, 240),
        (1, True): (54, 99, 255),
        (5, True): (76, 85, 255),
    }
    frame = av.VideoFrame(64, 64, "yuv420p")
    for plane, value in zip(frame.planes, planes[matrix, full], strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace, frame.color_range, frame.pts, frame.time_base = (
        matrix,
        2 if full else 1,
        0,
        Fraction(1, 8),
    )
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(read_video(file.getvalue()).frames.astype(int) - (255, 0, 0)).max() <= 4
