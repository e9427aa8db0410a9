"""Progress of long work: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

LONG = 10.0
"""Seconds that work takes before lines tell of it where nobody asked for them."""


def bar(total: int, what: str, show: bool | None = None, unit: str = "step") -> tqdm | Lines:
    """Progress over ``total`` units, a context manager with ``update(n=1)``, on standard error.

    Args:
        show: False: nothing. None: a bar on a terminal, elsewhere lines if the work is long. True: a bar on
            a terminal, else lines.
    """
    if show is False or sys.stderr is None or sys.stderr.isatty():
        return terminal_bar(total, what, show, unit)
    return Lines(total, what, unit, 0.0 if show else LONG)


def terminal_bar(total: int, what: str, show: bool | None = None, unit: str = "step") -> tqdm:
    """A bar that shows nothing where there is no terminal."""
    hidden = show is False or sys.stderr is None or not sys.stderr.isatty()
    settings = {"unit": unit, "unit_scale": unit == "B", "leave": False, "dynamic_ncols": True}
    return tqdm(total=total, desc=what, disable=hidden, **settings)


class Lines:
    """Progress as lines: the start with the time that it will take, each tenth, and the end.

    Nothing is written before the work has taken ``quiet`` seconds, or its first units show that it will.
    """

    def __init__(self, total: int, what: str, unit: str, quiet: float) -> None:
        self.total, self.what, self.unit, self.quiet = total, what, unit, quiet
        self.done = self.tenths = 0
        self.shown = False
        self.began = time.monotonic()

    def __enter__(self) -> Lines:
        self.began = time.monotonic()
        return self

    def update(self, count: int = 1) -> None:
        """``count`` more units are done."""
        self.done += count
        if not 0 < self.done < self.total:
            return
        taken = time.monotonic() - self.began
        left = taken / self.done * (self.total - self.done)
        tenths = 10 * self.done // self.total
        if not self.shown and taken + left >= self.quiet:
            self._write(f"{self._count(self.total)}, about {remaining(taken + left)}")
        elif self.shown and tenths > self.tenths:
            self._write(f"{10 * tenths}%, about {remaining(left)} left")
        self.tenths = tenths

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        taken = time.monotonic() - self.began
        if self.shown or taken >= self.quiet:
            what = "done" if kind is None else f"stopped at {self._count(self.done)}"
            self._write(f"{what} after {remaining(taken)}")

    def _count(self, number: int) -> str:
        if self.unit == "B":
            return f"{number / 1e6:,.0f} MB"
        return f"{number:,} {self.unit}{'' if number == 1 else 's'}"

    def _write(self, text: str) -> None:
        self.shown = True
        print(f"{self.what}: {text}", file=sys.stderr, flush=True)


def remaining(seconds: float) -> str:
    """``2 h 05 min``, ``5 min`` or ``20 s``; ``a long time`` beyond a year."""
    if not seconds < 3e7:
        return "a long time"
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(round(seconds), 0)} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
