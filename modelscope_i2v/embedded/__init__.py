"""The small model that ships with the package, and a picture for it to animate.

It has the hub's layout and all the code's paths; its weights are random, made from a seed by
``scripts/make_embedded.py``.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def model_directory(family: str) -> Path:
    """The model directory of a family (a task's name, or ``i2vgen-xl``). Raises KeyError for another."""
    directory = _HERE / family
    if not (directory / "configuration.json").is_file():
        raise KeyError(family)
    return directory


def picture() -> Path:
    """A picture to animate, 512×512."""
    return _HERE / "picture.png"
