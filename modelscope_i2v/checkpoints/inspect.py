"""What a weights file or a model directory is, for people who were handed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..families import FAMILIES, Family
from ..networks.config import AutoencoderConfig, CLIPConfig, STUNetConfig
from .directory import ModelDirectory
from .kinds import Kind, identify
from .load import AUTOENCODER_UNUSED, CLIP_UNUSED, Differences, differences
from .tensors import read_tensors, select


def _size(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True)
class FileReport:
    """What is inside one weights file."""

    path: Path
    kind: str
    """In words; ``unknown`` where no network here has such keys."""
    format: str
    size: int
    """On disk, in bytes."""
    parameters: int
    """Numbers in all its tensors."""
    dtypes: dict[str, int]
    """How many tensors have each type."""
    step: int | None
    compared_with: str | None
    """The network whose keys the file was compared with, or None."""
    differences: Differences | None
    used: int
    """Of the parameters, those that the network takes into memory."""

    def memory(self, dtype: torch.dtype) -> int:
        """Bytes that the network's weights need in ``dtype``."""
        return self.used * dtype.itemsize

    def lines(self) -> list[str]:
        types = ", ".join(f"{name} ({count:,} tensors)" for name, count in self.dtypes.items())
        lines = [
            f"{self.path}",
            f"  what:        {self.kind}",
            f"  file:        {self.format}, {_size(self.size)}"
            + (f", step {self.step:,}" if self.step is not None else ""),
            f"  parameters:  {self.parameters:,} in {types}",
        ]
        if self.differences is not None:
            found = self.differences.lines() or ["all there, nothing else"]
            lines += [f"  keys:        {line} (compared with {self.compared_with})" for line in found]
            lines.append(f"  memory:      {_memory(self.used)}")
        return lines


@dataclass(frozen=True)
class Report:
    """What is at a path: one file, or a model directory's three."""

    path: Path
    task: str | None
    """The directory's task; None for a file."""
    files: list[FileReport]
    defaults: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people, without line ends."""
        if self.task is None:
            return self.files[0].lines()
        lines = [f"{self.path}: model for {self.task}"]
        if self.defaults:
            lines.append(
                "  defaults:    " + ", ".join(f"{key}={value}" for key, value in self.defaults.items())
            )
        for file in self.files:
            lines += file.lines()
        lines.append(f"All weights together: {_memory(sum(file.used for file in self.files))}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def inspect(path: str | Path) -> Report:
    """Looks into a weights file, or into a model directory and the files that it names.

    A directory's files are compared with the networks that its configuration describes, and so is
    one of them alone; any other file with the hub's full-size network of its kind.

    Raises:
        CheckpointError: for what cannot be read at all.
    """
    path = Path(path)
    if not path.is_file():
        directory = ModelDirectory.open(path)
        reports = [_report(part, *network) for part, network in _networks(directory).items()]
        return Report(path, directory.family.name, reports, directory.defaults)
    try:
        network = _networks(ModelDirectory.open(path.parent)).get(path)
    except CheckpointError:  # it stands somewhere else
        network = None
    return Report(path, None, [_report(path, *(network or (None, None, ())))])


def _networks(directory: ModelDirectory) -> dict[Path, tuple[str, nn.Module, tuple[str, ...]]]:
    """By file: what its network is called, the network, and what the file may hold besides."""
    name = "what the configuration describes"
    return {
        directory.unet_path: (name, _build_unet(directory.unet), ()),
        directory.clip_path: (name, *_build_clip(directory.clip, directory.family)),
        directory.autoencoder_path: (name, _build_autoencoder(directory.autoencoder), AUTOENCODER_UNUSED),
    }


def _report(
    path: Path, compared_with: str | None, module: nn.Module | None, unused: tuple[str, ...]
) -> FileReport:
    file = read_tensors(path)
    kind = identify(file.tensors)
    if module is None:
        compared_with, module, unused = _hub_network(kind)
    dtypes: dict[str, int] = {}
    for tensor in file.tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    expected: Mapping[str, Tensor] = module.state_dict() if module is not None else {}
    given = select(file.tensors, expected)
    return FileReport(
        path=path,
        kind=kind.name if kind else "unknown",
        format=file.format,
        size=path.stat().st_size,
        parameters=_numbers(file.tensors),
        dtypes=dtypes,
        step=file.step,
        compared_with=compared_with,
        differences=differences(expected, given, unused) if module is not None else None,
        used=_numbers(expected),
    )


def _hub_network(kind: Kind | None) -> tuple[str | None, nn.Module | None, tuple[str, ...]]:
    """The full-size network of a kind, what it is called, and what its files may hold besides."""
    part = kind.part if kind else None
    if part == "unet" and kind is not None and kind.families:
        return f"the hub's {kind.families[0]} U-Net", _build_unet(FAMILIES[kind.families[0]].unet), ()
    if part == "autoencoder":
        return "Stable Diffusion's autoencoder", _build_autoencoder(AutoencoderConfig()), AUTOENCODER_UNUSED
    if part == "clip":
        config = CLIPConfig()
        with torch.device("meta"):
            from ..conditioning.clip import build

            return f"OpenCLIP {config.architecture}", build(config), CLIP_UNUSED
    return None, None, ()


# The networks are imported where they are needed: reading a file needs none of them, nor open_clip.


def _build_unet(config: STUNetConfig) -> nn.Module:
    from ..networks.stunet import STUNet

    with torch.device("meta"):
        return STUNet(config)


def _build_autoencoder(config: AutoencoderConfig) -> nn.Module:
    from ..networks.autoencoder import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(config)


def _build_clip(config: CLIPConfig, family: Family) -> tuple[nn.Module, tuple[str, ...]]:
    from ..conditioning.clip import ImageEncoder, TextEncoder, build

    with torch.device("meta"):
        if family.reads_image and family.reads_text:
            return build(config), CLIP_UNUSED
        module = ImageEncoder(config) if family.reads_image else TextEncoder(config)
    return module, (*CLIP_UNUSED, *module.unused)


def _numbers(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _memory(parameters: int) -> str:
    return f"weights take {_size(parameters * 4)} in fp32, {_size(parameters * 2)} in fp16 or bf16"
