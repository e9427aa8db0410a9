"""Time, memory, floating-point work, and what the machine can do."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from modelscope_i2v.compute.ops import linear
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.spec.families import Family
from modelscope_i2v.spec.network import AutoencoderConfig, STUNetConfig

from ..full_parity import peak_memory_gb

TEXT_TOKENS = 77
MATRIX_SECONDS = 0.5
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class Sample:
    """One call."""

    result: Any
    seconds: float
    memory_gb: float | None
    """Host memory that it took beyond what was there before; None where the system does not tell."""
    device_gb: float | None
    """Peak of the device's memory over what was there before; None on a CPU."""


def timed(call: Callable[[], Any], device: torch.device) -> Sample:
    """Runs ``call`` once."""
    gc.collect()
    on_gpu = device.type == "cuda"
    held = torch.cuda.memory_allocated(device) if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    before = _reset_peak()
    start = time.perf_counter()
    result = call()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return Sample(
        result,
        seconds,
        None if before is None else max(peak_memory_gb() - before, 0.0),
        (torch.cuda.max_memory_allocated(device) - held) / 1e9 if on_gpu else None,
    )


def _reset_peak() -> float | None:
    """Memory that the process holds now in GB, from which its peak counts again."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return None
    return held_gb()


def held_gb() -> float:
    """Memory that the process holds now, in GB, mapped pages of files included; 0 where unknown."""
    if not _STATUS.is_file():
        return 0.0
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e9


def matrix_rate(dtype: torch.dtype, device: torch.device, side: int) -> float:
    """TFLOP/s of the best of many products of two square matrices, by the kernel that linear layers take."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < MATRIX_SECONDS:
        best = min(best, timed(lambda: linear(a, b, None), device).seconds)
    return 2 * side**3 / best / 1e12


def conditions(family: Family, config: STUNetConfig, height: int, width: int) -> tuple[dict, dict]:
    """Random inputs of a family's U-Net beside the latents, with and without the wish."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    both: dict[str, Tensor] = {}
    if config.fps_embedding:
        both["fps"] = torch.tensor([family.target_fps])
    if config.local_image:
        both["image_latents"] = normal(config.in_dim, height, width)
    wanted, without = dict(both), dict(both)
    if family.reads_text:
        wanted["text"] = normal(TEXT_TOKENS, config.context_dim)
        without["text"] = normal(TEXT_TOKENS, config.context_dim)
    if config.image_tokens:
        wanted["image_embeds"] = normal(1, config.image_dim)
        without["image_embeds"] = torch.zeros_like(wanted["image_embeds"])
    return wanted, without


def count_evaluation(family: Family, config: STUNetConfig, frames: int, height: int, width: int) -> float:
    """TFLOP of one evaluation of the U-Net on one video, counted on the meta device."""
    with torch.device("meta"):
        network = STUNet(config).eval()
        latents, times = torch.empty(1, config.in_dim, frames, height, width), torch.tensor([500])
    given = {key: value.to("meta") for key, value in conditions(family, config, height, width)[0].items()}
    return _count(lambda: network(latents, times, network.prepare(**given, frames=frames)))


def count_autoencoder(config: AutoencoderConfig, what: str, frames: int, height: int, width: int) -> float:
    """TFLOP to ``encode`` or ``decode`` that many frames."""
    factor = config.factor
    with torch.device("meta"):
        network = AutoencoderKL(config).eval()
        if what == "decode":
            given = torch.empty(frames, config.embed_dim, height, width)
        else:
            given = torch.empty(frames, config.in_channels, height * factor, width * factor)
    return _count(lambda: getattr(network, what)(given))


def _count(call: Callable[[], Any]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12
