"""A model small enough to be trained in a test, and data for it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints_factory import random_state
from safetensors.torch import save_file

from modelscope_i2v.data.cache import CacheWriter
from modelscope_i2v.encoders.clip import build
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.spec.families import FAMILIES
from modelscope_i2v.spec.network import AutoencoderConfig, CLIPConfig
from modelscope_i2v.training import trainer
from modelscope_i2v.training.config import TrainConfig

WIDTH = 32
FRAMES, ROWS = 4, 8

UNET = {
    "unet_dim": 32,
    "unet_dim_mult": [1, 1],
    "unet_context_dim": WIDTH,
    "unet_num_heads": 8,  # the only number that diffusers knows
    "unet_head_dim": 16,
    "unet_res_blocks": 1,
    "unet_attn_scales": [0.5],
}
DDCONFIG = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
CLIP = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": WIDTH, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, request):
    """Drawing curves takes longer than these runs; tests of them ask for it."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(trainer, "draw", lambda curve, path: None)
        monkeypatch.setattr(trainer, "Board", _NoBoard)


@pytest.fixture
def pictures():
    """Curves are drawn and logged."""


class _NoBoard:
    def __init__(self, *_: Any) -> None: ...

    def point(self, point: Any) -> None: ...

    def picture(self, image: Any, step: int) -> None: ...

    def close(self) -> None: ...


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Callable[[str], Path]:
    """A family's model directory, with random weights."""
    root = tmp_path_factory.mktemp("models")

    def hashable(values: dict) -> dict:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    def model(name: str) -> Path:
        directory, family = root / name, FAMILIES[name]
        if directory.is_dir():
            return directory
        directory.mkdir()
        sizes = {key.removeprefix("unet_"): value for key, value in hashable(UNET).items()}
        config = dataclasses.replace(family.unet, image_dim=WIDTH, **sizes)
        parts = {"unet": STUNet(config), "clip": build(CLIPConfig(custom=CLIP))}
        parts["autoencoder"] = AutoencoderKL(AutoencoderConfig(**hashable(DDCONFIG)))
        for part, network in parts.items():
            save_file(random_state(network), directory / f"{part}.safetensors")
        cfg = {**UNET, "ddconfig": DDCONFIG, "clip": CLIP, "max_frames": FRAMES, "height": 64, "width": 64}
        settings = {
            "framework": "pytorch",
            "task": family.task,
            "model": {
                "type": family.model_type,
                "model_args": {f"ckpt_{part}": f"{part}.safetensors" for part in parts},
                "model_cfg": {**cfg, **({"unet_y_dim": WIDTH} if family.reads_image else {})},
            },
            "pipeline": {"type": family.pipeline_type},
        }
        (directory / "configuration.json").write_text(json.dumps(settings))
        return directory

    return model


@pytest.fixture(scope="session")
def caches(tmp_path_factory) -> Callable[[str], Path]:
    """A family's cache of eight random clips and two pictures."""
    root = tmp_path_factory.mktemp("caches")

    def cache(name: str) -> Path:
        family, directory = FAMILIES[name], root / name
        if directory.is_dir():
            return directory
        random = np.random.default_rng(0)
        rows = ROWS + 2 if family.takes_video else ROWS
        writer = CacheWriter(directory, made_by="a test")
        writer.add_texts(["", "one", "two"], random.standard_normal((3, 77, WIDTH)))
        for index in range(10):
            shape = (FRAMES if index < 8 else 1, 4, rows, ROWS)
            more = {"image": random.standard_normal(WIDTH)} if family.reads_image else {}
            if family.takes_video:
                more["source"] = random.standard_normal(shape)
            # Plain colours with a little grain: learned in a few steps, and no two frames are alike.
            latents = random.standard_normal((1, 4, 1, 1)) + 0.1 * random.standard_normal(shape)
            writer.add(latents, caption=("one", "two")[index % 2], fps=6.0 + index, **more)
        return writer.finish()

    return cache


@pytest.fixture
def configured(models, caches, tmp_path) -> Callable[..., TrainConfig]:
    """A configuration of a short run on a family's cache."""

    def config(name: str = "text-to-video-synthesis", **changes: Any) -> TrainConfig:
        values = {
            "model": str(models(name)),
            "output": str(tmp_path / "run"),
            "data": {"cache": str(caches(name))},
            "steps": 4,
            "warmup": 1,
            "batch_size": 2,
            "lr": 1e-3,
            "log_every": 1,
            "device": "cpu",
        }
        return TrainConfig.of({**values, **changes})

    return config
