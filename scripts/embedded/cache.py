"""Draws clips and writes their latents and conditions, for the U-Nets of the embedded models.

``python scripts/embedded/cache.py --model DIRECTORY --output DIRECTORY``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sizes import FPS, FRAMES, HEIGHT, SEED, WIDTH
from tqdm import tqdm

from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.data import synthetic
from modelscope_i2v.data.cache import CacheWriter
from modelscope_i2v.data.degrade import degrade, enlarge
from modelscope_i2v.data.encode import Encoders


def latents(encoders: Encoders, frames: np.ndarray, seed: int) -> torch.Tensor:
    """Of frames uint8 [f, height, width, 3]: [f, 4, h, w]."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1  # channels-last in memory
    with torch.autocast("cpu", torch.bfloat16):
        return encoders.latents(pixels, seed)


def draw(generator: np.random.Generator, colour: str | None) -> synthetic.Scene:
    """A scene that may be trained on; of one shape of that colour before a plain camera, if one is given.

    What is learned last comes oftener than :func:`synthetic.draw` draws it: shapes that turn, which cannot
    be shown backwards, stars, two shapes, and cameras that move.
    """
    trained = [c for c in synthetic.combinations() if not synthetic.is_held_out(c)]
    kind = generator.random()
    if colour is not None:
        choices = [c for c in trained if c[0] == colour]
    elif kind < 0.20:
        choices = [c for c in trained if c[2] == "turns"]
    elif kind < 0.35:
        choices = [c for c in trained if c[1] == "star"]
    elif kind < 0.60:
        choices = trained
    elif kind < 0.80:
        return synthetic.draw(generator, shapes=2)
    else:
        return synthetic.draw(generator, camera=True)
    return synthetic.draw(generator, camera=False, combination=choices[generator.integers(len(choices))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a directory with autoencoder and CLIP")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=5200)
    parser.add_argument("--colour", choices=synthetic.COLOURS, help="one shape of this colour only")
    parser.add_argument("--seed", type=int, default=SEED + 3)
    args = parser.parse_args()
    directory = ModelDirectory.open(args.model, new_unet=True)
    encoders, generator = Encoders(directory), np.random.default_rng(args.seed)
    encoders.autoencoder.to(memory_format=torch.channels_last)
    family = encoders.family
    made_by = {"clips": args.clips, "colour": args.colour, "seed": args.seed, "family": family.name}
    writer = CacheWriter(args.output, made_by=made_by)
    captions = set()
    for number in tqdm(range(args.clips), unit="clip", mininterval=5):
        scene = draw(generator, args.colour)
        frames = synthetic.render(scene, FRAMES, HEIGHT, WIDTH).frames
        clean, source = latents(encoders, frames, number), None
        if family.takes_video:
            source = latents(encoders, enlarge(degrade(frames, generator), HEIGHT, WIDTH), number)
        for shown, backwards in ((scene, False), (scene.reversed(), True)):
            if shown is None:
                continue
            captions.add(shown.caption)
            writer.add(
                clean.flip(0) if backwards else clean,
                caption=shown.caption,
                image=encoders.picture(frames[-1 if backwards else 0], WIDTH) if family.reads_image else None,
                source=source if source is None or not backwards else source.flip(0),
                fps=FPS,
            )
    bare = sorted({"", family.negative_prompt})  # what guidance leads away from has no suffix
    writer.add_texts(bare, encoders.texts(bare))
    texts = sorted(captions)
    writer.add_texts(texts, encoders.texts([text + family.prompt_suffix for text in texts]))
    writer.finish()


if __name__ == "__main__":
    main()
