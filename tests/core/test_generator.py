"""From an input to a video, with the embedded small model."""

import json
import threading
import warnings

import av
import numpy as np
import pytest
import torch
from PIL import Image

from modelscope_i2v.compute.formats import memory_formats
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.generator import Job, VideoGenerator
from modelscope_i2v.engine.requests import picture_frame
from modelscope_i2v.errors import (
    Cancelled,
    CheckpointError,
    InputError,
    NumericalError,
    OutOfMemoryError,
    OutputError,
)
from modelscope_i2v.media.write import write_video
from modelscope_i2v.sampling.noise import NoiseSource
from modelscope_i2v.sampling.solvers import SOLVERS
from modelscope_i2v.spec.families import FAMILIES, LATENT_SCALE
from modelscope_i2v.spec.options import resolve

QUICK = {"num_inference_steps": 2, "num_frames": 3, "height": 64, "width": 64, "progress": False}


@pytest.fixture(scope="module")
def generators():
    return {task: VideoGenerator.from_directory(model_directory(task), device="cpu") for task in FAMILIES}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    frames = np.random.default_rng(0).integers(0, 255, (5, 48, 80, 3), dtype=np.uint8)
    return write_video(frames, tmp_path_factory.mktemp("clip") / "clip.mp4", fps=12)


@pytest.fixture
def inputs(clip):
    return {
        "image-to-video": picture(),
        "video-to-video": {"video_path": clip, "text": "a boat"},
        "text-to-video-synthesis": "a boat on the sea",
        "i2vgen-xl": {"image": picture(), "text": "a boat on the sea"},
    }


@pytest.fixture(params=FAMILIES)
def task(request):
    return request.param


def frames_of(model, given, **options):
    (frames,) = model([given], output_type="np", **{**QUICK, **options})
    return frames


def test_seed_repeats_a_video_and_leaves_the_global_generator_alone(generators, inputs, task):
    generator, given = generators[task], inputs[task]
    before = torch.get_rng_state()
    first, again, other = (frames_of(generator, given, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == (3, 64, 64, 3) and first.dtype == np.uint8


def test_global_seed_repeats_a_video(generators, inputs, task):
    videos = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        videos.append(frames_of(generators[task], inputs[task]))
    assert np.array_equal(videos[0], videos[1]) and not np.array_equal(videos[0], videos[2])


def test_generator_is_the_seed_in_another_form(generators, inputs, task):
    by_seed = frames_of(generators[task], inputs[task], seed=9)
    by_generator = frames_of(generators[task], inputs[task], generator=torch.Generator().manual_seed(9))
    assert np.array_equal(by_seed, by_generator)


def test_batches_give_what_single_calls_give(generators, inputs, task):
    given, generator = inputs[task], generators[task]
    single = [frames_of(generator, given, seed=seed) for seed in (4, 5)]
    sizes = []
    original = generator.generate
    generator.generate = lambda batch: sizes.append(len(batch)) or original(batch)
    try:
        (pair,) = generator([given], output_type="np", seed=4, num_videos=2, batch_size=2, **QUICK)
        listed = generator([given, given], output_type="np", seed=4, batch_size=2, **QUICK)
    finally:
        del generator.generate
    assert sizes == [2, 2]
    for found, wanted in ((pair[0], single[0]), (pair[1], single[1]), (listed[1], single[0])):
        assert np.abs(found.astype(int) - wanted).max() <= 1


def test_output_types_show_the_same_video(generators, inputs, task):
    generator, options = generators[task], {"seed": 3, **QUICK}
    kinds = {
        kind: generator([inputs[task]], output_type=kind, **options)[0]
        for kind in ("np", "pt", "pil", "latent")
    }
    assert kinds["pt"].shape == (3, 3, 64, 64) and kinds["pt"].min() >= 0 and kinds["pt"].max() <= 1
    as_bytes = (kinds["pt"] * 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.abs(as_bytes.astype(int) - kinds["np"]).max() <= 1
    assert all(np.array_equal(np.asarray(image), frame) for image, frame in zip(kinds["pil"], kinds["np"]))
    assert kinds["latent"].shape == (4, 3, 8, 8)


def test_latents_in_are_the_noise(generators, inputs, task):
    generator = generators[task]
    latents = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    canvas = generator.unet.config.canvas(8, 8)
    assert canvas[1] == 8
    first = frames_of(generator, inputs[task], latents=latents, seed=1)
    assert np.array_equal(first, frames_of(generator, inputs[task], latents=latents[None], seed=1))
    assert not np.array_equal(first, frames_of(generator, inputs[task], latents=-latents, seed=1))
    with pytest.raises(InputError, match=r"latents has the shape .* this call needs \[4, 3, 8, 8\]"):
        frames_of(generator, inputs[task], latents=latents[:, :2])


@pytest.mark.parametrize("size", [(8, 8), (72, 40), (104, 136)])
def test_any_multiple_of_eight(generators, inputs, task, size):
    frames = frames_of(generators[task], inputs[task], height=size[0], width=size[1], seed=1)
    assert frames.shape == (3, *size, 3)


@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "unipc"])
def test_every_scheduler_with_every_family(generators, inputs, task, scheduler):
    frames = frames_of(generators[task], inputs[task], scheduler=scheduler, num_inference_steps=3, seed=1)
    assert frames.std() > 1


def test_guidance_branches_one_after_the_other_change_nothing(generators, inputs, task):
    together = frames_of(generators[task], inputs[task], seed=1)
    apart = frames_of(generators[task], inputs[task], seed=1, sequential_guidance=True)
    assert np.abs(together.astype(int) - apart).max() <= 1


def test_decode_chunks_change_nothing(generators, inputs, task):
    whole = frames_of(generators[task], inputs[task], seed=1, decode_chunk_size=3)
    parts = frames_of(generators[task], inputs[task], seed=1, decode_chunk_size=1)
    assert np.abs(whole.astype(int) - parts).max() <= 1


def test_file_holds_the_frames_and_says_how_they_were_made(generators, inputs, task, tmp_path):
    target = tmp_path / "a b;'ü.mp4"
    frames = frames_of(generators[task], inputs[task], seed=8)
    (path,) = generators[task]([inputs[task]], output_video=target, seed=8, crf=0, **QUICK)
    assert path == str(target)
    with av.open(path) as container:
        made = json.loads(container.metadata["comment"])
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        rate = float(container.streams.video[0].average_rate)
    assert made["seed"] == 8 and made["num_inference_steps"] == 2 and made["crf"] == 0
    assert len(decoded) == 3 and decoded[0].shape == frames[0].shape
    assert rate == pytest.approx(12 if task == "video-to-video" else 8, rel=0.01)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


def test_no_path_gives_the_files_bytes(generators, inputs, task):
    (content,) = generators[task]([inputs[task]], **QUICK)
    assert isinstance(content, bytes) and content[4:8] == b"ftyp"


def test_several_videos_to_one_path_are_numbered(generators, tmp_path):
    generator = generators["text-to-video-synthesis"]
    (paths,) = generator(["a"], output_video=tmp_path / "v.mp4", num_videos=2, **QUICK)
    assert [p.rsplit("/", 1)[-1].rsplit("\\", 1)[-1] for p in paths] == ["v-1.mp4", "v-2.mp4"]
    with pytest.raises(InputError, match="3 paths for 2 videos"):
        generator(["a", "b"], output_video=[tmp_path / "x.mp4"] * 3, **QUICK)
    with pytest.raises(InputError, match=r"lists .*x\.mp4' twice"):
        generator(["a", "b"], output_video=[tmp_path / "x.mp4"] * 2, **QUICK)
    (tmp_path / "z-2.mp4").mkdir()
    with pytest.raises(OutputError, match=r"z-2\.mp4"):
        generator(["a"], output_video=tmp_path / "z.mp4", num_videos=2, **QUICK)
    assert not (tmp_path / "z-1.mp4").exists()


def test_noise_for_another_number_of_videos_is_told_first(generators):
    with pytest.raises(InputError, match="latents has noise for 2 videos, and num_videos is 3"):
        frames_of(
            generators["text-to-video-synthesis"], "a", latents=torch.zeros(2, 4, 3, 8, 8), num_videos=3
        )


def test_options_may_stand_in_the_input(generators):
    generator = generators["text-to-video-synthesis"]
    given = {"text": "a boat", "width": 40, "seed": 1}
    (frames,) = generator([given], output_type="np", **{**QUICK, "width": None})
    assert frames.shape == (3, 64, 40, 3)
    (frames,) = generator([given], output_type="np", **{**QUICK, "width": 48})
    assert frames.shape[2] == 48


def test_callback_sees_each_step_and_stops(generators, inputs, task):
    seen = []
    frames_of(generators[task], inputs[task], callback=lambda *step: seen.append(step))
    assert [(step, total) for step, total, _ in seen] == [(1, 2), (2, 2)]
    assert all(latents.shape[:3] == (1, 4, 3) for *_, latents in seen)
    with pytest.raises(Cancelled, match="after step 1 of 2"):
        frames_of(generators[task], inputs[task], callback=lambda step, *_: False)
    frames_of(generators[task], inputs[task])


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_fit_decides_what_becomes_of_another_aspect(generators, clip, fit):
    frames = frames_of(generators["video-to-video"], {"video_path": clip}, fit=fit, seed=1)
    assert frames.shape == (3, 64, 64, 3)
    assert (frames[:, :8] == 0).all() == (fit == "pad")


def test_frames_of_an_input_video_that_are_left_out_are_told(generators, clip, caplog):
    prepare = generators["video-to-video"].prepare
    assert len(prepare({"video_path": clip}, num_frames=5).frames) == 5
    assert not caplog.records
    assert len(prepare({"video_path": clip}, num_frames=3).frames) == 3
    assert "The input video has 5 frames; its first 3 are used." in caplog.text
    assert len(prepare({"frames": np.zeros((7, 64, 64, 3), np.uint8)}, num_frames=3).frames) == 3
    assert "The input video has 7 frames" in caplog.text


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("image-to-video", {}, "needs one input under 'image' or 'image_path'"),
        ("image-to-video", {"image": 1, "image_path": 2}, "it got 2"),
        ("video-to-video", {"text": "a"}, "'video_path' or 'video'"),
        ("i2vgen-xl", {"text": "a"}, "'image' or 'image_path'"),
        ("image-to-video", {"image": 1, "text": "a"}, "no option 'text'"),
        ("text-to-video-synthesis", {}, "needs a text"),
        ("text-to-video-synthesis", 3, "must be a string"),
        ("text-to-video-synthesis", {"text": "a", "heigth": 8}, "did you mean 'height'"),
    ],
)
def test_inputs_that_are_missing_or_wrong(generators, task, given, message):
    with pytest.raises(InputError, match=message):
        frames_of(generators[task], given)


def test_output_path_is_checked_before_sampling(generators, tmp_path, monkeypatch):
    generator = generators["text-to-video-synthesis"]
    monkeypatch.setattr(generator, "generate", lambda batch: pytest.fail("sampling began"))
    with pytest.raises(OutputError):
        generator(["a"], output_video=tmp_path / "missing" / "v.mp4", **QUICK)
    with pytest.raises(InputError, match="output_type='np'"):
        generator(["a"], output_video=tmp_path / "v.mp4", output_type="np", **QUICK)


def test_long_and_foreign_texts_are_warned_about(generators):
    generator = generators["text-to-video-synthesis"]
    with pytest.warns(UserWarning, match="no effect: .*pearl"):
        frames_of(generator, "a boat " * 50 + "pearl")
    with pytest.warns(UserWarning, match="trained on English"):
        frames_of(generator, "一只熊猫在吃竹子")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames_of(generator, "une barque à l'aube")


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 12), (torch.float16, 2)])
def test_reduced_precision_is_close(generators, inputs, task, dtype, limit):
    exact = frames_of(generators[task], inputs[task], seed=1)
    reduced = VideoGenerator.from_directory(model_directory(task), device="cpu", dtype=dtype)
    found = frames_of(reduced, inputs[task], seed=1)
    assert np.abs(found.astype(float) - exact).mean() < limit
    assert {p.dtype for p in reduced.unet.parameters()} == {dtype, torch.float32}


def test_nan_is_computed_again_in_a_wider_type_then_refused(inputs):
    task = "text-to-video-synthesis"
    generator = VideoGenerator.from_directory(model_directory(task), device="cpu", dtype="bf16")
    exact = frames_of(VideoGenerator.from_directory(model_directory(task), device="cpu"), "a", seed=1)
    denoise = generator.unet.forward

    def overflows_in_bf16(*args, **kwargs):
        out = denoise(*args, **kwargs)
        return out * float("inf") if generator.unet.out[2].weight.dtype == torch.bfloat16 else out

    generator.unet.forward = overflows_in_bf16
    with pytest.warns(UserWarning, match="again in fp32"):
        found = frames_of(generator, "a", seed=1)
    assert np.abs(found.astype(float) - exact).mean() < 3
    assert generator.unet.out[2].weight.dtype == torch.bfloat16

    generator.autoencoder.decode = lambda latents: torch.full((len(latents), 3, 64, 64), float("nan"))
    with pytest.warns(UserWarning), pytest.raises(NumericalError, match="decoding, in fp32 too"):
        frames_of(generator, "a", seed=1)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_what_needs_less(generators, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    generator = generators["text-to-video-synthesis"]
    with monkeypatch.context() as patched:
        patched.setattr(generator.unet, "forward", fails)
        with pytest.raises(OutOfMemoryError, match="num_frames.*decode_chunk_size"):
            frames_of(generator, "a")
    frames_of(generator, "a")


def test_two_threads_do_not_disturb_each_other(generators):
    generator = generators["text-to-video-synthesis"]
    wanted = {seed: frames_of(generator, "a boat", seed=seed) for seed in (1, 2)}
    found = {}
    threads = [
        threading.Thread(target=lambda s=seed: found.update({s: frames_of(generator, "a boat", seed=s)}))
        for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[seed], wanted[seed]) for seed in (1, 2))


def test_loading_refuses_what_it_cannot_use(tmp_path):
    directory = model_directory("image-to-video")
    with pytest.raises(CheckpointError, match="text-to-video-synthesis"):
        VideoGenerator.from_directory(directory, "text-to-video-synthesis")
    with pytest.raises(CheckpointError):
        VideoGenerator.from_directory(tmp_path)
    with pytest.raises(InputError, match="dtype='fp8' does not work: it must be fp32, fp16 or bf16"):
        VideoGenerator.from_directory(directory, dtype="fp8")
    with pytest.raises(InputError, match="device="):
        VideoGenerator.from_directory(directory, device="cuda:99")
    with pytest.raises(InputError, match="device='tpux'"):
        VideoGenerator.from_directory(directory, device="tpux")


def test_i2vgen_reads_picture_and_text(generators, tmp_path):
    generator, image = generators["i2vgen-xl"], picture()
    first = frames_of(generator, {"image": image, "text": "a boat"}, seed=1)
    assert np.array_equal(first, frames_of(generator, image, caption="a boat", seed=1))
    assert np.array_equal(first, frames_of(generator, image, text="a boat", seed=1))
    turned = tmp_path / "turned.png"
    Image.open(image).rotate(90).save(turned)
    for other in ({"image": image, "text": "a sunset"}, {"image": turned, "text": "a boat"}):
        assert not np.array_equal(first, frames_of(generator, other, seed=1))
    assert not np.array_equal(first, frames_of(generator, image, text="a boat", seed=1, target_fps=4))
    assert not np.array_equal(first, frames_of(generator, image, text="a boat", seed=1, negative_prompt="x"))


def test_i2vgen_draws_the_posterior_first_then_the_noise(generators):
    generator = generators["i2vgen-xl"]
    sample = generator.prepare({"image": picture(), "text": "a"}, seed=3, **QUICK)
    job = Job.of(sample)
    positive, negative = generator.encode_conditions([job])
    start = generator.start([job], negative)
    numbers = torch.Generator().manual_seed(3)
    posterior = generator.autoencoder.encode(picture_frame(sample))
    noise = torch.randn(1, 4, 8, 8, generator=numbers)
    assert torch.allclose(positive["image_latents"], LATENT_SCALE * posterior.sample(noise), atol=1e-5)
    assert torch.equal(positive["image_latents"], negative["image_latents"])
    assert torch.equal(start[0], torch.randn(4, 3, 8, 8, generator=numbers))
    assert (negative["image_embeds"] == 0).all() and not (positive["image_embeds"] == 0).all()


@pytest.mark.parametrize("scheduler", SOLVERS)
def test_a_little_strength_leaves_the_video_by_any_solver_and_any_steps(generators, clip, scheduler):
    generator, given = generators["video-to-video"], {"video_path": clip}
    options = resolve(generator.family, QUICK)
    video = generator.encode(generator.prepare(given, **QUICK).frames, NoiseSource(1), options)
    (made,) = generator(
        [given],
        output_type="latent",
        seed=1,
        strength=0.003,
        scheduler=scheduler,
        **{**QUICK, "num_inference_steps": 9},
    )
    assert float((made - video).square().mean()) < 1e-3


def test_strength_says_how_much_of_a_video_stays(generators, clip):
    generator, given = generators["video-to-video"], {"video_path": clip}
    options = resolve(generator.family, QUICK)
    video = generator.encode(generator.prepare(given, **QUICK).frames, NoiseSource(1), options)
    distance = {}
    for strength in (0.002, 0.6):
        (made,) = generator([given], output_type="latent", seed=1, strength=strength, **QUICK)
        distance[strength] = float((made - video).square().mean())
    assert distance[0.002] < 0.15 * distance[0.6]
    default = frames_of(generator, given, seed=1)
    strength = generator.defaults["strength"]
    assert np.array_equal(default, frames_of(generator, given, seed=1, strength=strength))


def test_ddim_inversion_runs_with_its_own_guidance(generators, clip):
    generator, given = generators["video-to-video"], {"video_path": clip}
    inverted = frames_of(generator, given, seed=1, inversion="ddim")
    assert not np.array_equal(inverted, frames_of(generator, given, seed=1))
    _, options = generator.resolve(given, {"inversion": "ddim"})
    assert (options.guidance_scale, options.guidance_rescale) == (9.0, 0.3)
    _, options = generator.resolve(given, {"inversion": "ddim", "guidance_scale": 2})
    assert options.guidance_scale == 2
    two = [frames_of(generator, given, seed=s, inversion="ddim") for s in (1, 1)]
    assert np.array_equal(*two)


def test_an_inversion_that_overflows_is_computed_again_too(clip):
    generator = VideoGenerator.from_directory(model_directory("video-to-video"), device="cpu", dtype="bf16")
    denoise, calls = generator.unet.forward, []

    def overflows_once(*args, **kwargs):
        calls.append(generator.unet.out[2].weight.dtype)
        out = denoise(*args, **kwargs)
        return out * float("nan") if len(calls) == 1 else out

    generator.unet.forward = overflows_once
    with pytest.warns(
        UserWarning, match="Inverting in torch.bfloat16 gave NaN or infinity; it is done again"
    ):
        frames_of(generator, {"video_path": clip, "text": "a"}, seed=1, inversion="ddim")
    assert torch.float32 in calls and calls[-1] == torch.bfloat16


def test_frames_in_memory_are_a_video_too(generators, inputs):
    stage = generators["video-to-video"]
    first = {
        kind: generators["text-to-video-synthesis"](["a boat"], output_type=kind, seed=2, **QUICK)[0]
        for kind in ("np", "pt", "pil")
    }
    made = {kind: frames_of(stage, {"frames": frames, "text": "a"}, seed=1) for kind, frames in first.items()}
    assert np.array_equal(made["np"], made["pil"])
    assert np.abs(made["np"].astype(int) - made["pt"]).mean() < 2
    for wrong, message in (
        ([], "no frames"),
        (np.zeros((2, 8, 8)), r"\[frames, height, width, 3\]"),
        (torch.zeros(2, 4, 8, 8), r"\[frames, 3, height, width\]"),
        ("x", "no file"),
    ):
        with pytest.raises(InputError, match=message):
            frames_of(stage, {"frames": wrong})


def test_convolutions_lie_as_their_kernels_want_them() -> None:
    generator = VideoGenerator.from_directory(model_directory("text-to-video-synthesis"), device="cpu")
    for network in (generator.unet, generator.autoencoder):
        laid_out = memory_formats(network)
        assert laid_out
        for name, layout in laid_out.items():
            assert network.get_parameter(name).is_contiguous(memory_format=layout), name
