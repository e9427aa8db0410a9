"""Trains the embedded models' pair of CLIP towers on drawn scenes and their captions.

``python -m tools.embedded.clip --output FILE``

Text and clip are drawn together as CLIP has it (Radford et al., arXiv:2103.00020). A clip is seen by its
first and its last frame, so that the text tower must tell "left" from "right". Three heads help the image
tower and are thrown away: one reads the change between both frames; one draws the picture back from its
embedding, since image-to-video has nothing but that embedding to know the picture by; and one names the
colour and kind of its shapes, for an outline is a few pixels of a drawing and was not in the embedding.

With ``--start FILE`` the image tower alone is trained on, and kept near to what it was instead of the texts,
so that U-Nets that know the towers of FILE need little training.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from modelscope_i2v.data import synthetic
from modelscope_i2v.encoders.clip import build
from modelscope_i2v.encoders.prompts import tokenize
from modelscope_i2v.media.transforms import CLIP_MEAN, CLIP_STD
from modelscope_i2v.spec.network import CLIPConfig
from modelscope_i2v.training.optimizers import Muon

from .sizes import CLIP, HEIGHT, SEED, WIDTH

SIDE = CLIP["vision_cfg"]["image_size"]
NAMES = [(colour, kind) for colour in synthetic.COLOURS for kind in synthetic.KINDS]


def pool(count: int, generator: np.random.Generator) -> tuple[Tensor, list[str], Tensor]:
    """First and last frames uint8 [count, 2, 3, SIDE, SIDE] of drawn scenes, their captions, and which of
    :data:`NAMES` are in them, 0 or 1 [count, len(NAMES)]."""
    frames, captions, named = [], [], torch.zeros(count, len(NAMES))
    for row in named:
        scene = synthetic.draw(generator)
        pair = torch.from_numpy(synthetic.render(scene, 2, HEIGHT, WIDTH).frames).permute(0, 3, 1, 2)
        frames.append(F.avg_pool2d(pair.float(), HEIGHT // SIDE).round().to(torch.uint8))
        captions.append(scene.caption)
        for shape in scene.shapes:
            row[NAMES.index((shape.colour, shape.kind))] = 1
    return torch.stack(frames), captions, named


class Towers(nn.Module):
    """Both towers, and the heads that only training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = build(CLIPConfig(custom=CLIP))
        width = CLIP["embed_dim"]
        self.change = nn.Linear(width, width)
        self.draw = nn.Sequential(nn.Linear(width, 1024), nn.GELU(), nn.Linear(1024, 3 * SIDE**2))
        self.name = nn.Linear(width, len(NAMES))
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1))

    def see(self, frames: Tensor) -> Tensor:
        """Embeddings [n, width] of pictures 0..1 [n, 3, SIDE, SIDE]."""
        return self.clip.visual((frames - self.mean) / self.std)

    def told(self, pictures: Tensor, frames: Tensor, named: Tensor) -> tuple[Tensor, Tensor]:
        """What the embeddings fail to tell of their frames and of the shapes in them: two losses."""
        drawing = F.l1_loss(self.draw(pictures).float().view_as(frames), frames)
        return drawing, F.binary_cross_entropy_with_logits(self.name(pictures).float(), named)

    def contrast(self, pictures: Tensor, tokens: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """pictures: first and last of each clip [2·b, width]; tokens [b, 77]; captions: a number for each
        caption [b]. Returns the contrastive loss and the share of texts that find a clip of theirs."""
        first, last = pictures.unflatten(0, (-1, 2)).unbind(1)
        clips = first + last + self.change(last - first)
        texts = self.clip.encode_text(tokens)
        clips, texts = F.normalize(clips.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        logits = self.clip.logit_scale.exp().clamp(max=50) * texts @ clips.T
        same = (captions[:, None] == captions).float()
        same = same / same.sum(1, keepdim=True)  # equal captions are right for each other
        loss = 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same))
        return loss, (captions[logits.argmax(1)] == captions).float().mean()


class Kept:
    """What an image tower was: says how far its embeddings have gone from there, in their own variance."""

    def __init__(self, towers: Towers, frames: Tensor) -> None:
        self.before = copy.deepcopy(towers).requires_grad_(False)
        with torch.no_grad():
            self.spread = self.before.see(frames).var(0).mean()

    def __call__(self, pictures: Tensor, frames: Tensor) -> Tensor:
        return F.mse_loss(pictures.float(), self.before.see(frames).float()) / self.spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file")
    parser.add_argument("--start", type=Path, help="such a file, whose image tower is trained on")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--pool", type=int, default=25000, help="how many scenes to draw")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=SEED + 2, help="of the scenes")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    began = time.time()
    frames, texts, named = pool(args.pool, np.random.default_rng(args.seed))
    numbers = {text: number for number, text in enumerate(sorted(set(texts)))}
    tokens = torch.cat([tokenize(text)[0] for text in texts])
    captions = torch.tensor([numbers[text] for text in texts])
    towers, kept = Towers(), None
    if args.start:
        towers.clip.load_state_dict({key: value.float() for key, value in load_file(args.start).items()})
        kept = Kept(towers, frames[:1000, 0].float() / 255)
        towers.clip.requires_grad_(False).visual.requires_grad_(True)
    learned = [parameter for parameter in towers.parameters() if parameter.requires_grad]
    layers = {*towers.clip.visual.parameters(), *towers.clip.transformer.parameters()}
    muon = [p for p in learned if p in layers and p.ndim > 1]
    others = [p for p in learned if p not in layers or p.ndim < 2]
    optimizers = [
        Muon(muon, lr=args.lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=args.lr, weight_decay=0.01),
    ]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(each, args.lr, args.steps, pct_start=0.1, cycle_momentum=False)
        for each in optimizers
    ]
    curve = []
    bar = tqdm(range(args.steps), mininterval=5)
    for step in bar:
        chosen = torch.randint(len(frames), (args.batch,))
        shown = frames[chosen].flatten(0, 1).float() / 255
        values = {}
        with torch.autocast("cpu", torch.bfloat16):
            pictures = towers.see(shown)
            drawing, naming = towers.told(pictures, shown, named[chosen].repeat_interleave(2, 0))
            loss = 8 * drawing + 5 * naming
            if kept:
                values["moved"] = kept(pictures, shown)
                loss = loss + 0.5 * values["moved"]
            else:
                values["contrast"], values["found"] = towers.contrast(
                    pictures, tokens[chosen], captions[chosen]
                )
                loss = loss + 0.25 * values["contrast"]
        towers.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        if step % 50 == 49 or step + 1 == args.steps:
            values |= {"drawing": drawing, "naming": naming}
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
