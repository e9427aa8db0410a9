"""Memory of the machine or container: total and free."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import NamedTuple

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files in which Linux states a container's limit (cgroups of version 2 and 1)."""


class Memory(NamedTuple):
    """Bytes."""

    total: int
    free: int


def main_memory() -> Memory | None:
    """The machine's memory, or what a container may use of it; None where the system does not tell."""
    try:
        memory = _windows() if sys.platform == "win32" else _posix()
    except (OSError, ValueError, AttributeError, KeyError):
        return None
    for limit in map(Path, _LIMITS):
        if limit.is_file() and (text := limit.read_text().strip()).isdigit() and int(text) < memory.total:
            return Memory(int(text), min(memory.free, int(text)))
    return memory


def _posix() -> Memory:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    information = Path("/proc/meminfo")
    if not information.is_file():  # macOS does not tell what is free without a program of its own
        return Memory(total, total)
    lines = dict(line.split(":", 1) for line in information.read_text().splitlines())
    return Memory(total, int(lines["MemAvailable"].split()[0]) * 1024)


def _windows() -> Memory:
    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("free", ctypes.c_ulonglong),
            *((f"other_{number}", ctypes.c_ulonglong) for number in range(5)),
        ]

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("the system does not tell its memory")
    return Memory(status.total, status.free)
