"""Measures how long stock ModelScope and this package take to load a full-size checkpoint.

``python -m benchmarks.load``: each load runs in a process of its own, turn by turn; the files are dropped
from the operating system's cache before each, where it allows that. Imports are not counted in the time and
are in the memory. What is counted as ours is the loading alone, and the loading with a read of every weight:
this package maps files, and weights come from the disk when they are first used.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import command, folder
from .full_parity import REPORT, TASKS, measured, peak_memory_gb
from .sections import write_section

WAYS = {
    "stock": "stock, with shims",
    "ours": "this package",
    "ours-touched": "this package, every weight read",
}
TIME_LIMIT, MEMORY_LIMIT = 1 / 6, 0.6
"""What ours may take of stock's wall time and peak memory."""


def forget(directory: Path) -> None:
    """Drops a directory's files from the operating system's cache."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in directory.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(way: str, task: str, directory: Path) -> dict[str, float]:
    """Loads once, in this process."""
    if way == "stock":
        from oracle import stock
        from oracle.videos import stock_model

        stock.load()
        start = time.perf_counter()
        model = stock_model(directory, task)
        seconds = time.perf_counter() - start
        assert model is not None
    else:
        from modelscope_i2v.engine.generator import VideoGenerator

        start = time.perf_counter()
        generator = VideoGenerator.from_directory(directory, task, device="cpu", progress=False)
        if way == "ours-touched":
            networks = (
                generator.text_encoder,
                generator.image_encoder,
                generator.unet,
                generator.autoencoder,
            )
            for network in filter(None, networks):
                for tensor in network.state_dict().values():
                    tensor.reshape(-1)[::512].sum()  # a number of each page of memory
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "memory_gb": peak_memory_gb()}


def measure(way: str, task: str, directory: Path) -> dict[str, float]:
    """Loads once, in a process of its own."""
    forget(directory)
    one = command("load", "--way", way, "--task", task, "--directory", directory)
    done = subprocess.run(one, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{way} of {task} stopped with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, action="append", help="by default all three")
    parser.add_argument("--repeat", type=int, default=3, help="loads of each kind (default: 3)")
    parser.add_argument("--work-dir", type=folder, help="where 15 GB of files go; a temporary folder")
    parser.add_argument("--json", type=Path, help="where all figures are written")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(load(args.way, args.task[0], args.directory)))
        return 0

    from checkpoints_factory import make_checkpoint

    figures: dict[str, dict[str, list[dict[str, float]]]] = {}
    lines = [
        "| task | loaded by | time | peak memory | time, of stock's | memory, of stock's |",
        "|---|---|---|---|---|---|",
    ]
    good = True
    for task in args.task or TASKS:
        work = Path(tempfile.mkdtemp(prefix="bench-load-", dir=args.work_dir))
        try:
            directory = make_checkpoint(work, task, small=False)
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(args.repeat):
                for way in WAYS:
                    runs[way].append(measure(way, task, directory))
                    print(task, way, runs[way][-1], flush=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        figures[task] = runs
        medians = {
            way: [statistics.median(run[figure] for run in of) for figure in ("seconds", "memory_gb")]
            for way, of in runs.items()
        }
        for way, (seconds, memory) in medians.items():
            time_ratio, memory_ratio = (mine / theirs for mine, theirs in zip(medians[way], medians["stock"]))
            ratios = "| | |" if way == "stock" else f"| {time_ratio:.3f} | {memory_ratio:.2f} |"
            lines.append(f"| {task} | {WAYS[way]} | {seconds:.1f} s | {memory:.1f} GB {ratios}")
            if way == "ours":
                good &= time_ratio < TIME_LIMIT and memory_ratio < MEMORY_LIMIT
    lines += ["", f"{measured()}; medians of {args.repeat} loads, files not in the cache, fp32 on a CPU."]
    text = "\n".join(lines)
    print(f"\n{text}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if not args.task and good:
        write_section(REPORT, "loading", text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
