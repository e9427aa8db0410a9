from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import pytest


def moving_square(count: int, height: int, width: int) -> np.ndarray:
    """uint8 [f, h, w, 3]: a smooth background, its top left corner red, and a square that moves right."""
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for index in range(count):
        frame = np.stack([90 + 60 * x / width, 90 + 60 * y / height, np.full(x.shape, 100.0)], -1)
        left = (index * width // (2 * count)) + width // 4
        frame[height // 2 : height // 2 + height // 4, left : left + width // 4] = (30, 60, 220)
        frame[: height // 4, : width // 4] = (220, 30, 40)
        frames.append(frame.astype(np.uint8))
    return np.stack(frames)


def encode(
    frames: np.ndarray,
    *,
    format: str = "mp4",
    codec: str = "libx264",
    rate: int = 10,
    times: list[int] | None = None,
    tone: float | None = None,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> bytes:
    """A file made with FFmpeg's libraries alone. ``times``: of each frame, in 1/rate s. ``tone``: in Hz."""
    file = io.BytesIO()
    with av.open(file, "w", format=format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        sound = (
            container.add_stream(
                "aac" if format == "mp4" else "libopus", rate=48000, layout="mono", bit_rate=192_000
            )
            if tone
            else None
        )
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            frame.pts = times[index] if times else index
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        if not len(frames):
            container.start_encoding()
        container.mux(stream.encode(None))
        if sound is not None:
            length = (times[-1] + 1 if times else len(frames)) * 48000 // rate
            wave = 0.5 * np.sin(2 * np.pi * tone * np.arange(length) / 48000)
            frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux(sound.encode(frame))
            container.mux(sound.encode(None))
    return file.getvalue()


@pytest.fixture(name="moving_square")
def _moving_square() -> Callable[..., np.ndarray]:
    return moving_square


@pytest.fixture(name="encode")
def _encode() -> Callable[..., bytes]:
    return encode
