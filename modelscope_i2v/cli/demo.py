"""``demo``: videos of the embedded small model, through ModelScope's pipeline, offline."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..spec.families import FAMILIES, I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO, family_name
from .make import load_pipeline
from .parser import PROGRAM, say

_FOLDER = "modelscope-i2v-demo"
_CASCADE = "animate"
"""The command that does image-to-video and video-to-video in one call, and its files' name here."""
_OPTIONS = {"seed": 0}
_TEXT = "a red star moves right"
_DEGRADED = "video-to-video-input.mp4"


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    made = command(
        "demo",
        _run,
        "make first videos, offline, with the small model that ships with the package",
        "\n\nIt animates a picture, repairs a small noisy video, makes a video of a text, one of a picture\n"
        "and a text, and animates and refines in one call (animate); beside each goes a contact sheet (PNG)\n"
        "of its frames. It takes about a minute on a CPU.",
        f"  {PROGRAM} demo\n  {PROGRAM} demo -o first-videos --task image-to-video\n",
    )
    made.add_argument(
        "-o", "--output", metavar="DIR", default=_FOLDER, help="folder to write to (default: %(default)s)"
    )
    made.add_argument(
        "--task",
        type=family_name,
        choices=[*FAMILIES, _CASCADE],
        help="make one of the videos only (default: all)",
    )
    made.add_argument("--no-progress", action="store_true", help="show no progress")


def _run(args: argparse.Namespace) -> int:
    from ..embedded import picture

    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {str(folder)!r} cannot be made: {error.strerror or error}.") from error
    inputs: dict[str, Any] = {
        IMAGE_TO_VIDEO.name: {"image": str(picture())},
        VIDEO_TO_VIDEO.name: {"video_path": str(folder / _DEGRADED), "text": _TEXT},
        TEXT_TO_VIDEO.name: {"text": _TEXT},
        I2VGEN_XL.name: {"image": str(picture()), "text": _TEXT},
        _CASCADE: {"image": str(picture()), "text": _TEXT},
    }
    names = list(inputs) if args.task is None else [args.task]
    if VIDEO_TO_VIDEO.name in names:
        _degraded(folder / _DEGRADED)
    for name in names:
        _make(name, inputs[name], folder / f"{name}.mp4", False if args.no_progress else None)
    say("These are small models, trained on drawn scenes to try the machinery with: they know a few")
    say(f"coloured shapes, and nothing else. For real videos: {PROGRAM} image-to-video --help")
    return 0


def _degraded(path: Path) -> None:
    """A drawn clip as a poor camera would have taken it, for video-to-video to repair."""
    import numpy as np

    from ..data import synthetic
    from ..data.degrade import degrade
    from ..media.write import write_video

    generator = np.random.default_rng(0)
    scene = synthetic.draw(generator, combination=("red", "star", "moves right"))
    write_video(degrade(synthetic.render(scene).frames, generator), path, fps=8)


def _make(name: str, given: dict[str, Any], path: Path, progress: bool | None) -> None:
    """One video and its contact sheet."""
    from ..embedded import model_directory
    from ..media.sheet import contact_sheet
    from ..media.videos import read_video
    from ..media.write import check_output

    check_output(path)
    start = time.monotonic()
    options = {**_OPTIONS, "progress": progress}
    stages = [name] if name != _CASCADE else [IMAGE_TO_VIDEO.name, VIDEO_TO_VIDEO.name]
    pipe = load_pipeline(FAMILIES[stages[0]], *map(model_directory, stages), progress=progress)
    pipe(given, output_video=str(path), **options)
    seconds = time.monotonic() - start
    video = read_video(path)  # what the file holds, not what was meant to go into it
    count, height, width = video.frames.shape[:3]
    say(f"{name}: {path} ({count} frames of {width}x{height}, {seconds:.0f} s)")
    sheet = path.with_suffix(".png")
    temporary = sheet.with_name(f".{sheet.name}.part")
    try:
        contact_sheet(video.frames, fps=video.fps).save(temporary, "PNG")
        temporary.replace(sheet)
    except OSError as error:
        raise OutputError(f"The contact sheet {str(sheet)!r} could not be written: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    say(f"{name}: {sheet} (its frames at a glance)")
