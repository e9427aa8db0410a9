"""The networks of one checkpoint, and the way from an input to a video.

Input → conditioning → denoising → decoding → output; each step is a method that can be called on
its own.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import embedded
from ..adapters import load as adapters
from ..checkpoints.directory import ModelDirectory
from ..compute.formats import cast
from ..devices import resolve_device, resolve_dtype
from ..encoders.clip import ImageEncoder, TextEncoder
from ..errors import Cancelled, InputError, NumericalError, VideoError
from ..memory import guard
from ..memory.allocator import kept_memory
from ..memory.count import Model
from ..memory.lock import Lock
from ..memory.placement import Placement
from ..memory.tiling import tiled_decode, tiled_encode
from ..networks.autoencoder import AutoencoderKL
from ..networks.stunet import STUNet
from ..progress import bar
from ..sampling.first_frame import hold_first_frame
from ..sampling.guidance import denoiser, guidance_interval, guided
from ..sampling.noise import NoiseSource, SolverNoise
from ..sampling.schedules import SCHEDULES, Schedule
from ..sampling.solvers import SOLVERS, Denoiser, ddim_inversion, inversion_timesteps
from ..spec import table
from ..spec.families import LATENT_SCALE, Family
from ..spec.network import CLIPConfig
from ..spec.options import Options, resolve
from ..spec.runtime import DTYPES, Runtime
from ..spec.speed import SPEEDS
from . import components, outputs, record, requests
from .jobs import Job, batches
from .requests import Request

Conditions = Mapping[str, Tensor]
"""A network's inputs besides latents and timesteps, each [b, …]."""


class VideoGenerator:
    """Makes videos with one checkpoint.

    Attributes:
        family: what the checkpoint was trained with.
        unet, autoencoder, text_encoder, image_encoder: the networks; a tower of CLIP that the family
            does not read is None.
        device, dtype: where they compute, and the number type of their weights.
        placement: decides where their weights are; by default always on the device.
        clip: the architecture of both towers.
        runtime: the settings that they were loaded with.
        defaults: options that the checkpoint's configuration.json sets.
        directory: where they were loaded from, if they were.
    """

    def __init__(
        self,
        family: Family,
        unet: STUNet,
        autoencoder: AutoencoderKL,
        text_encoder: TextEncoder | None,
        image_encoder: ImageEncoder | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        defaults: Mapping[str, Any] | None = None,
        placement: Placement | None = None,
        clip: CLIPConfig | None = None,
        runtime: Runtime | None = None,
        directory: ModelDirectory | None = None,
    ) -> None:
        self.family = family
        self.unet = unet
        self.autoencoder = autoencoder
        self.text_encoder = text_encoder
        self.image_encoder = image_encoder
        self.device = device
        self.dtype = dtype
        self.defaults = dict(defaults or {})
        self.clip = clip or CLIPConfig()
        self.runtime = runtime or Runtime()
        self.directory = directory
        self._identity = record.of_model(directory) if directory is not None else {}
        self._lora_files: dict[str, dict[str, Any]] = {}
        self.placement = placement or Placement(device, "resident")
        self.placement.manage(self.networks)
        self._adapters = Lock()
        """Shared by threads that make a video, so that its LoRAs do not change on the way."""

    @classmethod
    def from_directory(
        cls,
        directory: str | Path | ModelDirectory,
        task: str | None = None,
        *,
        preloaded: Mapping[str, nn.Module] | None = None,
        **settings: Any,
    ) -> VideoGenerator:
        """Loads a checkpoint directory, in the hub's layout or in diffusers'.

        Args:
            directory: see :meth:`modelscope_i2v.checkpoints.directory.ModelDirectory.open`; or an open one.
            task: what the checkpoint must be for; by default whatever it is for.
            preloaded: networks that are loaded already, by the names of their attributes here; their files
                are not read.
            settings: see :class:`modelscope_i2v.spec.runtime.Runtime`.

        Raises:
            CheckpointError: for a directory or file that is not what it should be.
            InputError: for an unknown setting or a value that does not work; with ``compile`` also for a
                machine without a compiler, for ``xformers`` and for ``minimal``; with ``quantization`` where
                torchao is missing.
        """
        runtime = Runtime.of(settings)
        device = resolve_device(runtime.device)
        dtype = resolve_dtype(runtime.dtype, device)
        components.check(runtime, device)
        model = directory if isinstance(directory, ModelDirectory) else ModelDirectory.open(directory, task)
        sizes = Model.of(model, runtime.quantization)
        placement = guard.place(
            runtime.memory, sizes, resolve(model.family, {}, model.defaults), dtype, device
        )
        networks = components.load(model, runtime, device, dtype, placement.storage_device, preloaded)
        return cls(
            model.family,
            **networks,
            device=device,
            dtype=dtype,
            defaults=model.defaults,
            placement=placement,
            clip=model.clip,
            runtime=runtime,
            directory=model,
        )

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The networks that there are."""
        every = (self.unet, self.autoencoder, self.text_encoder, self.image_encoder)
        return tuple(network for network in every if network is not None)

    @property
    def sizes(self) -> Model:
        """The networks' configurations, for the memory model."""
        return Model(
            self.unet.config,
            self.autoencoder.config,
            self.clip,
            self.family.reads_text,
            self.runtime.quantization,
        )

    def memory_guard(self, options: Options, frames: int, videos: int = 1) -> guard.MemoryGuard:
        """Context of a call of that size; see :class:`~modelscope_i2v.memory.guard.MemoryGuard`."""
        return guard.MemoryGuard(self.placement, self.sizes, options, self.dtype, frames, videos)

    def __call__(self, inputs: Any = None, *path: Any, output_video: Any = None, **options: Any) -> Any:
        """Makes a video, or ``num_videos`` of them, of an input or of each in a list.

        Args:
            inputs: a picture, video, text or dict, as the task takes it, or a list of those. Frames and
                pictures as arrays: see :func:`modelscope_i2v.media.images.load_image`.
            path: ``output_video`` as second argument, if it has a video's suffix.
            output_video: a path, one for each video, or None for the videos themselves.
            options: see :class:`modelscope_i2v.spec.options.Options`. ``prompt`` is the text; ``prompt``,
                ``negative_prompt`` and ``seed`` may be lists, one for each video. Inputs share a batch of
                ``batch_size`` where their options and frame counts are equal.

        Returns:
            The video as ``output_type`` says, a list of them if ``num_videos`` > 1; for a list of inputs or
            prompts a list of these.

        Raises:
            InputError, OutputError: before any video is made, where that can be known.
            OutOfMemoryError, NumericalError, Cancelled: from :meth:`denoise` and :meth:`decode`. Of an error
                in a list, ``finished`` has the videos that were done by then.
        """
        output_video = outputs.output_argument(path, output_video)
        spread = requests.spread(inputs, options)
        plans = [self.resolve(given, own) for given, own in spread]
        for plan in plans if len(plans) > 1 else ():
            requests.check(self.family, *plan)
        kinds = [plan.output_type for _, plan in plans for _ in range(plan.num_videos)]
        paths = iter(outputs.check_paths(output_video, kinds))
        videos: list[list[Any]] = [[] for _ in plans]
        try:
            counts = iter(number for number, (_, plan) in enumerate(plans) for _ in range(plan.num_videos))
            for job, frames in self.make(plans):
                made = outputs.deliver(frames, job.request, job.seed, next(paths), self.record)
                videos[next(counts)].append(made)
        except VideoError as error:
            if len(plans) > 1:
                done = [len(some) == plan.num_videos for some, (_, plan) in zip(videos, plans)]
                error.finished = [made for some in videos for made in some]
                error.args = (
                    f"Input {done.index(False) + 1} of {len(plans)} failed (videos done before: "
                    f"{len(error.finished)}). {error}",
                )
            raise
        results = [made if plan.num_videos > 1 else made[0] for made, (_, plan) in zip(videos, plans)]
        return results if spread.several else results[0]

    def decode_latents(self, latents: Tensor, output_video: Any = None, **options: Any) -> Any:
        """Makes a video of latents that a call with ``output_type="latent"`` has returned.

        Args:
            latents: [4, f, h, w], or [b, 4, f, h, w] for several videos.
            output_video: a path, one for each video, or None for the videos themselves.
            options: those of a call that apply: ``output_type``, ``fps``, ``crf``, ``decode_chunk_size``,
                ``tile_size``, ``progress``.

        Returns:
            The video as ``output_type`` says; for several a list.

        Raises:
            InputError: for latents of another shape, or an option that does not work.
            OutOfMemoryError, NumericalError: from :meth:`decode`.
        """
        given = table.checked(Options, "latents", latents)
        channels, (frames, height, width) = given.shape[-4], given.shape[-3:]
        if channels != self.autoencoder.config.embed_dim:
            raise InputError(
                f"latents has the shape {list(given.shape)}; it must be [4, frames, height, width]."
            )
        factor = self.autoencoder.config.factor
        size = {"height": factor * height, "width": factor * width, "num_frames": frames}
        resolved = resolve(self.family, {**options, **size})
        request = requests.Request(resolved, fps=resolved.fps or self.family.fps)
        videos = given if given.ndim == 5 else given[None]
        paths = outputs.check_paths(output_video, [resolved.output_type] * len(videos))
        made = []
        for one, path in zip(videos, paths):
            made.append(outputs.deliver(self.decode(one, resolved), request, None, path, self.record))
        return made if given.ndim == 5 else made[0]

    def make(self, plans: list[tuple[dict[str, Any], Options]]) -> Iterator[tuple[Job, Tensor]]:
        """The videos of inputs that :meth:`resolve` took apart, one by one, as :meth:`finish` has them."""
        for batch in batches(self._jobs(plans)):
            for job, latents in zip(batch, self.generate(batch)):
                yield job, self.finish(job, latents)

    def resolve(self, given: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], Options]:
        """Parts an input from its options and checks those: :func:`.requests.resolve`."""
        shown = {} if self.runtime.progress is None else {"progress": self.runtime.progress}
        return requests.resolve(self.family, given, options, {**self.defaults, **shown})

    def prepare(self, given: Any, **options: Any) -> Request:
        """Reads an input and checks its options. Raises InputError."""
        return self._read(*self.resolve(given, options))

    def _read(self, inputs: dict[str, Any], options: Options) -> Request:
        request = replace(requests.read(self.family, inputs, options), source=record.of_input(inputs))
        if self.directory is not None and embedded.name_of(self.directory.path):
            embedded.warn_unseen(self.family, options, request.num_frames, request.text)
        return request

    def _jobs(self, plans: list[tuple[dict[str, Any], Options]]) -> Iterator[Job]:
        for inputs, options in plans:
            request = self._read(inputs, options)
            for number in range(options.num_videos):
                yield Job.of(request, number)

    def to(self, device: str | torch.device) -> VideoGenerator:
        """The generator itself, for clients that move a network. Raises InputError for another device."""
        if (wanted := resolve_device(device)) != self.device:
            raise InputError(
                f"The model is on {self.device} and stays there; load it with device={str(wanted)!r}."
            )
        return self

    def half(self) -> VideoGenerator:
        """The generator itself, if it is in half precision. Raises InputError for fp32."""
        if self.dtype == torch.float32:
            raise InputError("The model is in fp32 and stays so; load it with dtype='fp16'.")
        return self

    def load_lora(self, path: str | Path, scale: float = 1.0, name: str | None = None) -> str:
        """Adds a LoRA to the U-Net; several add up. See :func:`modelscope_i2v.adapters.load.load_lora`.

        Returns its name: ``name``, or that of the file or directory. Raises InputError, CheckpointError.
        """
        with self._adapters.acquire(exclusive=True):
            name = adapters.load_lora(self.unet, path, scale, name, family=self.family.name)
            self._lora_files[name] = record.of_file(path)
            return name

    def unload_lora(self, name: str | None = None) -> None:
        """Takes a LoRA away, or all; videos are then as before. Raises InputError for an unknown name."""
        with self._adapters.acquire(exclusive=True):
            adapters.unload_lora(self.unet, name)

    def scale_lora(self, name: str, scale: float) -> None:
        """Changes the strength of a LoRA that is loaded. Raises InputError."""
        with self._adapters.acquire(exclusive=True):
            adapters.scale_lora(self.unet, name, scale)

    @property
    def record(self) -> dict[str, Any]:
        """The model and how it runs, as far as the frames depend on it: for :mod:`.record`."""
        loras = [{**self._lora_files.get(name, {"name": name}), "scale": s} for name, s in self.loras.items()]
        names = {torch: name for name, torch in DTYPES.items()}
        return {
            "family": self.family.name,
            **self._identity,
            "loras": loras or None,
            "dtype": names.get(str(self.dtype).removeprefix("torch.")),
            "attention": self.runtime.attention,
            "quantization": self.runtime.quantization,
        }

    @property
    def loras(self) -> dict[str, float]:
        """The names of the LoRAs that are loaded, with their scales."""
        return adapters.loras(self.unet)

    @torch.inference_mode()
    def generate(self, batch: list[Job]) -> Tensor:
        """Latents of one batch of alike jobs: [b, 4, f, height / 8, width / 8], fp32.

        They are inference tensors; :meth:`finish` returns ordinary ones.
        """
        request = batch[0].request
        memory = self.memory_guard(request.options, request.num_frames, len(batch))
        with self._adapters.acquire(), memory, kept_memory(self.device):
            conditional, unconditional = self.encode_conditions(batch)
            start = self.start(batch, unconditional)
            latents = self.denoise(start, conditional, unconditional, batch)
        height, width = self._latent_size(request.options)
        return latents[..., :height, :width]

    def _latent_size(self, options: Options) -> tuple[int, int]:
        factor = self.autoencoder.config.factor
        return options.height // factor, options.width // factor

    @torch.inference_mode()
    def encode_conditions(self, batch: list[Job]) -> tuple[Conditions, Conditions]:
        """The conditional and the unconditional branch's inputs besides the latents, each tensor [b, …]."""
        family, inputs = self.family, [job.request for job in batch]
        options = inputs[0].options
        conditional: dict[str, Tensor] = {}
        if self.unet.config.fps_embedding:
            conditional["fps"] = torch.full((len(batch),), options.target_fps, device=self.device)
        if self.unet.config.local_image:
            conditional["image_latents"] = torch.stack([self._image_latents(job) for job in batch])
        unconditional = dict(conditional)
        if self.text_encoder is not None:
            texts = [request.text + options.prompt_suffix for request in inputs]
            with self.placement.on_device(self.text_encoder):
                conditional["text"] = self.text_encoder.encode(texts, inputs[0].text_rows)
                negative = self.text_encoder.encode([options.negative_prompt], inputs[0].text_rows)
            unconditional["text"] = negative.expand_as(conditional["text"])
        if self.image_encoder is not None:
            pixels = requests.clip_input(family, inputs, self.image_encoder.image_size)
            with self.placement.on_device(self.image_encoder):
                conditional["image_embeds"] = self.image_encoder.encode(pixels)
            unconditional["image_embeds"] = torch.zeros_like(conditional["image_embeds"])
        return conditional, unconditional

    def _image_latents(self, job: Job) -> Tensor:
        """The picture's scaled latent [4, h, w], on the network's canvas."""
        frame = requests.picture_frame(job.request)
        height, width = self.unet.config.canvas(*self._latent_size(job.request.options))
        factor = self.autoencoder.config.factor
        return self.encode(_pad(frame, height * factor, width * factor), job.source, job.request.options)[
            :, 0
        ]

    def start(self, batch: list[Job], unconditional: Conditions) -> Tensor:
        """The latents that denoising starts from: noise, or the input video on its way back to noise.

        Random numbers are drawn in the originals' order.

        Returns:
            [b, 4, f, h, w], h and w the network's canvas for the wanted size.
        """
        options = batch[0].request.options
        if batch[0].request.frames is None:
            return torch.stack([self._noise(job) for job in batch]).to(self.device)
        if options.inversion == "ddim":
            return self.invert(torch.stack([self._video(job) for job in batch]), unconditional, options)
        return torch.stack([self._noised_video(job) for job in batch])

    def _shape(self, request: Request) -> tuple[int, int, int, int]:
        """Shape of one video's latents on the network's canvas: [4, f, h, w]."""
        size = self.unet.config.canvas(*self._latent_size(request.options))
        return self.unet.config.out_dim, request.num_frames, *size

    def _noise(self, job: Job) -> Tensor:
        """One video's noise [4, f, h, w]."""
        shape = self._shape(job.request)
        noise = job.source.normal(shape)
        if self.family.noise_offset:
            shared = job.source.normal((*shape[:2], 1, 1), self.device)
            noise = noise + self.family.noise_offset * shared
        return self._given(job, noise)

    def _video(self, job: Job) -> Tensor:
        """The input video's scaled latents [4, f, h, w]."""
        factor = self.autoencoder.config.factor
        height, width = (factor * side for side in self._shape(job.request)[2:])
        return self.encode(_pad(job.request.frames, height, width), job.source, job.request.options)

    def _noised_video(self, job: Job) -> Tensor:
        """The input video's latents, diffused to where denoising starts."""
        video, source = self._video(job), job.source
        t = self.family.start_timestep(job.request.options.strength)
        source.integer(t, t + 1, (1,))  # the original draws its only possible timestep
        noise = self._given(job, source.normal_by_frames(video.shape, self.device)).to(self.device)
        schedule = _schedule(job.request.options)
        return schedule.alphas[t].item() * video + schedule.sigmas[t].item() * noise

    def invert(self, video: Tensor, unconditional: Conditions, options: Options) -> Tensor:
        """An input video's latents [b, 4, f, h, w] as the noise that DDIM would make them from.

        As VGen has it: without guidance, led by what the video should not show, on a cosine schedule.
        """
        schedule = SCHEDULES["cosine"]()
        reach = self.family.start_timestep(options.strength) + 1
        timesteps = inversion_timesteps(min(options.num_inference_steps, reach), reach)

        def run(options: Options) -> Tensor:
            prepared = self.unet.prepare(**unconditional, frames=video.shape[2])
            predict = functools.partial(self.unet, prepared=prepared)
            denoise = denoiser(predict, schedule, self.family.prediction)
            latents = video
            with bar(len(timesteps), "Inverting", options.progress) as inverting:
                for latents in ddim_inversion(denoise, video, schedule, timesteps):  # noqa: B007
                    inverting.update()
            return latents

        size = options, video.shape[2], len(video)
        return self._finite("inverting", self.unet, run, size)

    def _given(self, job: Job, noise: Tensor) -> Tensor:
        """The caller's ``latents`` in place of ``noise`` [4, f, h, w], where they were given."""
        given = job.request.options.latents
        if given is None:
            return noise
        if given.ndim == 5:
            given = given[job.number if len(given) > 1 else 0]
        height, width = self._latent_size(job.request.options)
        if given.shape[:2] != noise.shape[:2] or tuple(given.shape[2:]) not in (
            (height, width),
            tuple(noise.shape[2:]),
        ):
            wanted = [*noise.shape[:2], height, width]
            raise InputError(f"latents has the shape {list(given.shape)}; this call needs {wanted}.")
        noise = noise.clone()
        noise[..., : given.shape[2], : given.shape[3]] = given
        return noise

    @torch.inference_mode()
    def encode(self, frames: Tensor, source: NoiseSource, options: Options) -> Tensor:
        """Frames [f, 3, height, width] in -1..1 as scaled latents [4, f, h, w] on the device."""
        factor = self.autoencoder.config.factor
        shape = (1, self.autoencoder.config.embed_dim, frames.shape[2] // factor, frames.shape[3] // factor)
        noise = torch.cat([source.normal(shape) for _ in frames]).to(self.device)

        def encoded(options: Options) -> Tensor:
            latents, size = [], options.decode_chunk_size
            for part, fresh in zip(frames.split(size), noise.split(size)):
                posterior = tiled_encode(self.autoencoder, part.to(self.device), options.tile_size)
                latents.append(LATENT_SCALE * posterior.sample(fresh))
            return torch.cat(latents)

        size = options, len(frames), 1
        return self._finite("encoding", self.autoencoder, encoded, size).transpose(0, 1)

    @torch.inference_mode()
    def denoise(
        self, start: Tensor, conditional: Conditions, unconditional: Conditions, batch: list[Job]
    ) -> Tensor:
        """Runs the solver from ``start`` [b, 4, f, h, w] to clean latents of that shape.

        Raises:
            Cancelled: the callback returned False.
            NumericalError: NaN or infinity, in fp32 too.
        """
        options = batch[0].request.options
        solver, speed = SOLVERS.get(options.scheduler, options.scheduler), SPEEDS[options.speed]
        schedule = _schedule(options)
        if options.first_frame == "anchor":
            image_latents = conditional.get("image_latents")  # only I2VGen-XL's network has it already
            if image_latents is None:
                image_latents = torch.stack([self._image_latents(job) for job in batch])
            solver = hold_first_frame(solver, image_latents, start[:, :, 0])
        noisiest = self.family.start_timestep(options.strength if self.family.takes_video else 1.0)
        total = min(options.num_inference_steps, noisiest + 1)

        def with_guidance(scale: float, options: Options) -> Denoiser:
            predict = guided(
                self.unet,
                functools.partial(self.unet.prepare, frames=start.shape[2], loop=options.loop),
                conditional,
                unconditional,
                scale=scale,
                rescale=options.guidance_rescale,
                one_batch=not options.sequential_guidance,
            )
            return denoiser(predict, schedule, self.family.prediction)

        reported = 0  # a repetition does not report the same steps again

        def run(options: Options) -> Tensor:
            nonlocal reported
            latents = start
            steps = solver(
                guidance_interval(
                    lambda: with_guidance(options.guidance_scale, options),
                    lambda: with_guidance(1.0, options),
                    schedule,
                    speed.guidance_interval,
                ),
                start,
                schedule,
                total,
                noisiest,
                SolverNoise([job.source for job in batch]),
                options.eta,
            )
            with bar(total, "Denoising", options.progress) as denoising:
                for step, latents in enumerate(steps, start=1):
                    denoising.update()
                    if options.callback is None or step <= reported:
                        continue
                    if not _is_finite(latents):
                        return latents
                    reported = step
                    answer = options.callback(step, total, latents)
                    if answer is not None and not isinstance(answer, Tensor) and answer == False:  # noqa: E712
                        raise Cancelled(f"Stopped by the callback after step {step} of {total}.")
            return latents

        size = options, batch[0].request.num_frames, len(batch)
        return self._finite("denoising", self.unet, run, size, [job.source for job in batch])

    @torch.inference_mode()
    def decode(self, latents: Tensor, options: Options) -> Tensor:
        """Scaled latents [4, f, h, w] as frames [f, 3, h·8, w·8], about -1..1, fp32 on the CPU."""
        with self.memory_guard(options, latents.shape[1]), kept_memory(self.device):
            scaled = latents.transpose(0, 1).to(self.device) / LATENT_SCALE

            def decoded(options: Options) -> Tensor:
                frames, parts = [], scaled.split(options.decode_chunk_size)
                with bar(latents.shape[1], "Decoding", options.progress, "frame") as decoding:
                    for part in parts:
                        frames.append(tiled_decode(self.autoencoder, part, options.tile_size).cpu())
                        decoding.update(len(part))
                return torch.cat(frames)

            return self._finite("decoding", self.autoencoder, decoded, (options, latents.shape[1], 1))

    def _finite(
        self,
        what: str,
        network: nn.Module,
        compute: Callable[[Options], Tensor],
        size: tuple[Options, int, int],
        sources: Sequence[NoiseSource] = (),
    ) -> Tensor:
        """``compute`` of a call's options; once more with ``network`` in fp32 if it has NaN or infinity.

        The repetition draws the same noise. Its weights take twice the memory, so the memory guard may give
        it a smaller mode.

        Args:
            size: the options, frames of a video, and videos at once.
            sources: random numbers that ``compute`` draws.
        """
        options = size[0]
        states = [source.state() for source in sources]
        with self.placement.on_device(network):
            result = compute(self.placement.options(options))
        if _is_finite(result):
            return result
        if self.dtype != torch.float32:
            warnings.warn(
                f"{what.capitalize()} in {self.dtype} gave NaN or infinity; it is done again in fp32.",
                stacklevel=2,
            )
            del result
            for source, state in zip(sources, states):
                source.restore(state)
            wide = torch.float32
            memory = guard.MemoryGuard(self.placement, self.sizes, options, wide, *size[1:], adapt=True)
            with memory, self.placement.exclusive(network):
                try:
                    cast(network, wide)
                    with self.placement.on_device(network):
                        result = compute(self.placement.options(options))
                finally:
                    cast(network, self.dtype)
            if _is_finite(result):
                return result
        raise NumericalError(
            f"NaN or infinity came out of {what}, in fp32 too: a weights file may be damaged "
            "(modelscope-i2v inspect tells), or guidance_scale is too high."
        )

    def finish(self, job: Job, latents: Tensor) -> Tensor:
        """A video's frames [f, 3, height, width], about -1..1; its latents where those were asked for."""
        if job.request.options.output_type == "latent":
            with torch.inference_mode(False):
                return latents.clone()
        return outputs.blacken(self.decode(latents, job.request.options), job.request.content)


def _schedule(options: Options) -> Schedule:
    """The noise schedule of a call: a caller's own, or one of the table."""
    return SCHEDULES[options.schedule]() if isinstance(options.schedule, str) else options.schedule


def _is_finite(result: Tensor) -> bool:
    return bool(torch.isfinite(result).all())


def _pad(frames: Tensor, height: int, width: int) -> Tensor:
    """Frames [f, 3, h, w] grown to the right and downwards by repeating the edge."""
    return F.pad(frames, (0, width - frames.shape[3], 0, height - frames.shape[2]), mode="replicate")
