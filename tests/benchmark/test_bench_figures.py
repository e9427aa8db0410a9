"""The benchmark's figures, on subjects whose times, results and memory are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints_factory import configs
from torch import nn

from benchmarks.bench import measure, report
from benchmarks.bench import run as runs
from benchmarks.bench.measure import Sample, count_autoencoder, count_evaluation
from benchmarks.bench.presets import SMOKE, Case
from modelscope_i2v.spec.families import FAMILIES

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FAMILY = "text-to-video-synthesis"
SIZE = (2, 8, 8)
UNET = dataclasses.replace(configs(FAMILY).unet, dim_mult=(1,), attn_scales=(1.0,))
AUTOENCODER = configs(FAMILY).autoencoder
MODEL = SimpleNamespace(unet=UNET, autoencoder=AUTOENCODER, family=FAMILIES[FAMILY])


class Known:
    """A subject that gives ``value`` everywhere and takes ``seconds``, one call after the other."""

    one_batch = True

    def __init__(self, name: str, dtype: str, value: float, seconds: list[float]) -> None:
        self.name, self.mode, self.dtype, self.value = name, dtype, dtype, value
        self.seconds = iter(seconds)

    def predict(self, latents: torch.Tensor, timesteps: torch.Tensor, prepared: Any) -> torch.Tensor:
        return torch.full_like(latents, self.value)

    def prepare(self, **_: Any) -> None:
        return None

    def bytes_on_device(self) -> int:
        return 1_000_000_000


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Measures subjects in a case; the rows by subject and type, and whose calls they were in turn."""

    def measured(subjects: list[Known], order: list[str] | None = None, **case: Any) -> dict:
        by_value = {subject.value: subject for subject in subjects}

        def timed(call: Any, device: torch.device) -> Sample:
            result = call()
            subject = by_value[round(float(result.flatten()[0]), 6)]
            if order is not None:
                order.append(f"{subject.name} {subject.dtype}")
            return Sample(result, next(subject.seconds), 0.5, 1.5)

        monkeypatch.setattr(runs, "timed", timed)
        run = runs.Run(dataclasses.replace(SMOKE, originals=("fp32", "fp16")), tmp_path)
        case = Case("evaluation", *SIZE, **{"repeats": 3, "warm": False, **case})
        run._case(case, FAMILY, subjects, MODEL)
        assert run.left_out == []
        return {f"{row.subject} {row.dtype}": row for row in run.rows}

    return measured


def test_subjects_take_turns_and_the_first_round_does_not_count(rows):
    order: list[str] = []
    subjects = [Known("ours", "fp32", 1.0, [50, 1, 2, 3]), Known("stock", "fp32", 2.0, [60, 4, 5, 6])]
    made = rows(subjects, order, warm=True)
    assert order == ["ours fp32", "stock fp32"] * 4
    assert made["ours fp32"].seconds == [1, 2, 3] and made["stock fp32"].seconds == [4, 5, 6]


def test_the_time_is_the_median(rows):
    row = rows([Known("ours", "fp32", 1.0, [1, 9, 2])])["ours fp32"].as_json()
    assert (row["median"], row["fastest"], row["slowest"]) == (2, 1, 9)


def test_errors_are_from_the_fp32_original_and_from_stock_if_it_is_there(rows):
    made = rows(
        [
            Known("ours", "fp32", 1.1, [1] * 3),
            Known("ours", "bf16", 1.2, [1] * 3),
            Known("stock", "fp32", 1.0, [1] * 3),
            Known("diffusers", "fp32", 1.05, [1] * 3),
            Known("stock", "fp16", 1.4, [1] * 3),
        ]
    )
    errors = {who: round(row.error, 5) for who, row in made.items()}
    assert errors == {
        "ours fp32": 0.1,
        "ours bf16": 0.2,
        "stock fp32": 0.0,
        "diffusers fp32": 0.05,
        "stock fp16": 0.4,
    }


def test_without_an_fp32_original_there_is_no_error(rows):
    made = rows([Known("ours", "fp32", 1.1, [1] * 3), Known("stock", "fp16", 1.0, [1] * 3)])
    assert [row.error for row in made.values()] == [None, None]


def test_speeds_are_those_of_the_same_case_against_the_first_type():
    def row(subject: str, mode: str, median: float, frames: int = 4) -> dict[str, Any]:
        size = {"frames": frames, "height": 8, "width": 8, "steps": 0}
        return {
            "device": "cpu",
            "family": FAMILY,
            "what": "step",
            "subject": subject,
            "mode": mode,
            "median": median,
            **size,
        }

    given = [
        row("ours", "bf16", 2.0),
        row("stock", "fp32", 7.0),
        row("stock", "fp16", 4.0),
        row("diffusers", "fp32", 3.0),
        row("stock", "fp32", 100.0, frames=8),
    ]
    ours, stock, *_ = report.with_speeds(given, [runs.Run(SMOKE, Path())])
    assert ours["speeds"] == {"stock": 3.5, "diffusers": 1.5}
    assert stock["speeds"]["stock"] == 1


def test_work_is_counted_once(tmp_path):
    evaluation = count_evaluation(MODEL.family, UNET, *SIZE)
    decoding = count_autoencoder(AUTOENCODER, "decode", *SIZE)
    run = runs.Run(SMOKE, tmp_path)

    def work(what: str, steps: int = 0) -> float:
        return run._work(Case(what, *SIZE, steps=steps), MODEL, SIZE)

    assert work("evaluation") == evaluation and work("step") == 2 * evaluation
    assert work("decode") == decoding
    assert work("video", steps=7) == pytest.approx(14 * evaluation + decoding)


def test_floating_point_operations_of_a_layer_are_two_a_weight():
    layer, rows = nn.Linear(300, 500, device="meta"), torch.empty(7, 300, device="meta")
    assert measure._count(lambda: layer(rows)) == pytest.approx(2 * 7 * 300 * 500 / 1e12)


def test_the_rate_of_matrices_is_that_of_the_fastest_product(monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock["now"])

    def timed(call: Any, device: torch.device) -> Sample:
        clock["now"] += 0.2
        return Sample(None, {0.2: 4e-3, 0.4: 1e-3}.get(round(clock["now"], 1), 2e-3), None, None)

    monkeypatch.setattr(measure, "timed", timed)
    assert measure.matrix_rate(torch.float32, CPU, 100) == pytest.approx(2 * 100**3 / 1e-3 / 1e12)


def test_memory_of_the_host_is_in_gigabytes_over_what_was_there():
    if measure._reset_peak() is None:
        assert measure.timed(lambda: None, CPU).memory_gb is None  # the system does not tell
        return
    before = torch.ones(75_000_000)  # 0.3 GB
    sample = measure.timed(lambda: torch.ones(50_000_000).sum(), CPU)
    assert before.sum() > 0
    assert sample.memory_gb == pytest.approx(0.2, abs=0.05) and sample.device_gb is None


def test_memory_and_time_of_a_gpu(monkeypatch):
    """The call returns at once, and the device works on; its networks are part of its memory."""
    clock, asked = {"now": 0.0}, []

    def synchronize(_: torch.device) -> None:
        clock["now"] += 3.0

    def call() -> str:
        asked.append("call")
        clock["now"] += 0.25
        return "done"

    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1_250_000_000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: asked.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3_750_000_000)
    sample = measure.timed(call, CUDA)
    assert (sample.result, sample.seconds, sample.device_gb) == ("done", 3.25, 2.5)
    assert asked == ["reset", "call"]


def test_a_row_has_the_largest_memory_of_its_calls_and_the_networks_on_the_device(tmp_path):
    subject = Known("ours", "fp32", 1.0, [])
    run = runs.Run(SMOKE, tmp_path)
    row = run._row(Case("step", *SIZE), FAMILY, "ours", "fp32", SIZE)
    for host, device in ((0.2, 2.0), (0.5, 1.0), (0.1, 0.5)):
        run._add(row, subject, Sample(None, 1.0, host, device))
    assert (row.memory_gb, row.device_gb) == (0.5, 3.0)


def test_the_share_is_of_the_better_rate_of_its_type(tmp_path, monkeypatch):
    rates = iter([2.0, 4.0, 3.0, 5.0])  # bf16, fp32, and again when all is over
    monkeypatch.setattr(runs, "matrix_rate", lambda *_: next(rates))
    run = runs.Run(SMOKE, tmp_path, families=[])

    row = run._row(Case("step", *SIZE), FAMILY, "ours", "bf16", SIZE)
    row.seconds, row.tflop = [2.0], 1.5
    run.rows.append(row)
    run.measure()
    assert run.rates == {"bf16": 3.0, "fp32": 5.0}
    assert row.share == pytest.approx(1.5 / 2.0 / 3.0)
