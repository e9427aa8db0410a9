"""Checkpoints of a run: whole or not there, whenever the run is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError, OutputError

_NAME = re.compile(r"step-(\d+)")
_WEIGHTS, _AVERAGE, _OPTIMIZER, _STATE = "unet.safetensors", "ema.safetensors", "optimizer.pt", "state.json"


@dataclass
class Saved:
    """All that a run needs to go on as if it had never stopped.

    The order of the data and every random number follow from the configuration's seed and the step.
    """

    step: int
    config: dict[str, Any]
    fingerprint: str
    """Of the data."""
    weights: Mapping[str, Tensor]
    """What is trained, fp32."""
    average: Mapping[str, Tensor]
    """Its moving average; empty where there is none."""
    optimizers: list[dict[str, Any]]
    """State dict."""
    processes: int = 1
    """Among which each step's clips are shared."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """Of fp16's loss scaling."""
    curve: list[dict[str, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Sums since the curve's last point: of losses and gradient norms, and their number."""
    seconds: float = 0.0
    """Time spent in training."""


def checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in a directory, oldest first."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def save(directory: Path, saved: Saved, keep: int) -> Path:
    """Writes a checkpoint and removes all but the last ``keep``.

    It is written under another name, brought to the disk and then renamed.

    Raises:
        OutputError: it cannot be written; checkpoints before it are as they were.
    """
    path = directory / f"step-{saved.step}"
    partial = directory / f".{path.name}.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob(".step-*.partial"):  # of runs that were killed
            shutil.rmtree(stale)
        partial.mkdir()
        save_file(_contiguous(saved.weights), partial / _WEIGHTS)
        if saved.average:
            save_file(_contiguous(saved.average), partial / _AVERAGE)
        torch.save({"optimizers": saved.optimizers, "scaler": saved.scaler}, partial / _OPTIMIZER)
        state = {
            key: getattr(saved, key)
            for key in ("step", "config", "processes", "fingerprint", "curve", "recent", "seconds")
        }
        (partial / _STATE).write_text(json.dumps(state), encoding="utf-8")
        for file in partial.iterdir():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        if path.exists():  # the same step again, by a run that was resumed from before it
            shutil.rmtree(path)
        os.replace(partial, path)
    except Exception as error:  # safetensors and torch have errors of their own for a full disk
        shutil.rmtree(partial, ignore_errors=True)
        before = checkpoints(directory)
        usable = f"{before[-1]} is the last complete one." if before else "There is none before it."
        raise OutputError(f"The checkpoint {path} cannot be written: {error}. {usable}") from error
    for old in checkpoints(directory)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def read_state(path: Path) -> dict[str, Any]:
    """What ``state.json`` of a checkpoint says; quick, since no weights are read."""
    try:
        return json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of a training run: {error}.") from error


def load(path: Path) -> Saved:
    """Reads a checkpoint. Raises CheckpointError for one that is damaged."""
    state = read_state(path)
    try:
        content = torch.load(path / _OPTIMIZER, map_location="cpu", weights_only=True)
        average = load_file(path / _AVERAGE) if (path / _AVERAGE).is_file() else {}
        return Saved(
            weights=load_file(path / _WEIGHTS),
            average=average,
            optimizers=content["optimizers"],
            scaler=content["scaler"],
            **state,
        )
    except Exception as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged ({type(error).__name__}: {error}); remove it to go on from "
            "the one before."
        ) from error
