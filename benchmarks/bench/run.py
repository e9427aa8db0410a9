"""Runs the cases of a preset, family by family, every subject's turn after the other's."""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import torch
from oracle.compare import relative_rms
from PIL import Image
from torch import Tensor

from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.devices import DTYPES
from modelscope_i2v.embedded import picture
from modelscope_i2v.progress import bar
from modelscope_i2v.sampling.guidance import guided
from modelscope_i2v.spec.families import FAMILIES

from .checkpoints import IN_DIFFUSERS, Checkpoints
from .loading import load_apart
from .measure import Sample, conditions, count_autoencoder, count_evaluation, matrix_rate, timed
from .presets import MODES, ORDER, Case, Preset
from .subjects import SEED, STOCK_UNETS, Subject, Wish, build

TEXT = "A boat on the sea at sunset."
TIMESTEP = 500
NO_TIME = "there was no time left"


@dataclass
class Row:
    """What was measured of one subject in one case. Sizes are of the latents."""

    family: str
    what: str
    frames: int
    height: int
    width: int
    steps: int
    device: str
    subject: str
    """``ours``, ``stock`` or ``diffusers``."""
    mode: str
    dtype: str
    seconds: list[float] = field(default_factory=list)
    memory_gb: float | None = None
    """Host memory beyond what was there before the call, the largest of all; for loading, of the process."""
    device_gb: float | None = None
    """Peak of the device's memory, the subject's networks included."""
    error: float | None = None
    """RMS of the difference from the fp32 original, over the original's RMS."""
    tflop: float | None = None
    share: float | None = None
    """Of the rate at which the device multiplies large matrices of this type."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        summary = {"median": self.median, "fastest": min(self.seconds), "slowest": max(self.seconds)}
        return {**asdict(self), **summary}


class Run:
    """One preset's measurements.

    Attributes:
        rows: what was measured.
        left_out: what was not, with the reason.
        rates: TFLOP/s of large matrix products by number type.
    """

    def __init__(
        self, preset: Preset, work: Path, families: Sequence[str] = ORDER, repeats: int | None = None
    ) -> None:
        self.preset = preset
        self.work = work
        self.families = [name for name in ORDER if name in families]
        self.repeats = repeats
        self.device = torch.device(preset.device)
        self.begin = time.monotonic()
        self.deadline = self.begin + 60 * preset.minutes
        self.rows: list[Row] = []
        self.left_out: list[dict[str, str]] = []
        self.rates: dict[str, float] = {}

    @property
    def failed(self) -> bool:
        """Whether something was left out for another reason than time."""
        return any(entry["why"] != NO_TIME for entry in self.left_out)

    def measure(self) -> Run:
        """Measures everything, and returns itself."""
        torch.backends.cudnn.allow_tf32 = False  # PyTorch's convolutions in fp32 would not be in fp32
        gc.freeze()  # what the imports made need not be searched before every call
        self._measure_rates()
        checkpoints = Checkpoints(self.work, self.preset.small)
        total = sum(len(self._cases(name)) for name in self.families)
        with bar(total, "Measuring", unit="case") as progress:
            for name in self.families:
                if time.monotonic() < self.deadline:
                    with self._told(name, "all", "all", "of them"):
                        self._family(name, checkpoints, progress.update)
                    continue
                for case in self._cases(name):  # without making its checkpoint
                    self._note(name, case.what, "all", "of them", NO_TIME)
                    progress.update()
        self._measure_rates()
        gc.unfreeze()
        for row in self.rows:
            if row.tflop is not None:
                row.share = row.tflop / row.median / self.rates[row.dtype]
        return self

    def _measure_rates(self) -> None:
        """Once before and once after everything else; the better one counts."""
        types = {MODES[mode].dtype for mode in self.preset.modes} | set(self.preset.originals)
        for name in sorted(types):
            rate = matrix_rate(DTYPES[name], self.device, self.preset.matrix)
            self.rates[name] = max(rate, self.rates.get(name, 0.0))

    def _cases(self, family: str) -> list[Case]:
        return [case for case in self.preset.cases if family in case.families]

    def _family(self, name: str, checkpoints: Checkpoints, done: Callable[[], Any]) -> None:
        cases = self._cases(name)
        loads = any(case.what == "loading" for case in cases)
        directory = checkpoints.make(name, stable_diffusion=loads)
        folder = checkpoints.in_diffusers(directory)
        self._say(f"{name}: checkpoint made")
        sources = {"ours": directory, "stock": directory, "diffusers": folder}
        who = [("ours", mode) for mode in self.preset.modes]
        for dtype in self.preset.originals:
            who += [("stock", dtype)] if name in STOCK_UNETS else []
            who += [("diffusers", dtype)] if name in IN_DIFFUSERS else []

        for case in (case for case in cases if case.what == "loading"):
            self._loading(case, name, who, sources)
            done()
        subjects = []
        for what, mode in who:
            with self._told(name, "building", what, mode):
                subjects.append(build(what, mode, FAMILIES[name], self.device, sources[what]))
        for case in (case for case in cases if case.what != "loading"):
            self._case(case, name, subjects, ModelDirectory.open(directory))
            done()
        subjects.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        checkpoints.forget(directory)

    def _loading(
        self, case: Case, name: str, who: list[tuple[str, str]], sources: dict[str, Path | None]
    ) -> None:
        rows: dict[tuple[str, str], Row] = {}
        modes = case.only or (*self.preset.modes, self.preset.originals[0])
        for _ in range(self.repeats or case.repeats):
            for what, mode in (pair for pair in who if pair[1] in modes):
                with self._told(name, "loading", what, mode):
                    seconds, memory = load_apart(what, mode, name, self.preset.device, sources[what])
                    row = rows.setdefault((what, mode), self._row(case, name, what, mode, (0, 0, 0)))
                    row.seconds.append(seconds)
                    row.memory_gb = _larger(row.memory_gb, memory)
        self._keep(rows.values())

    def _case(self, case: Case, name: str, subjects: list[Subject], model: ModelDirectory) -> None:
        """Measures one case of all subjects in turns, and compares their results."""
        size = (case.frames, *model.unet.canvas(case.height, case.width))
        present = [subject for subject in subjects if not case.only or subject.mode in case.only]
        calls = {}
        for subject in present:
            with self._told(name, case.what, subject.name, subject.mode):
                calls[subject] = self._call(case, subject, model, size)
        work = self._work(case, model, size)
        rows = {s: self._row(case, name, s.name, s.mode, size) for s in present}
        results: dict[Subject, Any] = {}
        once = {s for s in present if s.name != "ours" and s.mode != self.preset.originals[0]}
        for turn in range(-1 if case.warm else 0, self.repeats or case.repeats):
            for subject in [s for s in calls if turn == 0 or s not in once]:
                row = rows[subject]
                if not self._time_for(row, subject):
                    if not row.seconds:
                        self._note(name, row.what, row.subject, row.mode, NO_TIME)
                        del calls[subject]
                    continue
                sample = None
                with self._told(name, case.what, subject.name, subject.mode):
                    sample = timed(calls[subject], self.device)
                if sample is None:
                    del calls[subject]
                elif turn >= 0:
                    self._add(row, subject, sample)
                    results.setdefault(subject, _as_tensor(sample.result))
        # Stock comes before diffusers.
        exact = next((results[s] for s in results if s.name != "ours" and s.dtype == "fp32"), None)
        for subject, result in results.items():
            rows[subject].tflop = work
            if exact is not None:
                rows[subject].error = relative_rms(result, exact)
        self._keep(row for row in rows.values() if row.seconds)

    def _row(self, case: Case, family: str, what: str, mode: str, size: tuple[int, int, int]) -> Row:
        dtype = MODES[mode].dtype if what == "ours" else mode
        return Row(family, case.what, *size, case.steps, self.preset.device, what, mode, dtype)

    def _add(self, row: Row, subject: Subject, sample: Sample) -> None:
        row.seconds.append(sample.seconds)
        row.memory_gb = _larger(row.memory_gb, sample.memory_gb)
        if sample.device_gb is not None:
            row.device_gb = _larger(row.device_gb, sample.device_gb + subject.bytes_on_device() / 1e9)

    def _keep(self, rows: Any) -> None:
        for row in rows:
            self.rows.append(row)
            size = f" {row.frames}×{row.height}×{row.width}" if row.frames else ""
            self._say(f"{row.family}, {row.what}{size}: {row.subject} {row.mode} {row.median:.3g} s")

    def _time_for(self, row: Row, subject: Subject) -> bool:
        """Whether one more call is likely to end before the deadline."""
        expected = max(row.seconds, default=0.0)
        if row.what == "video" and not expected:
            step = [
                other.median
                for other in self.rows
                if (other.what, other.family, other.subject, other.mode)
                == ("step", row.family, row.subject, row.mode)
                and (other.frames, other.height, other.width) == (row.frames, row.height, row.width)
            ]
            expected = row.steps * max(step, default=0.0)
        return time.monotonic() + expected < self.deadline

    def _note(self, family: str, what: str, subject: str, mode: str, why: str) -> None:
        self.left_out.append({"family": family, "what": what, "subject": subject, "mode": mode, "why": why})
        self._say(f"{family}, {what}: {subject} {mode} left out: {why}")

    def _say(self, line: str) -> None:
        """Prints a line with the minutes since the run began."""
        print(f"{(time.monotonic() - self.begin) / 60:4.1f} min  {line}", flush=True)

    @contextlib.contextmanager
    def _told(self, family: str, what: str, subject: str, mode: str) -> Iterator[None]:
        """An error is noted, and does not end the run."""
        try:
            yield
        except Exception as error:
            traceback.print_exception(error)
            self._note(family, what, subject, mode, f"{type(error).__name__}: {error}".splitlines()[0])

    def _call(
        self, case: Case, subject: Subject, model: ModelDirectory, size: tuple[int, int, int]
    ) -> Callable[[], Any]:
        """What is timed."""
        frames, height, width = size
        generator = torch.Generator().manual_seed(SEED)
        factor = model.autoencoder.factor
        if case.what == "video":
            pixels = height * factor, width * factor
            wish = Wish(TEXT, _picture(), self._clip(frames), frames, *pixels, case.steps)
            return lambda: subject.video(wish)
        if case.what == "encode":
            pixels = torch.rand(frames, 3, height * factor, width * factor, generator=generator) * 2 - 1
            pixels = pixels.to(self.device)
            return lambda: subject.encode(pixels)
        if case.what == "decode":
            latents = 5 * torch.randn(frames, model.autoencoder.embed_dim, height, width, generator=generator)
            latents = latents.to(self.device)
            return lambda: subject.decode(latents)
        family = model.family
        latents = torch.randn(1, model.unet.in_dim, *size, generator=generator).to(self.device)
        times = torch.tensor([TIMESTEP], device=self.device)
        wanted, without = (
            {key: value.to(self.device) for key, value in given.items()}
            for given in conditions(family, model.unet, height, width)
        )
        prepare = functools.partial(subject.prepare, frames=frames)
        if case.what == "evaluation":
            return lambda: subject.predict(latents, times, prepare(**wanted))
        predict = guided(
            subject.predict,
            prepare,
            wanted,
            without,
            scale=family.guidance_scale,
            rescale=family.guidance_rescale,
            one_batch=subject.one_batch,
        )
        return lambda: predict(latents, times)

    def _work(self, case: Case, model: ModelDirectory, size: tuple[int, int, int]) -> float:
        """TFLOP of the case; of a video, those of its U-Net and its decoding."""
        if case.what in ("encode", "decode"):
            return count_autoencoder(model.autoencoder, case.what, *size)
        evaluation = count_evaluation(model.family, model.unet, *size)
        if case.what == "video":
            decoding = count_autoencoder(model.autoencoder, "decode", *size)
            return 2 * case.steps * evaluation + decoding
        return evaluation * (2 if case.what == "step" else 1)

    def _clip(self, frames: int) -> Path:
        """A video of that many frames, as the input of video-to-video."""
        path = self.work / f"clip-{frames}.mp4"
        if not path.exists():
            still = np.asarray(_picture().resize((160, 96)))
            moving = np.stack([np.roll(still, 4 * index, axis=1) for index in range(frames)])
            imageio.imwrite(path, moving, plugin="pyav", codec="libx264", fps=8)
        return path


def _picture() -> Image.Image:
    return Image.open(picture()).convert("RGB")


def _larger(first: float | None, second: float | None) -> float | None:
    known = [value for value in (first, second) if value is not None]
    return max(known, default=None)


def _as_tensor(result: Tensor | np.ndarray) -> Tensor:
    return torch.as_tensor(result).float().cpu()
