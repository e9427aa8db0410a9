"""The report of an evaluation: as a table for the terminal, as Markdown, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .metrics import Estimate


@dataclass(frozen=True)
class Row:
    """A measure of a group of clips.

    Attributes:
        unit: "" for a share of the clips, which is shown in percent.
        goal: the value to reach.
        below: the value should be below the goal; otherwise at or above it.
    """

    measure: str
    group: str
    estimate: Estimate
    unit: str = ""
    goal: float | None = None
    below: bool = False

    @property
    def reached(self) -> bool | None:
        """True if the goal is reached; None without a goal or a value."""
        if self.goal is None or math.isnan(self.estimate.value):
            return None
        value = self.estimate.value
        return value < self.goal if self.below else value >= self.goal

    def cells(self) -> tuple[str, ...]:
        """The row as text: measure, group, n, value, interval, goal, whether it is reached."""
        value, interval = self.number(self.estimate.value), "–"
        if not math.isnan(self.estimate.value):
            value = f"{value} {self.unit}".strip()
        if not math.isnan(self.estimate.low) and self.estimate.n and self.estimate.low != self.estimate.high:
            interval = f"{self.number(self.estimate.low)} … {self.number(self.estimate.high)}"
        goal = "" if self.goal is None else f"{'<' if self.below else '≥'} {self.number(self.goal)}"
        reached = {None: "", True: "yes", False: "no"}[self.reached]
        return self.measure, self.group, str(self.estimate.n), value, interval, goal, reached

    def number(self, value: float) -> str:
        """A number as this row shows it, without the unit."""
        if math.isnan(value):
            return "–"
        if not self.unit:
            return f"{100 * value:.1f}%"
        return f"{value:.{1 if self.unit == 'dB' else 3}f}"


HEAD = ("measure", "clips", "n", "value", "95% interval", "goal", "reached")


@dataclass
class Report:
    """The result of an evaluation.

    Attributes:
        settings: the settings that reproduce the report.
        clips: for each clip, its caption, the detector's description, and all measures.
        notes: measures that are missing, with the reason.
    """

    model: str
    family: str
    settings: dict[str, Any]
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, key: tuple[str, str]) -> Row:
        """A row by its measure and group. Raises KeyError."""
        for row in self.rows:
            if (row.measure, row.group) == key:
                return row
        raise KeyError(key)

    def table(self) -> str:
        """The table for a terminal."""
        return aligned([HEAD, *(row.cells() for row in self.rows)])

    def markdown(self) -> str:
        """The report without the single clips."""
        made = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        lines = [
            f"# {self.family}",
            "",
            f"Model: {self.model}. {len(self.clips)} clips in {self.seconds:.0f} s. Settings: {made}.",
            "",
            "Intervals hold the true value with 95% confidence: Wilson's for shares, bootstrapped for means.",
            "",
            *markdown_table([HEAD, *(row.cells() for row in self.rows)]),
        ]
        lines += ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """The whole report; numbers that are NaN or infinite are null."""
        content = asdict(self)
        for entry, row in zip(content["rows"], self.rows):
            entry["reached"] = row.reached
        return json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n"


def markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
