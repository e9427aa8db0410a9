"""The small models that ship with the package, and a picture for them to animate.

They have the hub's layout and all the code's paths, and were trained on drawn scenes by
``tools/train_embedded.sh``; docs/evidence/embedded-models.md says what they can do. Where a model is named,
``embedded`` means the one of the task at hand, and ``embedded/i2vgen-xl`` the one of that family.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError
from ..spec.families import FAMILIES, family_name

if TYPE_CHECKING:
    from ..spec.families import Family
    from ..spec.options import Options

logger = logging.getLogger(__name__)

NAME = "embedded"
SIZE, FRAMES = 96, 16
"""Height and width in pixels, and length, of every video that they were trained on."""

_HERE = Path(__file__).resolve().parent

_reported: set[tuple[str, str]] = set()
"""Families, and what was said about them already."""


def model_directory(family: str) -> Path:
    """The model directory of a family (a task's name, or ``i2vgen-xl``). Raises KeyError for another."""
    directory = _HERE / family_name(family)
    if not (directory / "configuration.json").is_file():
        raise KeyError(family)
    return directory


def picture() -> Path:
    """A picture to animate: a drawn scene, 384×384."""
    return _HERE / "picture.png"


def find(model: str | os.PathLike[str], task: str | None = None) -> Path | None:
    """The directory of the embedded model of that name; None for any other name, and for a path that exists.

    Args:
        task: what ``embedded`` alone means.

    Raises:
        CheckpointError: for an embedded model that there is not, and for ``embedded`` without a task.
    """
    first, _, family = os.fspath(model).partition("/")
    if first != NAME or os.path.exists(model):
        return None
    try:
        return model_directory(family or task or "")
    except KeyError:
        known = ", ".join(f"{NAME}/{name}" for name in FAMILIES)
        raise CheckpointError(f"{os.fspath(model)!r} names no embedded model; there are {known}.") from None


def name_of(directory: Path) -> str | None:
    """The name that :func:`find` takes for a directory; None if it is not an embedded model's."""
    directory = directory.resolve()
    return f"{NAME}/{directory.name}" if directory.parent == _HERE else None


def warn_unseen(family: Family, options: Options, frames: int, text: str) -> None:
    """Warns, once a family, of a size, a length or words that the embedded model was not trained with."""
    size = (options.height, options.width, frames)
    if size != (SIZE, SIZE, FRAMES):
        _report(
            family,
            "size",
            f"{FRAMES} frames of {SIZE}x{SIZE}, not {frames} of {options.width}x{options.height}",
        )
    unknown = [word for word in re.findall(r"\w+", text.lower()) if word not in _words()]
    if family.reads_text and unknown:
        _report(family, "words", f"words such as 'a red star moves right', not {unknown[0]!r}")


def _report(family: Family, what: str, trained: str) -> None:
    if (family.name, what) not in _reported:
        _reported.add((family.name, what))
        logger.warning(
            "The embedded %s model was trained on %s: expect little of this video.", family.name, trained
        )


def _words() -> set[str]:
    """The words of the drawn scenes' captions."""
    from ..data import synthetic

    names = (*synthetic.COLOURS, *synthetic.KINDS, *synthetic.MOTIONS, *synthetic.CAMERAS)
    return {"a", "an", "and", "the", "camera"}.union(*(name.split() for name in names))
