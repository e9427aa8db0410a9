"""Stock classes, imported under shims that are taken away again.

ModelScope's own code stays as it is. What it needs of the surroundings to run on a CPU today is
supplied while it is imported and while its models are built.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

MODELS = "modelscope.models.multi_modal."
PIPELINES = "modelscope.pipelines.multi_modal."
SCHEDULE = MODELS + "image_to_video.utils.schedule"

PACKAGES = {
    "image-to-video": MODELS + "image_to_video",
    "video-to-video": MODELS + "video_to_video",
    "text-to-video-synthesis": MODELS + "video_synthesis",
}
MODEL_MODULES = {
    "image-to-video": MODELS + "image_to_video.image_to_video_model",
    "video-to-video": MODELS + "video_to_video.video_to_video_model",
    "text-to-video-synthesis": MODELS + "video_synthesis.text_to_video_synthesis_model",
}
PIPELINE_MODULES = {
    "image-to-video": PIPELINES + "image_to_video_pipeline",
    "video-to-video": PIPELINES + "video_to_video_pipeline",
    "text-to-video-synthesis": PIPELINES + "text_to_video_synthesis_pipeline",
}
UNET_MODULES = {
    "image-to-video": MODELS + "image_to_video.modules.unet_i2v",
    "video-to-video": MODELS + "video_to_video.modules.unet_v2v",
    "text-to-video-synthesis": MODELS + "video_synthesis.unet_sd",
}


def memory_efficient_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Any = None, op: Any = None
) -> Tensor:
    """What xFormers computes, which has no kernel for CPUs: q, k, v are [b, n, d].

    As a single head: PyTorch fuses that, with xFormers' own rounding, and computes [b, n, d] in fp32.
    """
    return F.scaled_dot_product_attention(*(t.unsqueeze(1) for t in (q, k, v)), attn_mask=attn_bias).squeeze(
        1
    )


def _module(name: str, **attributes: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    return module


def _fakes() -> dict[str, types.ModuleType]:
    """What stock imports and cannot use here: no kernel for CPUs, and a trainer for the sake of one name."""

    class ModelCheckpoint:
        """What Stable Diffusion's checkpoint holds beside its tensors."""

    ops = _module("xformers.ops", memory_efficient_attention=memory_efficient_attention)
    callback = _module("pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=ModelCheckpoint)
    fakes = [
        _module("xformers", ops=ops),
        ops,
        _module("pytorch_lightning"),
        _module("pytorch_lightning.callbacks"),
        callback,
    ]
    return {module.__name__: module for module in fakes}


@contextmanager
def shims() -> Iterator[None]:
    """What stock needs around it while it is imported and its models are built; undone at the end."""
    with ExitStack() as stack:
        stack.enter_context(_modules(_fakes()))
        stack.enter_context(mock.patch.object(torch, "load", _trusting(torch.load)))
        built = _sequence_first(open_clip.create_model_and_transforms)
        stack.enter_context(mock.patch.object(open_clip, "create_model_and_transforms", built))
        yield


@contextmanager
def _modules(fakes: dict[str, types.ModuleType]) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in fakes}
    sys.modules.update(fakes)
    try:
        yield
    finally:
        _put_back(before)


def _put_back(before: dict[str, types.ModuleType | None]) -> None:
    for name, module in before.items():
        if module is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = module


def _trusting(load: Any) -> Any:
    """``torch.load`` as it was before it refused pickles by default; the files are our own."""
    return lambda *args, **kwargs: load(*args, **{**kwargs, "weights_only": False})


def _sequence_first(create: Any) -> Any:
    """open_clip's factory, whose text towers take [n, b, d] as they did when stock was written."""

    @functools.wraps(create)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        model, *transforms = create(*args, **kwargs)
        for block in model.transformer.resblocks:
            block.attn.batch_first = False
        return model, *transforms

    return wrapper


@contextmanager
def _registries() -> Iterator[None]:
    """Lets classes register whatever is registered already, and forgets them afterwards."""
    from modelscope.models.builder import MODELS as models
    from modelscope.pipelines.builder import PIPELINES as pipelines

    before = [(r, {group: dict(names) for group, names in r._modules.items()}) for r in (models, pipelines)]
    for registry in (models, pipelines):
        registry._modules = {group: {} for group in registry._modules}
    try:
        yield
    finally:
        for registry, modules in before:
            registry._modules = modules


def _is_stock(name: str) -> bool:
    roots = (*PACKAGES.values(), *PIPELINE_MODULES.values())
    return any(name == root or name.startswith(root + ".") for root in roots)


@functools.cache
def load() -> dict[str, types.ModuleType]:
    """Every stock module of the three tasks by its full name, in copies of our own.

    ``sys.modules`` and ModelScope's registries are afterwards as they were before.
    """
    before = {name: module for name, module in sys.modules.items() if _is_stock(name)}
    for name in before:
        del sys.modules[name]
    try:
        with shims(), _registries():
            if importlib.util.find_spec(SCHEDULE) is None:  # since ModelScope 1.27 it is misspelled
                sys.modules[SCHEDULE] = importlib.import_module(SCHEDULE.replace("schedule", "shedule"))
            for name in (*MODEL_MODULES.values(), *PIPELINE_MODULES.values()):
                importlib.import_module(name)
        return {name: module for name, module in sys.modules.items() if _is_stock(name)}
    finally:
        for name in [name for name in sys.modules if _is_stock(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def model_module(task: str) -> types.ModuleType:
    """The module of a task's stock model class."""
    return load()[MODEL_MODULES[task]]


def pipeline_module(task: str) -> types.ModuleType:
    """The module of a task's stock pipeline class."""
    return load()[PIPELINE_MODULES[task]]


def utility(task: str, name: str) -> types.ModuleType:
    """A stock module by its name inside the task's package, such as ``utils.solvers_sdedit``."""
    return load()[f"{PACKAGES[task]}.{name}"]
