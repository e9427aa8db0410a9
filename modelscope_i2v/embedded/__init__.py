"""The small models that ship with the package, and a picture for them to animate.

They have the hub's layout and all the code's paths, and were trained on drawn scenes by
``tools/train_embedded.sh``; docs/embedded-models.md tells what they can do.
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
    """A picture to animate: a drawn scene, 384×384."""
    return _HERE / "picture.png"
