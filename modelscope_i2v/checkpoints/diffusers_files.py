"""The small files of a diffusers folder: configurations, scheduler and tokenizer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..spec.families import LATENT_SCALE, Family
from ..spec.network import AutoencoderConfig, CLIPConfig, STUNetConfig
from .diffusers_folder import DOUBLED, MODEL_INDEX, PIPELINES, PREDICTIONS, TRANSFORMER_IN_HEADS

_VERSION = "0.27.0"
"""The diffusers since which these folders are understood (the first with I2VGen-XL)."""

_SCHEDULES = {"sqrt_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
_START, _END = "<|startoftext|>", "<|endoftext|>"
_PADDING = "!"
"""The token of number 0, with which OpenCLIP fills up; other CLIPs fill up with the end token."""


def check_convertible(
    family: Family, unet: STUNetConfig, autoencoder: AutoencoderConfig, source: Path
) -> None:
    """Raises CheckpointError for a model that diffusers has no pipeline or no network for."""
    if family.name not in [known.name for known in PIPELINES.values()]:
        kinds = ", ".join(family.name for family in PIPELINES.values())
        raise CheckpointError(
            f"{source} is a {family.name} model, which diffusers has no pipeline for; it has one for {kinds}."
        )
    wrong = []
    if unet.num_heads != TRANSFORMER_IN_HEADS:
        wrong.append(f"its unet_num_heads is {unet.num_heads} and should be {TRANSFORMER_IN_HEADS}")
    if unet.local_image and unet.image_dim != unet.context_dim:
        wrong.append(f"its unet_y_dim is {unet.image_dim} and should be unet_context_dim, {unet.context_dim}")
    if unet.local_image and unet.image_tokens != unet.in_dim:
        wrong.append(f"its unet_image_tokens is {unet.image_tokens} and should be {unet.in_dim}")
    if autoencoder.embed_dim != autoencoder.z_channels:
        wrong.append(
            f"its ddconfig.embed_dim is {autoencoder.embed_dim} and should be z_channels, "
            f"{autoencoder.z_channels}"
        )
    if wrong:
        raise CheckpointError(f"diffusers cannot build the networks of {source}: {'; '.join(wrong)}.")


def write_configurations(
    folder: Path,
    family: Family,
    unet: STUNetConfig,
    autoencoder: AutoencoderConfig,
    clip: CLIPConfig,
    *,
    size: tuple[int, int],
    doubled: bool,
) -> None:
    """Writes all of a folder but its weights.

    Args:
        size: default height and width in pixels, for pipelines that take them from the U-Net.
        doubled: the picture's channels of the U-Net's first convolution are written twice as large.
    """
    index: dict[str, Any] = {
        "_class_name": next(name for name, has in PIPELINES.items() if has.name == family.name),
        "_diffusers_version": _VERSION,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "I2VGenXLUNet" if unet.local_image else "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    sizes = _clip_sizes(clip)
    if family.reads_image:
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
        _write(folder / "image_encoder" / "config.json", _image_encoder(sizes))
        _write(folder / "feature_extractor" / "preprocessor_config.json", _feature_extractor(sizes))
    _write(folder / MODEL_INDEX, index)
    _write(folder / "unet" / "config.json", _unet(unet, size, autoencoder.factor, doubled))
    _write(folder / "vae" / "config.json", _autoencoder(autoencoder))
    _write(folder / "text_encoder" / "config.json", _text_encoder(sizes, 0 if family.reads_image else 1))
    _write(folder / "scheduler" / "scheduler_config.json", _scheduler(family))
    _write_tokenizer(folder / "tokenizer", sizes["text_cfg"])


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def _unet(config: STUNetConfig, size: tuple[int, int], factor: int, doubled: bool) -> dict[str, Any]:
    down = [
        "CrossAttnDownBlock3D" if 0.5**level in config.attn_scales else "DownBlock3D"
        for level in range(len(config.dim_mult))
    ]
    height, width = (side // factor for side in size)
    content = {
        "_class_name": "I2VGenXLUNet" if config.local_image else "UNet3DConditionModel",
        "_diffusers_version": _VERSION,
        "sample_size": height if height == width or config.local_image else [height, width],
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "block_out_channels": [config.dim * multiple for multiple in config.dim_mult],
        "down_block_types": down,
        "up_block_types": [
            "UpBlock3D" if name == "DownBlock3D" else "CrossAttnUpBlock3D" for name in reversed(down)
        ],
        "layers_per_block": config.res_blocks,
        "norm_num_groups": 32,
        "cross_attention_dim": config.context_dim,
        "attention_head_dim": config.head_dim,
    }
    return content | ({DOUBLED: True} if doubled else {})


def _autoencoder(config: AutoencoderConfig) -> dict[str, Any]:
    levels = len(config.ch_mult)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": _VERSION,
        "act_fn": "silu",
        "block_out_channels": [config.ch * multiple for multiple in config.ch_mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": config.in_channels,
        "out_channels": config.out_ch,
        "latent_channels": config.z_channels,
        "layers_per_block": config.num_res_blocks,
        "norm_num_groups": 32,
        "sample_size": 64 * config.factor,
        "scaling_factor": LATENT_SCALE,
    }


def _clip_sizes(config: CLIPConfig) -> dict[str, Any]:
    """open_clip's configuration."""
    if config.custom:
        return config.custom
    import open_clip

    sizes: dict[str, Any] = open_clip.get_model_config(config.architecture)
    return sizes


def _tower(name: str, kind: str, width: int, layers: int, heads: int, ratio: float) -> dict[str, Any]:
    return {
        "architectures": [name],
        "model_type": kind,
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": int(width * ratio),
        "layer_norm_eps": 1e-05,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
    }


def _text_encoder(sizes: dict[str, Any], left_out: int) -> dict[str, Any]:
    """``left_out``: how many of the last layers stay behind, see :class:`Layout`."""
    text = sizes["text_cfg"]
    layers = text["layers"] - left_out
    content = _tower(
        "CLIPTextModel", "clip_text_model", text["width"], layers, text["heads"], text.get("mlp_ratio", 4)
    )
    vocabulary = text.get("vocab_size", 49408)
    return content | {
        "vocab_size": vocabulary,
        "max_position_embeddings": text.get("context_length", 77),
        "projection_dim": sizes["embed_dim"],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }


def _image_encoder(sizes: dict[str, Any]) -> dict[str, Any]:
    vision = sizes["vision_cfg"]
    heads = vision["width"] // vision.get("head_width", 64)
    name, kind = "CLIPVisionModelWithProjection", "clip_vision_model"
    content = _tower(name, kind, vision["width"], vision["layers"], heads, vision.get("mlp_ratio", 4))
    return content | {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "num_channels": 3,
        "projection_dim": sizes["embed_dim"],
    }


def _feature_extractor(sizes: dict[str, Any]) -> dict[str, Any]:
    side = sizes["vision_cfg"]["image_size"]
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }


def _scheduler(family: Family) -> dict[str, Any]:
    """DDIM as the originals run it: timesteps 1, 21, …, and the last step lands on the first alpha."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": _VERSION,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": _SCHEDULES[family.schedule],
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": PREDICTIONS[family.prediction],
        "rescale_betas_zero_snr": family.schedule == "cosine",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _write_tokenizer(folder: Path, text: dict[str, Any]) -> None:
    """CLIP's vocabulary, from the copy of it that open_clip brings along."""
    import open_clip
    from open_clip.tokenizer import bytes_to_unicode

    packed = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    if not packed.is_file():
        raise CheckpointError(f"open_clip's vocabulary {packed} is missing: install open_clip_torch again.")
    lines = gzip.decompress(packed.read_bytes()).decode("utf-8").split("\n")
    letters = list(bytes_to_unicode().values())
    merges = lines[1 : 49152 - 256 - 2 + 1]  # behind a line that names the version
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair.split()) for pair in merges)]
    _write(folder / "vocab.json", {word: number for number, word in enumerate([*words, _START, _END])})
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8", newline="\n"
    )
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": _PADDING}
    _write(folder / "special_tokens_map.json", special)
    _write(
        folder / "tokenizer_config.json",
        special
        | {
            "tokenizer_class": "CLIPTokenizer",
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": text.get("context_length", 77),
        },
    )
