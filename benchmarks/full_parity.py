"""Compares networks and pipelines of full size with the original: ``python -m benchmarks.full_parity``.

Weights are random, 1.4 billion a U-Net. Each comparison runs in a process of its own, one after the
other, and its files are deleted after it: 20 GB of memory and 20 GB of disk are enough. The table is
printed, and written into docs/evidence/fidelity.md between its two marks.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import gc
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import ROOT, command, folder
from .sections import write_section

REPORT = ROOT / "docs" / "evidence" / "fidelity.md"
LIMIT = 1e-5
SEED = 4


@dataclasses.dataclass
class Row:
    """One line of the table."""

    what: str
    where: str
    error: str
    limit: str
    passed: bool
    seconds: float = 0.0
    memory_gb: float = 0.0


def relative(what: str, where: str, ours: torch.Tensor, theirs: torch.Tensor) -> Row:
    from oracle.compare import relative_rms

    error = relative_rms(ours, theirs)
    return Row(what, where, f"{error:.1e}", f"{LIMIT:.0e} of the RMS", error <= LIMIT)


def load_ours(network: Any, state: dict[str, torch.Tensor], ignore: tuple[str, ...] = ()) -> Any:
    from modelscope_i2v.checkpoints.load import load_module

    return load_module(network, state, ignore=ignore)


def assign(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Gives a stock network ``state`` itself, without a second copy."""
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def unet(task: str, work: Path) -> list[Row]:
    """A U-Net at small latents, batch 1 with three frames."""
    from checkpoints_factory import configs, networks, random_state
    from oracle.networks import build_unet
    from small_unet import predicted

    config = configs(task, small=False).unet
    network = networks(configs(task, small=False))["unet"]
    state = random_state(network)
    ours = load_ours(network, state)
    with torch.device("meta"):
        theirs = build_unet(task, config)
    assign(theirs, state)
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for frames, height, width in ((4, 16, 16), (3, 24, 16)):
        height += 2 if config.extra_rows else 0
        latents = torch.randn(1, 4, frames, height, width, generator=generator)
        timesteps = torch.randint(0, 1000, (1,), generator=generator)
        tokens, channels = (1, config.image_dim) if config.image_tokens else (77, config.context_dim)
        y = torch.randn(1, tokens, channels, generator=generator)
        fps = {"fps": torch.tensor([8])} if config.fps_embedding else {}
        conditions = {"image_embeds" if config.image_tokens else "text": y, **fps}
        with torch.no_grad():
            pair = predicted(ours, latents, timesteps, **conditions), theirs(latents, timesteps, y, **fps)
            where = f"latents {frames}×{height}×{width}"
            rows.append(relative(f"U-Net of {task}", where, *pair))
    return rows


def i2vgen_unet(work: Path) -> list[Row]:
    """I2VGen-XL's U-Net against diffusers', whose weights for the picture are doubled."""
    from checkpoints_factory import configs, networks, random_state
    from oracle.i2vgen import build, in_diffusers, run
    from small_unet import predicted

    config = configs("i2vgen-xl", small=False).unet
    network = networks(configs("i2vgen-xl", small=False))["unet"]
    state = random_state(network)
    ours = load_ours(network, state)
    with torch.device("meta"):
        theirs = build(config)
    assign(theirs, in_diffusers(config, state))
    generator = torch.Generator().manual_seed(SEED)
    rows = []
    for frames, height, width in ((4, 16, 16), (3, 24, 16)):
        given = {
            "latents": torch.randn(1, 4, frames, height, width, generator=generator),
            "timesteps": torch.randint(0, 1000, (1,), generator=generator),
            "text": torch.randn(1, 77, config.context_dim, generator=generator),
            "image_embeds": torch.randn(1, 1, config.image_dim, generator=generator),
            "fps": torch.tensor([16]),
            "image_latents": torch.randn(1, 4, height, width, generator=generator),
        }
        with torch.no_grad():
            where = f"latents {frames}×{height}×{width}"
            pair = predicted(ours, **given), run(theirs, given)
            rows.append(relative("U-Net of i2vgen-xl (diffusers')", where, *pair))
    return rows


def autoencoder(work: Path) -> list[Row]:
    """Both ways, on 192×256 pixels."""
    from checkpoints_factory import configs, networks, random_state
    from oracle.networks import stock_autoencoder

    sizes = configs("image-to-video", small=False)
    network = networks(sizes)["autoencoder"]
    state = random_state(network)
    ours = load_ours(network, state)
    theirs = stock_autoencoder(sizes.autoencoder, state)
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.rand(2, 3, 192, 256, generator=generator) * 2 - 1
    latents = 5 * torch.randn(2, 4, 24, 32, generator=generator)
    with torch.no_grad():
        encoded, expected = ours.encode(pixels), theirs.encode(pixels)
        decoded = ours.decode(latents), theirs.decode(latents)
    where = "2 pictures of 192×256"
    return [
        relative("Autoencoder, encoding: mean", where, encoded.mean, expected.mean),
        relative("Autoencoder, encoding: log variance", where, encoded.logvar, expected.logvar),
        relative("Autoencoder, decoding", where, *decoded),
    ]


def clip(work: Path) -> list[Row]:
    """The text and the image tower of ViT-H-14."""
    from checkpoints_factory import configs, networks, random_state
    from oracle.networks import stock_image_encoder, stock_text_encoder

    from modelscope_i2v.checkpoints.tensors import read_tensors
    from modelscope_i2v.encoders.clip import ImageEncoder, TextEncoder

    sizes = configs("image-to-video", small=False)
    path = work / "open_clip_pytorch_model.bin"
    torch.save(random_state(networks(sizes)["clip"]), path)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(SEED))
    text = "A panda eating bamboo on a rock."

    def with_ours(cls: type) -> Any:
        with torch.device("meta"):
            network = cls(sizes.clip)
        return load_ours(network, read_tensors(path), tuple(network.unused))

    rows = []
    with torch.no_grad():
        ours = with_ours(ImageEncoder).encode(pixels)[:, 0]
        gc.collect()
        theirs = stock_image_encoder(sizes.clip, path)(pixels)
        rows.append(relative("CLIP, image embedding", "2 pictures", ours, theirs))
        gc.collect()
        ours = with_ours(TextEncoder).encode([text])
        gc.collect()
        for task in ("text-to-video-synthesis", "video-to-video"):
            theirs = stock_text_encoder(task, sizes.clip, path)(text)
            rows.append(relative("CLIP, text states", f"as {task} calls it", ours, theirs))
            gc.collect()
    return rows


def moving_picture(path: Path) -> Path:
    """A video of two frames, 160×96."""
    import av

    colours = np.random.default_rng(SEED).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    still = colours.repeat(16, axis=0).repeat(16, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for index in range(2):
            image = av.VideoFrame.from_ndarray(np.roll(still, 8 * index, axis=1), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return path


def video_inputs(task: str, work: Path) -> tuple[Any, int, dict[str, Any], dict[str, Any]]:
    """What to call both pipelines with: input, steps, options of ours, options of the oracle."""
    from PIL import Image

    if task == "image-to-video":
        colours = np.random.default_rng(SEED).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = work / "picture.png"
        Image.fromarray(colours).resize((640, 480), Image.Resampling.BICUBIC).save(picture)
        return str(picture), 2, {}, {}
    if task == "text-to-video-synthesis":
        return {"text": "A panda eating bamboo on a rock.", "height": 128, "width": 128}, 2, {}, {}
    given = {"video_path": str(moving_picture(work / "in.mp4")), "text": "A boat at sunset."}
    return given, 3, {"height": 144, "width": 128}, {"size": (144, 128)}


def make_video_checkpoint(task: str, work: Path) -> Path:
    """A full-size checkpoint whose own defaults make a tiny video."""
    from checkpoints_factory import make_checkpoint

    directory = work / task
    settings: dict[str, Any] = {"model_cfg": {"max_frames": 4, "latent_hei": 16, "latent_wid": 16}}
    if task == "text-to-video-synthesis":
        settings = {"model_args": {"max_frames": 4}}
    return make_checkpoint(directory, task, small=False, **settings)


def stock_frames(task: str, work: Path) -> list[Row]:
    """Stock's frames, left in a file for :func:`our_frames`."""
    from oracle.videos import stock_model, stock_video

    given, steps, _, options = video_inputs(task, work)
    model = stock_model(make_video_checkpoint(task, work), task)
    np.save(work / f"{task}.npy", stock_video(model, task, given, SEED, steps=steps, **options))
    return []


def our_frames(task: str, work: Path) -> list[Row]:
    """The frames that ``pipeline(...)`` makes of the same files, against stock's."""
    from modelscope.pipelines import pipeline
    from oracle.compare import frame_difference

    import modelscope_i2v  # noqa: F401

    given, steps, options, _ = video_inputs(task, work)
    pipe = pipeline(task, model=str(work / task), device="cpu")
    torch.manual_seed(SEED)
    frames = pipe(given, output_type="np", num_inference_steps=steps, **options)["output_video"]
    expected = np.load(work / f"{task}.npy")
    error = frame_difference(frames, expected)
    differing = np.count_nonzero(frames != expected) / frames.size
    count, height, width, _ = frames.shape
    return [
        Row(
            f"Video of {task}, through `pipeline(...)`",
            f"{count} frames of {height}×{width}, {steps} steps",
            f"{error}/255 at most, {differing:.1e} of the values differ",
            "1/255",
            error <= 1 and float(expected.std()) > 5,
        )
    ]


TASKS = ("image-to-video", "video-to-video", "text-to-video-synthesis")
JOBS: dict[str, Callable[[Path], list[Row]]] = {
    **{f"unet:{task}": lambda work, task=task: unet(task, work) for task in TASKS},
    "unet:i2vgen-xl": i2vgen_unet,
    "autoencoder": autoencoder,
    "clip": clip,
}
for _task in TASKS:  # a video takes two processes: both models at once would need twice the memory
    JOBS[f"stock:{_task}"] = lambda work, task=_task: stock_frames(task, work)
    JOBS[f"video:{_task}"] = lambda work, task=_task: our_frames(task, work)


def peak_memory_gb() -> float:
    """The most memory that this process has held, mapped pages of files included; 0 where unknown."""
    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, ru_maxrss starts at what the parent process held
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def child(name: str, work: Path, result: Path) -> None:
    start = time.perf_counter()
    rows = JOBS[name](work)
    for row in rows:
        row.seconds = time.perf_counter() - start
        row.memory_gb = peak_memory_gb()
    result.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))


def run_job(name: str, work: Path) -> list[Row]:
    result = work / "result.json"
    one = command("full_parity", "--job", name, "--work-dir", work, "--result", result)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    code = subprocess.run(one, env=environment).returncode
    if code:
        return [Row(name, "", f"stopped with exit code {code}", "", False)]
    return [Row(**row) for row in json.loads(result.read_text())]


def measured() -> str:
    """When, and with which versions."""
    names = ("modelscope", "torch", "open_clip_torch", "torchvision", "numpy")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Measured on {datetime.date.today().isoformat()}: Python {platform.python_version()}, {found}"


def table(rows: list[Row]) -> str:
    lines = [
        "| what | at | difference from stock | limit | result |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        result = "equal" if row.passed else "**differs**"
        lines.append(f"| {row.what} | {row.where} | {row.error} | {row.limit} | {result} |")
    return "\n".join([*lines, "", f"{measured()}, CPU, fp32."])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=folder, help="where files of up to 15 GB go; a temporary folder")
    parser.add_argument("--only", help="comparisons whose name holds this text; no report is written")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        child(args.job, args.work_dir, args.result)
        return 0
    work = Path(tempfile.mkdtemp(prefix="full-parity-", dir=args.work_dir))
    rows: list[Row] = []
    try:
        for name in JOBS:
            if args.only and args.only not in name:
                continue
            print(f"{name} …", flush=True)
            made = run_job(name, work)
            rows += made
            for row in made:
                print(f"  {row.where}: {row.error} ({row.seconds:.0f} s, {row.memory_gb:.1f} GB)", flush=True)
            if not name.startswith("stock:"):  # its video is compared next, with the same files
                for entry in work.iterdir():
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    text = table(rows)
    print(f"\n{text}")
    passed = bool(rows) and all(row.passed for row in rows)
    if passed and not args.only:
        write_section(REPORT, "full parity", text)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
