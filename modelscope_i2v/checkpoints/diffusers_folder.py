"""Folders as diffusers' ``save_pretrained`` writes them: one of configurations, and weights a component."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import CheckpointError
from ..spec.families import I2VGEN_XL, LATENT_SCALE, TEXT_TO_VIDEO, Family
from ..spec.network import AutoencoderConfig, CLIPConfig, STUNetConfig, clip_misfit
from ..spec.options import SIZE_STEP
from .key_maps import Layout, autoencoder_names, image_names, text_names, unet_names
from .kinds import Part
from .sections import DEEPEST, LARGEST, Section, checked_options
from .tensors import TensorFile, read_tensors

MODEL_INDEX = "model_index.json"

PIPELINES: dict[str, Family] = {"I2VGenXLPipeline": I2VGEN_XL, "TextToVideoSDPipeline": TEXT_TO_VIDEO}
"""The pipeline classes whose folders are read."""

DOUBLED = "modelscope_i2v_image_channels_doubled"
"""The key of unet/config.json that tells that ``conv_in``'s image channels are twice the original's."""

PREDICTIONS = {"v": "v_prediction", "eps": "epsilon"}
"""What schedulers' configurations call a family's prediction."""

TRANSFORMER_IN_HEADS = 8
"""diffusers builds its U-Nets' first temporal transformer with so many heads, whatever the configuration."""

VIT_H_14: dict[str, Any] = {
    "embed_dim": 1024,
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}
"""The sizes of the CLIP that all hub checkpoints have."""

_UNREAD_VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 32}
_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
_VARIANTS = ("", ".fp32", ".fp16", ".bf16")


@dataclass(frozen=True)
class DiffusersFolder:
    """What a folder's configurations say; no weights have been read yet."""

    path: Path
    family: Family
    unet: STUNetConfig
    autoencoder: AutoencoderConfig
    clip: CLIPConfig
    defaults: dict[str, Any]
    doubled: bool
    """The U-Net's picture channels are marked as twice the original's, as diffusers needs them."""

    @classmethod
    def open(cls, path: Path) -> DiffusersFolder:
        """Reads ``model_index.json`` and the components' configurations.

        Raises CheckpointError for another pipeline, a component that is missing, and sizes that are not
        of this family.
        """
        index = Section.read(path / MODEL_INDEX)
        name = index.text("_class_name")
        if name not in PIPELINES:
            raise index.error("_class_name", f"one of those that are read here: {', '.join(PIPELINES)}")
        family = PIPELINES[name]
        unet = _config(path, "unet")
        autoencoder = _autoencoder(_config(path, "vae"))
        clip = _clip(
            _config(path, "text_encoder"),
            _config(path, "image_encoder") if family.reads_image else None,
            unread_layers=0 if family.reads_image else 1,
        )
        family = _predicting(path, family)
        return cls(
            path=path,
            family=family,
            unet=_unet(unet, family),
            autoencoder=autoencoder,
            clip=clip,
            defaults={}
            if family.reads_image
            else checked_options(_size(unet, autoencoder.factor), unet.file),
            doubled=family.unet.local_image and bool(unet.get(DOUBLED, bool, "true or false")),
        )

    def read(self, part: Part, *, mmap: bool = True) -> TensorFile:
        """The weights of one of the hub's networks, by the hub's names, memory-mapped.

        Args:
            mmap: see :func:`modelscope_i2v.checkpoints.tensors.read_tensors`.

        Raises CheckpointError for files that are missing or do not fit their configuration.
        """
        files = []
        for layout in layouts(self, part, self.doubled):
            folder = self.path / layout.component
            theirs = _weights(folder, mmap)
            files.append(replace(theirs, tensors=layout.to_hub(theirs.tensors, folder)))
        return TensorFile.joined(files[0].path, files)


class Networks(Protocol):
    """What says how large a model's networks are: a folder, or a model directory of any layout."""

    @property
    def family(self) -> Family: ...
    @property
    def unet(self) -> STUNetConfig: ...
    @property
    def autoencoder(self) -> AutoencoderConfig: ...
    @property
    def clip(self) -> CLIPConfig: ...


def layouts(model: Networks, part: Part, doubled: bool = False) -> list[Layout]:
    """The components that hold one of a model's networks."""
    # The networks are imported where they are needed: a configuration is read without torch's modules.
    import torch

    from ..encoders.clip import TextEncoder, build
    from ..networks.autoencoder import AutoencoderKL
    from ..networks.stunet import STUNet

    with torch.device("meta"):
        if part == "unet":
            shapes = _shapes(STUNet(model.unet))
            return [Layout("unet", unet_names(model.unet), shapes, doubled)]
        if part == "autoencoder":
            return [
                Layout("vae", autoencoder_names(model.autoencoder), _shapes(AutoencoderKL(model.autoencoder)))
            ]
        if not model.family.reads_image:
            shapes = _shapes(TextEncoder(model.clip))
            return [Layout("text_encoder", text_names(_blocks(shapes, "transformer.")), shapes)]
        shapes = _shapes(build(model.clip))
    image = {key: shape for key, shape in shapes.items() if key.startswith("visual.")}
    unheld = ("text_projection", "logit_scale", "logit_bias")  # there is no place for them in a folder
    text = {key: shape for key, shape in shapes.items() if key not in image and key not in unheld}
    return [
        Layout("text_encoder", text_names(_blocks(text, "transformer.")), text),
        Layout("image_encoder", image_names(_blocks(image, "visual.transformer.")), image),
    ]


def _shapes(network: Any) -> dict[str, Any]:
    return {key: tensor.shape for key, tensor in network.state_dict().items()}


def _blocks(shapes: dict[str, Any], tower: str) -> int:
    start = f"{tower}resblocks."
    return len({key[len(start) :].split(".")[0] for key in shapes if key.startswith(start)})


def _config(path: Path, component: str) -> Section:
    file = path / component / "config.json"
    if not os.path.exists(file):
        raise CheckpointError(
            f"{path} lacks its component {component}: there is no {file}. Get the folder again, with all "
            f"that its {MODEL_INDEX} names."
        )
    return Section.read(file)


def _required(section: Section, key: str, standard: int | None = None, at_most: int = LARGEST) -> int:
    value = section.integer(key, at_most=at_most)
    value = standard if value is None else value
    if value is None:
        raise section.error(key, "a whole number from 1 up")
    return value


def _same(section: Section, standards: dict[str, Any]) -> None:
    """Refuses values that mean another computation than the one that this package does."""
    for key, right in standards.items():
        value = section.values.get(key)
        if value is not None and value != right:
            raise section.error(key, f"{right!r}: nothing else is computed here")


def _unet(section: Section, family: Family) -> STUNetConfig:
    widths = section.integers("block_out_channels") or (320, 640, 1280, 1280)
    down = section.get("down_block_types", list, "a list") or ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"]
    _same(section, {"norm_num_groups": 32, "act_fn": "silu", "norm_eps": 1e-5, "mid_block_scale_factor": 1})
    if len(down) != len(widths):
        raise section.error("down_block_types", f"{len(widths)} names, as many as block_out_channels")
    up = ["UpBlock3D" if name == "DownBlock3D" else "CrossAttnUpBlock3D" for name in reversed(down)]
    _same(section, {"up_block_types": up})
    if any(width % widths[0] for width in widths) or widths[0] % 32:
        raise section.error("block_out_channels", "multiples of the first, and that a multiple of 32")
    head_dim = _required(section, "attention_head_dim", 64)
    if any(width % head_dim for width in widths):
        raise section.error("attention_head_dim", "a divisor of all block_out_channels")
    context_dim = _required(section, "cross_attention_dim", 1024)
    return replace(
        family.unet,
        in_dim=_required(section, "in_channels", 4),
        out_dim=_required(section, "out_channels", 4),
        dim=widths[0],
        dim_mult=tuple(width // widths[0] for width in widths),
        res_blocks=_required(section, "layers_per_block", 2, DEEPEST),
        attn_scales=tuple(0.5**level for level, name in enumerate(down) if name != "DownBlock3D"),
        num_heads=TRANSFORMER_IN_HEADS,
        head_dim=head_dim,
        context_dim=context_dim,
        image_dim=context_dim,
    )


def _size(unet: Section, factor: int) -> dict[str, int]:
    """The default height and width in pixels."""
    size = unet.values.get("sample_size")
    if type(size) is int and size > 0:
        return {"height": size * factor, "width": size * factor}
    sizes = unet.integers("sample_size")
    if sizes is None:
        return {}
    if len(sizes) != 2:
        raise unet.error("sample_size", "a whole number, or height and width")
    return {"height": sizes[0] * factor, "width": sizes[1] * factor}


def _autoencoder(section: Section) -> AutoencoderConfig:
    widths = section.integers("block_out_channels") or (128, 256, 512, 512)
    if any(width % widths[0] for width in widths) or widths[0] % 32:
        raise section.error("block_out_channels", "multiples of the first, and that a multiple of 32")
    _same(section, {"norm_num_groups": 32, "act_fn": "silu", "scaling_factor": LATENT_SCALE})
    latent = _required(section, "latent_channels", 4)
    config = AutoencoderConfig(
        ch=widths[0],
        ch_mult=tuple(width // widths[0] for width in widths),
        num_res_blocks=_required(section, "layers_per_block", 2, DEEPEST),
        in_channels=_required(section, "in_channels", 3),
        out_ch=_required(section, "out_channels", 3),
        z_channels=latent,
        embed_dim=latent,
    )
    if SIZE_STEP % config.factor:
        raise section.error("block_out_channels", f"at most four: sizes are multiples of {SIZE_STEP} pixels")
    return config


def _clip(text: Section, image: Section | None, unread_layers: int) -> CLIPConfig:
    """Both towers' sizes in open_clip's terms.

    ``unread_layers``: how many of the text tower's last layers the folder leaves out, since nothing reads
    them: one for text-to-video, none for I2VGen-XL (whose pipeline skips the last itself).
    """
    for section in (text, image):
        if section is not None:
            _same(section, {"hidden_act": "gelu", "layer_norm_eps": 1e-5})
    width = _required(text, "hidden_size")
    text_cfg = {
        "context_length": _required(text, "max_position_embeddings", 77),
        "vocab_size": _required(text, "vocab_size", 49408, 1 << 20),
        "width": width,
        "heads": _required(text, "num_attention_heads"),
        "layers": _required(text, "num_hidden_layers", at_most=DEEPEST) + unread_layers,
    } | _mlp_ratio(text)
    _check_towers(text, _UNREAD_VISION, text_cfg)
    if image is None:
        whole = text_cfg == VIT_H_14["text_cfg"]
        custom = {"embed_dim": width, "vision_cfg": _UNREAD_VISION, "text_cfg": text_cfg}
        return CLIPConfig() if whole else CLIPConfig(custom=custom)
    image_width, heads = _required(image, "hidden_size"), _required(image, "num_attention_heads")
    if image_width % heads:
        raise image.error("num_attention_heads", f"a divisor of hidden_size ({image_width})")
    vision_cfg = {
        "image_size": _required(image, "image_size", 224, 4096),
        "layers": _required(image, "num_hidden_layers", at_most=DEEPEST),
        "width": image_width,
        "head_width": image_width // heads,
        "patch_size": _required(image, "patch_size"),
    } | _mlp_ratio(image)
    _check_towers(image, vision_cfg, text_cfg)
    projection = _required(image, "projection_dim")
    custom = {"embed_dim": projection, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    return CLIPConfig() if custom == VIT_H_14 else CLIPConfig(custom=custom)


def _check_towers(section: Section, vision_cfg: dict[str, Any], text_cfg: dict[str, Any]) -> None:
    if problem := clip_misfit(vision_cfg, text_cfg):
        raise CheckpointError(f"{section.file} does not work: as open_clip calls it, {problem}.")


def _mlp_ratio(section: Section) -> dict[str, float]:
    ratio = _required(section, "intermediate_size") / _required(section, "hidden_size")
    return {} if ratio == 4 else {"mlp_ratio": ratio}


def _predicting(path: Path, family: Family) -> Family:
    """The family with what the scheduler's configuration says that the weights predict.

    Sampling follows the original, not that file. Only text-to-video's weights come in both kinds.
    """
    file = path / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return family
    section = Section.read(file)
    if family is TEXT_TO_VIDEO:
        for prediction, name in PREDICTIONS.items():
            if section.values.get("prediction_type") == name:
                return replace(family, prediction=prediction)
    _same(section, {"prediction_type": PREDICTIONS[family.prediction]})
    return family


def _weights(folder: Path, mmap: bool) -> TensorFile:
    """All weights of a component: one file, or the shards that an index names."""
    for name in _candidates(folder):
        if not os.path.exists(folder / name):
            continue
        if name.endswith(".json"):
            return _shards(folder / name, mmap)
        return read_tensors(folder / name, mmap=mmap)
    raise CheckpointError(
        f"There are no weights in {folder}: it should hold {_NAMES[0]}.safetensors, {_NAMES[1]}.safetensors "
        "or .bin, or shards with their index. Get the folder again."
    )


def _candidates(folder: Path) -> Iterator[str]:
    """The names that weights may have, the best first: full precision, safetensors, whole."""
    for variant in _VARIANTS:
        for suffix in ("safetensors", "bin"):
            for name in _NAMES:
                yield f"{name}{variant}.{suffix}"
                yield f"{name}.{suffix}.index{variant}.json"
                yield f"{name}{variant}.{suffix}.index.json"


def _shards(index: Path, mmap: bool) -> TensorFile:
    root = Section.read(index)
    values = root.section("weight_map").values.values()
    if not values or not all(isinstance(name, str) and Path(name).name == name != ".." for name in values):
        raise root.error("weight_map", "an object that names a file of the same folder for each tensor")
    names = sorted(set(values))
    for name in names:
        if not os.path.exists(index.parent / name):
            raise CheckpointError(
                f"The shard {index.parent / name}, which {index} names, is missing: get it too."
            )
    return TensorFile.joined(index.parent, [read_tensors(index.parent / name, mmap=mmap) for name in names])
