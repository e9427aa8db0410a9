"""``animate``: from a picture to a large video, by two models."""

from __future__ import annotations

import argparse
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..spec.families import I2VGEN_XL, IMAGE_TO_VIDEO, VIDEO_TO_VIDEO
from ..spec.options import OF_FIRST, OF_RESULT
from .make import OUTPUT, find_model, free_output, read_input
from .parser import (
    PROGRAM,
    UsageError,
    add_machine,
    add_options,
    check_machine,
    flag,
    given_options,
    given_runtime,
    note,
    options_of_any,
    say,
)

_FIRST, _SECOND = (IMAGE_TO_VIDEO, I2VGEN_XL), (VIDEO_TO_VIDEO,)
_OF_STAGE = {
    "first_": ("height", "width"),
    "refine_": tuple(name for name in OF_FIRST if name != "num_videos"),
}
"""Options of both stages that the plain flag gives the other one, by the prefix that gives them this one."""


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    made = command(
        "animate",
        _run,
        "make a large video of a picture, by two models",
        "\n\nThe first model animates the picture, the second makes that video larger and finer. The frames\n"
        "go from one to the other as they are. Judge the first video by itself, with --keep-first, before\n"
        "you look for faults in the second stage.",
        f'  {PROGRAM} animate cat.png --text "A cat runs over a meadow."\n'
        f"  {PROGRAM} animate cat.png --first-model {I2VGEN_XL.hub_ids[0]} --keep-first -o large.mp4\n"
        f'  {PROGRAM} animate --refine large-first.mp4 --text "A cat runs." --strength 0.5\n',
        usage="IMAGE [--text TEXT] [-o PATH] [options]",
    )
    made.add_argument("input", metavar="IMAGE", nargs="?", help="a picture: a file or a URL")
    made.add_argument(
        "--text", "--prompt", dest="text", metavar="TEXT", default="", help="what the video shows, in English"
    )
    made.add_argument("-o", "--output", metavar="PATH", help=OUTPUT)
    made.add_argument(
        "--keep-first",
        action="store_true",
        help="also write the first stage's small video: large-first.mp4 beside large.mp4",
    )
    made.add_argument(
        "--refine", metavar="VIDEO", help="a first video that is there already: only the second stage runs"
    )
    add_machine(made, {"first-model": IMAGE_TO_VIDEO.hub_ids[0], "second-model": VIDEO_TO_VIDEO.hub_ids[0]})
    one, two = options_of_any(_FIRST), options_of_any(_SECOND)
    shared = [name for name in one if name in two and name not in OF_FIRST]
    size = [name for name in shared if name in OF_RESULT]
    rest = [name for name in shared if name not in OF_RESULT]
    group = made.add_argument_group("the video", "Defaults here and below are those of the hub's models.")
    add_options(group, _SECOND, size)
    add_options(group, (*_FIRST, *_SECOND), rest)
    group = made.add_argument_group("the first stage")
    add_options(group, _FIRST, [name for name in one if name not in shared])
    add_options(group, _FIRST, _OF_STAGE["first_"], "first_")
    group = made.add_argument_group("the second stage")
    add_options(group, _SECOND, [name for name in two if name not in one])
    add_options(group, _SECOND, _OF_STAGE["refine_"], "refine_")


def _run(args: argparse.Namespace) -> int:
    refining = args.refine is not None
    stages = {prefix: given_options(args, names, prefix) for prefix, names in _OF_STAGE.items()}
    if refining:
        _check_refining(args, stages["first_"])
        args.input = args.refine
    elif args.input is None:
        raise UsageError(f"give a picture, or a video with --refine (help: {PROGRAM} animate --help)")
    options = given_options(args, options_of_any((*_FIRST, *_SECOND)))
    family = VIDEO_TO_VIDEO if refining else IMAGE_TO_VIDEO
    given = read_input(family, args, options)
    output = free_output(family, args, options.get("num_videos", 1))
    seed = options.setdefault("seed", secrets.randbelow(2**32))

    check_machine(args)
    first = args.first_model if refining else find_model(args.first_model, IMAGE_TO_VIDEO.task)
    second = find_model(args.second_model, VIDEO_TO_VIDEO.task)

    from ..engine.cascade import animate

    start = time.monotonic()
    made = animate(
        None if refining else given["image"],
        args.text,
        str(output),
        (first, second),
        keep_first=args.keep_first,
        refine=args.refine,
        first_options=stages["first_"] or None,
        refine_options=stages["refine_"] or None,
        **given_runtime(args),
        **options,
    )
    for path in _paths(made):
        say(f"Wrote {path}")
    hint = "" if args.seed is not None else f"; --seed {seed} makes it again"
    note(f"done in {time.monotonic() - start:.0f} s{hint}")
    return 0


def _check_refining(args: argparse.Namespace, first: dict[str, Any]) -> None:
    """Raises UsageError for what is of no use where the first stage is left out."""
    lost = [flag(f"first_{name}") for name in first]
    lost += [
        flag(name) for name in OF_FIRST if getattr(args, name, None) is not None and name != "num_videos"
    ]
    two = options_of_any(_SECOND)
    lost += [flag(name) for name in options_of_any(_FIRST) if name not in two and getattr(args, name, None)]
    lost += ["--keep-first"] if args.keep_first else []
    lost += ["a picture"] if args.input is not None else []
    if lost:
        raise UsageError(
            f"--refine leaves the first stage out, so {lost[0]} is of no use (help: {PROGRAM} animate --help)"
        )


def _paths(made: Any) -> list[str | Path]:
    """The files in what :func:`modelscope_i2v.animate` returned."""
    return [path for one in made for path in _paths(one)] if isinstance(made, (list, tuple)) else [made]
