"""Compares solvers, step counts, speeds, number types and guidance rescale on one model, by measurement.

``python -m benchmarks.quality MODEL --output DIR`` writes quality.json, quality.md and quality.png. Every way
of making the clips starts from the same noise. "PSNR to long run" is that to DDIM with very many steps: how
far a solver is from the end of its own path. "Right" is what the detector of ``modelscope-i2v evaluate``
says, and "score" how much of colour, shape and motion is right, in percent; "points lost" compare clip by
clip.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from modelscope_i2v.checkpoints.hub import fetch
from modelscope_i2v.embedded import model_directory
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.evaluation import judge, metrics
from modelscope_i2v.evaluation.examples import Example, examples
from modelscope_i2v.evaluation.extras import need
from modelscope_i2v.evaluation.generate import Saved, generate
from modelscope_i2v.evaluation.report import markdown_table
from modelscope_i2v.spec.families import FAMILIES
from modelscope_i2v.spec.options import SCHEDULERS
from modelscope_i2v.spec.speed import SPEEDS

STEPS = (10, 15, 20, 30, 50)
RESCALES = (0.0, 0.2, 0.5, 0.7)
REFERENCE = ("ddim", 50)


class Study:
    """Clips of one set of examples, made in many ways."""

    def __init__(self, model: Path, clips: int, seed: int, batch: int, device: str | None) -> None:
        self.model, self.batch, self.device = model, batch, device
        self.examples: list[Example] = examples(clips, seed)
        self.generators: dict[str, VideoGenerator] = {}
        self.bar = tqdm(unit="clip", dynamic_ncols=True)

    def generator(self, dtype: str) -> VideoGenerator:
        if dtype not in self.generators:
            self.generators.clear()  # one at a time
            numbers = {"dtype": "fp32", "quantization": "int8"} if dtype == "int8" else {"dtype": dtype}
            self.generators[dtype] = VideoGenerator.from_directory(
                self.model, device=self.device, progress=False, **numbers
            )
        return self.generators[dtype]

    def make(self, label: str, dtype: str = "fp32", **options: Any) -> dict[str, Any]:
        """Clips made in one way, what is right about them, and the seconds of each."""
        generator = self.generator(dtype)
        given = {**options, "progress": False, "output_type": "pt"}
        resolved = generator.resolve({}, given)[1]
        self.bar.set_description(label)
        began = time.perf_counter()
        frames, right, scores, truth = [], [], [], []
        ways = generate(generator, self.examples, resolved, given, self.batch, Saved(None, {}))
        seconds = 0.0
        for made in ways:
            seconds += time.perf_counter() - began
            verdict = judge(made.frames, made.example.scene)
            frames.append(made.frames)
            asked = [verdict.colour, verdict.kind]
            if generator.family.reads_text:  # without a text nobody said which motion is right
                asked.append(verdict.motion)
            right.append(all(asked))
            scores.append(100 * sum(asked) / len(asked))
            if generator.family.takes_video:
                truth.append(metrics.psnr(made.frames, made.truth.frames[: len(made.frames)]))
            self.bar.update()
            began = time.perf_counter()
        seconds /= len(frames)
        return {"frames": frames, "right": right, "scores": scores, "truth": truth, "seconds": seconds}


def compared(made: dict[str, Any], **references: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one way: shares and means with their intervals."""
    right = metrics.share(made["right"])
    row: dict[str, Any] = {"right": right.value, "low": right.low, "high": right.high}
    for name, reference in references.items():
        near = metrics.mean([metrics.psnr(a, b) for a, b in zip(made["frames"], reference["frames"])])
        row[name] = near.value
    if made["truth"]:
        row["PSNR to truth"] = metrics.mean(made["truth"]).value
    row["contrast"] = float(np.mean([frames.std() for frames in made["frames"]]))
    row["clipped"] = float(np.mean([((f == 0) | (f == 255)).mean() for f in made["frames"]]))
    return {**row, "seconds": made["seconds"]}


def scored(made: dict[str, Any], exact: dict[str, Any]) -> dict[str, Any]:
    """The score of one way, and what it loses against another, clip by clip."""
    lost = metrics.mean([before - now for before, now in zip(exact["scores"], made["scores"])])
    told = f"{lost.value:.1f} ({lost.low:.1f} … {lost.high:.1f})"
    return {"score": metrics.mean(made["scores"]).value, "points lost": None if made is exact else told}


def solvers(study: Study, names: Sequence[str], steps: Sequence[int], long: int) -> list[dict[str, Any]]:
    """Every solver at every step count, against DDIM at 50 steps and at ``long``."""
    end = study.make(f"ddim {long}", scheduler="ddim", num_inference_steps=long)
    name, count = REFERENCE
    reference = study.make(f"{name} {count}", scheduler=name, num_inference_steps=count)
    rows = [{"solver": "ddim", "steps": long, **compared(end)}]
    for name in names:
        for count in steps:
            same = (name, count) == REFERENCE
            way = {"scheduler": name, "num_inference_steps": count}
            made = reference if same else study.make(f"{name} {count}", **way)
            references = {"PSNR to long run": end} | ({} if same else {"PSNR to DDIM 50": reference})
            rows.append({"solver": name, "steps": count, **compared(made, **references)})
    return rows


def speeds(study: Study, steps: int | None, long: int) -> list[dict[str, Any]]:
    """Every value of the option ``speed``, each with its share of ``steps`` (default: of the model's)."""
    ends = {}
    if long:
        ends["PSNR to long run"] = study.make(f"ddim {long}", scheduler="ddim", num_inference_steps=long)
    rows: list[dict[str, Any]] = []
    for name, speed in SPEEDS.items():
        count = None if steps is None else max(round(speed.steps * steps), 1)
        made = study.make(name, speed=name, num_inference_steps=count)
        if not rows:
            exact = made
        row = {"speed": name, **scored(made, exact)}
        if rows:
            row["PSNR to exact"] = compared(made, exact=exact)["exact"]
            row["times as fast"] = exact["seconds"] / made["seconds"]
        rows.append({**row, **compared(made, **ends)})
    return rows


def precisions(study: Study, steps: int | None, dtypes: Sequence[str]) -> list[dict[str, Any]]:
    """Smaller numbers against fp32, with the model's own solver; ``int8`` weights compute in fp32."""
    exact = study.make("fp32", "fp32", num_inference_steps=steps)
    rows = [{"dtype": "fp32", **scored(exact, exact), **compared(exact)}]
    for dtype in dtypes:
        made = study.make(dtype, dtype, num_inference_steps=steps)
        near = compared(made, **{"PSNR to fp32": exact})
        rows.append({"dtype": dtype, **scored(made, exact), **near})
    return rows


def rescales(study: Study, steps: int | None) -> list[dict[str, Any]]:
    """Guidance rescale at the model's own guidance scale."""
    return [
        {
            "guidance rescale": value,
            **compared(study.make(f"rescale {value}", guidance_rescale=value, num_inference_steps=steps)),
        }
        for value in RESCALES
    ]


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""
    heads = list(dict.fromkeys(key for row in rows for key in row if key not in ("low", "high")))
    lines = [heads]
    for row in rows:
        lines.append([cell(head, row) for head in heads])
    return markdown_table(lines)


def cell(head: str, row: dict[str, Any]) -> str:
    value = row.get(head)
    if value is None:
        return "–"
    if head == "right":
        return f"{100 * value:.0f}% ({100 * row['low']:.0f} … {100 * row['high']:.0f})"
    if head == "clipped":
        return f"{100 * value:.2f}%"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """PSNR to the long run and what is right, over steps, a line for each solver."""
    need("matplotlib").use("Agg", force=False)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    near, right = figure.subplots(1, 2)
    for name in dict.fromkeys(row["solver"] for row in rows):
        own = [row for row in rows if row["solver"] == name and "PSNR to long run" in row]
        steps = [row["steps"] for row in own]
        near.plot(steps, [row["PSNR to long run"] for row in own], "o-", label=name, ms=4)
        right.plot(steps, [100 * row["right"] for row in own], "o-", label=name, ms=4)
    near.set(xlabel="steps", ylabel="PSNR to the long run, dB")
    right.set(xlabel="steps", ylabel="right, % of the clips", ylim=(-2, 102))
    for axis in (near, right):
        axis.grid(alpha=0.3)
    near.legend(fontsize=8)
    figure.savefig(path, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a directory, a hub id, or an embedded model: " + ", ".join(FAMILIES))
    parser.add_argument("--output", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device")
    parser.add_argument("--solvers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--long", type=int, default=200, help="steps of the long run; 0: speeds without it")
    parser.add_argument("--own-steps", type=int, help="steps of the other parts (default: the model's)")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=["bf16", "fp16", "int8"],
        default=["bf16", "fp16", "int8"],
        help="fp16 is very slow on most CPUs: leave it out there; int8 needs the extra quantization",
    )
    known = ["solvers", "speeds", "precisions", "rescales"]
    parser.add_argument("--parts", nargs="+", choices=known, default=known)
    args = parser.parse_args()
    if "solvers" in args.parts and args.long < 1:
        parser.error("The part solvers compares with a long run: --long should be 1 or more.")
    args.output.mkdir(parents=True, exist_ok=True)
    model = model_directory(args.model) if args.model in FAMILIES else fetch(args.model)
    study = Study(model, args.clips, args.seed, args.batch_size, args.device)
    parts = {
        "solvers": lambda: solvers(study, args.solvers, args.steps, args.long),
        "speeds": lambda: speeds(study, args.own_steps, args.long),
        "precisions": lambda: precisions(study, args.own_steps, args.dtypes),
        "rescales": lambda: rescales(study, args.own_steps),
    }
    result: dict[str, Any] = {"model": args.model, "clips": args.clips, "seed": args.seed}
    lines = [f"# {args.model}, {args.clips} clips"]
    for name in args.parts:
        result[name] = parts[name]()
        lines += ["", f"## {name}", "", *table(result[name])]
        # After each part: the whole takes hours on a CPU.
        (args.output / "quality.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (args.output / "quality.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if name == "solvers":
            plot(result[name], args.output / "quality.png")
    study.bar.close()
    print("\n".join(lines))


if __name__ == "__main__":
    main()
