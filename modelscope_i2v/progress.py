"""Progress bars: on a terminal, quiet in a pipe, and off where a caller says so."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int, what: str, show: bool | None = None, unit: str = "step") -> tqdm:
    """A bar of ``total`` units, to be used as a context manager; ``show=None`` asks the terminal."""
    shown = sys.stderr.isatty() if show is None and sys.stderr is not None else bool(show)
    return tqdm(total=total, desc=what, unit=unit, disable=not shown, leave=False, dynamic_ncols=True)
