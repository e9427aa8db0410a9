"""``train``: a model of one's own, by a configuration."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .parser import PROGRAM, UsageError, note, say


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    made = command(
        "train",
        _run,
        "train a model: a new U-Net, a fine-tuned one, or a LoRA",
        "\n\nThe configuration is a JSON file; docs/guide/training.md lists its keys. Ctrl-C, SIGTERM and\n"
        "SIGHUP finish the step and write a snapshot; --resume continues from it as if nothing had happened.",
        f"  {PROGRAM} train boats.json\n"
        f"  {PROGRAM} train boats.json --resume --set max_minutes=60\n"
        f"  accelerate launch --num_processes 4 -m modelscope_i2v train boats.json\n",
        usage="CONFIG [--resume] [--set KEY=VALUE ...]",
    )
    made.add_argument("config", metavar="CONFIG", help="a JSON file")
    made.add_argument("--resume", action="store_true", help="go on from the last checkpoint, if there is one")
    made.add_argument(
        "--set",
        action="append",
        default=[],
        type=_change,
        metavar="KEY=VALUE",
        help="replace a value of the configuration (VALUE as in JSON, or a plain text)",
    )
    made.add_argument("--no-progress", action="store_true", help="show no progress")


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} should be KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _run(args: argparse.Namespace) -> int:
    from ..training.config import TrainConfig

    keys = [key for key, _ in args.set]
    if len(set(keys)) < len(keys):
        raise UsageError("--set names a key twice")
    config = TrainConfig.read(args.config, dict(args.set))
    from ..training.trainer import Trainer

    trainer = Trainer(config, resume=args.resume, progress=False if args.no_progress else None)
    if trainer.step:
        note(f"going on from step {trainer.step:,}")
    model = trainer.run()
    if not trainer.machine.main:
        return 0
    by = trainer.stopped_by
    if model is not None:
        text = f"Wrote {model}"
    else:
        why = f" by {signal.Signals(by).name}" if by else ""
        text = f"Stopped{why} after step {trainer.step:,} of {config.steps:,}; --resume goes on."
    try:
        say(text)
    except OSError:  # the terminal that sent SIGHUP is gone
        if not by:
            raise
        # Else Python's own flush at the end would fail again.
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    return 128 + by if by else 0
