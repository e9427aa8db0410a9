"""From any layout of a checkpoint to any other, tensor by tensor."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..encoders.clip import ImageEncoder, TextEncoder
from ..errors import CheckpointError, InputError, OutputError
from ..files import replace_file, replace_folder
from ..networks.autoencoder import AutoencoderKL
from ..networks.stunet import STUNet
from ..progress import bar
from ..spec.families import TEXT_TO_VIDEO
from .diffusers_files import check_convertible, write_configurations
from .diffusers_folder import MODEL_INDEX, layouts
from .directory import CONFIGURATION, ModelDirectory
from .hub_files import write_configuration
from .key_maps import Layout
from .kinds import Part, identify
from .load import AUTOENCODER_UNUSED, differences, explain
from .tensors import TensorFile, read_tensors, select
from .writers import Planned, write_safetensors, write_torch

Target = Literal["hub", "diffusers", "safetensors"]

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""The types that weights are converted to."""

PARTS: tuple[Part, ...] = ("unet", "clip", "autoencoder")

_KEYS: dict[Part, tuple[str, ...]] = {
    "unet": ("input_blocks.0.0.weight", "out.2.weight"),
    "clip": ("visual.conv1.weight", "token_embedding.weight"),
    "autoencoder": ("decoder.conv_in.weight", "post_quant_conv.weight"),
}
"""By these a part's prefix is found in a file that stands alone."""


class _File(NamedTuple):
    """A weights file to be written, and how to write it."""

    path: Path
    tensors: list[Planned]
    write: Callable[..., None]


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    to: Target = "hub",
    dtype: str | None = None,
    as_published: bool = False,
    force: bool = False,
    progress: bool | None = None,
) -> Path:
    """Writes a checkpoint in another layout, or another type of numbers.

    No more than a few tensors are in memory at a time. What was written is read again and compared
    before it gets its name; where anything fails, nothing is left behind.

    Args:
        src: a model directory, a diffusers folder or a single weights file of the hub's layout.
        dst: the directory to be made; for a single file, the file.
        to: ``hub`` writes ``configuration.json`` and files of ``torch.save`` as on the hub; ``safetensors``
            the same with ``.safetensors`` files, which load faster; ``diffusers`` a folder for
            ``I2VGenXLPipeline`` or ``TextToVideoSDPipeline``.
        dtype: ``fp16``, ``bf16`` or ``fp32``; None: each tensor's own.
        as_published: for I2VGen-XL in diffusers' layout: write the first convolution as in the public
            folder, with which diffusers' output is not the original's. By default its picture channels are
            doubled (diffusers adds them once, the original twice), and unet/config.json says so.
        force: an existing ``dst`` is replaced.
        progress: see :func:`modelscope_i2v.progress.bar`.

    Returns:
        ``dst``.

    Raises:
        InputError: for an option that is not known or does not fit the source.
        CheckpointError: for a source that cannot be read, or has no place in the wanted layout.
        OutputError: for a target that exists or cannot be written, a full disk among others.
    """
    src, dst = Path(src), Path(dst)
    if to not in get_args(Target):
        raise InputError(f"to={to!r} is no layout; it can be {', '.join(get_args(Target))}.")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is not known; it can be {', '.join(DTYPES)}.")
    if not os.path.exists(src):
        raise CheckpointError(f"There is no file or directory {src}.")
    single = not os.path.isdir(src)
    if single and to == "diffusers":
        raise InputError(
            f"{src} is one file; to='diffusers' needs the model directory around it, or use to='safetensors'."
        )
    if as_published and to != "diffusers":
        raise InputError(f"as_published is for to='diffusers'; this is to={to!r}.")
    _check_target(src, dst, single, force)
    wanted = None if dtype is None else DTYPES[dtype]
    with replace_file(dst) if single else replace_folder(dst) as place:
        if single:
            files = [_single(src, place, to, wanted)]
        elif to == "diffusers":
            files = _to_diffusers(ModelDirectory.open(src), place, wanted, as_published)
        else:
            files = _to_hub(ModelDirectory.open(src), place, to, wanted)
        _write(files, dst, progress)
        del files  # open maps would keep Windows from moving what was written
    return dst


def _check_target(src: Path, dst: Path, single: bool, force: bool) -> None:
    if not os.path.isdir(dst.absolute().parent):
        raise OutputError(f"The folder {dst.absolute().parent} of the target does not exist: make it first.")
    if src.resolve() == dst.resolve() or dst.resolve() in src.resolve().parents:
        raise OutputError(f"The target {dst} holds the source {src}: give it a name of its own.")
    if not os.path.exists(dst):
        return
    what, other = ("file", "directory") if dst.is_file() else ("directory", "file")
    if dst.is_dir() == single:
        raise OutputError(f"{dst} is a {what}, and a {other} would be written there: choose another name.")
    if not force:
        raise OutputError(f"The {what} {dst} exists: choose another name, or have it replaced (--force).")
    of_a_model = any((dst / name).is_file() for name in (CONFIGURATION, MODEL_INDEX))
    if dst.is_dir() and any(dst.iterdir()) and not of_a_model:
        raise OutputError(f"{dst} is no model directory, so it is not replaced, not even by force.")


def _write(files: Sequence[_File], dst: Path, progress: bool | None) -> None:
    """Writes all files, then reads them again and compares."""
    total = sum(planned.size for file in files for planned in file.tensors)
    free = shutil.disk_usage(dst.absolute().parent).free
    if total > free:
        raise OutputError(
            f"{dst} needs {total / 1e9:.2f} GB; its disk has {free / 1e9:.2f} GB left. Nothing was written."
        )
    with bar(2 * total, "Converting", progress, "B") as done:
        for file in files:
            file.path.parent.mkdir(exist_ok=True)
            file.write(file.path, file.tensors, tick=done.update)
            _verify(file, dst, done.update)


def _verify(file: _File, dst: Path, tick: Callable[[int], Any]) -> None:
    written = read_tensors(file.path)
    found = select(written.tensors, [planned.name for planned in file.tensors])
    for planned in file.tensors:
        tensor = found.pop(planned.name, None)
        if tensor is None or tensor.dtype != planned.dtype or not _alike(tensor, planned.make()):
            raise OutputError(
                f"{planned.name} of {dst} was not read as it was written: the disk may fail; try another."
            )
        planned.done()
        written.release(tensor)
        tick(planned.size)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Bit by bit, so that NaN equals itself."""
    if one.shape != other.shape:
        return False
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(one, other)


def _plan(source: TensorFile, tensors: dict[str, Tensor], dtype: torch.dtype | None) -> list[Planned]:
    """A file's tensors under the names that they have in ``tensors``, to be cast when their turn comes."""
    return [
        Planned(
            name,
            tuple(tensor.shape),
            _type(tensor, dtype),
            partial(_cast, source.path, name, tensor, _type(tensor, dtype)),
            partial(source.release, tensor),
        )
        for name, tensor in tensors.items()
    ]


def _type(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _cast(source: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.to(dtype)
    if cast.dtype == torch.float16 and not torch.equal(torch.isfinite(cast), torch.isfinite(tensor)):
        raise CheckpointError(
            f"{source}: {name} has numbers beyond 65504, the largest of fp16: convert it to bf16 instead."
        )
    return cast


def _single(src: Path, place: Path, to: Target, dtype: torch.dtype | None) -> _File:
    """One weights file of the hub's layout, without what its network has no use for."""
    file = read_tensors(src)
    kind = identify(file.tensors)
    if kind is None or kind.part is None:
        what = kind.name if kind else "of no kind that is known here"
        raise CheckpointError(
            f"{src} is {what}, and cannot be converted alone. A component of a diffusers folder is converted "
            "with the whole folder."
        )
    tensors = select(file.tensors, _KEYS[kind.part])
    if kind.part == "autoencoder":
        tensors = {key: value for key, value in tensors.items() if not key.startswith(AUTOENCODER_UNUSED)}
    return _File(place, _plan(file, tensors, dtype), _writer(kind.part, to, file.step, file.step is not None))


def _writer(part: Part, to: Target, step: int | None, nested: bool) -> Callable[..., None]:
    """Writes as the hub's files are: ``nested`` for all U-Nets but text-to-video's."""
    if to == "safetensors":
        return partial(write_safetensors, step=step)
    if part == "autoencoder":
        return partial(write_torch, nest="state_dict", prefix="first_stage_model.")
    return partial(write_torch, nest="state_dict", step=step) if part == "unet" and nested else write_torch


def _to_hub(model: ModelDirectory, place: Path, to: Target, dtype: torch.dtype | None) -> list[_File]:
    family = model.family
    usual = dict(zip(PARTS, (family.unet_file, family.clip_file, family.autoencoder_file)))
    named = dict(zip(PARTS, (model.unet_path.name, model.clip_path.name, model.autoencoder_path.name)))
    files, names = [], {}
    for part in PARTS:
        name = Path(named[part] if model.folder is None else usual[part])
        if to == "safetensors":
            name = name.with_suffix(".safetensors")
        elif name.suffix == ".safetensors":
            name = name.with_suffix(Path(usual[part]).suffix)
        file, tensors = _read(model, part, _needed(model, part))
        names[part] = name.name
        write = _writer(part, to, file.step, nested=family.name != TEXT_TO_VIDEO.name)
        files.append(_File(place / name.name, _plan(file, tensors, dtype), write))
    write_configuration(model, place, names)
    return files


def _to_diffusers(
    model: ModelDirectory, place: Path, dtype: torch.dtype | None, as_published: bool
) -> list[_File]:
    check_convertible(model.family, model.unet, model.autoencoder, model.path)
    doubled = model.unet.local_image and not as_published
    size = tuple(model.defaults.get(side, getattr(model.family, side)) for side in ("height", "width"))
    write_configurations(
        place, model.family, model.unet, model.autoencoder, model.clip, size=size, doubled=doubled
    )
    files = []
    for part in PARTS:
        held = layouts(model, part, doubled)
        file, tensors = _read(
            model, part, {key: shape for layout in held for key, shape in layout.shapes.items()}
        )
        for layout in held:
            planned = [
                Planned(
                    name,
                    tuple(shape),
                    _type(tensors[key], dtype),
                    partial(_theirs, layout, key, tensors[key], name, file.path, _type(tensors[key], dtype)),
                    partial(file.release, tensors[key]),
                )
                for key in layout.shapes
                for name, shape in layout.parts(key)
            ]
            name = "model" if layout.component.endswith("encoder") else "diffusion_pytorch_model"
            files.append(_File(place / layout.component / f"{name}.safetensors", planned, write_safetensors))
    return files


def _theirs(layout: Layout, key: str, tensor: Tensor, name: str, source: Path, dtype: torch.dtype) -> Tensor:
    return _cast(source, key, layout.to_theirs(key, tensor)[name], dtype)


def _needed(model: ModelDirectory, part: Part) -> dict[str, torch.Size]:
    """The tensors without which a part's network cannot be built, with their shapes."""
    with torch.device("meta"):
        networks: list[torch.nn.Module]
        if part == "unet":
            networks = [STUNet(model.unet)]
        elif part == "autoencoder":
            networks = [AutoencoderKL(model.autoencoder)]
        else:
            networks = [TextEncoder(model.clip)] if model.family.reads_text else []
            networks += [ImageEncoder(model.clip)] if model.family.reads_image else []
    return {key: tensor.shape for network in networks for key, tensor in network.state_dict().items()}


def _read(
    model: ModelDirectory, part: Part, expected: Mapping[str, torch.Size]
) -> tuple[TensorFile, dict[str, Tensor]]:
    """A part's file, and its tensors by the hub's names: the expected ones, and of CLIP whatever there is."""
    file = model.read(part)
    tensors = select(file.tensors, expected)
    unused = tuple(tensors) if part == "clip" else AUTOENCODER_UNUSED if part == "autoencoder" else ()
    meta = {key: torch.empty(shape, device="meta") for key, shape in expected.items()}
    if problems := differences(meta, tensors, unused):
        raise CheckpointError(explain(problems, file.tensors, file.path))
    return file, {key: value for key, value in tensors.items() if part == "clip" or key in expected}
