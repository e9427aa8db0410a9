"""Image-to-video, video-to-video and text-to-video for ModelScope, on today's libraries.

``import modelscope_i2v`` is all it takes: ModelScope's ``pipeline(...)`` and ``Model.from_pretrained`` then
use this package for the three tasks, whichever of the two was imported first. Nothing heavy is imported
here; :class:`VideoGenerator`, which needs no ModelScope, is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    Cancelled,
    CheckpointError,
    InputError,
    NumericalError,
    OutOfMemoryError,
    OutputError,
    VideoError,
)
from .plugin.registration import register
from .version import __version__

if TYPE_CHECKING:
    from .engine.cascade import Cascade, animate
    from .engine.generator import VideoGenerator
    from .spec.families import FAMILIES, Family
    from .spec.options import Options

_LAZY = {
    "Cascade": ".engine.cascade",
    "FAMILIES": ".spec.families",
    "Family": ".spec.families",
    "Options": ".spec.options",
    "VideoGenerator": ".engine.generator",
    "animate": ".engine.cascade",
}

__all__ = [
    "FAMILIES",
    "Cancelled",
    "Cascade",
    "CheckpointError",
    "Family",
    "InputError",
    "NumericalError",
    "Options",
    "OutOfMemoryError",
    "OutputError",
    "VideoError",
    "VideoGenerator",
    "__version__",
    "animate",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register()
