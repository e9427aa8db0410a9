"""What a video is said to take, against what networks were counted to take."""

from __future__ import annotations

import pytest
import torch
from small_unet import predicted

from modelscope_i2v.compute import ops
from modelscope_i2v.devices import out_of_memory_advice
from modelscope_i2v.errors import OutOfMemoryError
from modelscope_i2v.memory import count as memory_model
from modelscope_i2v.memory.chunking import chunked
from modelscope_i2v.memory.count import Live, Model, decoding, denoising, peak
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.spec.families import FAMILIES, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO
from modelscope_i2v.spec.network import AutoencoderConfig, STUNetConfig
from modelscope_i2v.spec.options import resolve

SMALL = STUNetConfig(
    dim=64, dim_mult=(1, 2), res_blocks=1, head_dim=32, num_heads=2, context_dim=24, attn_scales=(1.0,)
)
GB = 1e9


@pytest.mark.parametrize(("frames", "side", "chunk"), [(4, 16, None), (2, 24, None), (8, 16, 300)])
def test_denoising_is_what_a_run_takes(frames, side, chunk, monkeypatch):
    monkeypatch.setattr(ops, "CPU_TOKENS", 1 << 30)  # a CPU would take fewer tokens at a time
    unet = STUNet(SMALL).eval()
    given = torch.randn(2, 4, frames, side, side), torch.zeros(2)
    with torch.inference_mode(), Live(unet) as live:
        text = torch.randn(2, 77, SMALL.context_dim)
        if chunk:
            with chunked(unet, chunk):
                predicted(unet, *given, text=text)
        else:
            predicted(unet, *given, text=text)
    said = denoising(SMALL, 2, frames, side, side, torch.float32, chunk)
    assert said == pytest.approx(live.peak, rel=0.1)


def test_decoding_is_what_a_run_takes_and_encoding_less():
    config = AutoencoderConfig(ch=32, num_res_blocks=1)
    network = AutoencoderKL(config).eval()
    with torch.inference_mode():
        with Live(network) as live:
            network.decode(torch.randn(2, 4, 12, 16))
        with Live(network) as other:
            network.encode(torch.randn(2, 3, 96, 128))
    said = decoding(config, 2, 12, 16, torch.float32)
    assert said == pytest.approx(live.peak, rel=0.1) and other.peak <= said


def test_weights_of_full_size_models():
    for family, numbers in ((IMAGE_TO_VIDEO, 1.42e9 + 632e6 + 84e6), (TEXT_TO_VIDEO, 1.41e9 + 340e6 + 84e6)):
        model = Model.full_size(family)
        names = ["unet", "autoencoder"] + ["text"] * model.reads_text + ["image"] * model.reads_image
        found = sum(memory_model.weight(model, name, torch.float16) for name in names)
        assert found == pytest.approx(2 * numbers, rel=0.01)


@pytest.mark.parametrize(
    ("name", "most"),
    [("text-to-video-synthesis", 3), ("image-to-video", 4), ("i2vgen-xl", 6), ("video-to-video", 7)],
)
def test_full_size_models_in_the_smallest_mode(name, most):
    model, options = Model.full_size(FAMILIES[name]), resolve(FAMILIES[name], {})
    least = peak(model, options, torch.float16, "minimal")
    between = peak(model, options, torch.float16, "offload")
    assert least <= most * GB
    assert least < between < peak(model, options, torch.float16, "resident")


def test_a_long_video():
    model, options = Model.full_size(TEXT_TO_VIDEO), resolve(TEXT_TO_VIDEO, {"num_frames": 250})
    assert peak(model, options, torch.float16, "minimal") <= 10 * GB


def said(monkeypatch, gigabytes):
    """Peaks in GB by mode, of the whole video."""

    def peak(model, options, dtype, mode, device="cuda"):
        return int(gigabytes[mode] * GB * options.num_frames / VIDEO_TO_VIDEO.num_frames)

    monkeypatch.setattr(memory_model, "peak", peak)
    monkeypatch.setattr(memory_model, "BESIDE", 1.0)
    return Model.full_size(VIDEO_TO_VIDEO), resolve(VIDEO_TO_VIDEO, {}), torch.float16


def test_auto_takes_the_fastest_that_fits(monkeypatch):
    given = said(monkeypatch, {"resident": 20, "offload": 10, "minimal": 4})
    monkeypatch.setattr(memory_model, "_ample", lambda *_: 1000 * GB)
    for free, mode in ((20, "resident"), (19, "offload"), (9, "minimal"), (1, "minimal")):
        monkeypatch.setattr(memory_model, "free_memory", lambda _, free=free: free * 10**9)
        assert memory_model.choose(*given, torch.device("cuda")) == mode
    assert memory_model.choose(*given, torch.device("cuda"), there=19 * 10**9) == "resident"
    monkeypatch.setattr(memory_model, "free_memory", lambda _: None)
    assert memory_model.choose(*given, torch.device("cpu")) == "resident"


def test_what_is_ample_is_never_less_than_what_is_needed():
    for family in (TEXT_TO_VIDEO, IMAGE_TO_VIDEO):
        model, options = Model.full_size(family), resolve(family, {})
        assert memory_model._ample(model, options, torch.float32) > peak(model, options, torch.float32)


def test_the_error_says_what_would_fit(monkeypatch):
    given = said(monkeypatch, {"resident": 20, "offload": 10, "minimal": 4})

    def told(free):
        return memory_model.advice(*given, "resident", int(free * GB))

    assert told(11).startswith("32 frames of 1280x720 need about 20.0 GB with memory='resident', 11.0 GB are")
    assert told(11).endswith("memory='offload' needs about 10.0 GB and fits.")
    assert told(3).endswith("at most 24 frames of this size fit, with memory='minimal'.")
    assert told(0.01).endswith("not even one frame of this size fits.")
    with (
        pytest.raises(OutOfMemoryError, match="at most 24 frames .* num_frames"),
        out_of_memory_advice(lambda: told(3)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
