"""How diffusers and transformers name what the hub's files hold: tables, applied in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..spec.network import AutoencoderConfig, STUNetConfig
from .load import Differences

Names = dict[str, "str | tuple[str, ...]"]
"""From the hub's name of a module (or of a tensor) to theirs; a tuple where they hold it in parts, one
behind the other in the hub's first dimension."""

Component = Literal["unet", "vae", "text_encoder", "image_encoder"]

# The hub's names on the left. What no row names is called alike on both sides.

UNET: Names = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "input_blocks.0.1": "transformer_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "local_image_concat": "image_latents_proj_in",
    "local_image_embedding": "image_latents_context_embedding",
    "local_temporal_encoder.layers.0.0.norm": "image_latents_temporal_encoder.norm1",
    "local_temporal_encoder.layers.0.0.fn.to_qkv": (
        "image_latents_temporal_encoder.attn1.to_q",
        "image_latents_temporal_encoder.attn1.to_k",
        "image_latents_temporal_encoder.attn1.to_v",
    ),
    "local_temporal_encoder.layers.0.0.fn.to_out": "image_latents_temporal_encoder.attn1.to_out",
    "local_temporal_encoder.layers.0.1.net.0.0": "image_latents_temporal_encoder.ff.net.0.proj",
    "local_temporal_encoder.layers.0.1.net.2": "image_latents_temporal_encoder.ff.net.2",
}

RESIDUAL_BLOCK: Names = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}

AUTOENCODER: Names = {
    "encoder.norm_out": "encoder.conv_norm_out",
    "decoder.norm_out": "decoder.conv_norm_out",
}

AUTOENCODER_ATTENTION: Names = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}

TEXT: Names = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
}

IMAGE: Names = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # spelled as in the files
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
}

CLIP_BLOCK: Names = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.in_proj_weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attn.in_proj_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}

OLD_NAMES = (
    (".attentions.0.query.", ".attentions.0.to_q."),
    (".attentions.0.key.", ".attentions.0.to_k."),
    (".attentions.0.value.", ".attentions.0.to_v."),
    (".attentions.0.proj_attn.", ".attentions.0.to_out.0."),
)
"""What autoencoders were called before diffusers 0.18, and still are in many folders."""

IMAGE_CHANNELS = "input_blocks.0.0.weight"
"""The hub's name of I2VGen-XL's first convolution, whose last channels see the picture. The original adds
those channels twice and diffusers once, so there the weights must be twice as large."""

_TRANSPOSED = "visual.proj"


def _under(hub: str, theirs: str, names: Names) -> Names:
    """A table with prefixes before its names."""
    return {
        f"{hub}.{key}": tuple(f"{theirs}.{part}" for part in value)
        if isinstance(value, tuple)
        else f"{theirs}.{value}"
        for key, value in names.items()
    }


def unet_names(config: STUNetConfig) -> Names:
    """Of an ``I2VGenXLUNet`` or a ``UNet3DConditionModel``."""
    names = dict(UNET)

    def block(stage: str, theirs: str, residual: int, attention: int = 0) -> None:
        """A residual block at ``stage``.0, and the transformers that may follow it."""
        residual_block(f"{stage}.0", theirs, residual)
        transformers(stage, theirs, attention)

    def residual_block(hub: str, theirs: str, index: int) -> None:
        names.update(_under(hub, f"{theirs}.resnets.{index}", RESIDUAL_BLOCK))
        names[f"{hub}.temopral_conv"] = f"{theirs}.temp_convs.{index}"

    def transformers(stage: str, theirs: str, index: int) -> None:
        names[f"{stage}.1"] = f"{theirs}.attentions.{index}"
        names[f"{stage}.2"] = f"{theirs}.temp_attentions.{index}"

    levels, blocks = len(config.dim_mult), config.res_blocks
    for level in range(levels):
        for index in range(blocks):
            block(f"input_blocks.{1 + level * (blocks + 1) + index}", f"down_blocks.{level}", index, index)
        down = f"input_blocks.{(level + 1) * (blocks + 1)}"
        names[f"{down}.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for index in range(blocks + 1):
            stage = f"output_blocks.{level * (blocks + 1) + index}"
            block(stage, f"up_blocks.{level}", index, index)
        attends = 0.5 ** (levels - 1 - level) in config.attn_scales  # theirs count from the smallest
        names[f"{stage}.{3 if attends else 1}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    block("middle_block", "mid_block", 0)
    residual_block("middle_block.3", "mid_block", 1)
    return names


def autoencoder_names(config: AutoencoderConfig) -> Names:
    """Of an ``AutoencoderKL``."""
    names = dict(AUTOENCODER)
    levels = len(config.ch_mult)
    for level in range(levels):
        up = levels - 1 - level  # theirs count from the smallest
        for index in range(config.num_res_blocks + 1):
            for hub, theirs in (
                (f"encoder.down.{level}.block.{index}", f"encoder.down_blocks.{level}.resnets.{index}"),
                (f"decoder.up.{level}.block.{index}", f"decoder.up_blocks.{up}.resnets.{index}"),
            ):
                names[hub] = theirs
                names[f"{hub}.nin_shortcut"] = f"{theirs}.conv_shortcut"
        names[f"encoder.down.{level}.downsample"] = f"encoder.down_blocks.{level}.downsamplers.0"
        names[f"decoder.up.{level}.upsample"] = f"decoder.up_blocks.{up}.upsamplers.0"
    for half in ("encoder", "decoder"):
        names[f"{half}.mid.block_1"] = f"{half}.mid_block.resnets.0"
        names[f"{half}.mid.block_2"] = f"{half}.mid_block.resnets.1"
        names |= _under(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", AUTOENCODER_ATTENTION)
    return names


def text_names(layers: int) -> Names:
    """Of a ``CLIPTextModel`` of so many layers."""
    names = dict(TEXT)
    for layer in range(layers):
        theirs = f"text_model.encoder.layers.{layer}"
        names |= _under(f"transformer.resblocks.{layer}", theirs, CLIP_BLOCK)
    return names


def image_names(layers: int) -> Names:
    """Of a ``CLIPVisionModelWithProjection`` of so many layers."""
    names = dict(IMAGE)
    for layer in range(layers):
        theirs = f"vision_model.encoder.layers.{layer}"
        names |= _under(f"visual.transformer.resblocks.{layer}", theirs, CLIP_BLOCK)
    return names


def translate(key: str, names: Names) -> tuple[str, ...]:
    """Their names of the parts of the hub's tensor ``key``: by the row that names most of it."""
    head, rest = key, ""
    while head:
        if head in names:
            found = names[head]
            return tuple(part + rest for part in ((found,) if isinstance(found, str) else found))
        head, dot, last = head.rpartition(".")
        rest = dot + last + rest
    return (key,)


@dataclass(frozen=True)
class Layout:
    """One component of a diffusers folder: what it holds, by the hub's names and by theirs."""

    component: Component
    names: Names
    shapes: Mapping[str, torch.Size]
    """The hub's keys that the component holds, with their shapes."""
    doubled: bool = False
    """:data:`IMAGE_CHANNELS` are twice the hub's."""

    def parts(self, key: str) -> tuple[tuple[str, torch.Size], ...]:
        """Their names and shapes for one of the hub's tensors."""
        names, shape = translate(key, self.names), self.shapes[key]
        if key == _TRANSPOSED:
            shape = torch.Size(reversed(shape))
        elif self._is_linear(key):
            shape = shape[:2]
        return tuple((name, torch.Size((shape[0] // len(names), *shape[1:]))) for name in names)

    def _is_linear(self, key: str) -> bool:
        """A 1×1 convolution in the hub's files that is a linear layer in theirs."""
        shape = self.shapes[key]
        return len(shape) == 3 or (len(shape) == 4 and ".attn_1." in key)

    def expected(self) -> Iterator[tuple[str, torch.Size]]:
        """Their names and shapes for all of it."""
        for key in self.shapes:
            yield from self.parts(key)

    def to_hub(self, theirs: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
        """Their tensors by the hub's names; views wherever no parts are put together.

        Raises:
            CheckpointError: for keys or shapes that are not those of the configuration; it speaks of
                ``source``.
        """
        expected, given = dict(self.expected()), {_canonical(key): value for key, value in theirs.items()}
        problems = Differences(
            missing=[key for key in expected if key not in given],
            unexpected=[key for key in given if key not in expected and not key.endswith("position_ids")],
            shapes={
                key: (tuple(given[key].shape), tuple(shape))
                for key, shape in expected.items()
                if key in given and given[key].shape != shape
            },
        )
        if problems:
            raise CheckpointError(
                f"{source} does not fit its config.json. "
                + "; ".join(problems.lines())
                + ". One of the two is "
                "of another model, or the download is incomplete: get the folder again."
            )
        return {key: self._joined(key, given) for key in self.shapes}

    def _joined(self, key: str, given: Mapping[str, Tensor]) -> Tensor:
        parts = [given[name] for name, _ in self.parts(key)]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if key == _TRANSPOSED:
            return tensor.T.contiguous()
        if self.doubled and key == IMAGE_CHANNELS:
            return _scaled(tensor, 0.5)
        return tensor.reshape(self.shapes[key])

    def to_theirs(self, key: str, tensor: Tensor) -> dict[str, Tensor]:
        """One of the hub's tensors as theirs."""
        if key == _TRANSPOSED:
            tensor = tensor.T
        elif self.doubled and key == IMAGE_CHANNELS:
            tensor = _scaled(tensor, 2.0)
        elif self._is_linear(key):
            tensor = tensor.reshape(tensor.shape[:2])
        parts = self.parts(key)
        return {name: part for (name, _), part in zip(parts, tensor.chunk(len(parts)))}


def _scaled(weight: Tensor, factor: float) -> Tensor:
    """The convolution with its picture's channels (all but the first half) multiplied; exact for 2 and ½."""
    weight = weight.clone()
    weight[:, weight.shape[1] // 2 :] *= factor
    return weight


def _canonical(key: str) -> str:
    """Today's name: other versions of diffusers and transformers have other ones for the same."""
    for old, new in OLD_NAMES:
        key = key.replace(old, new)
    if key.startswith(("embeddings.token_embedding.", "embeddings.position_embedding.", "final_layer_norm.")):
        return f"text_model.{key}"
    if key.startswith("encoder.layers."):
        return f"text_model.{key}"
    return key
