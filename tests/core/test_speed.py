"""Speeds: what each part of a preset leaves out, and that it leaves out nothing else."""

import dataclasses
import json
import threading
from functools import partial

import av
import numpy as np
import pytest
import torch

from benchmarks import speed_table
from modelscope_i2v.cli.main import main
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.engine.jobs import Job
from modelscope_i2v.errors import InputError
from modelscope_i2v.memory.placement import Placement
from modelscope_i2v.sampling.guidance import denoiser, guidance_interval, guided
from modelscope_i2v.sampling.noise import SolverNoise
from modelscope_i2v.sampling.schedules import SCHEDULES, sqrt_linear
from modelscope_i2v.sampling.solvers import SOLVERS
from modelscope_i2v.spec.families import FAMILIES, TEXT_TO_VIDEO, VIDEO_TO_VIDEO
from modelscope_i2v.spec.options import resolve
from modelscope_i2v.spec.speed import SPEEDS

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
QUICK = {"num_inference_steps": 4, "num_frames": 3, "height": 64, "width": 64, "progress": False, "seed": 1}


@pytest.fixture(scope="module")
def generators():
    return {name: VideoGenerator.from_directory(model_directory(name), device="cpu") for name in FAMILIES}


@pytest.fixture
def interval(monkeypatch):
    """``fast`` guides in an interval that a few steps go into and out of."""
    monkeypatch.setitem(SPEEDS, "fast", dataclasses.replace(SPEEDS["fast"], guidance_interval=(0.6, 5.0)))


def given(family):
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    inputs = {"frames": frames} if family.takes_video else {}
    inputs |= {"image": picture()} if family.reads_image else {}
    return inputs | ({"text": "a red circle moves left"} if family.reads_text else {})


def latents_of(generator, **options):
    made = generator([given(generator.family)], output_type="latent", **{**QUICK, **options})
    return made[0]


def alike(one, other, tolerance=1e-4):
    return float((one - other).square().mean().sqrt() / other.square().mean().sqrt()) < tolerance


# What the table sets


@EVERY_FAMILY
def test_exact_is_the_default_and_sets_nothing(family):
    assert resolve(family, {}).speed == "exact"
    for checkpoint in ({}, {"num_inference_steps": 7, "scheduler": "heun"}):
        assert resolve(family, {"speed": "exact"}, checkpoint) == resolve(family, {}, checkpoint)


@pytest.mark.parametrize("speed", [name for name in SPEEDS if name != "exact"])
@EVERY_FAMILY
def test_each_speed_takes_a_share_of_the_steps(family, speed):
    share = SPEEDS[speed].steps
    assert 0 < share < 1
    assert resolve(family, {"speed": speed}).num_inference_steps == round(share * family.num_inference_steps)
    of_checkpoint = resolve(family, {"speed": speed}, {"num_inference_steps": 200}).num_inference_steps
    assert of_checkpoint == round(share * 200)
    assert resolve(family, {"speed": speed}, {"num_inference_steps": 1}).num_inference_steps == 1


def test_multistep_solver_takes_the_place_of_ddim_only():
    assert resolve(TEXT_TO_VIDEO, {"speed": "fast"}).scheduler == SPEEDS["fast"].scheduler != "ddim"
    assert resolve(VIDEO_TO_VIDEO, {"speed": "fast"}).scheduler == VIDEO_TO_VIDEO.scheduler
    assert resolve(VIDEO_TO_VIDEO, {"speed": "fast"}, {"scheduler": "heun"}).scheduler == "heun"


@EVERY_FAMILY
def test_what_the_caller_says_wins(family):
    said = {"num_inference_steps": 33, "scheduler": "ddim", "guidance_scale": 2.5}
    options = resolve(family, {"speed": "fast", **said})
    assert options.speed == "fast" and all(getattr(options, name) == value for name, value in said.items())


@EVERY_FAMILY
@pytest.mark.parametrize("wrong", ["warp", "", 0, True, ["fast"]])
def test_unknown_speed_is_told(family, wrong):
    with pytest.raises(InputError, match=r"^speed=.* must be one of exact, fast, turbo\.$"):
        resolve(family, {"speed": wrong})


@EVERY_FAMILY
def test_work_of_each_speed(family):
    exact, fast, turbo = (speed_table.evaluations(family, speed) for speed in ("exact", "fast", "turbo"))
    assert exact == 2 * family.num_inference_steps
    assert fast <= exact / 2.5 and turbo <= exact / 3.5


# Guidance in an interval


def test_outside_the_interval_the_unconditional_branch_is_left_out():
    schedule, rows, made = sqrt_linear(), [], []

    def prepare(y):
        made.append(len(y))
        return y

    def network(x, t, y):
        rows.append(len(x))
        return y.view(-1, 1, 1, 1, 1).expand_as(x)

    def with_guidance(scale):
        wanted, without = {"y": torch.full((1,), 3.0)}, {"y": torch.full((1,), 1.0)}
        return denoiser(guided(network, prepare, wanted, without, scale=scale), schedule, "eps")

    low, high = (float(schedule.sigmas[t] / schedule.alphas[t]) for t in (200, 700))
    denoise = guidance_interval(lambda: with_guidance(5.0), lambda: with_guidance(1.0), schedule, (low, high))
    x = torch.randn(1, 4, 2, 3, 3)
    for t, noise in ((900, 3.0), (701, 3.0), (700, 11.0), (201, 11.0), (200, 3.0), (1, 3.0)):
        wanted = (x - schedule.sigmas[t] * noise) / schedule.alphas[t]
        assert torch.allclose(denoise(x, t), wanted.float(), atol=1e-4), t
    assert rows == [1, 1, 2, 2, 1, 1]
    assert made == [1, 2, 1], "conditions are made when their turn comes"


@pytest.mark.parametrize("name", SCHEDULES)
def test_exact_guides_at_every_noise_level(name):
    schedule = SCHEDULES[name]()
    denoise = guidance_interval(
        lambda: lambda x, t: "guided",
        lambda: pytest.fail("guidance was left out"),
        schedule,
        SPEEDS["exact"].guidance_interval,
    )
    assert {denoise(None, t) for t in range(len(schedule))} == {"guided"}


# Whole videos


@EVERY_FAMILY
def test_exact_is_the_plain_solver_to_the_bit(generators, family):
    generator = generators[family.name]
    job = Job.of(generator.prepare(given(family), **QUICK))
    options, schedule = job.request.options, SCHEDULES[family.schedule]()
    with torch.inference_mode():
        conditional, unconditional = generator.encode_conditions([job])
        start = generator.start([job], unconditional)
        predict = guided(
            generator.unet,
            partial(generator.unet.prepare, frames=start.shape[2]),
            conditional,
            unconditional,
            scale=options.guidance_scale,
            rescale=options.guidance_rescale,
        )
        denoise = denoiser(predict, schedule, generator.family.prediction)
        noisiest = family.start_timestep(options.strength if family.takes_video else 1.0)
        noise = SolverNoise([job.source])
        *_, wanted = SOLVERS[options.scheduler](denoise, start, schedule, 4, noisiest, noise, options.eta)
    height, width = options.height // 8, options.width // 8
    assert torch.equal(latents_of(generator), wanted[0, ..., :height, :width])
    assert torch.equal(latents_of(generator, speed="exact"), latents_of(generator))


@EVERY_FAMILY
def test_speeds_change_a_video_a_little(generators, family):
    """In the models' own size: what they make of smaller videos is chance."""
    generator = generators[family.name]
    own = {"num_inference_steps": None, "num_frames": 8, "height": 96, "width": 96}
    exact = latents_of(generator, **own)
    other = latents_of(generator, **own | {"seed": 2})
    for speed in ("fast", "turbo"):
        near = latents_of(generator, **own, speed=speed)
        assert not torch.equal(near, exact)
        assert (near - exact).square().mean() < 0.5 * (other - exact).square().mean()


@EVERY_FAMILY
def test_batches_and_branches_apart_give_the_same(generators, family, interval):
    generator = generators[family.name]
    options = {"speed": "fast", "scheduler": "heun", "guidance_scale": 3}
    alone = [latents_of(generator, **options, seed=seed) for seed in (1, 2)]
    assert not alike(alone[0], latents_of(generator, **{**options, "speed": "exact"}))
    assert not alike(alone[0], latents_of(generator, **{**options, "guidance_scale": 1}))
    pair = latents_of(generator, **options, num_videos=2, batch_size=2)
    assert all(alike(a, b) for a, b in zip(pair, alone))
    assert alike(latents_of(generator, **options, sequential_guidance=True), alone[0])


@pytest.mark.parametrize("mode", ["offload", "minimal"])
def test_memory_modes_give_the_same(generators, mode, interval):
    generator = generators["text-to-video-synthesis"]
    wanted = latents_of(generator, speed="fast", loop=True)
    assert not alike(wanted, latents_of(generator, speed="fast"))
    resident = generator.placement
    generator.placement = Placement(torch.device("cpu"), mode, moves=True)
    try:
        assert alike(latents_of(generator, speed="fast", loop=True), wanted)
    finally:
        generator.placement = resident


def test_two_threads_at_two_speeds_do_not_disturb_each_other(generators, interval):
    generator = generators["i2vgen-xl"]
    wanted = {speed: latents_of(generator, speed=speed) for speed in ("exact", "fast")}
    found = {}
    make = partial(latents_of, generator)
    threads = [threading.Thread(target=lambda s=speed: found.update({s: make(speed=s)})) for speed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[speed], wanted[speed]) for speed in wanted)


def test_command_line_takes_a_speed_and_the_file_names_it(tmp_path):
    path = tmp_path / "a.mp4"
    model = str(model_directory("text-to-video-synthesis"))
    size = ["--num-frames", "3", "--height", "64", "--width", "64", "--no-progress", "--device", "cpu"]
    command = ["text-to-video", "a red circle", "-o", str(path), "--model", model]
    assert main([*command, *size, "--speed", "fast"]) == 0
    with av.open(str(path)) as container:
        made = json.loads(container.metadata["comment"])
    assert made["speed"] == "fast" and made["scheduler"] == SPEEDS["fast"].scheduler
    assert made["num_inference_steps"] == round(20 * SPEEDS["fast"].steps)
