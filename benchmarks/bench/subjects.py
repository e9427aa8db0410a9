"""What is compared: this package, stock ModelScope and diffusers, called alike.

Each holds the networks of one checkpoint. U-Nets take the arguments of this package's.
"""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
import transformers
from diffusers import I2VGenXLPipeline, TextToVideoSDPipeline
from oracle import i2vgen
from oracle.videos import stock_model, stock_video
from PIL import Image
from torch import Tensor, nn

from modelscope_i2v.devices import DTYPES
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.memory.allocator import kept_memory
from modelscope_i2v.networks.stunet import Prepared
from modelscope_i2v.spec.families import Family

from .presets import MODES

for _library in (diffusers, transformers):
    _library.utils.logging.disable_progress_bar()

SEED = 20
STOCK_UNETS = {
    "image-to-video": "generator",
    "video-to-video": "generator",
    "text-to-video-synthesis": "sd_model",
}
"""What the stock models call their U-Nets."""


@dataclass(frozen=True)
class Wish:
    """A video to make."""

    text: str
    picture: Image.Image
    clip: Path
    """A video with as many frames as are to be made."""
    frames: int
    height: int
    width: int
    """In pixels."""
    steps: int


class Subject(abc.ABC):
    """Networks of one implementation.

    Attributes:
        name: ``ours``, ``stock`` or ``diffusers``.
        mode: of this package, else the number type.
        dtype: ``fp32``, ``fp16`` or ``bf16``.
        one_batch: both guidance branches go through the U-Net in one call.
    """

    name: str
    one_batch = True

    def __init__(self, family: Family, mode: str, dtype: str, device: torch.device) -> None:
        self.family = family
        self.mode = mode
        self.dtype = dtype
        self.device = device

    @property
    def title(self) -> str:
        return f"{self.name} {self.mode}"

    @property
    @abc.abstractmethod
    def networks(self) -> list[nn.Module]:
        """All that are loaded."""

    def prepare(self, frames: int, **conditions: Tensor) -> Any:
        """All that can be computed once a video of so many frames, for :meth:`predict`."""
        return conditions

    @abc.abstractmethod
    def predict(self, latents: Tensor, timesteps: Tensor, prepared: Any) -> Tensor:
        """The U-Net's output [b, 4, f, h, w]."""

    @abc.abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """The mean of the latents [n, 4, h, w] of pixels [n, 3, 8·h, 8·w] in -1..1."""

    @abc.abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [n, 3, 8·h, 8·w] of unscaled latents [n, 4, h, w]."""

    @abc.abstractmethod
    def video(self, wish: Wish) -> np.ndarray:
        """Frames, uint8 [f, height, width, 3], before they are written to a file."""

    def bytes_on_device(self) -> int:
        """What the networks hold there now."""
        tensors = (t for n in self.networks for t in (*n.parameters(), *n.buffers()))
        return sum(tensor.nbytes for tensor in tensors if tensor.device.type == self.device.type)


class Ours(Subject):
    """This package."""

    name = "ours"

    def __init__(self, family: Family, mode: str, device: torch.device, directory: Path) -> None:
        settings = MODES[mode]
        super().__init__(family, mode, settings.dtype, device)
        self.options = settings.call
        self.one_batch = not settings.call.get("sequential_guidance", False)
        self.generator = VideoGenerator.from_directory(
            directory, device=device, dtype=settings.dtype, progress=False, **settings.load
        )

    @property
    def networks(self) -> list[nn.Module]:
        made = self.generator
        found = (made.unet, made.autoencoder, made.text_encoder, made.image_encoder)
        return [network for network in found if network is not None]

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """As the generator's own calls do."""
        with torch.inference_mode(), kept_memory(self.device):
            yield

    def prepare(self, frames: int, **conditions: Tensor) -> Prepared:
        with self._computing():
            return self.generator.unet.prepare(frames=frames, **conditions)

    def predict(self, latents: Tensor, timesteps: Tensor, prepared: Prepared) -> Tensor:
        with self._computing():
            return self.generator.unet(latents, timesteps, prepared)

    def encode(self, pixels: Tensor) -> Tensor:
        with self._computing():
            return self.generator.autoencoder.encode(pixels).mean

    def decode(self, latents: Tensor) -> Tensor:
        with self._computing():
            return self.generator.autoencoder.decode(latents)

    def video(self, wish: Wish) -> np.ndarray:
        given: dict[str, Any] = {"text": wish.text} if self.family.reads_text else {}
        if self.family.takes_video:
            given["video_path"] = str(wish.clip)
        elif self.family.reads_image:
            given["image"] = wish.picture
        options = {
            "num_inference_steps": wish.steps,
            "num_frames": wish.frames,
            "height": wish.height,
            "width": wish.width,
            "output_type": "np",
            "progress": False,
        }
        torch.manual_seed(SEED)
        (frames,) = self.generator([given], **{**options, **self.options})
        return frames


class Stock(Subject):
    """ModelScope's own code, under the shims of the tests. fp16 is as it ships: under autocast."""

    name = "stock"
    one_batch = False

    def __init__(
        self, family: Family, dtype: str, device: torch.device, directory: Path, light: bool = True
    ) -> None:
        super().__init__(family, dtype, dtype, device)
        with _light() if light else contextlib.nullcontext():
            self.model = stock_model(directory, family.task)
        _move(self.model, device)
        if family.takes_video and dtype == "fp16":
            self.unet.half()  # as its constructor does on a GPU

    @property
    def unet(self) -> nn.Module:
        return getattr(self.model, STOCK_UNETS[self.family.task])

    @property
    def networks(self) -> list[nn.Module]:
        return [self.unet, self.model.autoencoder, self.model.clip_encoder]

    def _computing(self) -> torch.autocast:
        return torch.autocast(self.device.type, DTYPES[self.dtype], enabled=self.dtype != "fp32")

    @torch.no_grad()
    def predict(self, latents: Tensor, timesteps: Tensor, prepared: dict[str, Tensor]) -> Tensor:
        names = {"text": "y", "image_embeds": "y"}
        renamed = {names.get(name, name): value for name, value in prepared.items()}
        with self._computing():
            return self.unet(latents, timesteps, **renamed)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        return self.model.autoencoder.encode(pixels).mean  # always in fp32

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        with self._computing():
            return self.model.autoencoder.decode(latents)

    def video(self, wish: Wish) -> np.ndarray:
        task, size = self.family.task, (wish.height, wish.width)
        if task == "text-to-video-synthesis":
            self.model.config.model.model_args.max_frames = wish.frames
            given: Any = {"text": wish.text, "height": wish.height, "width": wish.width}
        else:
            cfg = self.model.cfg
            cfg.max_frames, cfg.latent_hei, cfg.latent_wid = wish.frames, *(side // 8 for side in size)
            given = {"video_path": str(wish.clip), "text": wish.text}
        if task == "image-to-video":
            given = wish.picture
        resized = {"size": size} if self.family.takes_video else {}
        return stock_video(self.model, task, given, SEED, steps=wish.steps, **resized)


class Diffusers(Subject):
    """diffusers' pipeline on a folder that this package converted to its layout."""

    name = "diffusers"

    def __init__(self, family: Family, dtype: str, device: torch.device, folder: Path) -> None:
        super().__init__(family, dtype, dtype, device)
        cls = I2VGenXLPipeline if family.unet.local_image else TextToVideoSDPipeline
        self.pipe = cls.from_pretrained(folder, torch_dtype=DTYPES[dtype]).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        text_encoder = self.pipe.text_encoder
        if not hasattr(text_encoder, "text_model"):
            # diffusers 0.42 looks for the last norm under a name that transformers 5 has given up.
            object.__setattr__(text_encoder, "text_model", text_encoder)

    @property
    def networks(self) -> list[nn.Module]:
        return [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]

    @torch.no_grad()
    def predict(self, latents: Tensor, timesteps: Tensor, prepared: dict[str, Tensor]) -> Tensor:
        given = {"latents": latents, **prepared}
        given = {name: self._cast(value) for name, value in given.items()} | {"timesteps": timesteps}
        if self.family.unet.local_image:
            return i2vgen.run(self.pipe.unet, given).float()
        states = given["text"]
        return self.pipe.unet(given["latents"], timesteps, encoder_hidden_states=states).sample.float()

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(DTYPES[self.dtype]) if value.is_floating_point() else value

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        return self.pipe.vae.encode(self._cast(pixels)).latent_dist.mean.float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.pipe.vae.decode(self._cast(latents)).sample.float()

    def video(self, wish: Wish) -> np.ndarray:
        family = self.family
        options: dict[str, Any] = {
            "prompt": wish.text + family.prompt_suffix,
            "negative_prompt": family.negative_prompt,
            "num_inference_steps": wish.steps,
            "num_frames": wish.frames,
            "height": wish.height,
            "width": wish.width,
            "guidance_scale": family.guidance_scale,
            "output_type": "np",
        }
        if family.reads_image:
            options |= {"image": wish.picture, "target_fps": family.target_fps}
        torch.manual_seed(SEED)
        frames = np.asarray(self.pipe(**options).frames[0])
        return (frames * 255).astype(np.uint8)


def build(
    name: str, mode: str, family: Family, device: torch.device, directory: Path, light: bool = True
) -> Subject:
    """The subject of that name.

    Args:
        mode: for this package a name of :data:`MODES`, else a number type.
        directory: in the hub's layout; for diffusers in its own.
        light: stock is built with little time and memory, instead of in its own way.
    """
    if name == "ours":
        return Ours(family, mode, device, directory)
    if name == "stock":
        return Stock(family, mode, device, directory, light)
    return Diffusers(family, mode, device, directory)


@contextlib.contextmanager
def _light() -> Iterator[None]:
    """Lets stock models be built on mapped files, with no initial weights; what they compute stays.

    Otherwise two of stock's models and two of ours would not fit into memory side by side.
    """
    load, assign = torch.load, nn.Module.load_state_dict

    def assigned(self: nn.Module, state: Mapping[str, Tensor], strict: bool = True, **_: Any) -> Any:
        return assign(self, state, strict=strict, assign=True)

    drawn = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "load", functools.partial(load, mmap=True)))
        stack.enter_context(mock.patch.object(nn.Module, "load_state_dict", assigned))
        for name in drawn:
            stack.enter_context(mock.patch.object(nn.init, name, lambda tensor, *_, **__: tensor))
        yield


def _move(model: Any, device: torch.device) -> None:
    """A stock model that was built on the CPU, to where it is to run."""
    if device.type == "cpu":
        return
    model.device = model.clip_encoder.device = device
    for name, value in list(vars(model).items()) + list(getattr(model, "_modules", {}).items()):
        if isinstance(value, nn.Module):
            value.to(device)
        elif isinstance(value, Tensor):
            setattr(model, name, value.to(device))
