"""Devices, number types, and what to say when memory runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType

import torch

from .errors import InputError, OutOfMemoryError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""The types that networks run in, by the names that the option ``dtype`` takes."""


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device of that name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``gpu`` and None: the best there is.

    ``gpu:1`` is understood as ModelScope has it. Raises InputError for a device that is not there.
    """
    name = "gpu" if device is None else str(device).lower()
    if name == "gpu":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(name.replace("gpu", "cuda"))
    except RuntimeError:
        raise InputError(f"device={name!r} is unknown; it can be cpu, gpu, cuda, cuda:1 or mps.") from None
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(
        place.type, 1
    )
    if (place.index or 0) >= count:
        there = [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu"]
        raise InputError(f"device={name!r} is not on this machine, which has {', '.join(there)}.")
    return place


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """``fp32``, ``fp16``, ``bf16`` or PyTorch's own names and types. Raises InputError for another."""
    name = str(dtype).removeprefix("torch.")
    by_name = {**DTYPES, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    by_name |= {"float": torch.float32, "half": torch.float16}
    if name not in by_name:
        raise InputError(f"dtype={name!r} is unknown; it can be fp32, fp16 or bf16.")
    return by_name[name]


def default_dtype(device: torch.device) -> torch.dtype:
    """fp32 on a CPU; else fp16, whose ten bits of mantissa lose less than bf16's seven, where it is fast.

    The originals ran in fp16; what overflows all the same is computed again in fp32.
    """
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return torch.float32  # Pascal and older compute fp16 at a fraction of fp32's rate
    return torch.float16 if device.type in ("cuda", "mps") else torch.bfloat16


def encoder_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """CLIP runs once a video: fp32 on a CPU, and never coarser than fp16 elsewhere."""
    return torch.float32 if device.type == "cpu" or dtype == torch.float32 else torch.float16


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device has left for tensors.

    None where moving weights to the host would free nothing: on a CPU, where they are a mapped file,
    and where the graphics memory is the host's.
    """
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


_OUT_OF_MEMORY = ("allocate memory", "out of memory", "alloc_failed")
"""What errors say, in small letters, of CPUs, of drivers and MPS, and of CUDA's libraries."""


class out_of_memory_told(contextlib.AbstractContextManager[None]):
    """Turns the device's out-of-memory errors into one that says what needs less.

    ``advice`` is asked for a sentence on the work at hand, once memory has run out.
    """

    def __init__(self, advice: Callable[[], str] | None = None) -> None:
        self.advice = advice

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        text = str(error)
        said = isinstance(error, RuntimeError) and any(sign in text.lower() for sign in _OUT_OF_MEMORY)
        if not (said or isinstance(error, (torch.OutOfMemoryError, MemoryError))):
            return
        # Its frames hold all that was computed so far, and whoever has the error wants that memory back.
        error.__traceback__ = None
        del trace
        count = f" By this package's count, {self.advice()}" if self.advice else ""
        reason = text.splitlines()[0] if text else type(error).__name__
        raise OutOfMemoryError(
            f"The device has too little free memory.{count} These need less: a smaller height, width or "
            "num_frames, memory='offload' or 'minimal', sequential_guidance=True, decode_chunk_size=1, "
            f"batch_size=1, dtype='fp16' or 'bf16'. ({reason})"
        ) from error
