"""Generates a model's clips of the examples in batches; clips that were saved before are read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine.generator import VideoGenerator
from ..engine.jobs import Job
from ..errors import OutputError
from ..files import reason, replace_file
from ..media.transforms import tensor_to_uint8
from ..sampling.noise import NoiseSource
from ..spec.options import Options
from .examples import Example
from .measure import Made


class Saved:
    """Saved clips, in a folder for each set of settings; nothing is saved if ``folder`` is None."""

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        text = json.dumps(settings, sort_keys=True, default=str)
        self.folder = folder and folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"Clips cannot be saved in {self.folder}: {reason(error)}.") from error
            with replace_file(self.folder / "settings.json") as path:
                path.write_text(text + "\n", encoding="utf-8")

    def read(self, number: int) -> np.ndarray | None:
        """The frames of a saved clip, uint8 [f, h, w, 3]; None if there is none, or it is damaged."""
        path = self._path(number)
        if path is None or not path.is_file():
            return None
        try:
            with np.load(path) as file:
                frames = file["frames"]
        except Exception:  # a damaged archive fails in many ways; the clip is made again
            return None
        whole = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3 and frames.size
        return frames if whole else None

    def write(self, number: int, frames: np.ndarray) -> None:
        """Saves a clip. Raises OutputError."""
        path = self._path(number)
        if path is not None:
            with replace_file(path) as part, part.open("wb") as file:
                np.savez_compressed(file, frames=frames)

    def _path(self, number: int) -> Path | None:
        return self.folder and self.folder / f"{number:05}.npz"


def generate(
    generator: VideoGenerator,
    examples: Sequence[Example],
    options: Options,
    given: Mapping[str, Any],
    batch_size: int,
    saved: Saved,
) -> Iterator[Made]:
    """Generates a clip of every example. Noise depends on the example's seed, not on the batch.

    Args:
        options: the resolved options of every clip.
        given: the options that the caller set.
        saved: clips are read from there and saved there.

    Raises:
        NumericalError, OutOfMemoryError: from the model.
        OutputError: a clip cannot be saved.
    """
    left = iter(examples)
    while batch := list(islice(left, batch_size)):
        truths = [example.render(options.num_frames, options.height, options.width) for example in batch]
        kept = [saved.read(example.number) for example in batch]
        todo = [index for index, frames in enumerate(kept) if frames is None]
        if todo:
            inputs = [batch[index].inputs(generator.family, truths[index].frames) for index in todo]
            samples = [generator.prepare(one, **given) for one in inputs]
            seeds = [batch[index].seed for index in todo]
            jobs = [Job(sample, 0, seed, NoiseSource(seed)) for sample, seed in zip(samples, seeds)]
            latents = generator.generate(jobs)
            for index, job, latent in zip(todo, jobs, latents):
                kept[index] = tensor_to_uint8(generator.finish(job, latent))
                saved.write(batch[index].number, kept[index])
        for example, frames, truth in zip(batch, kept, truths):
            picture = None
            if generator.family.reads_image:
                picture = reconstructed(generator, truth.frames[:1], options)[0]
            yield Made(example, frames, truth, picture)


@torch.inference_mode()
def reconstructed(generator: VideoGenerator, frames: np.ndarray, options: Options) -> np.ndarray:
    """Frames uint8 [f, h, w, 3] encoded and decoded by the autoencoder: the best a model can reach."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = generator.encode(pixels, NoiseSource(0), options)
    return tensor_to_uint8(generator.decode(latents, options))
