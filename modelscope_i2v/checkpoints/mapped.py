"""A file in memory without reading it: its tensors are views of the operating system's cache."""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor


class MappedFile:
    """Maps a whole file copy-on-write: what is written to its tensors never reaches the disk.

    The mapping lives as long as this object or any tensor from it. The file may be replaced
    meanwhile (``os.replace``; not on Windows), but not be overwritten in place or cut.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.size = len(self._map)
        self._address = torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr()

    def __getitem__(self, span: slice) -> bytes:
        return self._map[span]

    def tensor(self, dtype: torch.dtype, offset: int, count: int) -> Tensor:
        """``count`` numbers from byte ``offset`` on, as a flat tensor that shares the mapping.

        Raises:
            EOFError: where the file ends before them.
        """
        if count == 0:
            return torch.empty(0, dtype=dtype)
        length = count * dtype.itemsize
        if offset < 0 or count < 0 or offset + length > self.size:
            raise EOFError(f"the file ends at byte {self.size} and a tensor at {offset + length}")
        if offset % dtype.itemsize == 0:
            return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)
        return torch.frombuffer(self._map, dtype=torch.uint8, count=length, offset=offset).clone().view(dtype)

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
