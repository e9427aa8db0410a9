"""Measures conversion of an I2VGen-XL checkpoint of the hub's size: time and peak memory.

``python -m benchmarks.convert``: each conversion runs in a process of its own. Weights are random; most of
CLIP's are zeros. Imports are not counted in the time and are in the memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import command, folder
from .full_parity import REPORT, measured, peak_memory_gb
from .load import forget
from .sections import write_section

UNET = "i2vgen_xl_00854500"
STEPS = [
    (
        "the U-Net's file, as .safetensors in fp16",
        f"hub/{UNET}.pth",
        "half.safetensors",
        "safetensors",
        "fp16",
    ),
    ("the U-Net's file, as .safetensors", f"hub/{UNET}.pth", "whole.safetensors", "safetensors", None),
    ("that file, as torch.save's again", "whole.safetensors", "again.pth", "hub", None),
    ("the directory, as a diffusers folder in fp16", "hub", "folder", "diffusers", "fp16"),
    ("that folder, as a directory of the hub's layout in fp32", "folder", "back", "hub", "fp32"),
]
"""What is done, from where, to where, which layout, which type."""
MEMORY_LIMIT = 4.0


def size_gb(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e9


def convert_once(source: Path, target: Path, to: str, dtype: str | None) -> dict[str, float]:
    """Converts once, in this process."""
    from modelscope_i2v.checkpoints.convert import convert

    start = time.perf_counter()
    convert(source, target, to=to, dtype=dtype, progress=False)
    return {"seconds": time.perf_counter() - start, "memory_gb": peak_memory_gb()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=folder, help="where 35 GB of files go; a temporary folder")
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        source, target, to, dtype = args.step
        print(json.dumps(convert_once(Path(source), Path(target), to, dtype or None)))
        return 0

    from checkpoints_factory import make_checkpoint

    work = Path(tempfile.mkdtemp(prefix="bench-convert-", dir=args.work_dir))
    lines = ["| what | from | to | time | peak memory |", "|---|---|---|---|---|"]
    peak = 0.0
    try:
        make_checkpoint(work / "hub", "i2vgen-xl", small=False)
        for what, source, target, to, dtype in STEPS:
            forget(work / "hub")
            one = command("convert", "--step", work / source, work / target, to, dtype or "")
            done = subprocess.run(one, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"{what}: exit code {done.returncode}")
            figures = json.loads(done.stdout.splitlines()[-1])
            peak = max(peak, figures["memory_gb"])
            sizes = f"{size_gb(work / source):.1f} GB | {size_gb(work / target):.1f} GB"
            lines.append(f"| {what} | {sizes} | {figures['seconds']:.0f} s | {figures['memory_gb']:.1f} GB |")
            print(lines[-1], flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    lines += [
        "",
        f"{measured()}; two cores, written and read again. Limit for the memory: {MEMORY_LIMIT:.0f} GB.",
    ]
    text = "\n".join(lines)
    print(f"\n{text}")
    if peak < MEMORY_LIMIT:
        write_section(REPORT, "conversion", text)
    return 0 if peak < MEMORY_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
