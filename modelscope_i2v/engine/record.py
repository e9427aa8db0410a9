"""Record of how a video was made, kept in its file: all that is needed to make it again, and no path."""

from __future__ import annotations

import contextlib
import hashlib
import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import embedded
from ..checkpoints.directory import ModelDirectory
from ..checkpoints.hub import IDS
from ..spec.families import FAMILIES
from ..spec.options import options_of
from ..version import __version__

if TYPE_CHECKING:
    from .requests import Request

_PIECE = 1 << 20
"""Bytes at the start and at the end of a file that its fingerprint is made of."""

_INPUTS = ("image", "image_path", "video_path", "video")


def of_video(request: Request, seed: int | None, model: Mapping[str, Any]) -> dict[str, Any]:
    """All about one video: what made it (:func:`of_model` and more), its input, text and options.

    Options that were not given and that no default sets are left out, as those that the model has not.
    """
    family = FAMILIES.get(model.get("family", ""))
    options = request.options.metadata()
    if family is not None:
        options = {name: value for name, value in options.items() if name in options_of(family)}
    versions = {"software": f"modelscope-i2v {__version__}", "torch": torch.__version__}
    made = {**versions, **model, "input": request.source, "text": request.text or None}
    return {name: value for name, value in {**made, **options, "seed": seed}.items() if value is not None}


def of_model(directory: ModelDirectory) -> dict[str, Any]:
    """A model's name, which is its id on the hub where it has one, and a fingerprint of its U-Net."""
    path = directory.path.resolve()
    owner, name = path.parent.name, path.name.replace("___", ".")
    known = embedded.name_of(path) or IDS.get(f"{owner}/{name}".lower()) or name
    return {"model": known, "weights": fingerprint(directory.unet_path)}


def of_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file's name without its folder, and its fingerprint; only the name of what is not on this disk."""
    text = os.fspath(path)
    if text.lower().startswith(("http://", "https://")):
        return {"name": Path(urllib.parse.unquote(urllib.parse.urlparse(text).path)).name}
    if text.lower().startswith("file:"):
        text = urllib.parse.unquote(urllib.parse.urlparse(text).path)
    hashed = fingerprint(text)
    return {"name": Path(text).absolute().name} | ({"hash": hashed} if hashed else {})


def of_input(inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The file that a video was made of; None where it came as pixels."""
    given = next((inputs[name] for name in _INPUTS if name in inputs), None)
    given = getattr(given, "filename", None) or given
    return of_file(given) if isinstance(given, (str, os.PathLike)) else None


def fingerprint(path: str | os.PathLike[str]) -> str | None:
    """16 hexadecimal digits that tell a file from others: of its size, its start and its end.

    Of a folder, those of its files. None for what cannot be read.
    """
    digest = hashlib.sha256()
    with contextlib.suppress(OSError, ValueError):
        place = Path(path)
        files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
        for file in files:
            with file.open("rb") as opened:
                size = opened.seek(0, os.SEEK_END)
                digest.update(f"{file.relative_to(place).as_posix()} {size} ".encode())
                for start in {0, max(size - _PIECE, 0)}:
                    opened.seek(start)
                    digest.update(opened.read(_PIECE))
        return digest.hexdigest()[:16] if files else None
    return None
