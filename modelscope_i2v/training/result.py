"""What a run leaves: a model directory in the hub's layout, ready to be published."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoints.directory import CONFIGURATION, ModelDirectory
from ..checkpoints.tensors import SUFFIXES
from ..errors import NumericalError, OutputError
from . import card

if TYPE_CHECKING:
    from .trainer import Trainer

UNET = "unet.safetensors"


def write_model(
    target: Path,
    directory: ModelDirectory,
    weights: Mapping[str, Tensor],
    *,
    fill: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Writes a model directory: a U-Net's weights in fp16, beside the other networks of ``directory``.

    Files that stay as they are become hard links where the disk allows it. The directory appears when it is
    whole, in the place of one that was there.

    Args:
        fill: puts more files into the directory before that.

    Raises:
        NumericalError: a weight is too large for fp16.
        OutputError: it cannot be written.
    """
    half = {name: tensor.detach().cpu().half().contiguous() for name, tensor in weights.items()}
    for name, tensor in half.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"The weight {name} is NaN, or too large for fp16; nothing was written.")
    partial, before = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "before"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if directory.folder is not None:
            _from_diffusers(directory, partial)
        else:
            for file in (directory.clip_path, directory.autoencoder_path):
                _link(file, partial / file.name)
        save_file(half, partial / UNET)
        settings = json.dumps(configuration(directory, partial), indent=2, ensure_ascii=False)
        (partial / CONFIGURATION).write_text(settings + "\n", encoding="utf-8")
        fill(partial)
        shutil.rmtree(before, ignore_errors=True)
        if target.exists():
            os.replace(target, before)
        os.replace(partial, target)
        shutil.rmtree(before, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # the latter for a full disk, too
        raise OutputError(f"The model {target} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def fill(path: Path, trainer: Trainer, caption: str) -> None:
    """Puts the model card into a model directory that is being written, and what it speaks of.

    ``caption`` is an example of the data's.
    """
    config, family, directory = trainer.config, trainer.family, trainer.directory
    settings = json.dumps(config.to_dict(), indent=2, ensure_ascii=False)
    (path / "train.json").write_text(settings + "\n", encoding="utf-8")
    for name in ("curve.png", "curve.jsonl"):
        if (trainer.output / name).is_file():
            shutil.copyfile(trainer.output / name, path / name)
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
    facts = {
        "mode": config.mode,
        "steps": f"{trainer.step:,}",
        "clips a step": config.batch_size * config.gradient_accumulation * trainer.machine.world,
        "clips in the data": f"{len(trainer.batches.data):,}",
        "learning rate": f"{config.lr:g}, {config.lr_schedule}",
        "last loss": f"{trainer.curve[-1]['loss']:.4f}",
        "hours": f"{trainer.seconds / 3600:.2f}",
        "seed": config.seed,
    }
    fields = {key: value for key, value in config.card.items() if key != "name"}
    header = card.front_matter(family, spec, example, **fields)
    name = config.card.get("name", f"{family.name}, trained")
    (path / "README.md").write_text(card.text(family, header, name, facts, example), encoding="utf-8")


def configuration(directory: ModelDirectory, written: Path) -> dict[str, Any]:
    """The source's configuration.json with the names of the files in ``written``."""
    family = directory.family
    source = (directory.path if directory.folder is None else written) / CONFIGURATION
    content = json.loads(source.read_text(encoding="utf-8-sig")) if source.is_file() else {}
    content = {"framework": "pytorch", "task": family.task, **content}
    content["model"] = {"type": family.model_type, **content.get("model", {})}
    content["pipeline"] = {"type": family.pipeline_type, **content.get("pipeline", {})}
    names = {"ckpt_unet": UNET}
    if directory.folder is None:
        names |= {"ckpt_clip": directory.clip_path.name, "ckpt_autoencoder": directory.autoencoder_path.name}
    content["model"]["model_args"] = {**content["model"].get("model_args", {}), **names}
    return content


def _from_diffusers(directory: ModelDirectory, target: Path) -> None:
    """The other networks of a folder of diffusers, by the hub's names."""
    from ..checkpoints.convert import convert

    converted = target / "converted"
    convert(directory.path, converted, to="safetensors", progress=False)
    settings = json.loads((converted / CONFIGURATION).read_text(encoding="utf-8"))
    (converted / settings["model"]["model_args"]["ckpt_unet"]).unlink()
    for file in converted.iterdir():
        os.replace(file, target / file.name)
    converted.rmdir()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)
