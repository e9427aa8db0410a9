"""The measures of each clip, and their summary over all clips, for each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.degrade import enlarge
from ..data.synthetic import STILL, Clip
from ..spec.families import Family
from . import metrics
from .examples import CAMERA, GROUPS, HELD_OUT, TRAINED, TWO, Example
from .judge import compare
from .report import Row
from .tracking import UNCLEAR, look

_GOALS = {TRAINED: 0.97, HELD_OUT: 0.90, TWO: 0.85, CAMERA: 0.85}
_MOTION_GOAL = 0.95
_GAIN_GOAL = 2.0
_STEADY = 0.005
"""Mean second difference of a path, in widths, that is too small to see: half a pixel of 96."""
EVERY = "all"


@dataclass(frozen=True)
class Made:
    """An example, the model's clip, and the ground truth: frames uint8 [f, h, w, 3]."""

    example: Example
    frames: np.ndarray
    truth: Clip
    picture: np.ndarray | None = None
    """The input image, encoded and decoded by the autoencoder, uint8 [h, w, 3]; None without one."""


def of_clip(family: Family, made: Made) -> dict[str, Any]:
    """All measures of one clip, as plain numbers and texts."""
    example, frames, truth = made.example, made.frames, made.truth.frames
    width = frames.shape[2]
    seen, true = look(frames), look(truth)
    verdict, check = compare(seen, example.scene), compare(true, example.scene)
    found: dict[str, Any] = {
        "number": example.number,
        "group": example.group,
        "caption": example.scene.caption,
        "seed": example.seed,
        "seen": verdict.seen,
        "colour": verdict.colour,
        "shape": verdict.kind,
        "motion": verdict.motion,
        "all": verdict.all,
        "true clip": check.all,
    }
    if family.reads_image:
        first = frames[:1]
        found |= {
            "first frame PSNR": metrics.psnr(first, made.picture[None]),
            "first frame SSIM": metrics.ssim(first, made.picture[None]),
            "moves": seen.camera != STILL or any(one not in (STILL, UNCLEAR) for one in seen.motions),
            "flow": metrics.flow(frames),
            "true flow": metrics.flow(truth),
            "acceleration": metrics.acceleration(seen.shapes, width),
            "true acceleration": metrics.acceleration(true.shapes, width),
        }
    if family.takes_video:
        bicubic = enlarge(example.degraded(truth), *truth.shape[1:3])
        truth = truth[: len(frames)]
        bicubic = bicubic[: len(frames)]
        found |= {
            "PSNR": metrics.psnr(frames, truth),
            "SSIM": metrics.ssim(frames, truth),
            "bicubic PSNR": metrics.psnr(bicubic, truth),
            "bicubic SSIM": metrics.ssim(bicubic, truth),
            "flicker": metrics.flicker(frames, truth),
            "bicubic flicker": metrics.flicker(bicubic, truth),
        }
    return found


def rows(family: Family, clips: Sequence[dict[str, Any]]) -> list[Row]:
    """The table of a family: the measures over all clips."""
    made = [*_verdicts(family, clips)]
    if family.reads_image:
        made += _animated(clips)
    if family.takes_video:
        made += _restored(clips)
    made.append(Row("detector on true clips", EVERY, metrics.share([clip["true clip"] for clip in clips])))
    return made


def _verdicts(family: Family, clips: Sequence[dict[str, Any]]) -> list[Row]:
    made = []
    # Without a text, any motion is right.
    asked = ("colour", "shape", "motion", "all") if family.reads_text else ("colour", "shape")
    for group in (*GROUPS, EVERY):
        members = [clip for clip in clips if group in (clip["group"], EVERY)]
        if not members:
            continue
        for name in asked:
            goal = None
            if name == "all" and not family.reads_image and not family.takes_video:
                goal = _GOALS.get(group)
            if name == "motion" and family.reads_image and group == EVERY:
                goal = _MOTION_GOAL
            label = "all three right" if name == "all" else f"{name} right"
            made.append(Row(label, group, metrics.share([clip[name] for clip in members]), goal=goal))
    return made


def _animated(clips: Sequence[dict[str, Any]]) -> list[Row]:
    column = _columns(clips)
    flows, true = column("flow"), column("true flow")
    slow, fast = np.quantile(true, [0.05, 0.95])
    jerks, true_jerks = column("acceleration"), column("true acceleration")
    return [
        Row(
            "frame 1 and the reconstructed picture: PSNR",
            EVERY,
            metrics.mean(column("first frame PSNR")),
            "dB",
        ),
        Row(
            "frame 1 and the reconstructed picture: SSIM",
            EVERY,
            metrics.mean(column("first frame SSIM")),
            "SSIM",
        ),
        Row("a shape or the camera moves in a clear way", EVERY, metrics.share(column("moves"))),
        Row(
            "optical flow within 5–95% of true clips'",
            EVERY,
            metrics.share([slow <= value <= fast for value in flows]),
        ),
        Row("moves as smoothly as true clips", EVERY, metrics.share(_smooth(clips))),
        Row("optical flow", EVERY, metrics.mean([100 * v for v in flows]), "% of width"),
        Row("optical flow of true clips", EVERY, metrics.mean([100 * v for v in true]), "% of width"),
        Row("jerk (second difference)", EVERY, metrics.mean([100 * v for v in jerks]), "% of width"),
        Row("jerk of true clips", EVERY, metrics.mean([100 * v for v in true_jerks]), "% of width"),
    ]


def _smooth(clips: Sequence[dict[str, Any]]) -> list[bool]:
    """For each clip, True if its motion is smooth: at most the 95% quantile of the true clips' jerk.

    True clips with a bouncing shape and those without have separate quantiles. Jerk that is too small to see
    is smooth in any case.
    """

    def limit(bounces: bool) -> float:
        alike = [clip["true acceleration"] for clip in clips if ("bounces" in clip["caption"]) == bounces]
        known = [value for value in alike if np.isfinite(value)]
        return max(float(np.quantile(known, 0.95)) if known else 0.0, _STEADY)

    limits = {bounces: limit(bounces) for bounces in (False, True)}
    return [bool(clip["acceleration"] <= limits["bounces" in clip["seen"]]) for clip in clips]


def _restored(clips: Sequence[dict[str, Any]]) -> list[Row]:
    column = _columns(clips)
    gains = [a - b for a, b in zip(column("PSNR"), column("bicubic PSNR"))]
    likeness = [a - b for a, b in zip(column("SSIM"), column("bicubic SSIM"))]
    calmer = [a / b for a, b in zip(column("flicker"), column("bicubic flicker")) if b > 0]
    return [
        Row("PSNR", EVERY, metrics.mean(column("PSNR")), "dB"),
        Row("PSNR of bicubic", EVERY, metrics.mean(column("bicubic PSNR")), "dB"),
        Row("PSNR gain over bicubic", EVERY, metrics.mean(gains), "dB", _GAIN_GOAL),
        Row("SSIM", EVERY, metrics.mean(column("SSIM")), "SSIM"),
        Row("SSIM gain over bicubic", EVERY, metrics.mean(likeness), "SSIM", 0.0),
        Row("flicker", EVERY, metrics.mean(column("flicker")), "levels"),
        Row("flicker of the input", EVERY, metrics.mean(column("bicubic flicker")), "levels"),
        Row("flicker, the input's being 1", EVERY, metrics.mean(calmer), "times", 1.0, below=True),
    ]


def _columns(clips: Sequence[dict[str, Any]]) -> Callable[[str], list[Any]]:
    return lambda name: [clip[name] for clip in clips]
