"""Jobs of a generator: one a video, several in a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..sampling.noise import NoiseSource
from .requests import Request


class Job(NamedTuple):
    """One video to make."""

    request: Request
    number: int
    """Its place among the request's videos, from 0."""
    seed: int | None
    source: NoiseSource

    @classmethod
    def of(cls, request: Request, number: int = 0) -> Job:
        """The request's video of that number; its seed is the request's plus the number."""
        options = request.options
        seed = None if options.seed is None else options.seed + number
        return cls(request, number, seed, NoiseSource(seed, options.generator))


def batches(jobs: Iterator[Job]) -> Iterator[list[Job]]:
    """Batches of consecutive jobs with equal options, no longer than their batch size."""
    batch: list[Job] = []
    for job in jobs:
        if batch and (
            len(batch) >= job.request.options.batch_size or not batch[0].request.alike(job.request)
        ):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch
