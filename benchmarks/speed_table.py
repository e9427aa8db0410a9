"""Rewrites the table of counted work in docs/evidence/speed.md: ``python -m benchmarks.speed_table``, no GPU.

The solvers run as ever, on latents of one pixel; what an evaluation of the U-Net takes at full size is
counted on a network without contents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelscope_i2v.sampling.guidance import denoiser, guidance_interval, guided
from modelscope_i2v.sampling.noise import NoiseSource, SolverNoise
from modelscope_i2v.sampling.schedules import SCHEDULES
from modelscope_i2v.sampling.solvers import SOLVERS, Denoiser
from modelscope_i2v.spec.families import FAMILIES, Family
from modelscope_i2v.spec.options import resolve
from modelscope_i2v.spec.speed import SPEEDS

from . import ROOT
from .bench.measure import count_evaluation
from .sections import write_section

DOCUMENT = ROOT / "docs" / "evidence" / "speed.md"


def evaluations(family: Family, speed: str) -> int:
    """Evaluations of the U-Net, each guidance branch counted, that a family's default video takes."""
    options, schedule, count = resolve(family, {"speed": speed}), SCHEDULES[family.schedule](), 0

    def network(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        nonlocal count
        count += len(x)
        return torch.zeros_like(x)

    def with_guidance(scale: float) -> Denoiser:
        conditions = {"text": torch.ones(1)}, {"text": torch.zeros(1)}
        predict = guided(network, lambda text: text, *conditions, scale=scale)
        return denoiser(predict, schedule, family.prediction)

    denoise = guidance_interval(
        lambda: with_guidance(options.guidance_scale),
        lambda: with_guidance(1.0),
        schedule,
        SPEEDS[speed].guidance_interval,
    )
    solver, start = SOLVERS[options.scheduler], family.start_timestep(family.strength)
    noise, steps = SolverNoise([NoiseSource(0)]), options.num_inference_steps
    for _ in solver(denoise, torch.zeros(1, 4, 1, 1, 1), schedule, steps, start, noise, options.eta):
        pass
    return count


def table() -> str:
    """A row for each family's default video; of other speeds than the first, how much less it is."""
    lines = ["| full-size model | video | " + " | ".join(f"`{name}`" for name in SPEEDS) + " |"]
    lines.append("|---|---|" + "---|" * len(SPEEDS))
    for family in FAMILIES.values():
        size = family.unet.canvas(family.height // 8, family.width // 8)
        each = count_evaluation(family, family.unet, family.num_frames, *size)
        exact = evaluations(family, "exact")
        cells = [family.name, f"{family.num_frames} × {family.width}×{family.height}"]
        for name in SPEEDS:
            done = evaluations(family, name)
            less = "" if done == exact else f" ({exact / done:.2f}× less)"
            cells.append(f"{done} × {each:.1f} = {done * each:,.0f}{less}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    write_section(DOCUMENT, "work", table())
