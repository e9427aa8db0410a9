"""Measures this package beside stock ModelScope and diffusers: ``python -m benchmarks.bench --preset cpu``.

For each family of checkpoints: loading, one evaluation of the U-Net, one guided step, encoding, decoding and
a whole video, on the same random weights, turn by turn in one run. Writes ``result.json``, ``result.md``
and ``result.png`` into a folder of ``benchmarks/results``. Needs the extra ``test``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from .. import ROOT, folder
from .presets import ORDER, PRESETS

FILES_GB = 35
"""What checkpoints of the hub's sizes take on the disk."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="cpu",
        help="cpu: full size, ends within 15 minutes on two cores; gpu: the hub's own videos, within "
        "8 minutes on an H200; full: both; smoke: tiny networks, half a minute",
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=ORDER,
        metavar="FAMILY[,FAMILY]",
        help=", ".join(ORDER),
    )
    parser.add_argument("--repeats", type=int, help="measurements of each figure, in place of the preset's")
    parser.add_argument(
        "--minutes", type=float, help="after so long nothing new is started; in place of the preset's"
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<date>-<preset>-<hardware>")
    parser.add_argument(
        "--work-dir", type=folder, help=f"where {FILES_GB} GB of files go; a temporary folder"
    )
    args = parser.parse_args(arguments)
    unknown = [name for name in args.only if name not in ORDER]
    if unknown:
        parser.error(f"--only: {unknown[0]!r} is no family; there are {', '.join(ORDER)}.")
    if args.repeats is not None and args.repeats < 1:
        parser.error(f"--repeats: {args.repeats} measurements are none; it takes 1 or more.")
    if args.minutes is not None and not args.minutes > 0:
        parser.error(f"--minutes: {args.minutes:g} is no time; it takes more than 0.")
    return args


def command(args: argparse.Namespace) -> str:
    """The command that measures the same; where files go does not matter."""
    words = ["python -m benchmarks.bench --preset", args.preset]
    if args.only != ORDER:
        words += ["--only", ",".join(args.only)]
    if args.repeats:
        words += ["--repeats", str(args.repeats)]
    if args.minutes:
        words += ["--minutes", f"{args.minutes:g}"]
    return " ".join(words)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    import torch

    from . import plot, report
    from .run import Run

    presets = PRESETS[args.preset]
    if args.minutes:
        presets = tuple(dataclasses.replace(preset, minutes=args.minutes) for preset in presets)
    if any(preset.device == "cuda" for preset in presets) and not torch.cuda.is_available():
        print(f"--preset {args.preset} needs a GPU, and PyTorch sees none here.", file=sys.stderr)
        return 1
    free = shutil.disk_usage(args.work_dir or tempfile.gettempdir()).free / 1e9
    if free < FILES_GB and not all(preset.small for preset in presets):
        print(f"--work-dir: {FILES_GB} GB of files go there, and {free:.0f} GB are free.", file=sys.stderr)
        return 1
    runs = []
    with tempfile.TemporaryDirectory(prefix="bench-", dir=args.work_dir, ignore_cleanup_errors=True) as work:
        for number, preset in enumerate(presets):
            place = Path(work) / str(number)
            place.mkdir()
            runs.append(Run(preset, place, args.only, args.repeats).measure())
    result = report.result_of(runs, args.preset, command(args))
    name = f"{datetime.date.today().isoformat()}-{args.preset}-{report.slug(result['hardware'])}"
    output = args.output or ROOT / "benchmarks" / "results" / name
    output.mkdir(parents=True, exist_ok=True)
    (output / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (output / "result.md").write_text(report.markdown(result), encoding="utf-8")
    plot.draw(result, output / "result.png")
    print(f"\n{report.full_table(result)}\n\nWritten to {output}")
    return 1 if any(run.failed for run in runs) else 0


if __name__ == "__main__":
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "MODELSCOPE_LOG_LEVEL": "40"}
    os.environ |= {"DIFFUSERS_VERBOSITY": "error", "TRANSFORMERS_VERBOSITY": "error"}
    warnings.filterwarnings("ignore")  # stock's and diffusers'
    sys.exit(main())
