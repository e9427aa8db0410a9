"""Text and image conditioning against stock's, from the same checkpoint file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints_factory import configs
from oracle import stock
from oracle.compare import relative_rms
from oracle.networks import stock_image_encoder, stock_text_encoder
from PIL import Image

from modelscope_i2v.checkpoints.load import load_module
from modelscope_i2v.checkpoints.tensors import read_tensors
from modelscope_i2v.encoders.clip import ImageEncoder, TextEncoder
from modelscope_i2v.media.transforms import center_crop, clip_pixels
from modelscope_i2v.spec.families import FAMILIES, TASKS

CLIP = configs("image-to-video").clip
LIMIT = 1e-5
TEXT_TASKS = [task for task, family in TASKS.items() if family.reads_text]


def encoder(cls, directory):
    with torch.device("meta"):
        network = cls(CLIP)
    return load_module(
        network, read_tensors(directory / "open_clip_pytorch_model.bin"), ignore=network.unused
    )


@pytest.mark.parametrize("task", TEXT_TASKS)
def test_text_states_equal_stock(task, checkpoint):
    directory = checkpoint(task)
    ours = encoder(TextEncoder, directory)
    theirs = stock_text_encoder(task, CLIP, directory / "open_clip_pytorch_model.bin")
    texts = [
        "",
        "A panda eating bamboo on a rock.",
        "Ünïcode, 日本語 and <emoji> 🐼",
        "many words " * 80,
        FAMILIES["video-to-video"].negative_prompt,
        "a cat" + FAMILIES["video-to-video"].prompt_suffix,
    ]
    with torch.no_grad():
        states = ours.encode(texts)
        for text, state in zip(texts, states):
            assert relative_rms(state[None], theirs(text)) <= LIMIT, text
    assert relative_rms(states[0], states[1]) > 0.01


def test_image_embeddings_equal_stock(checkpoint):
    directory = checkpoint("image-to-video")
    ours = encoder(ImageEncoder, directory)
    theirs = stock_image_encoder(CLIP, directory / "open_clip_pytorch_model.bin")
    pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeddings = ours.encode(pixels)
        assert relative_rms(embeddings[:, 0], theirs(pixels)) <= LIMIT
    assert relative_rms(embeddings[0], embeddings[1]) > 0.01


@pytest.mark.parametrize(
    "size", [(448, 448), (640, 480), (480, 640), (1280, 720), (449, 1000), (100, 30), (513, 512), (1001, 777)]
)
def test_the_picture_as_clip_sees_it_equals_stock(size):
    data = stock.utility("image-to-video", "utils.transforms")
    cfg = stock.utility("image-to-video", "utils.config").cfg
    theirs = data.Compose(
        [
            data.CenterCropWide(size=(448, 448)),
            data.Resize(cfg.vit_resolution),
            data.ToTensor(),
            data.Normalize(mean=cfg.vit_mean, std=cfg.vit_std),
        ]
    )
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours = clip_pixels(center_crop(image, 448, 448))
    torch.testing.assert_close(ours, theirs(image), rtol=0, atol=2e-6)


def test_the_texts_that_video_to_video_adds_are_stocks():
    cfg = stock.utility("video-to-video", "utils.config").cfg
    assert FAMILIES["video-to-video"].prompt_suffix == cfg.positive_prompt
    assert FAMILIES["video-to-video"].negative_prompt == cfg.negative_prompt
