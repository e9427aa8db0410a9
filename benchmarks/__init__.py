"""Measurements of this package, run from a checkout: ``python -m benchmarks.bench --preset cpu``.

bench, load, convert and compare_cascade measure time and memory, full_parity and gpu_check compare with the
original and between devices, quality scores what solvers and number types make, and the ``…_table`` modules
write tables into the documents. Figures are kept in ``results``. Needs the extra ``test``.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # the originals (oracle) and checkpoints with random weights


def command(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of this package in a process of its own, without warnings."""
    return [sys.executable, "-W", "ignore", "-m", f"{__name__}.{module}", *map(str, arguments)]


def folder(path: str) -> Path:
    """A folder named on the command line, made if it is not there."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path} cannot be made: {error.strerror}.") from None
    return Path(path)
