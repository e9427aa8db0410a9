"""A look at a file's kind with FFmpeg, as pictures and videos both need it."""

from __future__ import annotations

from typing import BinaryIO

import av

_ATTACHED_PICTURE = 0x400  # FFmpeg's flag; what PyAV offers for it differs from version to version

# Playlists and the like could make FFmpeg open other files or addresses; nothing but the given file is read.
_OPTIONS = {"protocol_whitelist": "data"}


def open_container(file: BinaryIO) -> av.container.InputContainer:
    """Open a file of moving pictures or sound. Raises av.FFmpegError or OSError."""
    return av.open(file, mode="r", options=_OPTIONS, metadata_errors="ignore")


def video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first track of moving pictures; a cover picture beside sound is none."""
    for stream in container.streams.video:
        disposition = getattr(getattr(stream, "disposition", None), "value", 0)
        if stream.codec_context is not None and not disposition & _ATTACHED_PICTURE:
            return stream
    return None


def is_video(file: BinaryIO) -> bool:
    """True where FFmpeg finds moving pictures in a file (which is left where it stood)."""
    start = file.tell()
    try:
        with open_container(file) as container:
            # Formats of single pictures are "png_pipe" and so on; a damaged JPEG is taken for Motion JPEG.
            single = container.format.name.endswith("_pipe") or container.format.name in ("image2", "mjpeg")
            return not single and video_stream(container) is not None
    except (av.FFmpegError, OSError, ValueError):
        return False
    finally:
        file.seek(start)
