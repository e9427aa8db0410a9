"""Synthetic clips: shaded shapes on textured backgrounds, with their ground truth.

A :class:`Scene` is a description in units of the picture's shorter side, :func:`draw` makes one from a random
generator, :func:`render` renders it at any size and number of frames. Every colour, kind and motion is in the
training data, but not every combination: :func:`is_held_out` is True for those that are left out.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (226, 36, 40),
    "orange": (246, 140, 24),
    "yellow": (244, 222, 40),
    "green": (34, 176, 60),
    "cyan": (40, 208, 214),
    "blue": (40, 78, 232),
    "purple": (156, 48, 214),
    "white": (245, 245, 245),
}
"""Every colour's name and its sRGB values in full light."""

KINDS = ("circle", "square", "triangle", "star")

MOVES = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
"""Motions along a line and their direction, x to the right and y down."""

MOTIONS = (*MOVES, "bounces", "turns", "grows", "shrinks")
"""Motions of a shape while the camera stands still; "turns" is clockwise."""

CAMERAS = {
    "pans left": (-1, 0),
    "pans right": (1, 0),
    "pans up": (0, -1),
    "pans down": (0, 1),
    "zooms in": (0, 0),
    "zooms out": (0, 0),
}
"""Motions of the camera and their direction; the picture moves the other way."""

REVERSED = {
    "moves left": "moves right",
    "moves up": "moves down",
    "bounces": "bounces",
    "grows": "shrinks",
    "pans left": "pans right",
    "pans up": "pans down",
    "zooms in": "zooms out",
    "stays": "stays",
}
REVERSED |= {value: key for key, value in REVERSED.items()}
"""The motion in a clip that is played backwards; "turns" has none, as no caption names anticlockwise."""

STILL = "stays"
TURN = np.pi * 0.6
"""Rotation of a turning shape over a clip, in radians."""
GROWTH = 1.8
ZOOM = 1.6
_PAN = 0.3


@dataclass(frozen=True)
class Shape:
    """One shape and what it does; lengths in shorter sides of the picture, angles in radians, clockwise."""

    colour: str
    kind: str
    motion: str
    x: float
    """Centre at the start."""
    y: float
    radius: float
    angle: float = 0.0
    travel: float = 0.0
    """Distance of the motion, or height of a bounce."""

    @property
    def combination(self) -> tuple[str, str, str]:
        return self.colour, self.kind, self.motion

    @property
    def caption(self) -> str:
        name = f"a {self.colour} {self.kind}".replace("a orange", "an orange")
        return name if self.motion == STILL else f"{name} {self.motion}"

    def at(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Centre x and y, radius and angle at times 0 … 1, each of the shape of ``time``."""
        dx, dy = MOVES.get(self.motion, (0, 0))
        x = self.x + dx * self.travel * time
        y = self.y + dy * self.travel * time
        if self.motion == "bounces":
            y = y - self.travel * np.abs(np.sin(2 * np.pi * time))
        growth = {"grows": GROWTH**time, "shrinks": GROWTH**-time}.get(self.motion, np.ones_like(time))
        turned = TURN * time if self.motion == "turns" else np.zeros_like(time)
        return x, y, self.radius * growth, self.angle + turned


@dataclass(frozen=True)
class Background:
    """A muted, softly textured ground: two colours (sRGB 0 … 1) mixed by ``waves``.

    Each wave is (frequency x, frequency y, phase), in radians per shorter side of the picture.
    """

    dark: tuple[float, float, float]
    light: tuple[float, float, float]
    waves: tuple[tuple[float, float, float], ...]

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Colours [..., 3] at world coordinates of any shape [...]."""
        height = sum(np.sin(fx * x + fy * y + phase) for fx, fy, phase in self.waves)
        mix = 0.5 + 0.5 * np.tanh(1.2 * height / len(self.waves) ** 0.5)
        return np.asarray(self.dark) + mix[..., None] * (np.asarray(self.light) - np.asarray(self.dark))


@dataclass(frozen=True)
class Scene:
    """One or two shapes, a background and what the camera does (:data:`CAMERAS` or "stays")."""

    shapes: tuple[Shape, ...]
    background: Background
    camera: str = STILL

    @property
    def caption(self) -> str:
        """The caption, such as "a red circle moves left and a blue star moves up"."""
        text = " and ".join(shape.caption for shape in self.shapes)
        return text if self.camera == STILL else f"{text}, the camera {self.camera}"

    def view(self, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The camera's centre x and y and its zoom at times 0 … 1."""
        dx, dy = CAMERAS.get(self.camera, (0, 0))
        zoom = {"zooms in": ZOOM**time, "zooms out": ZOOM ** (1 - time)}.get(self.camera, np.ones_like(time))
        return 0.5 + _PAN * dx * (time - 0.5), 0.5 + _PAN * dy * (time - 0.5), zoom

    def reversed(self) -> Scene | None:
        """The scene whose clip is this one's, backwards; None where no caption could name it."""
        if self.camera not in REVERSED or any(shape.motion not in REVERSED for shape in self.shapes):
            return None
        end = np.ones(())
        shapes = []
        for shape in self.shapes:
            x, y, radius, angle = map(float, shape.at(end))
            motion = REVERSED[shape.motion]
            shapes.append(dataclasses.replace(shape, motion=motion, x=x, y=y, radius=radius, angle=angle))
        return dataclasses.replace(self, shapes=tuple(shapes), camera=REVERSED[self.camera])


@dataclass(frozen=True)
class Clip:
    """A rendered scene and its truth.

    Attributes:
        frames: uint8 [f, height, width, 3].
        centres: of each shape in each frame, in pixels (x, y), float32 [shapes, f, 2].
        radii: in pixels, float32 [shapes, f].
        angles: in radians, clockwise, float32 [shapes, f].
        masks: the pixels where a shape is what is seen, bool [shapes, f, height, width].
    """

    scene: Scene
    frames: np.ndarray
    centres: np.ndarray
    radii: np.ndarray
    angles: np.ndarray
    masks: np.ndarray


def combinations() -> list[tuple[str, str, str]]:
    """All colours × kinds × motions, except a turning circle, which looks still."""
    every = itertools.product(COLOURS, KINDS, MOTIONS)
    return [(c, k, m) for c, k, m in every if (k, m) != ("circle", "turns")]


def is_held_out(combination: tuple[str, str, str]) -> bool:
    """True if the combination, and its reverse in time, are left out of training: about one in eight.

    They spread evenly over colours, kinds and motions.
    """
    colour, kind, motion = combination
    if motion == STILL:
        return False
    axes = ("moves left", "moves up", "bounces", "turns", "grows")
    axis = motion if motion in axes else REVERSED[motion]
    return (list(COLOURS).index(colour) + 2 * KINDS.index(kind) + 3 * axes.index(axis)) % 8 == 0


def draw(
    generator: np.random.Generator,
    held_out: bool = False,
    shapes: int | None = None,
    camera: bool | None = None,
    combination: tuple[str, str, str] | None = None,
) -> Scene:
    """A random scene.

    Args:
        held_out: choose among the combinations that training never shows, instead of the others.
        shapes: 1 or 2; by default two in one of four scenes.
        camera: whether the camera moves; by default in one of five scenes with one shape. Shapes then
            stand still in the world.
        combination: colour, kind and motion of the (first) shape.

    Raises:
        ValueError: no scene has these properties.
    """
    if shapes not in (None, 1, 2):
        raise ValueError(f"shapes={shapes}: a scene has 1 or 2.")
    if shapes == 2 and camera:
        raise ValueError("The camera moves only in scenes of one shape.")
    both = shapes == 2 or (
        shapes is None and not camera and combination is None and generator.random() < 0.25
    )
    moves = camera if camera is not None else not both and combination is None and generator.random() < 0.2
    background = _background(generator)
    if moves:
        choices = sorted({(c, k) for c, k, _ in combinations()})
        colour, kind = choices[generator.integers(len(choices))] if combination is None else combination[:2]
        x, y = generator.uniform(0.38, 0.62, 2)
        radius, angle = generator.uniform(0.12, 0.17), _tilt(generator)
        shape = Shape(colour, kind, STILL, x, y, radius, angle)
        return Scene((shape,), background, str(generator.choice(list(CAMERAS))))
    if not both:
        return Scene((_one(generator, combination or _combination(generator, held_out)),), background)
    first = combination or _combination(generator, held_out, tuple(MOVES))
    second = _combination(generator, held_out, tuple(MOVES))
    while second[0] == first[0]:  # two of one colour could not be told apart
        second = _combination(generator, held_out, tuple(MOVES))
    across = generator.random() < 0.5
    low, high = (0.27, 0.73) if generator.random() < 0.5 else (0.73, 0.27)
    pair = [_in_band(generator, c, level, across) for c, level in ((first, low), (second, high))]
    return Scene(tuple(pair), background)


def _combination(
    generator: np.random.Generator, held_out: bool, motions: tuple[str, ...] = MOTIONS
) -> tuple[str, str, str]:
    choices = [c for c in combinations() if is_held_out(c) == held_out and c[2] in motions]
    return choices[generator.integers(len(choices))]


def _tilt(generator: np.random.Generator) -> float:
    return float(generator.uniform(-0.2, 0.2))


def _one(generator: np.random.Generator, combination: tuple[str, str, str]) -> Shape:
    """A shape that stays within the picture during the whole clip."""
    motion = combination[2]
    radius = generator.uniform(0.14, 0.20)
    travel = generator.uniform(0.3, 0.45)
    if motion == "grows":
        radius = generator.uniform(0.11, 0.15)
    if motion == "shrinks":
        radius = generator.uniform(0.11, 0.15) * GROWTH
    largest = radius * GROWTH if motion == "grows" else radius
    margin = largest + 0.03
    low, high = np.array([margin, margin]), np.array([1 - margin, 1 - margin])
    dx, dy = MOVES.get(motion, (0, -1) if motion == "bounces" else (0, 0))
    low = low + travel * np.array([dx < 0, dy < 0])
    high = high - travel * np.array([dx > 0, dy > 0])
    x, y = generator.uniform(np.minimum(low, high), np.maximum(low, high))
    return Shape(*combination, x, y, radius, _tilt(generator), travel)


def _in_band(
    generator: np.random.Generator, combination: tuple[str, str, str], level: float, across: bool
) -> Shape:
    """One of two shapes, in its own half: above or below the other, or (``across``) left or right of it."""
    dx, dy = MOVES[combination[2]]
    radius = generator.uniform(0.11, 0.14)
    along = bool(dx) != across  # the motion is along the band, which is longer
    travel = generator.uniform(0.3, 0.45) if along else generator.uniform(0.15, 0.19)
    start = generator.uniform(radius + 0.03, 1 - radius - 0.03 - travel)
    free = start if (dx + dy) > 0 else 1 - start
    middle = level - 0.5 * travel * (dx + dy)
    position = (free, level) if along else (generator.uniform(radius + 0.03, 0.97 - radius), middle)
    x, y = position[::-1] if across else position
    return Shape(*combination, x, y, radius, _tilt(generator), travel)


def _background(generator: np.random.Generator) -> Background:
    tint = generator.uniform(-1, 1, 3)
    tint = tint / np.abs(tint).max()
    dark, light = generator.uniform(0.20, 0.30), generator.uniform(0.36, 0.48)
    style = generator.integers(3)
    if style == 0:  # hills
        directions, frequencies = generator.uniform(0, 2 * np.pi, 4), generator.uniform(5, 14, 4)
    elif style == 1:  # stripes
        directions, frequencies = np.full(1, generator.uniform(0, np.pi)), generator.uniform(12, 20, 1)
    else:  # checks
        turn = generator.uniform(0, np.pi)
        directions, frequencies = np.array([turn, turn + np.pi / 2]), np.full(2, generator.uniform(11, 17))
    phases = generator.uniform(0, 2 * np.pi, len(directions))
    waves = tuple(
        (float(f * np.cos(d)), float(f * np.sin(d)), float(p))
        for f, d, p in zip(frequencies, directions, phases)
    )
    return Background(tuple(dark * (1 + 0.2 * tint)), tuple(light * (1 + 0.2 * tint)), waves)


def silhouette(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a shape of radius 1 (about; exact sides), negative inside."""
    if kind == "circle":
        return np.hypot(x, y) - 0.95
    if kind == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.82
    if kind == "triangle":
        return np.maximum(np.abs(x) * np.cos(np.pi / 6) - y * 0.5, y) - 0.55
    angle = np.mod(np.arctan2(x, -y) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5
    radius = np.hypot(x, y)
    px, py = radius * np.cos(angle), radius * np.abs(np.sin(angle))
    inner = 0.5 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    edge = inner - np.array([1.1, 0.0])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (px - 1.1) * normal[0] + py * normal[1]


def render(scene: Scene, frames: int = 16, height: int = 96, width: int = 96) -> Clip:
    """The scene's clip.

    The shorter side spans the part of the world that scenes are drawn in; the longer shows more of it.
    """
    time = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    eye_x, eye_y, zoom = scene.view(time)
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    side = min(height, width)
    x = _each(eye_x) + (columns - width / 2) / side / _each(zoom)  # world coordinates [f, height, width]
    y = _each(eye_y) + (rows - height / 2) / side / _each(zoom)
    ground = scene.background(x, y) if scene.camera != STILL else scene.background(x[:1], y[:1])
    picture = np.array(np.broadcast_to(ground, (*x.shape, 3)), dtype=np.float32)

    centres, radii, angles, masks = [], [], [], []
    for shape in scene.shapes:
        cx, cy, radius, angle = shape.at(time)
        scale = zoom * side
        centres.append(
            np.stack([(cx - eye_x) * scale + width / 2, (cy - eye_y) * scale + height / 2], axis=-1)
        )
        radii.append(radius * scale)
        angles.append(angle)
        alpha, shade, shadow = _cover(shape.kind, x, y, *map(_each, (cx, cy, radius, angle, 1 / scale)))
        colour = np.asarray(COLOURS[shape.colour], dtype=np.float32) / 255
        picture *= 1 - 0.4 * shadow[..., None]
        picture += alpha[..., None] * (colour * shade[..., None] - picture)
        masks = [mask & (alpha < 0.5) for mask in masks] + [alpha >= 0.5]
    truth = (np.stack(values).astype(np.float32) for values in (centres, radii, angles))
    return Clip(scene, (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8), *truth, np.stack(masks))


def _each(values: np.ndarray) -> np.ndarray:
    """One value a frame [f], as [f, 1, 1]."""
    return values[:, None, None]


def _cover(kind, x, y, cx, cy, radius, angle, pixel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage of each pixel by a shape, the shape's lightness there, and its soft shadow; each [f, h, w]."""
    dx, dy = (x - cx) / radius, (y - cy) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    distance = silhouette(kind, cos * dx + sin * dy, cos * dy - sin * dx)
    alpha = (0.5 - distance * radius / pixel).clip(0, 1)
    shade = (0.86 - 0.16 * (dx + dy)).clip(0.62, 1.0)  # the light comes from above, left
    sx, sy = dx - 0.22, dy - 0.28
    shadow = (0.5 - 2.2 * silhouette(kind, cos * sx + sin * sy, cos * sy - sin * sx)).clip(0, 1)
    return alpha.astype(np.float32), shade.astype(np.float32), shadow.astype(np.float32)
