from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from modelscope_i2v.errors import InputError
from modelscope_i2v.media.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    FITS,
    center_crop,
    clip_pixels,
    content_box,
    frames_to_tensor,
    tensor_to_uint8,
)

SIDES = st.integers(1, 90)


@pytest.fixture(scope="module")
def stock():
    from modelscope.models.multi_modal.image_to_video.utils import transforms

    return transforms


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(deadline=None, max_examples=150)
@given(SIDES, SIDES, st.integers(2, 60), st.integers(2, 60))
def test_center_crop_is_stocks(stock, width: int, height: int, target_width: int, target_height: int) -> None:
    image = noise(height, width)
    expected = stock.CenterCropWide((target_width, target_height))(image)
    np.testing.assert_array_equal(center_crop(image, target_width, target_height), expected)


@settings(deadline=None, max_examples=150)
@given(SIDES, SIDES, st.integers(1, 60), st.integers(1, 60))
def test_filled_crop_has_no_black_line_and_differs_only_where_stock_is_short(
    width: int, height: int, target_width: int, target_height: int
) -> None:
    image = Image.new("RGB", (width, height), (200, 100, 50))
    filled = np.asarray(center_crop(image, target_width, target_height, fill_short=True))
    assert filled.shape == (target_height, target_width, 3)
    assert (filled == (200, 100, 50)).all()
    picture = noise(height, width)
    if (np.asarray(center_crop(image, target_width, target_height)) == (200, 100, 50)).all():
        np.testing.assert_array_equal(
            center_crop(picture, target_width, target_height, fill_short=True),
            center_crop(picture, target_width, target_height),
        )


def test_a_size_for_which_the_originals_fall_short() -> None:
    image = Image.new("RGB", (512, 512), "white")
    assert np.asarray(center_crop(image, 1280, 704)).min() == 0
    assert np.asarray(center_crop(image, 1280, 704, fill_short=True)).min() == 255


def test_a_sliver_is_refused_instead_of_filling_the_memory() -> None:
    with pytest.raises(InputError, match="1x100000.*too narrow"):
        center_crop(Image.new("RGB", (1, 100_000)), 448, 448)
    with pytest.raises(InputError, match="too narrow"):
        frames_to_tensor(np.zeros((1, 20_000, 1, 3), np.uint8), 720, 1280, "crop")


@pytest.mark.parametrize("size", [(448, 448), (224, 224), (37, 301)])
def test_clip_pixels_are_bit_equal_to_stocks(stock, size: tuple[int, int]) -> None:
    image = noise(*size)
    chain = stock.Compose(
        [stock.Resize(224), stock.ToTensor(), stock.Normalize(list(CLIP_MEAN), list(CLIP_STD))]
    )
    pixels = clip_pixels(image)
    assert pixels.dtype == torch.float32 and pixels.shape == (3, 224, 224)
    assert torch.equal(pixels, chain(image))


def test_stretch_is_bit_equal_to_stocks_video_to_video(stock) -> None:
    images = [noise(45, 80, seed) for seed in range(3)]
    chain = stock.Compose([stock.ToTensor(), stock.Normalize([0.5] * 3, [0.5] * 3)])
    expected = F.interpolate(chain(images), size=(72, 128), mode="bilinear")
    frames = np.stack([np.asarray(image) for image in images])
    video = frames_to_tensor(frames, 72, 128)
    assert video.dtype == torch.float32
    assert torch.equal(video, expected)


@settings(deadline=None, max_examples=100)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(FITS))
def test_every_fit_fills_every_size(height: int, width: int, to_height: int, to_width: int, fit: str) -> None:
    frames = np.full((2, height, width, 3), (255, 0, 51), np.uint8)
    video = frames_to_tensor(frames, to_height, to_width, fit)
    assert video.shape == (2, 3, to_height, to_width)
    expected = torch.tensor([1.0, -1.0, -0.6]).view(1, 3, 1, 1).expand_as(video)
    torch.testing.assert_close(video, expected)
    top, left, box_height, box_width = content_box(height, width, to_height, to_width, fit)
    assert top >= 0 and left >= 0 and box_height >= 1 and box_width >= 1
    assert top + box_height <= to_height and left + box_width <= to_width
    assert box_height == to_height or box_width == to_width


@settings(deadline=None, max_examples=50)
@given(SIDES, SIDES, SIDES, SIDES)
def test_what_is_padded_can_be_cut_back(height: int, width: int, to_height: int, to_width: int) -> None:
    frames = np.asarray(noise(height, width))[None]
    top, left, h, w = content_box(height, width, to_height, to_width, "pad")
    padded = frames_to_tensor(frames, to_height, to_width, "pad")
    content = padded[..., top : top + h, left : left + w]
    assert torch.equal(content, frames_to_tensor(frames, h, w))
    # The aspect ratio is kept to the pixel that rounding takes.
    assert abs(h - height * min(to_height / height, to_width / width)) < 1
    # What lies around it repeats its edges.
    assert torch.equal(padded[..., :top, left : left + w], content[..., :1, :].expand(-1, -1, top, -1))


def test_crop_keeps_the_middle_and_the_aspect() -> None:
    frames = np.zeros((1, 40, 120, 3), np.uint8)
    frames[:, :, 40:80] = 255
    video = frames_to_tensor(frames, 40, 40, "crop")
    assert (video == 1).all()
    assert torch.equal(frames_to_tensor(frames, 80, 240, "crop"), frames_to_tensor(frames, 80, 240))


def test_unknown_fit() -> None:
    with pytest.raises(InputError, match="fit='squash' is unknown.*stretch, crop, pad"):
        frames_to_tensor(np.zeros((1, 8, 8, 3), np.uint8), 8, 8, "squash")
    with pytest.raises(InputError, match="squash"):
        content_box(8, 8, 8, 8, "squash")


def test_uint8_is_cut_as_stock_cuts_it() -> None:
    from modelscope.pipelines.multi_modal.image_to_video_pipeline import tensor2vid

    values = torch.randn(5, 3, 6, 4, generator=torch.Generator().manual_seed(0)) * 0.8
    expected = np.stack(tensor2vid(values.permute(1, 0, 2, 3)[None].clone()))
    frames = tensor_to_uint8(values)
    assert frames.dtype == np.uint8 and frames.flags.c_contiguous
    np.testing.assert_array_equal(frames, expected)
    assert tensor_to_uint8(torch.full((1, 3, 2, 2), 0.999)).max() == 254
    assert tensor_to_uint8(values.bfloat16()).shape == (5, 6, 4, 3)


def test_inputs_are_left_as_they_were() -> None:
    video = torch.zeros(1, 3, 2, 2)
    tensor_to_uint8(video)
    assert (video == 0).all()
