"""The trainers of all families, in ModelScope's TRAINERS registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelscope.trainers.base import BaseTrainer
from modelscope.trainers.builder import TRAINERS

from ..checkpoints.directory import ModelDirectory
from ..checkpoints.hub import fetch
from ..data.folder import row_entries
from ..engine.generator import VideoGenerator
from ..errors import InputError
from ..spec.families import Family
from ..training.config import SOURCES, TrainConfig, read_values
from ..training.trainer import Trainer
from .registration import register_families, trainer_type


class VideoTrainer(BaseTrainer):
    """Trains a model of one family, as ``modelscope-i2v train`` does.

    Args:
        model: a model directory, or an id on the hub; as ``model`` in the configuration.
        cfg_file: a JSON file with a training configuration (docs/guide/training.md).
        work_dir: as ``output`` in the configuration.
        train_dataset: an ``MsDataset`` with a column of files and one of captions; else the configuration's
            ``data`` says where clips are.
        resume: go on from the last checkpoint, if there is one.
        progress: show a bar; None: on a terminal.
        settings: values of the configuration by their names; they come before the file's.

    Attributes:
        trainer: does the work.

    Raises:
        InputError: for a configuration or data that cannot be used, and for a model of another family.
        CheckpointError: for a model directory that cannot be used.
    """

    family: Family

    def __init__(
        self,
        model: str | None = None,
        cfg_file: str | Path | None = None,
        work_dir: str | None = None,
        train_dataset: Any = None,
        resume: bool = False,
        progress: bool | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> None:
        given = {"model": model, "output": work_dir}
        settings = {**{key: value for key, value in given.items() if value is not None}, **settings}
        values = {**({} if cfg_file is None else read_values(cfg_file)), **settings}
        entries = None
        if train_dataset is not None:
            data = values.get("data")
            data = data if isinstance(data, Mapping) else {}
            how = {key: value for key, value in data.items() if key not in SOURCES}
            values["data"] = {"msdataset": "train_dataset", **how}
            entries = row_entries(train_dataset, "train_dataset", how, text=self.family.reads_text)
        config = TrainConfig.of(values, "the trainer's arguments" if cfg_file is None else str(cfg_file))
        found = ModelDirectory.open(fetch(config.model), new_unet=config.mode == "scratch").family
        if found.name != self.family.name:
            raise InputError(
                f"{config.model} is a {found.name} model; its trainer is "
                f"{trainer_type(found)!r}, not {trainer_type(self.family)!r}."
            )
        self.trainer = Trainer(config, resume=resume, progress=progress, entries=entries)

    def train(self, *args: Any, **kwargs: Any) -> Path | None:
        """Trains, as :meth:`modelscope_i2v.training.trainer.Trainer.run` does."""
        return self.trainer.run()

    def evaluate(self, checkpoint_path: str | None = None, *args: Any, **kwargs: Any) -> Mapping[str, float]:
        """Measures a model on drawn scenes: :func:`modelscope_i2v.evaluation.run.evaluate`.

        Args:
            checkpoint_path: a model directory; by default what training wrote, of LoRA beside the model that
                it belongs to.
            kwargs: of that function; of LoRA, those of the model's call, ``clips``, ``seed``, ``output``.

        Returns:
            Values by ``measure, group``.
        """
        from ..evaluation.run import evaluate

        config, output = self.trainer.config, self.trainer.output
        model: Any = checkpoint_path or output / "model"
        if checkpoint_path is None and config.mode == "lora":
            model = VideoGenerator.from_directory(fetch(config.model), device=self.trainer.device)
            model.load_lora(output / "lora.safetensors")
        report = evaluate(model, task=self.family.task, **kwargs)
        return {f"{row.measure}, {row.group}": row.estimate.value for row in report.rows}


globals().update(
    register_families(TRAINERS, VideoTrainer, lambda family: f"Trains a model that makes {family.makes}.")
)
