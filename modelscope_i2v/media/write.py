"""Results out: MP4, MOV, MKV, WebM, GIF, WebP, or a folder of PNGs, whole or not at all.

Everything is written under a temporary name beside the target and renamed at the end, so that neither a
crash nor a full disk nor Ctrl-C leaves half a file, and an older result stays until the new one is there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, PngImagePlugin, features

from ..errors import InputError, OutputError, VideoError
from .videos import DEFAULT_FPS, Audio

DEFAULT_CRF = 17
"""H.264 quality of the original pipelines (0 lossless, 51 worst)."""

FRAME_NAME = "frame_{:05d}.png"
"""Names in a folder of PNGs, counted from 1."""

_BT709 = 1  # H.273's code point of the BT.709 primaries, transfer and matrix
_AUDIO_BIT_RATE = 192_000
_EXIF_DESCRIPTION = 0x010E


@dataclass(frozen=True)
class _Job:
    """All that the writers of the single formats need."""

    frames: Iterator[np.ndarray]
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
        if suffix and target.is_dir():
            raise OutputError(f"The output {text!r} is a directory; a file was expected.")
        if not suffix and target.exists():
            _check_folder(target, text)
        if not target.parent.is_dir():
            raise OutputError(f"The folder {str(target.parent)!r} of the output {text!r} does not exist.")
        if target.is_file() and not os.access(target, os.W_OK):
            raise OutputError(f"The output {text!r} exists and is write-protected.")
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target)  # a name that is too long, or holds what this system's names cannot
        # Permissions lie (network drives, Windows' lists of them); a file that could be made does not.
        probe = _temporary(target)
        probe.touch()
        probe.unlink()
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise OutputError(f"The output {text!r} cannot be written: {error}.") from error
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
        fps: frames a second. GIF counts in hundredths, WebP in thousandths of a second.
        crf: quality of H.264 and VP9, 0..51; other formats have none. H.264 needs even sizes: the last
            row or column of an odd one is repeated, nothing is cut.
        metadata: kept as JSON in the file's comment; :func:`read_metadata` gives it back.
        audio: cut to the length of the frames, written as AAC (WebM: Opus). Formats without sound
            leave it out.

    Returns:
        ``path`` as it was given, as a string.

    Raises:
        InputError: if the frames are none, of another type, or differ in size.
        OutputError: if the file cannot be written. Whatever was raised, ``path`` is as it was before.
    """
    target = check_output(path)
    job = _job(frames, fps, crf, metadata, audio)
    write = _WRITERS.get(target.suffix.lower(), _write_folder)
    temporary = _temporary(target)
    try:
        write(job, temporary)
        if target.is_dir():
            shutil.rmtree(target)  # an earlier run's pictures: check_output saw nothing else in there
        os.replace(temporary, target)
    except VideoError:
        raise
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or error  # without the temporary name, which means nothing to anybody
        raise OutputError(f"The output {os.fspath(path)!r} could not be written: {reason}.") from error
    finally:
        _remove(temporary)
    return os.fspath(path)


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
    try:
        if path.is_dir():
            path = path / FRAME_NAME.format(1)
        if path.suffix.lower() in (".gif", ".webp", ".png"):
            with Image.open(path) as image:
                comment = image.info.get("comment") or image.getexif().get(_EXIF_DESCRIPTION)
        else:
            with av.open(f"file:{path}", metadata_errors="ignore") as container:
                tags = {key.lower(): value for key, value in container.metadata.items()}
            comment = tags.get("comment")
        content = json.loads(comment or "{}")
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {error}.") from error
    except ValueError:  # somebody else's comment
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
    for index, entry in enumerate(sorted(target.iterdir()), start=1):
        if entry.name != FRAME_NAME.format(index) or not entry.is_file():
            raise OutputError(
                f"The output {text!r} is a directory with other things in it ({entry.name!r}); name a file "
                "in it, or a new or empty folder for PNG pictures."
            )


def _temporary(target: Path) -> Path:
    return target.with_name(f".{secrets.token_hex(8)}.part")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _job(
    frames: Iterable[np.ndarray],
    fps: float,
    crf: int,
    metadata: Mapping[str, object] | None,
    audio: Audio | None,
) -> _Job:
    if not 0 < fps <= 1000:  # NaN fails this too
        raise InputError(f"fps={fps} is not a frame rate; it is a number over 0 and at most 1000.")
    if not 0 <= crf <= 51:
        raise InputError(f"crf={crf} is out of range; it goes from 0 (lossless) to 51 (worst).")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InputError("There are no frames to write.")
    shape = np.shape(first)
    checked = (_checked(frame, shape, index) for index, frame in enumerate(chain([first], frames)))
    _checked(first, shape, 0)
    # Rates such as 30000/1001 come as floats; this finds the fraction again.
    rate = Fraction(fps).limit_denominator(1001)
    if rate <= 0:
        rate = Fraction(fps).limit_denominator(1_000_000)
    comment = json.dumps(dict(metadata), ensure_ascii=False, default=str) if metadata else ""
    return _Job(checked, shape[1], shape[0], rate, crf, comment, audio)


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
        for frame in _with_palette(job):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if job.comment:
        path.write_bytes(_gif_with_comment(path.read_bytes(), job.comment.encode()))


def _with_palette(job: _Job) -> Iterator[av.VideoFrame]:
    """One palette for the whole film (a palette a frame flickers), dithered."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=job.width, height=job.height, format=av.VideoFormat("rgb24"), time_base=1 / job.fps
    )
    split, palette = graph.add("split"), graph.add("palettegen", "reserve_transparent=0")
    use, sink = graph.add("paletteuse", "dither=sierra2_4a:diff_mode=rectangle"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for index, pixels in enumerate(job.frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = index, 1 / job.fps
        source.push(frame)
    source.push(None)
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


def _write_folder(job: _Job, path: Path) -> None:
    path.mkdir()
    info = PngImagePlugin.PngInfo()
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
