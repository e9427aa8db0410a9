"""``decode``: a video of latents that were saved before; and how they are saved."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import embedded
from ..checkpoints.hub import IDS
from ..errors import CheckpointError, InputError, OutputError
from ..spec.families import FAMILIES, TEXT_TO_VIDEO
from .parser import (
    PROGRAM,
    UsageError,
    add_machine,
    add_options,
    check_machine,
    given_options,
    given_runtime,
    say,
)

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
"""An output of the commands that make videos with this ending gets the latents instead."""

_OPTIONS = ("fps", "crf", "decode_chunk_size", "tile_size")
_RECORD = "modelscope_i2v"


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    made = command(
        "decode",
        _run,
        "make a video of saved latents",
        f' A command with -o NAME{SUFFIX} saves them, and so does Python\nwith output_type="latent".',
        f'  {PROGRAM} text-to-video "A lighthouse at dusk." -o dusk{SUFFIX}\n'
        f"  {PROGRAM} decode dusk{SUFFIX} -o dusk.mp4 --crf 12\n",
        usage="LATENTS [-o PATH] [options]",
    )
    made.add_argument(
        "latents",
        metavar="LATENTS",
        help=f"a {SUFFIX}, .npy or .pt file with one tensor [4, frames, height / 8, width / 8], or several "
        "of that shape in one",
    )
    made.add_argument(
        "-o", "--output", metavar="PATH", help="file to write (default: a new .mp4 named after the latents)"
    )
    add_machine(made, {"model": "the one that made them, where the file says it"})
    made.set_defaults(model=None)
    group = made.add_argument_group("the video")
    add_options(group, [TEXT_TO_VIDEO], _OPTIONS)


def _run(args: argparse.Namespace) -> int:
    from ..media.write import check_output
    from .make import find_model, new_path

    latents, made = load(args.latents)
    count = len(latents) if latents.ndim == 5 else 1
    path = check_output(args.output or new_path(Path(args.latents).stem or "video", count))
    family = FAMILIES.get(str(made.get("family")), TEXT_TO_VIDEO)
    model = args.model or str(made.get("model"))
    if args.model is None and model.lower() not in IDS and embedded.find(model) is None:
        raise UsageError(f"give the --model that made the latents (help: {PROGRAM} decode --help)")
    check_machine(args)
    directory = find_model(model, family.task)

    from ..engine.generator import VideoGenerator

    generator = VideoGenerator.from_directory(directory, **given_runtime(args))
    progress = {"progress": args.progress} if args.progress is not None else {}
    written = generator.decode_latents(latents, str(path), **given_options(args, _OPTIONS), **progress)
    for one in written if isinstance(written, list) else [written]:
        say(f"Wrote {one}")
    return 0


def is_latents(path: str | os.PathLike[str]) -> bool:
    """An output's ending says that the latents are wanted."""
    return Path(path).suffix.lower() == SUFFIX


def check_latents_path(path: str | os.PathLike[str]) -> Path:
    """The path of a file of latents. Raises OutputError where none can be written."""
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise OutputError(f"{target} cannot be written: it is a folder, or its folder does not exist.")
    return target


def save(latents: Tensor | list[Tensor], path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Writes latents and what made them. Raises OutputError."""
    import torch

    from ..checkpoints.writers import Planned, write_safetensors
    from ..files import replace_file

    tensor = (torch.stack(latents) if isinstance(latents, list) else latents).cpu()
    planned = Planned("latents", tuple(tensor.shape), tensor.dtype, lambda: tensor)
    with replace_file(path) as temporary:
        write_safetensors(temporary, [planned], metadata={_RECORD: json.dumps(dict(record))})


def load(path: str) -> tuple[Tensor, dict[str, Any]]:
    """Latents [4, f, h, w] or [b, 4, f, h, w] and the record of what made them, if the file has one.

    Nothing in a file is run. Raises InputError for a file that holds anything else.
    """
    import numpy as np
    import torch

    from ..checkpoints.tensors import read_tensors

    record: dict[str, Any] = {}
    wrong = f"{path} does not hold latents: a {SUFFIX}, .npy or .pt file with one tensor was expected"
    try:
        suffix = Path(path).suffix.lower()
        if suffix == SUFFIX:
            file = read_tensors(path)
            found, record = file.tensors, json.loads(file.metadata.get(_RECORD, "{}"))
        elif suffix == ".npy":
            found = {"latents": torch.from_numpy(np.load(path, allow_pickle=False))}
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"There is no file {path}.") from None
    except CheckpointError as error:
        raise InputError(f"{wrong}. {error}") from error
    except Exception as error:  # a damaged file may make its reader raise anything
        raise InputError(f"{wrong}.") from error
    if isinstance(found, Mapping):
        found = found.get("latents", next(iter(found.values())) if len(found) == 1 else None)
    if not isinstance(found, torch.Tensor) or found.ndim not in (4, 5) or not found.is_floating_point():
        raise InputError(f"{wrong} of the shape [4, frames, height / 8, width / 8].")
    return found, record if isinstance(record, dict) else {}
