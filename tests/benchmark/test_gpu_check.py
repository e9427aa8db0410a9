"""The check for GPUs, with small networks on a CPU: what it measures, and that it sees what is wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from checkpoints_factory import configs

from benchmarks import gpu_check, gpu_modes
from modelscope_i2v.compute import ops
from modelscope_i2v.memory import count as memory_model
from modelscope_i2v.memory.count import MODES, Model
from modelscope_i2v.spec.families import FAMILIES, VIDEO_TO_VIDEO

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(ops, "CPU_TOKENS", 1 << 30)  # a CPU would take fewer tokens at a time


def found(name: str, **options: int) -> dict[str, tuple[float, float]]:
    """The checks of a family's memory modes at a small size: by what they say, the value and its limit."""
    sizes = configs(name)
    family = FAMILIES[name]
    unet = dataclasses.replace(sizes.unet, dim_mult=(1,), attn_scales=(1.0,))
    model = Model(unet, sizes.autoencoder, sizes.clip, family.reads_text)
    options = {"height": 80, "width": 64, "num_frames": 4, **options}
    return {
        what: (value, limit)
        for what, value, limit in gpu_check.large(family, model, CPU, torch.float32, **options)
    }


def kinds(checks: dict[str, tuple[float, float]], word: str) -> list[tuple[float, float]]:
    return [check for what, check in checks.items() if word in what]


@pytest.mark.parametrize("name", ["text-to-video-synthesis", "video-to-video"])
def test_modes_give_the_same_frames_in_the_counted_memory(name):
    checks = found(name)
    assert len(kinds(checks, "share apart")) == len(MODES)
    assert all(value <= limit for value, limit in kinds(checks, "share apart")), checks
    assert len(kinds(checks, "against resident")) == 2
    assert all(value < 0.1 for value, _ in kinds(checks, "against resident")), checks
    assert all(value > 0 for value, _ in kinds(checks, "s a video")) and len(kinds(checks, "s a video")) == 2


def test_it_sees_a_wrong_count(monkeypatch):
    peak = memory_model.peak
    monkeypatch.setattr(memory_model, "peak", lambda *given: int(0.85 * peak(*given)))
    checks = kinds(found("text-to-video-synthesis"), "share apart")
    assert len(checks) == len(MODES) and all(value > limit for value, limit in checks), checks


def test_it_sees_weights_that_stay(monkeypatch):
    """As if ``offload`` left all networks on the device."""
    monkeypatch.setattr(gpu_modes.Placement, "storage_device", property(lambda self: self.device))
    phases = memory_model.phases

    def smaller(*given):
        return {name: size // 2 if given[3] == "offload" else size for name, size in phases(*given).items()}

    monkeypatch.setattr(memory_model, "phases", smaller)
    checks = found("text-to-video-synthesis")
    assert [value > limit for value, limit in kinds(checks, "share apart")] == [False, True, False]


def test_it_sees_other_frames(monkeypatch):
    options = gpu_modes.Placement.options

    def coarser(self, given):
        return dataclasses.replace(
            options(self, given), guidance_scale=1.0 if self.mode == "minimal" else 9.0
        )

    monkeypatch.setattr(gpu_modes.Placement, "options", coarser)
    (offload, limit), (minimal, _) = kinds(found("text-to-video-synthesis"), "against resident")
    assert offload <= limit < minimal


def test_times_are_those_of_whole_videos(monkeypatch):
    """A step of 2 s and 5 s of all else are 2 N + 5 for the family's N steps."""
    clock = {"now": 0.0}
    monkeypatch.setattr(gpu_modes.time, "perf_counter", lambda: clock["now"])

    class Timed:
        unet = autoencoder = torch.nn.Identity()
        text_encoder = image_encoder = None

        def __call__(self, given, callback=None, num_inference_steps=0, **_):
            for step in range(num_inference_steps):
                clock["now"] += 2
                if callback:
                    callback(step)
            clock["now"] += 5
            return [None]

        def resolve(self, given, options):
            return given, options

    monkeypatch.setattr(gpu_modes, "random_generator", lambda *_: Timed())
    monkeypatch.setattr(memory_model, "peak", lambda *_: 0)
    made = gpu_modes.in_every_mode(VIDEO_TO_VIDEO, None, CPU, torch.float32, None, {})
    wanted = 2 * VIDEO_TO_VIDEO.num_inference_steps + 5
    assert [(one.mode, one.seconds) for one in made] == [(mode, wanted) for mode in MODES]


@pytest.mark.parametrize(("value", "code"), [(0.5, 0), (1.5, 1), (float("nan"), 1)])
def test_a_check_that_fails_is_the_exit_code(value, code, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "checks", lambda _: iter([("frames", value, 1.0)]))
    assert gpu_check.main(["--device", "cpu"]) == code
    said = capsys.readouterr().out
    assert ("FAILED" in said) == bool(code) and "frames" in said
