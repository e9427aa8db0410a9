"""A model's clips of the examples, in batches; those that were made already are read again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine.generator import VideoGenerator
from ..engine.jobs import Job
from ..errors import OutputError
from ..media.transforms import tensor_to_uint8
from ..sampling.noise import NoiseSource
from ..spec.options import Options
from .examples import Example
from .measure import Made


class Saved:
    """Clips on disk, in a folder for every way of making them; ``None`` keeps none."""

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        text = json.dumps(settings, sort_keys=True, default=str)
        self.folder = folder and folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "settings.json").write_text(text + "\n", encoding="utf-8")
            except OSError as error:
                raise OutputError(f"Clips cannot be saved in {str(self.folder)!r}: {error}.") from error

    def read(self, number: int) -> np.ndarray | None:
        """That clip's frames, if it is there and whole."""
        path = self._path(number)
        if path is None or not path.is_file():
            return None
        try:
            with np.load(path) as file:
                return file["frames"]
        except (OSError, ValueError, KeyError, EOFError):
            return None
        except Exception as error:  # zipfile's own, for a file that was cut off
            if type(error).__name__ == "BadZipFile":
                return None
            raise

    def write(self, number: int, frames: np.ndarray) -> None:
        """Keeps a clip. Raises OutputError."""
        path = self._path(number)
        if path is None:
            return
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                np.savez_compressed(file, frames=frames)
            os.replace(part, path)
        except OSError as error:
            raise OutputError(f"The clip {str(path)!r} cannot be saved: {error}.") from error
        finally:
            part.unlink(missing_ok=True)

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
    """What a model makes of every example; noise depends on the example's seed alone, not on the batch.

    Args:
        options: those of every clip, resolved.
        given: the options that the caller set.
        saved: where clips are kept and looked for.

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
    """Frames uint8 [f, h, w, 3] after the autoencoder: the best that a model could show."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = generator.encode(pixels, NoiseSource(0), options)
    return tensor_to_uint8(generator.decode(latents, options))
