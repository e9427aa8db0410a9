"""How far a run is: a bar on a terminal, lines elsewhere, and the time that remains, measured."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque

from tqdm import tqdm

from ..progress import remaining, terminal_bar

_WINDOW = 200
"""Steps whose time tells that of the steps to come; checkpoints and samples among them count too."""
_PAUSE = 30.0
"""Seconds between lines where there is no terminal."""


class Progress:
    """Shows steps ``first`` … ``total``. ``show``: None asks the terminal; False is silent."""

    def __init__(self, first: int, total: int, show: bool | None = None) -> None:
        self.total, self.step = total, first
        self.bar: tqdm = terminal_bar(total, "Training", show)
        self.bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
        self.bar.update(first)
        self.lines = self.bar.disable and show is not False
        self.times: deque[float] = deque([time.monotonic()], maxlen=_WINDOW + 1)
        self.told = time.monotonic()

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
        told = f"{self._pace():.2f} s a step, {remaining(self.seconds_left())} left"
        told = told if loss is None else f"loss {loss:.4f}, {told}"
        self.bar.set_postfix_str(told, refresh=False)
        self.bar.update(step - self.step)
        self.step = step
        if self.lines and (now - self.told > _PAUSE or step == self.total):
            self.told = now
            print(f"step {step:,} of {self.total:,}: {told}", file=sys.stderr, flush=True)

    def _pace(self) -> float:
        return (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1)

    def seconds_left(self) -> float:
        """At the pace of the last steps, the first left out while there are few: it may have compiled."""
        times = list(self.times)[1 if len(self.times) > 2 and len(self.times) <= _WINDOW else 0 :]
        pace = (times[-1] - times[0]) / max(len(times) - 1, 1)
        return pace * (self.total - self.step - 1)
