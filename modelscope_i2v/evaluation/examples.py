"""The scenes of an evaluation: held out from training, and the same for every model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import synthetic
from ..data.degrade import degrade
from ..data.synthetic import Clip, Scene
from ..spec.families import Family

TRAINED, HELD_OUT, TWO, CAMERA = (
    "trained combinations",
    "held-out combinations",
    "two shapes",
    "moving camera",
)
GROUPS = (TRAINED, HELD_OUT, TWO, CAMERA)
_SHARES = {TRAINED: 0.25, HELD_OUT: 0.5, TWO: 0.125, CAMERA: 0.125}
_STREAM = 4_210_621
"""Keeps the scenes of an evaluation apart from those that training draws from the same seed."""


@dataclass(frozen=True)
class Example:
    """A scene, with the seed for the model's noise."""

    number: int
    group: str
    scene: Scene
    seed: int
    """Seed of the model's noise."""

    def render(self, frames: int, height: int, width: int) -> Clip:
        """The ground truth: the clip that the model should make."""
        return synthetic.render(self.scene, frames, height, width)

    def degraded(self, frames: np.ndarray) -> np.ndarray:
        """The input of a video-to-video model for that clip."""
        return degrade(frames, np.random.default_rng([_STREAM, self.seed, self.number]))

    def inputs(self, family: Family, frames: np.ndarray) -> dict[str, Any]:
        """The model's inputs, made from the ground truth, uint8 [f, h, w, 3]."""
        from PIL import Image

        given: dict[str, Any] = {}
        if family.takes_video:
            given["frames"] = self.degraded(frames)
        elif family.reads_image:
            given["image"] = Image.fromarray(frames[0])
        if family.reads_text:
            given["text"] = self.scene.caption
        return given


def examples(count: int, seed: int) -> list[Example]:
    """Examples of all groups: half held-out combinations, a quarter trained ones, an eighth of each other.

    In a group all colours are equally frequent, and no combination of a colour is repeated before all have
    been used. Another ``count`` gives other examples.
    """
    generator = np.random.default_rng([_STREAM, seed])
    wanted = {group: int(round(count * part)) for group, part in _SHARES.items()}
    wanted[HELD_OUT] = count - sum(n for group, n in wanted.items() if group != HELD_OUT)
    made = []
    for group, number in wanted.items():
        every = [c for c in synthetic.combinations() if synthetic.is_held_out(c) == (group == HELD_OUT)]
        if group == TWO:
            every = [c for c in every if c[2] in synthetic.MOVES]
        turns = _rounds(every, generator)
        for _ in range(number):
            scene = synthetic.draw(
                generator,
                held_out=group == HELD_OUT,
                shapes=2 if group == TWO else 1,
                camera=group == CAMERA,
                combination=next(turns),
            )
            made.append((group, scene))
    seeds = generator.integers(2**31, size=len(made))
    return [Example(i, *one, int(noise)) for i, (one, noise) in enumerate(zip(made, seeds))]


def _rounds(
    every: list[tuple[str, str, str]], generator: np.random.Generator
) -> Iterator[tuple[str, str, str]]:
    """The colours in turn, in an order that is random every round; of each colour its next combination."""
    colours = sorted({colour for colour, *_ in every})
    own = {c: [one for one in every if one[0] == c] for c in colours}
    orders = {c: _endless(len(own[c]), generator) for c in colours}
    for index in _endless(len(colours), generator):
        yield own[colours[index]][next(orders[colours[index]])]


def _endless(count: int, generator: np.random.Generator) -> Iterator[int]:
    """Every number below ``count`` once, in a random order; then again, in another."""
    while True:
        yield from generator.permutation(count)
