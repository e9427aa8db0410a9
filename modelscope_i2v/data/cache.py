"""Latents and conditions on disk, made once and read by training as mapped arrays.

A cache is a directory: ``index.json``, ``text.npy`` with the states of every caption, and for each shape of
clips, which is called a shard, ``latents-SHAPE.npy`` and perhaps ``image-SHAPE.npy`` and
``source-SHAPE.npy``. All numbers are fp16.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from ..errors import InputError, OutputError

INDEX, TEXT = "index.json", "text.npy"
VERSION = 1
_HEADER = 128
"""Bytes before the numbers of a file: enough for any count of clips, so that it can be filled in last."""


class CacheWriter:
    """Writes a cache, clip by clip; it appears under its name when :meth:`finish` has made it whole.

    ::

        writer = CacheWriter(directory, made_by={"script": "…", "seed": 1})
        writer.add_texts(["", "a red circle"], states)          # [2, 77, width]
        writer.add(latents, caption="a red circle", image=embedding, fps=8.0)
        writer.finish()

    Args:
        directory: where it will be; it must not exist, or be empty.
        made_by: anything JSON can hold, kept in the index.
    """

    def __init__(self, directory: str | Path, made_by: Any = None) -> None:
        self.directory = Path(directory)
        if self.directory.exists() and (self.directory.is_file() or any(self.directory.iterdir())):
            raise OutputError(f"{self.directory} exists already; a cache needs a new directory.")
        self.made_by = made_by
        self._partial = self.directory.with_name(f".{self.directory.name}.partial")
        shutil.rmtree(self._partial, ignore_errors=True)  # of a run that was stopped
        self._partial.mkdir(parents=True)
        self._captions: dict[str, int] = {}
        self._text = _Column(self._partial / TEXT)
        self._shards: dict[str, _WrittenShard] = {}

    def add_texts(self, texts: Sequence[str], states: Any) -> None:
        """Captions and their states, an array or tensor [len(texts), 77, width].

        The states are what the pipeline would compute: those of a caption with the family's
        ``prompt_suffix``, though the caption here is without. The text that stands for a dropped caption is
        needed too; like a negative prompt it goes without the suffix. A caption that is there already is
        passed over.
        """
        if len(texts) != len(states):
            raise InputError(f"{len(texts)} texts came with the states of {len(states)}.")
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
            caption: one that :meth:`add_texts` is told before :meth:`finish`, where there are texts.
            image: CLIP's embedding of the first frame [embed_dim], not normalised.
            source: latents [f, 4, h, w] of a degraded clip, scaled alike, to be restored to ``latents``.
            fps: frames per second.
            name: what messages call the clip.
        """
        latents = _array(latents)
        if latents.ndim != 4:
            raise InputError(f"latents are {list(latents.shape)} and should be [frames, channels, h, w].")
        key = "x".join(map(str, (len(latents), *latents.shape[2:])))
        if key not in self._shards:
            self._shards[key] = _WrittenShard.of(self._partial, key, image is not None, source is not None)
        self._shards[key].add(latents, image, source, {"caption": caption, "fps": fps, "name": name})

    def discard(self) -> None:
        """Removes what is not finished; after :meth:`finish` nothing is."""
        for column in (self._text, *(each for shard in self._shards.values() for each in shard.columns)):
            if column.file is not None:
                with contextlib.suppress(OSError):  # of a full disk, which has been told
                    column.file.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def finish(self) -> Path:
        """Completes the cache and returns its directory. Raises InputError for a caption without states."""
        clips = [clip for shard in self._shards.values() for clip in shard.clips]
        if not clips:
            raise InputError(f"No clip was added to the cache {self.directory}.")
        without = {clip["caption"] for clip in clips} - self._captions.keys()
        if self._captions and without:
            raise InputError(f"The cache has no states of the text {sorted(without)[0]!r}.")
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
        if self.directory.exists():
            self.directory.rmdir()
        os.replace(self._partial, self.directory)
        return self.directory


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.ascontiguousarray(values, dtype=np.float16)


class _Column:
    """One .npy file that grows."""

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
                f"{self.path.name} holds {list(self.shape)}; what was added is {list(row.shape)}."
            )
        if not np.isfinite(row).all():
            raise InputError(f"What was added to {self.path.name} has NaN or infinity in fp16.")
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
                raise InputError(f"Either all clips of one shape have {what!r} or none.")
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
    """Windows of some clips, fp16."""

    latents: np.ndarray
    """[b, f, 4, h, w]."""
    source: np.ndarray | None
    image: np.ndarray | None
    """[b, embed_dim]."""


@dataclass(frozen=True)
class Shard:
    """The clips of one shape; the arrays are mapped files, fp16."""

    latents: np.ndarray
    """[n, f, 4, h, w]."""
    captions: np.ndarray
    """Rows of the cache's texts [n], int64; -1 where there are none."""
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
        """Of an embedding."""
        return self.image.shape[1]

    def prefetch(self, rows: np.ndarray) -> None:
        """The files are mapped: nothing is gained by asking early."""

    def present(self, rows: np.ndarray) -> np.ndarray:
        """All of them can be read."""
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
    """Tells whether a cache is the same one: of its index and its files' sizes."""
    made_by: Any = None

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    @property
    def has_texts(self) -> bool:
        return self.text is not None

    def states(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Text states of captions by their places: [n, 77, width], fp32."""
        return torch.from_numpy(self.text[np.asarray(rows)]).float()

    @classmethod
    def open(cls, path: str | Path) -> Cache:
        """Opens a cache that :class:`CacheWriter` finished.

        Raises InputError for a directory that is none, or that lacks a file.
        """
        path = Path(path)
        try:
            content = (path / INDEX).read_bytes()
            index = json.loads(content)
            if index["version"] != VERSION:
                raise InputError(
                    f"The cache {path} has the version {index['version']}; {VERSION} is read here."
                )
            digest = hashlib.sha256(content)
            shards = []
            for key, shard in index["shards"].items():
                arrays = {
                    what: np.load(path / f"{what}-{key}.npy", mmap_mode="r")
                    for what in ("latents", "image", "source")
                    if what == "latents" or shard[what]
                }
                captions = np.array(shard["captions"], dtype=np.int64)
                fps = np.array(shard["fps"], dtype=np.float32)
                if any(len(array) != len(captions) for array in arrays.values()):
                    raise InputError(f"The cache {path} is damaged: latents-{key}.npy and its index differ.")
                digest.update(repr({what: array.shape for what, array in arrays.items()}).encode())
                shards.append(Shard(captions=captions, fps=fps, **arrays))
            text = np.load(path / TEXT, mmap_mode="r") if index["captions"] else None
        except FileNotFoundError as error:
            raise InputError(
                f"{path} is no finished cache: it has no {Path(error.filename).name}."
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The cache {path} cannot be read: {type(error).__name__}: {error}.") from error
        made_by = index.get("made_by")
        return cls(path, tuple(shards), tuple(index["captions"]), text, digest.hexdigest()[:16], made_by)
