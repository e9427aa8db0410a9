"""A run as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from .report import CASES, SUBJECTS, case_of, column_order, seconds, size_of

COLOURS = {
    "stock": ("#9a9a9a", "#c4c4c4"),
    "diffusers": ("#d08a3c", "#e8bd8b"),
    "ours": ("#1f6fb4", "#5aa9dd", "#0f3f6b", "#8fd0c8", "#3d9a8b"),
}
BAR, GAP, HEAD = 0.19, 0.2, 0.75
"""Inches of a bar's height, between two cases, and around a family."""


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG: how many times as fast as the original everyone is, in every case of every family.

    Bars begin at 1, where the original is; beside each stands the time, and lines show the spread.
    """
    rows = [{**row, "speed": next(iter(row["speeds"].values()))} for row in result["rows"] if row["speeds"]]
    by_family: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_family.setdefault(row["family"], []).append(row)
    series = sorted({(row["subject"], row["mode"]) for row in rows}, key=column_order)
    colours: dict[tuple[str, str], str] = {}
    for subject, mode in series:
        shades = COLOURS[subject]
        colours[subject, mode] = shades[sum(key[0] == subject for key in colours) % len(shades)]
    families = list(by_family)
    half = (len(families) + 1) // 2
    columns = [part for part in (families[:half], families[half:]) if part]
    tallest = max(sum(_height(by_family[family]) + HEAD for family in column) for column in columns)
    figure = plt.figure(figsize=(7.5 * len(columns), tallest + HEAD), layout="constrained")
    reach = max(2.0, *(_fastest(row) for row in rows)), min(0.7, *(row["speed"] for row in rows))
    for column, place in zip(columns, figure.subfigures(1, len(columns), squeeze=False)[0]):
        heights = [_height(by_family[family]) for family in column]
        panels = place.subplots(len(column), 1, height_ratios=heights, squeeze=False)[:, 0]
        for family, panel in zip(column, panels):
            _panel(panel, by_family[family], colours)
            panel.set_title(family, loc="left", fontsize=10, fontweight="bold")
            panel.set_xlim(reach[1] / 1.1, 1.8 * reach[0])
        original = "diffusers" if column == ["i2vgen-xl"] else "stock ModelScope (I2VGen-XL: as diffusers)"
        panels[-1].set_xlabel(f"times as fast as {original}", fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[key]) for key in series]
    labels = [f"{SUBJECTS[subject]}, {mode}" for subject, mode in series]
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _fastest(row: Mapping[str, Any]) -> float:
    """The speed of the fastest call."""
    return row["speed"] * row["median"] / row["fastest"]


def _height(rows: list[dict[str, Any]]) -> float:
    return BAR * len(rows) + GAP * len({case_of(row) for row in rows})


def _panel(panel: Axes, rows: list[dict[str, Any]], colours: Mapping[tuple[str, str], str]) -> None:
    """One family: a group of bars for each case, from above."""
    y, ticks, names = 0.0, [], []
    for case in dict.fromkeys(case_of(row) for row in rows):
        group = [row for row in rows if case_of(row) == case]
        group.sort(key=lambda row: column_order((row["subject"], row["mode"])))
        ticks.append(y + BAR * (len(group) - 1) / 2)
        names.append("\n".join(filter(None, (CASES[group[0]["what"]], size_of(group[0])))))
        for row in group:
            speed, colour = row["speed"], colours[row["subject"], row["mode"]]
            panel.barh(y, speed - 1, left=1, height=0.9 * BAR, color=colour)
            slowest, fastest = speed * row["median"] / row["slowest"], _fastest(row)
            panel.plot([slowest, fastest], [y, y], color="#333333", linewidth=0.9)
            if speed == 1:
                panel.plot([1], [y], marker="s", markersize=4, color=colour)
            panel.annotate(
                f"{speed:.2f}×   {seconds(row['median'])}",
                (max(fastest, 1.0), y),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
            )
            y += BAR
        y += GAP
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.axvline(1, color="#333333", linewidth=0.8)
    panel.set_yticks(ticks, names, fontsize=8)
    panel.set_ylim(y - GAP, -BAR)
    panel.spines[["top", "right"]].set_visible(False)
