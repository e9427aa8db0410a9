"""Results out: MP4, MOV, MKV, WebM, GIF, WebP, or a folder of PNGs, whole or not at all.

Everything is written under a temporary name and renamed at the end, so that neither a crash nor a full disk
nor Ctrl-C leaves half a file, and an older result stays until the new one is there. Frames have taken minutes
to make: what cannot be written of their sound or metadata is left out, with a warning.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, PngImagePlugin, features

from ..errors import InputError, OutputError, VideoError
from ..files import replace_file, replace_folder
from ..spec.options import MAX_FPS, MIN_FPS
from .images import open_picture
from .probe import open_container
from .sources import open_source, plain
from .videos import DEFAULT_FPS, Audio

logger = logging.getLogger(__name__)

DEFAULT_CRF = 17
"""H.264 quality of the original pipelines (0 lossless, 51 worst)."""

FRAME_NAME = "frame_{:05d}.png"
"""Names in a folder of PNGs, counted from 1."""

_FRAME_NAME = re.compile(r"frame_[0-9]{5,}\.png")
_GIF_FPS = 100
"""Frames a second at most: a GIF counts in hundredths of a second."""

_MOV_COMMENT = 65_000
_MAX_BYTES = 2_000_000_000
_BT709 = 1  # H.273's code point of the BT.709 primaries, transfer and matrix
_AUDIO_BIT_RATE = 192_000
_EXIF_DESCRIPTION = 0x010E


@dataclass(frozen=True)
class _Job:
    """All that the writers of the single formats need."""

    frames: Iterable[np.ndarray]
    width: int
    height: int
    fps: Fraction
    crf: int
    comment: str
    audio: Audio | None


@dataclass(frozen=True)
class _Container:
    format: str
    video_codec: str
    audio_codec: str
    video_options: Mapping[str, str]
    options: Mapping[str, str]


_H264 = ("libx264", "aac", {})
# VP9 takes crf as the whole truth only with a bit rate of 0; the rest is speed.
_VP9 = ("libvpx-vp9", "libopus", {"b": "0", "row-mt": "1", "deadline": "good", "cpu-used": "4"})
# The index in front lets a browser play while it still loads.
_FASTSTART = {"movflags": "+faststart"}
_CONTAINERS = {
    ".mp4": _Container("mp4", *_H264, _FASTSTART),
    ".mov": _Container("mov", *_H264, _FASTSTART),
    ".mkv": _Container("matroska", *_H264, {}),
    ".webm": _Container("webm", *_VP9, {}),
}


def check_output(path: str | os.PathLike[str]) -> Path:
    """Find out before any work is done whether a result can be written to ``path``.

    The extension says what is written: ``.mp4``, ``.mov``, ``.mkv``, ``.webm``, ``.gif``, ``.webp``; a
    name without one is a folder of PNGs. Such a folder may exist if it is empty or holds only the
    pictures of an earlier run, which are replaced.

    Raises:
        OutputError: naming what stands in the way.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise OutputError(f"An output path is a string or a pathlib.Path, not {type(path).__name__}.")
    text = os.fspath(path)
    target = Path(text)
    if not target.name or target.name == "..":
        raise OutputError(f"The output path {text!r} names no file.")
    suffix = target.suffix.lower()
    if suffix and suffix not in _WRITERS:
        raise OutputError(
            f"The output {text!r} ends in {target.suffix!r}, which cannot be written; known are "
            f"{', '.join(_WRITERS)}, or a name without an extension for a folder of PNG pictures."
        )
    if suffix in _CONTAINERS and not _encodes(_CONTAINERS[suffix].video_codec):
        raise OutputError(
            f"{suffix} files need the encoder {_CONTAINERS[suffix].video_codec}, which the installed PyAV "
            "lacks; install PyAV from PyPI (pip install av), or write .gif or .webp."
        )
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mode = os.stat(target).st_mode  # or a name that is too long, or holds what names here cannot
            if suffix and stat.S_ISDIR(mode):
                raise OutputError(f"The output {text!r} is a directory; a file was expected.")
            if suffix and not stat.S_ISREG(mode):
                raise OutputError(f"The output {text!r} exists and is not a regular file.")
            if suffix and not os.access(target, os.W_OK):
                raise OutputError(f"The output {text!r} exists and is write-protected.")
            if not suffix:
                _check_folder(target, text)
        # A link to a folder is followed, also to one that is not there yet; a link to a file is replaced.
        folder = target.parent if suffix else Path(os.path.realpath(target)).parent
        if not folder.is_dir():
            raise OutputError(f"The folder {str(folder)!r} of the output {text!r} does not exist.")
        # Permissions lie (network drives, Windows' lists of them); a file that could be made does not.
        tempfile.TemporaryFile(dir=folder).close()
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise OutputError(f"The output {text!r} cannot be written: {plain(error)}.") from error
    return target


def write_video(
    frames: Iterable[np.ndarray],
    path: str | os.PathLike[str],
    *,
    fps: float = DEFAULT_FPS,
    crf: int = DEFAULT_CRF,
    metadata: Mapping[str, object] | None = None,
    audio: Audio | None = None,
) -> str:
    """Write frames in the format that the extension of ``path`` names.

    Args:
        frames: uint8 [f, h, w, 3] RGB, or any iterable of [h, w, 3]; consumed one at a time.
        fps: frames a second, 0.01 to 1000. GIF counts in hundredths of a second, WebP in thousandths: there
            single frames last a little longer or shorter, and all together as long as they should. Of
            more than 100 a second a GIF has only as many as it can show, and a warning says so; WebP
            makes one frame of equal ones in a row, which plays the same.
        crf: quality of H.264 and VP9, 0..51; other formats have none. H.264 needs even sizes: the last
            row or column of an odd one is repeated, nothing is cut.
        metadata: kept as JSON in the file's comment; :func:`read_metadata` gives it back.
        audio: cut to the length of the frames, written as AAC (WebM: Opus). Formats without sound
            leave it out.

    Returns:
        ``path`` as it was given, as a string. Sound or metadata with which it could not be written are
        left out, with a logged warning (frames from an iterator, which cannot be read twice, are not
        tried again).

    Raises:
        InputError: if the frames are none, of another type, or differ in size.
        OutputError: if the file cannot be written. Whatever was raised, ``path`` is as it was before.
    """
    target = check_output(path)
    job = _job(frames, fps, crf, metadata, audio)
    again = iter(frames) is not frames
    attempts = [job]
    if again:
        sounds = [job.audio, None] if job.audio is not None else [None]
        comments = [job.comment, ""] if job.comment else [""]
        attempts = [replace(job, audio=audio, comment=comment) for audio in sounds for comment in comments]
    failure: Exception | None = None
    for attempt in attempts:
        try:
            _write(attempt, target)
            break
        except (VideoError, MemoryError):
            raise
        except Exception as error:  # PyAV and Pillow raise what they like
            if not again and not isinstance(error, av.FFmpegError):
                raise  # whoever makes the frames failed
            failure = failure or error
    else:
        assert failure is not None
        raise OutputError(
            f"The output {os.fspath(path)!r} could not be written: {plain(failure)}."
        ) from failure
    if failure is not None:
        lost = ["sound"] * (attempt.audio is not job.audio) + ["metadata"] * (attempt.comment != job.comment)
        logger.warning("%r is written without its %s (%s).", target.name, " and ".join(lost), plain(failure))
    return os.fspath(path)


def _write(job: _Job, target: Path) -> None:
    write = _WRITERS.get(target.suffix.lower())
    if write is not None:
        with replace_file(target) as temporary:
            write(job, temporary)
    else:
        with replace_folder(target, lambda name: bool(_FRAME_NAME.fullmatch(name))) as temporary:
            _write_folder(job, temporary)


def keep_frames(frames: np.ndarray, path: str | os.PathLike[str] | None, fps: float) -> str | None:
    """Put frames whose video cannot be written into a new folder of PNGs: the last resort.

    Args:
        path: the output that failed; the folder is next to it, or else where temporary files are.

    Returns:
        The folder's path; ``None`` if nothing can be written anywhere.
    """
    name = "video" if path is None else Path(path).stem[:50]
    folders = [] if path is None else [os.path.dirname(os.path.abspath(path))]
    for folder in [*folders, tempfile.gettempdir()]:
        names = (f"{name}-frames{number}" for number in ("", *map("-{}".format, range(2, 1000))))
        free = next((each for each in names if not os.path.lexists(os.path.join(folder, each))), None)
        if free is not None:
            with contextlib.suppress(OSError, VideoError):
                return write_video(frames, os.path.join(folder, free), fps=fps)
    return None


def encode_video(
    frames: Iterable[np.ndarray],
    *,
    format: str = "mp4",
    fps: float = DEFAULT_FPS,
    crf: int = DEFAULT_CRF,
    metadata: Mapping[str, object] | None = None,
    audio: Audio | None = None,
) -> bytes:
    """The bytes of the file that :func:`write_video` would write; ``format`` is its extension."""
    if f".{format}" not in _WRITERS:
        known = ", ".join(suffix[1:] for suffix in _WRITERS)
        raise InputError(f"format={format!r} is unknown; it is one of {known}.")
    # An MP4 with its index in front is written in two passes, which takes a real file.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"video.{format}")
        write_video(frames, path, fps=fps, crf=crf, metadata=metadata, audio=audio)
        return path.read_bytes()


def read_metadata(path: str | os.PathLike[str]) -> dict[str, object]:
    """The ``metadata`` that :func:`write_video` put into a file or folder; empty where there is none."""
    path = Path(path)
    if path.is_dir():
        path = path / FRAME_NAME.format(1)
    with open_source(path, what="video", max_bytes=_MAX_BYTES) as (file, name):
        try:
            comment: Any
            if path.suffix.lower() in (".gif", ".webp", ".png"):
                image = open_picture(file, name)
                if image is None:
                    raise InputError(f"{name} is not a picture that can be read.")
                with image:
                    comment = image.info.get("comment") or image.getexif().get(_EXIF_DESCRIPTION)
            else:
                with open_container(file) as container:
                    tags = {key.lower(): value for key, value in container.metadata.items()}
                comment = tags.get("comment")
        except InputError:
            raise
        except Exception as error:  # PIL's and FFmpeg's readers raise whatever the damage led them to
            raise InputError(f"{name} cannot be read: {plain(error)}.") from error
    try:
        content = json.loads(comment or "{}")
    except (ValueError, TypeError, RecursionError):  # somebody else's comment
        return {}
    return content if isinstance(content, dict) else {}


def codecs() -> dict[str, bool]:
    """Which encoders this installation has, by the names of FFmpeg; ``webp`` is Pillow's."""
    names = sorted({name for c in _CONTAINERS.values() for name in (c.video_codec, c.audio_codec)} | {"gif"})
    return {name: _encodes(name) for name in names} | {"webp": features.check("webp")}


def _encodes(codec: str) -> bool:
    try:
        av.codec.Codec(codec, "w")
    except ValueError:  # UnknownCodecError
        return False
    return True


def _check_folder(target: Path, text: str) -> None:
    if not target.is_dir():
        raise OutputError(
            f"The output {text!r} is a file without an extension; a name such as {text + '.mp4'!r}"
            " writes a video, and a new name a folder of PNG pictures."
        )
    while True:
        folder = os.stat(target).st_ino
        names = sorted(os.listdir(target))
        expected = (FRAME_NAME.format(index) for index in range(1, len(names) + 1))
        other = next((name for name, frame in zip(names, expected, strict=True) if name != frame), None)
        if os.stat(target).st_ino == folder:  # else another writer has exchanged it meanwhile
            break
    if other is not None:
        raise OutputError(
            f"The output {text!r} is a directory with other things in it ({other!r}); name a file "
            "in it, or a new or empty folder for PNG pictures."
        )


def _job(
    frames: Iterable[np.ndarray],
    fps: float,
    crf: int,
    metadata: Mapping[str, object] | None,
    audio: Audio | None,
) -> _Job:
    if not _is_number(fps, MIN_FPS, MAX_FPS):
        raise InputError(f"fps={fps} is not a frame rate; it is a number from {MIN_FPS:g} to {MAX_FPS:g}.")
    if not _is_number(crf, 0, 51):
        raise InputError(f"crf={crf} is out of range; it goes from 0 (lossless) to 51 (worst).")
    try:
        iterator = iter(frames)
    except TypeError:
        raise InputError(f"Frames cannot be taken from {type(frames).__name__}.") from None
    first = next(iterator, None)
    if first is None:
        raise InputError("There are no frames to write.")
    shape = np.shape(first)
    _checked(first, shape, 0)
    checked = _Frames(chain([first], iterator) if iterator is frames else frames, shape)
    # Rates such as 30000/1001 come as floats; this finds the fraction again.
    rate = Fraction(fps).limit_denominator(1001)
    return _Job(checked, shape[1], shape[0], rate, crf, _comment(metadata), _sound(audio))


def _is_number(value: object, low: float, high: float) -> bool:
    try:
        return low <= float(value) <= high  # type: ignore[arg-type]  # NaN is not
    except (TypeError, ValueError, OverflowError):
        return False


def _comment(metadata: Mapping[str, object] | None) -> str:
    """JSON that any file can hold: half a letter (of a prompt that was no UTF-8) is written as an escape."""
    try:
        text = json.dumps(dict(metadata or {}), ensure_ascii=False, default=str) if metadata else ""
        return text.encode("utf-8", "backslashreplace").decode()
    except Exception as error:  # whatever the values' own methods raise
        logger.warning("The metadata cannot be written (%s), and are left out.", plain(error))
        return ""


def _sound(audio: Audio | None) -> Audio | None:
    """The same with silence for what is no number, or ``None`` for what is no sound."""
    if audio is None:
        return None
    samples = np.asarray(audio.samples)
    if samples.ndim != 2 or samples.shape[0] not in (1, 2) or not np.issubdtype(samples.dtype, np.floating):
        logger.warning(
            "The sound is left out: it is %s %s, and float [1 or 2 channels, samples] was expected.",
            samples.dtype,
            list(samples.shape),
        )
        return None
    if np.isfinite(samples).all():
        return audio
    logger.warning("The sound holds values that are no numbers; they are written as silence.")
    return Audio(np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0), audio.rate)


class _Frames:
    """Frames that are checked as they are taken; again and again, where they can be."""

    def __init__(self, frames: Iterable[np.ndarray], shape: tuple[int, ...]):
        self.frames, self.shape = frames, shape

    def __iter__(self) -> Iterator[np.ndarray]:
        return (_checked(frame, self.shape, index) for index, frame in enumerate(self.frames))


def _checked(frame: np.ndarray, shape: tuple[int, ...], index: int) -> np.ndarray:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        what = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise InputError(f"Frame {index} is {what}; a uint8 array [height, width, 3] was expected.")
    if frame.shape != shape or 0 in shape:
        raise InputError(
            f"Frame {index} is {frame.shape[1]}x{frame.shape[0]} pixels; all frames of a video have one "
            f"size, and the first has {shape[1]}x{shape[0]}."
        )
    return np.ascontiguousarray(frame)


def _write_container(job: _Job, path: Path, kind: _Container) -> None:
    # "file:" keeps FFmpeg from taking a colon or a leading dash in the path for something else.
    with av.open(f"file:{path}", "w", format=kind.format, options=dict(kind.options)) as container:
        if job.comment:
            if kind.format == "mov" and len(job.comment.encode()) > _MOV_COMMENT:  # FFmpeg drops it silently
                raise ValueError(f"MOV holds no comment of more than {_MOV_COMMENT:,} bytes")
            container.metadata["comment"] = job.comment
        options = {"crf": str(job.crf), **kind.video_options}
        stream = container.add_stream(kind.video_codec, rate=job.fps, options=options)
        stream.width, stream.height = job.width + job.width % 2, job.height + job.height % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
        sound = _Sound(container, kind.audio_codec, job.audio) if job.audio is not None else None
        for index, pixels in enumerate(job.frames):
            frame = av.VideoFrame.from_ndarray(_even(pixels), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = index, 1 / job.fps
            container.mux(stream.encode(frame))
            if sound is not None:
                sound.write_until((index + 1) / job.fps)
        container.mux(stream.encode(None))
        if sound is not None:
            sound.finish()


class _Sound:
    """An audio track, written in step with the frames, so that it ends with them."""

    def __init__(self, container: av.container.OutputContainer, codec: str, audio: Audio):
        self.container, self.audio, self.position = container, audio, 0
        self.layout = "mono" if audio.samples.shape[0] == 1 else "stereo"
        self.stream = container.add_stream(
            codec, rate=audio.rate, layout=self.layout, bit_rate=_AUDIO_BIT_RATE
        )

    def write_until(self, seconds: Fraction) -> None:
        end = min(round(seconds * self.audio.rate), self.audio.samples.shape[1])
        if end <= self.position:
            return
        samples = np.ascontiguousarray(self.audio.samples[:, self.position : end], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self.layout)
        frame.sample_rate, frame.time_base = self.audio.rate, Fraction(1, self.audio.rate)
        frame.pts, self.position = self.position, end
        self.container.mux(self.stream.encode(frame))

    def finish(self) -> None:
        self.container.mux(self.stream.encode(None))


def _even(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return pixels


def _write_gif(job: _Job, path: Path) -> None:
    with av.open(f"file:{path}", "w", format="gif", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=job.fps)
        stream.width, stream.height, stream.pix_fmt = job.width, job.height, "pal8"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100)
        for frame in _with_palette(job, Fraction(1, _GIF_FPS)):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if job.comment:
        path.write_bytes(_gif_with_comment(path.read_bytes(), job.comment.encode()))


def _with_palette(job: _Job, tick: Fraction) -> Iterator[av.VideoFrame]:
    """One palette for the whole film (a palette a frame flickers), dithered; times in ticks."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=job.width, height=job.height, format=av.VideoFormat("rgb24"), time_base=tick
    )
    split, palette = graph.add("split"), graph.add("palettegen", "reserve_transparent=0")
    use, sink = graph.add("paletteuse", "dither=sierra2_4a:diff_mode=rectangle"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    index, last, lost = 0, -1, 0
    for index, pixels in enumerate(job.frames):
        # 8 frames a second take 12 and 13 hundredths in turn, so that all together keep their time.
        time = round(index / job.fps / tick)
        if time == last:
            lost += 1
            continue
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base, last = time, tick, time
        source.push(frame)
    source.push(None)
    if lost:
        logger.warning(
            "A GIF has at most %d frames a second: %d of %d frames are left out, so that it keeps its time.",
            _GIF_FPS,
            lost,
            index + 1,
        )
    while True:
        try:
            yield sink.pull()
        except av.EOFError:
            return


def _gif_with_comment(data: bytes, comment: bytes) -> bytes:
    """FFmpeg writes no comments into GIFs; the extension's place is behind the global palette."""
    start = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    pieces = (comment[i : i + 255] for i in range(0, len(comment), 255))
    block = b"\x21\xfe" + b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\x00"
    return data[:start] + block + data[start:]


def _write_webp(job: _Job, path: Path) -> None:
    images = [Image.fromarray(pixels) for pixels in job.frames]
    ends = [round(1000 * index / job.fps) for index in range(len(images) + 1)]
    exif = Image.Exif()
    if job.comment:  # EXIF's text is ASCII, so that other letters are escaped
        exif[_EXIF_DESCRIPTION] = json.dumps(json.loads(job.comment))
    with path.open("wb") as file:
        images[0].save(
            file,
            "WEBP",
            save_all=True,
            append_images=images[1:],
            duration=[after - before for before, after in pairwise(ends)],
            loop=0,
            quality=90,
            exif=exif,
        )
    with path.open("rb") as file, open_picture(file, path.name, ("WEBP",)) as image:
        if (found := getattr(image, "n_frames", 1)) < len(images):
            logger.warning(
                "The WebP has %d frames for %d: equal ones in a row are one that lasts longer.",
                found,
                len(images),
            )


def _write_folder(job: _Job, path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("fps", str(float(job.fps)))
    if job.comment:
        info.add_itxt("comment", job.comment)
    for index, pixels in enumerate(job.frames, start=1):
        Image.fromarray(pixels).save(path / FRAME_NAME.format(index), pnginfo=info)


def _container_writer(kind: _Container) -> Callable[[_Job, Path], None]:
    return lambda job, path: _write_container(job, path, kind)


_WRITERS: dict[str, Callable[[_Job, Path], None]] = {
    **{suffix: _container_writer(kind) for suffix, kind in _CONTAINERS.items()},
    ".gif": _write_gif,
    ".webp": _write_webp,
}

SUFFIXES = tuple(_WRITERS)
"""Suffixes of the files that can be written; a path without one is a folder of PNGs."""
