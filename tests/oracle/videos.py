"""Stock models and what their pipelines make, up to the frames that would be encoded."""

from __future__ import annotations

import copy
import functools
import types
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.spec.network import AutoencoderConfig, CLIPConfig

from . import networks, stock

CLASSES = {
    "image-to-video": ("ImageToVideo", "ImageToVideoPipeline"),
    "video-to-video": ("VideoToVideo", "VideoToVideoPipeline"),
    "text-to-video-synthesis": ("TextToVideoSynthesis", "TextToVideoSynthesisPipeline"),
}


def stock_model(directory: Path, task: str) -> Any:
    """The whole stock model of a checkpoint directory, on the CPU and in fp32.

    Sizes that stock writes as constants are those of the directory's configuration. The process's
    random numbers and stock's own settings stay as they were.
    """
    model = ModelDirectory.open(directory, task)
    module = stock.model_module(task)
    cls = getattr(module, CLASSES[task][0])
    settings = getattr(module, "cfg", None)
    with ExitStack() as stack:
        stack.enter_context(stock.shims())
        patch = functools.partial(_patch, stack, module)
        if model.unet != model.family.unet:
            patch(networks.UNETS[task], lambda *_, **__: networks.build_unet(task, model.unet))
        if model.autoencoder != AutoencoderConfig():
            patch("AutoencoderKL", functools.partial(_autoencoder, module.AutoencoderKL, model.autoencoder))
        if model.clip != CLIPConfig():
            stack.enter_context(networks.clip_architecture(model.clip))
        if settings is not None:
            stack.enter_context(mock.patch.dict(settings, copy.deepcopy(dict(settings)), clear=True))
            settings.UNet.input_dim = model.unet.image_dim
            patch("setup_seed", lambda seed: None)
        else:
            patch("FrozenOpenCLIPEmbedder", functools.partial(module.FrozenOpenCLIPEmbedder, device="cpu"))
        stack.enter_context(mock.patch.object(nn.Module, "half", lambda self: self))
        made = cls(str(directory), device="cpu")
        if settings is not None:
            made.cfg = copy.deepcopy(settings)
        return made


def _patch(stack: ExitStack, module: types.ModuleType, name: str, value: Any) -> None:
    stack.enter_context(mock.patch.object(module, name, value))


def _autoencoder(
    cls: type, config: AutoencoderConfig, ddconfig: Any = None, embed_dim: int = 4, *args: Any, **kwargs: Any
) -> nn.Module:
    return cls(networks.ddconfig(config), config.embed_dim, *args, **kwargs)


def stock_video(
    model: Any,
    task: str,
    given: Any,
    seed: int,
    *,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """The frames that stock's pipeline would encode: uint8 [f, h, w, 3].

    Args:
        model: of :func:`stock_model`.
        given: what the pipeline is called with.
        seed: of PyTorch's global generator, right before the call.
        steps: in place of the constant that stock writes.
        size: of video-to-video's frames (height, width), in place of 720×1280.
    """
    module = stock.pipeline_module(task)
    cls = getattr(module, CLASSES[task][1])
    pipe = cls.__new__(cls)  # its constructor looks for preprocessors and devices; none are needed
    pipe.model = model
    with ExitStack() as stack:
        if steps is not None:
            names = (
                ("sample", "steps") if task == "video-to-video" else ("ddim_sample_loop", "ddim_timesteps")
            )
            loop = functools.partial(_with, getattr(model.diffusion, names[0]), {names[1]: steps})
            stack.enter_context(mock.patch.object(model.diffusion, names[0], loop))
        if size is not None:
            resize = types.SimpleNamespace(
                interpolate=lambda x, size, mode, wanted=size: F.interpolate(x, size=wanted, mode=mode)
            )
            stack.enter_context(mock.patch.object(stock.model_module(task), "F", resize))
        torch.manual_seed(seed)
        ready = pipe.preprocess(given)
        with torch.no_grad():
            video = pipe.forward(ready)["video"]
    return np.stack(module.tensor2vid(video))


def _with(function: Any, changes: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **{**kwargs, **changes})
