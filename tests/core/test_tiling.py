"""The autoencoder tile by tile, with the embedded one, against a whole picture at once."""

import copy
import math

import numpy as np
import pytest
import torch

from modelscope_i2v.compute.formats import cast
from modelscope_i2v.data import synthetic
from modelscope_i2v.embedded import model_directory
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.memory import tiling
from modelscope_i2v.memory.tiling import tiled_decode, tiled_encode


@pytest.fixture(scope="module")
def autoencoder():
    return VideoGenerator.from_directory(model_directory("image-to-video"), device="cpu").autoencoder


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def frame(height, width):
    scene = synthetic.draw(np.random.default_rng(0))
    frames = synthetic.render(scene, 1, height, width).frames
    return torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1


def psnr(found, wanted):
    return 10 * math.log10(4 / (found.double() - wanted.double()).square().mean().item())


@pytest.mark.parametrize(
    ("size", "tile"),
    [((256, 256), 64), ((256, 256), 128), ((200, 264), 64), ((200, 264), 136), ((64, 328), 100)],
    ids=str,
)
def test_tiles_give_the_whole_picture(autoencoder, size, tile):
    pixels = frame(*size)
    posterior = autoencoder.encode(pixels)
    assert psnr(tiled_decode(autoencoder, posterior.mean, tile), autoencoder.decode(posterior.mean)) > 60
    tiled = tiled_encode(autoencoder, pixels, tile)
    for found, wanted in zip(tiled, posterior):
        assert (found - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_a_large_picture_is_nearer_to_the_truth_in_tiles(autoencoder):
    """What differs from the whole picture in fp32 is that one's own rounding."""
    latents = autoencoder.encode(frame(512, 512)).mean
    exact = copy.deepcopy(autoencoder).double()
    truth = exact.decoder(exact.post_quant_conv(latents.double()))
    assert psnr(tiled_decode(autoencoder, latents, 128), truth) > 120


def test_no_seam_shows(autoencoder):
    """Where tiles meet, the error is no larger than elsewhere."""
    latents = autoencoder.encode(frame(256, 256)).mean
    error = (tiled_decode(autoencoder, latents, 128) - autoencoder.decode(latents)).abs().mean(dim=(0, 1))
    seam = torch.cat([error[126:130].flatten(), error[:, 126:130].flatten()])
    assert seam.mean() < 1.5 * error.mean()


def test_reduced_precision(autoencoder):
    with torch.inference_mode(False):  # oneDNN keeps weights of its own by their version
        reduced = cast(copy.deepcopy(autoencoder), torch.bfloat16)
    latents = autoencoder.encode(frame(256, 256)).mean
    assert psnr(tiled_decode(reduced, latents, 64), autoencoder.decode(latents)) > 45


def test_several_frames_have_each_its_own_statistics(autoencoder):
    pixels = torch.cat([frame(128, 128), -frame(128, 128)])
    latents = tiled_encode(autoencoder, pixels, 64).mean
    decoded = tiled_decode(autoencoder, latents, 64)
    for index in range(2):
        alone = tiled_decode(autoencoder, latents[index : index + 1], 64)
        assert torch.allclose(decoded[index : index + 1], alone, atol=1e-4)


def test_one_tile_is_the_whole_picture_to_the_last_bit(autoencoder):
    pixels = frame(96, 128)
    posterior = autoencoder.encode(pixels)
    assert torch.equal(tiled_encode(autoencoder, pixels, 128).mean, posterior.mean)
    assert torch.equal(tiled_decode(autoencoder, posterior.mean, 128), autoencoder.decode(posterior.mean))


def test_no_layer_above_the_smallest_level_sees_more_than_a_tile(autoencoder):
    seen = []
    hooks = [
        level.block[0].conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-2:]))
        for level in (*autoencoder.encoder.down, *autoencoder.decoder.up)
    ]
    try:
        latents = tiled_encode(autoencoder, frame(256, 320), 64).mean
        tiled_decode(autoencoder, latents, 64)
    finally:
        for hook in hooks:
            hook.remove()
    assert max(max(shape) for shape in seen) == 64 + 2


def test_a_tile_that_is_too_small_is_refused(autoencoder):
    with pytest.raises(ValueError, match=f"tile=16 .* {tiling.SMALLEST} pixels or more"):
        tiled_decode(autoencoder, torch.zeros(1, 4, 16, 16), 16)
