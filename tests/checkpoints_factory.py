"""Makes checkpoint directories in the hub's layout, with random weights that are the same every time.

The weights are scaled so that activations stay near 1 and no layer is dead: layers that training
starts at zero get values like any other, so a mistake anywhere shows in the output.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modelscope_i2v.encoders.clip import build
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.spec.families import FAMILIES, TEXT_TO_VIDEO, Family
from modelscope_i2v.spec.network import AutoencoderConfig, CLIPConfig, STUNetConfig

WIDTH = 64
"""Width of the small text tower and of the small image embedding."""

# Norms have 32 groups: with one channel in a group they would cancel the biases before them.
SMALL_UNET = {
    "unet_dim": 64,
    "unet_dim_mult": [1, 1, 1, 2],
    "unet_context_dim": WIDTH,
    "unet_num_heads": 3,
    "unet_head_dim": 16,
    "unet_res_blocks": 1,
    "unet_attn_scales": [1, 0.5, 0.25],
}
SMALL_DDCONFIG = {"ch": 64, "ch_mult": [1, 1, 1, 2], "num_res_blocks": 1}
SMALL_CLIP = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 224, "patch_size": 56, "width": WIDTH, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 4, "layers": 3},
}
FULL_T2V = {
    "unet_in_dim": 4,
    "unet_dim": 320,
    "unet_y_dim": 768,
    "unet_context_dim": 1024,
    "unet_out_dim": 4,
    "unet_dim_mult": [1, 2, 4, 4],
    "unet_num_heads": 8,
    "unet_head_dim": 64,
    "unet_res_blocks": 2,
    "unet_attn_scales": [1, 0.5, 0.25],
    "unet_dropout": 0.1,
    "temporal_attention": "True",
    "num_timesteps": 1000,
    "mean_type": "eps",
    "var_type": "fixed_small",
    "loss_type": "mse",
}
FULL_LIGHTNING_BYTES = 5_214_865_159
"""Size of the autoencoder's file at full size: most of it is a whole Stable Diffusion 2.1."""


@dataclass(frozen=True)
class Configs:
    """The sizes of one checkpoint's three networks."""

    unet: STUNetConfig
    autoencoder: AutoencoderConfig
    clip: CLIPConfig


def configs(task: str, small: bool = True) -> Configs:
    """The sizes of a task's networks, small or those of the hub."""
    family = FAMILIES[task]
    if not small:
        return Configs(family.unet, AutoencoderConfig(), CLIPConfig())
    sizes = {key.removeprefix("unet_"): _hashable(value) for key, value in SMALL_UNET.items()}
    return Configs(
        dataclasses.replace(family.unet, image_dim=WIDTH, **sizes),
        AutoencoderConfig(**{key: _hashable(value) for key, value in SMALL_DDCONFIG.items()}),
        CLIPConfig(custom=SMALL_CLIP),
    )


def random_state(network: nn.Module, seed: int = 0) -> OrderedDict[str, Tensor]:
    """Random values for each tensor of a network (which may be on ``meta``), fp32.

    A tensor's values depend on ``seed`` and its key alone.
    """
    return OrderedDict(
        (key, random_tensor(key, tensor, seed) if tensor.is_floating_point() else tensor)
        for key, tensor in network.state_dict().items()
    )


def random_tensor(key: str, like: Tensor, seed: int = 0) -> Tensor:
    """Values of about unit gain: weights by their fan-in, norms near 1, biases near 0."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()) + seed)
    values = torch.randn(like.shape, generator=generator)
    if like.ndim == 0:
        return values.mul_(0.1).add_(1)
    if like.ndim == 1:
        return values.mul_(0.1).add_(1.0 if key.endswith(".weight") else 0.0)
    # Twice as strong queries and keys would be chaotic; halved outputs keep frames off black and white.
    gain = 0.5 if key.endswith(("decoder.conv_out.weight", "out.2.weight")) else 1.0
    return values.mul_(gain / math.sqrt(math.prod(like.shape[1:])))


def networks(sizes: Configs) -> dict[str, nn.Module]:
    """The three networks on the ``meta`` device, for their keys and shapes."""
    with torch.device("meta"):
        return {
            "unet": STUNet(sizes.unet),
            "clip": build(sizes.clip),
            "autoencoder": AutoencoderKL(sizes.autoencoder),
        }


def configuration(family: Family, small: bool = True) -> dict[str, Any]:
    """A configuration.json with the hub's keys, and our own for small sizes."""
    args: dict[str, Any] = {
        "ckpt_unet": family.unet_file,
        "ckpt_clip": family.clip_file,
        "ckpt_autoencoder": family.autoencoder_file,
    }
    if family is TEXT_TO_VIDEO:
        args |= {"max_frames": 4 if small else 16, "tiny_gpu": 1}
        cfg = dict(FULL_T2V)
    else:
        args["seed"] = 8888
        cfg = {
            "batch_size": 1,
            "target_fps": family.target_fps,
            "max_frames": 4 if small else 32,
            "latent_hei": 8 if small else 32,
            "latent_wid": 16 if small else 56,
        }
    if family.takes_video:
        args["solver_mode"] = "fast"
    if small:
        cfg |= {**SMALL_UNET, "ddconfig": SMALL_DDCONFIG, "clip": SMALL_CLIP}
        if family.unet.image_tokens:
            cfg["unet_y_dim"] = WIDTH
    return {
        "framework": "pytorch",
        "task": family.task,
        "model": {"type": family.model_type, "model_args": args, "model_cfg": cfg},
        "pipeline": {"type": family.pipeline_type},
    }


def make_checkpoint(
    directory: Path,
    task: str,
    *,
    small: bool = True,
    seed: int = 0,
    unet_format: str = "pth",
    dtype: torch.dtype = torch.float32,
    model_args: Mapping[str, Any] | None = None,
    model_cfg: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a checkpoint directory as the hub has it.

    Args:
        directory: made if it is not there.
        task: one of :data:`modelscope_i2v.spec.families.FAMILIES`.
        small: a few megabytes of weights; else the hub's sizes, of which all but the U-Net's 5.7 GB
            and CLIP's 3.9 GB are zeros that take up disk, not memory.
        unet_format: ``pth`` or ``safetensors``.
        dtype: of the U-Net's tensors.
        model_args, model_cfg: keys of the configuration to set.

    Returns:
        The directory.
    """
    family, sizes = FAMILIES[task], configs(task, small)
    directory.mkdir(parents=True, exist_ok=True)
    settings = configuration(family, small)
    settings["model"]["model_args"] |= model_args or {}
    settings["model"]["model_cfg"] |= model_cfg or {}
    args = settings["model"]["model_args"]
    args["ckpt_unet"] = str(Path(args["ckpt_unet"]).with_suffix(f".{unet_format}"))
    (directory / "configuration.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")

    modules = networks(sizes)
    save_unet(directory / args["ckpt_unet"], random_state(modules["unet"], seed), family, dtype)
    torch.save(random_state(modules["clip"], seed), directory / args["ckpt_clip"])
    autoencoder = random_state(modules["autoencoder"], seed)
    bulk = 0 if small else FULL_LIGHTNING_BYTES - sum(tensor.nbytes for tensor in autoencoder.values())
    save_lightning(directory / args["ckpt_autoencoder"], autoencoder, bulk)
    return directory


def save_unet(path: Path, state: Mapping[str, Tensor], family: Family, dtype: torch.dtype) -> None:
    """Flat for text-to-video and in .safetensors, else beside the training step."""
    state = OrderedDict((key, tensor.to(dtype)) for key, tensor in state.items())
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif family is TEXT_TO_VIDEO:
        torch.save(state, path)
    else:
        torch.save({"state_dict": state, "step": 789_000}, path)


def save_lightning(path: Path, autoencoder: Mapping[str, Tensor], bulk: int = 0) -> None:
    """The autoencoder inside a Lightning checkpoint, whose pickle names classes of Lightning.

    ``bulk`` bytes of other weights stand beside it, as in Stable Diffusion's own file.
    """

    class ModelCheckpoint:
        __module__ = "pytorch_lightning.callbacks.model_checkpoint"

    ModelCheckpoint.__qualname__ = "ModelCheckpoint"

    def scalar(*_: Any) -> None:
        raise AssertionError("only its name is saved")

    scalar.__module__, scalar.__qualname__ = "numpy.core.multiarray", "scalar"

    class Number:
        def __reduce__(self) -> tuple[Any, ...]:
            return scalar, (np.dtype("f8"), np.float64(0.125).tobytes())

    state = OrderedDict((f"first_stage_model.{key}", tensor) for key, tensor in autoencoder.items())
    state["betas"] = torch.linspace(0.00085, 0.012, 1000)
    state["model.diffusion_model.time_embed.0.weight"] = torch.ones(4, 4)
    state["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    rows = 1 << 22
    for index in range(bulk // (4 * rows)):
        state[f"model.diffusion_model.bulk.{index}.weight"] = torch.zeros(rows)
    with pretended(ModelCheckpoint, scalar):
        callbacks = {ModelCheckpoint: {"best_model_score": Number(), "best_model_path": ""}}
        torch.save({"epoch": 3, "global_step": 875_000, "callbacks": callbacks, "state_dict": state}, path)


@contextmanager
def pretended(*named: Any) -> Iterator[None]:
    """Lets pickle find each class or function under its ``__module__``."""
    before = {item.__module__: sys.modules.get(item.__module__) for item in named}
    parents = {name.rsplit(".", depth)[0] for name in before for depth in range(1, name.count(".") + 1)}
    before |= {name: None for name in parents if name not in sys.modules}
    try:
        for name in before:
            sys.modules[name] = types.ModuleType(name)
        for item in named:
            setattr(sys.modules[item.__module__], item.__qualname__, item)
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
