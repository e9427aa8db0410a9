"""Clips that are decoded and encoded when their turn comes; or once, into a cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..checkpoints.directory import ModelDirectory
from ..errors import InputError, OutputError
from ..media.transforms import frames_to_tensor
from ..progress import bar
from .cache import CacheWriter, Rows
from .degrade import degrade
from .encode import Encoders, identity
from .folder import Cut, Decoded, Entry, fingerprint

logger = logging.getLogger(__name__)

_SHOWN = 10


class _Encoded(NamedTuple):
    """A whole clip; fp16, as a cache has it."""

    latents: np.ndarray
    source: np.ndarray | None
    image: np.ndarray | None


def made_by(data: str, directory: ModelDirectory) -> dict[str, str]:
    """What tells a cache of these data, by this model, from others; ``data`` is their fingerprint."""
    return {"data": data, "model": identity(directory), "family": directory.family.name}


class LiveData:
    """What :class:`modelscope_i2v.data.cache.Cache` is, without the files.

    Opening it decodes every entry once: those that cannot be read are left out, and told.

    Args:
        workers: threads that decode; FFmpeg works outside of Python's lock.

    Attributes:
        broken: names of the entries that cannot be used, and why. An entry that could be read when the data
            were opened, and cannot any more, comes to them; another one takes its place.

    Raises:
        InputError: no entry can be used.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        cut: Cut,
        encoders: Encoders,
        *,
        dropped_text: str = "",
        workers: int | None = None,
        progress: bool | None = None,
    ) -> None:
        self.cut, self.encoders, self.path = cut, encoders, Path("data")
        self.pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))
        self.fingerprint = fingerprint(entries, cut)
        self.broken: list[tuple[str, str]] = []
        usable: dict[int, list[tuple[int, Entry, float]]] = {}
        with bar(len(entries), "Reading", progress, "file") as reading:
            for number, (entry, found) in enumerate(zip(entries, self.pool.map(self._kind, entries))):
                if isinstance(found, str):
                    self.broken.append((entry.name, found))
                else:
                    frames, rate = found
                    usable.setdefault(frames, []).append((number, entry, rate))
                reading.update()
        if not usable:
            name, reason = self.broken[0]
            raise InputError(f"The data have no readable clip: of {len(entries)}, not one. {name}: {reason}")
        self.tell()
        captions = dict.fromkeys([dropped_text])
        captions |= dict.fromkeys(entry.caption for kind in usable.values() for _, entry, _ in kind)
        self.captions = tuple(captions)
        lengths = sorted(usable, reverse=True)
        self.shards = tuple(LiveShard(self, frames, usable[frames]) for frames in lengths)

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    @property
    def has_texts(self) -> bool:
        return self.encoders.text_encoder is not None

    def states(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Text states of captions by their places: [n, 77, width], fp32.

        The first is the dropped text, which like a negative prompt goes without the family's suffix.
        """
        suffix = self.encoders.family.prompt_suffix
        texts = [self.captions[row] + (suffix if row else "") for row in rows]
        return self.encoders.texts(texts).half().float()

    def tell(self) -> None:
        """Warns of the broken entries, with their number and names."""
        if self.broken:
            shown = "; ".join(f"{name}: {reason}" for name, reason in self.broken[:_SHOWN])
            more = f"; and {len(self.broken) - _SHOWN} more" if len(self.broken) > _SHOWN else ""
            logger.warning("%d files are skipped: %s%s", len(self.broken), shown, more)

    def lose(self, entry: Entry, error: Exception) -> None:
        """Notes an entry that cannot be read any more, and warns of it once."""
        found = entry.name, _reason(error)
        if found not in self.broken:
            self.broken.append(found)
            logger.warning("%s is passed over: %s", *found)

    def _kind(self, entry: Entry) -> tuple[int, float] | str:
        """The clip's number of frames and its rate, or what is wrong with it."""
        try:
            decoded = self.cut.decode(entry)
        except Exception as error:  # decoders fail in many ways, and none of them is fatal here
            return _reason(error)
        return len(decoded.frames), decoded.fps

    def write(self, directory: str | Path, progress: bool | None = None) -> Path:
        """Writes all of it as a cache, but for clips that cannot be read any more.

        Raises OutputError for a disk that is full; nothing is left on it.
        """
        writer = CacheWriter(directory, made_by=made_by(self.fingerprint, self.encoders.directory))
        try:
            self._write(writer, progress)
            return writer.finish()
        except OSError as error:
            raise OutputError(f"The cache {directory} cannot be written: {error}.") from error
        finally:
            writer.discard()

    def _write(self, writer: CacheWriter, progress: bool | None) -> None:
        if self.has_texts:
            for start in range(0, len(self.captions), 8):
                part = range(start, min(start + 8, len(self.captions)))
                writer.add_texts([self.captions[row] for row in part], self.states(part))
        with bar(len(self), "Caching", progress, "clip") as caching:
            for shard in self.shards:
                for row, (_, entry, rate) in enumerate(shard.entries):
                    shard.prefetch(range(row, min(row + 4, len(shard))))
                    caching.update()
                    if not shard.readable(row):
                        continue
                    clip = shard.encoded(row)
                    writer.add(
                        clip.latents,
                        caption=entry.caption,
                        image=clip.image,
                        source=clip.source,
                        fps=rate,
                        name=entry.name,
                    )


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


class LiveShard:
    """The usable entries of one length of :class:`LiveData`; like a cache's shard."""

    def __init__(self, data: LiveData, frames: int, entries: list[tuple[int, Entry, float]]) -> None:
        self.data, self.frames, self.entries = data, frames, entries
        places = {caption: place for place, caption in enumerate(data.captions)}
        self.captions = np.array([places[entry.caption] for _, entry, _ in entries], dtype=np.int64)
        self.fps = np.array([rate for _, _, rate in entries], dtype=np.float32)
        family = data.encoders.family
        self.has_image, self.has_source = family.reads_image, family.takes_video
        self._decoding: dict[int, Future[Decoded]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def image_width(self) -> int:
        """Of an embedding."""
        return self.data.encoders.directory.unet.image_dim

    def prefetch(self, rows: Sequence[int] | np.ndarray) -> None:
        """Begins to decode clips that will be read soon."""
        for row in map(int, rows):
            if row not in self._decoding:
                entry = self.entries[row][1]
                self._decoding[row] = self.data.pool.submit(self.data.cut.decode, entry)

    def readable(self, row: int) -> bool:
        """Whether a clip can still be decoded. If not, the data note it."""
        self.prefetch([row])
        try:
            frames = len(self._decoding[row].result().frames)
            if frames != self.frames:
                raise InputError(f"it has {frames} frames now, and had {self.frames}.")
        except Exception as error:
            del self._decoding[row]  # it is tried again when its turn comes again
            self.data.lose(self.entries[row][1], error)
            return False
        return True

    def present(self, rows: np.ndarray) -> np.ndarray:
        """These rows, and in the place of each that cannot be read any more the next one that can.

        Raises InputError if there is none.
        """
        self.prefetch(rows)

        def nearest(row: int) -> int:
            for place in range(row, row + len(self)):
                if self.readable(place % len(self)):
                    return place % len(self)
            raise InputError("The data have no readable clip any more: {}: {}".format(*self.data.broken[-1]))

        return np.array([nearest(int(row)) for row in rows])

    def read(self, rows: np.ndarray, starts: np.ndarray, length: int) -> Rows:
        """Windows of clips, encoded."""
        self.prefetch(rows)
        done = {row: self.encoded(row) for row in dict.fromkeys(map(int, rows))}

        def windows(arrays: list[np.ndarray]) -> np.ndarray:
            return np.stack([array[start : start + length] for array, start in zip(arrays, starts)])

        clips = [done[int(row)] for row in rows]
        return Rows(
            windows([clip.latents for clip in clips]),
            windows([clip.source for clip in clips]) if self.has_source else None,
            np.stack([clip.image for clip in clips]) if self.has_image else None,
        )

    def encoded(self, row: int) -> _Encoded:
        """A whole clip. The posterior is sampled, and the clip degraded, by its number: always alike."""
        self.prefetch([row])
        number, encoders, cut = self.entries[row][0], self.data.encoders, self.data.cut
        decoded = self._decoding.pop(row).result()
        latents = encoders.latents(frames_to_tensor(decoded.frames, cut.height, cut.width), number)
        source = image = None
        if self.has_source:
            poor = degrade(decoded.frames, np.random.default_rng(number))
            source = encoders.latents(frames_to_tensor(poor, cut.height, cut.width), number).half().numpy()
        if self.has_image:
            image = encoders.picture(decoded.first, cut.width).half().numpy()
        return _Encoded(latents.half().numpy(), source, image)
