"""The picture as the first frame, and videos whose last frame leads to the first."""

import dataclasses

import numpy as np
import pytest
import torch
from checkpoints_factory import configs, random_state
from small_unet import predicted

from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.generator import Job, VideoGenerator
from modelscope_i2v.errors import InputError
from modelscope_i2v.networks.local_image import over_time
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.sampling.first_frame import hold_first_frame
from modelscope_i2v.sampling.noise import NoiseSource, SolverNoise
from modelscope_i2v.sampling.schedules import SCHEDULES
from modelscope_i2v.sampling.solvers import SOLVERS
from modelscope_i2v.spec.families import FAMILIES, I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO
from modelscope_i2v.spec.options import resolve

QUICK = {"num_inference_steps": 3, "num_frames": 4, "height": 64, "width": 64, "progress": False}
LATENT = {**QUICK, "output_type": "latent"}


@pytest.fixture(scope="module")
def generators():
    names = ("image-to-video", "i2vgen-xl", "text-to-video-synthesis")
    return {name: VideoGenerator.from_directory(model_directory(name), device="cpu") for name in names}


@pytest.fixture(params=["image-to-video", "i2vgen-xl"])
def generator(generators, request):
    return generators[request.param]


def latents_of(generator, given=None, **options):
    given = picture() if given is None else given
    (latents,) = generator([given], **{**LATENT, "seed": 1, **options})
    return latents


# ---- the first frame ---------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_holds_the_first_frame(solver, schedule):
    """The network sees it at the level of its timestep; the other frames go their own way."""
    numbers = torch.Generator().manual_seed(0)
    still, noise = (torch.randn(2, 4, 3, 5, generator=numbers) for _ in range(2))
    x = torch.randn(2, 4, 6, 3, 5, generator=numbers)
    x[:, :, 0] = noise
    table, steps = SCHEDULES[schedule](), 7
    seen = []

    def denoise(x, t):
        seen.append((t, x[:, :, 0].clone()))
        return 0.5 * x  # a network that looks at one frame at a time

    def run(chosen):
        sources = SolverNoise([NoiseSource(seed) for seed in (1, 2)])
        return list(chosen(denoise, x, table, steps, 599, sources, 0.0))

    free = run(SOLVERS[solver])
    seen.clear()
    held = run(hold_first_frame(SOLVERS[solver], still, noise))
    assert len(held) == steps
    assert torch.equal(held[-1][:, :, 0], still)
    for t, frame in seen:
        expected = table.alphas[t].item() * still + table.sigmas[t].item() * noise
        assert torch.equal(frame, expected)
    for ours, theirs in zip(held, free):
        assert torch.equal(ours[:, :, 1:], theirs[:, :, 1:])


def test_anchored_latents_begin_with_the_picture(generator):
    sample = generator.prepare(picture(), seed=1, first_frame="anchor", **QUICK)
    job = Job.of(sample)
    latents = latents_of(generator, first_frame="anchor")
    positive, negative = generator.encode_conditions([job])
    generator.start([job], negative)
    wanted = positive["image_latents"][0] if "image_latents" in positive else generator._image_latents(job)
    assert torch.equal(latents[:, 0], wanted)


def test_the_first_frame_is_the_picture_cut_to_the_videos_shape(generator):
    frames = generator([picture()], seed=1, **{**QUICK, "output_type": "pt"}, first_frame="anchor")[0]
    sample = generator.prepare(picture(), seed=1, first_frame="anchor", **QUICK)
    latents = latents_of(generator, first_frame="anchor")
    expected = generator.decode(latents[:, :1], sample.options)
    assert torch.allclose(frames[0], (expected[0] / 2 + 0.5).clamp(0, 1), atol=1 / 255)


def test_the_other_frames_learn_of_it_and_start_from_the_same_noise(generator):
    free, held = latents_of(generator), latents_of(generator, first_frame="anchor")
    assert torch.equal(free, latents_of(generator, first_frame="free"))
    moved = (held - free).abs().amax(dim=(0, 2, 3))
    assert (moved > 1e-4).all()


def test_an_anchored_batch_is_its_single_videos(generator):
    single = [latents_of(generator, seed=seed, first_frame="anchor") for seed in (1, 2)]
    options = {**LATENT, "seed": 1, "first_frame": "anchor", "num_videos": 2, "batch_size": 2}
    ((first, second),) = generator([picture()], **options)
    assert torch.allclose(first, single[0], atol=1e-4) and torch.allclose(second, single[1], atol=1e-4)


@pytest.mark.parametrize("options", [{"num_frames": 1}, {"height": 72, "width": 40}, {"scheduler": "heun"}])
def test_any_size_and_solver(generator, options):
    frames = generator([picture()], **{**QUICK, "output_type": "np", "first_frame": "anchor", **options})[0]
    size = (options.get("height", 64), options.get("width", 64))
    assert frames.shape == (options.get("num_frames", 4), *size, 3)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (TEXT_TO_VIDEO, {"first_frame": "anchor"}, "no option 'first_frame'"),
        (VIDEO_TO_VIDEO, {"first_frame": "anchor"}, "no option 'first_frame'"),
        (VIDEO_TO_VIDEO, {"loop": True}, "no option 'loop'"),
        (IMAGE_TO_VIDEO, {"first_frame": "fixed"}, "one of free, anchor"),
        (IMAGE_TO_VIDEO, {"first_frame": True}, "one of free, anchor"),
        (I2VGEN_XL, {"loop": "yes"}, "True or False"),
    ],
)
def test_where_there_is_no_such_option(family, options, message):
    with pytest.raises(InputError, match=message):
        resolve(family, options)


def test_both_are_off_by_default():
    for family in FAMILIES.values():
        options = resolve(family, {})
        assert options.first_frame == "free" and options.loop is False and options.long_prompt is False


# ---- loops -------------------------------------------------------------------------------------------


def network(task):
    unet = STUNet(dataclasses.replace(configs(task).unet, dim_mult=(1, 2), attn_scales=(1.0,)))
    unet.load_state_dict(random_state(unet))
    return unet.eval().requires_grad_(False)


@pytest.mark.parametrize("task", ["image-to-video", "text-to-video-synthesis"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_in_a_loop_no_frame_is_the_first(task, frames):
    """Beginning with another frame gives the same video, beginning with that frame."""
    unet = network(task)
    numbers = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, frames, 8, 8, generator=numbers)  # [b, 4, f, h, w]
    name, tokens = ("image_embeds", 1) if task == "image-to-video" else ("text", 7)
    given = {name: torch.randn(1, tokens, 64, generator=numbers), "fps": torch.tensor([8])}
    t = torch.tensor([500])

    def gap(loop):
        out = predicted(unet, latents, t, **given, loop=loop)
        turned = predicted(unet, latents.roll(1, dims=2), t, **given, loop=loop)
        return float((turned - out.roll(1, dims=2)).norm() / out.norm())

    assert gap(loop=True) < 1e-5
    assert gap(loop=False) > 1e-3 or frames == 1


@pytest.mark.parametrize("frames", [1, 2, 5, 16])
def test_the_counter_of_the_picture_goes_there_and_back(frames):
    still = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    video = over_time(still, frames, loop=True)
    assert torch.equal(video[:, :, 0], still)
    counts = video[0, 0, 1:, 0, 0]
    assert torch.equal(counts, counts.flip(0))
    open_ended = over_time(still, frames)[0, 0, 1:, 0, 0]
    half = frames // 2
    assert torch.equal(counts[:half], open_ended[:half])


def same_noise(seed, frames=8):
    """One noise for all frames: what differs between frames, the network's view of time has made."""
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return noise.expand(4, frames, 8, 8)


def seam_and_steps(latents):
    """Mean squares: from the last frame to the first; from each to the next."""
    steps = (latents[:, 1:] - latents[:, :-1]).square().mean(dim=(0, 2, 3))
    return float((latents[:, -1] - latents[:, 0]).square().mean()), steps


@pytest.mark.parametrize("task", ["image-to-video", "i2vgen-xl", "text-to-video-synthesis"])
def test_the_seam_closes(generators, task, monkeypatch):
    if task == "i2vgen-xl":  # random weights, that know no way for things to move
        unet = STUNet(generators[task].unet.config)
        unet.load_state_dict(random_state(unet))
        monkeypatch.setattr(generators[task], "unet", unet.eval().requires_grad_(False))
    given = "a boat" if task == "text-to-video-synthesis" else picture()
    found = {}
    for loop in (False, True):
        options = {"latents": same_noise(3), "num_frames": 8, "loop": loop, "num_inference_steps": 6}
        found[loop] = seam_and_steps(latents_of(generators[task], given, **options))
    (open_seam, open_steps), (seam, steps) = found[False], found[True]
    if task == "i2vgen-xl":  # the picture's own frame stays another than its two neighbours
        assert seam < 0.8 * open_seam
        assert seam == pytest.approx(float(steps[0]), rel=0.5)
    else:
        assert open_seam > 1e-3 and float(open_steps.max()) > 1e-3
        assert seam < 1e-6 and float(steps.max()) < 1e-6


def test_loops_differ_and_repeat(generators):
    generator = generators["i2vgen-xl"]
    looped = latents_of(generator, loop=True)
    assert torch.equal(looped, latents_of(generator, loop=True))
    assert torch.equal(latents_of(generator), latents_of(generator, loop=False))
    assert not torch.allclose(looped, latents_of(generator), atol=1e-3)


def test_a_loop_may_begin_with_the_picture(generator):
    held = latents_of(generator, first_frame="anchor")
    looped = latents_of(generator, first_frame="anchor", loop=True)
    assert torch.equal(held[:, 0], looped[:, 0]) and not torch.allclose(held[:, 1:], looped[:, 1:], atol=1e-3)


def test_one_frame_loops_too(generator):
    frames = generator([picture()], **{**QUICK, "num_frames": 1, "output_type": "np", "loop": True})[0]
    assert frames.shape == (1, 64, 64, 3) and np.isfinite(frames).all()
