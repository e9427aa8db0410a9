"""From a picture to a large video: one model animates it, another makes the result larger and finer.

Frames pass from one stage to the next as tensors; networks with equal weights are in memory once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints.directory import ModelDirectory
from ..checkpoints.hub import fetch
from ..checkpoints.kinds import Part
from ..checkpoints.tensors import TensorFile, select
from ..devices import free_memory, resolve_device
from ..errors import CheckpointError, InputError
from ..memory import count, guard
from ..spec.families import I2VGEN_XL, IMAGE_TO_VIDEO, VIDEO_TO_VIDEO, Family
from ..spec.options import OF_FIRST, OF_RESULT, Options, check_early, options_of
from ..spec.runtime import NAMES as RUNTIME
from ..spec.runtime import Runtime, split
from . import components, outputs, requests
from .generator import VideoGenerator

MODELS = (IMAGE_TO_VIDEO.hub_ids[0], VIDEO_TO_VIDEO.hub_ids[0])
"""The two stages of the model cards."""

STAGES = (IMAGE_TO_VIDEO.task, VIDEO_TO_VIDEO.task)
"""What the stages are for."""

OF_WHOLE = ("output_type", "num_videos")
"""Options that cannot be given to one of the stages."""

Model = str | os.PathLike[str]
FreeMemory = Callable[[torch.device], "int | None"]


class Animation(NamedTuple):
    """Both videos of a cascade."""

    video: Any
    """The second stage's."""
    first: Any
    """The first stage's, small. :meth:`Cascade.refine` continues from it."""


class _Plan(NamedTuple):
    """Inputs and options of both stages for one input of the cascade."""

    first: tuple[dict[str, Any], Options]
    second: dict[str, Any]
    """Input and options of the second stage, but for the frames."""
    checked: Options
    """The same options, checked."""


class Cascade:
    """Two checkpoints, one after the other.

    Attributes:
        first: animates a picture; None in a cascade that only refines.
        second: video-to-video.
        free_memory: tells how many bytes a device has left, or None where that does not matter. By it one
            U-Net leaves the device when the other needs its memory.
    """

    def __init__(
        self, first: VideoGenerator | None, second: VideoGenerator, free_memory: FreeMemory = free_memory
    ) -> None:
        _check_families(first and first.family, second.family, "The first model", "The second model")
        self.first, self.second, self.free_memory = first, second, free_memory

    @classmethod
    def load(
        cls,
        models: Sequence[Model] = MODELS,
        *,
        refine_only: bool = False,
        free_memory: FreeMemory = free_memory,
        **settings: Any,
    ) -> Cascade:
        """Loads both checkpoints; a network that they have alike, only once.

        Args:
            models: a model for ``image-to-video`` (I2VGen-XL too), and one for ``video-to-video``:
                directories, or ids on the ModelScope hub.
            refine_only: leave out the first.
            settings: see :class:`modelscope_i2v.spec.runtime.Runtime`.

        Raises:
            CheckpointError: for a model that cannot be had or loaded, or is of the wrong task.
            InputError: for an unknown setting or a value that does not work.
        """
        if isinstance(models, (str, os.PathLike)) or not isinstance(models, Sequence) or len(models) != 2:
            raise InputError(f"models={models!r} does not work: it must be a pair such as {MODELS!r}.")
        runtime = Runtime.of(settings)
        device = resolve_device(runtime.device)
        components.check(runtime, device)
        named = list(zip(models, STAGES))[refine_only:]
        opened = [ModelDirectory.open(fetch(model, task=task)) for model, task in named]
        families = [model.family for model in opened]
        _check_families(
            None if refine_only else families[0],
            families[-1],
            f"models[0], {os.fspath(models[0])},",
            f"models[1], {os.fspath(models[1])},",
        )
        # The stage that runs first is loaded last, and is on the device when the first call comes.
        second = VideoGenerator.from_directory(opened[-1], **asdict(runtime))
        if refine_only:
            return cls(None, second, free_memory)
        if second.placement.mode != "resident":
            mode = second.placement.mode  # the larger video needs it
            runtime = replace(runtime, memory=mode, compile=runtime.compile and mode != "minimal")
        else:
            needed = count.weight(count.Model.of(opened[0]), "unet", second.dtype)
            guard.make_space(second.unet, needed, free_memory(device))
        preloaded = alike(second, opened[1], opened[0])
        first = VideoGenerator.from_directory(opened[0], preloaded=preloaded, **asdict(runtime))
        return cls(first, second, free_memory)

    def __call__(
        self,
        inputs: list[Any],
        output_video: Any = None,
        *,
        keep_first: bool = False,
        first_options: Mapping[str, Any] | None = None,
        refine_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Any]:
        """Animates pictures; the options are those of :func:`animate`.

        Args:
            inputs: pictures, or dicts such as ``{"image": …, "text": …, "seed": 7}``.
            output_video: a path, one for each video, or None for the videos themselves.

        Returns:
            For each input its video as :meth:`.VideoGenerator.__call__` returns
            it, or with ``keep_first`` an :class:`Animation`.

        Raises:
            InputError, OutputError: before any video is made, where that can be known.
            OutOfMemoryError, NumericalError, Cancelled: from either stage. With ``keep_first``, small
                videos that were done by then have been written.
        """
        if not inputs:
            return []
        if self.first is None:
            raise InputError("This cascade was loaded without its first stage; it can only refine.")
        plans = [self._plan(given, options, first_options, refine_options) for given in inputs]
        counts = [plan.first[1].num_videos for plan in plans]
        kinds = [plan.checked.output_type for plan, count in zip(plans, counts) for _ in range(count)]
        paths = outputs.check_paths(output_video, kinds)
        small_paths = [None if path is None else first_path(path) for path in paths]
        if keep_first and any(paths):
            outputs.check_paths(small_paths, kinds)

        self._bring(self.first, [given[1] for given, *_ in plans])
        small: list[Any] = []
        given: list[dict[str, Any]] = []
        left = iter(plans)
        for job, frames in self.first.make([plan.first for plan in plans]):
            if job.number == 0:
                plan = next(left)
            if keep_first:
                small.append(
                    outputs.deliver(frames, job.request, job.seed, small_paths[len(small)], self.first.record)
                )
            given.append(_continued(plan.second, job.number, frames, job.request.fps))
        self._bring(self.second, [self.second.resolve(one, {})[1] for one in given])
        made = self.second(given, output_video=paths if any(paths) else None)
        videos = iter(map(Animation, made, small) if keep_first else made)
        grouped = [[next(videos) for _ in range(count)] for count in counts]
        return [group if count > 1 else group[0] for group, count in zip(grouped, counts)]

    def refine(
        self,
        videos: list[Any],
        output_video: Any = None,
        *,
        refine_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Any]:
        """The second stage alone, on first videos that are there already.

        Args:
            videos: paths, URLs, bytes, frames (uint8 [f, h, w, 3], float [f, 3, h, w] in 0..1, or a list
                of pictures), or dicts of one of them under ``video_path`` or ``frames``, and ``text``.

        Returns, Raises: as calling the cascade; InputError also for an option of the first stage.
        """
        for name in (*OF_FIRST, "target_fps"):
            if options.get(name) is not None and name != "num_videos":
                raise InputError(
                    f"{name} is the first stage's option, and refining leaves that out; for the second stage "
                    f"give refine_options={{{name!r}: …}}."
                )
        options |= _stage("refine_options", refine_options)
        given = [_as_video(video) for video in videos]
        self._bring(self.second, [self.second.resolve(one, options)[1] for one in given])
        return self.second(given, output_video=output_video, **options)

    def _plan(
        self,
        given: Any,
        options: Mapping[str, Any],
        first_options: Mapping[str, Any] | None,
        refine_options: Mapping[str, Any] | None,
    ) -> _Plan:
        """Parts an input and the options between the stages, and checks them."""
        if not isinstance(given, Mapping):
            given = {"image": given}
        keys = ("image", "image_path", *requests.TEXTS)
        inputs = {key: value for key, value in given.items() if key in keys and value is not None}
        others = {key: value for key, value in given.items() if key not in keys}
        plain = {**others, **{name: value for name, value in options.items() if value is not None}}
        texts = [inputs.pop(key) for key in requests.TEXTS if key in inputs]
        text = texts[0] if texts else ""
        if not isinstance(text, str):
            raise InputError(f"The text is a {type(text).__name__}; it must be a string.")
        one, two = options_of(self.first.family), options_of(self.second.family)
        for_second = {
            name: value
            for name, value in plain.items()
            if name in OF_RESULT or (name in two and name not in OF_FIRST)
        }
        for_first = {
            name: value
            for name, value in plain.items()
            if name not in OF_RESULT and (name in one or name not in for_second)
        }
        for_first |= _stage("first_options", first_options)
        for_second |= _stage("refine_options", refine_options)
        second = {**for_second, "text": text}
        _, checked = self.second.resolve(second, {})
        if self.first.family.reads_text:
            inputs["text"] = text
        kind = "pt" if checked.output_type == "latent" else checked.output_type
        return _Plan(self.first.resolve(inputs, {**for_first, "output_type": kind}), second, checked)

    def _bring(self, stage: VideoGenerator, options: list[Options]) -> None:
        """Puts a stage's U-Net on the device, in place of the other stage's if it takes that."""
        other = self.second if stage is self.first else self.first
        guard.bring(
            stage.unet,
            stage.placement,
            (count.working_memory(stage.sizes, one, stage.dtype) for one in options),
            displaced=other and other.unet,
            free=self.free_memory(stage.device),
        )


def animate(
    image: Any = None,
    text: str = "",
    output_video: Any = None,
    models: Sequence[Model] = MODELS,
    *,
    keep_first: bool = False,
    refine: Any = None,
    first_options: Mapping[str, Any] | None = None,
    refine_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Makes a large video of a picture: image-to-video, then video-to-video on its frames.

    Both checkpoints are loaded for this call; :class:`Cascade` keeps them for several.

    Args:
        image: a path, URL, bytes, PIL picture or BGR array; a dict of it, ``text`` and options; or a list
            of any of these.
        text: what the video shows, in English. The second stage follows it, and I2VGen-XL as the first.
        output_video: a path (several videos number it), a list of paths, or None for the videos themselves.
        models: the stages' checkpoints, see :meth:`Cascade.load`.
        keep_first: also write the small video, next to the other: ``cat-first.mp4`` and ``cat.mp4``.
        refine: a first video (a path, a URL, bytes, or frames), or a list of them: ``image`` is not
            looked at, and the second stage alone runs, on this.
        settings: how the models are loaded and run, see :class:`modelscope_i2v.spec.runtime.Runtime`, and
            options of the call, see :class:`modelscope_i2v.spec.options.Options`. By its plain name

            * ``height``, ``width`` or ``output_type`` is the result's, hence the second stage's;
            * ``num_inference_steps``, ``guidance_scale``, ``guidance_rescale``, ``scheduler``, ``eta``,
              ``latents`` or ``num_videos`` is the first's;
            * any other goes to each stage that has it: ``seed``, ``negative_prompt``, ``fps``, ``callback``
              … to both, ``target_fps`` to the first, ``strength``, ``inversion`` and ``fit`` to the second.
        first_options: options of the first stage alone; they win over the plain ones.
        refine_options: options of the second stage alone, likewise.

    Returns:
        The video as ``output_type`` says: a path, bytes, frames. With ``keep_first`` an :class:`Animation`,
        a pair of the video and the small one (as frames ``pt`` where ``output_type`` is ``latent``). A
        list of such where several videos are made of an input, or several inputs were given.

    Raises:
        CheckpointError, InputError, OutputError: raised before any video is made, where that can be
            known.
        OutOfMemoryError, NumericalError, Cancelled: from either stage.
    """
    if refine is None and image is None:
        raise InputError("There is nothing to animate: give a picture as image, or a first video as refine.")
    if refine is not None and (keep_first or first_options):
        unused = "keep_first" if keep_first else "first_options"
        raise InputError(
            f"refine continues from a video and leaves out the first stage; {unused} has no use."
        )
    runtime, options = split(settings)
    check_early("animate", options, ("models", "refine", "keep_first", *requests.TEXTS, *RUNTIME))
    cascade = Cascade.load(models, refine_only=refine is not None, **runtime)
    options["refine_options"] = refine_options
    if refine is not None:
        several = isinstance(refine, list) and not all(hasattr(frame, "convert") for frame in refine)
        videos = [_told(_as_video(video), text) for video in (refine if several else [refine])]
        made = cascade.refine(videos, output_video, **options)
    else:
        several = isinstance(image, list)
        inputs = [
            _told(one if isinstance(one, Mapping) else {"image": one}, text)
            for one in (image if several else [image])
        ]
        made = cascade(inputs, output_video, keep_first=keep_first, first_options=first_options, **options)
    return made if several else made[0]


def alike(loaded: VideoGenerator, of: ModelDirectory, model: ModelDirectory) -> dict[str, nn.Module]:
    """The networks of a loaded checkpoint that another one has too, by the generator's names for them.

    Args:
        of: where ``loaded`` comes from.
        model: the other one.
    """
    parts: dict[str, Part] = {"autoencoder": "autoencoder"}
    if model.family.reads_text:
        parts["text_encoder"] = "clip"
    found = {}
    for name, part in parts.items():
        network = getattr(loaded, name)
        mine, other = (getattr(directory, f"{part}_path") for directory in (of, model))
        if network is not None and (mine.samefile(other) or holds(model.read(part), network)):
            found[name] = network
    return found


def holds(file: TensorFile, network: nn.Module) -> bool:
    """True if loading a file would give exactly the weights that a loaded network has.

    The file is read as far as the first difference.
    """
    state = network.state_dict()
    named = select(file.tensors, state)
    for key, tensor in state.items():
        given = named.get(key)
        if given is None or given.shape != tensor.shape:
            return False
        if not torch.equal(given.to(tensor.device).to(tensor.dtype), tensor):
            return False
        file.release(given)
    return True


def first_path(path: Path) -> Path:
    """The path of the small video for a path of the large one."""
    return path.with_name(f"{path.stem}-first{path.suffix}")


def _check_families(first: Family | None, second: Family, one: str, two: str) -> None:
    """Raises CheckpointError for a stage that another family's model was given for."""
    animators = f"{IMAGE_TO_VIDEO.name} or {I2VGEN_XL.name}"
    swapped = first is not None and first.takes_video and second.reads_image
    remedy = " Give the two the other way round." if swapped else ""
    if first is not None and not first.reads_image:
        raise CheckpointError(
            f"{one} holds {first.name}; the first stage animates the picture and must be one for "
            f"{animators}, such as {IMAGE_TO_VIDEO.hub_ids[0]}.{remedy}"
        )
    if not second.takes_video:
        raise CheckpointError(
            f"{two} holds {second.name}; the second stage makes the first one's video larger and must "
            f"be one for {VIDEO_TO_VIDEO.name}, such as {VIDEO_TO_VIDEO.hub_ids[0]}.{remedy}"
        )


def _stage(name: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of one stage. Raises InputError for one that only the whole has."""
    options = dict(options or {})
    for option in OF_WHOLE:
        if option in options:
            raise InputError(f"{option} is an option of the whole cascade; give it without {name}.")
    return options


def _continued(second: Mapping[str, Any], number: int, frames: Tensor, fps: float) -> dict[str, Any]:
    """The second stage's input after the first video of that number."""
    pixels = (frames * 0.5 + 0.5).clamp(0, 1)
    given = {"num_frames": len(frames), "fps": fps, **second, "frames": pixels}
    if given.get("seed") is not None:
        given["seed"] += number
    return given


def _as_video(video: Any) -> dict[str, Any]:
    """An input of video-to-video: as it is, or by the right key."""
    if isinstance(video, Mapping):
        return dict(video)
    return {"frames" if isinstance(video, (np.ndarray, Tensor, list)) else "video_path": video}


def _told(given: Mapping[str, Any], text: str) -> dict[str, Any]:
    """An input with the call's text, unless it has its own."""
    return dict(given) if any(given.get(key) for key in requests.TEXTS) else {**given, "text": text}
