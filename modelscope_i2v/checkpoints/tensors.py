"""Weights files of every kind, read as named tensors."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .mapped import MappedFile, Scratch
from .pickles import ForbiddenName, Storage, View, load_inert

SUFFIXES = (".safetensors", ".pth", ".bin", ".ckpt", ".pt")
"""What weights files are called; what they are, their first bytes tell."""

_NESTS = ("state_dict", "model_state_dict", "model", "module")
_DEPTH = 4
"""How deep such nests go at most: a dictionary may hold itself."""
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
        tensors = {key: tensor for file in files for key, tensor in file.tensors.items()}
        mapped = tuple(mapped for file in files for mapped in file._mapped)
        return cls(path, tensors, files[0].step, files[0].format, mapped)


def read_tensors(path: str | Path) -> TensorFile:
    """Reads ``.safetensors`` and what ``torch.save`` wrote (``.pth``, ``.bin``, ``.ckpt``, ``.pt``).

    The state dict may be the whole file or stand under ``state_dict``, ``model`` or ``module``.
    Nothing that a pickle names is imported or run; see :mod:`modelscope_i2v.checkpoints.pickles`.

    Raises:
        CheckpointError: for a file that is missing, empty, truncated, damaged, hostile or no weights.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; a weights file is needed here.")
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): download it again.")
    try:
        mapped = MappedFile(path)
        name, read = _reader(path, mapped)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    try:
        tensors, step = read(path, mapped)
    except CheckpointError:
        raise
    except ForbiddenName as error:
        raise CheckpointError(
            f"{path} names {error}, which a weights file has no use for: it may be an attempt to run code, "
            "and none of it was run. Get the file from a source that you trust, best as .safetensors."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    except (EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({str(error).lower() or 'it ends early'}; it has "
            f"{mapped.size:,} bytes): download it again."
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError(
            f"{path} is damaged, or no weights file: {type(error).__name__}: {error}. Download it again."
        ) from error
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors, neither at its top nor under {', '.join(_NESTS)}.")
    return TensorFile(path, tensors, step, name, (mapped,))


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts in a ``.safetensors`` file's header; none for any other file that :func:`read_tensors` reads.

    Raises CheckpointError as :func:`read_tensors` does.
    """
    if read_tensors(path).format != "safetensors":
        return {}
    with Path(path).open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        metadata = json.loads(file.read(length)).get("__metadata__") or {}
    return {key: value for key, value in metadata.items() if isinstance(value, str)}


_Reader = Callable[[Path, MappedFile], "tuple[dict[str, Tensor], int | None]"]


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
            f"{path} is text, not weights; it begins with {text[:60]!r}. Download the file itself."
        )
    raise CheckpointError(
        f"{path} is no weights file that is known here; safetensors and files of torch.save are read."
    )


def _read_safetensors(_: Path, mapped: MappedFile) -> tuple[dict[str, Tensor], int | None]:
    (length,) = struct.unpack("<Q", mapped[0:8])
    start = 8 + length
    if start > mapped.size:
        raise EOFError("its header is cut off")
    header = json.loads(mapped[8:start])
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for key, entry in header.items():
        dtype = SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"the tensor {key} has the unknown type {entry['dtype']}")
        shape, (first, last) = entry["shape"], entry["data_offsets"]
        if first < 0 or last - first != prod(shape) * dtype.itemsize:
            raise ValueError(f"the tensor {key}, {dtype} {shape}, cannot be bytes {first} to {last}")
        tensors[key] = mapped.tensor(dtype, start + first, prod(shape)).view(shape)
    step = str(metadata.get("step", ""))
    return tensors, int(step) if step.isdecimal() else None


def _read_zip(path: Path, mapped: MappedFile) -> tuple[dict[str, Tensor], int | None]:
    """torch.save since 1.6: an uncompressed zip of one pickle and one record a storage."""
    with zipfile.ZipFile(path) as archive:
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
        if root + "byteorder" in records and archive.read(root + "byteorder") == b"big":
            raise CheckpointError(f"{path} was written on a big-endian machine, which is not read here.")
        with archive.open(root + "data.pkl") as file:
            content = load_inert(file)

    def locate(storage: Storage) -> Tensor:
        dtype, key, count = storage
        info = records.get(f"{root}data/{key}")
        if info is None:
            raise EOFError(f"it has no record {key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{path} has been compressed: unpack it and save it again with torch.save.")
        if count * dtype.itemsize > info.file_size:
            raise EOFError(
                f"its record {key} has {info.file_size} bytes and should have {count * dtype.itemsize}"
            )
        # The data stand behind the record's own header, whose length only itself tells.
        header = info.header_offset
        name_length, extra_length = struct.unpack("<HH", mapped[header + 26 : header + 30])
        return mapped.tensor(dtype, header + 30 + name_length + extra_length, count)

    return _tensors(content, locate)


def _read_legacy(path: Path, mapped: MappedFile) -> tuple[dict[str, Tensor], int | None]:
    """torch.save before 1.6: five pickles, then each storage as its length and its bytes."""
    storages: dict[str, Storage] = {}
    with path.open("rb") as file:
        if load_inert(file) != _TORCH_MAGIC:
            raise CheckpointError(f"{path} is a pickle, but none that torch.save wrote.")
        _version, _machine = load_inert(file), load_inert(file)
        content = load_inert(file, storages)
        keys = [str(key) for key in load_inert(file)]
        position = file.tell()

    offsets = {}
    for key in keys:
        dtype, _, expected = storages[key]
        if position + 8 > mapped.size:
            raise EOFError(f"its storage {key} is missing")
        (count,) = struct.unpack("<q", mapped[position : position + 8])
        if count != expected:
            raise EOFError(f"its storage {key} has {count} numbers and should have {expected}")
        offsets[key] = position + 8
        position += 8 + count * dtype.itemsize
        if position > mapped.size:
            raise EOFError(f"its storage {key} is cut off")
    return _tensors(content, lambda storage: mapped.tensor(storage[0], offsets[storage[1]], storage[2]))


def _tensors(content: Any, locate: Callable[[Storage], Tensor]) -> tuple[dict[str, Tensor], int | None]:
    """The state dict in ``content`` as tensors, and the step beside it."""
    step = None
    for _ in range(_DEPTH):
        if not isinstance(content, dict):
            break
        for key in ("step", "global_step", "iteration"):
            if step is None and type(content.get(key)) is int:
                step = content[key]
        inner = next((content[key] for key in _NESTS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        return {}, step

    flat: dict[Storage, Tensor] = {}
    tensors = {}
    for key, view in content.items():
        if isinstance(view, View) and isinstance(key, str):
            storage, offset, size, stride = view
            if storage not in flat:
                flat[storage] = locate(storage)
            tensors[key] = (
                flat[storage].as_strided(size, stride, offset)
                if prod(size)
                else flat[storage].new_empty(size)
            )
    return tensors, step


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
