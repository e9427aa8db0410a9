"""``inspect``: what weights files and model directories are."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable

from ..errors import VideoError
from .parser import PROGRAM, note, say


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    made = command(
        "inspect",
        _run,
        "tell what a weights file or a model directory is, or how a video was made",
        " Nothing in a file is run.",
        f"  {PROGRAM} inspect text2video_pytorch_model.pth\n  {PROGRAM} inspect path/to/Image-to-Video\n"
        f"  {PROGRAM} inspect cat.mp4\n",
    )
    made.add_argument("paths", metavar="PATH", nargs="+", help="a weights file, a model directory or a video")


def _run(args: argparse.Namespace) -> int:
    code = 0
    for number, path in enumerate(args.paths):
        try:
            report = _report(path)
        except VideoError as error:
            if len(args.paths) == 1:
                raise
            note(f"error: {error}")  # and the others are told all the same
            code = 1
            continue
        if number:
            say()
        say(report)
    return code


def _report(path: str) -> str:
    """What a file or folder is, in lines."""
    from ..checkpoints.inspect import inspect
    from ..media.write import FRAME_NAME, SUFFIXES, read_metadata

    pictures = os.path.isfile(os.path.join(path, FRAME_NAME.format(1)))
    if not pictures and os.path.splitext(path)[1].lower() not in SUFFIXES:
        return str(inspect(path))
    made = read_metadata(path)
    if not made:
        return f"{path}: a video without a record of how it was made"
    lines = (f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in made.items())
    return "\n".join([f"{path}: a video made with", *lines])
