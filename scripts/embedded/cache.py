"""Draws clips and writes their latents and conditions, for the U-Nets of the embedded models.

``python scripts/embedded/cache.py --model DIRECTORY --output DIRECTORY``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sizes import FPS, FRAMES, HEIGHT, SEED, WIDTH
from torch import Tensor
from tqdm import tqdm

from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.checkpoints.load import load_module
from modelscope_i2v.conditioning.clip import ImageEncoder, TextEncoder
from modelscope_i2v.data import synthetic
from modelscope_i2v.data.cache import CacheWriter
from modelscope_i2v.data.degrade import degrade, enlarge
from modelscope_i2v.families import LATENT_SCALE
from modelscope_i2v.media.transforms import center_crop, clip_pixels
from modelscope_i2v.networks.autoencoder import AutoencoderKL


class Encoders:
    """The trained autoencoder and CLIP towers of a model directory, on the CPU."""

    def __init__(self, directory: Path) -> None:
        model = ModelDirectory.open(directory, new_unet=True)
        self.family = model.family
        self.autoencoder = AutoencoderKL(model.autoencoder)
        self.text, self.image = TextEncoder(model.clip), ImageEncoder(model.clip)
        load_module(self.autoencoder, model.read("autoencoder"), dtype=torch.float32)
        for tower in (self.text, self.image):
            load_module(tower, model.read("clip"), dtype=torch.float32, ignore=tower.unused)
        self.autoencoder.to(memory_format=torch.channels_last)

    def latents(self, frames: np.ndarray) -> Tensor:
        """Frames uint8 [f, height, width, 3] as scaled latents [f, 4, h, w]."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1  # channels-last in memory
        with torch.autocast("cpu", torch.bfloat16):
            return LATENT_SCALE * self.autoencoder.encode(pixels).mean

    def embedding(self, frame: np.ndarray) -> Tensor:
        """The image embedding [embed_dim] of a frame uint8 [height, width, 3], cut as the pipelines do."""
        image = Image.fromarray(frame)
        side = self.family.clip_crop or image.width
        return self.image.encode(clip_pixels(center_crop(image, side, side), self.image.image_size)[None])[0, 0]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a directory with autoencoder and CLIP")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=SEED + 3)
    args = parser.parse_args()
    encoders, generator = Encoders(args.model), np.random.default_rng(args.seed)
    family = encoders.family
    writer = CacheWriter(args.output, made_by={"clips": args.clips, "seed": args.seed, "family": family.name})
    captions = {"", family.negative_prompt}
    for _ in tqdm(range(args.clips), unit="clip", mininterval=5):
        scene = synthetic.draw(generator)
        frames = synthetic.render(scene, FRAMES, HEIGHT, WIDTH).frames
        latents, source = encoders.latents(frames), None
        if family.takes_video:
            source = encoders.latents(enlarge(degrade(frames, generator), HEIGHT, WIDTH))
        for shown, backwards in ((scene, False), (scene.reversed(), True)):
            if shown is None:
                continue
            captions.add(shown.caption)
            writer.add(
                latents.flip(0) if backwards else latents,
                caption=shown.caption,
                image=encoders.embedding(frames[-1 if backwards else 0]) if family.reads_image else None,
                source=source if source is None or not backwards else source.flip(0),
                fps=FPS,
            )
    texts = sorted(captions)
    for part in (texts[i : i + 64] for i in range(0, len(texts), 64)):
        writer.add_texts(part, encoders.text.encode([text + family.prompt_suffix for text in part]))
    writer.finish()


if __name__ == "__main__":
    main()
