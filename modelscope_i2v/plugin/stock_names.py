"""Names by which clients of ModelScope's own models reach into a model."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import resolve_device
from ..engine.generator import VideoGenerator
from ..errors import InputError
from ..spec.families import Family


class StockNames:
    """A part of a model's class: what public clients of stock's models read, set and call.

    A model places its networks itself, so parts are where they belong already when a client moves them one
    by one. A model as a whole that is moved is loaded again.
    """

    model_dir: str
    family: Family
    generator: VideoGenerator

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return self.generator.device

    @device.setter
    def device(self, value: str | torch.device) -> None:
        self.generator.to(value)

    def to(self, device: str | torch.device) -> Any:
        """The model on a device, loaded again if it is another.

        Raises InputError for a device that is not there, and for a model with LoRAs.
        """
        place = resolve_device(device)
        if place != self.device:
            self._load_again(device=str(place))
        return self

    def half(self) -> Any:
        """The model in half precision, loaded again if it is in fp32. Raises InputError as :meth:`to`."""
        if self.generator.dtype == torch.float32:
            self._load_again(dtype="fp16")
        return self

    def eval(self) -> Any:
        """The model, which is for inference only."""
        return self

    def _load_again(self, **changes: Any) -> None:
        old = self.generator
        if old.loras:
            raise InputError("A model with LoRAs does not move: load them after that, or load it there.")
        fields = dataclasses.fields(old.runtime)
        settings = {field.name: getattr(old.runtime, field.name) for field in fields}
        self.generator = VideoGenerator.from_directory(self.model_dir, self.family.task, **settings | changes)
        self.generator.defaults = old.defaults

    @property
    def cfg(self) -> Any:
        """The configuration, as ModelScope sets it; ``cfg.max_frames`` is the default of ``num_frames``."""
        if "_cfg" not in self.__dict__:
            raise AttributeError("cfg")  # ModelScope looks whether it is there
        return self.__dict__["_cfg"]

    @cfg.setter
    def cfg(self, config: Any) -> None:
        self.__dict__["_cfg"] = _Configuration(config, self)

    @property
    def autoencoder(self) -> nn.Module:
        """The autoencoder of pictures."""
        return self.generator.autoencoder

    @autoencoder.setter
    def autoencoder(self, value: nn.Module) -> None:
        if value is not self.autoencoder:
            raise InputError("A model's autoencoder cannot be exchanged; its directory names the file.")

    @property
    def clip_encoder(self) -> ClipEncoder:
        """CLIP's text tower."""
        return ClipEncoder(self.generator)

    @property
    def negative_y(self) -> Tensor:
        """The default negative prompt's embedding [1, 77, width] in fp32."""
        if "_negative_y" not in self.__dict__:
            negative = self.generator.defaults.get("negative_prompt", self.family.negative_prompt)
            self.__dict__["_negative_y"] = self.clip_encoder(negative)
        return self.__dict__["_negative_y"]

    @negative_y.setter
    def negative_y(self, value: Tensor) -> None:
        if not torch.equal(value.cpu(), self.negative_y.cpu()):
            raise InputError("negative_y cannot be set; a call's negative_prompt says what to avoid.")


class ClipEncoder:
    """CLIP's text tower, called with a text as stock's is.

    Attributes:
        model: the network.
        device: where it computes.
    """

    def __init__(self, generator: VideoGenerator) -> None:
        self._generator, self.model, self.device = generator, generator.text_encoder, generator.device

    def __call__(self, text: str) -> Tensor:
        """The text's embedding [1, 77, width] in fp32."""
        if self.model is None:
            raise InputError(f"{self._generator.family.name} reads no text.")
        with torch.no_grad(), self._generator.placement.on_device(self.model):
            return self.model.encode([text])


class _Configuration:
    """A view of ModelScope's configuration in which ``max_frames`` is the model's."""

    def __init__(self, config: Any, model: StockNames) -> None:
        self._config, self._model = config, model

    @property
    def max_frames(self) -> int:
        return self._model.generator.defaults.get("num_frames", self._model.family.num_frames)

    @max_frames.setter
    def max_frames(self, value: int) -> None:
        self._model.generator.defaults["num_frames"] = value

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_config"], name)

    def __getitem__(self, name: str) -> Any:
        return self._config[name]
