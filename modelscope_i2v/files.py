"""Files that appear whole or not at all, and small files that are read without trusting them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from .errors import CheckpointError, OutputError, VideoError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_STALE_AGE = 60.0
"""Seconds: a temporary file younger than this may be one that is just being locked."""

_JSON_LIMIT = 1 << 24
"""Bytes: 16 MiB, a hundred times what any configuration here needs."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}

_pending: dict[Path, int] = {}
"""Temporary files and folders that are being written, each with the id of the process that does."""


@contextlib.contextmanager
def replace_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Makes an empty file in the folder of ``target``, which takes its place when the block ends.

    Its name cannot be foreseen and it is opened exclusively, so a link planted there is not followed. It gets
    the mode of the file that it replaces, or the one that new files get (0666 without the umask). If the
    block fails, or SIGTERM or SIGHUP ends the process, it is removed and ``target`` is as it was. What
    processes that were killed left behind for the same target is removed as well.

    Raises:
        OutputError: for any OSError: a full disk, a folder that is missing or write-protected.
    """
    with _temporary(target) as (temporary, target):
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        with _locked(temporary):
            mode = _mode(temporary)
            yield temporary
        if target.is_file() and not target.is_symlink():
            mode = _mode(target)
        if _mode(temporary) != mode:  # writers that have temporary files of their own leave theirs
            os.chmod(temporary, mode)
        os.replace(temporary, target)


@contextlib.contextmanager
def replace_folder(
    target: str | os.PathLike[str], ours: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """Makes an empty folder next to ``target``, which takes its place when the block ends.

    As :func:`replace_file`, but a link to a folder is followed: the folder that it leads to is replaced.
    What others put into the old folder while the block ran is moved into the new one.

    Args:
        ours: names, in the old folder, of what the caller makes itself: these are not moved.

    Raises:
        OutputError: for any OSError.
    """
    with _temporary(os.path.realpath(target)) as (temporary, target):
        before = set(os.listdir(target)) if target.is_dir() else set()
        os.mkdir(temporary)
        with _locked(temporary):
            yield temporary
        if target.is_dir():
            os.chmod(temporary, _mode(target))
        old = _exchange(temporary, target)
        if old is not None:
            for name in set(os.listdir(old)) - before:
                if not ours(name) and not os.path.lexists(target / name):
                    os.rename(old / name, target / name)
            _remove(old)


@contextlib.contextmanager
def _temporary(target: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """A name of its own for what becomes ``target``, and ``target`` itself as an absolute path."""
    shown, path = os.fspath(target), Path(target).absolute()
    if "\0" in str(path):
        raise OutputError(f"{shown} cannot be written: it holds a null character.")
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(8)}.part")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # an impossible name fails now, not when all the work is done
        with _removed_when_terminated():
            _remove_stale(path)
            _pending[temporary] = os.getpid()
            try:
                yield temporary, path
            finally:
                _remove(temporary)
                _pending.pop(temporary, None)
    except VideoError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise OutputError(f"The disk is full: {shown} was not written, nothing of it is left.") from error
        raise OutputError(f"{shown} cannot be written: {reason(error)}.") from error


def reason(error: OSError) -> str:
    """The system's words for an error, without a path."""
    return error.strerror or (os.strerror(error.errno) if error.errno else "the system refuses")


def _prefix(target: Path) -> str:
    return f".{target.name[:50]}."  # names have 255 bytes at most, and a letter up to four


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def _exchange(new: Path, target: Path) -> Path | None:
    """Puts ``new`` in the place of the folder ``target``; returns where the old one is now, if any."""
    if target.is_dir() and _swap(new, target):
        return new
    old = None
    for _ in range(10):  # another writer may put its own there between the two steps
        try:
            os.rename(new, target)
            return old
        except OSError:
            if not target.is_dir():
                if old is not None:
                    os.rename(old, target)
                raise
        if old is not None:
            _remove(old)
        old = target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.old")
        os.rename(target, old)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _swap(one: Path, other: Path) -> bool:
    """Exchanges two names in one step, where the system and the disk can (Linux, but not every disk)."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, RENAME_EXCHANGE = -100, 2
    return exchange(here, os.fsencode(one), here, os.fsencode(other), RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock on a file or folder that ends with this process, however that ends."""
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network drives have no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def hold_lock(path: str | os.PathLike[str], held: str) -> Iterator[None]:
    """Holds the lock file ``path``, which is made where it is missing and stays there.

    The system takes the lock back when the process ends, however it does. Where there are no locks (Windows,
    some network drives), the block runs without.

    Raises:
        OutputError: with the message ``held`` if another process or block holds it, and for a file that
            cannot be made.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise OutputError(f"{os.fspath(path)} cannot be written: {reason(error)}.") from error
    try:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(held) from None
            except OSError:
                pass
        yield
    finally:
        os.close(handle)


def _remove_stale(target: Path) -> None:
    """Removes what writers of ``target`` left behind when they were killed: what nobody holds a lock on."""
    if fcntl is None:
        return
    stale = re.compile(re.escape(_prefix(target)) + r"[0-9a-f]{16}\.part")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            if not stale.fullmatch(entry.name) or entry.is_symlink():
                continue
            facts = entry.stat(follow_symlinks=False)
            if facts.st_uid != os.getuid() or time.time() - facts.st_mtime < _STALE_AGE:
                continue
            with contextlib.suppress(OSError):
                handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(Path(entry.path))
                finally:
                    os.close(handle)


@contextlib.contextmanager
def _removed_when_terminated() -> Iterator[None]:
    """Has SIGTERM and SIGHUP remove what is pending before they end the process as they always do.

    Only where nobody handles them otherwise, and in the main thread (Python has signals nowhere else): a
    handler that is there already either unwinds the stack, which removes it too, or lets the work go on.
    """
    mine = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _terminate)
                mine.append(number)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    for path, process in list(_pending.items()):
        if process == os.getpid():  # a forked child has its parent's list
            _remove(path)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def open_regular(path: str | os.PathLike[str], error: type[VideoError] = CheckpointError) -> BinaryIO:
    """Opens a file to be read, unbuffered; pipes, devices and sockets are refused without waiting for them.

    Raises:
        ``error``: for a path that is no regular file or cannot be opened.
    """
    shown = os.fspath(path)
    try:
        _check_regular(shown, os.stat(path).st_mode, error)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            _check_regular(shown, os.fstat(handle).st_mode, error)
            return os.fdopen(handle, "rb", buffering=0)
        except BaseException:
            os.close(handle)
            raise
    except VideoError:
        raise
    except FileNotFoundError:
        raise error(f"There is no file {shown}.") from None
    except ValueError as cause:  # a null byte
        raise error(f"{shown!r} is no path that this system knows.") from cause
    except OSError as cause:
        raise error(f"{shown} cannot be read: {reason(cause)}.") from cause


def _check_regular(shown: str, mode: int, error: type[VideoError]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise error(f"{shown} is {kind}; a file is needed here.")


def read_json(
    path: str | os.PathLike[str], *, limit: int = _JSON_LIMIT, error: type[VideoError] = CheckpointError
) -> Any:
    """The content of a small JSON file in UTF-8, with or without a byte order mark.

    Args:
        limit: bytes that it may have at most.

    Raises:
        ``error``: for a file that is missing, no regular file, larger than ``limit`` or no valid JSON; the
            message says where in the file, and quotes none of it.
    """
    shown = os.fspath(path)
    with open_regular(path, error) as file:
        try:
            content = b""
            while part := file.read(limit + 1 - len(content)):
                content += part
        except OSError as cause:
            raise error(f"{shown} cannot be read: {reason(cause)}.") from cause
    if len(content) > limit:
        raise error(f"{shown} has more than {limit:,} bytes, which is too large for a file of its kind.")
    return parse_json(content, shown, error)


def parse_json(content: str | bytes, what: str, error: type[VideoError] = CheckpointError) -> Any:
    """JSON from somewhere else than a file of its own; ``what`` is its name in the ``error``."""
    try:
        return json.loads(content if isinstance(content, str) else content.decode("utf-8-sig"))
    except UnicodeDecodeError as cause:
        raise error(f"{what} is not valid JSON: byte {cause.start} is not UTF-8.") from None
    except json.JSONDecodeError as cause:
        where = f"line {cause.lineno}, column {cause.colno}"
        raise error(f"{what} is not valid JSON: {cause.msg.lower()}, at {where}.") from None
    except RecursionError:
        raise error(f"{what} is not valid JSON for this program: it is nested too deep.") from None
    except ValueError:  # Python's limit on the digits of a number
        raise error(
            f"{what} is not valid JSON for this program: it holds a number that is too long."
        ) from None
