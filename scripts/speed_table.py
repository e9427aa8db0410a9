"""Rewrites the table of counted work in docs/speed.md: ``python scripts/speed_table.py``, no GPU.

The solvers run as ever, on latents of one pixel; what each evaluation of the U-Net would take at full size is
counted on networks without contents.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from bench.measure import conditions
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modelscope_i2v.families import FAMILIES, Family
from modelscope_i2v.networks.config import Reuse
from modelscope_i2v.networks.stunet import DeepFeatures, STUNet
from modelscope_i2v.options import resolve
from modelscope_i2v.sampling.guidance import denoiser, guided, in_interval
from modelscope_i2v.sampling.noise import NoiseSource, SolverNoise
from modelscope_i2v.sampling.schedules import SCHEDULES
from modelscope_i2v.sampling.solvers import SOLVERS, Denoiser
from modelscope_i2v.speed import SPEEDS

BEGIN, END = "<!-- work: begin -->", "<!-- work: end -->"


def work(family: Family, speed: str) -> float:
    """TFLOP of all evaluations of the full-size U-Net that a family's default video takes at a speed."""
    options, preset, schedule = resolve(family, {"speed": speed}), SPEEDS[speed], SCHEDULES[family.schedule]()
    total = 0.0

    def conditioned(y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        deep = preset.reuse and DeepFeatures(preset.reuse)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            nonlocal total
            whole = deep is None or deep.stages_to_run(2**30) == 2**30
            total += len(x) * evaluation(family, None if whole else preset.reuse)
            return torch.zeros_like(x)

        return predict

    def with_guidance(scale: float) -> Denoiser:
        with_y, without = {"y": torch.ones(1)}, {"y": torch.zeros(1)}
        return denoiser(guided(conditioned, with_y, without, scale=scale), schedule, family.prediction)

    denoise = in_interval(
        lambda: with_guidance(options.guidance_scale),
        lambda: with_guidance(1.0),
        schedule,
        preset.guidance_interval,
    )
    start, steps = family.start_timestep(family.strength), options.num_inference_steps
    noise = SolverNoise([NoiseSource(0)])
    for _ in SOLVERS[options.scheduler](
        denoise, torch.zeros(1, 4, 1, 1, 1), schedule, steps, start, noise, 0.0
    ):
        pass
    return total


@functools.cache
def network(family: Family) -> STUNet:
    """A full-size U-Net without contents."""
    with torch.device("meta"):
        return STUNet(family.unet).eval()


@functools.cache
@torch.no_grad()
def evaluation(family: Family, reuse: Reuse | None = None) -> float:
    """TFLOP of one evaluation of one video and branch; of one without the deep stages for ``reuse``."""
    unet = network(family)
    height, width = unet.config.canvas(family.height // 8, family.width // 8)
    given = conditions(family, unet.config, height, width)[0]
    given = {name: value.to("meta") for name, value in given.items()}
    latents, times = (
        torch.empty(1, unet.config.in_dim, family.num_frames, height, width, device="meta"),
        torch.tensor([500.0], device="meta"),
    )
    call = unet.conditioned(**given, reuse=reuse)
    call(latents, times)  # what is made of the conditions, once a video
    with FlopCounterMode(display=False) as counter:
        call(latents, times)
    return counter.get_total_flops() / 1e12


def table() -> str:
    """A row for each family's default video; of other speeds than the first, how much less it is."""
    first, *others = SPEEDS
    lines = ["| full-size model | video | " + " | ".join(f"`{name}`" for name in SPEEDS) + " |"]
    lines.append("|---|---|" + "---|" * len(SPEEDS))
    for family in FAMILIES.values():
        exact = work(family, first)
        cells = [
            f"{family.name}",
            f"{family.num_frames} × {family.width}×{family.height}",
            f"{exact:,.0f} TFLOP",
        ]
        for name in others:
            done = work(family, name)
            cells.append(f"{done:,.0f} TFLOP ({exact / done:.2f}× less)")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    path = Path(__file__).resolve().parent.parent / "docs" / "speed.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
