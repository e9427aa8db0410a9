"""What a generator works off: one job a video, several of them a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..sampling.noise import NoiseSource
from .requests import Request


class Job(NamedTuple):
    """One video to make."""

    request: Request
    number: int
    """Which of the request's videos it is, from 0."""
    seed: int | None
    source: NoiseSource

    @classmethod
    def of(cls, request: Request, number: int = 0) -> Job:
        """The request's video of that number; its seed is the request's plus the number."""
        options = request.options
        seed = None if options.seed is None else options.seed + number
        return cls(request, number, seed, NoiseSource(seed, options.generator))


def batches(jobs: Iterator[Job]) -> Iterator[list[Job]]:
    """Runs of alike jobs, no longer than their batch size."""
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
