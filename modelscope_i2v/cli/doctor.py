"""``doctor``: what this machine has, what it lacks, and which models fit into it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata

from ..memory.machine import Memory, main_memory
from ..spec.families import FAMILIES, Family
from ..version import __version__
from .parser import PROGRAM, say

_GB = 1e9

_REQUIRED = {
    "modelscope": "modelscope[framework]",
    "torch": "torch",
    "torchvision": "torchvision",
    "open_clip": "open_clip_torch",
    "av": "av",
    "numpy": "numpy",
    "PIL": "Pillow",
    "torchsde": "torchsde",
    "tqdm": "tqdm",
}
"""What the package cannot do without: the name to import, and pip's."""

_OPTIONAL = {
    "xformers": "for --attention xformers",
    "triton": "for --compile on a GPU",
    "torchao": "for --quantization",
}

_CODECS = {
    "libx264": "H.264, for .mp4, .mov and .mkv",
    "aac": "sound of those",
    "libvpx-vp9": "VP9, for .webm",
    "libopus": "sound of .webm",
    "gif": "for .gif",
    "webp": "for .webp",
}


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    command(
        "doctor",
        _run,
        "tell what this machine has: versions, devices, codecs, and which models fit",
        " It ends with exit code 1 if something is missing or broken.",
    )


def _run(args: argparse.Namespace) -> int:
    missing = _packages()
    told = [
        _section("Devices", _devices),
        _section("Codecs", _codecs),
        _section("ModelScope", _plugin),
        _section("Full-size models (memory for the weights and the default video)", _models),
    ]
    if missing:
        say()
        say("Missing. This installs it:  pip install " + " ".join(f'"{name}"' for name in missing))
    return 0 if all(told) and not missing else 1


def _section(title: str, tell: Callable[[], None]) -> bool:
    """One part of the report; what hinders it is part of the report. Returns whether nothing did."""
    say()
    say(title)
    try:
        tell()
    except BrokenPipeError:
        raise
    except Exception as error:  # broken installations break in any way
        reason = " ".join(str(error).split())
        say(f"  cannot be told: {type(error).__name__}: {reason}")
        return False
    return True


def _packages() -> list[str]:
    """Prints versions and returns pip's names of what is missing."""
    say(f"modelscope-i2v {__version__}, Python {platform.python_version()}, {platform.platform()}")
    say(f"  {sys.executable}")
    say()
    say("Packages")
    missing = []
    for module, name in _REQUIRED.items():
        version = _version(module, name)
        if version is None:
            missing.append(name)
        _row(name.partition("[")[0], version or f'missing: pip install "{name}"')
    for name, use in _OPTIONAL.items():
        _row(name, _version(name, name) or f"not there (optional, {use})")
    return missing


def _version(module: str, name: str) -> str | None:
    """A package's version, None if it cannot be imported."""
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec(module) is None:
            return None
        try:
            return metadata.version(name.partition("[")[0])
        except metadata.PackageNotFoundError:
            return "there, of unknown version"
    return None


def _devices() -> None:
    memory = main_memory()
    _row("cpu", f"{_memory(memory)}, {os.cpu_count()} cores")
    import torch

    for index in range(torch.cuda.device_count()):
        _row(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {_memory(_cuda_memory(index))}")
    compiler = os.environ.get("CXX", "g++")
    there = shutil.which(compiler)
    _row("C++ compiler", there or f"no {compiler} (optional, for --compile on a CPU; CXX may name another)")
    if torch.backends.mps.is_available():
        _row("mps", "Apple GPU, shares the machine's memory")
    elif not torch.cuda.is_available():
        _row("GPU", f"none that PyTorch {torch.__version__} can use")


def _cuda_memory(index: int) -> Memory:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return Memory(total, free)


def _codecs() -> None:
    from ..media.write import codecs

    for name, there in codecs().items():
        _row(name, f"{'yes' if there else 'missing'} ({_CODECS.get(name, 'video')})")


def _plugin() -> None:
    from ..plugin import startup

    status = startup.status()
    if status.enabled:
        _row("enable", f"on ({', '.join(map(str, status.files))})")
    else:
        _row("enable", f"off: scripts need `import modelscope_i2v` ({PROGRAM} enable changes that)")
    for task, name in startup.classes_in_force().items():
        _row(task, name)


def _models() -> None:
    """Whether each family's model fits, by device."""
    import torch

    places = [("cpu", main_memory())]
    places += [(f"cuda:{index}", _cuda_memory(index)) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        places.append(("mps", main_memory()))
    for task, family in FAMILIES.items():
        say(f"  {task} ({family.num_frames} frames of {family.width}x{family.height})")
        for name, memory in places:
            _row(f"  {name}", _fits(family, memory, torch.device(name).type), 12)


def _fits(family: Family, memory: Memory | None, device: str) -> str:
    """What of a full-size model's default video fits into a device's memory, and how."""
    import torch

    from ..memory.count import BESIDE, Model, frames_that_fit, peak
    from ..spec.options import resolve

    model, options = Model.full_size(family), resolve(family, {})
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16} if device == "cpu" else {"fp16": torch.float16}
    # A CPU has all weights at once in every mode: they are mapped files.
    modes = ("resident",) if device == "cpu" else ("resident", "offload", "minimal")
    ways = [(kind, mode) for kind in kinds for mode in modes]

    def needed(kind: str, mode: str) -> int:
        return peak(model, options, kinds[kind], mode, device)

    first = needed(*ways[0])
    need = f"{first / _GB:.1f} GB in {ways[0][0]}"
    if memory is None:
        return f"needs {need}"
    if BESIDE * first <= memory.free:
        return f"fits: {need}"
    if BESIDE * first <= memory.total:
        return f"fits if other programs leave it the memory: {need}, free are {memory.free / _GB:.1f} GB"
    for kind, mode in ways[1:]:
        least = needed(kind, mode)
        if BESIDE * least <= memory.total:
            way = f"--dtype {kind}" if device == "cpu" else f"--memory {mode}"
            return f"fits with {way} ({least / _GB:.1f} GB); {need}"
    kind, mode = ways[-1]
    frames = frames_that_fit(model, options, kinds[kind], mode, memory.total, device)
    if frames:
        way = f"--dtype {kind}" if device == "cpu" else f"--memory {mode}"
        return f"fits only with {way} and --num-frames {frames}: {need}"
    return f"too large: {need}, there are {memory.total / _GB:.1f} GB"


def _memory(memory: Memory | None) -> str:
    if memory is None:
        return "memory unknown"
    return f"{memory.total / _GB:.1f} GB memory, {memory.free / _GB:.1f} GB free"


def _row(name: str, text: str, width: int = 24) -> None:
    say(f"  {name:<{width}} {text}")
