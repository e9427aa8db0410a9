"""The loss curve: as JSON lines, as a picture, and in TensorBoard. None of it can end a training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import reason, replace_file

logger = logging.getLogger(__name__)


class CurveFile:
    """``curve.jsonl``: one line a point.

    A point that cannot be written is logged once and kept; :meth:`write` writes all of them again.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._failed = path, False

    def write(self, curve: Sequence[Mapping[str, float]]) -> None:
        """Replaces the file by a whole curve."""

        def whole() -> None:
            with replace_file(self.path) as path:
                path.write_text(json_lines(curve), encoding="utf-8")

        self._failed = not self._tried(whole)

    def add(self, point: Mapping[str, float]) -> None:
        """Appends a point."""

        def append() -> None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json_lines([point]))

        if not self._failed:
            self._failed = not self._tried(append)

    def _tried(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except OSError as error:
            if not self._failed:
                logger.warning("%s cannot be written (%s); training goes on.", self.path, reason(error))
            return False
        return True


def json_lines(curve: Sequence[Mapping[str, float]]) -> str:
    """Points of a curve as JSON, one a line."""
    return "".join(json.dumps(point) + "\n" for point in curve)


def draw(curve: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws loss, its running mean and the learning rate into a PNG file; without matplotlib, nothing.

    What fails is logged.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return

    try:
        steps = np.array([point["step"] for point in curve])
        losses = np.array([point["loss"] for point in curve])
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(steps, losses, color="0.8", linewidth=1, label="loss")
        axes.plot(steps, running_mean(losses), color="C0", label="running mean")
        axes.set(xlabel="step", ylabel="loss", yscale="log")
        axes.legend(loc="upper right")
        right = axes.twinx()
        right.plot(steps, [point["lr"] for point in curve], color="C1", linewidth=1)
        right.set_ylabel("learning rate", color="C1")
        with replace_file(path) as temporary:
            figure.savefig(temporary, dpi=100, format="png")
    except Exception as error:  # of matplotlib as well, whose errors are of many classes
        logger.warning("%s cannot be drawn (%s); training goes on.", path, _told(error))


def running_mean(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """The mean of each value and the values before it, over a share of all of them: as long as ``values``."""
    width = max(round(len(values) * share), 1)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


class Board:
    """The TensorBoard log of a run.

    Without the package tensorboard, and after the first failure, it logs one warning and writes nothing.

    Args:
        first: the step from which the run is resumed; what was logged after it is discarded.
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
        except Exception as error:
            self._fail(error)

    def point(self, point: Mapping[str, float]) -> None:
        for name in ("loss", "lr", "gradient"):
            self._write(lambda writer, name=name: writer.add_scalar(name, point[name], point["step"]))

    def picture(self, image: Image.Image, step: int) -> None:
        self._write(lambda writer: writer.add_image("samples", np.asarray(image), step, dataformats="HWC"))

    def close(self) -> None:
        self._write(lambda writer: writer.close())

    def _write(self, act: Callable[[Any], Any]) -> None:
        if self.writer is None:
            return
        try:
            act(self.writer)
        except Exception as error:  # of the package's writing thread as well
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.writer = None
        logger.warning("The TensorBoard log cannot be written (%s); training goes on.", _told(error))


def _told(error: Exception) -> str:
    return reason(error) if isinstance(error, OSError) else " ".join(str(error).split()) or "unknown error"
