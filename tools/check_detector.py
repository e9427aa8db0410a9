"""How often the detector of ``modelscope-i2v evaluate`` is right about true clips, also about spoilt ones.

``python -m tools.check_detector --clips 800 --model MODEL`` prints a table: clips as drawn, blurred (by a
standard deviation of 1 pixel) with noise, and after the autoencoder of MODEL (a model directory, or the name
of an embedded model).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from modelscope_i2v.data import synthetic
from modelscope_i2v.embedded import model_directory
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.evaluation import judge, metrics
from modelscope_i2v.evaluation.generate import reconstructed
from modelscope_i2v.evaluation.report import aligned
from modelscope_i2v.spec.families import FAMILIES

STREAM = 90_210
Spoil = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def blurred(frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.0) for frame in frames])
    return (soft + generator.normal(0, 6, soft.shape) + 0.5).clip(0, 255).astype(np.uint8)


def decoded(model: Path) -> Spoil:
    generator = VideoGenerator.from_directory(model, device="cpu", progress=False)
    options = generator.resolve({}, {"progress": False})[1]
    return lambda frames, _: reconstructed(generator, frames, options)


def rows(name: str, spoil: Spoil, clips: int) -> list[tuple[str, ...]]:
    found: dict[str, list[tuple[bool, ...]]] = {}
    for number in tqdm(range(clips), desc=name, dynamic_ncols=True):
        generator = np.random.default_rng([STREAM, number])
        scene = synthetic.draw(generator, held_out=number % 2 == 1)
        verdict = judge(spoil(synthetic.render(scene).frames, generator), scene)
        group = "two shapes" if len(scene.shapes) == 2 else "one shape"
        group = group if scene.camera == synthetic.STILL else "moving camera"
        right = (verdict.colour, verdict.kind, verdict.motion, verdict.all)
        for key in (group, "all"):
            found.setdefault(key, []).append(right)
        if not verdict.all:
            tqdm.write(f"{name} {number}: {scene.caption}; seen: {verdict.seen}")
    table = []
    for group in sorted(found):
        shares = [metrics.share(column) for column in zip(*found[group])]
        cells = [f"{100 * one.value:.2f}%" for one in shares]
        interval = f"{100 * shares[3].low:.2f} … {100 * shares[3].high:.2f}"
        table.append((name, group, str(len(found[group])), *cells, interval))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=800)
    parser.add_argument("--model", help="whose autoencoder: a directory, or one of " + ", ".join(FAMILIES))
    args = parser.parse_args()
    ways: dict[str, Spoil] = {"as drawn": lambda frames, _: frames, "blurred, noisy": blurred}
    if args.model:
        ways["autoencoder"] = decoded(
            model_directory(args.model) if args.model in FAMILIES else Path(args.model)
        )
    table = [("clips", "group", "n", "colour", "shape", "motion", "all three", "95% interval")]
    for name, spoil in ways.items():
        table += rows(name, spoil, args.clips)
    print(aligned(table))


if __name__ == "__main__":
    main()
