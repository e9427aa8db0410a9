"""``convert``: a checkpoint in another layout, or with smaller numbers."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..spec.runtime import DTYPES
from .parser import PROGRAM, UsageError, say

LAYOUTS = ("hub", "diffusers", "safetensors")


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    made = command(
        "convert",
        _run,
        "write a checkpoint in another layout, or with smaller numbers",
        "\n\nIt reads what the other commands read: directories of the hub, folders of diffusers, or one\n"
        "weights file. Tensors go through memory one by one, and what was written is compared with what\n"
        "was meant. Nothing in a file is run.",
        f"  {PROGRAM} convert path/to/I2VGen-XL small --to safetensors --dtype fp16\n"
        f"  {PROGRAM} convert path/to/I2VGen-XL for-diffusers --to diffusers\n"
        f"  {PROGRAM} convert unet.pth unet.safetensors --to safetensors --dtype fp16\n",
        usage="SOURCE TARGET --to LAYOUT [--dtype TYPE] [options]",
    )
    made.add_argument(
        "source", metavar="SOURCE", help="a model directory, a folder of diffusers, or a weights file"
    )
    made.add_argument("target", metavar="TARGET", help="the directory to make; for a weights file, a file")
    made.add_argument(
        "--to",
        choices=LAYOUTS,
        required=True,
        help="hub: files as on the ModelScope hub; safetensors: the same as .safetensors files, which load "
        "faster; diffusers: a folder for its pipelines",
    )
    made.add_argument(
        "--dtype", choices=tuple(DTYPES), help="numbers to write (default: those of the source)"
    )
    made.add_argument(
        "--as-published",
        action="store_true",
        help="to diffusers: leave I2VGen-XL's image channels as they were published; diffusers then makes "
        "other videos than the original (default: doubled, which makes up for it)",
    )
    made.add_argument("--force", action="store_true", help="replace a target that exists")
    made.add_argument("--no-progress", action="store_true", help="show no progress")


def _run(args: argparse.Namespace) -> int:
    if args.as_published and args.to != "diffusers":
        raise UsageError(f"--as-published is for --to diffusers (help: {PROGRAM} convert --help)")
    from ..checkpoints.convert import convert

    path = convert(
        args.source,
        args.target,
        to=args.to,
        dtype=args.dtype,
        as_published=args.as_published,
        force=args.force,
        progress=False if args.no_progress else None,
    )
    say(f"Wrote {path}")
    return 0
