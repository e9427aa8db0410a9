"""Network configurations: sizes and parts, as data; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class STUNetConfig:
    """One member of the ST-UNet family (:class:`modelscope_i2v.networks.stunet.STUNet`).

    The defaults are the sizes that all the hub's checkpoints share; names follow the ``unet_*``
    keys of the hub's ``configuration.json``.
    """

    in_dim: int = 4
    out_dim: int = 4
    dim: int = 320
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2
    attn_scales: tuple[float, ...] = (1.0, 0.5, 0.25)
    num_heads: int = 8
    """Heads of the temporal transformer behind the first convolution; the others have
    ``channels // head_dim``."""
    head_dim: int = 64
    context_dim: int = 1024
    dropout: float = 0.1
    image_tokens: int = 0
    """Context tokens that an MLP makes of a CLIP image embedding; 0: the context is text."""
    image_dim: int = 1024
    """Width of that image embedding."""
    fps_embedding: bool = False
    local_image: bool = False
    """The picture's latents are inputs too: as context tokens, and as four concatenated channels."""
    extra_rows: bool = False
    """Downsampling pads two rows instead of one, and upsampling drops the first and last row:
    heights are then ≡ 2 (mod 8) latents, as the video-to-video weights were trained (90 → 46 → 24
    → 13 rows)."""

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """The smallest latent size not below ``height`` × ``width`` that survives all levels.

        Sizes are in latent pixels. Anything else would meet a skip connection of another size.
        """
        step = 2 ** (len(self.dim_mult) - 1)
        offset = 2 if self.extra_rows and step > 1 else 0
        rows = max(height - offset, step if offset == 0 else 0)
        return -(-rows // step) * step + offset, -(-width // step) * step


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the KL autoencoder, by the names of the latent-diffusion ``ddconfig``.

    The hub's files never carry them; the defaults are those of Stable Diffusion's autoencoder.
    """

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    in_channels: int = 3
    out_ch: int = 3
    z_channels: int = 4
    embed_dim: int = 4

    @property
    def factor(self) -> int:
        """Width and height of a latent pixel in pixels of the picture."""
        factor: int = 2 ** (len(self.ch_mult) - 1)
        return factor


@dataclass(frozen=True)
class CLIPConfig:
    """Which OpenCLIP network conditions the U-Net.

    Either a name that open_clip knows, or, for small models of one's own, open_clip's own
    configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``), of which just the sizes in
    :data:`VISION_SIZES` and :data:`TEXT_SIZES` are taken: other keys name code, files or models to fetch.
    """

    architecture: str = "ViT-H-14"
    custom: dict[str, Any] = field(default_factory=dict, hash=False)


VISION_SIZES = {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 16}
"""open_clip's names of the image tower's sizes, and what it takes where they are absent."""

TEXT_SIZES = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
"""The same of the text tower. Both towers also have a ``mlp_ratio``, which is 4."""


def clip_misfit(vision: Mapping[str, float], text: Mapping[str, float]) -> str | None:
    """Why two towers of such sizes, all of them positive, cannot be built or used, as a sentence; or None."""
    if vision["width"] % vision["head_width"]:
        return (
            f"vision_cfg.head_width is {vision['head_width']} and should divide its width, {vision['width']}"
        )
    if vision["patch_size"] > vision["image_size"]:
        return f"vision_cfg.patch_size is larger than its image_size, {vision['image_size']}"
    if text["width"] % text["heads"]:
        return f"text_cfg.heads is {text['heads']} and should divide its width, {text['width']}"
    if text["context_length"] != TEXT_SIZES["context_length"]:
        return f"text_cfg.context_length is {text['context_length']} and should be 77, the tokens of a prompt"
    if text["vocab_size"] < TEXT_SIZES["vocab_size"]:
        return (
            f"text_cfg.vocab_size is {text['vocab_size']} and should be {TEXT_SIZES['vocab_size']} at least"
        )
    if text["layers"] < 2:
        return "text_cfg.layers is 1 and should be 2 at least, for the last is left out"
    return None
