"""Videos in: the first frames of anything that FFmpeg reads, upright, with their rate and sound."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image

from ..errors import InputError
from ..spec.options import MAX_AUDIO_SECONDS, MAX_FPS, MAX_PIXELS, MAX_VIDEO_PIXELS, MIN_FPS
from .images import check_pixels, open_picture, upright
from .probe import open_container, video_stream
from .sources import Source, open_source, plain

logger = logging.getLogger(__name__)

DEFAULT_FPS = 8.0
"""Frame rate of what has none: single frames, and files that do not tell."""

AUDIO_RATE = 48_000
"""Sampling rate, in Hz, that all sound is brought to; both AAC and Opus take it."""

_DISPLAY_MATRIX = 6
_SIDE_DATA = range(64)
"""FFmpeg's numbers of what may accompany a frame; it has about 35 kinds."""

_MATRICES = {1, 5, 6, 7, 9}
"""H.273's numbers of the matrices between YUV and RGB that FFmpeg's scaler knows."""

_MAX_BYTES = 2_000_000_000
_IN_FLIGHT = 1 << 27
"""Pixels of the frames that FFmpeg's threads may work on at once."""


@dataclass(frozen=True)
class Audio:
    """Sound beside the frames that were read, beginning with the first of them."""

    samples: np.ndarray
    """float32 [channels, n], one or two channels, nominally in -1..1."""
    rate: int = AUDIO_RATE


@dataclass(frozen=True)
class Video:
    """Frames that were read, and what came with them."""

    frames: Any
    """uint8 [f, h, w, 3], RGB, upright, square pixels, in the order they are shown; with ``each``, a list."""
    fps: float
    """Average rate of these frames."""
    audio: Audio | None = None
    """To be handed to :func:`~modelscope_i2v.media.write.write_video`; ``None`` if there is none."""
    total_frames: int | None = None
    """Frames in the file, where its header tells."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the frames as they were read."""


class Frames:
    """Frames as they come, counted against the limits, all of one size.

    Args:
        name: of the input, for messages.
        max_frames: how many to take; ``None`` for all.
        max_pixels: the largest area of one.
        max_video_pixels: the pixels of all together.
        each: what to keep of a frame [h, w, 3]; ``None`` keeps it as it is.
    """

    def __init__(
        self,
        name: str,
        *,
        max_frames: int | None = None,
        max_pixels: int = MAX_PIXELS,
        max_video_pixels: int = MAX_VIDEO_PIXELS,
        each: Callable[[np.ndarray], Any] | None = None,
    ):
        if max_frames is not None and max_frames < 1:
            raise InputError(f"max_frames={max_frames} is too small; at least one frame must be read.")
        self.name, self.max_frames = name, max_frames
        self.max_pixels, self.max_video_pixels, self.each = max_pixels, max_video_pixels, each
        self.kept: list[Any] = []
        self.size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def full(self) -> bool:
        """True when as many were taken as were asked for."""
        return self.max_frames is not None and len(self.kept) >= self.max_frames

    def check(self, width: int, height: int, count: int) -> None:
        """Refuse ``count`` frames of a size, before they are decoded."""
        check_pixels((width, height), self.max_pixels, self.name)
        count = min(count, self.max_frames or count)
        if count * width * height > self.max_video_pixels:
            raise InputError(
                f"{self.name} has {count} frames or more of {width}x{height}, which is "
                f"{count * width * height:,} pixels, more than the limit of {self.max_video_pixels:,}; read "
                "fewer frames, make it smaller, or raise the limit with the option max_video_pixels."
            )

    def take(self, frame: np.ndarray) -> None:
        """Keep one more frame [h, w, 3]."""
        height, width = frame.shape[:2]
        self.check(width, height, len(self.kept) + 1)
        self.size = self.size or (height, width)
        self.kept.append(frame if self.each is None else self.each(frame))

    def video(self, fps: float, audio: Audio | None = None, total: int | None = None) -> Video:
        """All that was taken; the frames are handed over."""
        frames: Any = self.kept
        if self.each is None:  # np.stack would hold every frame twice
            frames = np.empty((len(self.kept), *self.kept[0].shape), self.kept[0].dtype)
            for index, frame in enumerate(self.kept):
                frames[index] = frame
                self.kept[index] = None
        return Video(frames, fps, audio, total, self.size or (0, 0))


def read_video(
    source: Source,
    *,
    max_frames: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_video_pixels: int = MAX_VIDEO_PIXELS,
    max_audio_seconds: float = MAX_AUDIO_SECONDS,
    each: Callable[[np.ndarray], Any] | None = None,
    public_only: bool = False,
) -> Video:
    """Read a video's first frames.

    Args:
        source: a path, an ``http(s)://`` or ``file://`` URL, bytes, or a binary file object.
        max_frames: how many frames to read at most; what comes later in the file is not decoded.
        max_pixels: the largest area of one frame, checked before decoding.
        max_video_pixels: the most pixels of all frames together, checked before decoding where the file's
            header tells how many there are.
        max_audio_seconds: the longest sound that is read; as much is needed as the frames last.
        each: called with each frame (uint8 [h, w, 3]) as it is decoded; what it returns is kept instead.
        public_only: no paths, and only URLs on the public internet, for a server.

    Returns:
        The frames with the rotation of the file's display matrix applied. Every frame of a file with
        a variable rate counts once; ``fps`` is then their average. A picture is a video of one frame.

    Raises:
        InputError: if it is missing, empty, not a video, without a frame that can be decoded, or too
            large. A file that breaks off after some frames gives these, and a logged warning.
    """
    with open_source(source, what="video", max_bytes=_MAX_BYTES, public_only=public_only) as (file, name):
        frames = Frames(
            name, max_frames=max_frames, max_pixels=max_pixels, max_video_pixels=max_video_pixels, each=each
        )
        start = file.tell()
        head = file.read(16)
        file.seek(start)
        if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":  # FFmpeg decodes no animated WebP
            return _read_webp(file, name, frames)
        try:
            with open_container(file) as container:
                reader = _Reader(container, name, frames)
                stream = reader.read()
                count, total = len(frames), stream.frames or None
                fps, sounds = _rate(reader.times, stream), bool(container.streams.audio)
            audio = None
            if sounds:
                if count / fps > max_audio_seconds:
                    raise InputError(
                        f"{name} has {count / fps:.0f} seconds of sound with its {count} frames, more "
                        f"than the limit of {max_audio_seconds:g}; read fewer, or raise the limit with the "
                        "option max_audio_seconds."
                    )
                file.seek(start)
                first = 0.0 if math.isnan(reader.times[0]) else reader.times[0]
                audio = _read_audio(file, name, first, count / fps)
        except (av.FFmpegError, OSError, EOFError) as error:
            raise InputError(
                f"{name} is not a video that can be read, or it is cut short ({_reason(error)})."
            ) from error
        return frames.video(fps, audio, total)


class _Reader:
    """One pass over the pictures of an open container."""

    def __init__(self, container: av.container.InputContainer, name: str, frames: Frames):
        self.container, self.name, self.frames = container, name, frames
        self.times: list[float] = []
        self.matrix: tuple[int, int, int, int] | None = None
        self.shape: tuple[int, ...] = ()
        self.damage = ""

    def read(self) -> av.VideoStream:
        stream = video_stream(self.container)
        if stream is None:
            what = "only sound" if self.container.streams.audio else "no moving pictures"
            raise InputError(f"{self.name} holds {what}; a video was expected.")
        width, height = _square_size(stream.codec_context.width, stream.codec_context.height, stream)
        if width and height:  # a raw stream tells its size only with its first frame
            self.frames.check(width, height, stream.frames or 1)
        stream.thread_type = "AUTO"
        # Each thread holds a frame; and a frame that grows on the way is refused before it is allocated.
        stream.codec_context.thread_count = min(
            os.cpu_count() or 1, max(1, _IN_FLIGHT // (width * height or 1))
        )
        stream.codec_context.options = {"max_pixels": str(2 * self.frames.max_pixels + (1 << 16))}
        self._decode(stream)
        reason = f" ({self.damage})" if self.damage else ""
        if not len(self.frames):
            raise InputError(f"{self.name} has no frame that can be decoded{reason}.")
        if reason:
            logger.warning(
                "%s is damaged or cut short%s; %d frames are used.", self.name, reason, len(self.frames)
            )
        return stream

    def _decode(self, stream: av.VideoStream) -> None:
        packets = self.container.demux(stream)
        while not self.frames.full:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.is_corrupt:
                    self.damage = "a packet is incomplete"
                for frame in packet.decode():
                    if not self.frames.full:
                        self._take(frame, stream)
            except av.FFmpegError as error:  # what follows a damaged packet may still be good
                self.damage = _reason(error)

    def _take(self, frame: av.VideoFrame, stream: av.VideoStream) -> None:
        width, height = _square_size(frame.width, frame.height, stream)
        self.frames.check(width, height, len(self.frames) + 1)
        # PyAV before 17 heeds the tagged matrix only where source and target differ by name (RGB has none).
        tagged = frame.colorspace in _MATRICES
        rgb = frame.reformat(
            width,
            height,
            "rgb24",
            src_colorspace=frame.colorspace if tagged else None,
            dst_colorspace=Colorspace.ITU601 if tagged else None,
        )
        self.matrix = self.matrix or _display_matrix(frame)
        pixels = _upright(rgb.to_ndarray(), self.matrix)
        self.shape = self.shape or pixels.shape
        if pixels.shape != self.shape:  # some streams change size on the way
            pixels = np.asarray(Image.fromarray(pixels).resize(self.shape[1::-1]))
        self.frames.take(pixels)
        self.times.append(float("nan") if frame.time is None else frame.time)


def _read_audio(file: BinaryIO, name: str, start: float, seconds: float) -> Audio | None:
    """The first track of sound, from ``start`` on, ``seconds`` long; silence where it has none.

    Only what is needed is decoded and kept, whatever else the file may hold.
    """
    samples: np.ndarray | None = None
    end: int | None = None
    decoded, damage = 0, ""
    with open_container(file) as container:
        stream = next((each for each in container.streams.audio if each.codec_context is not None), None)
        if stream is None:
            return None
        resampler = _resampler(stream)
        packets = container.demux(stream)
        length = round(seconds * AUDIO_RATE)
        while decoded < length + 60 * AUDIO_RATE:  # where the packets tell no time, or always the same
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                time = None if packet.dts is None else float(packet.dts * packet.time_base)
                lasting = float((packet.duration or 0) * packet.time_base)
                if time is not None and lasting and time + lasting < start - 1:
                    continue  # a decoder needs some of what comes before, but not a second
                if time is not None and time > start + seconds + 1:
                    break
                for frame in packet.decode():
                    if frame.samples > 100 * frame.sample_rate:  # of hours, from a rate of a few hertz
                        raise ValueError(f"a sampling rate of {frame.sample_rate} Hz")
                    for piece in resampler.resample(frame):
                        values = piece.to_ndarray()
                        if samples is None:
                            samples = np.zeros((values.shape[0], length), np.float32)
                        decoded += values.shape[1]
                        at = end if piece.time is None else round((piece.time - start) * AUDIO_RATE)
                        # Containers round their times; only a jump that can be heard is a gap, no rounding.
                        if end is not None and (at is None or abs(at - end) < AUDIO_RATE // 20):
                            at = end
                        at = at or 0
                        end = at + values.shape[1]
                        first, last = max(at, 0), min(end, length)
                        if first < last:
                            samples[:, first:last] = values[:, first - at : last - at]
            except (av.FFmpegError, ValueError) as error:  # ValueError: it changes its format on the way
                damage = _reason(error)
    if damage:
        logger.warning("%s: some of its sound cannot be decoded (%s).", name, damage)
    return None if samples is None else Audio(samples)


def _resampler(stream: av.AudioStream) -> av.AudioResampler:
    layout = "mono" if stream.codec_context.channels == 1 else "stereo"
    return av.AudioResampler(format="fltp", layout=layout, rate=AUDIO_RATE)


def _square_size(width: int, height: int, stream: av.VideoStream) -> tuple[int, int]:
    """Size with square pixels. Ratios very near 1 are rounding of the encoder, absurd ones are errors."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if abs(aspect - 1) < 0.02 or not 0.25 <= aspect <= 4:
        return width, height
    return max(1, round(width * aspect)), height


def _display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """a, b, c, d of the matrix that takes (x, y) to (a x + c y, b x + d y), as a player shows the frame.

    PyAV crashes on the colour profile among a frame's side data, and knows not all kinds of them; so a filter
    removes all others first.
    """
    graph = av.filter.Graph()
    chain = [
        graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=frame.time_base or Fraction(1),
        )
    ]
    kinds = (kind for kind in _SIDE_DATA if kind != _DISPLAY_MATRIX)
    chain += [graph.add("sidedata", f"mode=delete:type={kind}") for kind in kinds]
    chain.append(graph.add("buffersink"))
    for one, other in pairwise(chain):
        one.link_to(other)
    graph.configure()
    chain[0].push(frame)
    for data in chain[-1].pull().side_data:
        a, b, _, c, d = np.frombuffer(bytes(data)[:20], dtype="=i4").tolist()
        return a, b, c, d
    return 1, 0, 0, 1


def _upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turn and mirror [h, w, 3] (by multiples of 90 degrees)."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _rate(times: list[float], stream: av.VideoStream) -> float:
    """Frames a second of the frames that were read."""
    stated = float(stream.average_rate or 0)
    if len(times) < 2:
        rate = stated if stream.frames > 1 else DEFAULT_FPS
    else:
        span = times[-1] - times[0]
        measured = (len(times) - 1) / span if span > 0 else stated  # also where there are no times (NaN)
        # The container's own figure is exact; but under a variable rate another part may run faster.
        rate = stated if abs(measured - stated) <= 0.02 * measured else measured
    return rate if MIN_FPS <= rate <= MAX_FPS else DEFAULT_FPS


def _read_webp(file: BinaryIO, name: str, frames: Frames) -> Video:
    milliseconds = 0
    image = open_picture(file, name, ("WEBP",))
    if image is None:
        raise InputError(f"{name} is damaged or cut short: it has no header.")
    with image:
        total = getattr(image, "n_frames", 1)
        frames.check(*image.size, total)
        try:
            for index in range(total):
                if frames.full:
                    break
                image.seek(index)
                frames.take(np.asarray(upright(image).convert("RGB")))
                milliseconds += image.info.get("duration", 0)
        except (OSError, SyntaxError, EOFError) as error:
            raise InputError(f"{name} is damaged or cut short: {plain(error)}.") from error
    fps = 1000 * len(frames) / milliseconds if len(frames) > 1 and milliseconds > 0 else DEFAULT_FPS
    return frames.video(fps if MIN_FPS <= fps <= MAX_FPS else DEFAULT_FPS, None, total)


def _reason(error: Exception) -> str:
    return plain(error).lower()
