"""Devices, number types and out-of-memory errors."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from types import TracebackType

import torch

from .errors import InputError, OutOfMemoryError
from .spec import runtime, table
from .spec.runtime import Runtime

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, torch_name) for name, torch_name in runtime.DTYPES.items()
}
"""The number types of networks, by the names that ``dtype`` takes."""


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device of a name that :class:`~modelscope_i2v.spec.runtime.Runtime` takes; None: the best there is.

    Raises InputError for a device that is not on this machine. ``gpu`` on a machine without one is the CPU,
    with a warning.
    """
    name = None if device is None else table.checked(Runtime, "device", device)
    if name in (None, "gpu"):
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        best = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        if name and best.type == "cpu":
            warnings.warn(
                "device='gpu': PyTorch finds no GPU on this machine; the CPU is used.", stacklevel=2
            )
        return best
    found = torch.device(name)
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(
        found.type, 1
    )
    if (found.index or 0) >= count:
        there = [*(f"cuda:{index}" for index in range(torch.cuda.device_count())), "cpu"]
        raise InputError(f"device={name!r} is not on this machine, which has {', '.join(there)}.")
    return found


def resolve_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """The number type of a name that :class:`Runtime` takes; None: what suits the device."""
    return default_dtype(device) if dtype is None else DTYPES[dtype]


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
"""Signs of an out-of-memory error in messages of CPUs, of drivers and MPS, and of CUDA's libraries."""


class out_of_memory_advice(contextlib.AbstractContextManager[None]):
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
