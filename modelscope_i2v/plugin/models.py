"""The models of all families, in ModelScope's MODELS registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from modelscope.models.base.base_model import Model
from modelscope.models.builder import MODELS
from torch import Tensor

from ..engine.generator import VideoGenerator
from ..engine.jobs import Job
from ..spec.families import I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO, Family
from .registration import claim


class MadeVideo(NamedTuple):
    """One video before it is written."""

    job: Job
    frames: Tensor
    """[frames, 3, height, width], about -1..1; for ``output_type="latent"`` the latents instead."""


class VideoModel(Model):
    """A checkpoint, ready to make videos.

    Args:
        model_dir: a checkpoint directory in the hub's layout.
        device: ``cpu``, ``gpu``, ``cuda:1``, ``mps``; None: the best there is. Where there is no CUDA at
            all, ``gpu`` and ``cuda`` mean that too, as everywhere in ModelScope.
        dtype, torch_dtype: ``fp32``, ``fp16``, ``bf16`` or PyTorch's own; None: what suits the device.
        attention, progress, memory, compile, quantization: see
            :meth:`modelscope_i2v.engine.generator.VideoGenerator.from_directory`.
        generator: one of this directory that is there already.
        kwargs: the rest of the configuration's ``model`` section, which the directory's own reader reads.

    Attributes:
        generator: makes the videos.
    """

    family: Family
    """What it was trained with; of the class: what its model type stands for."""

    def __init__(
        self,
        model_dir: str | Path,
        *args: Any,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        attention: str = "auto",
        progress: bool | None = None,
        memory: str = "auto",
        compile: bool = False,
        quantization: str | None = None,
        generator: VideoGenerator | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(str(model_dir), trust_remote_code=kwargs.get("trust_remote_code", False))
        self.generator = generator or VideoGenerator.from_directory(
            model_dir,
            task=self.family.task,
            device=present(device),
            dtype=torch_dtype if dtype is None else dtype,
            attention=attention,
            progress=progress,
            memory=memory,
            compile=compile,
            quantization=quantization,
        )
        self.family = self.generator.family
        # Where the configuration does not say so, ModelScope asks the model which pipeline is its.
        self.pipeline = {"type": self.family.pipeline_type}

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.generator.device

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, list[MadeVideo]]:
        """Makes the videos of one sample, as the preprocessor returns it: ``{"sample": Sample}``.

        Returns:
            ``{"videos": […]}``, as many as the sample's ``num_videos``.
        """
        sample = inputs["sample"]
        return {"videos": [self._make(Job.of(sample, i)) for i in range(sample.options.num_videos)]}

    def _make(self, job: Job) -> MadeVideo:
        (latents,) = self.generator.generate([job])
        return MadeVideo(job, self.generator.finish(job, latents))


def present(device: str | torch.device | None) -> str | torch.device | None:
    """ModelScope's ``gpu`` and ``cuda:0`` are wishes: without CUDA they mean the best there is."""
    wish = str(device).lower().partition(":")[0] in ("gpu", "cuda")
    return None if wish and not torch.cuda.is_available() else device


@claim(MODELS, IMAGE_TO_VIDEO.task, IMAGE_TO_VIDEO.model_type)
class ImageToVideoModel(VideoModel):
    """Animates a picture."""

    family = IMAGE_TO_VIDEO


@claim(MODELS, I2VGEN_XL.task, I2VGEN_XL.model_type)
class I2VGenXLModel(VideoModel):
    """Animates a picture as a text says."""

    family = I2VGEN_XL


@claim(MODELS, VIDEO_TO_VIDEO.task, VIDEO_TO_VIDEO.model_type)
class VideoToVideoModel(VideoModel):
    """Makes a video larger and finer, guided by a text."""

    family = VIDEO_TO_VIDEO


@claim(MODELS, TEXT_TO_VIDEO.task, TEXT_TO_VIDEO.model_type)
class TextToVideoModel(VideoModel):
    """Makes a video of a text."""

    family = TEXT_TO_VIDEO
