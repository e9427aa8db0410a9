"""How much memory a video takes on the device, and which mode of :mod:`.placement` fits.

Nothing is estimated by formula: the networks run on PyTorch's ``meta`` device, where tensors have shapes and
no contents, and the bytes that live at once are counted. What a library takes beside its tensors (CUDA's
context, cuDNN's workspaces, gaps between allocations) is not in it; :data:`BESIDE` allows for that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..compute.formats import cast
from ..compute.quantization import quantize, stored
from ..devices import encoder_dtype, free_memory
from ..encoders.clip import ImageEncoder, TextEncoder
from ..networks.autoencoder import AutoencoderKL
from ..networks.stunet import STUNet
from ..spec.families import Family
from ..spec.network import AutoencoderConfig, CLIPConfig, STUNetConfig
from ..spec.options import Options
from ..spec.runtime import MEMORY
from .chunking import chunked
from .placement import CHUNK_TOKENS, frugal, streamed_bytes
from .tiling import REACH

if TYPE_CHECKING:
    from ..checkpoints.directory import ModelDirectory

MODES = MEMORY[1:]
"""The modes that have a peak of their own, the fastest first."""

BESIDE = 1.1
"""Factor on a prediction before it counts as fitting."""

_counting = threading.RLock()
"""The networks that are counted on are kept, and computing in parts changes them for a while."""

_AMPLE = 100_000
"""Bytes per latent pixel of each frame and guidance branch that no U-Net of the family reaches."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The networks of a checkpoint, as configurations."""

    unet: STUNetConfig
    autoencoder: AutoencoderConfig
    clip: CLIPConfig
    reads_text: bool
    quantization: str | None = None
    """Of the U-Net's weights, see :mod:`modelscope_i2v.compute.quantization`."""

    @classmethod
    def full_size(cls, family: Family) -> Model:
        """The hub's."""
        return cls(family.unet, AutoencoderConfig(), CLIPConfig(), family.reads_text)

    @classmethod
    def of(cls, model: ModelDirectory, quantization: str | None = None) -> Model:
        """A checkpoint's."""
        return cls(model.unet, model.autoencoder, model.clip, model.family.reads_text, quantization)

    @property
    def reads_image(self) -> bool:
        return self.unet.image_tokens > 0


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that operations make and that live at once.

    Attributes:
        live, peak: now, and at most.
    """

    def __init__(self, *known: nn.Module) -> None:
        """``known``: their weights are not counted, nor are views of them."""
        super().__init__()
        self.live = self.peak = 0
        weights = (tensor for module in known for tensor in (*module.parameters(), *module.buffers()))
        self._seen = {tensor.untyped_storage()._cdata for tensor in stored(weights)}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen:
                    self._seen.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class _NoMatrix(TorchFunctionMode):
    """Attention as its fused kernels have it: no matrix of all pairs is ever in memory."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return function(*args, **(kwargs or {}))


def peak(
    model: Model, options: Options, dtype: torch.dtype, mode: str = "resident", device: str = "cuda"
) -> int:
    """Bytes on the device at most while a video is made.

    Args:
        options: of whom size, frames, batch size, guidance, chunks and tiles count.
        dtype: of the U-Net's and the autoencoder's weights.
        mode: one of :data:`MODES`.
        device: its type, which decides the type of CLIP's weights.
    """
    return max(phases(model, options, dtype, mode, device).values())


def phases(
    model: Model, options: Options, dtype: torch.dtype, mode: str = "resident", device: str = "cuda"
) -> dict[str, int]:
    """As :func:`peak`, by the network that works."""
    towers = encoder_dtype(torch.device(device), dtype)
    options = frugal(options) if mode == "minimal" else options
    rows = 2 if options.guidance_scale != 1 and not options.sequential_guidance else 1
    factor = model.autoencoder.factor
    canvas = model.unet.canvas(options.height // factor, options.width // factor)
    frames = min(options.decode_chunk_size, options.num_frames)
    sides = canvas
    if options.tile_size:
        sides = tuple(min(side, options.tile_size // factor + 2 * REACH) for side in canvas)
    chunk = CHUNK_TOKENS if mode == "minimal" else None
    batch = options.batch_size
    working = {
        "unet": denoising(
            model.unet, rows * batch, options.num_frames, *canvas, dtype, chunk, model.quantization
        ),
        "autoencoder": decoding(model.autoencoder, frames, *sides, dtype),
    }
    kinds = {"unet": dtype, "autoencoder": dtype}
    for name, read in (("text", model.reads_text), ("image", model.reads_image)):
        if read:
            kinds[name] = towers
            working[name] = encoding(name, model.clip, batch, towers)
    # Latents of the solver, the noise, and what the network predicts, in fp32.
    beside = 8 * batch * options.num_frames * canvas[0] * canvas[1] * model.unet.in_dim * 4
    weights = {name: weight(model, name, kind) for name, kind in kinds.items()}
    if mode == "resident":
        return {name: sum(weights.values()) + working[name] + beside for name in kinds}
    if mode == "minimal":
        weights["unet"] = streamed_bytes(_network(model, "unet", dtype))
    return {name: weights[name] + working[name] + beside for name in kinds}


def working_memory(model: Model, options: Options, dtype: torch.dtype) -> int:
    """Bytes in addition to its weights that a U-Net takes for a call."""
    factor = model.autoencoder.factor
    canvas = model.unet.canvas(options.height // factor, options.width // factor)
    rows = options.batch_size * (1 if options.sequential_guidance else 2)
    return denoising(model.unet, rows, options.num_frames, *canvas, dtype)


def fitting(
    model: Model, options: Options, dtype: torch.dtype, free: int, device: str = "cuda"
) -> str | None:
    """The fastest mode whose peak, with :data:`BESIDE`, is not above ``free`` bytes; None if none is."""
    for mode in MODES:
        if BESIDE * peak(model, options, dtype, mode, device) <= free:
            return mode
    return None


def choose(model: Model, options: Options, dtype: torch.dtype, device: torch.device, there: int = 0) -> str:
    """What ``memory="auto"`` means for a video: the fastest mode that fits, or the smallest.

    Args:
        there: bytes of the model's own weights that are on the device already.
    """
    free = free_memory(device)
    if free is None:
        return "resident"
    free += there
    if _ample(model, options, dtype) <= free:
        return "resident"  # without counting, which takes a second
    return fitting(model, options, dtype, free, device.type) or "minimal"


def _ample(model: Model, options: Options, dtype: torch.dtype) -> int:
    """Bytes that no video of these options reaches, from its size alone."""
    factor = model.autoencoder.factor
    rows, columns = model.unet.canvas(options.height // factor, options.width // factor)
    frames = 2 * options.batch_size * options.num_frames + 4 * options.decode_chunk_size
    names = ["unet", "autoencoder"] + ["text"] * model.reads_text + ["image"] * model.reads_image
    return rows * columns * frames * _AMPLE + sum(weight(model, name, dtype) for name in names)


def frames_that_fit(
    model: Model, options: Options, dtype: torch.dtype, mode: str, free: int, device: str = "cuda"
) -> int:
    """The most frames, up to ``options.num_frames``, whose peak with :data:`BESIDE` fits; 0 if none does."""

    def needs(frames: int) -> float:
        some = dataclasses.replace(options, num_frames=frames)
        return BESIDE * peak(model, some, dtype, mode, device)

    low, high = 0, options.num_frames + 1  # fits, and does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needs(middle) <= free else (low, middle)
    return low


def advice(
    model: Model, options: Options, dtype: torch.dtype, mode: str, free: int, device: str = "cuda"
) -> str:
    """A sentence for somebody whose memory ran out: what the video needs, and what would fit."""
    needs = peak(model, options, dtype, mode, device)
    size = f"{options.num_frames} frames of {options.width}x{options.height}"
    said = f"{size} need about {needs / 1e9:.1f} GB with memory={mode!r}, {free / 1e9:.1f} GB are free; "
    for smaller in MODES[MODES.index(mode) + 1 :]:
        if BESIDE * (least := peak(model, options, dtype, smaller, device)) <= free:
            return said + f"memory={smaller!r} needs about {least / 1e9:.1f} GB and fits."
    frames = frames_that_fit(model, options, dtype, "minimal", free, device)
    if frames:
        return said + f"at most {frames} frames of this size fit, with memory='minimal'."
    return said + "not even one frame of this size fits."


@functools.lru_cache(maxsize=64)
@torch.inference_mode()
def denoising(
    config: STUNetConfig,
    batch: int,
    frames: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    chunk: int | None = None,
    quantization: str | None = None,
) -> int:
    """Bytes beside its weights that one evaluation of a U-Net takes.

    Args:
        batch: rows that go through at once: videos, times two for both guidance branches.
        height, width: of the latents.
        chunk: see :func:`modelscope_i2v.memory.chunking.chunked`.
    """
    unet = _unet(config, dtype, quantization)
    conditions: dict[str, torch.Tensor] = {}
    # The most tokens that a context of one row has; image-to-video has but its image's.
    if not config.image_tokens or config.local_image:
        conditions["text"] = _meta(batch, 77, config.context_dim)
    if config.image_tokens:
        conditions["image_embeds"] = _meta(batch, 1, config.image_dim)
    if config.fps_embedding:
        conditions["fps"] = _meta(batch)
    if config.local_image:
        conditions["image_latents"] = _meta(batch, 4, height, width)
    latents, timesteps = _meta(batch, config.in_dim, frames, height, width), _meta(batch)
    parts = contextlib.nullcontext() if chunk is None else chunked(unet, chunk)
    with _counting, parts:
        return _counted(lambda: unet(latents, timesteps, unet.prepare(**conditions, frames=frames)), unet)


@functools.lru_cache(maxsize=64)
@torch.inference_mode()
def decoding(config: AutoencoderConfig, frames: int, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes beside its weights that decoding latents of that size takes; encoding takes less."""
    network = _autoencoder(config, dtype)
    latents = _meta(frames, config.embed_dim, height, width)
    return _counted(lambda: network.decode(latents), network)


@functools.lru_cache(maxsize=16)
@torch.inference_mode()
def encoding(name: str, config: CLIPConfig, batch: int, dtype: torch.dtype) -> int:
    """Bytes beside its weights that a tower of CLIP (``text`` or ``image``) takes."""
    network = _tower(name, config, dtype)
    if name == "text":
        given = torch.zeros(batch, 77, dtype=torch.long, device="meta")
    else:
        given = _meta(batch, 3, network.image_size, network.image_size).to(dtype)
    return _counted(lambda: network(given), network)


@functools.lru_cache(maxsize=64)
def weight(model: Model, name: str, dtype: torch.dtype) -> int:
    """Bytes of the weights of ``unet``, ``autoencoder``, ``text`` or ``image``."""
    return sum(tensor.nbytes for tensor in stored(_network(model, name, dtype).parameters()))


def _network(model: Model, name: str, dtype: torch.dtype) -> nn.Module:
    if name == "unet":
        return _unet(model.unet, dtype, model.quantization)
    if name == "autoencoder":
        return _autoencoder(model.autoencoder, dtype)
    return _tower(name, model.clip, dtype)


def _on_meta(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Keeps a few networks without contents, which take next to no memory and a while to build."""

    @functools.lru_cache(maxsize=8)
    def built(*given: Any) -> nn.Module:
        with torch.inference_mode(False), torch.device("meta"):
            return build(*given).eval().requires_grad_(False)

    return built


@_on_meta
def _unet(config: STUNetConfig, dtype: torch.dtype, quantization: str | None = None) -> nn.Module:
    return quantize(cast(STUNet(config), dtype), quantization)


@_on_meta
def _autoencoder(config: AutoencoderConfig, dtype: torch.dtype) -> nn.Module:
    return cast(AutoencoderKL(config), dtype)


@_on_meta
def _tower(name: str, config: CLIPConfig, dtype: torch.dtype) -> nn.Module:
    return (TextEncoder if name == "text" else ImageEncoder)(config).to(dtype)


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def _counted(compute: Callable[[], Any], network: nn.Module) -> int:
    with _NoMatrix(), Live(network) as live:
        compute()
    return live.peak
