"""Which clips make up which batch: a function of the seed and the batch's number, and of nothing else.

So a run that goes on from a checkpoint sees what it would have seen, whatever the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..data.cache import Cache, Shard
from ..errors import InputError
from ..families import Family


@dataclass(frozen=True)
class Batch:
    """Clips with their conditions, on the CPU."""

    latents: Tensor
    """[b, 4, f, h, w], fp32."""
    source: Tensor | None
    """Latents of degraded clips, of the same shape."""
    conditions: Mapping[str, Tensor]
    """The network's inputs, each [b, …]: ``text``, ``image``, ``fps``, ``picture``."""


@dataclass(frozen=True)
class Order:
    """The order in which the clips of several buckets come, epoch by epoch, each batch of one bucket."""

    sizes: tuple[int, ...]
    """Clips in each bucket."""
    batch_size: int
    seed: int
    _epochs: dict[int, list[tuple[int, np.ndarray]]] = field(default_factory=dict, repr=False)

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return sum(max(size // self.batch_size, 1) for size in self.sizes if size)

    def batch(self, number: int) -> tuple[int, np.ndarray]:
        """The bucket of a batch, and its clips' rows there [batch_size]."""
        epoch, place = divmod(number, self.batches)
        if epoch not in self._epochs:
            for old in [key for key in self._epochs if key < epoch - 1]:
                del self._epochs[old]
            self._epochs[epoch] = self._epoch(epoch)
        return self._epochs[epoch][place]

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        random = np.random.default_rng([self.seed, epoch])
        made = []
        for bucket, size in enumerate(self.sizes):
            if not size:
                continue
            rows = random.permutation(size)
            if size < self.batch_size:  # the same clip may stand in one batch twice
                rows = np.resize(rows, self.batch_size)
            count = len(rows) // self.batch_size
            made += [(bucket, part) for part in rows[: count * self.batch_size].reshape(count, -1)]
        return [made[place] for place in random.permutation(len(made))]


class CachedBatches:
    """Batches of a cache's clips.

    Args:
        frames: of each clip; all of them if None.
        image_ratio: share of the batches that are single pictures: the cache's pictures, or frames of its
            clips where it has none.
    """

    def __init__(
        self,
        cache: Cache,
        family: Family,
        *,
        batch_size: int,
        seed: int,
        frames: int | None = None,
        image_ratio: float = 0.0,
    ) -> None:
        self.cache, self.family = cache, family
        self.batch_size, self.seed, self.image_ratio = batch_size, seed, image_ratio
        self.clips = [shard for shard in cache.shards if shard.frames > 1] or list(cache.shards)
        self.pictures = [shard for shard in cache.shards if shard.frames == 1] or self.clips
        longest = max(shard.frames for shard in self.clips)
        if frames is not None and frames > longest:
            raise InputError(f"frames is {frames}; the longest clip of the cache {cache.path} has {longest}.")
        self.frames = frames
        if frames is not None:
            self.clips = [shard for shard in self.clips if shard.frames >= frames]
        _check(cache, family)
        self.orders = {
            False: Order(tuple(map(len, self.clips)), batch_size, 2 * seed),
            True: Order(tuple(map(len, self.pictures)), batch_size, 2 * seed + 1),
        }

    @property
    def fingerprint(self) -> str:
        """Tells whether the data are the same."""
        return self.cache.fingerprint

    def __len__(self) -> int:
        """Batches of clips in an epoch."""
        return self.orders[False].batches

    def batch(self, number: int, rank: int = 0, world: int = 1) -> Batch:
        """Batch ``number`` of process ``rank`` among ``world``; every call with these gives the same."""
        before, after = (math.floor((number + i) * self.image_ratio + 1e-9) for i in (0, 1))
        still = after > before
        place = (before if still else number - before) * world + rank
        bucket, rows = self.orders[still].batch(place)
        shard = (self.pictures if still else self.clips)[bucket]
        length = 1 if still else (self.frames or shard.frames)
        starts = np.zeros(len(rows), dtype=np.int64)
        if not self.family.reads_image:  # the picture's embedding is that of the first frame
            random = np.random.default_rng([self.seed, int(still), place, 7])
            starts = random.integers(0, shard.frames - length + 1, len(rows))
        return self._batch(shard, rows, starts, length)

    def _batch(self, shard: Shard, rows: np.ndarray, starts: np.ndarray, length: int) -> Batch:
        def clips(array: np.ndarray) -> Tensor:
            windows = [array[row, start : start + length] for row, start in zip(rows, starts)]
            return torch.from_numpy(np.stack(windows)).float().transpose(1, 2)  # [b, 4, f, h, w]

        latents = clips(shard.latents)
        family, conditions = self.family, {}
        if family.reads_text:
            conditions["text"] = _rows(self.cache.text, shard.captions[rows])
        if family.reads_image:
            conditions["image"] = _rows(shard.image, rows).unsqueeze(1)
        if family.unet.fps_embedding:
            conditions["fps"] = torch.from_numpy(shard.fps[rows])
        if family.unet.local_image:
            conditions["picture"] = latents[:, :, 0]
        source = None if shard.source is None or not family.takes_video else clips(shard.source)
        return Batch(latents, source, conditions)

    def dropped(self, text: str) -> dict[str, Tensor]:
        """What replaces the conditions of a sample without a wish, each [1, …].

        Raises InputError if the cache lacks that text.
        """
        conditions = {}
        if self.family.reads_text:
            if text not in self.cache.captions:
                raise InputError(
                    f"dropped_text is {text!r}, whose states the cache {self.cache.path} does not have."
                )
            conditions["text"] = _rows(self.cache.text, [self.cache.captions.index(text)])
        if self.family.reads_image:
            width = self.clips[0].image.shape[-1]
            conditions["image"] = torch.zeros(1, 1, width)
        return conditions


def _rows(array: np.ndarray, rows: Sequence[int] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(array[np.asarray(rows)])).float()


def _check(cache: Cache, family: Family) -> None:
    """Raises InputError for what the family needs and the cache lacks."""
    for shard in cache.shards:
        if family.reads_image and shard.image is None:
            raise InputError(f"The cache {cache.path} has no image embeddings, which {family.name} needs.")
        if family.reads_text and (shard.captions < 0).any():
            raise InputError(f"The cache {cache.path} has no text states, which {family.name} needs.")
        if family.takes_video and shard.source is None:
            raise InputError(f"The cache {cache.path} has no degraded clips, which {family.name} needs.")
