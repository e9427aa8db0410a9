"""What a weights file or a model directory is, for people who were handed one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError, readable
from ..spec.families import FAMILIES, Family
from ..spec.network import AutoencoderConfig, CLIPConfig, STUNetConfig
from .directory import ModelDirectory
from .kinds import Kind, Part, identify
from .load import AUTOENCODER_UNUSED, CLIP_UNUSED, Differences, differences
from .tensors import TensorFile, read_tensors, select


def _size(size: int) -> str:
    """Bytes as a person reads them."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True)
class FileReport:
    """What is inside one weights file, or a component's folder."""

    path: Path
    kind: str
    """In words; ``unknown`` where no network here has such keys."""
    format: str
    size: int
    """On disk, in bytes; of a component's folder that of its tensors."""
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
    """The name of the directory's family; None for a file."""
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
        return "\n".join(map(readable, self.lines()))  # names in files may be anything


def inspect(path: str | Path) -> Report:
    """Looks into a weights file, or into a model directory and the files that it names.

    A directory's files are compared with the networks that its configuration describes, and so is
    one of them alone; any other file with the hub's full-size network of its kind.

    Raises:
        CheckpointError: for what cannot be read at all.
    """
    path = Path(path)
    if os.path.isdir(path) or not os.path.exists(path):
        directory = ModelDirectory.open(path)
        reports = [
            _report(place, directory.read(part, any_kind=True), expected)
            for part, (place, expected) in _networks(directory).items()
        ]
        return Report(path, directory.family.name, reports, directory.defaults)
    try:
        networks = dict(_networks(ModelDirectory.open(path.parent)).values())
    except CheckpointError:  # it stands somewhere else
        networks = {}
    return Report(path, None, [_report(path, read_tensors(path), networks.get(path))])


class Expected(NamedTuple):
    """A network that a file is compared with."""

    name: str
    tensors: Mapping[str, Tensor]
    """On the ``meta`` device."""
    unused: tuple[str, ...] = ()
    """What the file may hold besides."""


def _networks(directory: ModelDirectory) -> dict[Part, tuple[Path, Expected]]:
    """Where a model's three networks are, and what the configuration says of them."""
    name = "what the configuration describes"
    return {
        "unet": (directory.unet_path, Expected(name, _unet(directory.unet))),
        "clip": (directory.clip_path, Expected(name, *_clip(directory.clip, directory.family))),
        "autoencoder": (
            directory.autoencoder_path,
            Expected(name, _autoencoder(directory.autoencoder), AUTOENCODER_UNUSED),
        ),
    }


def _report(path: Path, file: TensorFile, expected: Expected | None) -> FileReport:
    kind = identify(file.tensors)
    expected = expected or _hub_network(kind)
    dtypes: dict[str, int] = {}
    for tensor in file.tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1
    wanted: Mapping[str, Tensor] = expected.tensors if expected else {}
    given = select(file.tensors, wanted)
    held = sum(tensor.nbytes for tensor in file.tensors.values())
    return FileReport(
        path=path,
        kind=kind.name if kind else "unknown",
        format=file.format,
        size=path.stat().st_size if path.is_file() else held,
        parameters=_numbers(file.tensors),
        dtypes=dtypes,
        step=file.step,
        compared_with=expected.name if expected else None,
        differences=differences(wanted, given, expected.unused) if expected else None,
        used=_numbers(wanted),
    )


def _hub_network(kind: Kind | None) -> Expected | None:
    """The full-size network of a kind."""
    part = kind.part if kind else None
    if part == "unet" and kind is not None and kind.families:
        return Expected(f"the hub's {kind.families[0]} U-Net", _unet(FAMILIES[kind.families[0]].unet))
    if part == "autoencoder":
        return Expected(
            "Stable Diffusion's autoencoder", _autoencoder(AutoencoderConfig()), AUTOENCODER_UNUSED
        )
    if part == "clip":
        config = CLIPConfig()
        with torch.device("meta"):
            from ..encoders.clip import build

            return Expected(f"OpenCLIP {config.architecture}", build(config).state_dict(), CLIP_UNUSED)
    return None


# The networks are imported where they are needed: reading a file needs none of them, nor open_clip.


def _unet(config: STUNetConfig) -> Mapping[str, Tensor]:
    from ..networks.stunet import STUNet

    with torch.device("meta"):
        return STUNet(config).state_dict()


def _autoencoder(config: AutoencoderConfig) -> Mapping[str, Tensor]:
    from ..networks.autoencoder import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(config).state_dict()


def _clip(config: CLIPConfig, family: Family) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """The towers that a family reads, and what else a file of CLIP holds."""
    from ..encoders.clip import ImageEncoder, TextEncoder

    with torch.device("meta"):
        towers: list[TextEncoder | ImageEncoder] = [TextEncoder(config)] if family.reads_text else []
        towers += [ImageEncoder(config)] if family.reads_image else []
    tensors = {key: tensor for tower in towers for key, tensor in tower.state_dict().items()}
    return tensors, (*CLIP_UNUSED, *(key for tower in towers for key in tower.unused))


def _numbers(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _memory(parameters: int) -> str:
    return f"weights take {_size(parameters * 4)} in fp32, {_size(parameters * 2)} in fp16 or bf16"
