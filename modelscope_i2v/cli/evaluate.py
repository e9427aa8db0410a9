"""``evaluate``: how good a model is, measured offline on drawn scenes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..spec.families import FAMILIES, TASKS, family_name
from .parser import PROGRAM, add_machine, add_options, given_options, given_runtime, note, options_of_any, say

_FOLDER = "modelscope-i2v-evaluation"
_CLIPS, _BATCH = 240, 8  # of evaluation.run, whose module imports torch
_FIXED = ("seed", "num_videos", "batch_size")
"""Options that an evaluation sets for each clip."""


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    made = command(
        "evaluate",
        _run,
        "measure how good a model is, offline, on drawn scenes",
        "\n\nThe model makes clips of scenes whose truth is known and that no training shows. A detector\n"
        "tells whether colour, shape and motion are right; pictures and videos are compared with the\n"
        "truth. The table, with 95% intervals, goes to the terminal and with a figure and a sheet of clips\n"
        "into a folder. Models that were not trained on drawn scenes can be measured, but do badly.\n"
        'Needs the extra "evaluate": pip install "modelscope-i2v[evaluate]".',
        f"  {PROGRAM} evaluate text-to-video-synthesis\n"
        f"  {PROGRAM} evaluate path/to/model --clips 400 --num-inference-steps 30 --scheduler unipc\n",
        usage="MODEL [-o DIR] [options]",
    )
    made.add_argument(
        "model",
        metavar="MODEL",
        help="a model directory, an id on the ModelScope hub, or an embedded model: " + ", ".join(FAMILIES),
    )
    made.add_argument(
        "--task", type=family_name, choices=list(TASKS), help="what the model must be for (default: its own)"
    )
    made.add_argument(
        "--clips", type=_count, default=_CLIPS, metavar="N", help="clips to make (default: %(default)s)"
    )
    made.add_argument(
        "--seed", type=_whole, default=0, metavar="N", help="of scenes and noise (default: %(default)s)"
    )
    made.add_argument(
        "--batch-size", type=_count, default=_BATCH, metavar="N", help="clips at once (default: %(default)s)"
    )
    made.add_argument(
        "-o", "--output", metavar="DIR", default=_FOLDER, help="folder to write to (default: %(default)s)"
    )
    made.add_argument(
        "--save-clips",
        action="store_true",
        help="keep every clip there; the same command then goes on where it was stopped",
    )
    add_machine(made, {})
    group = made.add_argument_group("how clips are made", "Defaults are those of the model.")
    add_options(group, list(FAMILIES.values()), _options())


def _options() -> list[str]:
    return [name for name in options_of_any(list(FAMILIES.values())) if name not in _FIXED]


def _count(text: str) -> int:
    return _number(text, 1)


def _whole(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} does not work: it must be a whole number from {least} up")
    return number


def _run(args: argparse.Namespace) -> int:
    options = given_options(args, _options())
    from ..embedded import model_directory
    from ..evaluation import evaluate

    model: str | Path = args.model
    if family_name(args.model) in FAMILIES and not Path(model).exists():
        model = model_directory(model)
    report = evaluate(
        model,
        task=args.task,
        clips=args.clips,
        seed=args.seed,
        output=args.output,
        batch_size=args.batch_size,
        save_clips=args.save_clips,
        **given_runtime(args),
        **options,
    )
    say(report.table())
    for line in report.notes:
        note(line)
    say(f"Wrote report.md, report.json, report.png and clips.png to {args.output}")
    note(f"done in {report.seconds:.0f} s")
    return 0
