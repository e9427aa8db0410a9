"""The options of a call: one table that checks, documents and offers them on the command line.

Torch is not imported here: a mistake is told before any model loads.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from .families import Family
from .speed import SPEEDS

MAX_SIDE = 8192
MAX_FRAMES = 10_000
SIZE_STEP = 8
"""Heights and widths are multiples of this many pixels (the autoencoder's factor)."""

SCHEDULERS = ("ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "unipc")
OUTPUT_TYPES = ("mp4", "np", "pt", "pil", "latent")
FITS = ("stretch", "crop", "pad")
FIRST_FRAMES = ("free", "anchor")
INVERSIONS = ("noise", "ddim")

OF_RESULT = ("height", "width", "output_type")
"""Options of both stages of a cascade that, by their plain names, are the second's."""
OF_FIRST = (
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "scheduler",
    "eta",
    "latents",
    "num_videos",
)
"""Options of both stages of a cascade that, by their plain names, are the first's."""


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ValueError("a whole number")
        if not low <= value.__index__() <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value.__index__()

    return check


def _number(low: float, high: float, *, above: bool = False) -> Callable[[Any], float]:
    wanted = f"a number {'above' if above else 'from'} {low:g} {'and up ' if above else ''}to {high:g}"

    def check(value: Any) -> float:
        if isinstance(value, (bool, str, bytes)):
            raise ValueError(wanted)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(wanted) from None
        if not math.isfinite(number) or not low <= number <= high or (above and number == low):
            raise ValueError(wanted)
        return number

    return check


def _size(value: Any) -> int:
    number = _integer(SIZE_STEP, MAX_SIDE)(value)
    if number % SIZE_STEP:
        low = max(number // SIZE_STEP * SIZE_STEP, SIZE_STEP)
        raise ValueError(f"a multiple of {SIZE_STEP} such as {low} or {low + SIZE_STEP}")
    return number


def _choice(*names: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in names:
            raise ValueError("one of " + ", ".join(names))
        return value

    return check


def _instance(kind: type | Callable[[Any], bool], wanted: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not (isinstance(value, kind) if isinstance(kind, type) else kind(value)):
            raise ValueError(wanted)
        return value

    return check


def _tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "detach") and len(value.shape) in (4, 5)


def _option(check: Callable[[Any], Any], text: str, default: Any = None, **metadata: Any) -> Any:
    """A field of :class:`Options` with its check, its sentence of help and where it applies."""
    return field(default=default, metadata={"check": check, "help": text, **metadata})


def _takes_text(family: Family) -> bool:
    return family.reads_text


def _takes_video(family: Family) -> bool:
    return family.takes_video


def _takes_image(family: Family) -> bool:
    return family.reads_image


def _starts_from_noise(family: Family) -> bool:
    return not family.takes_video


def _takes_fps(family: Family) -> bool:
    return family.unet.fps_embedding


@dataclass(frozen=True)
class Options:
    """How a video is made. ``None`` where the task or the checkpoint decides.

    Names are the ones that diffusers made usual; sizes are in pixels.
    """

    speed: str = _option(
        _choice(*SPEEDS),
        "exact: as the model was made to work; the others leave out work that changes the video a little",
        "exact",
        choices=tuple(SPEEDS),
    )
    num_inference_steps: int = _option(_integer(1, 1000), "steps of the solver, 1 to 1000")
    guidance_scale: float = _option(
        _number(0, 100), "how strongly the video follows the input; 1 turns guidance off"
    )
    guidance_rescale: float = _option(_number(0, 1), "0 to 1, against overexposure at high guidance")
    negative_prompt: str = _option(
        _instance(str, "a text"), "what the video should not show", applies=_takes_text
    )
    long_prompt: bool = _option(
        _instance(bool, "True or False"),
        "read all of a text of more than 77 tokens, in rows of 77, instead of cutting it",
        False,
        applies=_takes_text,
    )
    num_frames: int = _option(_integer(1, MAX_FRAMES), "frames of the video (of an input video: at most)")
    height: int = _option(_size, f"height in pixels, a multiple of {SIZE_STEP}")
    width: int = _option(_size, f"width in pixels, a multiple of {SIZE_STEP}")
    fps: float | None = _option(_number(0, 1000, above=True), "frames per second of the written video")
    target_fps: int = _option(
        _integer(1, 240),
        "frame rate that the network is told, which sets how fast things move",
        applies=_takes_fps,
    )
    first_frame: str = _option(
        _choice(*FIRST_FRAMES),
        "free: the network makes it; anchor: it is the picture itself, cut to the video's shape",
        "free",
        applies=_takes_image,
        choices=FIRST_FRAMES,
    )
    loop: bool = _option(
        _instance(bool, "True or False"),
        "the last frame leads back to the first, so that the video can repeat without a jump",
        False,
        applies=_starts_from_noise,
    )
    seed: int | None = _option(
        _integer(0, 2**63 - 2), "makes the video repeatable, on every device; else PyTorch's global generator"
    )
    generator: Any = _option(
        _instance(lambda value: hasattr(value, "initial_seed"), "a torch.Generator"),
        "draws the noise",
        cli=False,
    )
    latents: Any = _option(
        _instance(_tensor, "a tensor [4, frames, height / 8, width / 8], with or without a batch"),
        "the noise to start from, [4, frames, height / 8, width / 8]",
        cli=False,
    )
    scheduler: str = _option(_choice(*SCHEDULERS), "solver: " + ", ".join(SCHEDULERS), choices=SCHEDULERS)
    eta: float = _option(_number(0, 1), "fresh noise in each DDIM step, 0 (none) to 1", 0.0)
    fit: str = _option(
        _choice(*FITS),
        "how an input video of another shape gets the output's: stretch it, crop it, or pad it with black",
        "stretch",
        applies=_takes_video,
        choices=FITS,
    )
    strength: float = _option(
        _number(0, 1, above=True),
        "how much of an input video is made anew: 0 (nothing) to 1 (all)",
        applies=_takes_video,
    )
    inversion: str = _option(
        _choice(*INVERSIONS),
        "how an input video becomes the start: noise is added to it, or ddim runs the solver backwards",
        "noise",
        applies=_takes_video,
        choices=INVERSIONS,
    )
    num_videos: int = _option(_integer(1, 256), "videos to make of each input", 1)
    output_type: str = _option(
        _choice(*OUTPUT_TYPES),
        "mp4 (a file or its bytes), np (uint8 frames), pt (float frames in 0..1), pil (a list), latent",
        "mp4",
        choices=OUTPUT_TYPES,
        cli=False,
    )
    crf: int = _option(_integer(0, 51), "H.264 quality of the file, 0 (lossless) to 51 (worst)")
    decode_chunk_size: int = _option(
        _integer(1, MAX_FRAMES), "frames decoded at a time; fewer need less memory"
    )
    tile_size: int | None = _option(
        _integer(64, MAX_SIDE),
        "encode and decode frames in tiles of this side, in pixels, for large frames in little memory",
    )
    sequential_guidance: bool = _option(
        _instance(bool, "True or False"),
        "run both guidance branches one after the other, with less memory",
        False,
    )
    max_pixels: int = _option(
        _integer(1, 2**62), "largest picture or video frame that is read, in pixels", 100_000_000
    )
    batch_size: int = _option(_integer(1, 4096), "videos that go through the networks at once", 1, cli=False)
    callback: Any = _option(
        _instance(callable, "a function of (step, total, latents)"),
        "called after each step; returning False stops",
        cli=False,
    )
    progress: bool | None = _option(
        _instance(bool, "True or False"), "show progress bars; by default on a terminal only", cli=False
    )

    def metadata(self) -> dict[str, Any]:
        """What is worth writing into the file: every plain value that says how the video was made."""
        hidden = ("max_pixels", "num_videos")
        kept = (name for name, f in FIELDS.items() if f.metadata.get("cli", True) and name not in hidden)
        values = ((name, getattr(self, name)) for name in kept)
        return {name: value for name, value in values if value is not None}


FIELDS = {option.name: option for option in dataclasses.fields(Options)}


def options_of(family: Family) -> list[str]:
    """The names of the options that a family has."""
    return [name for name, f in FIELDS.items() if f.metadata.get("applies", lambda _: True)(family)]


def family_defaults(family: Family) -> dict[str, Any]:
    """The options that the family's table sets."""
    names = (f.name for f in dataclasses.fields(Family))
    defaults = {name: getattr(family, name) for name in names if name in FIELDS and name != "fps"}
    return {name: value for name, value in defaults.items() if name in options_of(family)}


def resolve(
    family: Family,
    given: Mapping[str, Any],
    checkpoint: Mapping[str, Any] | None = None,
    also_known: Collection[str] = (),
) -> Options:
    """Checks the options that a caller gave and fills in the others.

    Args:
        given: by name; ``None`` counts as not given.
        checkpoint: defaults from the checkpoint's configuration.json, before the family's.
        also_known: names that are no options but may be meant (the keys of an input dict).

    Raises:
        InputError: for an unknown option, with the nearest known one, or a value out of range.
    """
    known = options_of(family)
    values = {**family_defaults(family), **(checkpoint or {})}
    if given.get("inversion") == "ddim":
        values["guidance_scale"], values["guidance_rescale"] = family.inversion_guidance
    if given.get("speed") is not None:
        values |= SPEEDS[check("speed", given["speed"])].defaults(values)
    for name, value in given.items():
        if name not in known:
            raise InputError(_unknown(name, family, known, also_known))
        if value is not None:
            values[name] = value
    options = Options(**{name: check(name, value) for name, value in values.items()})
    if options.seed is not None and options.generator is not None:
        raise InputError("seed and generator both say where the noise comes from; give one of them.")
    if options.latents is not None and options.latents.ndim == 5:
        count = len(options.latents)
        if count not in (1, options.num_videos):
            raise InputError(f"latents has noise for {count} videos, and num_videos is {options.num_videos}.")
    return options


def check(name: str, value: Any) -> Any:
    """One option's value, checked. Raises InputError."""
    try:
        return FIELDS[name].metadata["check"](value)
    except ValueError as error:
        raise InputError(f"{name}={_short(value)} does not work: it must be {error}.") from None


def _unknown(name: str, family: Family, known: Collection[str], also_known: Collection[str]) -> str:
    if name in FIELDS:
        return f"{family.name} has no option {name!r}."
    names = [*known, *also_known]
    near = [other for other in names if name in other] or difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}."
    return f"{family.name} has no option {name!r}; {hint}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
