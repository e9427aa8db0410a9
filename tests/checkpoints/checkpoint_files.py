"""Weights files as people have them: made here, small, the same every time."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints_factory import pretended
from torch import Tensor, nn

SMALL_UNET = {
    "unet_dim": 32,
    "unet_head_dim": 8,
    "unet_num_heads": 4,
    "unet_context_dim": 16,
    "unet_dim_mult": [1, 2, 4, 4],
}
SMALL_AUTOENCODER = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1}
SMALL_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def numbers(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A state dict of random tensors, ordered as torch has it."""
    generator = torch.Generator().manual_seed(seed)
    return OrderedDict(
        (key, torch.randn(shape, generator=generator).to(dtype)) for key, shape in shapes.items()
    )


class Little(nn.Module):
    """A network of three layers and a buffer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 2)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def little_state(width: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        key: tensor.to(dtype) if tensor.is_floating_point() else tensor + 7
        for key, tensor in Little(width).state_dict().items()
    }


def on_meta(width: int = 4) -> Little:
    with torch.device("meta"):
        return Little(width)


def save_lightning(path: Path, state: dict[str, Tensor], **options: Any) -> None:
    """A checkpoint as Stable Diffusion's: Lightning's callbacks and NumPy scalars beside the tensors."""

    def scalar(*_: Any) -> None:
        raise AssertionError("only its name is saved")

    scalar.__module__, scalar.__qualname__ = "numpy.core.multiarray", "scalar"
    lightning = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": lightning})
    settings = type("AttributeDict", (dict,), {"__module__": "pytorch_lightning.utilities.parsing"})
    number = type("number", (), {"__reduce__": lambda self: (scalar, (np.dtype("f8"), b"\0\0\0\0\0\0\xf0?"))})
    used = callback()
    used.best_model_score = number()
    with pretended(scalar, callback, settings):
        torch.save(
            {
                "epoch": 3,
                "global_step": 875000,
                "callbacks": {callback: {"best": number(), "callback": used}},
                "hyper_parameters": settings(rate=number(), sizes={1, 2}, raw=b"ab\xff"),
                "lr_schedulers": [{"steps": torch.arange(5)}],
                "state_dict": state,
            },
            path,
            **options,
        )


def write_configuration(directory: Path, name: str, /, **changes: Any) -> dict[str, Any]:
    """A hub-like configuration.json of a family's small model; ``changes`` are dotted with ``__``."""
    task, *types_of = {
        "image-to-video": ("image-to-video", "image-to-video-model", "image-to-video-task-pipeline"),
        "video-to-video": ("video-to-video", "video-to-video-model", "video-to-video-pipeline"),
        "text-to-video-synthesis": ("text-to-video-synthesis", *("latent-text-to-video-synthesis",) * 2),
        "i2vgen-xl": ("image-to-video", "i2vgen-xl", "i2v_gen_xl"),
    }[name]
    configuration: dict[str, Any] = {
        "framework": "pytorch",
        "task": task,
        "model": {
            "type": types_of[0],
            "model_args": {
                "ckpt_unet": "unet.pth",
                "ckpt_clip": "clip.bin",
                "ckpt_autoencoder": "v2-1_512-ema-pruned.ckpt",
            },
            "model_cfg": copy.deepcopy({**SMALL_UNET, "ddconfig": SMALL_AUTOENCODER, "clip": SMALL_CLIP}),
        },
        "pipeline": {"type": types_of[1]},
    }
    for dotted, value in changes.items():
        *parents, key = dotted.split("__")
        section = configuration
        for parent in parents:
            section = section.setdefault(parent, {})
        if value is ...:
            del section[key]
        else:
            section[key] = value
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "configuration.json").write_text(json.dumps(configuration), encoding="utf-8")
    return configuration


def touch_weights(directory: Path) -> None:
    """Files of the right names, for tests that read the configuration alone."""
    for name in ("unet.pth", "clip.bin", "v2-1_512-ema-pruned.ckpt"):
        (directory / name).write_bytes(b"-")


def change(file: Path, **values: Any) -> None:
    """Sets keys of a JSON file; ``...`` deletes one."""
    content = json.loads(file.read_text(encoding="utf-8")) | values
    content = {key: value for key, value in content.items() if value is not ...}
    file.write_text(json.dumps(content), encoding="utf-8")
