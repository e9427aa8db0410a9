"""Clips that are decoded and encoded when a batch needs them, or once, into a cache."""

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
from ..errors import InputError, OutputError, VideoError
from ..files import reason
from ..media.transforms import frames_to_tensor
from ..progress import bar
from .cache import CacheWriter, Rows
from .degrade import degrade
from .encode import Encoders, identity
from .folder import Cut, Decoded, Entry, fingerprint

logger = logging.getLogger(__name__)

_SHOWN = 10


class _Encoded(NamedTuple):
    """All frames of a clip, fp16, as a cache stores them."""

    latents: np.ndarray
    source: np.ndarray | None
    image: np.ndarray | None


def made_by(data: str, directory: ModelDirectory) -> dict[str, str]:
    """The origin of a cache, stored in its index: ``data`` (a fingerprint), the model's and the family's."""
    return {"data": data, "model": identity(directory), "family": directory.family.name}


class LiveData:
    """The interface of :class:`modelscope_i2v.data.cache.Cache`, without files: clips are encoded when read.

    The constructor decodes every entry once, and skips those that cannot be read with a warning.

    Args:
        workers: threads that decode; FFmpeg works outside of Python's lock.

    Attributes:
        broken: name of each entry that cannot be read, and the reason. An entry that becomes unreadable later
            is added, and another one is read instead.

    Raises:
        InputError: no entry can be read.
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
        self.warn()
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
        """Text states of captions by their indices: [n, 77, width], fp32.

        The first caption is the dropped text; like a negative prompt, it does not get the family's suffix.
        """
        suffix = self.encoders.family.prompt_suffix
        texts = [self.captions[row] + (suffix if row else "") for row in rows]
        # One by one: the last bits of a text's states differ with the number of texts in a batch.
        return torch.cat([self.encoders.texts([text]) for text in texts]).half().float()

    def warn(self) -> None:
        """Logs the number and names of the broken entries."""
        if self.broken:
            shown = "; ".join(f"{name}: {reason}" for name, reason in self.broken[:_SHOWN])
            more = f"; and {len(self.broken) - _SHOWN} more" if len(self.broken) > _SHOWN else ""
            logger.warning("%d files are skipped: %s%s", len(self.broken), shown, more)

    def mark_broken(self, entry: Entry, error: Exception) -> None:
        """Adds an entry that has become unreadable, and logs it once."""
        found = entry.name, _reason(error)
        if found not in self.broken:
            self.broken.append(found)
            logger.warning("%s is skipped from now on: %s", *found)

    def _kind(self, entry: Entry) -> tuple[int, float] | str:
        """The clip's number of frames and its rate, or the reason why it cannot be read."""
        try:
            decoded = self.cut.decode(entry)
        except Exception as error:  # decoders fail in many ways; one broken file ends no training
            return _reason(error)
        return len(decoded.frames), decoded.fps

    def write(self, directory: str | Path, progress: bool | None = None) -> Path:
        """Writes all clips that can be read as a cache.

        Raises OutputError if it cannot be written, for example to a full disk; nothing of it is left.
        """
        writer = CacheWriter(directory, made_by=made_by(self.fingerprint, self.encoders.directory))
        try:
            self._write(writer, progress)
            return writer.finish()
        except VideoError:
            raise
        except OSError as error:
            raise OutputError(f"The cache {directory} cannot be written: {reason(error)}.") from error
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
                    if not shard.is_readable(row):
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
    if isinstance(error, VideoError):
        return str(error)
    logger.debug("an entry cannot be read", exc_info=error)
    return f"{reason(error)}." if isinstance(error, OSError) else "It cannot be decoded."


class LiveShard:
    """The readable entries of one length in :class:`LiveData`; the interface of a cache's shard."""

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
        """Width of the image embeddings."""
        return self.data.encoders.directory.unet.image_dim

    def prefetch(self, rows: Sequence[int] | np.ndarray) -> None:
        """Starts to decode clips that will be read soon."""
        for row in map(int, rows):
            if row not in self._decoding:
                entry = self.entries[row][1]
                self._decoding[row] = self.data.pool.submit(self.data.cut.decode, entry)

    def is_readable(self, row: int) -> bool:
        """True if a clip can still be decoded; if not, it is added to the data's broken entries."""
        self.prefetch([row])
        try:
            frames = len(self._decoding[row].result().frames)
            if frames != self.frames:
                raise InputError(f"It has {frames} frames now, and had {self.frames}.")
        except Exception as error:
            del self._decoding[row]  # it is tried again when it is needed again
            self.data.mark_broken(self.entries[row][1], error)
            return False
        return True

    def readable(self, rows: np.ndarray) -> np.ndarray:
        """The rows, with each unreadable one replaced by the next readable one.

        Raises InputError if no row can be read.
        """
        self.prefetch(rows)

        def nearest(row: int) -> int:
            for place in range(row, row + len(self)):
                if self.is_readable(place % len(self)):
                    return place % len(self)
            raise InputError("The data have no readable clip any more: {}: {}".format(*self.data.broken[-1]))

        return np.array([nearest(int(row)) for row in rows])

    def read(self, rows: np.ndarray, starts: np.ndarray, length: int) -> Rows:
        """Frames ``starts`` … ``starts + length`` of the clips ``rows`` (both [b]), encoded."""
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
        """All frames of a clip. Its number seeds the posterior's sample and the degradation."""
        self.prefetch([row])
        number, encoders, cut = self.entries[row][0], self.data.encoders, self.data.cut
        decoded = self._decoding.pop(row).result()
        latents = encoders.latents(frames_to_tensor(decoded.frames, cut.height, cut.width), number)
        source = image = None
        if self.has_source:
            degraded = degrade(decoded.frames, np.random.default_rng(number))
            source = (
                encoders.latents(frames_to_tensor(degraded, cut.height, cut.width), number).half().numpy()
            )
        if self.has_image:
            image = encoders.picture(decoded.first, cut.width).half().numpy()
        return _Encoded(latents.half().numpy(), source, image)
