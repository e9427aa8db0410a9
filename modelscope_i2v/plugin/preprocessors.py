"""The preprocessors of all families, in ModelScope's PREPROCESSORS registry."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from modelscope.preprocessors.base import Preprocessor
from modelscope.preprocessors.builder import PREPROCESSORS
from modelscope.utils.constant import ModeKeys

from ..checkpoints.directory import ModelDirectory
from ..engine import requests
from ..spec.families import Family
from .registration import register_families


class VideoPreprocessor(Preprocessor):
    """Reads an input and checks the options beside it.

    Args:
        model_dir: a checkpoint directory whose configuration.json sets defaults; None: the family's alone.
        mode: ModelScope's; these models are used for inference only.
    """

    family: ClassVar[Family]

    def __init__(
        self, model_dir: str | Path | None = None, mode: str = ModeKeys.INFERENCE, **kwargs: Any
    ) -> None:
        super().__init__(mode)
        self.defaults: dict[str, Any] = {}
        if model_dir is not None:
            self.defaults = ModelDirectory.open(model_dir, self.family.task).defaults

    def __call__(self, data: Any, **options: Any) -> dict[str, requests.Request]:
        """An input, bare or a dict, as ``{"request": Request}``. Raises InputError."""
        given = requests.resolve(self.family, data, options, self.defaults)
        return {"request": requests.read(self.family, *given)}


globals().update(
    register_families(
        PREPROCESSORS,
        VideoPreprocessor,
        lambda family: f"Reads the input of a model that makes {family.makes}.",
    )
)
