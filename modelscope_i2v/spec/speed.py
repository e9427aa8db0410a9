"""The table of speeds: what each leaves out of the work on a video.

Nothing here imports torch, so that the command line and the option checks stay light.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Speed:
    """One value of the option ``speed``. The defaults leave out nothing."""

    steps: float = 1.0
    """Share of the steps that the checkpoint or its family takes by itself."""
    scheduler: str | None = None
    """Solver in place of DDIM; multistep ones are as near to the end of their path in fewer steps."""
    guidance_interval: tuple[float, float] = (0.0, math.inf)
    """Noise levels sigma / alpha with guidance: :func:`.sampling.guidance.guidance_interval`."""

    def defaults(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Options in place of the defaults ``values`` that a checkpoint and its family set."""
        changed = {"num_inference_steps": max(round(self.steps * values["num_inference_steps"]), 1)}
        if self.scheduler is not None and values["scheduler"] == "ddim":
            changed["scheduler"] = self.scheduler
        return changed


SPEEDS: dict[str, Speed] = {
    "exact": Speed(),
    "fast": Speed(steps=0.4, scheduler="unipc", guidance_interval=(0.28, math.inf)),
    "turbo": Speed(steps=0.25, scheduler="unipc", guidance_interval=(0.28, math.inf)),
}
"""Every speed by its name; measured in docs/evidence/speed.md."""
