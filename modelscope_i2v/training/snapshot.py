"""Training snapshots: all that a run needs to go on, complete on the disk or not there at all."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.tensors import read_tensors
from ..checkpoints.writers import write_safetensors
from ..errors import CheckpointError, OutputError, VideoError
from ..files import read_json, reason, replace_folder
from .result import planned

_NAME = re.compile(r"step-(\d{1,18})")
_WEIGHTS, _AVERAGE, _OPTIMIZER, _STATE = "unet.safetensors", "ema.safetensors", "optimizer.pt", "state.json"
_KEYS = ("step", "config", "processes", "fingerprint", "curve", "recent", "seconds")
"""Fields that ``state.json`` holds."""

_UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError)
"""Errors of torch.load for a damaged file."""


@dataclass
class Snapshot:
    """The state of a run after a step.

    The order of the data and every random number follow from the configuration's seed and the step.
    """

    step: int
    config: dict[str, Any]
    fingerprint: str
    """Identifies the data."""
    weights: Mapping[str, Tensor]
    """The trained parameters, fp32."""
    average: Mapping[str, Tensor]
    """Their exponential moving average; empty if there is none."""
    optimizers: list[dict[str, Any]]
    """State dicts."""
    processes: int = 1
    """Number of processes that share each step's clips."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """State dict of fp16's loss scaling."""
    curve: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Sums since the curve's last point: losses, gradient norms, and the number of steps."""
    seconds: float = 0.0
    """Time spent in training."""


def snapshots(directory: Path) -> list[Path]:
    """The complete snapshots in a directory, oldest first."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def save(directory: Path, snapshot: Snapshot, keep: int) -> Path:
    """Writes a snapshot and removes all but the last ``keep``.

    It is written under another name, flushed to the disk and then renamed.

    Raises:
        OutputError: it cannot be written; earlier snapshots are unchanged.
    """
    path = directory / f"step-{snapshot.step}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob(".step-*.part*"):  # of runs that were killed
            shutil.rmtree(stale, ignore_errors=True)
        with replace_folder(path) as folder:
            write_safetensors(folder / _WEIGHTS, planned(snapshot.weights))
            if snapshot.average:
                write_safetensors(folder / _AVERAGE, planned(snapshot.average))
            with (folder / _OPTIMIZER).open("wb") as file:
                torch.save({"optimizers": snapshot.optimizers, "scaler": snapshot.scaler}, file)
            state = {key: getattr(snapshot, key) for key in _KEYS}
            (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")
            for file in folder.iterdir():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
    except OSError as error:
        before = snapshots(directory)
        usable = f"{before[-1]} is the last complete one." if before else "There is none before it."
        told = error if isinstance(error, VideoError) else f"{directory} cannot be written: {reason(error)}."
        raise OutputError(f"No training snapshot was made: {told} {usable}") from error
    for old in snapshots(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def read_state(path: Path) -> dict[str, Any]:
    """The content of a snapshot's ``state.json``; no weights are read. Raises CheckpointError."""
    state = read_json(path / _STATE)
    kinds = {
        "step": int,
        "config": dict,
        "fingerprint": str,
        "curve": list,
        "recent": list,
        "seconds": (int, float),
        "processes": int,
    }
    for key, kind in kinds.items():
        if not isinstance(state, dict) or not isinstance(state.get(key), kind):
            raise CheckpointError(f"{path / _STATE} is damaged: its {key!r} is missing or of the wrong kind.")
    if not isinstance(state["config"].get("data"), dict):
        raise CheckpointError(f"{path / _STATE} is damaged: its configuration has no 'data'.")
    return {key: state[key] for key in _KEYS}


def load(path: Path) -> Snapshot:
    """Reads a snapshot. Raises CheckpointError for one that is damaged."""
    state = read_state(path)
    try:
        average = read_tensors(path / _AVERAGE).tensors if (path / _AVERAGE).is_file() else {}
        weights = read_tensors(path / _WEIGHTS).tensors
        content = torch.load(path / _OPTIMIZER, map_location="cpu", weights_only=True)
        return Snapshot(
            weights=weights,
            average=average,
            optimizers=content["optimizers"],
            scaler=content["scaler"],
            **state,
        )
    except CheckpointError as error:
        raise _damaged(path, str(error)) from error
    except _UNREADABLE as error:
        raise _damaged(path, f"{_OPTIMIZER} cannot be read.") from error


def _damaged(path: Path, told: str) -> CheckpointError:
    return CheckpointError(
        f"The training snapshot {path} is damaged: {told} Remove it to go on from the one before."
    )
