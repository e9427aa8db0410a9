"""``--like``: a command line filled in from the record in a video, to make that video again."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import embedded
from ..checkpoints.hub import IDS
from ..errors import InputError
from ..spec.families import FAMILIES, Family
from ..spec.options import FIELDS, check
from ..spec.runtime import FIELDS as RUNTIME
from .parser import UsageError, note

_RUNTIME = ("dtype", "attention", "quantization")
"""How the model ran, as far as it changes the frames."""


def fill(family: Family, args: argparse.Namespace) -> None:
    """Sets what the command line leaves open to what the record in ``args.like`` says.

    Raises:
        UsageError: the record is missing or of another command, or names something that has to be given.
        InputError: the file cannot be read, or its record holds a value that does not work.
    """
    from ..media.write import read_metadata

    made = read_metadata(args.like)
    maker = FAMILIES.get(str(made.get("family")))
    if maker is None:
        raise UsageError(f"{args.like} holds no record of how it was made")
    if maker.task != family.task:
        raise UsageError(f"{args.like} was made by {maker.task}: that command makes it again")
    if args.seed is None and "seed" not in made:
        raise UsageError(f"{args.like} was made of noise that no seed gives again; --seed makes another")
    _model(args, made)
    for name, field in FIELDS.items():
        if name in made and field.metadata.get("cli", True) and getattr(args, name, None) is None:
            setattr(args, name, check(name, made[name]))
    for name in _RUNTIME:
        if name in made and getattr(args, name) is None:
            setattr(args, name, RUNTIME[name].metadata["check"](made[name]))
    _input(family, args, made)
    if not args.lora:
        args.lora = [_lora(args, lora) for lora in made.get("loras") or []]


def _model(args: argparse.Namespace, made: Mapping[str, Any]) -> None:
    if args.model is not None:
        return
    name = str(made.get("model"))
    # Nothing else is downloaded or opened because a file says so.
    if name.lower() not in IDS and not name.startswith(f"{embedded.NAME}/"):
        raise UsageError(f"{args.like} was made by a model in a folder called {name!r}: give its --model")
    args.model = name


def _input(family: Family, args: argparse.Namespace, made: Mapping[str, Any]) -> None:
    text = made.get("text")
    if args.text is None and isinstance(text, str):
        args.text = text
    if args.input is not None or not (family.takes_video or family.reads_image):
        return
    args.input = _found(args, made.get("input"), "the input")


def _lora(args: argparse.Namespace, lora: Any) -> tuple[str, float]:
    if not isinstance(lora, Mapping) or not isinstance(lora.get("scale"), (int, float)):
        raise InputError(f"{args.like}: its record of LoRAs is damaged; give them with --lora.")
    return _found(args, lora, "the LoRA of --lora"), float(lora["scale"])


def _found(args: argparse.Namespace, record: Any, what: str) -> str:
    """The file that a record means, in this folder or in the video's."""
    from ..engine.record import fingerprint

    if not isinstance(record, Mapping) or not record.get("name"):
        raise UsageError(f"{args.like} does not say what it was made of: give {what}")
    name = Path(str(record["name"])).name
    for folder in (Path(), Path(args.like).parent):
        path = folder / name
        if path.exists():
            if record.get("hash") == fingerprint(path):
                return str(path)
            note(f"{path} is not the file of that name that {args.like} was made with")
    raise UsageError(f"{args.like} was made with {name}, which is not here: give {what}")
