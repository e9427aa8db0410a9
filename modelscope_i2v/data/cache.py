"""Caches: latents and conditions on disk, encoded once and read by training as memory-mapped arrays.

A cache is a directory: ``index.json``, ``text.npy`` with the text states of every caption, and one shard for
each shape of clips: ``latents-SHAPE.npy`` and, where the family needs them, ``image-SHAPE.npy`` and
``source-SHAPE.npy``. All numbers are fp16.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from ..errors import InputError, OutputError
from ..files import open_regular, parse_json, reason, replace_folder

INDEX, TEXT = "index.json", "text.npy"
VERSION = 1
_HEADER = 128
"""Bytes of an array file's header: enough for any number of clips, so that it can be written last."""
_KEY = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})x([1-9]\d{0,5})")
"""Frames, height and width of a shard's latents."""


class CacheWriter:
    """Writes a cache, clip by clip. Its directory appears when :meth:`finish` has completed it.

    ::

        writer = CacheWriter(directory, made_by={"script": "…", "seed": 1})
        writer.add_texts(["", "a red circle"], states)          # [2, 77, width]
        writer.add(latents, caption="a red circle", image=embedding, fps=8.0)
        writer.finish()

    Args:
        directory: the new cache; it must not exist, or be empty.
        made_by: any JSON value, stored in the index.

    Raises:
        OutputError: the directory exists already, or cannot be made.
    """

    def __init__(self, directory: str | Path, made_by: Any = None) -> None:
        self.directory = Path(directory)
        try:
            if self.directory.exists() and (self.directory.is_file() or any(self.directory.iterdir())):
                raise OutputError(f"{self.directory} exists already; a cache needs a new directory.")
            self.directory.parent.mkdir(parents=True, exist_ok=True)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"The cache {directory} cannot be written: {reason(error)}.") from error
        self.made_by = made_by
        self._folder = replace_folder(self.directory)
        self._partial = self._folder.__enter__()
        self._captions: dict[str, int] = {}
        self._text = _Column(self._partial / TEXT)
        self._shards: dict[str, _WrittenShard] = {}

    def add_texts(self, texts: Sequence[str], states: Any) -> None:
        """Adds captions and their text states, an array or tensor [len(texts), 77, width].

        The states are those that the pipeline computes: of the caption followed by the family's
        ``prompt_suffix``, though the captions here do not have it. ``dropped_text``, which replaces a dropped
        caption, has to be added too; its states are, like a negative prompt's, without the suffix. A caption
        that was added before is skipped.
        """
        if len(texts) != len(states):
            raise InputError(
                f"texts and states should be of one length; they are {len(texts)} and {len(states)}."
            )
        for text, state in zip(texts, states):
            if text not in self._captions:
                self._captions[text] = len(self._captions)
                self._text.append(_array(state))

    def add(
        self,
        latents: Any,
        *,
        caption: str = "",
        image: Any = None,
        source: Any = None,
        fps: float = 8.0,
        name: str = "",
    ) -> None:
        """Adds a clip, or a picture (one frame); arrays or tensors of any float type.

        Args:
            latents: [f, 4, h, w], scaled by LATENT_SCALE.
            caption: one of those given to :meth:`add_texts` before :meth:`finish`, if there are any.
            image: CLIP embedding of the first frame [embed_dim], not normalised.
            source: latents [f, 4, h, w] of the degraded clip, with the same scale; video-to-video learns to
                restore ``latents`` from them.
            fps: frames per second.
            name: the clip's name in messages.

        Raises:
            InputError: for a shape that does not fit, NaN, or a part that only some of the clips have.
        """
        latents = _array(latents)
        if latents.ndim != 4:
            raise InputError(f"latents are {list(latents.shape)} and should be [frames, channels, h, w].")
        if not 0 <= fps < math.inf:
            raise InputError(f"fps is {fps} and should be a number from 0 up.")
        key = "x".join(map(str, (len(latents), *latents.shape[2:])))
        if key not in self._shards:
            self._shards[key] = _WrittenShard.of(self._partial, key, image is not None, source is not None)
        self._shards[key].add(latents, image, source, {"caption": caption, "fps": fps, "name": name})

    def discard(self) -> None:
        """Removes an unfinished cache; after :meth:`finish` there is nothing to remove."""
        for column in (self._text, *(each for shard in self._shards.values() for each in shard.columns)):
            if column.file is not None:
                with contextlib.suppress(OSError):  # of a full disk, which has been reported
                    column.file.close()
        unfinished = OutputError(f"The cache {self.directory} is not finished.")
        with contextlib.suppress(OutputError):
            self._folder.__exit__(OutputError, unfinished, None)

    def finish(self) -> Path:
        """Completes the cache and returns its directory. Raises InputError for a caption without states."""
        clips = [clip for shard in self._shards.values() for clip in shard.clips]
        if not clips:
            raise InputError(f"No clip was added to the cache {self.directory}.")
        without = {clip["caption"] for clip in clips} - self._captions.keys()
        if self._captions and without:
            raise InputError(f"The cache has no text states of the caption {sorted(without)[0]!r}.")
        self._text.close()
        for shard in self._shards.values():
            shard.close()
        index = {
            "version": VERSION,
            "made_by": self.made_by,
            "captions": list(self._captions),
            "shards": {
                key: {
                    "image": shard.image is not None,
                    "source": shard.source is not None,
                    "captions": [self._captions.get(clip["caption"], -1) for clip in shard.clips],
                    "fps": [clip["fps"] for clip in shard.clips],
                    "names": [clip["name"] for clip in shard.clips],
                }
                for key, shard in self._shards.items()
            },
        }
        (self._partial / INDEX).write_text(json.dumps(index), encoding="utf-8")
        self._folder.__exit__(None, None, None)
        return self.directory


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.ascontiguousarray(values, dtype=np.float16)


class _Column:
    """An .npy file that grows row by row."""

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.shape = path, 0, None
        self.file: IO[bytes] | None = None

    def append(self, row: np.ndarray) -> None:
        if self.file is None:
            self.shape = row.shape
            self.file = self.path.open("wb")
            self.file.write(b"\0" * _HEADER)
        if row.shape != self.shape:
            raise InputError(
                f"{self.path.name} holds rows of shape {list(self.shape)}; {list(row.shape)} was added."
            )
        if not np.isfinite(row).all():
            raise InputError(f"A row for {self.path.name} has NaN, or infinity in fp16.")
        self.file.write(row.tobytes())
        self.count += 1

    def close(self) -> None:
        """Writes the header: numpy.lib.format, version 1.0."""
        if self.file is None:
            return
        text = repr({"descr": "<f2", "fortran_order": False, "shape": (self.count, *self.shape)})
        self.file.seek(0)
        self.file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", _HEADER - 10))
        self.file.write(text.ljust(_HEADER - 11).encode() + b"\n")
        self.file.close()


@dataclass
class _WrittenShard:
    latents: _Column
    image: _Column | None
    source: _Column | None
    clips: list[dict[str, Any]]

    @classmethod
    def of(cls, directory: Path, key: str, image: bool, source: bool) -> _WrittenShard:
        return cls(
            _Column(directory / f"latents-{key}.npy"),
            _Column(directory / f"image-{key}.npy") if image else None,
            _Column(directory / f"source-{key}.npy") if source else None,
            [],
        )

    def add(self, latents: np.ndarray, image: Any, source: Any, clip: dict[str, Any]) -> None:
        for what, column, value in (("image", self.image, image), ("source", self.source, source)):
            if (column is None) != (value is None):
                raise InputError(f"Either all clips of one shape have {what!r}, or none has.")
        if source is not None and tuple(source.shape) != latents.shape:
            raise InputError(
                f"source is {list(source.shape)} and should be {list(latents.shape)}, as latents."
            )
        self.latents.append(latents)
        if self.image is not None:
            self.image.append(_array(image).reshape(-1))
        if self.source is not None:
            self.source.append(_array(source))
        self.clips.append(clip)

    @property
    def columns(self) -> list[_Column]:
        return [column for column in (self.latents, self.image, self.source) if column is not None]

    def close(self) -> None:
        for column in self.columns:
            column.close()


class Rows(NamedTuple):
    """The same window of frames of some clips, fp16."""

    latents: np.ndarray
    """[b, f, 4, h, w]."""
    source: np.ndarray | None
    image: np.ndarray | None
    """[b, embed_dim]."""


@dataclass(frozen=True)
class Shard:
    """The clips of one shape, as memory-mapped arrays, fp16."""

    latents: np.ndarray
    """[n, f, 4, h, w]."""
    captions: np.ndarray
    """Index of each clip's caption [n], int64; -1 without captions."""
    fps: np.ndarray
    """[n], float32."""
    image: np.ndarray | None = None
    """[n, embed_dim]."""
    source: np.ndarray | None = None
    """[n, f, 4, h, w]."""

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def frames(self) -> int:
        return self.latents.shape[1]

    @property
    def has_image(self) -> bool:
        return self.image is not None

    @property
    def has_source(self) -> bool:
        return self.source is not None

    @property
    def image_width(self) -> int:
        """Width of the image embeddings."""
        return self.image.shape[1]

    def prefetch(self, rows: np.ndarray) -> None:
        """Does nothing: the files are memory-mapped."""

    def readable(self, rows: np.ndarray) -> np.ndarray:
        """The same rows: all of them can be read."""
        return rows

    def read(self, rows: np.ndarray, starts: np.ndarray, length: int) -> Rows:
        """Frames ``starts`` … ``starts + length`` of the clips ``rows`` (both [b])."""

        def windows(array: np.ndarray | None) -> np.ndarray | None:
            if array is None:
                return None
            return np.stack([array[row, start : start + length] for row, start in zip(rows, starts)])

        image = None if self.image is None else self.image[rows]
        return Rows(windows(self.latents), windows(self.source), image)


@dataclass(frozen=True)
class Cache:
    """An opened cache."""

    path: Path
    shards: tuple[Shard, ...]
    captions: tuple[str, ...]
    text: np.ndarray | None
    """[captions, 77, width], fp16, or None where there are no texts."""
    fingerprint: str
    """A hash of the index and the shapes of the arrays."""
    made_by: Any = None

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    @property
    def has_texts(self) -> bool:
        return self.text is not None

    def states(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Text states of captions by their indices: [n, 77, width], fp32."""
        return torch.from_numpy(self.text[np.asarray(rows)]).float()

    @classmethod
    def open(cls, path: str | Path) -> Cache:
        """Opens a cache that :class:`CacheWriter` finished.

        Raises InputError for a directory that is no cache, or a damaged one.
        """
        path = Path(path)
        if not (path / INDEX).is_file():
            raise InputError(f"{path} is no finished cache: it has no {INDEX}.")
        with open_regular(path / INDEX, InputError) as file:
            content = file.read()
        index = parse_json(content, str(path / INDEX), InputError)
        if not isinstance(index, dict) or "version" not in index:
            raise _damaged(path, f"{INDEX} should be an object with a version")
        if index["version"] != VERSION:
            raise InputError(f"The cache {path} has the version {index['version']}; {VERSION} is read here.")
        captions, found = index.get("captions"), index.get("shards")
        if not isinstance(captions, list) or not all(type(text) is str for text in captions):
            raise _damaged(path, "the captions in its index should be a list of texts")
        if not isinstance(found, dict) or not found:
            raise _damaged(path, "its index should name at least one shard")
        digest = hashlib.sha256(content)
        shards = []
        for key, shard in found.items():
            shards.append(_open_shard(path, key, shard, len(captions)))
            arrays = {"latents": shards[-1].latents, "image": shards[-1].image, "source": shards[-1].source}
            shapes = {what: array.shape for what, array in arrays.items() if array is not None}
            digest.update(repr(shapes).encode())
        text = _open_array(path, TEXT, (len(captions), None, None)) if captions else None
        return cls(path, tuple(shards), tuple(captions), text, digest.hexdigest()[:16], index.get("made_by"))


def _open_shard(path: Path, key: str, shard: Any, captions: int) -> Shard:
    """One shard, checked against its entry in the index. Raises InputError."""
    sizes = _KEY.fullmatch(key)
    lists = [shard.get(name) for name in ("captions", "fps")] if isinstance(shard, dict) else []
    if not sizes or not lists or not all(isinstance(values, list) and values for values in lists):
        raise _damaged(path, f"its index should have lists of captions and fps for the shard {key!r}")
    numbers, rates = lists
    allowed = range(captions) if captions else (-1,)
    if not all(type(number) is int and number in allowed for number in numbers):
        raise _damaged(path, f"its index has a caption's number that does not exist in the shard {key}")
    if not all(type(rate) in (int, float) and 0 <= rate < 1e6 for rate in rates):
        raise _damaged(path, f"its index has an fps that is no number from 0 up in the shard {key}")
    if len(numbers) != len(rates):
        raise _damaged(path, f"its index has captions and fps of unequal number in the shard {key}")
    frames, height, width = map(int, sizes.groups())
    latents = _open_array(path, f"latents-{key}.npy", (len(numbers), frames, None, height, width))
    image = _open_array(path, f"image-{key}.npy", (len(numbers), None)) if shard.get("image") else None
    source = _open_array(path, f"source-{key}.npy", latents.shape) if shard.get("source") else None
    return Shard(latents, np.array(numbers, np.int64), np.array(rates, np.float32), image, source)


def _open_array(path: Path, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """A memory-mapped fp16 array; None in ``shape`` is any size above 0. Raises InputError."""
    if not (path / name).exists():
        raise InputError(f"{path} is no finished cache: it has no {name}.")
    open_regular(path / name, InputError).close()
    try:
        with np.errstate(all="ignore"):  # of sizes beyond all numbers
            array = np.lib.format.open_memmap(path / name, mode="r")
    except Exception as error:  # NumPy parses the header as Python, which fails in many ways
        raise _damaged(path, f"{name} is cut short, or no array") from error
    sizes = [wanted or size for wanted, size in zip(shape, array.shape)]
    if array.dtype != np.float16 or array.ndim != len(shape) or list(array.shape) != sizes or not array.size:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise _damaged(
            path, f"{name} is {array.dtype} {list(array.shape)}; by its index it is float16 [{wanted}]"
        )
    return array


def _damaged(path: Path, told: str) -> InputError:
    return InputError(f"The cache {path} is damaged: {told}.")
