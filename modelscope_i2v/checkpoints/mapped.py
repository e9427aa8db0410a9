"""A file in memory without reading it: its tensors are views of the operating system's cache."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import weakref
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import open_regular
from .pickles import Damaged


class Scratch(threading.local):
    """Memory that each thread takes again and again, for memory that is new has to be cleared first."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def __call__(self, count: int) -> Tensor:
        """``count`` bytes [count], uint8, which are what this thread was given before."""
        if len(self._memory) < count:
            self._memory = torch.empty(count, dtype=torch.uint8)
        return self._memory[:count]


class MappedFile:
    """Maps a whole file copy-on-write: what is written to its tensors never reaches the disk.

    The mapping lives as long as this object or any tensor from it. The file may be replaced
    meanwhile (``os.replace``; not on Windows), but not be overwritten in place or cut: the system ends a
    process (SIGBUS) that touches a mapped page which its file no longer has. :meth:`read` touches none.

    Raises CheckpointError for what is no file, or an empty one.
    """

    def __init__(self, path: Path) -> None:
        file = open_regular(path)
        weakref.finalize(self, file.close)
        self._file = file.fileno()
        if os.fstat(self._file).st_size == 0:
            raise CheckpointError(f"{path} is empty (0 bytes): download it again.")
        self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_COPY)
        self._announce("RANDOM")  # or each look at a few bytes would read ahead
        self.size = len(self._map)
        self._address = torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr()

    def _announce(self, order: str) -> None:
        """Tells the system, where it listens, in which order the file will be read."""
        with contextlib.suppress(AttributeError, OSError):
            os.posix_fadvise(self._file, 0, 0, getattr(os, f"POSIX_FADV_{order}"))

    def __getitem__(self, span: slice) -> bytes:
        """Bytes from ``span.start`` up to ``span.stop`` or the end of the file."""
        if not hasattr(os, "pread"):  # Windows
            return self._map[span]
        found = b""
        while part := os.pread(self._file, span.stop - span.start - len(found), span.start + len(found)):
            found += part
        return found

    def tensor(self, dtype: torch.dtype, offset: int, count: int) -> Tensor:
        """``count`` numbers from byte ``offset`` on, as a flat tensor that shares the mapping.

        Raises:
            Damaged: where the file ends before them.
        """
        if count == 0:
            return torch.empty(0, dtype=dtype)
        length = count * dtype.itemsize
        if offset < 0 or count < 0 or offset + length > self.size:
            raise Damaged(f"the file ends at byte {self.size} and a tensor at {offset + length}")
        if offset % dtype.itemsize == 0:
            return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=length, offset=offset).clone().view(dtype)

    def read(self, tensor: Tensor, scratch: Scratch) -> Tensor:
        """One of the tensors as the file has it, in memory where it stays until its thread reads the next.

        Reading a tensor takes half the time of touching its pages in the mapping.
        """
        start = tensor.data_ptr() - self._address
        if not hasattr(os, "preadv") or not tensor.numel() or not 0 <= start < self.size:
            return tensor
        self._announce("NORMAL")
        steps = zip(tensor.shape, tensor.stride())
        memory = scratch((1 + sum((size - 1) * step for size, step in steps)) * tensor.itemsize)
        rest = memoryview(memory.numpy())  # type: ignore[arg-type]  # Python 3.12 has it a Buffer
        while rest:
            count = os.preadv(self._file, [rest], start)
            if count == 0:
                raise EOFError(f"the file was cut at byte {start} while it was read")
            start, rest = start + count, rest[count:]
        return memory.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())

    def release(self, tensor: Tensor) -> None:
        """Lets the pages under ``tensor`` go, once it has been copied elsewhere.

        They would count as this process's memory until the whole file is unmapped. The tensor stays
        valid: it would be read from the disk again.
        """
        start = tensor.data_ptr() - self._address
        if not hasattr(mmap, "MADV_DONTNEED") or tensor.device.type != "cpu" or not 0 <= start < self.size:
            return
        page = mmap.PAGESIZE
        first = -(-start // page) * page
        length = (start + tensor.nbytes) // page * page - first
        if length > 0:
            self._map.madvise(mmap.MADV_DONTNEED, first, length)
