"""The motions of the shapes that were found, and of the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.synthetic import MOVES, STILL
from .detector import SYMMETRY, Track, find
from .extras import need

UNCLEAR = "unclear"
"""The motion of a shape with several motions at once, or with an incomplete one."""

# Where a motion counts as seen: about half of the least that the generator draws.
_MOVED = 0.09
"""Distance from the first frame to the last, as a share of the picture's shorter side."""
_ACROSS = 0.5
"""Largest sideways motion, as a share of the distance."""
_BOUNCED = 0.12
"""Height of a bounce, of the picture's shorter side."""
_LIKE_BOUNCE = 0.75
"""Correlation of the height with that of a ball that bounces twice."""
_GREW = 0.25
"""Change of the radius' logarithm."""
_TURNED = 0.9
"""Radians, clockwise."""
_WITH_SHAPE = 0.7
"""The ground goes with the shape if that leaves less than this part of the difference between frames."""
_CHANGED = 1.0
"""Mean squared change of the ground, in levels², below which it stands: stripes along the way show none."""


@dataclass(frozen=True)
class Seen:
    """Shapes and motions found in a clip.

    Attributes:
        shapes: their tracks, the largest first.
        motions: the motion of each: one of the generator's, "stays" or "unclear".
        camera: the camera's motion, or "stays". With a moving camera, motions are relative to the ground.
    """

    shapes: tuple[Track, ...]
    motions: tuple[str, ...]
    camera: str


def look(frames: np.ndarray) -> Seen:
    """Finds shapes and motions in frames uint8 [f, height, width, 3]. Raises InputError as :func:`find`."""
    tracks = find(frames)
    motions = [motion(track, min(frames.shape[1:3])) for track in tracks]
    camera = _camera(frames, tracks[0], motions[0]) if len(tracks) == 1 else STILL
    return Seen(tuple(tracks), (STILL,) if camera != STILL else tuple(motions), camera)


def motion(track: Track, side: int) -> str:
    """The motion of a shape in the picture.

    Args:
        side: the picture's shorter side in pixels.
    """
    seen = track.seen
    if seen.sum() < 3:
        return UNCLEAR
    time = np.linspace(0, 1, len(seen))[seen]
    x, y = track.centres[seen].T / side
    (dx, _), (dy, _) = np.polyfit(time, x, 1), np.polyfit(time, y, 1)
    growth = _growth(track)
    # Twice up and down: for this, the slope says nothing.
    bounce = np.abs(np.sin(2 * np.pi * time))
    shows = min(y.std(), bounce.std()) > 1e-6  # in three frames a bounce would stand still
    height = np.polyfit(bounce, -y, 1)[0] if shows else 0.0
    like = np.corrcoef(bounce, -y)[0, 1] if shows else 0.0
    turned = turn(track)
    found = []
    if height >= _BOUNCED and like >= _LIKE_BOUNCE and abs(dx) < _MOVED:
        found.append("bounces")
    elif max(abs(dx), abs(dy)) >= _MOVED:
        found.append(_direction(dx, dy))
    if abs(growth) >= _GREW:
        found.append("grows" if growth > 0 else "shrinks")
    if abs(turned) >= _TURNED:
        found.append("turns" if turned > 0 else UNCLEAR)
    if not found:
        return STILL
    return found[0] if len(found) == 1 else UNCLEAR


def _direction(dx: float, dy: float) -> str:
    large, small = (dx, dy) if abs(dx) >= abs(dy) else (dy, dx)
    if abs(small) > _ACROSS * abs(large):
        return UNCLEAR
    step = (int(np.sign(dx)), 0) if large is dx else (0, int(np.sign(dy)))
    return next(name for name, direction in MOVES.items() if direction == step)


def turn(track: Track) -> float:
    """Rotation of a shape, clockwise, in radians; 0 if its kind is symmetric under every rotation."""
    period = SYMMETRY.get(track.kind or "", 0.0)
    angles = track.angles[np.isfinite(track.angles)]
    if not period or len(angles) < 3:
        return 0.0
    turned = np.unwrap(angles, period=period)
    time = np.linspace(0, 1, len(track.angles))[np.isfinite(track.angles)]
    # The middle of the slopes between frames half a clip apart: a wrong angle here and there does no harm.
    apart = max(len(turned) // 2, 1)
    return float(np.median((turned[apart:] - turned[:-apart]) / (time[apart:] - time[:-apart])))


def _camera(frames: np.ndarray, track: Track, motion: str) -> str:
    """The camera's motion, which is not "stays" if the ground moves with the only shape.

    Then the shape stands still in the world, and it is the camera that goes the other way.
    """
    cameras = {
        "moves right": "pans left",
        "moves left": "pans right",
        "moves down": "pans up",
        "moves up": "pans down",
        "grows": "zooms in",
        "shrinks": "zooms out",
    }
    growth = _growth(track)
    if abs(growth) >= _GREW:  # a shape off the centre also moves, away from it or towards it
        motion = "grows" if growth > 0 else "shrinks"
    if motion not in cameras:
        return STILL
    with_shape, still = _differences(frames, track)
    return cameras[motion] if still >= _CHANGED and with_shape < _WITH_SHAPE * still else STILL


def _growth(track: Track) -> float:
    """Change of the radius' logarithm from the first frame to the last."""
    seen = track.seen
    if seen.sum() < 3:
        return 0.0
    time = np.linspace(0, 1, len(seen))[seen]
    return float(np.polyfit(time, 0.5 * np.log(track.areas[seen]), 1)[0])


def _differences(frames: np.ndarray, track: Track) -> tuple[float, float]:
    """Mean squared change of the ground over a third of a clip, if it went with the shape; if it stood."""
    cv2 = need("cv2")
    height, width = frames.shape[1:3]
    # Smooth, as the ground is: else moving a frame, which smooths it, would lessen the noise by itself.
    grey = [cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (0, 0), 1.5) for frame in frames]
    grey = np.stack(grey).astype(np.float32)
    # The shape, its blurred outline, and its shadow, which is below it and to the right.
    side = min(height, width)
    dark, edge = (np.ones((max(least, side // part),) * 2, np.uint8) for least, part in ((3, 10), (5, 19)))
    anchor = (len(dark) - 2,) * 2
    shapes = (cv2.dilate(mask.astype(np.uint8), edge) for mask in track.masks)
    ground = [cv2.dilate(shape, dark, anchor=anchor) == 0 for shape in shapes]
    seen = track.seen
    time = np.linspace(0, 1, len(frames))
    path = np.array([np.polyval(np.polyfit(time[seen], line[seen], 2), time) for line in track.centres.T])
    size = np.exp(np.polyval(np.polyfit(time[seen], 0.5 * np.log(track.areas[seen]), 1), time))
    step = max(len(frames) // 3, 1)
    went, stood, count = 0.0, 0.0, 0
    everywhere = np.ones((height, width), np.float32)
    for first, last in zip(range(len(frames) - step), range(step, len(frames))):
        scale = size[last] / size[first]
        shift = path[:, last] - 0.5 - scale * (path[:, first] - 0.5)
        way = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        moved = cv2.warpAffine(grey[first], way, (width, height), flags=cv2.INTER_LINEAR)
        known = (
            cv2.warpAffine(everywhere * ground[first], way, (width, height), flags=cv2.INTER_LINEAR) > 0.99
        )
        where = known & ground[last] & ground[first]
        went += float(np.square(moved - grey[last])[where].sum())
        stood += float(np.square(grey[first] - grey[last])[where].sum())
        count += int(where.sum())
    return went / max(count, 1), stood / max(count, 1)
