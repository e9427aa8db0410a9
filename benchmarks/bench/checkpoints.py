"""Checkpoint directories with random weights, of the hub's sizes or small."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import checkpoints_factory as factory
import torch
from torch import Tensor, nn

from modelscope_i2v.checkpoints.convert import convert
from modelscope_i2v.checkpoints.diffusers_folder import PIPELINES
from modelscope_i2v.checkpoints.tensors import read_tensors
from modelscope_i2v.spec.families import FAMILIES, Family

IN_DIFFUSERS = tuple(family.name for family in PIPELINES.values())
"""The families that diffusers has too."""


class Checkpoints:
    """Makes one directory after the other, with the same weights wherever shapes are the same.

    CLIP and the autoencoder are made once; each U-Net takes over what the one before it has.
    """

    def __init__(self, work: Path, small: bool) -> None:
        self.work = work
        self.small = small
        self.before: Path | None = None

    def make(self, name: str, stable_diffusion: bool = False) -> Path:
        """A family's directory in the hub's layout.

        Args:
            stable_diffusion: the autoencoder's file is as large as the hub's, which holds all of Stable
                Diffusion; that matters for loading alone.
        """
        directory = self.work / name
        if self.small:
            # diffusers' first transformer has eight heads whatever it is told.
            with mock.patch.dict(factory.SMALL_UNET, unet_num_heads=8):
                return factory.make_checkpoint(directory, name)
        directory.mkdir(parents=True)
        family, modules = FAMILIES[name], factory.networks(factory.configs(name, small=False))
        settings = factory.configuration(family, small=False)
        (directory / "configuration.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")

        self._save_unet(directory / family.unet_file, family, modules["unet"])
        clip = self.work / "clip.bin"
        if not clip.exists():
            torch.save(factory.random_state(modules["clip"]), clip)
        os.link(clip, directory / family.clip_file)
        autoencoder = factory.random_state(modules["autoencoder"])
        others = factory.FULL_LIGHTNING_BYTES - sum(tensor.nbytes for tensor in autoencoder.values())
        file = directory / family.autoencoder_file
        factory.save_lightning(file, autoencoder, others if stable_diffusion else 0)
        return directory

    def _save_unet(self, path: Path, family: Family, unet: nn.Module) -> None:
        known = read_tensors(self.before).tensors if self.before else {}
        state = {key: _weight(key, like, known) for key, like in unet.state_dict().items()}
        factory.save_unet(path, state, family, torch.float32)
        self.before = path

    def in_diffusers(self, directory: Path) -> Path | None:
        """The same model as a folder for diffusers, where that has it."""
        if directory.name not in IN_DIFFUSERS:
            return None
        folder = self.work / "diffusers"
        folder.mkdir()
        return convert(directory, folder / directory.name, to="diffusers", progress=False)

    def forget(self, directory: Path) -> None:
        """Deletes a directory's files and its folder for diffusers, but for the U-Net's weights."""
        shutil.rmtree(self.work / "diffusers", ignore_errors=True)
        for file in directory.iterdir():
            if file != self.before:
                file.unlink()
        for other in self.work.iterdir():
            if other.is_dir() and other != directory:
                shutil.rmtree(other)


def _weight(key: str, like: Tensor, known: dict[str, Tensor]) -> Tensor:
    if key in known and known[key].shape == like.shape:
        return known[key]
    return factory.random_tensor(key, like) if like.is_floating_point() else like
