"""Evaluation: the quality of a model, measured offline on synthetic scenes with known ground truth."""

from __future__ import annotations

from .judge import Verdict, judge
from .report import Report
from .run import evaluate

__all__ = ["Report", "Verdict", "evaluate", "judge"]
