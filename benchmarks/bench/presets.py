"""What is measured: the ways in which this package runs, and the sizes of each preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ORDER = ("image-to-video", "text-to-video-synthesis", "i2vgen-xl", "video-to-video")
"""The families, in the order in which they are measured."""


@dataclass(frozen=True)
class Mode:
    """One way in which this package runs."""

    dtype: str
    load: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of ``VideoGenerator.from_directory``."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """Options of the calls that make whole videos; ``sequential_guidance`` counts for a guided step too."""


MODES = {
    "fp32": Mode("fp32"),
    "bf16": Mode("bf16"),
    "fp16": Mode("fp16"),
}


@dataclass(frozen=True)
class Case:
    """One thing to measure. Sizes are those of the latents."""

    what: str
    """``loading``, ``evaluation`` (of the U-Net), ``step`` (guided: two evaluations), ``encode`` and
    ``decode`` (the autoencoder) or ``video`` (from the input to its frames)."""
    frames: int = 0
    height: int = 0
    width: int = 0
    repeats: int = 3
    steps: int = 0
    """Of a video's solver."""
    families: tuple[str, ...] = ORDER
    warm: bool = True
    """One call of each subject before it counts."""
    only: tuple[str, ...] = ()
    """Modes of this package and number types of the originals to run; empty: all."""


@dataclass(frozen=True)
class Preset:
    """What one run measures, and on what."""

    device: str
    modes: tuple[str, ...]
    """Of this package, names of :data:`MODES`."""
    originals: tuple[str, ...]
    """Number types of stock and diffusers. Others are compared with the first one's times; further ones run
    once, as fp32 does for the errors."""
    cases: tuple[Case, ...]
    minutes: float
    """After so long nothing new is started."""
    matrix: int
    """Rows and columns of the product that measures what the machine can do."""
    small: bool = False
    """Networks of a few megabytes instead of the hub's sizes."""


_PICTURES = ("image-to-video", "i2vgen-xl")

CPU = Preset(
    device="cpu",
    modes=("fp32", "bf16"),
    originals=("fp32",),
    cases=(
        Case("loading", repeats=1, families=("image-to-video",)),
        Case("evaluation", 4, 16, 16, repeats=2),
        Case("step", 4, 16, 16, repeats=4, families=("image-to-video",), warm=False),
        Case("step", 4, 16, 16, repeats=2, families=ORDER[1:], warm=False),
        Case("evaluation", 8, 32, 56, repeats=2, families=("image-to-video",), only=("bf16",)),
        Case("step", 8, 32, 56, repeats=1, families=("image-to-video",), warm=False),
        Case("encode", 1, 32, 56, repeats=2, families=("image-to-video",), warm=False),
        Case("decode", 1, 32, 56, repeats=2, families=("image-to-video",), warm=False),
        Case("encode", 1, 32, 56, repeats=1, families=("i2vgen-xl",), warm=False),
        Case("decode", 1, 32, 56, repeats=1, families=("i2vgen-xl",), warm=False),
        Case("video", 2, 16, 16, repeats=1, steps=2, warm=False),
    ),
    minutes=14,
    matrix=2048,
)

SMOKE = Preset(
    device="cpu",
    modes=CPU.modes,
    originals=CPU.originals,
    cases=(
        Case("loading", repeats=1, families=("image-to-video",)),
        Case("evaluation", 2, 8, 8, repeats=2),
        Case("step", 2, 8, 8, repeats=2, warm=False),
        Case("encode", 1, 8, 8, repeats=1, families=_PICTURES, warm=False),
        Case("decode", 1, 8, 8, repeats=1, families=_PICTURES, warm=False),
        Case("video", 2, 8, 8, repeats=1, steps=2, warm=False),
    ),
    minutes=60,
    matrix=256,
    small=True,
)


def _on_gpu(family: str, frames: int, height: int, width: int, steps: int, videos: int) -> tuple[Case, ...]:
    """The hub's own size of a family; its video as often as ``videos`` says."""
    size, only = (frames, height, width), (family,)
    return (
        Case("evaluation", *size, repeats=3, families=only),
        Case("step", *size, repeats=2, families=only),
        Case("encode", 1, height, width, families=only),
        Case("decode", 2, height, width, families=only),
        Case("video", *size, repeats=videos, steps=steps, families=only, warm=False, only=("fp16",)),
    )


GPU = Preset(
    device="cuda",
    modes=("fp16", "bf16"),
    originals=("fp16", "fp32"),
    cases=(
        Case("loading", repeats=1, families=("image-to-video",), only=("fp16",)),
        *_on_gpu("image-to-video", 32, 32, 56, 50, 1),
        *_on_gpu("text-to-video-synthesis", 16, 32, 32, 50, 2),
        *_on_gpu("i2vgen-xl", 16, 88, 160, 50, 1),
        *_on_gpu("video-to-video", 32, 90, 160, 30, 1),
    ),
    minutes=7.5,
    matrix=8192,
)

PRESETS: dict[str, tuple[Preset, ...]] = {
    "cpu": (CPU,),
    "gpu": (GPU,),
    "full": (CPU, GPU),
    "smoke": (SMOKE,),
}
