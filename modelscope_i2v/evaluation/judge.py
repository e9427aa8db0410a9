"""Whether a clip shows what was asked for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ..data.synthetic import Scene
from .tracking import Seen, look

_NAMED = 3
"""Shapes that are put into words; there are more only where a model failed."""


@dataclass(frozen=True)
class Verdict:
    """What is right about a clip. With two shapes, each is right only if both are.

    Attributes:
        colour, kind, motion: of the shapes; the camera's motion counts as theirs.
        seen: what the detector says, in words.
    """

    colour: bool
    kind: bool
    motion: bool
    seen: str

    @property
    def all(self) -> bool:
        """Whether all three are right."""
        return self.colour and self.kind and self.motion


def judge(frames: np.ndarray, scene: Scene) -> Verdict:
    """Compares what the detector finds in frames uint8 [f, height, width, 3] with a scene.

    A shape too many makes all three wrong, as one that is missing does.
    """
    return compare(look(frames), scene)


def compare(seen: Seen, scene: Scene) -> Verdict:
    """As :func:`judge`, of a clip that was looked at already."""
    wanted = [shape.combination for shape in scene.shapes]
    shown = [(track.colour, track.kind, motion) for track, motion in zip(seen.shapes, seen.motions)]
    if len(shown) != len(wanted):
        return Verdict(False, False, False, words(seen))
    camera = seen.camera == scene.camera
    best = max(
        (
            tuple(all(a[part] == b[part] for a, b in zip(wanted, order)) for part in range(3))
            for order in itertools.permutations(shown)
        ),
        key=sum,
    )
    return Verdict(best[0], best[1], best[2] and camera, words(seen))


def words(seen: Seen) -> str:
    """What was seen, as a caption says it; a question mark for what is unknown."""
    shapes = [
        f"{track.colour or '?'} {track.kind or '?'} {motion}"
        for track, motion in zip(seen.shapes, seen.motions)
    ]
    if len(shapes) > _NAMED:
        shapes[_NAMED:] = [f"{len(shapes) - _NAMED} more"]
    text = " and ".join(shapes) or "nothing"
    return text if seen.camera == "stays" else f"{text}, camera {seen.camera}"
