"""The libraries of the extra ``evaluate``, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import InputError

_PACKAGES = {
    "cv2": "opencv-python-headless",
    "matplotlib": "matplotlib",
    "skimage": "scikit-image",
    "torchmetrics": "torchmetrics",
}


def need(module: str) -> Any:
    """Imports a module of an optional library. Raises InputError with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = _PACKAGES[module.partition(".")[0]]
        raise InputError(
            f"An evaluation needs {package}, which cannot be imported ({error}); "
            'pip install "modelscope-i2v[evaluate]" installs all of it.'
        ) from error
