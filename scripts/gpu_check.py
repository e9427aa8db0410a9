"""Checks on a GPU what the tests check on a CPU: ``python scripts/gpu_check.py [--device cuda:0]``.

Every embedded model in fp32, fp16 and bf16 against the CPU's fp32 with the same seed; seeds, batches and
the guidance branches on the device; and attention over more rows than one kernel launch takes. Prints a
table, and ends with exit code 1 if a check failed or there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch

from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.families import FAMILIES, Family
from modelscope_i2v.generator import VideoGenerator
from modelscope_i2v.networks.attention import MAX_BATCH_HEADS, Attention

OPTIONS = {"num_inference_steps": 4, "num_frames": 6, "seed": 1, "output_type": "np", "progress": False}
LIMITS = {"fp32": 1.0, "fp16": 4.0, "bf16": 16.0}
"""Mean difference from the CPU's frames, of 255; guidance magnifies rounding."""


def given(family: Family) -> dict:
    """An input for a family."""
    inputs: dict = {"text": "a boat on the sea"} if family.reads_text else {}
    if family.takes_video:
        frames = np.random.default_rng(0).integers(0, 255, (6, 72, 128, 3), dtype=np.uint8)
        return {**inputs, "frames": frames}
    return {**inputs, "image": picture()} if family.reads_image else inputs


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference of two videos, of 255."""
    return float(np.abs(first.astype(float) - second).mean())


def checks(device: str) -> Iterator[tuple[str, float, float]]:
    """What was checked, the difference that was found, and the largest that passes."""
    for name, family in FAMILIES.items():
        directory, source = model_directory(name), given(family)
        (expected,) = VideoGenerator.from_directory(directory, device="cpu")([source], **OPTIONS)
        for dtype, limit in LIMITS.items():
            generator = VideoGenerator.from_directory(directory, device=device, dtype=dtype)
            (frames,) = generator([source], **OPTIONS)
            yield f"{name}, {dtype} against the CPU's fp32", difference(frames, expected), limit
        (again,) = generator([source], **OPTIONS)
        yield f"{name}, the same seed again", difference(again, frames), 0.0
        pair = generator([source, source], **{**OPTIONS, "batch_size": 2})
        yield f"{name}, in a batch of two", difference(pair[1], frames), LIMITS["bf16"]
        (apart,) = generator([source], **OPTIONS, sequential_guidance=True)
        yield f"{name}, guidance branches one by one", difference(apart, frames), LIMITS["bf16"]

    torch.manual_seed(0)
    attention = Attention(64, 64, heads=4, head_dim=16).to(device).half().requires_grad_(False)
    x = torch.randn(MAX_BATCH_HEADS // 2, 16, 64, device=device, dtype=torch.half)
    whole, parts = attention(x), torch.cat([attention(part) for part in x.split(4096)])
    yield "attention over more rows than a launch takes", float((whole - parts).abs().max()), 1e-2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    device = parser.parse_args().device
    if device.startswith("cuda") and not torch.cuda.is_available():
        print("PyTorch sees no GPU here.", file=sys.stderr)
        return 1
    if device.startswith("cuda"):
        print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}")
    failed, began = 0, time.perf_counter()
    for what, found, limit in checks(device):
        passed = found <= limit  # NaN fails
        failed += not passed
        print(f"{'ok' if passed else 'FAILED':6}  {found:9.4f} (at most {limit:g})  {what}", flush=True)
    print(f"{failed} failed, in {time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
