"""Trains the embedded models' pair of CLIP towers on drawn scenes and their captions.

``python scripts/embedded/clip.py --output FILE``

Text and clip are drawn together as CLIP has it (Radford et al., arXiv:2103.00020). A clip is seen by its
first and its last frame, so that the text tower must tell "left" from "right". Two heads help the image
tower and are thrown away: one reads the change between both frames, one draws the picture back from its
embedding, since image-to-video has nothing but that embedding to know the picture by.
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
from sizes import CLIP, HEIGHT, SEED, WIDTH
from torch import Tensor, nn
from tqdm import tqdm

from modelscope_i2v.conditioning.clip import build
from modelscope_i2v.conditioning.prompts import tokenize
from modelscope_i2v.data import synthetic
from modelscope_i2v.media.transforms import CLIP_MEAN, CLIP_STD
from modelscope_i2v.networks.config import CLIPConfig

SIDE = CLIP["vision_cfg"]["image_size"]
DRAWN = 24
"""Side of the picture that is drawn back."""


def pool(count: int, generator: np.random.Generator) -> tuple[Tensor, list[str]]:
    """First and last frames uint8 [count, 2, 3, SIDE, SIDE] of drawn scenes, and their captions."""
    frames, captions = [], []
    for _ in range(count):
        scene = synthetic.draw(generator)
        pair = torch.from_numpy(synthetic.render(scene, 2, HEIGHT, WIDTH).frames).permute(0, 3, 1, 2)
        frames.append(F.avg_pool2d(pair.float(), HEIGHT // SIDE).round().to(torch.uint8))
        captions.append(scene.caption)
    return torch.stack(frames), captions


class Towers(nn.Module):
    """Both towers, and the heads that only training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = build(CLIPConfig(custom=CLIP))
        width = CLIP["embed_dim"]
        self.change = nn.Linear(width, width)
        self.draw = nn.Sequential(nn.Linear(width, 1024), nn.GELU(), nn.Linear(1024, 3 * DRAWN**2))
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1))

    def forward(self, frames: Tensor, tokens: Tensor, captions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """frames: 0..1 [b, 2, 3, SIDE, SIDE]; tokens [b, 77]; captions: a number for each caption [b].

        Returns the contrastive loss, the drawing loss and the share of texts that find a clip of theirs.
        """
        with torch.autocast("cpu", torch.bfloat16):
            pictures = self.clip.visual(((frames - self.mean) / self.std).flatten(0, 1))
            texts = self.clip.encode_text(tokens)
            drawn = self.draw(pictures)
            first, last = pictures.unflatten(0, (-1, 2)).unbind(1)
            clips = first + last + self.change(last - first)
        clips, texts = F.normalize(clips.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        logits = self.clip.logit_scale.exp().clamp(max=50) * texts @ clips.T
        same = (captions[:, None] == captions).float()
        same = same / same.sum(1, keepdim=True)  # equal captions are right for each other
        contrast = 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same))
        small = F.adaptive_avg_pool2d(frames.flatten(0, 1), DRAWN)
        drawing = F.l1_loss(drawn.float().view_as(small), small)
        return contrast, drawing, (captions[logits.argmax(1)] == captions).float().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--pool", type=int, default=12000, help="how many scenes to draw")
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    began = time.time()
    frames, texts = pool(args.pool, np.random.default_rng(SEED + 2))
    numbers = {text: number for number, text in enumerate(sorted(set(texts)))}
    tokens = torch.cat([tokenize(text)[0] for text in texts])
    captions = torch.tensor([numbers[text] for text in texts])
    towers = Towers()
    decayed = [p for p in towers.parameters() if p.ndim > 1]
    others = [p for p in towers.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=args.lr
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.1)
    curve = []
    bar = tqdm(range(args.steps), mininterval=5)
    for step in bar:
        chosen = torch.randint(len(frames), (args.batch,))
        contrast, drawing, found = towers(frames[chosen].float() / 255, tokens[chosen], captions[chosen])
        optimizer.zero_grad(set_to_none=True)
        (0.25 * contrast + 8 * drawing).backward()
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 49 or step + 1 == args.steps:
            values = {"contrast": contrast, "drawing": drawing, "found": found}
            curve.append(
                {"step": step + 1, **{name: round(value.item(), 4) for name, value in values.items()}}
            )
            bar.set_postfix(curve[-1])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in towers.clip.state_dict().items()}, args.output)
    report = {"seconds": round(time.time() - began), "curve": curve}
    args.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    print(report["seconds"], "seconds;", curve[-1])


if __name__ == "__main__":
    main()
