"""The inputs of a U-Net from clips and texts: latents, text states, image embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..checkpoints.directory import ModelDirectory
from ..checkpoints.load import AUTOENCODER_UNUSED, CLIP_UNUSED, load_module
from ..encoders.clip import ImageEncoder, TextEncoder
from ..media.transforms import center_crop, clip_pixels
from ..networks.autoencoder import AutoencoderKL
from ..spec.families import LATENT_SCALE

_CHUNK = 8
"""Frames, or texts, that are encoded at a time."""

_ENDS = 1 << 20
"""Bytes at the start and at the end of a file that its hash is made from."""


def identity(directory: ModelDirectory) -> str:
    """A hash of the autoencoder's and CLIP's files (size, start and end): equal encoders have the same."""
    digest = hashlib.sha256()
    for place in (directory.autoencoder_path, directory.clip_path):
        for file in sorted(path for path in (place, *place.rglob("*")) if path.is_file()):
            size = file.stat().st_size
            with file.open("rb") as opened:
                digest.update(f"{size} ".encode() + opened.read(_ENDS))
                opened.seek(max(size - _ENDS, 0))
                digest.update(opened.read())
    return digest.hexdigest()[:16]


class Encoders:
    """The frozen networks of a checkpoint, all but the U-Net, fp32.

    Attributes:
        text_encoder, image_encoder: CLIP's towers; None where the family does not use them.
        autoencoder: encodes frames into latents.

    Raises:
        CheckpointError: a weights file does not fit.
    """

    def __init__(self, directory: ModelDirectory, device: torch.device | str = "cpu") -> None:
        self.directory, self.family = directory, directory.family
        self.device = torch.device(device)
        with torch.device("meta"):
            self.autoencoder = AutoencoderKL(directory.autoencoder)
            self.text_encoder = TextEncoder(directory.clip) if self.family.reads_text else None
            self.image_encoder = ImageEncoder(directory.clip) if self.family.reads_image else None
        tensors = directory.read("autoencoder")
        load_module(self.autoencoder, tensors, device=self.device, ignore=AUTOENCODER_UNUSED)
        for tower in (self.text_encoder, self.image_encoder):
            if tower is not None:
                ignore = (*tower.unused, *CLIP_UNUSED)
                load_module(tower, directory.read("clip"), device=self.device, ignore=ignore)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Text states [n, 77, width], on the CPU; the family's suffix is not added."""
        texts = list(texts)
        parts = (texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK))
        return torch.cat([self.text_encoder.encode(part).cpu() for part in parts])

    @torch.inference_mode()
    def latents(self, frames: Tensor, seed: int) -> Tensor:
        """Scaled latents [f, 4, h, w] of frames [f, 3, height, width] in -1..1, on the CPU, fp32.

        A sample of the posterior, drawn with ``seed``. Frames are padded to a size that the U-Net takes, as
        in the pipelines.
        """
        factor = self.autoencoder.config.factor
        height, width = (-(-side // factor) for side in frames.shape[2:])
        rows, columns = self.directory.unet.canvas(height, width)
        below, right = rows * factor - frames.shape[2], columns * factor - frames.shape[3]
        frames = F.pad(frames, (0, right, 0, below), mode="replicate")
        shape = (len(frames), self.autoencoder.config.embed_dim, rows, columns)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        parts = [
            self.autoencoder.encode(part.to(self.device)).sample(fresh.to(self.device)).cpu()
            for part, fresh in zip(frames.split(_CHUNK), noise.split(_CHUNK))
        ]
        return LATENT_SCALE * torch.cat(parts)

    @torch.inference_mode()
    def picture(self, frame: np.ndarray, width: int) -> Tensor:
        """The CLIP embedding [embed_dim] of a picture uint8 [h, w, 3], cropped as in the pipeline.

        Args:
            width: width of the video in pixels.
        """
        side = self.family.clip_crop or width
        pixels = clip_pixels(center_crop(Image.fromarray(frame), side, side), self.image_encoder.image_size)
        return self.image_encoder.encode(pixels[None])[0, 0].cpu()
