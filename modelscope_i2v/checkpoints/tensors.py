"""Weights files of every kind, read as named tensors."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import open_regular, reason
from .mapped import MappedFile, Scratch
from .pickles import Damaged, ForbiddenName, Storage, View, load_inert

SUFFIXES = (".safetensors", ".pth", ".bin", ".ckpt", ".pt")
"""What weights files are called; what they are, their first bytes tell."""

_NESTS = ("state_dict", "model_state_dict", "model", "module")
_DEPTH = 4
"""How deep such nests go at most: a dictionary may hold itself."""
_HEADER = 1 << 25
"""Bytes: the largest header of a safetensors file; those of large models have a hundredth of it."""
_LISTS = 1 << 26
"""Bytes of a torch file that are read besides its numbers: pickles, and the list of a zip's contents."""
_NAME, _NAME_PARTS = 500, 50
"""Letters of a tensor's name, and dots in it."""
_SPARE = 1 << 24
"""Bytes that a small file's tensors may have beyond its own."""
_DIMENSIONS = 64
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C

SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class TensorFile:
    """What a weights file holds."""

    path: Path
    tensors: dict[str, Tensor]
    """By their names in the file; on the CPU, sharing the mapped file: nothing is read before use."""
    step: int | None
    """At which training step it was written, where the file tells."""
    format: str
    """``safetensors``, ``torch`` or ``torch (before 1.6)``."""
    metadata: dict[str, str]
    """The texts in a safetensors file's header."""
    mmap: bool
    """False: who takes tensors into memory copies them all, so that the file may be changed afterwards."""
    _mapped: tuple[MappedFile, ...] = field(repr=False)

    def read(self, tensor: Tensor, scratch: Scratch) -> Tensor:
        """One of the tensors in memory, where it stays until its thread reads the next.

        Raises CheckpointError where the file cannot be read any more.
        """
        try:
            for mapped in self._mapped:
                tensor = mapped.read(tensor, scratch)
        except (EOFError, OSError) as error:
            raise CheckpointError(f"{self.path} changed or went away while it was read: {error}.") from error
        return tensor

    def release(self, tensor: Tensor) -> None:
        """Lets the memory under one of the tensors go, once it has been copied elsewhere."""
        for mapped in self._mapped:
            mapped.release(tensor)

    @classmethod
    def joined(cls, path: Path, files: Sequence[TensorFile]) -> TensorFile:
        """Several files as one that is called ``path``; of a tensor in two of them, the last counts."""
        return replace(
            files[0],
            path=path,
            tensors={key: tensor for file in files for key, tensor in file.tensors.items()},
            _mapped=tuple(mapped for file in files for mapped in file._mapped),
        )


def read_tensors(path: str | Path, *, mmap: bool = True) -> TensorFile:
    """Reads ``.safetensors`` and what ``torch.save`` wrote (``.pth``, ``.bin``, ``.ckpt``, ``.pt``).

    The state dict may be the whole file or stand under ``state_dict``, ``model`` or ``module``.
    Nothing that a pickle names is imported or run; see :mod:`modelscope_i2v.checkpoints.pickles`.

    Args:
        mmap: False: :func:`modelscope_i2v.checkpoints.load.load_module` copies every tensor, which takes
            longer and more memory. By default those of the right type stay in the mapped file, and a process
            whose file is cut or overwritten in place meanwhile is ended by the system (SIGBUS).

    Raises:
        CheckpointError: for a file that is missing, empty, truncated, damaged, hostile or no weights, a
            pipe or a device.
    """
    path = Path(path)
    mapped = MappedFile(path)
    try:
        name, read = _reader(path, mapped)
        tensors, step, metadata = read(path, mapped)
        _check(tensors, mapped.size)
    except CheckpointError:
        raise
    except ForbiddenName as error:
        raise CheckpointError(
            f"{path} names {error}, which a weights file has no use for: it may be an attempt to run code, "
            "and none of it was run. Get the file from a source that you trust, best as .safetensors."
        ) from None
    except Damaged as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}; it has {mapped.size:,} bytes): download it again."
        ) from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} is truncated or damaged (its list of contents is missing or wrong; it has "
            f"{mapped.size:,} bytes): download it again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}.") from error
    except Exception as error:  # a damaged file may make its reader raise anything
        raise CheckpointError(
            f"{path} is damaged, or no weights file, or truncated: download it again."
        ) from error
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors, neither at its top nor under {', '.join(_NESTS)}.")
    return TensorFile(path, tensors, step, name, metadata, mmap, (mapped,))


def _check(tensors: Mapping[str, Tensor], size: int) -> None:
    """Refuses what costs far more to use than its ``size`` in bytes.

    Tensors may share their numbers, and one number may be repeated over a tensor of any size.
    """
    for key in tensors:
        if len(key) > _NAME or key.count(".") > _NAME_PARTS:
            raise Damaged(f"the name of a tensor has {len(key):,} letters")
    most = 4 * size + _SPARE
    claimed = 0
    for key, tensor in tensors.items():
        claimed += tensor.numel() * tensor.itemsize
        if claimed > most:
            raise Damaged(f"its tensors up to {key} would have {claimed:,} bytes")


_Found = tuple[dict[str, Tensor], "int | None", dict[str, str]]
_Reader = Callable[[Path, MappedFile], _Found]


def _reader(path: Path, mapped: MappedFile) -> tuple[str, _Reader]:
    """By the first bytes, because suffixes lie: a failed download is often a page of text."""
    head = mapped[0:512]
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "torch", _read_zip
    if head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 1 << 32:
        return "safetensors", _read_safetensors
    if head[:1] in (b"\x80", b"c", b"("):  # the latter two begin a pickle of protocol 0
        return "torch (before 1.6)", _read_legacy
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is only a Git LFS pointer to the weights: run `git lfs pull` in its directory."
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is a web page that was saved as weights: download the file itself.")
    if head[257:262] == b"ustar":
        raise CheckpointError(
            f"{path} is a tar archive: unpack it, or, if an old PyTorch wrote it, save it with a newer one."
        )
    text = head.decode(errors="ignore")
    if min(head) >= 9 and len(text.encode()) > 0.9 * len(head):
        raise CheckpointError(
            f"{path} is text, not weights, perhaps what a server answered: download the file itself."
        )
    raise CheckpointError(
        f"{path} is no weights file that is known here; safetensors and files of torch.save are read."
    )


class _Sparing(io.BufferedReader):
    """Reads no more than ``limit`` bytes, whatever sizes a file names."""

    def __init__(self, path: Path, limit: int) -> None:
        super().__init__(open_regular(path))  # type: ignore[arg-type]
        self._left = limit

    def read(self, size: int | None = -1, /) -> bytes:
        size = self._left if size is None or size < 0 else size
        if size > self._left:
            raise Damaged("its lists are longer than those of any weights")
        content = super().read(size)
        self._left -= len(content)
        return content

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(self._left)
        self._left -= len(line)
        return line


def _read_safetensors(_: Path, mapped: MappedFile) -> _Found:
    (length,) = struct.unpack("<Q", mapped[0:8])
    start = 8 + length
    if start > mapped.size:
        raise Damaged("its header is cut off")
    if length > _HEADER:
        raise Damaged(f"its header has {length:,} bytes")
    header = json.loads(mapped[8:start])
    metadata = header.pop("__metadata__", None) or {}
    metadata = {key: value for key, value in metadata.items() if isinstance(value, str)}
    tensors = {}
    for key, entry in header.items():
        dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise Damaged(f"the tensor {key} has the unknown type {entry['dtype']}")
        shape, (first, last) = entry["shape"], entry["data_offsets"]
        if len(shape) > _DIMENSIONS or any(type(value) is not int for value in (*shape, first, last)):
            raise Damaged(f"the tensor {key} has no size")
        count = prod(shape)
        if min(shape, default=0) < 0 or first < 0 or last - first != count * dtype.itemsize:
            raise Damaged(f"the tensor {key}, {entry['dtype']} {shape}, cannot be bytes {first} to {last}")
        tensors[key] = mapped.tensor(dtype, start + first, count).view(shape)
    step = metadata.get("step", "")
    return tensors, int(step) if len(step) < 16 and step.isdecimal() else None, metadata


def _read_zip(path: Path, mapped: MappedFile) -> _Found:
    """torch.save since 1.6: an uncompressed zip of one pickle and one record a storage."""
    with _Sparing(path, _LISTS) as file, zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        roots = [
            name[: -len("data.pkl")]
            for name in records
            if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if not roots:
            raise CheckpointError(
                f"{path} is a zip archive, but none that torch.save wrote: unpack it first."
            )
        root = roots[0]
        if root + "constants.pkl" in records:
            raise CheckpointError(f"{path} is a TorchScript program, not a weights file.")

        def stored(name: str) -> zipfile.ZipInfo:
            info = records.get(root + name)
            if info is None:
                raise Damaged(f"it has no record {name.removeprefix('data/')}")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise CheckpointError(
                    f"{path} has been compressed: unpack it and save it again with torch.save."
                )
            return info

        if root + "byteorder" in records and archive.read(stored("byteorder")) == b"big":
            raise CheckpointError(f"{path} was written on a big-endian machine, which is not read here.")
        content = load_inert(io.BytesIO(archive.read(stored("data.pkl"))))

    def locate(storage: Storage) -> Tensor:
        dtype, key, count = storage
        info = stored(f"data/{key}")
        if count * dtype.itemsize > info.file_size:
            raise Damaged(
                f"its record {key} has {info.file_size} bytes and should have {count * dtype.itemsize}"
            )
        # The data stand behind the record's own header, whose length only itself tells.
        header = info.header_offset
        name_length, extra_length = struct.unpack("<HH", mapped[header + 26 : header + 30])
        return mapped.tensor(dtype, header + 30 + name_length + extra_length, count)

    return _tensors(content, locate)


def _read_legacy(path: Path, mapped: MappedFile) -> _Found:
    """torch.save before 1.6: five pickles, then each storage as its length and its bytes."""
    storages: dict[str, Storage] = {}
    with _Sparing(path, _LISTS) as file:
        if load_inert(file) != _TORCH_MAGIC:
            raise CheckpointError(f"{path} is a pickle, but none that torch.save wrote.")
        _version, _machine = load_inert(file), load_inert(file)
        content = load_inert(file, storages)
        keys = load_inert(file)
        position = file.tell()
    if not isinstance(keys, list) or not all(type(key) in (str, int) for key in keys):
        raise Damaged("its list of storages is none")

    offsets = {}
    for key in map(str, keys):
        if key not in storages:
            raise Damaged(f"its storage {key} belongs to no tensor")
        dtype, _, expected = storages[key]
        if position + 8 > mapped.size:
            raise Damaged(f"its storage {key} is missing")
        (count,) = struct.unpack("<q", mapped[position : position + 8])
        if count != expected:
            raise Damaged(f"its storage {key} has {count} numbers and should have {expected}")
        offsets[key] = position + 8
        position += 8 + count * dtype.itemsize
        if position > mapped.size:
            raise Damaged(f"its storage {key} is cut off")

    def locate(storage: Storage) -> Tensor:
        dtype, key, count = storage
        if key not in offsets:
            raise Damaged(f"its storage {key} is missing")
        return mapped.tensor(dtype, offsets[key], count)

    return _tensors(content, locate)


def _tensors(content: Any, locate: Callable[[Storage], Tensor]) -> _Found:
    """The state dict in ``content`` as tensors, and the step that stands with it."""
    step = None
    for _ in range(_DEPTH):
        if not isinstance(content, dict):
            break
        for key in ("step", "global_step", "iteration"):
            if step is None and type(content.get(key)) is int and 0 <= content[key] < 1 << 60:
                step = content[key]
        inner = next((content[key] for key in _NESTS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        return {}, step, {}

    flat: dict[Storage, Tensor] = {}
    tensors = {}
    for key, view in content.items():
        if isinstance(view, View) and isinstance(key, str):
            storage = view[0]
            if storage not in flat:
                flat[storage] = locate(storage)
            tensors[key] = _placed(flat[storage], view)
    return tensors, step, {}


def _placed(numbers: Tensor, view: View) -> Tensor:
    _, offset, size, stride = view
    if prod(size) == 0:
        if max(size) >= 1 << 31:
            raise Damaged("an empty tensor has a size that none can have")
        return numbers.new_empty(size)
    if offset + sum((count - 1) * step for count, step in zip(size, stride)) >= len(numbers):
        raise Damaged("a tensor reaches beyond its numbers")
    return numbers.as_strided(size, stride, offset)


def select(tensors: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of one network by that network's own names.

    Files wrap them in prefixes: ``module.``, ``model.``, ``first_stage_model.`` (the autoencoder in
    a whole Stable Diffusion checkpoint), ``cond_stage_model.model.``. The prefix under which most of
    the ``expected`` keys are found is taken off, and what does not stand under it is left out.
    """
    wanted = set(expected)
    found: dict[str, int] = {}
    for key in tensors:
        start = 0
        while True:
            if key[start:] in wanted:
                found[key[:start]] = found.get(key[:start], 0) + 1
            start = key.find(".", start) + 1
            if start == 0:
                break
    if not found:
        return dict(tensors)
    prefix = max(found, key=lambda prefix: (found[prefix], -len(prefix)))
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
