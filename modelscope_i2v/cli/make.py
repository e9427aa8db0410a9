"""``image-to-video``, ``video-to-video`` and ``text-to-video``: from an input to a file."""

from __future__ import annotations

import argparse
import functools
import os
import re
import secrets
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import embedded
from ..checkpoints.hub import fetch, is_id
from ..errors import CheckpointError, OutputError
from ..spec.families import FAMILIES, I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO, Family
from ..spec.options import FIELDS, options_of
from . import like
from .decode import check_latents_path, is_latents, save
from .parser import (
    PROGRAM,
    UsageError,
    add_loras,
    add_machine,
    add_options,
    check_machine,
    flag,
    given_options,
    given_runtime,
    note,
    options_of_any,
    say,
)

_LONGEST_NAME = 60
"""Letters of a name that is made from a text or a URL."""

OUTPUT = (
    "file to write: .mp4, .mov, .mkv, .webm, .gif, .webp, a name without an ending for a folder of PNGs, or "
    ".safetensors for the latents, which decode makes a video of "
    "(default: a new .mp4 in this folder, named after the input)"
)


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the three commands."""
    made = command(
        "image-to-video",
        functools.partial(_run, IMAGE_TO_VIDEO),
        "animate a picture",
        examples=f"  {PROGRAM} image-to-video cat.png\n"
        f"  {PROGRAM} image-to-video cat.png -o cat.gif --num-frames 16 --seed 7\n"
        f"  {PROGRAM} image-to-video cat.png --model path/to/Image-to-Video --dtype bf16\n"
        f'  {PROGRAM} image-to-video cat.png --model {I2VGEN_XL.hub_ids[0]} --text "A cat runs."\n',
        usage="IMAGE [--text TEXT] [-o PATH] [options]",
    )
    made.add_argument("input", metavar="IMAGE", nargs="?", help="a picture: a file or a URL")
    _add_text(made, f"what happens in the video, in English; for {I2VGEN_XL.name} only")
    _add_rest(made, IMAGE_TO_VIDEO)

    made = command(
        "video-to-video",
        functools.partial(_run, VIDEO_TO_VIDEO),
        "make a video larger and finer, guided by a text",
        examples=f'  {PROGRAM} video-to-video cat.mp4 --text "A cat runs over a meadow."\n'
        f"  {PROGRAM} video-to-video cat.mp4 --fit pad --height 720 --width 720\n",
        usage="VIDEO [--text TEXT] [-o PATH] [options]",
    )
    made.add_argument("input", metavar="VIDEO", nargs="?", help="a video: a file or a URL")
    _add_text(made, "what the video shows, in English")
    _add_rest(made, VIDEO_TO_VIDEO)

    made = command(
        "text-to-video",
        functools.partial(_run, TEXT_TO_VIDEO),
        "make a video of a text",
        examples=f'  {PROGRAM} text-to-video "A panda eats bamboo on a rock."\n'
        f'  {PROGRAM} text-to-video "A lighthouse at dusk." -o dusk.webm --num-inference-steps 25\n',
        usage='"TEXT" [-o PATH] [options]',
        aliases=(TEXT_TO_VIDEO.name,),
    )
    made.add_argument(
        "input", metavar="TEXT", nargs="?", help="what the video shows, in English and in quotes"
    )
    _add_text(made, argparse.SUPPRESS)
    _add_rest(made, TEXT_TO_VIDEO)


def _add_text(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--text", "--prompt", dest="text", metavar="TEXT", help=text)


def _add_rest(parser: argparse.ArgumentParser, family: Family) -> None:
    parser.add_argument("-o", "--output", metavar="PATH", help=OUTPUT)
    parser.add_argument(
        "--like",
        metavar="VIDEO",
        help="a video made here, to make again: its file tells model, input, text and options, unless given",
    )
    add_machine(parser, {"model": family.hub_ids[0]})
    parser.set_defaults(model=None)  # so that --like sees whether it was given
    add_loras(parser)
    group = parser.add_argument_group("how the video is made", "Defaults are those of the hub's models.")
    families = _alike(family)
    add_options(group, families, options_of_any(families))


def _alike(family: Family) -> list[Family]:
    """The families of a family's task, that one first: one command makes videos with all of them."""
    others = (other for other in FAMILIES.values() if other.task == family.task and other is not family)
    return [family, *others]


def _run(family: Family, args: argparse.Namespace) -> int:
    """Checks all that can be checked before a model loads, then makes the videos."""
    if args.like is not None:
        like.fill(family, args)
    if not (family.takes_video or family.reads_image) and args.input is None:
        args.input, args.text = args.text, None
    if args.input is None:
        what = "VIDEO" if family.takes_video else "IMAGE" if family.reads_image else "TEXT"
        raise UsageError(f"give {what}, or a video with --like (help: {PROGRAM} {args.command} --help)")
    args.model = args.model or family.hub_ids[0]
    families = _alike(family)
    options = given_options(args, options_of_any(families))
    if args.progress is not None:
        options["progress"] = args.progress
    for known in families:
        if args.model in known.hub_ids:
            _check_taken(known, args, options)  # rather than after a download
    given = read_input(family, args, options)
    output = free_output(family, args, options.get("num_videos", 1))
    seed = options.setdefault("seed", secrets.randbelow(2**32))

    from ..adapters.files import read_lora
    from ..checkpoints.directory import ModelDirectory

    for path, _ in args.lora:
        read_lora(path)  # rather than after a download
    check_machine(args)
    directory = find_model(args.model, family.task)
    # ModelScope's own errors speak of registries.
    _check_taken(ModelDirectory.open(directory, family.task).family, args, options)
    start = time.monotonic()
    pipe = load_pipeline(
        family,
        directory,
        **given_runtime(args),
    )
    for number, (path, scale) in enumerate(args.lora, start=1):
        pipe.load_lora(path, scale, name=str(number))  # two files may have the same name
    if is_latents(output):
        latents = pipe(given, output_type="latent", **options)["output_video"]
        save(latents, output, {**pipe.generator.record, "seed": seed})
        made: Any = str(output)
    else:
        made = pipe(given, output_video=str(output), **options)["output_video"]
    seconds = time.monotonic() - start
    hint = "" if args.seed is not None else f"; --seed {seed} makes it again"
    for path in made if isinstance(made, list) else [made]:
        say(f"Wrote {path}")
    note(f"done in {seconds:.0f} s{hint}")
    return 0


def _check_taken(family: Family, args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Raises UsageError for an option that other models of the task have, and this one does not."""
    asked = [*options, *(["text"] if getattr(args, "text", None) else [])]
    lost = [name for name in asked if not _takes(family, name)]
    if lost:
        others = (other for other in _alike(family) if all(_takes(other, name) for name in lost))
        hint = "".join(f"; --model {other.hub_ids[0]} is one that does" for other in others)
        raise UsageError(
            f"{args.model} is a model of the family {family.name}, which does not take "
            f"{', '.join(map(flag, lost))}{hint} (help: {PROGRAM} {args.command} --help)"
        )


def _takes(family: Family, name: str) -> bool:
    return family.reads_text if name == "text" else name in options_of(family)


def load_pipeline(family: Family, *directories: Path, **settings: Any) -> Any:
    """ModelScope's pipeline of a model directory, or of a cascade's two, as anybody would build it."""
    import modelscope_i2v

    try:
        from modelscope.pipelines import pipeline
    except ImportError as error:
        raise CheckpointError(
            f"ModelScope cannot be imported ({error}); `{PROGRAM} doctor` tells what is missing."
        ) from error
    modelscope_i2v.register()
    models = [str(directory) for directory in directories]
    return pipeline(family.task, model=models if len(models) > 1 else models[0], **settings)


def find_model(model: str, task: str) -> Path:
    """A model directory by its path or name, or downloaded by its id on the hub. Raises CheckpointError."""
    if not os.path.exists(model) and is_id(model) and embedded.find(model, task) is None:
        note(f"fetching {model} from the ModelScope hub (several GB the first time)")
    return fetch(model, task=task)


def read_input(family: Family, args: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    """The pipeline's input, found to be readable."""
    limit = options.get("max_pixels", FIELDS["max_pixels"].default)
    if family.takes_video:
        from ..media.frames import as_video

        if not _is_url(args.input):  # which would be fetched twice
            as_video(args.input, max_frames=1, max_pixels=limit)
        return {"video_path": args.input, "text": args.text or ""}
    if family.reads_image:
        from ..media.images import load_image

        image: Any = load_image(args.input, max_pixels=limit)
        if _is_url(args.input):
            image.filename = args.input  # for the record in the file; nothing is fetched twice
        else:
            image = args.input
        return {"image": image} if args.text is None else {"image": image, "text": args.text}
    return {"text": args.input}


def free_output(family: Family, args: argparse.Namespace, count: int) -> Path:
    """Where the video goes, found to be writable."""
    from ..media.write import check_output

    new = args.output is None
    if not new and is_latents(args.output):
        return check_latents_path(args.output)
    path = check_output(new_path(_stem(family, args.input), count) if new else args.output)
    if family.reads_image or family.takes_video:
        for target in _numbered(path, count):
            if target.exists() and Path(args.input).exists() and target.samefile(args.input):
                raise OutputError(f"The output {str(target)!r} is the input itself; name another.")
    return path


def new_path(stem: str, count: int) -> Path:
    """A path in the current folder that overwrites nothing."""
    path, number = Path(f"{stem}.mp4"), 0
    while any(target.exists() for target in _numbered(path, count)):
        number += 1
        path = Path(f"{stem}-{number}.mp4")
    return path


def _numbered(path: Path, count: int) -> list[Path]:
    """The files that several videos of one path are written to, as ``outputs.check_paths`` has it."""
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{index}{path.suffix}") for index in range(1, count + 1)]


def _stem(family: Family, source: str) -> str:
    """A name for the output after its input."""
    if family.reads_image or family.takes_video:
        if not _is_url(source):
            return Path(source).stem or "video"
        source = Path(urllib.parse.unquote(urllib.parse.urlparse(source).path)).stem
    words = "-".join(re.findall(r"\w+", source)).lower()
    if len(words) > _LONGEST_NAME:
        words = words[: _LONGEST_NAME + 1].rpartition("-")[0] or words[:_LONGEST_NAME]
    return words or "video"


def _is_url(source: str) -> bool:
    return source.lower().startswith(("http://", "https://", "file:"))
