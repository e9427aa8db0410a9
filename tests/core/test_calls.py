"""A call's arguments: what an input is, texts by several names, lists, failures in a list, retries."""

import re
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.cascade import Cascade
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.errors import Cancelled, InputError
from modelscope_i2v.sampling.noise import NoiseSource
from modelscope_i2v.spec.families import I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO
from modelscope_i2v.spec.runtime import Runtime

QUICK = {"num_frames": 2, "num_inference_steps": 2, "height": 32, "width": 32, "progress": False}
ARRAYS = {**QUICK, "output_type": "np"}


@pytest.fixture(scope="module")
def text():
    return VideoGenerator.from_directory(model_directory(TEXT_TO_VIDEO.name), device="cpu")


@pytest.fixture(scope="module")
def xl():
    return VideoGenerator.from_directory(model_directory(I2VGEN_XL.name), device="cpu")


def test_a_bare_input_is_one_input(text):
    (listed,) = text(["ab"], seed=1, **ARRAYS)
    assert np.array_equal(text("ab", seed=1, **ARRAYS), listed)
    assert np.array_equal(text({"text": "ab", "seed": 1}, **ARRAYS), listed)


def test_prompt_is_the_text_and_may_be_a_list_as_may_seeds(text):
    wanted = text(["a red star", "a blue ball"], seed=4, **ARRAYS)
    assert np.array_equal(text(prompt="a red star", seed=4, **ARRAYS), wanted[0])
    several = text(prompt=["a red star", "a blue ball"], seed=[4, 5], **ARRAYS)
    assert np.array_equal(several[0], wanted[0]) and not np.array_equal(several[1], wanted[1])
    one_text = text("a blue ball", seed=[4, 5], **ARRAYS)
    assert np.array_equal(one_text[0], wanted[1]) and np.array_equal(one_text[1], several[1])
    with pytest.raises(InputError, match="prompt has 2, seed has 3"):
        text(prompt=["a", "b"], seed=[1, 2, 3], **ARRAYS)


def test_the_calls_text_wins_over_the_inputs_and_says_so(xl, caplog):
    given = {"image": picture(), "text": "a red star moves right"}
    both = xl.resolve(given, {"caption": "a red star moves left"})[0]
    assert both["text"] == "a red star moves left"
    assert "the call's is used" in caplog.text
    caplog.clear()
    assert xl.resolve(given, {"prompt": given["text"]})[0]["text"] == given["text"] and not caplog.text
    with pytest.raises(InputError, match="text and prompt of the call mean the same"):
        xl.resolve({"image": picture()}, {"text": "a", "prompt": "b"})


def test_a_text_as_second_argument_is_no_path(xl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more in ({}, {"output_video": "x.mp4"}):
        with pytest.raises(InputError, match="output_video") as caught:
            xl(picture(), "a red star moves right", **more, **QUICK)
        assert more or "caption=" in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert xl(picture(), "x.mp4", **QUICK) == "x.mp4"


def test_a_missing_input_of_a_list_is_found_before_the_first_step(tmp_path):
    animate = VideoGenerator.from_directory(model_directory(IMAGE_TO_VIDEO.name), device="cpu")
    steps = []
    with pytest.raises(InputError, match="nowhere.png"):
        animate([picture(), tmp_path / "nowhere.png"], callback=lambda *_: steps.append(1), **QUICK)
    assert not steps


def test_what_was_done_before_a_failure_is_kept(text, tmp_path, monkeypatch):
    decode = text.decode
    calls = []

    def failing(latents, options):
        calls.append(1)
        if len(calls) == 3:
            raise InputError("no more")
        return decode(latents, options)

    monkeypatch.setattr(text, "decode", failing)
    paths = [str(tmp_path / f"{name}.mp4") for name in "abc"]
    with pytest.raises(
        InputError, match=re.escape("Input 3 of 3 failed (videos done before: 2). no more")
    ) as c:
        text(["a", "b", "c"], output_video=paths, **QUICK)
    assert c.value.finished == paths[:2] and (tmp_path / "b.mp4").is_file()


def test_latents_come_back_ordinary_and_are_decoded_later(text, tmp_path):
    latents = text("a red star", seed=3, output_type="latent", **QUICK)
    assert not latents.is_inference() and latents.shape == (4, 2, 4, 4)
    wanted = text("a red star", seed=3, **ARRAYS)
    assert np.array_equal(text.decode_latents(latents, output_type="np"), wanted)
    both = text.decode_latents(torch.stack([latents, latents]), output_type="np", progress=False)
    assert len(both) == 2 and np.array_equal(both[1], wanted)
    path = str(tmp_path / "later.mp4")
    assert text.decode_latents(latents, path, fps=4) == path
    with pytest.raises(InputError, match=re.escape("latents has the shape [3, 2, 4, 4]")):
        text.decode_latents(torch.zeros(3, 2, 4, 4))


@pytest.mark.parametrize(
    "bad", [torch.zeros(4, 2, 4, 4, dtype=torch.int32), torch.zeros(4, 2, 4, 4, device="meta"), 5, "x"]
)
def test_latents_without_real_numbers_are_refused(text, bad):
    with pytest.raises(InputError, match="latents="):
        text("a", latents=bad, **QUICK)


def test_latents_and_inversion_exclude_each_other():
    from modelscope_i2v.spec.options import resolve

    with pytest.raises(InputError, match="inversion='ddim'"):
        resolve(VIDEO_TO_VIDEO, {"latents": torch.zeros(4, 2, 4, 4), "inversion": "ddim"})


def test_a_module_is_no_generator(text):
    with pytest.raises(InputError, match=re.escape("it must be a torch.Generator")):
        text("a", generator=torch, **QUICK)


@pytest.mark.parametrize("answer", [False, np.False_])
def test_a_callback_that_returns_false_stops(text, answer):
    with pytest.raises(Cancelled):
        text("a", callback=lambda *_: answer, **QUICK)


def test_the_repetition_in_fp32_draws_the_same_noise_and_reports_each_step_once(text, monkeypatch):
    call = {**ARRAYS, "num_inference_steps": 3, "seed": 2, "eta": 1.0}
    wanted = text("a red star", **call)
    half = VideoGenerator.from_directory(model_directory(TEXT_TO_VIDEO.name), device="cpu", dtype="bf16")
    calls = []

    def overflows(last, given, out):
        calls.append(last[-1].weight.dtype)
        return out * torch.nan if calls[-1] == torch.bfloat16 and len(calls) > 1 else None

    hook = half.unet.out.register_forward_hook(overflows)
    steps = []
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        again = half("a red star", callback=lambda step, *_: steps.append(step), **call)
    hook.remove()
    assert calls == [torch.bfloat16] * 2 + [torch.float32] * 3
    assert steps == [1, 2, 3]
    # The weights were rounded to bf16, so frames are near, not equal; other noise would be far.
    assert np.abs(again.astype(int) - wanted).mean() < 8


def test_noise_is_drawn_again_from_a_state():
    for source in (NoiseSource(3), NoiseSource(None, torch.Generator().manual_seed(3)), NoiseSource()):
        state = source.state()
        first = source.normal((4,))
        source.restore(state)
        assert torch.equal(source.normal((4,)), first)


def test_a_lora_is_not_changed_in_the_middle_of_a_video(text, monkeypatch):
    """A change waits for the video that another thread makes."""
    order, in_loop, changing = [], threading.Event(), threading.Event()
    monkeypatch.setattr(
        "modelscope_i2v.engine.generator.adapters.load_lora", lambda *_, **__: order.append("lora") or "x"
    )

    def step(*_):
        in_loop.set()
        changing.wait(10)
        order.append("step")

    video = threading.Thread(target=lambda: text("a", callback=step, **QUICK))
    video.start()
    assert in_loop.wait(60)
    change = threading.Thread(target=lambda: text.load_lora("x"))
    change.start()
    changing.set()
    video.join(60)
    change.join(60)
    assert order == ["step", "step", "lora"]


def test_a_cascade_of_nothing_is_nothing():
    assert (
        Cascade(None, VideoGenerator.from_directory(model_directory("video-to-video"), device="cpu"))([])
        == []
    )


def test_settings_of_the_runtime_are_checked_and_misspelled_ones_named(text):
    assert text.runtime == Runtime(device="cpu")
    directory = model_directory(TEXT_TO_VIDEO.name)
    for wrong, near in (("memroy", "memory"), ("dytpe", "dtype"), ("atention", "attention")):
        with pytest.raises(InputError, match=f"no option '{wrong}'; did you mean '{near}'"):
            VideoGenerator.from_directory(directory, **{wrong: "auto"})
    assert Runtime.of({"torch_dtype": torch.float16, "device": torch.device("cuda", 1)}) == Runtime(
        dtype="fp16", device="cuda:1"
    )


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    from modelscope_i2v.devices import resolve_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="no GPU on this machine; the CPU is used"):
        assert resolve_device("gpu") == torch.device("cpu")
    with pytest.raises(InputError, match="device='cuda:7' is not on this machine, which has cpu"):
        resolve_device("cuda:7")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_device(None) == torch.device("cpu")


def test_a_picture_array_is_bgr_and_frames_are_rgb(xl):
    """ModelScope's convention for arrays; what comes out is RGB, and float tensors go in as RGB."""
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 2] = 255
    read = xl.prepare({"image": red}, **QUICK).image
    assert isinstance(read, Image.Image) and read.getpixel((0, 0)) == (255, 0, 0)


def test_a_solver_and_a_schedule_of_ones_own(text):
    from modelscope_i2v.sampling import schedules, solvers

    two = {"seed": 1, "batch_size": 2, **ARRAYS}
    wanted = text(["a red star"] * 2, scheduler="ddim", **two)
    asked = []

    def mine(denoise, x, schedule, *rest):
        asked.append(schedule)
        yield from solvers.ddim(denoise, x, schedule, *rest)

    own = schedules.sqrt_linear()
    made = text(["a red star"] * 2, scheduler=mine, schedule=own, **two)
    assert asked == [own] and np.array_equal(made, wanted)
    other = text(["a red star"] * 2, scheduler="ddim", schedule="cosine", **two)
    assert not np.array_equal(other, wanted)
    for wrong in ({"scheduler": "dimm"}, {"schedule": "linear"}, {"scheduler": 5}):
        with pytest.raises(InputError, match="it must be one of"):
            text("a", **wrong, **QUICK)


def test_settings_of_the_allocator_that_a_user_has_made_stay(monkeypatch):
    from modelscope_i2v.memory import allocator

    assert allocator._glibc() is not None
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert allocator._glibc() is None


def test_weights_that_are_not_mapped_survive_a_file_that_is_cut_short(tmp_path, monkeypatch):
    import shutil

    source = model_directory(TEXT_TO_VIDEO.name)
    copy = tmp_path / "embedded"
    shutil.copytree(
        source.parent, copy, ignore=shutil.ignore_patterns("image-to-video", "i2vgen-xl", "*.png")
    )
    monkeypatch.setenv("MODELSCOPE_I2V_SHARED", str(copy))
    made = VideoGenerator.from_directory(copy / source.name, device="cpu", mmap=False)
    wanted = made("a", seed=1, **ARRAYS)
    for file in copy.rglob("*.safetensors"):
        with file.open("r+b") as opened:
            opened.truncate(100)
    assert np.array_equal(made("a", seed=1, **ARRAYS), wanted)


def test_options_are_checked_before_anything_is_fetched(monkeypatch):
    from modelscope_i2v import animate
    from modelscope_i2v.evaluation import evaluate

    def fetch(*_, **__):
        raise AssertionError("a model was asked for")

    monkeypatch.setattr("modelscope_i2v.engine.cascade.fetch", fetch)
    monkeypatch.setattr("modelscope_i2v.evaluation.run.fetch", fetch)
    for wrong, near in (
        ({"model": "x"}, "models"),
        ({"strenght": 1}, "strength"),
        ({"memroy": "auto"}, "memory"),
    ):
        with pytest.raises(InputError, match=f"did you mean '{near}'"):
            animate("cat.png", **wrong)
    with pytest.raises(InputError, match="num_frames=0"):
        animate("cat.png", num_frames=0)
    with pytest.raises(InputError, match="did you mean 'dtype'"):
        evaluate("x", dytpe="bf16")
