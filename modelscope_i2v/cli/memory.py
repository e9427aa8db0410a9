"""How much memory there is, and how much a full-size model takes."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

from ..families import Family
from ..networks.config import UNET_NUMBERS, AutoencoderConfig, CLIPConfig

DECODER_NUMBERS = 770
"""As :data:`~modelscope_i2v.networks.config.UNET_NUMBERS` for the decoder, per pixel of each frame that is
decoded at a time; encoding takes less."""

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says what a container may use (cgroups of version 2 and 1)."""


class Memory(NamedTuple):
    """Bytes."""

    total: int
    free: int


def needed(family: Family, size: int, sequential: bool = False) -> tuple[int, int]:
    """Bytes of the full-size weights, and an estimate of the bytes beside them for the default video.

    Args:
        size: bytes of a number, 4 or 2.
        sequential: one guidance branch after the other.
    """
    rows, columns = family.unet.canvas(family.height // 8, family.width // 8)
    latents = family.num_frames * rows * columns * (1 if sequential else 2)
    pixels = min(family.decode_chunk_size, family.num_frames) * rows * columns * 64
    working = max(latents * UNET_NUMBERS, pixels * DECODER_NUMBERS)
    return parameters(family) * size, working * size


@functools.cache
def parameters(family: Family) -> int:
    """Numbers in a full-size model: the U-Net, its tower of CLIP, and the autoencoder."""
    import torch

    from ..conditioning.clip import ImageEncoder, TextEncoder
    from ..networks.autoencoder import AutoencoderKL
    from ..networks.stunet import STUNet

    with torch.device("meta"):  # no memory is taken
        networks = [STUNet(family.unet), AutoencoderKL(AutoencoderConfig())]
        networks += [ImageEncoder(CLIPConfig())] if family.reads_image else []
        networks += [TextEncoder(CLIPConfig())] if family.reads_text else []
    return sum(p.numel() for network in networks for p in network.parameters())


def main_memory() -> Memory | None:
    """The machine's memory, or what a container may use of it; None where the system does not tell."""
    try:
        memory = _windows() if sys.platform == "win32" else _posix()
    except (OSError, ValueError, AttributeError, KeyError):
        return None
    for limit in map(Path, _LIMITS):
        if limit.is_file() and (text := limit.read_text().strip()).isdigit() and int(text) < memory.total:
            return Memory(int(text), min(memory.free, int(text)))
    return memory


def _posix() -> Memory:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    information = Path("/proc/meminfo")
    if not information.is_file():  # macOS does not tell what is free without a program of its own
        return Memory(total, total)
    lines = dict(line.split(":", 1) for line in information.read_text().splitlines())
    return Memory(total, int(lines["MemAvailable"].split()[0]) * 1024)


def _windows() -> Memory:
    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("free", ctypes.c_ulonglong),
            *((f"other_{number}", ctypes.c_ulonglong) for number in range(5)),
        ]

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise OSError("the system does not tell its memory")
    return Memory(status.total, status.free)
