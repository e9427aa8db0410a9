"""Trains the embedded models' autoencoder on drawn frames.

``python -m tools.embedded.autoencoder --output FILE``
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from modelscope_i2v.data import synthetic
from modelscope_i2v.networks.autoencoder import AttnBlock, AutoencoderKL, ResnetBlock
from modelscope_i2v.spec.families import LATENT_SCALE
from modelscope_i2v.spec.network import AutoencoderConfig

from .sizes import DDCONFIG, HEIGHT, SEED, WIDTH

CROP = 64
KL_WEIGHT = 5e-4
GRADIENT_WEIGHT = 0.5


def frames(count: int, generator: np.random.Generator) -> Tensor:
    """Drawn frames uint8 [count, 3, HEIGHT, WIDTH], four of each scene."""
    clips = [
        synthetic.render(synthetic.draw(generator), 4, HEIGHT, WIDTH).frames for _ in range(-(-count // 4))
    ]
    return torch.from_numpy(np.concatenate(clips)[:count]).permute(0, 3, 1, 2).contiguous()


def started() -> AutoencoderKL:
    """An autoencoder whose residual branches begin at zero, and whose posterior begins narrow."""
    network = AutoencoderKL(AutoencoderConfig(**{**DDCONFIG, "ch_mult": tuple(DDCONFIG["ch_mult"])}))
    for module in network.modules():
        if isinstance(module, (ResnetBlock, AttnBlock)):
            last = module.conv2 if isinstance(module, ResnetBlock) else module.proj_out
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    with torch.no_grad():
        z = network.config.embed_dim
        network.quant_conv.weight[z:] *= 0.1
        network.quant_conv.bias[z:] = -6.0
    return network


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def loss(network: AutoencoderKL, pixels: Tensor, noise: Tensor) -> Tensor:
    """L1, squared error, L1 of the picture's gradients, and the KL divergence to a unit Gaussian."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = network.encode(pixels)
        decoded = network.decode(posterior.sample(noise))
    kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).mean()
    edges = sum(F.l1_loss(a, b) for a, b in zip(gradients(decoded), gradients(pixels)))
    return F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + GRADIENT_WEIGHT * edges + KL_WEIGHT * kl


@torch.no_grad()
def normalise(network: AutoencoderKL, pixels: Tensor) -> None:
    """Folds mean and spread of each latent channel into the quant convolutions.

    Scaled latents (LATENT_SCALE) then have mean 0 and standard deviation 1, as a U-Net wants them.
    """
    latents = torch.cat([network.encode(part).mean for part in pixels.split(16)])
    mean, std = latents.mean((0, 2, 3)), LATENT_SCALE * latents.std((0, 2, 3))
    z = network.config.embed_dim
    after, before = network.post_quant_conv, network.quant_conv
    after.bias += (after.weight[..., 0, 0] * mean).sum(1)
    after.weight *= std[None, :, None, None]
    before.weight[:z] /= std[:, None, None, None]
    before.bias[:z] = (before.bias[:z] - mean) / std
    before.bias[z:] -= 2 * std.log()


@torch.no_grad()
def psnr(network: AutoencoderKL, pixels: Tensor) -> float:
    """Of the reconstruction, in dB; both clipped to the picture's range."""
    error = torch.cat(
        [(network.decode(network.encode(p).mean).clamp(-1, 1) - p) / 2 for p in pixels.split(16)]
    )
    return float(-10 * torch.log10((error**2).mean((1, 2, 3))).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pool", type=int, default=12000, help="how many frames to draw")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    began = time.time()
    pool = frames(args.pool, np.random.default_rng(SEED))
    held = frames(64, np.random.default_rng(SEED + 1)).float() / 127.5 - 1
    network = started().to(memory_format=torch.channels_last)
    step_loss = torch.compile(loss, dynamic=False) if args.compile else loss
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.15)
    full = int(args.steps * 0.75)  # crops first: they are quicker and teach the same
    curve = []
    bar = tqdm(range(args.steps), mininterval=5)
    for step in bar:
        pixels = pool[torch.randint(len(pool), (args.batch,))]
        if step < full:
            y, x = torch.randint((HEIGHT - CROP) // 8 + 1, (2,)).mul(8).tolist()
            pixels = pixels[..., y : y + CROP, x : x + CROP]
        pixels = (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(args.batch, 4, pixels.shape[2] // 8, pixels.shape[3] // 8)
        value = step_loss(network, pixels, noise)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step + 1 == args.steps:
            curve.append(
                {"step": step + 1, "loss": round(value.item(), 4), "psnr": round(psnr(network, held), 2)}
            )
            bar.set_postfix(curve[-1])
    normalise(network, pool[:256].float() / 127.5 - 1)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, args.output)
    network.load_state_dict(tensors)
    report = {"seconds": round(time.time() - began), "psnr": round(psnr(network, held), 2), "curve": curve}
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(report["seconds"], "seconds,", report["psnr"], "dB on held-out frames")


if __name__ == "__main__":
    main()
