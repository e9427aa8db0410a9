"""What network a set of keys belongs to, in words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Part = Literal["unet", "autoencoder", "clip"]


@dataclass(frozen=True)
class Kind:
    """A sort of weights file, recognised by the ends of some of its keys."""

    name: str
    marks: tuple[str, ...]
    """Each must be the end of a key (a whole key, or behind a prefix and a dot)."""
    part: Part | None = None
    """What it is used as; None: it is known, but not used here."""
    families: tuple[str, ...] = ()
    """For a U-Net: the families whose networks have these keys."""


_UNET = ("input_blocks.0.0.weight", "input_blocks.1.0.temopral_conv.conv1.2.weight")
_LORA = "a LoRA (an addition to a model's weights, for load_lora)"

KINDS = (
    Kind(_LORA, ("lora_A.weight",)),
    Kind(_LORA, ("lora_down.weight",)),
    Kind(_LORA, ("lora.down.weight",)),
    Kind("an I2VGen-XL U-Net", (*_UNET, "local_image_concat.0.weight"), "unet", ("i2vgen-xl",)),
    Kind("an image-to-video U-Net", (*_UNET, "context_embedding.0.weight"), "unet", ("image-to-video",)),
    Kind(
        "a text-to-video or video-to-video U-Net (both have the same keys)",
        _UNET,
        "unet",
        ("text-to-video-synthesis", "video-to-video"),
    ),
    Kind(
        "a whole Stable Diffusion checkpoint (its autoencoder is what is used)",
        ("diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"),
        "autoencoder",
    ),
    Kind(
        "an image U-Net of Stable Diffusion, which makes no video",
        ("input_blocks.0.0.weight", "middle_block.1.norm.weight"),
    ),
    Kind(
        "a KL autoencoder",
        ("decoder.conv_in.weight", "post_quant_conv.weight", "encoder.down.0.block.0.conv1.weight"),
        "autoencoder",
    ),
    Kind(
        "an autoencoder in diffusers' layout",
        ("decoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"),
    ),
    Kind(
        "an OpenCLIP network (text and image)",
        ("visual.conv1.weight", "transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight"),
        "clip",
    ),
    Kind(
        "an OpenCLIP text tower",
        ("transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight"),
        "clip",
    ),
    Kind("an OpenCLIP image tower", ("visual.conv1.weight", "visual.class_embedding"), "clip"),
    Kind("a CLIP network in transformers' layout", ("encoder.layers.0.self_attn.k_proj.weight",)),
    Kind("an I2VGen-XL U-Net in diffusers' layout", ("conv_in.weight", "image_latents_proj_in.0.weight")),
    Kind("a video U-Net in diffusers' layout", ("conv_in.weight", "transformer_in.proj_in.weight")),
    Kind("an image U-Net in diffusers' layout", ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight")),
)
"""From the special to the general: the first whose marks are all there is it."""

_MARKS = {mark for kind in KINDS for mark in kind.marks}


def identify(keys: Iterable[str]) -> Kind | None:
    """The kind of file that has such keys, or None."""
    found = set()
    for key in keys:
        found |= {mark for mark in _MARKS if key == mark or key.endswith(f".{mark}")}
    return next((kind for kind in KINDS if found.issuperset(kind.marks)), None)
