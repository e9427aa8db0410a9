"""I2VGen-XL against diffusers', whose weights for the picture's channels are doubled to be the original.

The original adds the picture's channels twice and diffusers once; with ``conv_in.weight[:, 4:]``
doubled diffusers computes what the original does.
"""

from __future__ import annotations

import dataclasses
import functools
import sys

import numpy as np
import pytest
import torch
from checkpoints_factory import SMALL_CLIP, configs, random_state
from diffusers import DDIMScheduler, I2VGenXLPipeline, I2VGenXLUNet
from memory_modes import MODES, OPTIONS, working_in
from oracle.compare import frame_difference, relative_rms
from oracle.i2vgen import build, in_diffusers, planes, run
from PIL import Image as PILImage
from small_unet import predicted
from torch import Tensor, nn

from modelscope_i2v.encoders.clip import ImageEncoder, TextEncoder
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.engine.requests import clip_input
from modelscope_i2v.media.transforms import CLIP_MEAN, CLIP_STD
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.local_image import over_time
from modelscope_i2v.networks.stunet import STUNet
from modelscope_i2v.sampling.schedules import cosine, zero_terminal_snr
from modelscope_i2v.spec.families import I2VGEN_XL
from modelscope_i2v.spec.network import STUNetConfig

TOKENS = 7
LIMIT = 1e-5


def small() -> STUNetConfig:
    """Four levels; diffusers' first transformer has eight heads whatever the sizes."""
    return dataclasses.replace(configs("i2vgen-xl").unet, num_heads=8)


def shallow() -> STUNetConfig:
    """Two levels, two residual blocks, attention on the first."""
    return dataclasses.replace(small(), dim_mult=(1, 2), res_blocks=2, attn_scales=(1.0,), head_dim=32)


SIZES = {"small": small, "shallow": shallow}


@functools.cache
def both(size: str) -> tuple[STUNet, I2VGenXLUNet]:
    config = SIZES[size]()
    ours = STUNet(config).eval().requires_grad_(False)
    state = random_state(ours)
    ours.load_state_dict(state, strict=True)
    theirs = build(config).requires_grad_(False)
    theirs.load_state_dict(in_diffusers(config, state), strict=True)
    return ours, theirs


def inputs(config: STUNetConfig, batch: int, frames: int, height: int, width: int, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "latents": normal(batch, 4, frames, height, width),
        "timesteps": torch.randint(0, 1000, (batch,), generator=generator),
        "text": normal(batch, TOKENS, config.context_dim),
        "image_embeds": normal(batch, 1, config.image_dim),
        "fps": torch.randint(1, 60, (batch,), generator=generator),
        "image_latents": normal(batch, 4, height, width),
    }


def run_theirs(network: nn.Module, given: dict) -> Tensor:
    with torch.no_grad():
        return run(network, given)


def run_ours(network: nn.Module, given: dict) -> Tensor:
    with torch.no_grad():
        return predicted(network, **given)


@pytest.mark.parametrize(
    ("batch", "frames", "height", "width"),
    [(2, 1, 16, 16), (1, 2, 32, 16), (2, 3, 16, 24), (1, 5, 24, 40), (2, 4, 40, 32)],
)
@pytest.mark.parametrize("size", SIZES)
def test_unet_equals_diffusers(size, batch, frames, height, width):
    ours, theirs = both(size)
    given = inputs(ours.config, batch, frames, height, width)
    assert relative_rms(run_ours(ours, given), run_theirs(theirs, given)) <= LIMIT


@pytest.mark.parametrize("frames", [1, 4])
@pytest.mark.parametrize("path", ["text", "image_embeds", "fps", "image_latents", "timesteps"])
def test_each_input_alone_moves_the_output_as_in_diffusers(path, frames):
    """The difference that one input makes is compared, so that a weak one cannot hide behind the others."""
    ours, theirs = both("shallow")
    first = inputs(ours.config, 1, frames, 16, 16)
    second = {**first, path: inputs(ours.config, 1, frames, 16, 16, seed=1)[path]}
    moved = run_ours(ours, second) - run_ours(ours, first)
    expected = run_theirs(theirs, second) - run_theirs(theirs, first)
    assert float(expected.abs().max()) > 1e-3
    assert relative_rms(moved, expected) <= 100 * LIMIT


def silenced(path: str) -> tuple[STUNet, I2VGenXLUNet]:
    """Both networks with one of the picture's two ways in (tokens or channels) closed."""
    config = shallow()
    ours = STUNet(config).eval().requires_grad_(False)
    state = dict(random_state(ours))
    if path == "tokens":
        state["local_image_embedding.5.weight"] = torch.zeros_like(state["local_image_embedding.5.weight"])
    else:
        state["input_blocks.0.0.weight"] = state["input_blocks.0.0.weight"].clone()
        state["input_blocks.0.0.weight"][:, 4:] = 0
    ours.load_state_dict(state)
    theirs = build(config).requires_grad_(False)
    theirs.load_state_dict(in_diffusers(config, state), strict=True)
    return ours, theirs


@pytest.mark.parametrize("closed", ["tokens", "channels"])
def test_local_tokens_and_channels_each_on_their_own(closed):
    ours, theirs = silenced(closed)
    first = inputs(ours.config, 1, 3, 16, 16)
    second = {**first, "image_latents": first["image_latents"].flip(-1) + 0.5}
    moved = run_ours(ours, second) - run_ours(ours, first)
    expected = run_theirs(theirs, second) - run_theirs(theirs, first)
    assert float(expected.abs().max()) > 1e-3
    assert relative_rms(moved, expected) <= 100 * LIMIT
    assert relative_rms(run_ours(ours, second), run_theirs(theirs, second)) <= LIMIT


def test_channels_added_once_are_another_network():
    """The doubling matters: without it the two are far apart."""
    ours, _ = both("shallow")
    theirs = build(ours.config).requires_grad_(False)
    theirs.load_state_dict(in_diffusers(ours.config, ours.state_dict(), doubled=False))
    given = inputs(ours.config, 1, 3, 16, 16)
    assert relative_rms(run_ours(ours, given), run_theirs(theirs, given)) > 0.01


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_picture_over_time(frames):
    picture = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(over_time(picture, frames), planes(picture, frames), atol=1e-7)


def test_keys_and_shapes_at_full_size_are_diffusers():
    with torch.device("meta"):
        ours, theirs = STUNet(I2VGEN_XL.unet).state_dict(), build(I2VGEN_XL.unet).state_dict()
    converted = in_diffusers(I2VGEN_XL.unet, ours)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in theirs.items()}


# ---- the whole pipeline ------------------------------------------------------------------------------


class Namespace:
    """Attributes by name, for the settings that diffusers looks up in its parts."""

    def __init__(self, **values):
        self.__dict__.update(values)


class Vae(nn.Module):
    """The autoencoder (which has parity tests of its own) as diffusers calls one."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.network = autoencoder
        self.config = Namespace(scaling_factor=0.18215, block_out_channels=(1, 1, 1, 1))

    def encode(self, pixels: Tensor) -> Namespace:
        posterior = self.network.encode(pixels)
        sample = lambda: posterior.sample(torch.randn(posterior.mean.shape))  # noqa: E731
        return Namespace(latent_dist=Namespace(sample=sample))

    def decode(self, latents: Tensor) -> Namespace:
        return Namespace(sample=self.network.decode(latents))


class Image(nn.Module):
    """CLIP's image tower as diffusers calls one."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Namespace:
        return Namespace(image_embeds=self.encoder(pixels))


class Pixels:
    """diffusers' last step before the image tower: CLIP's mean and deviation."""

    crop_size = {"width": 224, "height": 224}

    def __call__(self, images: Tensor, **_) -> Namespace:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        return Namespace(pixel_values=(images - mean) / std)


@functools.cache
def generator() -> VideoGenerator:
    sizes = configs("i2vgen-xl")
    parts = {
        "unet": both("small")[0],
        "autoencoder": AutoencoderKL(sizes.autoencoder),
        "text_encoder": TextEncoder(sizes.clip),
        "image_encoder": ImageEncoder(sizes.clip),
    }
    for part in parts.values():
        part.load_state_dict(random_state(part))
        part.eval().requires_grad_(False)
    return VideoGenerator(I2VGEN_XL, **parts, device=torch.device("cpu"), dtype=torch.float32)


def diffusers_pipeline() -> I2VGenXLPipeline:
    """diffusers' pipeline around its own U-Net, scheduler and loop, with the original's last step."""
    ours = generator()
    betas = 1 - (schedule_levels()[1:] / schedule_levels()[:-1])
    scheduler = DDIMScheduler(
        trained_betas=betas.numpy(),
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    levels = schedule_levels()[1:]
    scheduler.alphas_cumprod = levels
    scheduler.final_alpha_cumprod = levels[0]  # the original's last step ends on timestep 0, not on 1
    pipe = I2VGenXLPipeline(
        vae=Vae(ours.autoencoder),
        text_encoder=None,
        tokenizer=None,
        image_encoder=Image(ours.image_encoder),
        feature_extractor=Pixels(),
        unet=both("small")[1],
        scheduler=scheduler,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def schedule_levels() -> Tensor:
    """alpha² of a time before the first step (1), then of timesteps 0 … 999, the last of them 0."""
    squared = zero_terminal_snr(cosine()).alphas ** 2
    return torch.cat([torch.ones(1, dtype=squared.dtype), squared])


TEXT, NEGATIVE, SEED = "a boat on the sea", "blurry, ugly", 11


def videos_options(steps: int, frames: int, height: int, width: int) -> dict:
    sizes = {"height": height, "width": width, "num_frames": frames}
    return {**sizes, "num_inference_steps": steps, "target_fps": 12, "output_type": "np"}


def diffusers_video(image: PILImage.Image, steps: int, frames: int, height: int, width: int) -> np.ndarray:
    encoder = generator().text_encoder
    pipe = diffusers_pipeline()
    torch.manual_seed(SEED)
    made = pipe(
        prompt_embeds=encoder.encode([TEXT]),
        negative_prompt_embeds=encoder.encode([NEGATIVE]),
        image=image,
        **videos_options(steps, frames, height, width),
    ).frames[0]
    return (made * 255).astype(np.uint8)


def our_video(image: PILImage.Image, *size: int, **less) -> np.ndarray:
    ours = generator()
    torch.manual_seed(SEED)
    (frames,) = ours(
        [{"image": image, "text": TEXT}],
        negative_prompt=NEGATIVE,
        progress=False,
        **videos_options(*size),
        **less,
    )
    return frames


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 20, "a flat video proves nothing"
    assert frame_difference(found, expected) <= 1


@pytest.mark.parametrize("size", [(50, 2, 64, 64), (5, 4, 64, 128), (4, 1, 128, 64)])
def test_whole_video_equals_diffusers(size, picture):
    """Steps, frames, height and width; from one picture, one text and one state of the random generator."""
    assert_same(our_video(picture, *size), diffusers_video(picture, *size))


SMALL_SIZE = (2, 3, 64, 128)


@pytest.fixture(scope="module")
def small_video(picture):
    return diffusers_video(picture, *SMALL_SIZE)


@pytest.mark.parametrize("mode", MODES)
def test_every_memory_mode_and_option_equals_diffusers(mode, picture, small_video):
    for less in OPTIONS:
        with working_in(generator(), mode):
            assert_same(our_video(picture, *SMALL_SIZE, **less), small_video)


@pytest.mark.parametrize("width", [64, 200, 1280])
@pytest.mark.parametrize("size", [(320, 240), (512, 512), (1920, 1080)])
def test_clip_sees_the_picture_as_in_diffusers(width, size, picture):
    """A square as wide as the video, then 224×224."""
    image = picture.resize(size)
    sample = generator().prepare({"image": image, "text": ""}, width=width, height=64)
    theirs = sys.modules[I2VGenXLPipeline.__module__]
    crop = theirs._resize_bilinear(theirs._center_crop_wide(image, (width, width)), (224, 224))
    expected = Pixels()(torch.from_numpy(np.array(crop)).permute(2, 0, 1) / 255).pixel_values
    assert torch.allclose(clip_input(I2VGEN_XL, [sample], 224)[0], expected, atol=2e-6)


def test_small_clip_is_the_one_the_pixels_are_made_for():
    assert SMALL_CLIP["vision_cfg"]["image_size"] == Pixels.crop_size["width"]
