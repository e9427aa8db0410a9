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
from ..errors import InputError
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
    return {"data": data, "model": identity(directory)}


class LiveData:
    """What :class:`modelscope_i2v.data.cache.Cache` is, without the files.

    Opening it decodes every entry once: those that cannot be read are left out, and told.

    Args:
        workers: threads that decode; FFmpeg works outside of Python's lock.

    Attributes:
        broken: names of the entries that cannot be used, and why.

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
        self.broken: dict[str, str] = {}
        usable: dict[bool, list[tuple[int, Entry, float]]] = {False: [], True: []}
        with bar(len(entries), "Reading", progress, "file") as reading:
            for number, (entry, rate) in enumerate(zip(entries, self.pool.map(self._rate, entries))):
                if isinstance(rate, str):
                    self.broken[entry.name] = rate
                else:
                    usable[entry.is_picture].append((number, entry, rate))
                reading.update()
        if len(self.broken) == len(entries):
            name, reason = next(iter(self.broken.items()))
            raise InputError(f"The data have no readable clip: of {len(entries)}, not one. {name}: {reason}")
        self.tell()
        captions = dict.fromkeys([dropped_text])
        captions |= dict.fromkeys(entry.caption for kind in usable.values() for _, entry, _ in kind)
        self.captions = tuple(captions)
        self.shards = tuple(LiveShard(self, kind) for kind in usable.values() if kind)

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
            shown = "; ".join(f"{name}: {reason}" for name, reason in list(self.broken.items())[:_SHOWN])
            more = f"; and {len(self.broken) - _SHOWN} more" if len(self.broken) > _SHOWN else ""
            logger.warning("%d files are skipped: %s%s", len(self.broken), shown, more)

    def _rate(self, entry: Entry) -> float | str:
        """The clip's frame rate, or what is wrong with it."""
        try:
            return self.cut.decode(entry).fps
        except Exception as error:  # decoders fail in many ways, and none of them is fatal here
            return str(error) or type(error).__name__

    def write(self, directory: str | Path, progress: bool | None = None) -> Path:
        """Writes all of it as a cache."""
        writer = CacheWriter(directory, made_by=made_by(self.fingerprint, self.encoders.directory))
        if self.has_texts:
            for start in range(0, len(self.captions), 8):
                part = range(start, min(start + 8, len(self.captions)))
                writer.add_texts([self.captions[row] for row in part], self.states(part))
        with bar(len(self), "Caching", progress, "clip") as caching:
            for shard in self.shards:
                for row, (_, entry, rate) in enumerate(shard.entries):
                    shard.prefetch(range(row, min(row + 4, len(shard))))
                    clip = shard.encoded(row)
                    writer.add(
                        clip.latents,
                        caption=entry.caption,
                        image=clip.image,
                        source=clip.source,
                        fps=rate,
                        name=entry.name,
                    )
                    caching.update()
        return writer.finish()


class LiveShard:
    """The usable videos, or the pictures, of :class:`LiveData`; like a cache's shard."""

    def __init__(self, data: LiveData, entries: list[tuple[int, Entry, float]]) -> None:
        self.data, self.entries = data, entries
        self.frames = 1 if entries[0][1].is_picture else data.cut.frames
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
