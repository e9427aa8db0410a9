"""The evaluation of a model: its clips of synthetic scenes, compared with the ground truth."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints.diffusers_folder import MODEL_INDEX
from ..checkpoints.directory import CONFIGURATION, ModelDirectory
from ..checkpoints.hub import fetch
from ..checkpoints.load import load_module
from ..encoders.clip import ImageEncoder
from ..engine.generator import VideoGenerator
from ..errors import CheckpointError, InputError, OutputError
from ..files import reason, replace_file
from ..progress import bar
from ..spec.options import Options, check_early
from ..spec.runtime import NAMES as RUNTIME
from ..spec.runtime import split
from ..version import __version__
from . import figures, metrics
from .examples import examples
from .extras import need
from .generate import Saved, generate
from .measure import EVERY, Made, of_clip, rows
from .report import Report, Row

CLIPS = 240
BATCH = 8
_SHOWN = 10
"""Clips on the sheet, evenly spaced, whether they are right or wrong."""

_UNSEEN = ("crf", "decode_chunk_size", "tile_size", "sequential_guidance", "fps")
"""Options that do not change the measures."""


def evaluate(
    model: str | os.PathLike[str] | VideoGenerator,
    *,
    task: str | None = None,
    clips: int = CLIPS,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    batch_size: int = BATCH,
    save_clips: bool = False,
    **settings: Any,
) -> Report:
    """Evaluates a model on synthetic scenes that are held out from training.

    Args:
        model: a model directory, an id on the hub, or a loaded generator.
        task: the task that the model must have; by default any.
        clips: number of clips, 1 or more. Confidence intervals narrow with its square root.
        seed: seed of scenes and noise. Reports with equal seeds can be compared clip by clip.
        output: a folder for report.json, report.md, report.png and clips.png; None writes nothing.
        save_clips: save every clip in ``output``. A later call with the same settings reads them, so an
            interrupted evaluation is resumed.
        settings: how the model is loaded and run, see :class:`modelscope_i2v.spec.runtime.Runtime`, and
            options of its call, such as ``num_inference_steps``.

    Raises:
        InputError: a wrong argument or option, or a missing library.
        CheckpointError: the model cannot be found or loaded.
        OutputError: ``output`` cannot be written.
        NumericalError, OutOfMemoryError: from the model.
    """
    _check(clips, seed, batch_size)
    if save_clips and output is None:
        raise InputError("save_clips needs output, the folder to save them in.")
    if save_clips and isinstance(model, VideoGenerator):
        raise InputError("save_clips needs a model directory, whose files identify the saved clips.")
    for library in ("cv2", "skimage.metrics", "torchmetrics.image.fid", "matplotlib"):
        need(library)
    folder = None if output is None else _folder(output)
    began = time.monotonic()
    loading, options = split(settings)
    progress = options.pop("progress", None)
    check_early("evaluate", options, RUNTIME)
    generator, encoder, name, note = _load(model, task, loading)
    given = {**options, "progress": False, "output_type": "pt"}
    resolved = _resolve(generator, given)
    measured = _settings(generator, resolved, clips, seed)
    report = Report(name, generator.family.name, measured, notes=[note] if note else [])
    ways = {
        "attention": generator.runtime.attention,
        "compile": generator.runtime.compile,
        "device": generator.device.type,
        "version": __version__,
    }
    identity = {"model": _identity(name, task) if save_clips else None, **ways}
    saved = Saved(folder / "clips" if folder and save_clips else None, {**measured, **identity})
    wanted = examples(clips, seed)
    every = {int(i) for i in np.linspace(0, clips - 1, min(_SHOWN, clips)).round()}
    shown: list[figures.Shown] = []
    made_features, true_features = [], []
    with bar(clips, "Evaluating", progress, "clip") as evaluating:
        for made in generate(generator, wanted, resolved, given, batch_size, saved):
            found = of_clip(generator.family, made)
            report.clips.append(found)
            if encoder is not None:
                made_features.append(metrics.features(made.frames, encoder))
                true_features.append(metrics.features(made.truth.frames, encoder))
            if made.example.number in every:
                shown.append(figures.Shown(made.frames, _input(generator, made), found))
            evaluating.update()
    report.rows = rows(generator.family, report.clips)
    if encoder is not None and clips > 1:
        others = [
            metrics.features(example.render(*_size(resolved)).frames, encoder)
            for example in examples(clips, seed + 1)
        ]
        report.rows += _distances(made_features, true_features, others)
    report.seconds = time.monotonic() - began
    if folder is not None:
        _write(report, shown, folder)
    return report


def _check(clips: int, seed: int, batch_size: int) -> None:
    for name, value, least in (("clips", clips, 1), ("seed", seed, 0), ("batch_size", batch_size, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}={value!r} does not work: it must be a whole number from {least} up.")
    for name, value, most in (
        ("clips", clips, 10**6),
        ("seed", seed, 2**63 - 2),
        ("batch_size", batch_size, 10**4),
    ):
        if value > most:
            raise InputError(f"{name} is too large; it must be at most {most:,}.")


def _folder(output: str | os.PathLike[str]) -> Path:
    """The output folder, made and tested before hours of work. Raises OutputError."""
    try:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except TypeError:
        raise InputError(f"output={output!r} does not work: it must be a path.") from None
    except ValueError:  # a null character
        raise OutputError(f"The folder {os.fspath(output)!r} cannot be written to.") from None
    except OSError as error:
        raise OutputError(f"The folder {str(folder)!r} cannot be written to: {reason(error)}.") from error
    return folder


def _load(
    model: Any, task: str | None, loading: dict[str, Any]
) -> tuple[VideoGenerator, ImageEncoder | None, str, str]:
    """The generator, CLIP's image tower, the model's name, and why there is no tower."""
    if isinstance(model, VideoGenerator):
        if task not in (None, model.family.task):
            raise InputError(f"The model is of the family {model.family.name}; {task} was asked.")
        note = "" if model.image_encoder else "No Fréchet distance: the generator has no image tower of CLIP."
        return model, model.image_encoder, "a loaded generator", note
    directory = fetch(model, task=task)
    generator = VideoGenerator.from_directory(directory, task, **loading)
    encoder, note = generator.image_encoder, ""
    if encoder is None:
        try:
            encoder = _image_tower(ModelDirectory.open(directory, task), generator.device)
        except CheckpointError as error:
            note = f"No Fréchet distance: CLIP's image tower cannot be loaded ({error})"
    return generator, encoder, str(model), note


def _image_tower(directory: ModelDirectory, device: torch.device) -> ImageEncoder:
    with torch.device("meta"):
        encoder = ImageEncoder(directory.clip)
    weights = directory.read("clip")
    ignore = [name for name in weights.tensors if not name.startswith("visual.")]
    load_module(encoder, weights, dtype=torch.float32, device=device, ignore=ignore)
    return encoder


def _resolve(generator: VideoGenerator, given: dict[str, Any]) -> Options:
    for name in ("seed", "generator", "latents", "num_videos", "batch_size"):
        if given.get(name) is not None:
            raise InputError(f"{name} is no option of an evaluation, which sets it itself.")
    return generator.resolve({}, given)[1]


def _settings(generator: VideoGenerator, options: Options, clips: int, seed: int) -> dict[str, Any]:
    kept = {
        name: value
        for name, value in options.metadata().items()
        if name not in _UNSEEN and value is not False and (value != "" or generator.family.negative_prompt)
    }
    dtype = str(generator.dtype).removeprefix("torch.")
    quantization = generator.runtime.quantization
    quantized = {"quantization": quantization} if quantization else {}
    return {"clips": clips, "seed": seed, "dtype": dtype, **quantized, **kept}


def _identity(name: str, task: str | None) -> list[Any]:
    """Paths, sizes and modification times of a model's files."""
    directory = ModelDirectory.open(fetch(name, task=task), task)
    places = [directory.unet_path, directory.clip_path, directory.autoencoder_path]
    places += [directory.path / one for one in (CONFIGURATION, MODEL_INDEX)]
    files = {file.resolve() for place in places for file in (place, *place.rglob("*")) if file.is_file()}
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]


def _size(options: Options) -> tuple[int, int, int]:
    return options.num_frames, options.height, options.width


def _input(generator: VideoGenerator, made: Made) -> np.ndarray | None:
    """The input picture, or the first frame of the input video, for the sheet."""
    if generator.family.takes_video:
        return made.example.degraded(made.truth.frames)[0]
    return made.truth.frames[0] if generator.family.reads_image else None


def _distances(made: Sequence[Any], true: Sequence[Any], others: Sequence[Any]) -> list[Row]:
    """Fréchet distances of the model's clips, and of their ground truth, to the true clips of other scenes.

    The other scenes are as many. True clips of the same scenes would favour models that are given pictures of
    them.
    """
    sets = [torch.cat(list(one)) for one in (made, true, others)]
    count = len(made)
    return [
        Row(name, EVERY, metrics.Estimate(value, float("nan"), float("nan"), count), "CLIP")
        for name, value in (
            ("Fréchet distance to true clips", metrics.frechet(sets[2], sets[0])),
            ("Fréchet distance between true clips", metrics.frechet(sets[2], sets[1])),
        )
    ]


def _write(report: Report, shown: Sequence[figures.Shown], folder: Path) -> None:
    writers: dict[str, Callable[[Path], Any]] = {
        "report.json": lambda path: path.write_text(report.json(), encoding="utf-8"),
        "report.md": lambda path: path.write_text(report.markdown(), encoding="utf-8"),
        "report.png": lambda path: figures.figure(report, path),
        "clips.png": lambda path: figures.sheet(shown).save(path, "PNG"),
    }
    for name, write in writers.items():
        with replace_file(folder / name) as part:
            write(part)
