"""Draws clips and writes their latents and conditions, for the U-Nets of the embedded models.

``python -m tools.embedded.cache --model DIRECTORY --output DIRECTORY``
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.data import synthetic
from modelscope_i2v.data.cache import CacheWriter
from modelscope_i2v.data.degrade import degrade
from modelscope_i2v.data.encode import Encoders
from modelscope_i2v.media.transforms import frames_to_tensor

from .sizes import FPS, FRAMES, HEIGHT, SEED, WIDTH

ONE_WAY = ("pans left", "pans up", "zooms in")
"""Of each pair of opposite camera motions, one."""

HALVES = ("pairs", "one-way", "cameras")
"""Two shapes; a camera that moves, in :data:`ONE_WAY` or in any way."""


def latents(encoders: Encoders, frames: np.ndarray, seed: int) -> torch.Tensor:
    """Of frames uint8 [f, height, width, 3] of any size: [f, 4, h, w]."""
    pixels = frames_to_tensor(frames, HEIGHT, WIDTH).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        return encoders.latents(pixels, seed)


def draw(generator: np.random.Generator, colour: str | None, half: str | None = None) -> synthetic.Scene:
    """A scene that may be trained on.

    What is learned last comes oftener than :func:`synthetic.draw` draws it: shapes that turn, which cannot
    be shown backwards, stars, two shapes, and cameras that move.

    Args:
        colour: of one shape of that colour before a plain camera.
        half: a name of :data:`HALVES`, what every other scene shows.
    """
    if half and generator.random() < 0.5:
        if half == "pairs":
            return synthetic.draw(generator, shapes=2)
        scene = synthetic.draw(generator, camera=True)
        one_way = str(generator.choice(ONE_WAY))
        return dataclasses.replace(scene, camera=one_way) if half == "one-way" else scene
    trained = [c for c in synthetic.combinations() if not synthetic.is_held_out(c)]
    kind = generator.random() * (0.8 if half else 1.0)  # no other cameras
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
    parser.add_argument("--half", choices=HALVES, help="what every other scene shows")
    parser.add_argument("--seed", type=int, default=SEED + 3)
    args = parser.parse_args()
    directory = ModelDirectory.open(args.model, new_unet=True)
    encoders, generator = Encoders(directory), np.random.default_rng(args.seed)
    encoders.autoencoder.to(memory_format=torch.channels_last)
    family = encoders.family
    made_by = {"clips": args.clips, "colour": args.colour, "half": args.half}
    made_by |= {"seed": args.seed, "family": family.name}
    writer = CacheWriter(args.output, made_by=made_by)
    captions = set()
    for number in tqdm(range(args.clips), unit="clip", mininterval=5):
        scene = draw(generator, args.colour, args.half)
        frames = synthetic.render(scene, FRAMES, HEIGHT, WIDTH).frames
        clean, source = latents(encoders, frames, number), None
        if family.takes_video:
            source = latents(encoders, degrade(frames, generator), number)
        for shown, backwards in ((scene, False), (scene.reversed(), True)):
            if shown is None or (backwards and args.half == "one-way" and scene.camera in ONE_WAY):
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
