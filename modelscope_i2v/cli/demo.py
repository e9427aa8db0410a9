"""``demo``: a page of videos by the embedded small models, through ModelScope's pipeline, offline."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OutputError
from ..spec.families import FAMILIES, I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO, family_name
from .gallery import ANIMATE, Made, page
from .make import load_pipeline
from .parser import PROGRAM, say

_FOLDER = "modelscope-i2v-demo"
_OPTIONS: dict[str, Any] = {}
"""Options of every video."""


class _Chosen(NamedTuple):
    """What a video shows, and the seeds of the drawn scene and of the video."""

    combination: tuple[str, str, str]
    scene: int
    seed: int


_CHOSEN = {
    IMAGE_TO_VIDEO.name: _Chosen(("orange", "star", "moves left"), 0, 0),
    VIDEO_TO_VIDEO.name: _Chosen(("white", "square", "moves down"), 7, 0),
    TEXT_TO_VIDEO.name: _Chosen(("blue", "circle", "moves right"), 0, 1),
    I2VGEN_XL.name: _Chosen(("purple", "triangle", "moves up"), 0, 0),
    ANIMATE: _Chosen(("cyan", "triangle", "stays"), 5, 0),
}
"""Scenes and seeds that the models do well; most others, they do worse. The page says so."""


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    made = command(
        "demo",
        _run,
        "make first videos, offline, with the small models that ship with the package",
        "\n\nIt animates a picture, repairs a small noisy video, makes a video of a text, one of a picture\n"
        "and a text, and animates and refines in one call (animate), and writes a page (index.html) that\n"
        "shows them beside their inputs. It takes about a minute on a CPU.",
        f"  {PROGRAM} demo\n  {PROGRAM} demo -o first-videos --task image-to-video\n"
        f'  {PROGRAM} demo --image my.png --text "a red star moves right"\n',
    )
    made.add_argument(
        "-o", "--output", metavar="DIR", default=_FOLDER, help="folder to write to (default: %(default)s)"
    )
    made.add_argument(
        "--task",
        type=family_name,
        choices=[*FAMILIES, ANIMATE],
        help="make one of the videos only (default: all)",
    )
    made.add_argument("--image", metavar="IMAGE", help="a picture of your own: a file or a URL")
    made.add_argument("--text", "--prompt", dest="text", metavar="TEXT", help="a text of your own")
    made.add_argument("--no-progress", action="store_true", help="show no progress")


def _run(args: argparse.Namespace) -> int:
    image = None
    if args.image is not None:
        from ..media.images import load_image

        image = load_image(args.image)
    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {str(folder)!r} cannot be made: {error.strerror or error}.") from error
    progress = False if args.no_progress else None
    made = [_make(name, folder, image, args.text, progress) for name in _names(args)]
    index = folder / "index.html"
    page(index, made, chosen=image is None and args.text is None)
    say("These are small models, trained on drawn scenes to try the machinery with: they know a few")
    say(f"coloured shapes, and nothing else. For real videos: {PROGRAM} image-to-video --help")
    say(str(index))
    if sys.stdout.isatty() and _has_desktop():
        webbrowser.open(index.absolute().as_uri())
    return 0


def _names(args: argparse.Namespace) -> list[str]:
    """The videos to make: of an input of one's own, those that take it."""
    if args.task is not None:
        return [args.task]
    if args.image is not None:
        return [IMAGE_TO_VIDEO.name, I2VGEN_XL.name, ANIMATE]
    return [TEXT_TO_VIDEO.name] if args.text is not None else list(_CHOSEN)


def _has_desktop() -> bool:
    if os.name == "nt" or sys.platform == "darwin":
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _make(name: str, folder: Path, image: Any, text: str | None, progress: bool | None) -> Made:
    """One video, its input and its contact sheet."""
    from ..media.sheet import contact_sheet
    from ..media.videos import read_video
    from ..media.write import check_output, read_metadata

    chosen = _CHOSEN[name]
    given, input_file, text = _input(name, folder, chosen, image, text)
    path = check_output(folder / f"{name}.mp4")
    start = time.monotonic()
    stages = [name] if name != ANIMATE else [IMAGE_TO_VIDEO.name, VIDEO_TO_VIDEO.name]
    models = [f"embedded/{stage}" for stage in stages]
    pipe = load_pipeline(FAMILIES[stages[0]], *models, progress=progress)
    both = {"keep_first": True} if name == ANIMATE else {}
    pipe(given, output_video=str(path), seed=chosen.seed, progress=progress, **both, **_OPTIONS)
    seconds = time.monotonic() - start
    video = read_video(path)  # what the file holds, not what was meant to go into it
    count, height, width = video.frames.shape[:3]
    say(f"{name}: {path} ({count} frames of {width}x{height}, {seconds:.0f} s)")
    sheet = path.with_suffix(".png")
    title = f"{name}: {text}" if text else name
    _save(contact_sheet(video.frames, fps=video.fps, title=title), sheet)
    say(f"{name}: {sheet} (its frames at a glance)")
    first = f"{name}-first.mp4" if both else None
    command = _command(name, input_file, text, chosen.seed)
    return Made(name, text, input_file, first, path.name, sheet.name, command, read_metadata(path))


def _input(
    name: str, folder: Path, chosen: _Chosen, image: Any, text: str | None
) -> tuple[dict[str, Any], str | None, str]:
    """A video's input, the file in ``folder`` that shows it, and its text."""
    import numpy as np

    from ..data import synthetic
    from ..data.degrade import degrade
    from ..media.write import write_video

    own = image is not None
    generator = np.random.default_rng(chosen.scene)
    scene = synthetic.draw(generator, combination=chosen.combination)
    text = text if text is not None else "" if own else scene.caption
    if name == VIDEO_TO_VIDEO.name:
        file = f"{name}-input.mp4"
        write_video(degrade(synthetic.render(scene).frames, generator, factor=2), folder / file, fps=8)
        return {"video_path": str(folder / file), "text": text}, file, text
    if name == TEXT_TO_VIDEO.name:
        return {"text": text}, None, text
    file = f"{name}-input.png"
    _save(image if own else _picture(synthetic.render(scene, 1, 384, 384).frames[0]), folder / file)
    given = {"image": str(folder / file)}
    if name == IMAGE_TO_VIDEO.name:  # which reads no text
        return given, file, ""
    return {**given, "text": text}, file, text


def _picture(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def _save(image: Any, path: Path) -> None:
    from ..files import replace_file

    with replace_file(path) as temporary:
        image.save(temporary, "PNG")


def _command(name: str, file: str | None, text: str, seed: int) -> str:
    """The command that makes a video again, in the folder of the page."""
    command = "image-to-video" if name == I2VGEN_XL.name else "text-to-video" if file is None else name
    words = [PROGRAM, command, text if file is None else file]
    words += ["--text", text] if file is not None and text else []
    models = {"--model": f"embedded/{name}"}
    if name == ANIMATE:
        models = {"--first-model": "embedded", "--second-model": "embedded"}
    for flag, model in models.items():
        words += [flag, model]
    return shlex.join([*words, "--seed", str(seed)])
