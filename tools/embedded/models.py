"""Writes the embedded models' directories in the hub's layout, and the picture they animate.

``python -m tools.embedded.models --output DIRECTORY`` writes what is not trained: each family's
configuration.json and ``picture.png``. The four share ``open_clip.safetensors`` and
``autoencoder.safetensors`` beside them. Into the package itself (``--output modelscope_i2v/embedded``), it
writes the repository's configuration.json too.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from modelscope_i2v.data import synthetic
from modelscope_i2v.spec import families

from .sizes import CLIP, DDCONFIG, FAMILIES, FRAMES, HEIGHT, SEED, UNET, WIDTH

ROOT = Path(__file__).resolve().parents[2]


def configuration(family: families.Family, unet: str = "unet.safetensors", shared: str = "../") -> dict:
    """A configuration.json in the hub's layout; the two paths are relative to its directory."""
    sizes = {"max_frames": FRAMES, "height": HEIGHT, "width": WIDTH, **UNET, **FAMILIES[family.name]}
    sizes |= {"ddconfig": DDCONFIG, "clip": CLIP}
    if family.unet.image_tokens:
        sizes["unet_y_dim"] = CLIP["embed_dim"]
    files = {
        "ckpt_unet": unet,
        "ckpt_clip": f"{shared}open_clip.safetensors",
        "ckpt_autoencoder": f"{shared}autoencoder.safetensors",
    }
    return {
        "framework": "pytorch",
        "task": family.task,
        "model": {"type": family.model_type, "model_args": files, "model_cfg": sizes},
        "pipeline": {"type": family.pipeline_type},
    }


def picture(side: int = 384) -> Image.Image:
    """The first frame of a drawn scene, larger than the models' videos."""
    scene = synthetic.draw(np.random.default_rng(SEED), combination=("red", "star", "moves right"))
    return Image.fromarray(synthetic.render(scene, 1, side, side).frames[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    target = parser.parse_args().output
    for name, family in families.FAMILIES.items():
        (target / name).mkdir(parents=True, exist_ok=True)
        text = json.dumps(configuration(family), indent=2) + "\n"
        (target / name / "configuration.json").write_text(text)
    picture().save(target / "picture.png", optimize=True)
    if target.resolve() == ROOT / "modelscope_i2v" / "embedded":
        inside = "modelscope_i2v/embedded/"
        whole = configuration(families.IMAGE_TO_VIDEO, f"{inside}image-to-video/unet.safetensors", inside)
        (ROOT / "configuration.json").write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
