"""Finds the drawn shapes in a clip, from its pixels alone.

The detector knows the generator's palette and silhouettes (:mod:`modelscope_i2v.data.synthetic`) and
nothing about the clip: neither its caption nor the number of its shapes. A shape that looks like none of the
colours or kinds has None for it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ..data.synthetic import COLOURS, KINDS, silhouette
from ..errors import InputError
from .extras import need

SYMMETRY = {"circle": 0.0, "square": np.pi / 2, "triangle": 2 * np.pi / 3, "star": 2 * np.pi / 5}
"""The turn, in radians, after which a kind looks the same; every turn of a circle does."""

_PALETTE = np.array(list(COLOURS.values()), np.float32) / 255
_WHITE = list(COLOURS).index("white")

_CHROMA = 0.27
"""Largest minus smallest channel from which a pixel is coloured: backgrounds stay below 0.2."""
_BRIGHT = 0.64
"""Smallest channel from which a pixel is white: backgrounds stay below 0.58."""
_SMALLEST = 0.006
"""Area of the smallest shape, as a share of the picture; smaller regions are taken for noise."""
_MOST = 6
"""Shapes in a frame that are looked at, the largest; only a model that failed shows more."""
_SECOND = 0.25
"""Share of a patch from which a second colour in it is another shape."""
_OF_ONE_COLOUR = 0.6
"""Share of a shape's pixels that its colour must have."""
_OF_ONE_KIND = 0.8
"""Overlap of a shape with its kind's silhouette, over their union, that it must reach on average."""
_STEP, _USUAL_FRAMES = 0.2, 16
"""Largest motion from frame to frame, as a share of the shorter side, in a clip of so many frames."""
_PRESENT = 0.6
"""Share of the frames that a shape must be seen in."""
_LIGHT = 0.86
"""Lightness at a shape's centre; see ``synthetic._cover``."""

_SOFT = 0.17
"""Blur of the softened silhouettes, in radii: a small autoencoder rounds corners and tips."""

_GRID, _REACH, _ANGLES = 36, 1.7, 24


@dataclass(frozen=True)
class Track:
    """One shape through the clip; a frame in which it was not seen has NaN.

    Attributes:
        colour, kind: None if it has none of the known ones.
        centres: in pixels (x, y), float64 [f, 2].
        radii: in pixels, as ``synthetic.Shape`` counts them, float64 [f].
        angles: in radians, clockwise, modulo the kind's symmetry, float64 [f].
        areas: in pixels, float64 [f].
        masks: bool [f, height, width].
        overlap: mean overlap with the silhouette of its kind, 0 … 1.
    """

    colour: str | None
    kind: str | None
    centres: np.ndarray
    radii: np.ndarray
    angles: np.ndarray
    areas: np.ndarray
    masks: np.ndarray
    overlap: float

    @property
    def seen(self) -> np.ndarray:
        """Frames in which the shape was found, bool [f]."""
        return np.isfinite(self.areas)


@dataclass
class _Patch:
    """A region of one frame that may be a shape."""

    mask: np.ndarray
    votes: np.ndarray
    """Pixels of each colour [colours]."""
    area: float
    centre: np.ndarray


def find(frames: np.ndarray) -> list[Track]:
    """The shapes in a clip, the largest first; those found in few frames are left out.

    Args:
        frames: uint8 [f, height, width, 3] RGB, f at least 1.

    Raises:
        InputError: for an array of another shape or type, or without OpenCV.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise InputError(
            f"frames are {frames.dtype} {list(frames.shape)}; uint8 [frames, height, width, 3] were expected."
        )
    linked = _link([_patches(frame.astype(np.float32) / 255) for frame in frames], min(frames.shape[1:3]))
    tracks = [_track(patches, frames.shape[:3]) for patches in linked]
    return sorted(tracks, key=lambda track: -np.nanmean(track.areas))


def _nearest(pixels: np.ndarray) -> np.ndarray:
    """The palette's nearest colour to each of pixels [..., 3] in 0 … 1, in whatever light: [...]."""
    light = (pixels @ _PALETTE.T / (_PALETTE**2).sum(1)).clip(0.5, 1.15)
    return np.square(pixels[..., None, :] - light[..., None] * _PALETTE).sum(-1).argmin(-1)


def _patches(frame: np.ndarray) -> list[_Patch]:
    cv2 = need("cv2")
    height, width = frame.shape[:2]
    smallest = _SMALLEST * height * width
    red, green, blue = np.moveaxis(frame, 2, 0)  # ten times as quick as reductions over three numbers
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    sure = (high - low >= _CHROMA) | (low >= _BRIGHT)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(sure.astype(np.uint8), connectivity=4)
    others = frame[~sure]
    ground = others.mean(0) if len(others) else np.full(3, 0.3, np.float32)
    brightest = float(np.quantile(others.mean(1), 0.98)) if len(others) else 0.5
    sizes = stats[1:, cv2.CC_STAT_AREA]
    found = []
    for number in 1 + np.argsort(-sizes, kind="stable")[:_MOST]:
        if stats[number, cv2.CC_STAT_AREA] < smallest:
            break
        inside = labels == number
        colours = np.full(inside.shape, -1)
        colours[inside] = _nearest(frame[inside])
        votes = np.bincount(colours[inside], minlength=len(_PALETTE))
        large = np.flatnonzero(votes >= max(_SECOND * votes.sum(), smallest))
        if len(large) < 2:
            found.append(inside)
            continue
        for colour in large:  # two shapes that touch
            kept, parts, sizes, _ = cv2.connectedComponentsWithStats((colours == colour).astype(np.uint8))
            biggest = 1 + int(sizes[1:, cv2.CC_STAT_AREA].argmax())
            if kept > 1 and sizes[biggest, cv2.CC_STAT_AREA] >= smallest:
                found.append(parts == biggest)
    taken = np.logical_or.reduce(found) if found else None
    return [_grown(frame, mask, taken & ~mask, ground, brightest) for mask in found]


def _grown(
    frame: np.ndarray, sure: np.ndarray, taken: np.ndarray, ground: np.ndarray, brightest: float
) -> _Patch:
    """A patch up to its outline, where pixels are as near to the ground's colour as to the shape's.

    The ground's colours are one hue in all lights up to ``brightest``; the shape's get darker to the right
    and downwards. So a white shape's dark side differs from a light ground.
    """
    cv2 = need("cv2")
    reach = max(2, frame.shape[1] // 24)
    rows, columns = np.flatnonzero(sure.any(1)), np.flatnonzero(sure.any(0))
    top, left = max(rows[0] - reach, 0), max(columns[0] - reach, 0)
    box = (slice(top, rows[-1] + reach + 1), slice(left, columns[-1] + reach + 1))
    pixels, sure, taken = frame[box], sure[box], taken[box]
    votes = np.bincount(_nearest(pixels[sure]), minlength=len(_PALETTE))
    near = cv2.dilate(sure.astype(np.uint8), np.ones((2 * reach + 1,) * 2, np.uint8)).astype(bool) & ~taken
    hue = ground / max(float(np.linalg.norm(ground)), 1e-6)
    brightest = brightest / max(float(hue.mean()), 1e-6)
    to_ground = np.linalg.norm(pixels - (pixels @ hue).clip(0, brightest)[..., None] * hue, axis=-1)
    core = cv2.erode(sure.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    y, x = np.mgrid[: sure.shape[0], : sure.shape[1]]
    mask = sure
    for _ in range(2):
        area = mask.sum()
        radius = np.sqrt(area / 2.2)
        light = (_LIGHT - 0.16 * ((x - x[mask].mean()) + (y - y[mask].mean())) / radius).clip(0.62, 1.0)
        middle = core if core.any() else sure
        colour = np.median(pixels[middle] / light[middle][:, None], axis=0)
        mask = (np.linalg.norm(pixels - light[..., None] * colour, axis=-1) < to_ground) & near
        mask |= middle
    # Specks outside the shape are not part of it, and holes are.
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    mask = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED)
    mask = filled.astype(bool)
    whole = np.zeros(frame.shape[:2], bool)
    whole[box] = mask
    centre = np.array([left + x[mask].mean(), top + y[mask].mean()]) + 0.5
    return _Patch(whole, votes, float(mask.sum()), centre)


def _link(frames: list[list[_Patch]], side: int) -> list[list[_Patch | None]]:
    """Patches of all frames, joined to the nearest of the frame before; those seen often enough."""
    tracks: list[list[_Patch | None]] = []
    reach = _STEP * max(1.0, (_USUAL_FRAMES - 1) / max(len(frames) - 1, 1)) * side
    for number, patches in enumerate(frames):
        pairs = []
        for index, track in enumerate(tracks):
            seen = [patch for patch in track if patch is not None]
            expected = seen[-1].centre
            if len(seen) > 1 and track[-1] is not None and track[-2] is not None:
                expected = 2 * track[-1].centre - track[-2].centre
            for other, patch in enumerate(patches):
                distance = min(
                    np.linalg.norm(patch.centre - expected), np.linalg.norm(patch.centre - seen[-1].centre)
                )
                # Of two that cross, each goes on in its own colour.
                apart = 0 if patch.votes.argmax() == seen[-1].votes.argmax() else 0.1 * side
                if distance < reach:
                    pairs.append((distance + apart, index, other))
        matched: dict[int, int] = {}
        for _, index, other in sorted(pairs):
            if index not in matched and other not in matched.values():
                matched[index] = other
        for index, track in enumerate(tracks):
            track.append(patches[matched[index]] if index in matched else None)
        for other, patch in enumerate(patches):
            if other not in matched.values():
                tracks.append([None] * number + [patch])
    return [track for track in tracks if sum(p is not None for p in track) >= _PRESENT * len(frames)]


def _track(patches: list[_Patch | None], shape: tuple[int, int, int]) -> Track:
    count = len(patches)
    centres, areas = np.full((count, 2), np.nan), np.full(count, np.nan)
    masks = np.zeros(shape, bool)
    seen = [index for index, patch in enumerate(patches) if patch is not None]
    for index in seen:
        patch = patches[index]
        centres[index], areas[index], masks[index] = patch.centre, patch.area, patch.mask
    votes = np.sum([patches[index].votes for index in seen], axis=0)
    overlaps, angles = _overlaps(masks[seen], centres[seen], areas[seen])
    best = int(overlaps.mean(0).argmax())
    overlap = float(overlaps.mean(0)[best])
    turned = np.full(count, np.nan)
    turned[seen] = angles[:, best]
    enough = votes.max() >= _OF_ONE_COLOUR * votes.sum()
    return Track(
        colour=list(COLOURS)[votes.argmax()] if enough else None,
        kind=KINDS[best] if overlap >= _OF_ONE_KIND else None,
        centres=centres,
        radii=np.sqrt(areas / _silhouettes()[2][best]),
        angles=turned,
        areas=areas,
        masks=masks,
        overlap=overlap,
    )


@functools.cache
def _silhouettes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every kind, sharp and softened, at every angle: pictures of one area [kinds, 2 · angles, pixels].

    With them the angles [2 · angles for each kind] and the areas of the kinds at radius 1.
    """
    cv2 = need("cv2")
    fine = np.linspace(-1.5, 1.5, 301)
    step = fine[1] - fine[0]
    inside = [(silhouette(kind, *np.meshgrid(fine, fine)) < 0).astype(np.float32) for kind in KINDS]
    areas = np.array([one.sum() * step**2 for one in inside])
    angles = np.array([np.arange(_ANGLES) / _ANGLES * SYMMETRY[kind] for kind in KINDS])
    pictures = np.empty((len(KINDS), 2 * _ANGLES, _GRID * _GRID), np.float32)
    for index, sharp in enumerate(inside):
        blurred = cv2.GaussianBlur(sharp, (0, 0), _SOFT / step)
        # Corners are lost, the area stays.
        level = np.sort(blurred.ravel())[-int(sharp.sum())]
        unit = np.sqrt(areas[index] / np.pi)  # the radius of a circle of that area
        scale = 2 * _REACH / _GRID * unit / step
        for softness, one in enumerate((sharp, (blurred >= level).astype(np.float32))):
            one = cv2.GaussianBlur(one, (0, 0), 0.4 * scale)
            for number, angle in enumerate(angles[index]):
                turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
                corner = (len(fine) - 1) / 2 - turn @ np.full(2, (_GRID - 1) / 2)
                flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
                picture = cv2.warpAffine(one, np.column_stack([turn, corner]), (_GRID, _GRID), flags=flags)
                pictures[index, softness * _ANGLES + number] = picture.ravel()
    return pictures, np.tile(angles, 2), areas


def _overlaps(masks: np.ndarray, centres: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each mask's best overlap over union with every kind [f, kinds], and the angle there [f, kinds]."""
    cv2 = need("cv2")
    pictures, angles, _ = _silhouettes()
    sampled = np.empty((len(masks), 1, _GRID * _GRID), np.float32)
    for index, (mask, centre, area) in enumerate(zip(masks, centres, areas)):
        step = 2 * _REACH / _GRID * np.sqrt(area / np.pi)
        corner = centre - 0.5 - step * (_GRID - 1) / 2
        to_picture = np.array([[step, 0, corner[0]], [0, step, corner[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        sampled[index, 0] = cv2.warpAffine(
            mask.astype(np.float32), to_picture, (_GRID, _GRID), flags=flags
        ).ravel()
    best, where = [], []
    for kind, period in enumerate(SYMMETRY.values()):
        templates = pictures[kind] if period else pictures[kind, :1]
        both = np.minimum(sampled, templates).sum(-1)
        scores = both / (sampled.sum(-1) + templates.sum(-1) - both)
        top = scores.argmax(1)
        ring = _ANGLES if period else 1
        before, peak, after = (
            np.take_along_axis(scores, (top // ring * ring + (top + step) % ring)[:, None], 1)[:, 0]
            for step in (-1, 0, 1)
        )
        bend = before - 2 * peak + after
        shift = np.divide(0.5 * (before - after), bend, out=np.zeros_like(bend), where=bend < -1e-9)
        best.append(peak)
        where.append(angles[kind, top] + shift.clip(-0.5, 0.5) * period / _ANGLES)
    return np.stack(best, 1), np.stack(where, 1)
