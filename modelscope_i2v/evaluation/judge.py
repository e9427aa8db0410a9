"""Compares a clip with the scene that was asked for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ..data.synthetic import Scene
from .tracking import Seen, look

_NAMED = 3
"""Most shapes that a description names; there are more only if a model failed."""


@dataclass(frozen=True)
class Verdict:
    """The properties of a clip that are right. With two shapes, a property is right if it is for both.

    Attributes:
        colour, kind, motion: of the shapes; the camera's motion counts as theirs.
        seen: description of what the detector found.
    """

    colour: bool
    kind: bool
    motion: bool
    seen: str

    @property
    def all(self) -> bool:
        """True if colour, kind and motion are right."""
        return self.colour and self.kind and self.motion


def judge(frames: np.ndarray, scene: Scene) -> Verdict:
    """Compares the shapes and motions found in frames uint8 [f, height, width, 3] with a scene.

    With a shape too many or too few, everything is wrong.
    """
    return compare(look(frames), scene)


def compare(seen: Seen, scene: Scene) -> Verdict:
    """Compares the detector's result for a clip with a scene; see :func:`judge`."""
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
    """A description like a caption's, with a question mark for an unknown colour or kind."""
    shapes = [
        f"{track.colour or '?'} {track.kind or '?'} {motion}"
        for track, motion in zip(seen.shapes, seen.motions)
    ]
    if len(shapes) > _NAMED:
        shapes[_NAMED:] = [f"{len(shapes) - _NAMED} more"]
    text = " and ".join(shapes) or "nothing"
    return text if seen.camera == "stays" else f"{text}, camera {seen.camera}"
