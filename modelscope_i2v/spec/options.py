"""The options of a call: one table that checks, documents and offers them on the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from . import table
from .families import Family
from .speed import SPEEDS
from .table import setting

MAX_SIDE = 8192
MAX_FRAMES = 10_000
SIZE_STEP = 8
"""Heights and widths are multiples of this many pixels (the autoencoder's factor)."""

MIN_FPS, MAX_FPS = 0.01, 1000.0
"""Frames per second that every file format can hold."""
MAX_PIXELS = 100_000_000
"""Default limit on the area of a picture or of one frame of a video."""
MAX_VIDEO_PIXELS = 1_500_000_000
"""Default limit on the pixels of all frames that are read of a video: 45 frames of 8K, 720 of full HD."""
MAX_AUDIO_SECONDS = 3600.0
"""Default limit on the sound that is read with a video's frames; an hour in stereo takes 1.4 GB."""

SCHEDULERS = ("ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "unipc")
SCHEDULES = ("sqrt_linear", "logsnr_cosine_interp", "cosine")
OUTPUT_TYPES = ("mp4", "np", "pt", "pil", "latent")
FITS = ("stretch", "crop", "pad")
FIRST_FRAMES = ("free", "anchor")
CHANNEL_ORDERS = ("rgb", "bgr")
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


def _size(value: Any) -> int:
    number: int = table.integer(SIZE_STEP, MAX_SIDE)(value)
    if number % SIZE_STEP:
        low = max(number // SIZE_STEP * SIZE_STEP, SIZE_STEP)
        raise ValueError(f"a multiple of {SIZE_STEP} such as {low} or {low + SIZE_STEP}")
    return number


def _tensor(value: Any) -> bool:
    """An ordinary tensor of real numbers, with contents, in four or five dimensions."""
    if not (hasattr(value, "detach") and len(getattr(value, "shape", ())) in (4, 5)):
        return False
    return value.is_floating_point() and str(value.layout) == "torch.strided" and not value.is_meta


def _scheduler(value: Any) -> Any:
    return value if callable(value) else table.choice(*SCHEDULERS)(value)


def _schedule(value: Any) -> Any:
    given = all(hasattr(value, name) for name in ("alphas", "sigmas"))
    return value if given else table.choice(*SCHEDULES)(value)


def _generator(value: Any) -> bool:
    return f"{type(value).__module__}.{type(value).__name__}" in ("torch.Generator", "torch._C.Generator")


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
    """Options of a call. ``None`` where the task or the checkpoint decides.

    Names are the ones that diffusers made usual; sizes are in pixels.
    """

    speed: str = setting(
        table.choice(*SPEEDS),
        "exact: as the model was made to work; the others leave out work that changes the video a little",
        "exact",
        choices=tuple(SPEEDS),
    )
    num_inference_steps: int = setting(table.integer(1, 1000), "steps of the solver, 1 to 1000")
    guidance_scale: float = setting(
        table.number(0, 100), "how strongly the video follows the input; 1 turns guidance off"
    )
    guidance_rescale: float = setting(table.number(0, 1), "0 to 1, against overexposure at high guidance")
    negative_prompt: str = setting(
        table.instance(str, "a text"), "what the video should not show", applies=_takes_text
    )
    prompt_suffix: str = setting(
        table.instance(str, "a text"), "what is appended to the text", "", applies=_takes_video
    )
    long_prompt: bool = setting(
        table.flag,
        "read all of a text of more than 77 tokens, in rows of 77, instead of cutting it",
        False,
        applies=_takes_text,
    )
    num_frames: int = setting(
        table.integer(1, MAX_FRAMES), "frames of the video (of an input video: at most)"
    )
    height: int = setting(_size, f"height in pixels, a multiple of {SIZE_STEP}")
    width: int = setting(_size, f"width in pixels, a multiple of {SIZE_STEP}")
    fps: float | None = setting(
        table.number(MIN_FPS, MAX_FPS), "frames per second of the written video, 0.01 to 1000"
    )
    target_fps: int = setting(
        table.integer(1, 240),
        "frame rate given to the network, which sets how fast things move",
        applies=_takes_fps,
    )
    first_frame: str = setting(
        table.choice(*FIRST_FRAMES),
        "free: the network makes it; anchor: it is the picture itself, cut to the video's shape",
        "free",
        applies=_takes_image,
        choices=FIRST_FRAMES,
    )
    loop: bool = setting(
        table.flag,
        "the last frame leads back to the first, so that the video can repeat without a jump",
        False,
        applies=_starts_from_noise,
    )
    seed: int | None = setting(
        table.integer(0, 2**63 - 2),
        "makes the video repeatable, on every device; else PyTorch's global generator",
    )
    generator: Any = setting(
        table.instance(_generator, "a torch.Generator"),
        "draws the noise",
        cli=False,
    )
    latents: Any = setting(
        table.instance(_tensor, "a float tensor [4, frames, height / 8, width / 8], with or without a batch"),
        "the noise to start from, [4, frames, height / 8, width / 8]",
        cli=False,
    )
    scheduler: str = setting(
        _scheduler,
        "solver: " + ", ".join(SCHEDULERS) + "; in Python also a function such as those of sampling.solvers",
        choices=SCHEDULERS,
    )
    schedule: str | None = setting(
        _schedule,
        "noise schedule, by default the one that the model was trained with; in Python also a Schedule",
        choices=SCHEDULES,
    )
    eta: float = setting(table.number(0, 1), "fresh noise in each DDIM step, 0 (none) to 1", 0.0)
    fit: str = setting(
        table.choice(*FITS),
        "how an input video of another shape gets the output's: stretch it, crop it, or pad it with black",
        "stretch",
        applies=_takes_video,
        choices=FITS,
    )
    strength: float = setting(
        table.number(0, 1, above=True),
        "how much of an input video is made anew: 0 (nothing) to 1 (all)",
        applies=_takes_video,
    )
    inversion: str = setting(
        table.choice(*INVERSIONS),
        "how an input video becomes the start: noise is added to it, or ddim runs the solver backwards",
        "noise",
        applies=_takes_video,
        choices=INVERSIONS,
    )
    num_videos: int = setting(table.integer(1, 256), "videos to make of each input", 1)
    output_type: str = setting(
        table.choice(*OUTPUT_TYPES),
        "mp4 (a file or its bytes), np (uint8 frames), pt (float frames in 0..1), pil (a list), latent",
        "mp4",
        choices=OUTPUT_TYPES,
        cli=False,
    )
    crf: int = setting(table.integer(0, 51), "H.264 quality of the file, 0 (lossless) to 51 (worst)")
    decode_chunk_size: int = setting(
        table.integer(1, MAX_FRAMES), "frames decoded at a time; fewer need less memory"
    )
    tile_size: int | None = setting(
        table.integer(64, MAX_SIDE),
        "encode and decode frames in tiles of this side, in pixels, for large frames in little memory",
    )
    sequential_guidance: bool = setting(
        table.flag,
        "run both guidance branches one after the other, with less memory",
        False,
    )
    max_pixels: int = setting(
        table.integer(1, 2**62), "largest picture or video frame that is read, in pixels", MAX_PIXELS
    )
    max_video_pixels: int = setting(
        table.integer(1, 2**62),
        "pixels of all frames together that are read of a video",
        MAX_VIDEO_PIXELS,
        applies=_takes_video,
    )
    max_audio_seconds: float = setting(
        table.number(0, 1e6),
        "longest sound that is read with a video's frames",
        MAX_AUDIO_SECONDS,
        applies=_takes_video,
    )
    channel_order: str | None = setting(
        table.choice(*CHANNEL_ORDERS),
        "how an array's channels are ordered; by default bgr in a picture (as in ModelScope), rgb in frames",
        applies=lambda family: family.reads_image or family.takes_video,
        cli=False,
    )
    batch_size: int = setting(
        table.integer(1, 4096), "videos that go through the networks at once", 1, cli=False
    )
    callback: Any = setting(
        table.instance(callable, "a function of (step, total, latents)"),
        "called after each step; returning False stops",
        cli=False,
    )
    progress: bool | None = setting(
        table.flag, "show progress; by default bars on a terminal, else lines if it takes long", cli=False
    )

    def metadata(self) -> dict[str, Any]:
        """The plain values that say how the video was made, for the file's metadata."""
        hidden = ("max_pixels", "max_video_pixels", "max_audio_seconds", "num_videos")
        kept = (name for name, f in FIELDS.items() if f.metadata.get("cli", True) and name not in hidden)
        values = {name: getattr(self, name) for name in kept}
        values["scheduler"] = getattr(self.scheduler, "__name__", self.scheduler)
        return {name: value for name, value in values.items() if isinstance(value, (str, int, float))}


FIELDS = table.fields(Options)


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
    if options.latents is not None and options.inversion == "ddim":
        raise InputError(
            "latents is the noise to start from, and inversion='ddim' makes its own from the input video; "
            "give one of them."
        )
    if options.latents is not None and options.latents.ndim == 5:
        count = len(options.latents)
        if count not in (1, options.num_videos):
            raise InputError(f"latents has noise for {count} videos, and num_videos is {options.num_videos}.")
    return options


def check_early(owner: str, values: Mapping[str, Any], also_known: Collection[str] = ()) -> None:
    """Checks options before it is known which family they are for, so before anything is fetched or loaded.

    Raises:
        InputError: for an option that no family has, with the nearest one, or a value that does not work.
    """
    for name, value in values.items():
        if name not in FIELDS and name not in also_known:
            raise InputError(table.unknown(owner, name, [*FIELDS, *also_known]))
        if name in FIELDS and value is not None:
            check(name, value)


def check(name: str, value: Any) -> Any:
    """One option's value, checked. Raises InputError."""
    return table.checked(Options, name, value)


def _unknown(name: str, family: Family, known: Collection[str], also_known: Collection[str]) -> str:
    if name in FIELDS:
        return f"{family.name} has no option {name!r}."
    return table.unknown(family.name, name, [*known, *also_known])
