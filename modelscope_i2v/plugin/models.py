"""The models of all families, in ModelScope's MODELS registry."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from modelscope.models.base.base_model import Model
from modelscope.models.builder import MODELS
from torch import Tensor

from ..devices import resolve_device
from ..engine.generator import VideoGenerator
from ..engine.jobs import Job
from ..spec.families import Family
from ..spec.runtime import split
from .registration import register_families
from .stock_names import StockNames


class MadeVideo(NamedTuple):
    """One video before it is written."""

    job: Job
    frames: Tensor
    """[frames, 3, height, width], about -1..1; for ``output_type="latent"`` the latents instead."""


class VideoModel(StockNames, Model):
    """A checkpoint, ready to make videos.

    Args:
        model_dir: a checkpoint directory in the hub's layout.
        kwargs: settings of :class:`modelscope_i2v.spec.runtime.Runtime`; where there is no CUDA at all,
            ``gpu`` and ``cuda`` mean the best there is, as everywhere in ModelScope. And the rest of the
            configuration's ``model`` section, which the directory's own reader reads.
        generator: one of this directory that is there already.

    Attributes:
        generator: makes the videos.
    """

    family: Family
    """What it was trained with; of the class: what its model type stands for."""

    def __init__(
        self,
        model_dir: str | Path,
        *args: Any,
        generator: VideoGenerator | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(str(model_dir), trust_remote_code=kwargs.get("trust_remote_code", False))
        if generator is None:
            settings, _ = split(kwargs)
            settings["device"] = present(settings.get("device"))
            generator = VideoGenerator.from_directory(model_dir, task=self.family.task, **settings)
        self.generator = generator
        self.family = self.generator.family
        # Where the configuration does not say so, ModelScope asks the model which pipeline is its.
        self.pipeline = {"type": self.family.pipeline_type}

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, list[MadeVideo]]:
        """Makes the videos of one request, as the preprocessor returns it: ``{"request": Request}``.

        Returns:
            ``{"videos": […]}``, as many as the request's ``num_videos``.
        """
        request = inputs["request"]
        return {"videos": [self._make(Job.of(request, i)) for i in range(request.options.num_videos)]}

    def _make(self, job: Job) -> MadeVideo:
        (latents,) = self.generator.generate([job])
        return MadeVideo(job, self.generator.finish(job, latents))


def present(device: str | torch.device | None) -> str | torch.device | None:
    """A device as :class:`~modelscope_i2v.spec.runtime.Runtime` takes it; None: the best there is.

    ModelScope asks for ``gpu`` (``cuda`` and ``cuda:0`` in places) where its caller has named no device, so
    without a GPU these are the best there is, silently; another CUDA device is too, with a warning.
    """
    name = str(device).lower()
    if torch.cuda.is_available() or name.partition(":")[0] not in ("gpu", "cuda"):
        return device
    if name not in ("gpu", "gpu:0", "cuda", "cuda:0"):
        best = resolve_device(None)
        warnings.warn(f"device={name!r}: PyTorch finds no CUDA here; {best} is used.", stacklevel=2)
    return None


globals().update(
    register_families(MODELS, VideoModel, lambda family: f"A checkpoint that makes {family.makes}.")
)
