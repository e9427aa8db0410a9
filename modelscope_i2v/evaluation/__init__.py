"""How good a model is, measured offline on drawn scenes whose truth is known."""

from __future__ import annotations

from .run import evaluate
from .judge import Verdict, judge
from .report import Report

__all__ = ["Report", "Verdict", "evaluate", "judge"]
