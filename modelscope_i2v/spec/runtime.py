"""Runtime settings (how a model is loaded and run): one table with checks, help and command-line flags.

Everything that loads a model (:meth:`VideoGenerator.from_directory`, ``Cascade.load``, ``animate``,
``pipeline(…)``, ``evaluate``, the trainers, the command line) takes these settings as keywords and hands
them on unread, so a new one is a field here and the place that acts on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from . import table
from .table import setting

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Number types of networks, by the names that ``dtype`` takes: PyTorch's names of them."""

_DTYPE_NAMES = {name: name for name in DTYPES} | {torch: name for name, torch in DTYPES.items()}
_DTYPE_NAMES |= {"float": "fp32", "half": "fp16"}

ATTENTION = ("auto", "sdpa", "blocked", "xformers", "matmul")
"""Attention backends, see :mod:`modelscope_i2v.compute.attention`."""

MEMORY = ("auto", "resident", "offload", "minimal")
"""Memory modes, see :class:`modelscope_i2v.memory.placement.Placement`; from the fastest to the smallest."""

QUANTIZATION = ("int8",)
"""Quantizations of the U-Net's linear layers, see :mod:`modelscope_i2v.compute.quantization`."""

ALIASES = {"torch_dtype": "dtype"}
"""Other names that callers use."""


def _device(value: Any) -> str:
    name = str(value).lower().replace("gpu:", "cuda:")
    if not re.fullmatch(r"cpu|mps|gpu|cuda(:\d{1,3})?", name):
        raise ValueError("cpu, gpu, cuda, cuda:1 or mps")
    return name


def _dtype(value: Any) -> str:
    name = str(value).removeprefix("torch.")
    if name not in _DTYPE_NAMES:
        raise ValueError("fp32, fp16 or bf16")
    return _DTYPE_NAMES[name]


@dataclass(frozen=True)
class Runtime:
    """Settings of loading and running a model. ``None`` where the machine decides."""

    device: str | None = setting(
        _device,
        "cpu, cuda, cuda:1 or mps (default: the best there is)",
        metavar="NAME",
    )
    dtype: str | None = setting(
        _dtype,
        "number type of the networks (default: fp16 on a GPU, fp32 on a CPU)",
        choices=tuple(DTYPES),
    )
    attention: str = setting(
        table.choice(*ATTENTION),
        "PyTorch's kernels, xFormers', or matrix products, in blocks or whole (default: blocks in bf16 on a "
        "CPU, else PyTorch's)",
        "auto",
        choices=ATTENTION,
    )
    memory: str = setting(
        table.choice(*MEMORY),
        "where weights are on a GPU: always on it, a network at a time, or block by block, the slowest and "
        "smallest; auto (the default) takes the fastest that fits",
        "auto",
        choices=MEMORY,
    )
    compile: bool = setting(
        table.flag, "compile the U-Net's blocks, which takes minutes at the first step", False
    )
    quantization: str | None = setting(
        table.choice(*QUANTIZATION),
        "keep the U-Net's linear layers in eight bits (needs torchao)",
        choices=QUANTIZATION,
    )
    mmap: bool = setting(
        table.flag,
        "read weights from the mapped file as needed; a copy takes more memory and time, and stays when the "
        "file is changed or cut short",
        True,
        negated=True,
    )
    progress: bool | None = setting(
        table.flag, "show progress; by default bars on a terminal, else lines if it takes long", negated=True
    )

    @classmethod
    def of(cls, settings: Mapping[str, Any] | Runtime, owner: str = "Loading a model") -> Runtime:
        """The settings, checked; ``None`` counts as not given.

        Raises:
            InputError: for an unknown setting, with the nearest known one, or a value that does not work.
        """
        if isinstance(settings, Runtime):
            return settings
        values: dict[str, Any] = {}
        for key, value in settings.items():
            name = ALIASES.get(key, key)
            if name not in FIELDS:
                raise InputError(table.unknown(owner, key, FIELDS))
            if value is not None:
                values[name] = table.checked(cls, name, value)
        return cls(**values)


FIELDS = table.fields(Runtime)

NAMES = (*FIELDS, *ALIASES)
"""Every keyword that belongs to this table."""


def split(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords parted into those of this table and the others; ``progress`` is also a call's, and in both."""
    ours = {name: value for name, value in keywords.items() if name in NAMES}
    others = {name: value for name, value in keywords.items() if name not in NAMES or name == "progress"}
    return ours, others
