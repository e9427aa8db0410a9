"""The training loop."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..checkpoints.directory import ModelDirectory
from ..checkpoints.hub import fetch
from ..checkpoints.load import load_module
from ..compute.attention import use_kernel
from ..compute.formats import channels_last
from ..data.encode import Encoders
from ..data.folder import Entry
from ..errors import CheckpointError, InputError, NumericalError, OutputError, VideoError
from ..files import hold_lock, reason
from ..memory.allocator import kept_memory
from ..networks.stunet import STUNet
from . import snapshot
from .batches import Batch, Batches
from .config import TrainConfig
from .curves import Board, CurveFile, draw
from .data import open_data
from .machine import Machine
from .networks import EMA, InOneCall, checkpoint_gradients, in_memory, load_matching, new_network
from .objective import Noised, Objective, loss
from .optimizers import optimizers
from .previews import Previews
from .progress import Progress
from .result import add_card, write_model

logger = logging.getLogger(__name__)

CHECKPOINTS, CURVE, LOCK = "checkpoints", "curve.jsonl", ".lock"

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that end a run after the step, with a snapshot."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of the step after ``step`` finished ones."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.lr_schedule == "constant":
        return config.lr
    share = (step - config.warmup) / (config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * share))


class Trainer:
    """A training run.

    Args:
        config: the settings.
        resume: resume from the last snapshot in the output directory, if it has one.
        progress: show a bar; None: a bar on a terminal, and a line every half minute elsewhere.
        entries: clips that replace those of the configuration.

    Attributes:
        step: number of finished steps.
        curve: points of the loss curve.
        unet: the network that is trained, fp32.
        stopped_by: number of the signal that ended the run; None if none did.

    Raises:
        InputError: the data do not fit; the output has a run and ``resume`` is False; or that run has another
            configuration.
        CheckpointError: the model directory or the snapshot cannot be used.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        resume: bool = False,
        progress: bool | None = None,
        entries: Sequence[Entry] | None = None,
    ) -> None:
        self.config, self.progress = config, progress
        self.output = Path(config.output)
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.machine = Machine(config.device)
        self.device = self.machine.device
        self.directory = ModelDirectory.open(fetch(config.model), new_unet=config.mode == "scratch")
        self.family = self.directory.family
        self.start = self._last(resume)
        self.batches = self._data(entries)
        self.objective = Objective.of(
            self.family,
            timesteps=config.timesteps,
            weighting=config.loss_weighting,
            noise_offset=config.noise_offset,
            strength=config.strength,
            device=self.device,
        )
        self.unconditional = self.batches.unconditional(config.dropped_text)
        self.unet = self._network()
        self.trained = {
            name: parameter for name, parameter in self.unet.named_parameters() if parameter.requires_grad
        }
        self.average = EMA(self.trained.items(), config.ema) if config.ema else None
        self.optimizers = optimizers(config, self.unet)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.mixed_precision == "fp16")
        self.previews = self._previews()
        self.parallel = self.machine.parallel(InOneCall(self.unet))
        self.compute = torch.compile(self._loss, dynamic=False) if config.compile else self._loss
        self.step, self.seconds = 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.recent = [0.0, 0.0, 0.0]
        self.stopped_by: int | None = None
        self.curve_file = CurveFile(self.output / CURVE)
        if self.start is not None:
            self._restore(self.start)

    # Parts of a run

    @functools.cached_property
    def encoders(self) -> Encoders:
        """The model's other networks."""
        return Encoders(self.directory, self.device)

    def _last(self, resume: bool) -> Path | None:
        """The snapshot to go on from, whose configuration has been checked."""
        if (self.output / LOCK).is_file():
            self.machine.on_main(self._check_free)
        found = snapshot.snapshots(self.output / CHECKPOINTS)
        if not found:
            return None
        if not resume:
            raise InputError(
                f"{self.output} holds a run already, up to {found[-1].name}. Resume it (--resume), or use "
                "another output directory."
            )
        before = snapshot.read_state(found[-1])
        self.config.check_resume(before["config"], found[-1])
        processes = before["processes"]
        if processes != self.machine.world:
            raise InputError(
                f"The training snapshot {found[-1]} was made by {processes} process(es), and this run has "
                f"{self.machine.world}, which would share other batches. Resume it with as many."
            )
        return found[-1]

    def _check_free(self) -> None:
        with self._lock():
            pass

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other runs out of the output directory. Raises OutputError if one is there."""
        told = f"Another training run is writing to {self.output}; wait for it, or use another output."
        return hold_lock(self.output / LOCK, told)

    def _data(self, entries: Sequence[Entry] | None) -> Batches:
        config, encoders = self.config, lambda: self.encoders
        return Batches(
            open_data(config, self.directory, encoders, self.machine, self.progress, entries),
            self.family,
            batch_size=config.batch_size,
            seed=config.seed,
            frames=config.frames,
            stride=config.frame_stride,
            from_start=config.from_start,
            image_ratio=config.image_ratio,
        )

    def _network(self) -> STUNet:
        config = self.config
        if config.mode == "scratch":
            network = new_network(self.directory.unet, config.seed)
            if config.initial_weights:
                fitting, of = load_matching(network, config.initial_weights)
                logger.warning(
                    "%s: %d of %d tensors match and are loaded", config.initial_weights, fitting, of
                )
        else:
            with torch.device("meta"):
                network = STUNet(self.directory.unet)
            load_module(network, self.directory.read("unet"), dtype=torch.float32)
            network = in_memory(network)
            if config.mode == "lora":
                from ..adapters.lora import add_lora

                with torch.random.fork_rng():
                    torch.manual_seed(config.seed)
                    add_lora(network, **config.lora)
            else:
                network.requires_grad_(True)
            network.train()
        network.to(self.device)
        channels_last(network)
        if config.gradient_checkpointing:
            checkpoint_gradients(network)
        return use_kernel(network, config.attention)

    def _previews(self) -> Previews | None:
        config = self.config
        if not (config.sample_every and self.machine.main):
            return None
        inputs: list[Any] = list(config.sample_inputs)
        if not inputs and self.family.reads_text and not (self.family.reads_image or self.family.takes_video):
            texts = [text for text in self.batches.data.captions if text != config.dropped_text]
            inputs = texts[:: max(len(texts) // 4, 1)][:4]
        if not inputs:
            raise InputError(f"sample_every needs sample_inputs: {self.family.name} needs more than a text.")
        return Previews(self.encoders, self.unet, inputs, config.sample_options)

    # One step

    def _loss(self, noised: tuple[Tensor, ...], conditions: Mapping[str, Tensor]) -> Tensor:
        """The mean loss of a batch; the function that ``compile`` compiles."""
        dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            self.config.mixed_precision
        ]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return loss(self.parallel, Noised(*noised), conditions).mean()

    def prepare(self, batch: Batch, number: int) -> tuple[Noised, dict[str, Tensor]]:
        """A noised batch and its conditions; all random numbers follow from the batch's number."""
        generator = torch.Generator().manual_seed(self._seed(number, 0))
        count = len(batch.latents)
        timesteps = self.objective.draw(count, generator)
        noise = self.objective.noise(tuple(batch.latents.shape), generator)
        dropped = torch.rand(count, generator=generator) < self.config.condition_dropout
        conditions = {}
        for name, value in batch.conditions.items():
            if name in self.unconditional:
                where = dropped.view(-1, *[1] * (value.ndim - 1))
                value = torch.where(where, self.unconditional[name].expand_as(value), value)
            conditions[name] = value.to(self.device)
        clean, noise, timesteps = (part.to(self.device) for part in (batch.latents, noise, timesteps))
        source = None if batch.source is None else batch.source.to(self.device)
        return self.objective.noised(clean, noise, timesteps, source), conditions

    def _step(self) -> tuple[Tensor, Tensor]:
        """One optimiser step; returns the loss and the gradient's norm."""
        config, total = self.config, torch.zeros((), device=self.device)
        parts, machine = config.gradient_accumulation, self.machine
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, self.step)
        for number in range(self.step * parts, (self.step + 1) * parts):
            batch = self.batches.batch(number, machine.rank, machine.world)
            noised, conditions = self.prepare(batch, number)
            torch.manual_seed(self._seed(number, 1))  # for dropout
            fields = (noised.latents, noised.timesteps, noised.target, noised.weight)
            more = number + 1 < (self.step + 1) * parts
            with machine.no_sync(self.parallel) if more else contextlib.nullcontext():
                value = self.compute(fields, conditions) / parts
                self.scaler.scale(value).backward()
            total += value.detach()
        total = machine.mean(total)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained.values(), config.max_grad_norm or math.inf)
        self._check(total, norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.unet.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        return total, norm

    def _check(self, value: Tensor, norm: Tensor) -> None:
        """Raises NumericalError for NaN or infinity, before the weights are changed.

        With fp16's loss scaling, gradients may be infinite: it skips these steps and lowers the scale.
        """
        scaled = self.scaler.is_enabled()
        for what, found in (("loss", value), ("gradient", norm)):
            if not (torch.isfinite(found) or (scaled and what == "gradient")):
                raise NumericalError(
                    f"The {what} is {found.item()} at step {self.step + 1}. A lower lr, or mixed_precision "
                    "'bf16' or 'no', may help; the last checkpoint is unchanged."
                )

    def _seed(self, number: int, purpose: int) -> int:
        """Seed of one batch's random numbers for one purpose, different in each process.

        That of the main process is the same as in a run with one process.
        """
        return _mixed(self.config.seed, number, purpose + 2 * self.machine.rank)

    # The run

    def run(self) -> Path | None:
        """Trains until the last step, ``max_minutes`` or a signal, and writes a snapshot.

        Returns the path of the model directory or LoRA file; None if steps remain.

        Raises:
            NumericalError: the loss or its gradient is NaN or infinite.
            OutputError: a snapshot or the model cannot be written, or another run uses the output.
            InputError: another run has written to the output since this one was made.
        """
        with contextlib.ExitStack() as lock, _stopping() as stop:
            self.machine.on_main(lambda: self._take_output(lock))
            self._train(stop)
            self.stopped_by = stop[0] if stop and self.step < self.config.steps else None
            if self.step < self.config.steps:
                return None
            target = self.output / ("lora.safetensors" if self.config.mode == "lora" else "model")
            self.machine.on_main(lambda: self.write(target))
            return target

    def _take_output(self, lock: contextlib.ExitStack) -> None:
        """Makes the output directory and locks it.

        Raises InputError if another run has written to it since this one was made, OutputError if it cannot
        be used.
        """
        try:
            self.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"The output {self.output} cannot be made: {reason(error)}.") from error
        lock.enter_context(self._lock())
        found = snapshot.snapshots(self.output / CHECKPOINTS)
        if (found[-1] if found else None) != self.start:
            raise InputError(
                f"Another training run has written to {self.output} meanwhile; resume it, or use another "
                "output."
            )

    def _train(self, stop: list[int]) -> None:
        """Steps until the end, ``max_minutes``, or a signal in ``stop``; then a snapshot."""
        config, main = self.config, self.machine.main
        if main:  # without what a killed run added after its last snapshot
            self.curve_file.write(self.curve)
        board = Board(self.output / "tensorboard", self.step) if main else None
        began, saved = time.monotonic(), self.step
        bar = Progress(self.step, config.steps, self.progress if main else False)
        with kept_memory(self.device), bar as shown:
            while self.step < config.steps:
                before = time.monotonic()
                value, norm = self._step()
                self.step += 1
                self.seconds += time.monotonic() - before
                self._count(value.item(), norm.item())
                if self.step % config.log_every == 0 or self.step == config.steps:
                    self._point()
                    if board is not None:
                        board.point(self.curve[-1])
                if self.step % config.checkpoint_every == 0:
                    self.save()
                    saved = self.step
                if self.previews is not None and self.step % config.sample_every == 0:
                    self._preview(board)
                shown.update(self.step, self.curve[-1]["loss"] if self.curve else None)
                late = config.max_minutes and time.monotonic() - began > 60 * config.max_minutes
                if self.machine.any(bool(stop or late)):
                    break
            if saved != self.step:
                self.save()
        if board is not None:
            board.close()

    def _preview(self, board: Board) -> None:
        """Makes a sheet of samples. What fails is logged: training goes on."""
        try:
            board.picture(self.sample(), self.step)
        except VideoError as error:
            logger.warning("No samples at step %d: %s", self.step, error)
        except OSError as error:
            logger.warning("The samples of step %d cannot be written (%s).", self.step, reason(error))

    def sample(self) -> Image.Image:
        """A sheet of samples of the averaged weights; also written to ``samples/step-….png``."""
        with self.average.in_place() if self.average else contextlib.nullcontext():
            sheet = self.previews.sheet()
        path = self.output / "samples" / f"step-{self.step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        sheet.save(path)
        return sheet

    def write(self, target: Path) -> Path:
        """Writes the current weights as a model directory or a LoRA file. Raises OutputError."""
        values = dict(self.average.values if self.average else self.trained)
        if self.config.mode == "lora":
            from ..adapters.lora import save_lora

            base = self.config.published()["model"]
            return save_lora(self.unet, target, family=self.family.name, base=base, weights=values)

        def add_files(path: Path) -> None:
            add_card(path, self.directory, self.config, self._facts(), self.curve, self._example_caption())

        return write_model(target, self.directory, values, add_files=add_files)

    def _facts(self) -> dict[str, Any]:
        """The training in a few rows, for the model card."""
        config = self.config
        return {
            "mode": config.mode,
            "steps": f"{self.step:,}",
            "clips a step": config.batch_size * config.gradient_accumulation * self.machine.world,
            "clips in the data": f"{len(self.batches.data):,}",
            "learning rate": f"{config.lr:g}, {config.lr_schedule}",
            "last loss": f"{self.curve[-1]['loss']:.4f}",
            "hours": f"{self.seconds / 3600:.2f}",
            "seed": config.seed,
        }

    def _example_caption(self) -> str:
        captions = [text for text in self.batches.data.captions if text != self.config.dropped_text]
        return captions[0] if captions else ""

    def _count(self, value: float, norm: float) -> None:
        """Adds a step to the sums of the curve's next point.

        Infinite gradients, of steps that fp16's loss scaling skips, are left out.
        """
        sums = self.recent
        self.recent = [sums[0] + value, sums[1] + (norm if math.isfinite(norm) else 0.0), sums[2] + 1]

    def _point(self) -> None:
        """Adds a point to the curve: means over the steps since the last point."""
        value, norm, count = self.recent
        point = {
            "step": self.step,
            "loss": value / count,
            "lr": learning_rate(self.config, self.step - 1),
            "gradient": norm / count,
            "seconds": round(self.seconds, 2),
        }
        self.recent = [0.0, 0.0, 0.0]
        self.curve.append(point)
        if self.machine.main:
            self.curve_file.add(point)

    def save(self) -> None:
        """Writes a training snapshot and the picture of the curve. Raises OutputError."""
        self.machine.on_main(self._save)

    def _save(self) -> None:
        made = snapshot.Snapshot(
            step=self.step,
            config=self.config.to_dict(),
            processes=self.machine.world,
            fingerprint=self.batches.fingerprint,
            weights=self.trained,
            average=self.average.values if self.average else {},
            optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
            scaler=self.scaler.state_dict(),
            curve=self.curve,
            recent=self.recent,
            seconds=self.seconds,
        )
        self.start = snapshot.save(self.output / CHECKPOINTS, made, self.config.keep_checkpoints)
        if self.curve:
            draw(self.curve, self.output / "curve.png")

    def _restore(self, path: Path) -> None:
        saved = snapshot.load(path)
        if saved.fingerprint != self.batches.fingerprint:
            raise InputError(
                f"The training snapshot {path} was made with other data than {self.config.data}."
            )
        kept = [saved.weights] if self.average is None else [saved.weights, saved.average]
        shapes = {name: parameter.shape for name, parameter in self.trained.items()}
        if any({name: tensor.shape for name, tensor in one.items()} != shapes for one in kept):
            raise CheckpointError(f"The training snapshot {path} has the weights of another network.")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(saved.weights[name])
        if self.average is not None:
            self.average.load(saved.average, saved.step)
        try:
            for optimizer, values in zip(self.optimizers, saved.optimizers, strict=True):
                optimizer.load_state_dict(values)
            self.scaler.load_state_dict(saved.scaler)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"The training snapshot {path} has another optimizer's state than the configuration names."
            ) from error
        self.step, self.curve, self.recent = saved.step, saved.curve, saved.recent
        self.seconds = saved.seconds


def _mixed(*numbers: int) -> int:
    """A seed made of several numbers; different numbers give different seeds."""
    value = 0
    for number in numbers:
        value = (value * 0x9E3779B97F4A7C15 + number + 0x632BE59BD9B4E019) % 2**64
        value = ((value ^ (value >> 31)) * 0xBF58476D1CE4E5B9) % 2**64
    return value >> 1


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """The numbers of the :data:`SIGNALS` that came meanwhile, for the loop to look at.

    A second Ctrl-C stops at once.
    """
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, catch) for number in SIGNALS}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
