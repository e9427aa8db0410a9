"""Checks on a GPU what the tests check on a CPU: ``python -m benchmarks.gpu_check [--device cuda:0]``.

Every embedded model in fp32, fp16 and bf16 against the CPU's fp32 with the same seed; seeds, batches, the
guidance branches and the memory modes on the device; attention over more rows than one kernel launch takes;
and, with full-size networks of random weights, the memory modes' frames, times and peaks of memory. Prints
a table, and ends with exit code 1 if a check failed or there is no GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from modelscope_i2v.compute.attention import MAX_BATCH
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.memory.count import Model
from modelscope_i2v.memory.placement import Placement, send
from modelscope_i2v.networks.blocks import Attention
from modelscope_i2v.spec.families import FAMILIES, Family
from modelscope_i2v.spec.options import resolve

from .gpu_modes import in_every_mode

OPTIONS = {"num_inference_steps": 4, "num_frames": 6, "seed": 1, "output_type": "np", "progress": False}
LIMITS = {"fp32": 1.0, "fp16": 4.0, "bf16": 16.0}
"""Mean difference from the CPU's frames, of 255; guidance magnifies rounding."""
MODEL_LIMIT = 0.1
"""How far a measured peak of memory may be from the memory model's, as a share of that."""
SLOWER = {"offload": 1.6, "minimal": 1.6}
"""How many times as long as ``resident`` a whole video may take."""
SECONDS = 75.0
"""After so long no further full-size model is begun."""
LARGE = ("text-to-video-synthesis", "image-to-video", "i2vgen-xl", "video-to-video")
"""The full-size models, the quickest first."""


def given(family: Family, frames: int = 6) -> dict:
    """An input for a family; ``frames``: of a video."""
    inputs: dict = {"text": "a boat on the sea"} if family.reads_text else {}
    if family.takes_video:
        video = np.random.default_rng(0).integers(0, 255, (frames, 72, 128, 3), dtype=np.uint8)
        return {**inputs, "frames": video}
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
            if dtype == "fp32":
                for mode in SLOWER:
                    other = moved(generator, mode, source)
                    yield f"{name}, {mode} against resident", difference(other, frames), limit
        (again,) = generator([source], **OPTIONS)
        yield f"{name}, the same seed again", difference(again, frames), 0.0
        pair = generator([source, source], **{**OPTIONS, "batch_size": 2})
        yield f"{name}, in a batch of two", difference(pair[1], frames), LIMITS["bf16"]
        (apart,) = generator([source], **OPTIONS, sequential_guidance=True)
        yield f"{name}, guidance branches one by one", difference(apart, frames), LIMITS["bf16"]

    torch.manual_seed(0)
    attention = Attention(64, 64, heads=4, head_dim=16).to(device).half().requires_grad_(False)
    x = torch.randn(MAX_BATCH + 8, 16, 64, device=device, dtype=torch.half)
    whole, parts = attention(x), torch.cat([attention(part) for part in x.split(4096)])
    yield "attention over more rows than a launch takes", float((whole - parts).abs().max()), 1e-2


def moved(generator: VideoGenerator, mode: str, source: dict) -> np.ndarray:
    """The video in another memory mode; the generator is resident afterwards."""
    resident, place = generator.placement, Placement(generator.device, mode, moves=True)
    every = (generator.unet, generator.autoencoder, generator.text_encoder, generator.image_encoder)
    for network in filter(None, every):
        send(network, place.storage_device)
    generator.placement = place
    (frames,) = generator([source], **OPTIONS)
    generator.placement = resident  # which brings the networks back when they work next
    return frames


def large(
    family: Family, model: Model, device: torch.device, dtype: torch.dtype, **options: int
) -> Iterator[tuple[str, float, float]]:
    """As :func:`checks`, of a model's memory modes at its default size, or another."""
    frames = resolve(family, options).num_frames
    resident = None
    for one in in_every_mode(family, model, device, dtype, given(family, frames), options):
        name = f"{family.name} of {one.counted / 1e9:.2f} GB, {one.mode}"
        apart = abs(one.peak / one.counted - 1)
        yield f"{name}: {one.peak / 1e9:.2f} GB measured, share apart", apart, MODEL_LIMIT
        if resident is None:
            resident = one
            continue
        yield f"{name} against resident", difference(one.frames, resident.frames), LIMITS["fp16"]
        yield (
            f"{name}: {one.seconds:.1f} s a video, times resident's {resident.seconds:.1f} s",
            one.seconds / resident.seconds,
            SLOWER[one.mode],
        )


def every_check(device: str, began: float) -> Iterator[tuple[str, float, float]]:
    yield from checks(device)
    if not device.startswith("cuda"):
        return  # these take a GPU's size and speed
    for name in LARGE:
        if time.perf_counter() - began > SECONDS:
            print(f"left out   {name} at full size: there was no time left", flush=True)
            continue
        yield from large(FAMILIES[name], Model.full_size(FAMILIES[name]), torch.device(device), torch.half)
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    device = parser.parse_args(arguments).device
    if device.startswith("cuda") and not torch.cuda.is_available():
        print("PyTorch sees no GPU here.", file=sys.stderr)
        return 1
    if device.startswith("cuda"):
        torch.backends.cudnn.allow_tf32 = False  # or convolutions in fp32 would not be in fp32
        print(f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}")
    failed, began = 0, time.perf_counter()
    for what, found, limit in every_check(device, began):
        passed = found <= limit  # NaN fails
        failed += not passed
        print(f"{'ok' if passed else 'FAILED':6}  {found:9.4f} (at most {limit:g})  {what}", flush=True)
    print(f"{failed} failed, in {time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
