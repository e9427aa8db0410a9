"""Figures of an evaluation: the table as a plot, and a sheet of clips with the detector's descriptions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .extras import need
from .report import Report, Row

_RIGHT, _WRONG, _PLAIN = "#2a7f4f", "#b3403a", "#3b5b8c"
_FRAMES, _CELL, _GAP, _LINE, _MARGIN = 6, 112, 4, 34, 16


class Shown(NamedTuple):
    """A clip for the sheet: frames uint8 [f, h, w, 3], the input picture if any, and the measures."""

    frames: np.ndarray
    given: np.ndarray | None
    found: dict[str, Any]


def figure(report: Report, path: Path) -> None:
    """Writes the table as a PNG: every value with its interval, and its goal as a line. Raises OSError."""
    need("matplotlib").use("Agg", force=False)
    from matplotlib.figure import Figure

    units = list(dict.fromkeys(row.unit for row in report.rows))
    panels = [[row for row in report.rows if row.unit == unit] for unit in units]
    heights = [len(rows) + 1.5 for rows in panels]
    drawn = Figure(figsize=(9, 0.26 * sum(heights) + 1.2), dpi=110, layout="constrained")
    axes = drawn.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, unit, rows in zip(axes, units, panels):
        _panel(axis, rows, unit)
    drawn.suptitle(f"{report.family}, {len(report.clips)} clips")
    drawn.savefig(path, format="png")


def _panel(axis: Any, rows: Sequence[Row], unit: str) -> None:
    scale = 1 if unit else 100
    for place, row in enumerate(rows):
        one = row.estimate
        if math.isnan(one.value):
            continue
        colour = {None: _PLAIN, True: _RIGHT, False: _WRONG}[row.reached]
        if not math.isnan(one.low):
            axis.plot([scale * one.low, scale * one.high], [place, place], color=colour, alpha=0.45, lw=4)
        axis.plot(scale * one.value, place, "o", color=colour, ms=5)
        if row.goal is not None:
            axis.plot([scale * row.goal] * 2, [place - 0.4, place + 0.4], color="black", lw=1)
    axis.set_yticks(range(len(rows)), [f"{row.measure}, {row.group}" for row in rows], fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel(unit or "% of the clips, with 95% intervals; black: the goal", fontsize=7)
    if not unit:
        axis.set_xlim(-2, 102)


def sheet(shown: Sequence[Shown]) -> Image.Image:
    """A row for each clip: the input picture, frames, the caption, and the detector's description."""
    font = ImageFont.load_default(size=13)
    columns = _FRAMES + any(one.given is not None for one in shown)
    width = 2 * _MARGIN + columns * (_CELL + _GAP)
    cells = [max(1, round(_CELL * one.frames.shape[1] / one.frames.shape[2])) for one in shown]
    page = Image.new("RGB", (width, 2 * _MARGIN + sum(cells) + len(cells) * (_LINE + _GAP)), "#fafaf8")
    draw, y = ImageDraw.Draw(page), _MARGIN
    for one, height in zip(shown, cells):
        count = min(_FRAMES, len(one.frames))
        chosen = np.linspace(0, len(one.frames) - 1, count).round().astype(int)
        pictures = [one.frames[index] for index in chosen]
        if one.given is not None:
            pictures.insert(0, one.given)
        for column, pixels in enumerate(pictures):
            picture = Image.fromarray(np.ascontiguousarray(pixels))
            x = _MARGIN + column * (_CELL + _GAP) + (_GAP * 2 if one.given is not None and column else 0)
            page.paste(picture.resize((_CELL, height), Image.Resampling.BICUBIC), (x, y))
        y += height
        verdict = "right" if one.found["all"] else "not all right"
        colour = _RIGHT if one.found["all"] else _WRONG
        draw.text((_MARGIN, y + 1), f"asked: {one.found['caption']}", "#444444", font)
        draw.text((_MARGIN, y + 16), f"seen: {one.found['seen']} ({verdict})", colour, font)
        y += _LINE + _GAP
    return page
