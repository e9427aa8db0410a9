"""The loss curve as a picture, and what TensorBoard shows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)


def draw(curve: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws loss, its running mean and the learning rate into a PNG file; without matplotlib, nothing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return

    steps = np.array([point["step"] for point in curve])
    losses = np.array([point["loss"] for point in curve])
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="0.8", linewidth=1, label="loss")
    axes.plot(steps, running_mean(losses), color="C0", label="its running mean")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend(loc="upper right")
    beside = axes.twinx()
    beside.plot(steps, [point["lr"] for point in curve], color="C1", linewidth=1)
    beside.set_ylabel("learning rate", color="C1")
    figure.savefig(path, dpi=100)


def running_mean(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Of each value and those before it, over a share of all of them: as long as ``values``."""
    width = max(round(len(values) * share), 1)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


class Board:
    """TensorBoard's log of a run; without the package tensorboard it says so once and does nothing.

    Args:
        first: the step that a run goes on from; what was logged after it is taken back.
    """

    def __init__(self, directory: Path, first: int) -> None:
        self.writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(directory), purge_step=first + 1 if first else None)
        except ImportError:
            logger.warning(
                "no TensorBoard log and no picture of the curve are written: "
                "pip install modelscope-i2v[train] brings the packages"
            )

    def point(self, point: Mapping[str, float]) -> None:
        if self.writer is not None:
            for name in ("loss", "lr", "gradient"):
                self.writer.add_scalar(name, point[name], point["step"])

    def picture(self, image: Image.Image, step: int) -> None:
        if self.writer is not None:
            self.writer.add_image("samples", np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
