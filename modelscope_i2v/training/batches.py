"""Batches of clips. Which clips are in a batch follows from the seed and the batch's number alone.

So a resumed run sees the batches that an uninterrupted one sees, whatever the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..data.cache import Cache, Shard
from ..data.live import LiveData, LiveShard
from ..errors import InputError
from ..spec.families import Family


@dataclass(frozen=True)
class Batch:
    """Clips and their conditions, on the CPU."""

    latents: Tensor
    """[b, 4, f, h, w], fp32."""
    source: Tensor | None
    """Latents of the degraded clips, of the same shape; None unless the family takes a video."""
    conditions: Mapping[str, Tensor]
    """The network's inputs, each [b, …]: ``text``, ``image``, ``fps``, ``picture``."""


@dataclass(frozen=True)
class Order:
    """The order of the clips of several buckets, epoch by epoch. The clips of a batch are of one bucket."""

    sizes: tuple[int, ...]
    """Clips in each bucket."""
    batch_size: int
    seed: int
    _epochs: dict[int, list[tuple[int, np.ndarray]]] = field(default_factory=dict, repr=False)

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return sum(max(size // self.batch_size, 1) for size in self.sizes if size)

    def batch(self, number: int) -> tuple[int, np.ndarray]:
        """The bucket of a batch, and the rows of its clips in that bucket [batch_size]."""
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
            if size < self.batch_size:  # a clip may be in one batch twice
                rows = np.resize(rows, self.batch_size)
            count = len(rows) // self.batch_size
            made += [(bucket, part) for part in rows[: count * self.batch_size].reshape(count, -1)]
        return [made[place] for place in random.permutation(len(made))]


class Batches:
    """Batches of the clips of a cache, or of data that are encoded as they are read.

    Args:
        frames: number of frames of each clip; None takes all.
        stride: distance between the frames that are taken; 1 takes consecutive frames.
        from_start: take a clip's first frames, not a random window. Families that read an image always do,
            since the image embedding is that of the first frame.
        image_ratio: share of the batches that are single pictures: those in the data, or, if there are none,
            single frames of clips.

    Raises:
        InputError: the data lack texts, image embeddings or degraded clips that the family needs, or have no
            clip long enough.
    """

    def __init__(
        self,
        data: Cache | LiveData,
        family: Family,
        *,
        batch_size: int,
        seed: int,
        frames: int | None = None,
        stride: int = 1,
        from_start: bool = False,
        image_ratio: float = 0.0,
    ) -> None:
        self.data, self.family = data, family
        self.batch_size, self.seed, self.image_ratio = batch_size, seed, image_ratio
        self.clips = [shard for shard in data.shards if shard.frames > 1] or list(data.shards)
        self.pictures = [shard for shard in data.shards if shard.frames == 1] or self.clips
        longest = max(shard.frames for shard in self.clips)
        self.frames, self.stride = frames, stride
        self.from_start = from_start or family.reads_image  # the picture's embedding is the first frame's
        if self._span(longest) > longest:
            apart = f" and frame_stride {stride}" if stride > 1 else ""
            raise InputError(f"frames is {frames}{apart}; the longest clip of {data.path} has {longest}.")
        self.clips = [shard for shard in self.clips if self._span(shard.frames) <= shard.frames]
        _check(data, family)
        self.orders = {
            False: Order(tuple(map(len, self.clips)), batch_size, 2 * seed),
            True: Order(tuple(map(len, self.pictures)), batch_size, 2 * seed + 1),
        }

    @property
    def fingerprint(self) -> str:
        """A hash that identifies the data."""
        return self.data.fingerprint

    def __len__(self) -> int:
        """Number of batches of clips in an epoch."""
        return self.orders[False].batches

    def _span(self, longest: int) -> int:
        """Length of the window that is read of a clip of ``longest`` frames."""
        return longest if self.frames is None else (self.frames - 1) * self.stride + 1

    def batch(self, number: int, rank: int = 0, world: int = 1) -> Batch:
        """Batch ``number`` of process ``rank`` of ``world``; equal arguments give equal batches."""
        still, place = self._place(number, rank, world)
        shard, rows = self._rows(still, place)
        length = 1 if still else self._span(shard.frames)
        starts = np.zeros(len(rows), dtype=np.int64)
        if not self.from_start:
            random = np.random.default_rng([self.seed, int(still), place, 7])
            starts = random.integers(0, shard.frames - length + 1, len(rows))
        rows = shard.readable(rows)
        following, soon = self._rows(*self._place(number + 1, rank, world))
        following.prefetch(soon)
        return self._batch(shard, rows, starts, length)

    def _place(self, number: int, rank: int, world: int) -> tuple[bool, int]:
        """True for a batch of pictures, and the batch's number among those of its kind."""
        before, after = (math.floor((number + i) * self.image_ratio + 1e-9) for i in (0, 1))
        still = after > before
        return still, (before if still else number - before) * world + rank

    def _rows(self, still: bool, place: int) -> tuple[Shard | LiveShard, np.ndarray]:
        bucket, rows = self.orders[still].batch(place)
        return (self.pictures if still else self.clips)[bucket], rows

    def _batch(self, shard: Shard | LiveShard, rows: np.ndarray, starts: np.ndarray, length: int) -> Batch:
        def clips(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array[:, :: self.stride]).float().transpose(1, 2)  # [b, 4, f, h, w]

        read = shard.read(rows, starts, length)
        for name, array in read._asdict().items():
            if array is not None and not np.isfinite(array).all():
                raise InputError(
                    f"{self.data.path} is damaged: {name} has NaN or infinity in the clips {rows}."
                )
        latents, family, conditions = clips(read.latents), self.family, {}
        if family.reads_text:
            conditions["text"] = self.data.states(shard.captions[rows])
        if family.reads_image:
            conditions["image_embeds"] = torch.from_numpy(read.image).float().unsqueeze(1)
        if family.unet.fps_embedding:
            conditions["fps"] = torch.from_numpy(shard.fps[rows]) / self.stride
        if family.unet.local_image:
            conditions["image_latents"] = latents[:, :, 0]
        return Batch(latents, clips(read.source) if family.takes_video else None, conditions)

    def unconditional(self, text: str) -> dict[str, Tensor]:
        """The conditions of an unconditional sample, each [1, …]: states of ``text``, a zero image embedding.

        Raises InputError if the data lack the text.
        """
        conditions = {}
        if self.family.reads_text:
            if text not in self.data.captions:
                raise InputError(f"dropped_text is {text!r}, of which {self.data.path} has no text states.")
            conditions["text"] = self.data.states([self.data.captions.index(text)])
        if self.family.reads_image:
            conditions["image_embeds"] = torch.zeros(1, 1, self.clips[0].image_width)
        return conditions


def _check(data: Cache | LiveData, family: Family) -> None:
    """Raises InputError for what the family needs and the data lack."""
    if family.reads_text and not data.has_texts:
        raise InputError(f"{data.path} has no text states, which {family.name} needs.")
    for shard in data.shards:
        if family.reads_image and not shard.has_image:
            raise InputError(f"{data.path} has no image embeddings, which {family.name} needs.")
        if family.takes_video and not shard.has_source:
            raise InputError(f"{data.path} has no degraded clips, which {family.name} needs.")
