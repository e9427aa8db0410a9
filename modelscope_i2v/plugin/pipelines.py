"""The pipelines of all families, in ModelScope's PIPELINES registry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from modelscope.models.base.base_model import Model
from modelscope.msdatasets import MsDataset
from modelscope.outputs import OutputKeys
from modelscope.pipelines import builder
from modelscope.pipelines.base import Pipeline
from modelscope.pipelines.builder import PIPELINES
from modelscope.preprocessors.builder import build_preprocessor
from modelscope.utils.constant import Frameworks, Invoke

from ..checkpoints.directory import ModelDirectory
from ..checkpoints.hub import fetch
from ..engine import requests
from ..engine.cascade import STAGES, Cascade
from ..engine.generator import VideoGenerator
from ..engine.outputs import check_paths, deliver, output_argument
from ..errors import InputError
from ..spec.families import Family
from ..spec.runtime import NAMES, Runtime, split
from ..spec.table import unknown
from .models import MadeVideo, VideoModel, present
from .preprocessors import VideoPreprocessor
from .registration import FIELD, preprocessor_type, register_families

_MODELSCOPE = (
    "auto_collate",
    "compile_options",
    "config_file",
    "external_engine_for_llm",
    "framework",
    "ignore_file_pattern",
    "llm_framework",
    "third_party",
    "trust_remote_code",
)
"""Keywords that ModelScope's ``pipeline(…)`` hands on and that are not ours to check."""

FIRST_VIDEO = "first_video"
"""Where a cascade's result has the first stage's video."""


class VideoPipeline(Pipeline):
    """Makes videos: ``pipe(input, output_video=path, **options)``.

    Args:
        model: a checkpoint directory, an id on the hub, or what ``Model.from_pretrained`` returned. A list
            of two, for image-to-video and for video-to-video, is a cascade: the second makes the first
            one's video larger (:class:`modelscope_i2v.engine.cascade.Cascade`).
        preprocessor: takes the place of the task's own.
        device: ``cpu``, ``gpu``, ``cuda:1``, ``mps``; without a GPU, ``gpu`` means the CPU.
        kwargs: settings of :class:`modelscope_i2v.spec.runtime.Runtime`; the rest is ModelScope's.

    Raises:
        InputError, CheckpointError: for a model that cannot be used, before anything is computed.
    """

    family: Family
    """What the model was trained with; of the class: what its pipeline type stands for."""

    def __init__(
        self,
        model: Any,
        preprocessor: Any = None,
        device: str | torch.device | None = "gpu",
        device_map: Any = None,
        **kwargs: Any,
    ) -> None:
        if device_map is not None:
            raise InputError("device_map is not known to these models; device says where one runs.")
        settings, kwargs = split(kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in ("auto_collate", "progress")}
        for name in kwargs:
            if name not in _MODELSCOPE:
                raise InputError(unknown("pipeline(…)", name, [*NAMES, *_MODELSCOPE]))
        Runtime.of(settings)  # before anything is fetched
        models = list(model) if isinstance(model, (list, tuple)) else [model]
        self.cascade: Cascade | None = None
        if len(models) == 2:
            models = self._load_both(models, device, settings)
        elif len(models) == 1:
            trusted = kwargs.get("trust_remote_code", False)
            models = [self._load(models[0], str(device or "gpu"), trusted, settings)]
        else:
            raise InputError(f"model lists {len(models)} models; it takes one, or the two of a cascade.")
        model = models[0]
        self.family = model.generator.family
        if preprocessor is None:
            kind = {"type": preprocessor_type(self.family), "model_dir": model.model_dir}
            preprocessor = build_preprocessor(kind, FIELD)
        # ModelScope knows no mps; what it does with a device's name concerns CUDA only.
        place = model.generator.device
        name = str(place) if place.type == "cuda" else "cpu"
        super().__init__(model=model, preprocessor=preprocessor, device=name, auto_collate=False, **kwargs)
        self.models = models
        self.device = place
        self._model_prepare = True  # the networks are where they belong

    def _load(self, model: Any, device: str, trusted: bool, loading: Mapping[str, Any]) -> Any:
        if isinstance(model, str):
            if trusted:
                loading = {**loading, "trust_remote_code": True}
            directory = str(fetch(model, task=self.family.task))
            family = ModelDirectory.open(directory, self.family.task).family
            config = builder.read_config(directory)  # which is there even where the file is missing
            config.merge_from_dict({"task": family.task, "model.type": family.model_type})
            model = Model.from_pretrained(
                directory,
                cfg_dict=config,
                device=device,
                task=family.task,
                model_prefetched=True,
                invoked_by=Invoke.PIPELINE,
                **loading,
            )
        generator = _generator(model)
        if generator.family.task != self.family.task:
            raise InputError(f"model is for {generator.family.task}, not for {self.family.task}.")
        return model

    def _load_both(self, models: list[Any], device: Any, loading: Mapping[str, Any]) -> list[VideoModel]:
        """Loads a cascade, or makes one of two models."""
        if all(isinstance(model, str) for model in models):
            directories = [str(fetch(model, task=task)) for model, task in zip(models, STAGES)]
            self.cascade = Cascade.load(directories, **{**loading, "device": present(device)})
            stages = zip(directories, (self.cascade.first, self.cascade.second))
            return [VideoModel(directory, generator=stage) for directory, stage in stages]
        self.cascade = Cascade(*map(_generator, models))
        return models

    def _get_framework(self) -> str:
        return Frameworks.torch  # ModelScope would read it from a configuration.json that may not be there

    @property
    def generator(self) -> VideoGenerator:
        """What makes the videos; it needs no ModelScope."""
        return self.model.generator

    def load_lora(
        self, path: str | Path, scale: float = 1.0, name: str | None = None, *, stage: str | None = None
    ) -> str:
        """Adds a LoRA to the model; several add up, each with its scale.

        Args:
            path: a directory of PEFT's, or a file; see :func:`modelscope_i2v.adapters.load.load_lora`.
            scale: its strength; 0 is none.
            name: what to call it later; by default the file's name, or the directory's.
            stage: of a cascade ``"first"`` or ``"refine"``, and then needed: which of the two gets it.

        Returns:
            The name.

        Raises:
            InputError, CheckpointError: for a LoRA that cannot be used; the model is then as before.
        """
        stages = self._stages()
        if stage not in stages:
            right = " or ".join(map(repr, filter(None, stages)))
            raise InputError(
                f"stage={stage!r} does not work: "
                + (f"in a cascade it must be {right}." if right else "only a cascade has stages.")
            )
        return stages[stage].load_lora(path, scale, name)

    def unload_lora(self, name: str | None = None) -> None:
        """Takes a LoRA away, or all; videos are then as before. Raises InputError for an unknown name.

        In a cascade it is away from both stages, if both have one of that name; so with the scale.
        """
        for generator in self._having(name):
            generator.unload_lora(name)

    def scale_lora(self, name: str, scale: float) -> None:
        """Changes the strength of a LoRA that is loaded. Raises InputError."""
        for generator in self._having(name):
            generator.scale_lora(name, scale)

    @property
    def loras(self) -> dict[str, float]:
        """The names of the LoRAs that are loaded, with their scales; a cascade's of both stages."""
        return {name: scale for stage in self._stages().values() for name, scale in stage.loras.items()}

    def _stages(self) -> dict[str | None, VideoGenerator]:
        if self.cascade is None:
            return {None: self.generator}
        return {"first": self.cascade.first, "refine": self.cascade.second}

    def _having(self, name: str | None) -> list[VideoGenerator]:
        """The stages with a LoRA of that name, all of them for None."""
        stages = list(self._stages().values())
        having = [generator for generator in stages if name is None or name in generator.loras]
        return having or stages[:1]  # which says that it has none of that name

    def __call__(self, input: Any = None, *path: Any, output_video: Any = None, **options: Any) -> Any:
        """Makes the video of an input, or of each in a list or an MsDataset.

        Args:
            input: what the task takes, bare or a dict that may also hold options.
            path: ``output_video`` as second argument, if it has a video's suffix.
            output_video: a path; for a list of inputs a list of paths, or one that gets numbered; True: a new
                file, see :func:`modelscope_i2v.engine.outputs.check_paths`.
            options: see :class:`modelscope_i2v.spec.options.Options`; of a cascade, see
                :func:`modelscope_i2v.engine.cascade.animate`.

        Returns:
            ``{"output_video": …}`` with the path, or the file's bytes where no path was given, or what
            ``output_type`` says; a list of those for a list. A cascade's ``keep_first=True`` adds
            ``"first_video"``, the first stage's.

        Raises:
            InputError, OutputError: before any video is made, where that can be known.
            OutOfMemoryError, NumericalError, Cancelled: while it is made.
        """
        output_video = output_argument(path, output_video)
        if isinstance(input, MsDataset):
            return self._one_by_one(input, output_video, options)
        if self.cascade is not None:
            several = isinstance(input, list)
            made = self._both_stages(input if several else [input], output_video, options)
        else:
            spread = requests.spread(input, options)
            several = spread.several
            if self._has_steps_of_its_own():
                paths: list[Any] = [output_video] * len(spread)
                if output_video is not None:
                    paths = check_paths(output_video, ["mp4"] * len(spread))
                run = super().__call__
                made = [
                    run(one, output_video=path, **{key: own[key] for key in own if key != "batch_size"})
                    for (one, own), path in zip(spread, paths)
                ]
            else:
                videos = self.generator(input, output_video=output_video, **options)
                made = [{OutputKeys.OUTPUT_VIDEO: video} for video in (videos if several else [videos])]
        return made if several else made[0]

    def _both_stages(self, inputs: list[Any], output_video: Any, options: dict[str, Any]) -> list[Any]:
        said = {key: options.pop(key) for key in requests.TEXTS if key in options}
        given = [{**said, **(one if isinstance(one, Mapping) else {"image": one})} for one in inputs]
        videos = self.cascade(given, output_video, **options)
        if not options.get("keep_first"):
            return [{OutputKeys.OUTPUT_VIDEO: video} for video in videos]
        made = []
        for pairs in videos:
            large, small = map(list, zip(*pairs)) if isinstance(pairs, list) else pairs
            made.append({OutputKeys.OUTPUT_VIDEO: large, FIRST_VIDEO: small})
        return made

    def _one_by_one(self, inputs: Any, output_video: Any, options: dict[str, Any]) -> Iterator[Any]:
        if output_video is not None:
            raise InputError("output_video cannot be given with a dataset: its length is not known.")
        return (self(one, **options) for one in inputs)

    def _has_steps_of_its_own(self) -> bool:
        """Whether a subclass or a preprocessor changes a step; each step is then called by itself."""
        steps = ("_sanitize_parameters", "preprocess", "forward", "postprocess")
        changed = any(getattr(type(self), step) is not getattr(VideoPipeline, step) for step in steps)
        return (
            changed
            or type(self.model).forward is not VideoModel.forward
            or (type(self.preprocessor).__call__ is not VideoPreprocessor.__call__)
        )

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        """Parts a call's keywords: the preprocessor's (all options), the model's (none), the output's."""
        output = {"output_video": parameters.pop("output_video", None)}
        return parameters, {}, output

    def _check_input(self, input: Any) -> None:
        """The preprocessor checks inputs: ModelScope's types know neither bytes nor pathlib's paths."""

    def postprocess(self, inputs: Mapping[str, list[MadeVideo]], output_video: Any = None) -> dict[str, Any]:
        """Writes what :meth:`forward` made, or returns it.

        Raises:
            OutputError: for a path that cannot be written.
        """
        videos = inputs["videos"]
        paths = check_paths(output_video, [video.job.request.options.output_type for video in videos])
        made = [
            deliver(video.frames, video.job.request, video.job.seed, path, self.generator.record)
            for video, path in zip(videos, paths)
        ]
        return {OutputKeys.OUTPUT_VIDEO: made if len(made) > 1 else made[0]}


def _generator(model: Any) -> VideoGenerator:
    """What makes a model's videos. Raises InputError for a model of another sort."""
    generator = getattr(model, "generator", None)
    if not isinstance(generator, VideoGenerator):
        raise InputError(
            f"model is a {type(model).__name__}; it must be a checkpoint directory, an id on the hub, or "
            f"a {VideoModel.__name__} (what Model.from_pretrained returns)."
        )
    return generator


def _described(family: Family) -> str:
    source = "cat.mp4" if family.takes_video else "cat.png" if family.reads_image else "A cat."
    text = ', text="A cat runs over a meadow."' if family.reads_text and source != "A cat." else ""
    return f"""Makes {family.makes}.

    >>> pipe = pipeline("{family.task}", model="{family.hub_ids[0]}")
    >>> pipe("{source}"{text}, output_video="out.mp4")
    {{'output_video': 'out.mp4'}}
    """


globals().update(register_families(PIPELINES, VideoPipeline, _described))
