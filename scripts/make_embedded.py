"""Makes the embedded small model and its picture: ``python scripts/make_embedded.py``.

The weights are random, from a fixed seed: they show that the machinery runs, not what trained
weights would show. The three tasks share one CLIP and one autoencoder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from pathlib import Path

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from safetensors.torch import save_file

from modelscope_i2v.conditioning.clip import build
from modelscope_i2v.families import FAMILIES, Family
from modelscope_i2v.networks.autoencoder import AutoencoderKL
from modelscope_i2v.networks.config import AutoencoderConfig, CLIPConfig, STUNetConfig
from modelscope_i2v.networks.stunet import STUNet

HERE = Path(__file__).resolve().parent.parent
SEED = 20261121

UNET = {
    "unet_dim": 32,
    "unet_dim_mult": [1, 1],
    "unet_context_dim": 64,
    "unet_num_heads": 2,
    "unet_head_dim": 16,
    "unet_res_blocks": 1,
    "unet_attn_scales": [1.0, 0.5],
}
DDCONFIG = {
    "ch": 32,
    "ch_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "z_channels": 4,
    "in_channels": 3,
    "out_ch": 3,
}
CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
SIZES = {
    "image-to-video": {"max_frames": 16, "height": 128, "width": 128, "target_fps": 8},
    "video-to-video": {"max_frames": 16, "height": 144, "width": 256, "num_inference_steps": 20},
    "text-to-video-synthesis": {"max_frames": 16, "height": 128, "width": 128},
    "i2vgen-xl": {"max_frames": 16, "height": 128, "width": 192, "target_fps": 16},
}


def unet_config(family: Family) -> STUNetConfig:
    """The family's network at the embedded model's size."""
    sizes = {key.removeprefix("unet_"): tuple(v) if isinstance(v, list) else v for key, v in UNET.items()}
    return dataclasses.replace(family.unet, image_dim=CLIP["embed_dim"], **sizes)


def configuration(family: Family, unet: str, shared: str) -> dict:
    """A configuration.json in the hub's layout; the two paths are relative to its directory."""
    args = {"ckpt_unet": unet, "ckpt_clip": f"{shared}open_clip.safetensors"}
    args["ckpt_autoencoder"] = f"{shared}autoencoder.safetensors"
    if family.takes_video:
        args["solver_mode"] = "fast"
    sizes = {**SIZES[family.name], **UNET, "ddconfig": DDCONFIG, "clip": CLIP}
    if family.unet.image_tokens:
        sizes["unet_y_dim"] = CLIP["embed_dim"]
    return {
        "framework": "pytorch",
        "task": family.task,
        "model": {"type": family.model_type, "model_args": args, "model_cfg": sizes},
        "pipeline": {"type": family.pipeline_type},
    }


def save(module: torch.nn.Module, path: Path) -> None:
    """A network's tensors in fp16, by the names of the hub's files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}, path)


def draw_picture() -> Image.Image:
    """A boat on the sea at sunset, 512×512."""
    scale = 2  # drawn larger and reduced, for smooth edges
    side = 512 * scale
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    horizon = int(side * 0.62)
    top, low = (38, 52, 96), (250, 176, 108)
    for y in range(horizon):
        t = (y / horizon) ** 1.4
        draw.line([(0, y), (side, y)], fill=tuple(round(a + (b - a) * t) for a, b in zip(top, low)))
    sun = (int(side * 0.68), int(side * 0.5))
    glow = Image.new("RGB", image.size)
    radius = side // 5
    ImageDraw.Draw(glow).ellipse(
        [sun[0] - radius, sun[1] - radius, sun[0] + radius, sun[1] + radius], fill=(90, 60, 30)
    )
    glow = glow.filter(ImageFilter.GaussianBlur(side // 12))
    image = ImageChops.add(image, glow)
    draw = ImageDraw.Draw(image)
    radius = side // 16
    draw.ellipse([sun[0] - radius, sun[1] - radius, sun[0] + radius, sun[1] + radius], fill=(255, 236, 190))
    for y in range(horizon, side):
        t = (y - horizon) / (side - horizon)
        draw.line(
            [(0, y), (side, y)],
            fill=tuple(round(a + (b - a) * t) for a, b in zip((196, 120, 96), (20, 44, 80))),
        )
    for index in range(46):  # light on the waves
        t = (index + 0.5) / 46
        y = horizon + int((side - horizon) * t**1.5)
        half = side * (0.03 + 0.10 * t) * (0.6 + 0.4 * math.sin(index * 2.4))
        x = sun[0] + side * 0.02 * math.sin(index * 1.7)
        draw.line(
            [(x - half, y), (x + half, y)],
            fill=(255, 205, 150),
            width=max(1, int(side * 0.002 * (1 + 2 * t))),
        )
    x, y, unit = int(side * 0.34), int(side * 0.72), side * 0.1
    draw.polygon(
        [
            (x - 1.3 * unit, y),
            (x + 1.3 * unit, y),
            (x + 0.9 * unit, y + 0.45 * unit),
            (x - unit, y + 0.45 * unit),
        ],
        fill=(70, 34, 36),
    )
    draw.line([(x, y), (x, y - 2.3 * unit)], fill=(60, 30, 30), width=int(unit * 0.08))
    draw.polygon(
        [
            (x + 0.08 * unit, y - 2.2 * unit),
            (x + 0.08 * unit, y - 0.15 * unit),
            (x + 1.2 * unit, y - 0.15 * unit),
        ],
        fill=(244, 232, 214),
    )
    draw.polygon(
        [
            (x - 0.08 * unit, y - 1.9 * unit),
            (x - 0.08 * unit, y - 0.15 * unit),
            (x - 0.9 * unit, y - 0.15 * unit),
        ],
        fill=(226, 96, 72),
    )
    return image.resize((512, 512), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "modelscope_i2v" / "embedded")
    target = parser.parse_args().output
    torch.manual_seed(SEED)
    save(build(CLIPConfig(custom=CLIP)), target / "open_clip.safetensors")
    autoencoder = AutoencoderKL(AutoencoderConfig(**{**DDCONFIG, "ch_mult": tuple(DDCONFIG["ch_mult"])}))
    save(autoencoder, target / "autoencoder.safetensors")
    for name, family in FAMILIES.items():
        save(STUNet(unet_config(family)), target / name / "unet.safetensors")
        text = json.dumps(configuration(family, "unet.safetensors", "../"), indent=2) + "\n"
        (target / name / "configuration.json").write_text(text)
    draw_picture().save(target / "picture.png", optimize=True)
    if target == HERE / "modelscope_i2v" / "embedded":
        inside = "modelscope_i2v/embedded/"
        root = configuration(FAMILIES["image-to-video"], inside + "image-to-video/unet.safetensors", inside)
        (HERE / "configuration.json").write_text(json.dumps(root, indent=2) + "\n")


if __name__ == "__main__":
    main()
