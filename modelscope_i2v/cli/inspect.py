"""``inspect``: what weights files and model directories are."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..errors import VideoError
from .parser import PROGRAM, note, say


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    made = command(
        "inspect",
        _run,
        "tell what a weights file or a model directory is",
        " Nothing in a file is run.",
        f"  {PROGRAM} inspect text2video_pytorch_model.pth\n  {PROGRAM} inspect path/to/Image-to-Video\n",
    )
    made.add_argument("paths", metavar="PATH", nargs="+", help="a weights file or a model directory")


def _run(args: argparse.Namespace) -> int:
    from ..checkpoints.inspect import inspect

    code = 0
    for number, path in enumerate(args.paths):
        try:
            report = inspect(path)
        except VideoError as error:
            if len(args.paths) == 1:
                raise
            note(f"error: {error}")  # and the others are told all the same
            code = 1
            continue
        if number:
            say()
        say(str(report))
    return code
