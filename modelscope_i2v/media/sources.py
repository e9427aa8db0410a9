"""Where inputs come from: paths, URLs, bytes and file objects, all opened as one seekable file."""

from __future__ import annotations

import io
import os
import stat
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

_TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""


@contextmanager
def open_source(source: Source, *, what: str, max_bytes: int) -> Iterator[tuple[BinaryIO, str]]:
    """Open an input as a seekable binary file, and say how error messages should call it.

    Args:
        source: a path, an ``http(s)://`` or ``file://`` URL, bytes, or a binary file object. Files that
            the caller opened stay open.
        what: ``picture`` or ``video``, for messages.
        max_bytes: the most that is downloaded or read from a stream that cannot seek.

    Raises:
        InputError: if there is no such file, it is a directory or empty, or the download fails.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        file, name, ours = io.BytesIO(source), f"The {what} given as bytes", True
    elif isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        if text.lower().startswith(("http://", "https://")):
            file, name, ours = _download(text, what, max_bytes), repr(text), True
        else:
            file, name, ours = _open_path(text, what), repr(text), True
    elif hasattr(source, "read"):
        file, ours = _seekable(source, what, max_bytes), False
        name = getattr(source, "name", None)
        name = repr(name) if isinstance(name, str) else f"The {what}'s file object"
    else:
        raise InputError(
            f"A {what} cannot be read from {type(source).__name__}; give a path, URL, bytes or file object."
        )
    try:
        start = file.tell()
        first = file.read(1)
        if isinstance(first, str):
            raise InputError(f"{name} is open as text; open it in binary mode ('rb').")
        if not first:
            raise InputError(f"{name} is empty; a {what} was expected.")
        file.seek(start)
        yield file, name
    finally:
        if ours:
            file.close()


def _open_path(text: str, what: str) -> BinaryIO:
    if text.lower().startswith("file:"):
        text = urllib.request.url2pathname(urllib.parse.urlparse(text).path)
    if not text:
        raise InputError(f"The path of the {what} is empty.")
    path = Path(text)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{text!r} is a directory; a {what} file was expected.")
        if not stat.S_ISREG(mode):
            raise InputError(f"{text!r} is not a regular file; a {what} file was expected.")
        return path.open("rb")
    except FileNotFoundError:
        raise InputError(f"There is no file {text!r}; a {what} was expected there.") from None
    except InputError:
        raise
    except (OSError, ValueError) as error:  # no permission, a name too long, a null byte in it
        raise InputError(f"The {what} {text!r} cannot be opened: {error}.") from error


def _seekable(file: BinaryIO, what: str, max_bytes: int) -> BinaryIO:
    try:
        if file.seekable():
            return file
    except AttributeError:
        pass  # a bare object with read(), as some web frameworks hand over
    data = file.read(max_bytes + 1)
    _check_size(len(data), max_bytes, f"the {what}'s file object")
    return io.BytesIO(data)


def _download(url: str, what: str, max_bytes: int) -> BinaryIO:
    # A URL copied from a browser may hold spaces or other letters that a request line cannot.
    quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": "modelscope-i2v"})
    file = tempfile.TemporaryFile()  # noqa: SIM115 - open_source closes it
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            _check_size(int(answer.headers.get("Content-Length") or 0), max_bytes, repr(url))
            while chunk := answer.read(1 << 20):
                file.write(chunk)
                _check_size(file.tell(), max_bytes, repr(url))
    except InputError:
        file.close()
        raise
    except (OSError, ValueError, urllib.error.URLError) as error:
        file.close()
        raise InputError(f"The {what} could not be downloaded from {url!r}: {error}.") from error
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _check_size(size: int, max_bytes: int, name: str) -> None:
    if size > max_bytes:
        raise InputError(
            f"{name} is larger than {max_bytes / 1e6:.0f} MB, the most that is fetched; "
            "save it as a file and give its path instead."
        )
