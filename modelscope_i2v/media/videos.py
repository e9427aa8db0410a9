"""Videos in: the first frames of anything that FFmpeg reads, upright, with their rate and sound."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import Colorspace
from PIL import Image

from ..errors import InputError
from .images import MAX_PIXELS, check_pixels, without_pil_limit
from .sources import Source, open_source

logger = logging.getLogger(__name__)

DEFAULT_FPS = 8.0
"""Frame rate of what has none: single frames, and files that do not tell."""

AUDIO_RATE = 48_000
"""Sampling rate, in Hz, that all sound is brought to; both AAC and Opus take it."""

_ATTACHED_PICTURE = 0x400  # FFmpeg's flag; what PyAV offers for it differs from version to version
_MATRICES = {1, 5, 6, 7, 9}
"""H.273's numbers of the matrices between YUV and RGB that FFmpeg's scaler knows."""

_MAX_BYTES = 2_000_000_000
# Playlists and the like could make FFmpeg open other files or addresses; nothing but the given file is read.
_OPTIONS = {"protocol_whitelist": "data"}


@dataclass(frozen=True)
class Audio:
    """Sound beside the frames that were read, beginning with the first of them."""

    samples: np.ndarray
    """float32 [channels, n], one or two channels, nominally in -1..1."""
    rate: int = AUDIO_RATE


@dataclass(frozen=True)
class Video:
    """What was read of a video file."""

    frames: np.ndarray
    """uint8 [f, h, w, 3], RGB, upright, square pixels, in the order they are shown."""
    fps: float
    """Average rate of these frames."""
    audio: Audio | None = None
    """To be handed to :func:`~modelscope_i2v.media.write.write_video`; ``None`` if there is none."""
    total_frames: int | None = None
    """Frames in the file, where its header tells."""


def read_video(source: Source, *, max_frames: int | None = None, max_pixels: int = MAX_PIXELS) -> Video:
    """Read a video's first frames.

    Args:
        source: a path, an ``http(s)://`` or ``file://`` URL, bytes, or a binary file object.
        max_frames: how many frames to read at most; what comes later in the file is not decoded.
        max_pixels: the largest area of one frame, checked before decoding.

    Returns:
        The frames with the rotation of the file's display matrix applied. Every frame of a file with
        a variable rate counts once; ``fps`` is then their average. A picture is a video of one frame.

    Raises:
        InputError: if it is missing, empty, not a video, without a frame that can be decoded, or too
            large. A file that breaks off after some frames gives these, and a logged warning.
    """
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames={max_frames} is too small; at least one frame must be read.")
    with open_source(source, what="video", max_bytes=_MAX_BYTES) as (file, name):
        start = file.tell()
        head = file.read(16)
        file.seek(start)
        if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":  # FFmpeg decodes no animated WebP
            return _read_webp(file, name, max_frames, max_pixels)
        try:
            container = av.open(file, mode="r", options=_OPTIONS, metadata_errors="ignore")
        except (av.FFmpegError, OSError) as error:
            raise InputError(
                f"{name} is not a video that can be read, or it is cut short ({_reason(error)})."
            ) from error
        with container:
            return _Reader(container, name, max_frames, max_pixels).read()


def is_video(file: BinaryIO) -> bool:
    """Whether FFmpeg finds moving pictures in a file (which is left where it stood)."""
    start = file.tell()
    try:
        with av.open(file, mode="r", options=_OPTIONS, metadata_errors="ignore") as container:
            return _video_stream(container) is not None
    except (av.FFmpegError, OSError):
        return False
    finally:
        file.seek(start)


class _Reader:
    """One pass over an open container."""

    def __init__(
        self, container: av.container.InputContainer, name: str, max_frames: int | None, max_pixels: int
    ):
        self.container, self.name = container, name
        self.max_frames, self.max_pixels = max_frames, max_pixels
        self.frames: list[np.ndarray] = []
        self.times: list[float] = []
        self.sound: list[tuple[float | None, np.ndarray]] = []  # seconds, samples [channels, n]
        self.damage = self.sound_damage = ""

    def read(self) -> Video:
        stream = _video_stream(self.container)
        if stream is None:
            what = "only sound" if self.container.streams.audio else "no moving pictures"
            raise InputError(f"{self.name} holds {what}; a video was expected.")
        width, height = _square_size(stream.codec_context.width, stream.codec_context.height, stream)
        if width and height:  # a raw stream tells its size only with its first frame
            check_pixels((width, height), self.max_pixels, self.name)
        stream.thread_type = "AUTO"
        self._decode(stream)
        count = len(self.frames)
        reason = f" ({self.damage})" if self.damage else ""
        if not count:
            raise InputError(f"{self.name} has no frame that can be decoded{reason}.")
        if reason:
            logger.warning("%s is damaged or cut short%s; %d frames are used.", self.name, reason, count)
        if self.sound_damage:
            logger.warning("%s: some of its sound cannot be decoded (%s).", self.name, self.sound_damage)
        fps = _rate(self.times, stream)
        return Video(np.stack(self.frames), fps, self._audio(count / fps), stream.frames or None)

    def _decode(self, stream: av.VideoStream) -> None:
        sounds = [sound for sound in self.container.streams.audio if sound.codec_context is not None][:1]
        resampler = _resampler(sounds[0]) if sounds else None
        packets = self.container.demux(stream, *sounds)
        while not (self._full() and not sounds):
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.stream is stream:
                    if packet.is_corrupt:
                        self.damage = "a packet is incomplete"
                    for frame in [] if self._full() else packet.decode():
                        if not self._full():
                            self._take(frame, stream)
                    continue
            except av.FFmpegError as error:  # what follows a damaged packet may still be good
                self.damage = _reason(error)
                continue
            time = None if packet.dts is None else float(packet.dts * packet.time_base)
            if self._full() and time is not None and time > self.times[-1] + 1:
                break
            try:
                self._take_sound(packet, resampler)
            except (av.FFmpegError, ValueError) as error:  # ValueError: it changes its format on the way
                self.sound_damage = _reason(error)

    def _full(self) -> bool:
        return self.max_frames is not None and len(self.frames) >= self.max_frames

    def _take(self, frame: av.VideoFrame, stream: av.VideoStream) -> None:
        width, height = _square_size(frame.width, frame.height, stream)
        check_pixels((width, height), self.max_pixels, self.name)
        # PyAV before 17 heeds the tagged matrix only where source and target differ by name (RGB has none).
        tagged = frame.colorspace in _MATRICES
        rgb = frame.reformat(
            width,
            height,
            "rgb24",
            src_colorspace=frame.colorspace if tagged else None,
            dst_colorspace=Colorspace.ITU601 if tagged else None,
        )
        pixels = _upright(rgb.to_ndarray(), frame)
        if self.frames and pixels.shape != self.frames[0].shape:  # some streams change size on the way
            pixels = np.asarray(Image.fromarray(pixels).resize(self.frames[0].shape[1::-1]))
        self.frames.append(pixels)
        self.times.append(float("nan") if frame.time is None else frame.time)

    def _take_sound(self, packet: av.Packet, resampler: av.AudioResampler) -> None:
        for frame in packet.decode():
            for piece in resampler.resample(frame):
                self.sound.append((piece.time, piece.to_ndarray()))

    def _audio(self, seconds: float) -> Audio | None:
        """The sound from the first frame on, ``seconds`` long (silence where the file has none)."""
        if not self.sound:
            return None
        start = 0.0 if math.isnan(self.times[0]) else self.times[0]
        samples = np.zeros((self.sound[0][1].shape[0], round(seconds * AUDIO_RATE)), np.float32)
        end: int | None = None
        for time, piece in self.sound:
            at = end if time is None else round((time - start) * AUDIO_RATE)
            # Containers round their times; only a jump that can be heard is a gap, not a rounding.
            if end is not None and (at is None or abs(at - end) < AUDIO_RATE // 20):
                at = end
            at = at or 0
            end = at + piece.shape[1]
            first, last = max(at, 0), min(end, samples.shape[1])
            if first < last:
                samples[:, first:last] = piece[:, first - at : last - at]
        return Audio(samples)


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first track of moving pictures; a cover picture beside sound is none."""
    for stream in container.streams.video:
        disposition = getattr(getattr(stream, "disposition", None), "value", 0)
        if stream.codec_context is not None and not disposition & _ATTACHED_PICTURE:
            return stream
    return None


def _resampler(stream: av.AudioStream) -> av.AudioResampler:
    layout = "mono" if stream.codec_context.channels == 1 else "stereo"
    return av.AudioResampler(format="fltp", layout=layout, rate=AUDIO_RATE)


def _square_size(width: int, height: int, stream: av.VideoStream) -> tuple[int, int]:
    """Size with square pixels. Ratios very near 1 are rounding of the encoder, absurd ones are errors."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if abs(aspect - 1) < 0.02 or not 0.25 <= aspect <= 4:
        return width, height
    return max(1, round(width * aspect)), height


def _upright(pixels: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Turn and mirror [h, w, 3] as the frame's display matrix says (multiples of 90 degrees)."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data)[:20], dtype="=i4").tolist()
            break
    else:
        return pixels
    # The matrix takes (x, y) to (a x + c y, b x + d y).
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
    return rate if 0 < rate <= 1000 else DEFAULT_FPS


def _read_webp(file: BinaryIO, name: str, max_frames: int | None, max_pixels: int) -> Video:
    frames, milliseconds = [], 0
    try:
        with without_pil_limit():
            image = Image.open(file, formats=["WEBP"])
        with image:
            check_pixels(image.size, max_pixels, name)
            total = getattr(image, "n_frames", 1)
            for index in range(min(total, max_frames or total)):
                image.seek(index)
                frames.append(np.asarray(image.convert("RGB")))
                milliseconds += image.info.get("duration", 0)
    except (OSError, SyntaxError, EOFError) as error:
        raise InputError(f"{name} is damaged or cut short: {error}.") from error
    fps = 1000 * len(frames) / milliseconds if len(frames) > 1 and milliseconds > 0 else DEFAULT_FPS
    return Video(np.stack(frames), fps, None, total)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
