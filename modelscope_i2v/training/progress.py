"""Progress of a run: a bar on a terminal, lines elsewhere, with the remaining time."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque

from tqdm import tqdm

from ..progress import remaining, terminal_bar

_WINDOW = 200
"""Steps whose mean time estimates the remaining time; it includes snapshots and samples."""
_PAUSE = 30.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """Shows the steps ``first`` … ``total``: a bar, or lines (``show=None`` off a terminal), or nothing."""

    def __init__(self, first: int, total: int, show: bool | None = None) -> None:
        self.total, self.step = total, first
        self.bar: tqdm = terminal_bar(total, "Training", show)
        self.bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        self.bar.update(first)
        self.lines = self.bar.disable and show is not False
        self.times: deque[float] = deque([time.monotonic()], maxlen=_WINDOW + 1)
        self.printed = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.bar.close()

    def update(self, step: int, loss: float | None) -> None:
        """Shows that a step is done; where the terminal has gone away, nothing."""
        with contextlib.suppress(OSError, ValueError):
            self._update(step, loss)

    def _update(self, step: int, loss: float | None) -> None:
        now = time.monotonic()
        self.times.append(now)
        text = f"{self._pace():.2f} s a step, {remaining(self.seconds_left())} left"
        text = text if loss is None else f"loss {loss:.4f}, {text}"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(step - self.step)
        self.step = step
        if self.lines and (now - self.printed > _PAUSE or step == self.total):
            self.printed = now
            print(f"step {step:,} of {self.total:,}: {text}", file=sys.stderr, flush=True)

    def _pace(self) -> float:
        return (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1)

    def seconds_left(self) -> float:
        """Estimate from the last steps, at first without step one, which may include compilation."""
        times = list(self.times)[1 if len(self.times) > 2 and len(self.times) <= _WINDOW else 0 :]
        pace = (times[-1] - times[0]) / max(len(times) - 1, 1)
        return pace * (self.total - self.step - 1)
