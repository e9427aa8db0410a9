"""LoRAs of a U-Net: loading, scaling and taking them away again. It needs neither PEFT nor diffusers."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..checkpoints.key_maps import IMAGE_CHANNELS, translate, unet_names
from ..compute.layers import Linear, Pointwise
from ..errors import CheckpointError, InputError
from ..networks.stunet import STUNet
from .branches import ADAPTABLE, Branch, attach, branches, detach
from .files import GENERIC, LoraFile, Pair, read_lora

_KOHYA = "lora_unet_"
_SHOWN = 3


class _Place(NamedTuple):
    """Where a pair of matrices belongs."""

    layer: str
    part: int = 0
    parts: int = 1
    """The file's layer is one of so many that are a single one here, one behind the other in its output."""
    halved: bool = False
    """diffusers' first convolution of I2VGen-XL, which sees the picture's channels once; here it is twice."""


def load_lora(
    unet: STUNet,
    path: str | Path,
    scale: float = 1.0,
    name: str | None = None,
    *,
    family: str | None = None,
) -> str:
    """Adds a LoRA to a network; several add up.

    Read are directories of PEFT, and files (``.safetensors``, or ``.bin`` without running what it says) of
    this package, of PEFT, of diffusers for its ``I2VGenXLUNet`` and ``UNet3DConditionModel``, and of
    kohya-ss's trainers for those.

    Args:
        unet: gets a branch beside each layer that the file has matrices for; of the type and on the device
            of the layer.
        path: the directory or the file.
        scale: its strength; 0 is none, and below 0 it does the contrary.
        name: what to call it later; by default the file's name, or the directory's.
        family: the network's; of a LoRA that fits but says it is for another, a warning tells.

    Returns:
        The name.

    Raises:
        InputError: for a scale that is no number, and a name that is taken.
        CheckpointError: for a path that is no LoRA, or one for another network, in part or whole. The
            network is then as before.
    """
    _check_scale(scale)
    path = Path(path)
    name = _name(path) if name is None else name
    if not isinstance(name, str) or not name:
        raise InputError(f"The LoRA's name is {name!r}; it must be a text that is not empty.")
    if name in loras(unet):
        raise InputError(
            f"A LoRA {name!r} is loaded already: give this one another name (name=…), or unload that one."
        )
    file = read_lora(path)
    made = _fitted(unet, file, name, scale)
    if family and file.family and file.family != family:
        warnings.warn(
            f"{file.path} was trained for a model of the family {file.family}, and this one is of the family "
            f"{family}: it fits, but may not do here what it does there.",
            stacklevel=2,
        )
    layers = dict(unet.named_modules())
    for place, branch in made:
        attach(layers[place.layer], branch)
    return name


def unload_lora(unet: nn.Module, name: str | None = None) -> None:
    """Takes a LoRA away, or all of them: the network then computes what it did before, to the last bit.

    Raises InputError for a name that is not loaded.
    """
    if name is not None:
        _check_name(unet, name)
    detach(unet, name)


def scale_lora(unet: nn.Module, name: str, scale: float) -> None:
    """Changes a LoRA's strength. Raises InputError for a name that is not loaded, or no number."""
    _check_name(unet, name)
    _check_scale(scale)
    for branch in branches(unet):
        if branch.name == name:
            branch.scale = scale


def loras(unet: nn.Module) -> dict[str, float]:
    """The names of a network's LoRAs, and their scales."""
    return {branch.name: branch.scale for branch in branches(unet)}


def _name(path: Path) -> str:
    """What a LoRA is called after its path: names that say nothing give way to the folder's."""
    path = path.absolute()
    if path.is_dir():
        return path.name
    return path.parent.name if path.stem in GENERIC else path.stem


def _check_scale(scale: float) -> None:
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise InputError(f"The LoRA's scale is {scale!r}; it must be a number, such as 1.0.")


def _check_name(unet: nn.Module, name: str) -> None:
    known = loras(unet)
    if name not in known:
        have = f"loaded are {', '.join(map(repr, known))}" if known else "none is loaded"
        raise InputError(f"There is no LoRA {name!r}: {have}.")


def _places(unet: STUNet) -> dict[str, _Place]:
    """The adaptable layers by the names that files have for them: the hub's, diffusers' and kohya-ss's."""
    table = unet_names(unet.config)
    places: dict[str, _Place] = {}
    theirs: dict[str, _Place] = {}
    for layer, module in unet.named_modules():
        if not isinstance(module, ADAPTABLE):
            continue
        places[layer] = _Place(layer)
        names = translate(layer, table)
        halved = unet.config.local_image and f"{layer}.weight" == IMAGE_CHANNELS
        for part, name in enumerate(names):
            theirs[name] = _Place(layer, part, len(names), halved)
    places = theirs | places
    return {_KOHYA + name.replace(".", "_"): place for name, place in places.items()} | places


def _fitted(unet: STUNet, file: LoraFile, name: str, scale: float) -> list[tuple[_Place, Branch]]:
    """The file's pairs as branches of the network's layers. Raises CheckpointError where they don't fit."""
    places, layers = _places(unet), dict(unet.named_modules())
    lost, misfits, made = [], [], []
    for key, pair in file.pairs.items():
        place = places.get(key)
        if place is None:
            lost.append(key)
            continue
        layer = layers[place.layer]
        pair = _flat(layer, pair)
        rank, (out, *inner) = len(pair.down), layer.weight.shape
        if isinstance(layer, Pointwise):
            inner = inner[:1]
        has = (pair.up.shape[0], *pair.down.shape[1:])
        right = (out // place.parts, *inner)
        if has != right or pair.up.shape[1:] != (rank, *[1] * (len(inner) - 1)):
            misfits.append(f"{key} is for a layer of the shape {list(has)}, and here it is {list(right)}")
            continue
        made.append((place, _branch(place, pair, name, scale)))
    if lost or misfits:
        raise CheckpointError(_explained(file, lost, misfits))
    return made


def _flat(layer: nn.Module, pair: Pair) -> Pair:
    """The matrices of a linear layer, which some files have as convolutions of 1×1, with two dimensions."""
    if not isinstance(layer, (Linear, Pointwise)):
        return pair
    down, up = (
        matrix.flatten(1) if matrix.shape[2:].numel() == 1 else matrix for matrix in (pair.down, pair.up)
    )
    return Pair(down, up, pair.factor)


def _branch(place: _Place, pair: Pair, name: str, scale: float) -> Branch:
    # Copies, so that the file is free to be replaced.
    down, up = (matrix.detach().to(torch.float32, copy=True) for matrix in (pair.down, pair.up))
    if place.halved:
        down[:, down.shape[1] // 2 :] *= 0.5
    if place.parts > 1:
        whole = up.new_zeros(place.parts * len(up), up.shape[1])
        whole[place.part * len(up) : (place.part + 1) * len(up)] = up
        up = whole
    return Branch(name, down, up, pair.factor, scale)


def _explained(file: LoraFile, lost: list[str], misfits: list[str]) -> str:
    total = len(file.pairs)
    about = f" (of the family {file.family})" if file.family else ""
    reasons = []
    if lost:
        count = "none" if len(lost) == total else f"{total - len(lost):,}"
        reasons.append(
            f"this one has {count} of the {total:,} layers that it is for; it has no {_first(lost)}"
        )
    if misfits:
        reasons.append(f"{len(misfits):,} of its layers are of another size: {_first(misfits, '; ')}")
    return (
        f"{file.path} is a LoRA for another network{about}: {'; and '.join(reasons)}. Nothing was "
        "changed; load it into the model that it was trained on."
    )


def _first(items: list[str], separator: str = ", ") -> str:
    more = len(items) - _SHOWN
    return separator.join(items[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
