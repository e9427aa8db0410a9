"""Small models that diffusers can build too, in both layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import checkpoints_factory
import pytest

from modelscope_i2v.checkpoints.convert import convert


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's small model as on the hub. Not to be changed."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            # diffusers' first transformer has eight heads, whatever it is told.
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(checkpoints_factory.SMALL_UNET, "unet_num_heads", 8)
                directory = tmp_path_factory.mktemp("hub") / name
                made[name] = checkpoints_factory.make_checkpoint(directory, name)
        return made[name]

    return of


@pytest.fixture(scope="session")
def folder(hub: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same model as a diffusers folder. Not to be changed."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = convert(hub(name), tmp_path_factory.mktemp("diffusers") / name, to="diffusers")
        return made[name]

    return of
