"""How good a model is, measured offline on drawn scenes whose truth is known."""

from __future__ import annotations

from .judge import Verdict, judge
from .report import Report
from .run import evaluate

__all__ = ["Report", "Verdict", "evaluate", "judge"]
