"""Where inputs come from: paths, URLs, bytes and file objects, all opened as one seekable file."""

from __future__ import annotations

import io
import os
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ..errors import InputError
from ..files import open_regular
from .download import check_size, download

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


@contextmanager
def open_source(
    source: Source, *, what: str, max_bytes: int, public_only: bool = False
) -> Iterator[tuple[BinaryIO, str]]:
    """Open an input as a seekable binary file, with the name that error messages give it.

    Args:
        source: a path, an ``http(s)://`` or ``file://`` URL, bytes, or a binary file object. Files that
            the caller opened stay open.
        what: ``picture`` or ``video``, for messages.
        max_bytes: the most that is downloaded or read from a stream that cannot seek.
        public_only: for a server: paths are refused, and so are URLs that lead to other than public
            addresses (see :func:`~modelscope_i2v.media.download.download`).

    Raises:
        InputError: if there is no such file, it is no regular file or empty, it cannot be read, or the
            download fails.
    """
    file, name, ours = _open(source, what, max_bytes, public_only)
    try:
        try:
            start = file.tell()
            first = file.read(1)
            if isinstance(first, str):
                raise InputError(f"{name} is open as text; open it in binary mode ('rb').")
            if not first:
                raise InputError(f"{name} is empty; a {what} was expected.")
            file.seek(start)
        except InputError:
            raise
        except Exception as error:  # closed, write-only, a file that is none: objects raise what they like
            raise InputError(f"{name} cannot be read: {plain(error)}.") from error
        yield file, name
    finally:
        if ours:
            file.close()


def plain(error: Exception) -> str:
    """The words of an error of PIL, FFmpeg or the system, without a path or what only Python knows."""
    words = getattr(error, "strerror", None) or str(error)
    if not words or " at 0x" in words or "object" in words:
        return "it does not hold what was expected"
    return words.strip().rstrip(".")


def _open(source: Source, what: str, max_bytes: int, public_only: bool) -> tuple[BinaryIO, str, bool]:
    """The file, its name, and whether it is ours to close."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source), f"The {what} given as bytes", True
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        if text.lower().startswith(("http://", "https://")):
            return download(text, what, max_bytes, public_only=public_only), repr(text), True
        if public_only:
            raise InputError(
                f"{text!r} is neither an http:// nor an https:// URL, and no other {what} is opened here."
            )
        return _open_path(text, what), repr(text), True
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        name = repr(name) if isinstance(name, str) else f"The {what}'s file object"
        return _seekable(source, name, max_bytes), name, False
    raise InputError(
        f"A {what} cannot be read from {type(source).__name__}; give a path, URL, bytes or file object."
    )


def _open_path(text: str, what: str) -> BinaryIO:
    if text.lower().startswith("file:"):
        text = urllib.request.url2pathname(urllib.parse.urlparse(text).path)
    if not text:
        raise InputError(f"The path of the {what} is empty.")
    return io.BufferedReader(open_regular(text, InputError))  # type: ignore[arg-type]


def _seekable(file: BinaryIO, name: str, max_bytes: int) -> BinaryIO:
    try:
        if file.seekable():
            return file
    except AttributeError:
        pass  # a bare object with read(), as some web frameworks hand over
    except ValueError as error:
        raise InputError(f"{name} cannot be read: {plain(error)}.") from error
    copy = io.BytesIO()
    try:
        while part := file.read(1 << 20):  # a pipe may give less than it is asked for
            copy.write(part)
            check_size(copy.tell(), max_bytes, name)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name} cannot be read: {plain(error)}.") from error
    copy.seek(0)
    return copy
