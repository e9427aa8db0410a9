"""Compares the cascade in one call with the model cards' two pipelines and the MP4 between them.

Both make the same videos of the embedded model, on the CPU, each run in a process of its own, turn by
turn. The tables are printed, and written into docs/evidence/cascade.md between their marks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.encoders.clip import ImageEncoder, TextEncoder
from modelscope_i2v.engine.cascade import Cascade
from modelscope_i2v.media.videos import read_video
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.spec.families import FAMILIES, I2VGEN_XL, IMAGE_TO_VIDEO, VIDEO_TO_VIDEO, Family
from modelscope_i2v.spec.network import AutoencoderConfig, CLIPConfig

from . import ROOT, command
from .full_parity import measured, peak_memory_gb
from .sections import write_section

REPORT = ROOT / "docs" / "evidence" / "cascade.md"
WAYS = {"cards": "two pipelines, MP4 between them", "cascade": "`animate`"}
TEXT = "A boat on the sea at sunset."
STEPS = 20
SEED = 7
OPTIONS = {"seed": SEED, "progress": False}


def run(way: str, first: str, folder: Path) -> dict[str, float]:
    """Loads both models and makes both videos in this process; the second one's frames go to a file.

    Times are of the processor: other programs on the machine count less than by the clock.
    """
    from modelscope.pipelines import pipeline

    directories = model_directory(first), model_directory(VIDEO_TO_VIDEO.name)
    small, large = folder / f"{way}-first.mp4", folder / f"{way}.npy"
    text = {"text": TEXT} if FAMILIES[first].reads_text else {}
    before = peak_memory_gb()
    start = time.process_time()
    if way == "cards":
        pipes = [
            pipeline(task, model=str(path), device="cpu")
            for task, path in zip(("image-to-video", "video-to-video"), directories)
        ]
    else:
        cascade = Cascade.load(directories, device="cpu", progress=False)
    loaded = time.process_time()
    if way == "cards":
        picture_in = {"image": str(picture()), **text}
        pipes[0](picture_in, output_video=str(small), num_inference_steps=STEPS, **OPTIONS)
        video_in = {"video_path": str(small), "text": TEXT}
        frames = pipes[1](video_in, output_type="np", **OPTIONS)["output_video"]
    else:
        (frames,) = cascade(
            [{"image": picture(), "text": TEXT}], output_type="np", num_inference_steps=STEPS, **OPTIONS
        )
    done = time.process_time()
    memory = peak_memory_gb() - before
    np.save(large, frames)
    return {"load": loaded - start, "run": done - loaded, "memory_gb": memory}


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In dB, of frames in 0..255."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error))


def quality(first: str, folder: Path) -> list[float]:
    """PSNR of frames that went through the MP4 against those that did not: small video, result; and of the
    result where only rounding to bytes lies between the stages."""
    cascade = Cascade.load((model_directory(first), model_directory(VIDEO_TO_VIDEO.name)), device="cpu")
    text = {"text": TEXT} if FAMILIES[first].reads_text else {}
    given = [{"image": picture(), **text}]
    exact = cascade.first(given, output_type="pt", num_inference_steps=STEPS, **OPTIONS)[0]
    rounded = (exact * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    (by_bytes,) = cascade.second([{"frames": rounded, "text": TEXT}], output_type="np", **OPTIONS)
    result, through = (np.load(folder / f"{way}.npy") for way in ("cascade", "cards"))
    return [
        psnr(read_video(folder / "cards-first.mp4").frames, exact.permute(0, 2, 3, 1).numpy() * 255),
        psnr(through, result),
        psnr(by_bytes, result),
    ]


def weights_gb(first: Family) -> list[float]:
    """GB of full-size fp16 weights on a GPU: two pipelines, the cascade, and it with one U-Net at a time."""
    with torch.device("meta"):
        networks = {
            "autoencoder": AutoencoderKL(AutoencoderConfig()),
            "text": TextEncoder(CLIPConfig()),
            "image": ImageEncoder(CLIPConfig()),
            "first": STUNet(first.unet),
            "second": STUNet(VIDEO_TO_VIDEO.unet),
        }
    size = {name: 2 * sum(p.numel() for p in net.parameters()) / 1e9 for name, net in networks.items()}
    once = sum(size.values())
    twice = once + size["autoencoder"] + (size["text"] if first.reads_text else 0)
    return [twice, once, once - min(size["first"], size["second"])]


def child(way: str, first: str, folder: Path) -> dict[str, float]:
    """:func:`run` in a process of its own."""
    one = command("compare_cascade", "--way", way, "--first", first, "--folder", folder)
    done = subprocess.run(one, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{way} of {first} stopped with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def write_report(section: str, lines: list[str]) -> None:
    """Prints a table and puts it between its section's marks."""
    text = "\n".join(lines)
    print(f"\n{text}")
    write_section(REPORT, section, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--first", choices=FAMILIES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(run(args.way, args.first, args.folder)))
        return 0

    figures = [
        "| first stage | way | loading | both videos | peak memory | time | memory |",
        "|---" * 7 + "|",
    ]
    lost = ["| first stage | small video | result | result, if only rounded to bytes |", "|---" * 4 + "|"]
    for first in (IMAGE_TO_VIDEO.name, I2VGEN_XL.name):
        with tempfile.TemporaryDirectory() as folder:
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(args.repeat):
                for way in WAYS:
                    runs[way].append(child(way, first, Path(folder)))
                    print(first, way, runs[way][-1], flush=True)
            lost.append(
                f"| {first} | " + " | ".join(f"{db:.1f} dB" for db in quality(first, Path(folder))) + " |"
            )
        medians = {
            way: {name: statistics.median(one[name] for one in of) for name in of[0]}
            for way, of in runs.items()
        }
        for way, found in medians.items():
            total, stock = (one["load"] + one["run"] for one in (found, medians["cards"]))
            memory = found["memory_gb"] / medians["cards"]["memory_gb"]
            figures.append(
                f"| {first} | {WAYS[way]} | {found['load']:.1f} s | {found['run']:.1f} s "
                f"| {found['memory_gb'] * 1000:.0f} MB | {total / stock:.2f} | {memory:.2f} |"
            )
    told = f"{measured()}; medians of {args.repeat} runs on a CPU, fp32."
    write_report("figures", [*figures, "", told])
    write_report("quality", [*lost, "", told])
    weights = ["| first stage | two pipelines | `animate` | one U-Net at a time |", "|---" * 4 + "|"]
    for family in (IMAGE_TO_VIDEO, I2VGEN_XL):
        sizes = " | ".join(f"{size:.1f} GB" for size in weights_gb(family))
        weights.append(f"| {family.hub_ids[0]} | {sizes} |")
    write_report("weights", weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
