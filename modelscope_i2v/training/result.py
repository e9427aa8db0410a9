"""The result of a run: a model directory in the hub's layout, ready to be published."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.directory import CONFIGURATION, ModelDirectory
from ..checkpoints.tensors import SUFFIXES
from ..checkpoints.writers import Planned, write_safetensors
from ..errors import NumericalError
from ..files import read_json, replace_folder
from . import card
from .config import TrainConfig
from .curves import json_lines

UNET = "unet.safetensors"


def write_model(
    target: Path,
    directory: ModelDirectory,
    weights: Mapping[str, Tensor],
    *,
    add_files: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Writes a model directory: a U-Net's weights in fp16, and the other networks of ``directory``.

    Files that are the same as in ``directory`` become hard links where the disk allows it. The directory
    appears when it is complete, and then replaces one that was there.

    Args:
        add_files: called with the directory before it appears, to put more files into it.

    Raises:
        NumericalError: a weight is NaN or too large for fp16.
        OutputError: the directory cannot be written.
    """
    half = {name: tensor.detach().cpu().half().contiguous() for name, tensor in weights.items()}
    for name, tensor in half.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"The weight {name} is NaN, or too large for fp16; nothing was written.")
    with replace_folder(target) as folder:
        if directory.folder is not None:
            _from_diffusers(directory, folder)
        else:
            for file in (directory.clip_path, directory.autoencoder_path):
                _link(file, folder / file.name)
        write_safetensors(folder / UNET, planned(half))
        settings = json.dumps(configuration(directory, folder), indent=2, ensure_ascii=False)
        (folder / CONFIGURATION).write_text(settings + "\n", encoding="utf-8")
        add_files(folder)
    return target


def planned(tensors: Mapping[str, Tensor]) -> list[Planned]:
    """Tensors of any device, as :func:`write_safetensors` takes them."""
    return [
        Planned(name, tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor.detach().cpu())
        for name, tensor in tensors.items()
    ]


def add_card(
    path: Path,
    directory: ModelDirectory,
    config: TrainConfig,
    facts: Mapping[str, Any],
    curve: Sequence[Mapping[str, float]],
    caption: str,
) -> None:
    """Puts the model card and the files that it refers to into a model directory that is being written.

    Args:
        directory: the model that was trained.
        facts: rows of the card's table about the training.
        curve: points of the loss curve.
        caption: one of the data's, for the card's example.
    """
    family = directory.family
    settings = json.dumps(config.published(), indent=2, ensure_ascii=False)
    (path / "train.json").write_text(settings + "\n", encoding="utf-8")
    (path / "curve.jsonl").write_text(json_lines(curve), encoding="utf-8")
    picture = Path(config.output) / "curve.png"
    if picture.is_file():
        shutil.copyfile(picture, path / picture.name)
    example = card.example(family, path, config.sample_inputs, caption)
    default = {"num_frames": family.num_frames, "height": family.height, "width": family.width}
    size = {**default, **directory.defaults}
    files = [file for file in path.iterdir() if file.suffix in SUFFIXES]
    spec = card.memory(
        sum(file.stat().st_size for file in files),
        directory.unet,
        size["num_frames"],
        size["height"],
        size["width"],
    )
    fields = {key: value for key, value in config.card.items() if key != "name"}
    header = card.front_matter(family, spec, example, fields)
    name = config.card.get("name", f"{family.name}, trained")
    (path / "README.md").write_text(card.text(family, header, name, facts, example), encoding="utf-8")


def configuration(directory: ModelDirectory, written: Path) -> dict[str, Any]:
    """The source's configuration.json with the names of the files in ``written``."""
    family = directory.family
    source = (directory.path if directory.folder is None else written) / CONFIGURATION
    content = read_json(source) if source.is_file() else {}
    content = {"framework": "pytorch", "task": family.task, **content}
    content["model"] = {"type": family.model_type, **content.get("model", {})}
    content["pipeline"] = {"type": family.pipeline_type, **content.get("pipeline", {})}
    names = {"ckpt_unet": UNET}
    if directory.folder is None:
        names |= {"ckpt_clip": directory.clip_path.name, "ckpt_autoencoder": directory.autoencoder_path.name}
    content["model"]["model_args"] = {**content["model"].get("model_args", {}), **names}
    return content


def _from_diffusers(directory: ModelDirectory, target: Path) -> None:
    """The other networks of a diffusers folder, by the hub's names."""
    from ..checkpoints.convert import convert

    converted = target / "converted"
    convert(directory.path, converted, to="safetensors", progress=False)
    settings = read_json(converted / CONFIGURATION)
    (converted / settings["model"]["model_args"]["ckpt_unet"]).unlink()
    for file in converted.iterdir():
        os.replace(file, target / file.name)
    converted.rmdir()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)
