"""A run as JSON and as Markdown tables."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from modelscope_i2v.version import __version__

from .run import Run

PACKAGES = ("modelscope", "torch", "diffusers", "transformers", "open_clip_torch", "numpy")
SUBJECTS = {"ours": "this package", "stock": "stock ModelScope", "diffusers": "diffusers"}
CASES = {
    "loading": "loading",
    "evaluation": "U-Net, one evaluation",
    "step": "guided step",
    "encode": "encoding",
    "decode": "decoding",
    "video": "whole video",
}
LEGEND = """\
Weights are random, of the hub's sizes{small}; all subjects of a family have the same, and take turns. Sizes
are frames×height×width of the latents; pictures are 8 times as high and wide.

- time: median (fastest–slowest) of {counts} calls
- × stock, × diffusers: how many times as fast as they are, {firsts}
- error: RMS of the difference from the fp32 original's result, of that result's RMS
- share: the work, counted in floating-point operations, per second, of the rate at which the same device
  multiplied large matrices of that type in the same run: {rates}. A guided step is two evaluations; a video's
  work is that of its U-Net and its decoding.
- memory: what the call took of the host's memory beyond what was there before; loading has a process of its
  own, and what the imports hold is not counted. Files that are mapped count as far as they were read.
- device: peak of the device's memory with the subject's networks

Stock runs with what it misses today supplied, as in the tests; all but its loading is measured on a model
whose files were read in a faster way. What follows from the input alone is computed once a video in this
package, and so is not part of its guided step."""


def result_of(runs: list[Run], preset: str, command: str) -> dict[str, Any]:
    """All that is kept of a benchmark's runs; ``command`` repeats them."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "preset": preset,
        "command": command,
        "hardware": hardware(any(run.device.type == "cuda" for run in runs)),
        "versions": versions(),
        "originals": {run.preset.device: run.preset.originals[0] for run in runs},
        "matrix_tflops": {run.preset.device: run.rates for run in runs},
        "small": any(run.preset.small for run in runs),
        "rows": with_speeds([row.as_json() for run in runs for row in run.rows], runs),
        "left_out": [entry for run in runs for entry in run.left_out],
    }


def with_speeds(rows: list[dict[str, Any]], runs: list[Run]) -> list[dict[str, Any]]:
    """Each row with ``speeds``: how many times as fast as each original it is."""
    first = {run.preset.device: run.preset.originals[0] for run in runs}
    for row in rows:
        row["speeds"] = {
            other["subject"]: other["median"] / row["median"]
            for other in rows
            if other["subject"] != "ours"
            and case_of(other) == case_of(row)
            and other["mode"] == first[row["device"]]
        }
    return rows


def case_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What distinguishes a row's case from others."""
    return tuple(row[name] for name in ("device", "family", "what", "frames", "height", "width", "steps"))


def hardware(gpu: bool) -> dict[str, Any]:
    """The processor, its cores and memory, and the GPU where one was used."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": _memory_gb(),
    }
    if gpu:
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_memory_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1)
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def slug(machine: Mapping[str, Any]) -> str:
    """The hardware in a folder's name."""
    name = machine.get("gpu") or f"{machine['processor']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions() -> dict[str, str]:
    """Of Python, this package, and what both sides stand on."""
    found = {"python": platform.python_version(), "modelscope_i2v": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """The whole result as a page."""
    rates = "; ".join(
        f"{device} " + ", ".join(f"{dtype} {rate:.3g} TFLOP/s" for dtype, rate in by_type.items())
        for device, by_type in result["matrix_tflops"].items()
    )
    firsts = ", ".join(f"in {dtype} on {device}" for device, dtype in result["originals"].items())
    counts = "–".join(str(end(len(row["seconds"]) for row in result["rows"])) for end in (min, max))
    small = " made a few megabytes small (so times say little)" if result["small"] else ""
    parts = [f"# Benchmark, {result['date'][:10]}", conditions_line(result), full_table(result)]
    if result["left_out"]:
        reasons = [
            f"- {entry['family']}, {entry['what']}, {entry['subject']} {entry['mode']}: {entry['why']}"
            for entry in result["left_out"]
        ]
        parts += ["Not measured:", "\n".join(reasons)]
    parts += [
        LEGEND.format(rates=rates, small=small, counts=counts, firsts=firsts),
        f"Made by `{result['command']}`.",
    ]
    return "\n\n".join(parts) + "\n"


def conditions_line(result: Mapping[str, Any]) -> str:
    """The machine and the versions, in a sentence."""
    machine = result["hardware"]
    host = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    place = f"{machine['gpu']} ({host})" if "gpu" in machine else host
    return f"{place}; " + ", ".join(f"{name} {number}" for name, number in result["versions"].items()) + "."


def full_table(result: Mapping[str, Any]) -> str:
    """One line for each subject in each case."""
    lines = [
        "| model | what | size | by | mode | time | × stock | × diffusers | error | TFLOP | share | memory "
        "| device |",
        "|---" * 13 + "|",
    ]
    for row in result["rows"]:
        cells = [
            row["family"],
            CASES[row["what"]] + (f", {row['steps']} steps" if row["steps"] else ""),
            size_of(row),
            SUBJECTS[row["subject"]],
            row["mode"],
            f"{seconds(row['median'])} ({seconds(row['fastest'])}–{seconds(row['slowest'])})",
            _or_nothing(row["speeds"].get("stock"), "{:.2f}×"),
            _or_nothing(row["speeds"].get("diffusers"), "{:.2f}×"),
            _or_nothing(row["error"], "{:.1e}"),
            _or_nothing(row["tflop"], "{:.3g}"),
            _or_nothing(row["share"], "{:.0%}"),
            _or_nothing(row["memory_gb"], "{:.2f} GB"),
            _or_nothing(row["device_gb"], "{:.2f} GB"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary_table(result: Mapping[str, Any]) -> str:
    """One line for each case, as the README shows it: everyone's time, and ours' speed."""
    columns = sorted({(row["subject"], row["mode"]) for row in result["rows"]}, key=column_order)
    heads = [f"{SUBJECTS[subject]}, {mode}" for subject, mode in columns]
    lines = ["| " + " | ".join(["model", "what", *heads]) + " |", "|---" * (2 + len(columns)) + "|"]
    cases: dict[tuple[Any, ...], dict[tuple[str, str], Mapping[str, Any]]] = {}
    for row in result["rows"]:
        cases.setdefault(case_of(row), {})[row["subject"], row["mode"]] = row
    for by_subject in cases.values():
        row = next(iter(by_subject.values()))
        what = ", ".join(filter(None, (CASES[row["what"]], size_of(row))))
        cells = [row["family"], what + (f", {row['steps']} steps" if row["steps"] else "")]
        lines.append("| " + " | ".join(cells + [_time_cell(by_subject.get(key)) for key in columns]) + " |")
    day = result["date"][:10]
    note = "In brackets: how many times as fast as stock, and as diffusers, that is; sizes are the latents'."
    return "\n".join([*lines, "", f"{note} Measured on {day} on {conditions_line(result)}"])


def _time_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    speeds = ", ".join(f"{speed:.2f}×" for speed in row["speeds"].values())
    return seconds(row["median"]) + (f" ({speeds})" if row["subject"] == "ours" and speeds else "")


def column_order(column: tuple[str, str]) -> tuple[int, str]:
    """The originals first, and of each the wider type."""
    return ("stock", "diffusers", "ours").index(column[0]), {"fp32": "0"}.get(column[1], column[1])


def size_of(row: Mapping[str, Any]) -> str:
    """The latents' size, empty for loading."""
    return f"{row['frames']}×{row['height']}×{row['width']}" if row["frames"] else ""


def seconds(value: float) -> str:
    """With three digits: 0.0123 s, 1.23 s, 123 s."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:.{digits}f} s"


def _or_nothing(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
