"""The ``configuration.json`` of a directory in the hub's layout, for a model that came without one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import read_json
from ..spec.families import TEXT_TO_VIDEO
from ..spec.network import AutoencoderConfig, CLIPConfig
from .directory import CONFIGURATION, ModelDirectory
from .kinds import Part

ARGUMENTS: dict[Part, str] = {"unet": "ckpt_unet", "clip": "ckpt_clip", "autoencoder": "ckpt_autoencoder"}
"""The keys of ``model.model_args`` that name the parts' files."""

_OPTIONS = {"num_frames": "max_frames"}
"""Where a call's option is called otherwise in ``model.model_cfg``."""

_TEXT_TO_VIDEO = {
    "num_timesteps": 1000,
    "var_type": "fixed_small",
    "loss_type": "mse",
}
"""What the original text-to-video reads besides sizes."""


def write_configuration(model: ModelDirectory, directory: Path, files: dict[Part, str]) -> None:
    """Writes ``directory``/configuration.json: the model's own, if there is one, with new file names."""
    own = model.path / CONFIGURATION
    described = model.folder is None and own.is_file()
    content = read_json(own) if described else _made(model)
    content["model"] = dict(content.get("model") or {})
    arguments = content["model"]["model_args"] = dict(content["model"].get("model_args") or {})
    arguments |= {ARGUMENTS[part]: name for part, name in files.items()}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (directory / CONFIGURATION).write_text(text, encoding="utf-8", newline="\n")


def _made(model: ModelDirectory) -> dict[str, Any]:
    family, unet = model.family, model.unet
    cfg: dict[str, Any] = {
        "unet_in_dim": unet.in_dim,
        "unet_dim": unet.dim,
        "unet_y_dim": unet.image_dim if family.reads_image else 768,
        "unet_context_dim": unet.context_dim,
        "unet_out_dim": unet.out_dim,
        "unet_dim_mult": list(unet.dim_mult),
        "unet_num_heads": unet.num_heads,
        "unet_head_dim": unet.head_dim,
        "unet_res_blocks": unet.res_blocks,
        "unet_attn_scales": list(unet.attn_scales),
        "unet_dropout": unet.dropout,
        "temporal_attention": "True",
    }
    if unet.image_tokens:
        cfg["unet_image_tokens"] = unet.image_tokens
    if family.name == TEXT_TO_VIDEO.name:
        cfg |= {**_TEXT_TO_VIDEO, "mean_type": family.prediction}
    if model.autoencoder != AutoencoderConfig():
        cfg["ddconfig"] = asdict(model.autoencoder)
    if model.clip != CLIPConfig():
        cfg["clip"] = model.clip.custom or model.clip.architecture
    cfg |= {_OPTIONS.get(option, option): value for option, value in model.defaults.items()}
    arguments = {"max_frames": family.num_frames, "tiny_gpu": 1} if family.name == TEXT_TO_VIDEO.name else {}
    return {
        "framework": "pytorch",
        "task": family.task,
        "model": {"type": family.model_type, "model_args": arguments, "model_cfg": cfg},
        "pipeline": {"type": family.pipeline_type},
    }
