"""Weights files written tensor by tensor, so that a file larger than the memory can be made."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .tensors import SAFETENSORS_DTYPES

_ALIGNMENT = 64
_STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
}


class Planned(NamedTuple):
    """A tensor to be written, which is made when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]
    done: Callable[[], None] = lambda: None
    """Called when it has been written: what it was made from may leave the memory."""

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def bytes(self) -> memoryview:
        """The tensor's numbers, as files hold them."""
        flat = self.make().contiguous().reshape(-1)
        # numpy says that it is a Buffer from Python 3.12 on.
        return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")  # type: ignore[arg-type]


def write_safetensors(
    path: Path,
    tensors: Sequence[Planned],
    *,
    step: int | None = None,
    metadata: Mapping[str, str] | None = None,
    tick: Callable[[int], Any] = lambda size: None,
) -> None:
    """Writes a ``.safetensors`` file; ``tick`` is told the bytes of each tensor when it is written.

    ``metadata`` are texts by name, which stand in the file's header.

    Source: https://github.com/huggingface/safetensors#format.
    """
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    tensors = sorted(tensors, key=lambda planned: -planned.dtype.itemsize)  # so all of them are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    if step is not None:
        header["__metadata__"]["step"] = str(step)
    position = 0
    for planned in tensors:
        header[planned.name] = {
            "dtype": names[planned.dtype],
            "shape": list(planned.shape),
            "data_offsets": [position, position + planned.size],
        }
        position += planned.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for planned in tensors:
            file.write(planned.bytes())
            planned.done()
            tick(planned.size)


def write_torch(
    path: Path,
    tensors: Sequence[Planned],
    *,
    nest: str | None = None,
    prefix: str = "",
    step: int | None = None,
    tick: Callable[[int], Any],
) -> None:
    """Writes what ``torch.save`` would: a state dict, under the key ``nest`` and with its ``step`` if given.

    ``prefix`` is put before all names.
    """
    state: Any = OrderedDict(
        (prefix + planned.name, _Tensor(index, planned)) for index, planned in enumerate(tensors)
    )
    content = state if nest is None else {nest: state} | ({} if step is None else {"step": step})
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled.getvalue())
        archive.writestr("archive/byteorder", "little")
        for index, planned in enumerate(tensors):
            record = zipfile.ZipInfo(f"archive/data/{index}")
            # Readers that map the file need aligned data; an extra field fills the gap, as torch does it.
            assert archive.fp is not None
            start = archive.fp.tell() + 30 + len(record.filename) + 4
            padding = -start % _ALIGNMENT
            record.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            record.file_size = planned.size
            with archive.open(record, "w") as file:
                file.write(planned.bytes())
            planned.done()
            tick(planned.size)
        archive.writestr("archive/version", "3\n")


class _Tensor:
    """Stands for a tensor in a pickle; its numbers are a record of their own."""

    def __init__(self, index: int, planned: Planned) -> None:
        self.index, self.planned = index, planned


class _Storage(_Tensor):
    """Stands for that record."""


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, _Tensor):
            return NotImplemented
        shape = value.planned.shape
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        storage = _Storage(value.index, value.planned)
        return torch._utils._rebuild_tensor_v2, (storage, 0, shape, strides, False, OrderedDict())

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        planned = value.planned
        return (
            "storage",
            getattr(torch, _STORAGES[planned.dtype]),
            str(value.index),
            "cpu",
            prod(planned.shape),
        )
