"""LoRA on the training side: adapters that PEFT puts into a network, and the files of them.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685). The package ``peft`` is
needed here and nowhere else; the extra ``train`` brings it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.writers import Planned, write_safetensors
from ..compute.layers import Pointwise
from ..errors import InputError, OutputError
from ..files import reason, replace_file
from .branches import ADAPTABLE
from .files import CONFIG, METADATA, WEIGHTS

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers that get an adapter unless others are named: all projections of all attentions, those over a
frame's pixels and those over time."""

FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
"""More of them, for adapters that must learn more: the transformers' feed-forward layers."""

_NAME = "default"
_PREFIX = "base_model.model."


def add_lora(
    unet: nn.Module,
    rank: int = 16,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """Freezes a network and puts trainable low-rank adapters into it, by PEFT.

    An adapter adds ``alpha / rank · B(A(x))`` to its layer's output. B begins as zeros, so at first the
    network computes what it did before. What there is to train are the parameters, fp32, that have
    ``requires_grad`` afterwards. In ``state_dict`` an adapted layer's own weight then has ``base_layer.``
    in its key.

    Args:
        unet: changed in place. Its weights may be of any type.
        rank: of the matrices, from 1 up.
        alpha: as above; by default the rank, hence a factor of 1.
        targets: ends of the names of the layers that get one (``"to_q"``, ``"ff.net.2"``), or whole names;
            by default :data:`TARGETS`.
        dropout: of the adapters' input, from 0 up to but not including 1.

    Returns:
        The network.

    Raises:
        InputError: without PEFT, for a number that is out of its range, for a network that has adapters
            already, and for a target that names no layer or one that can have no adapter.
    """
    if type(rank) is not int or rank < 1:
        raise InputError(f"The LoRA's rank is {rank!r}; it must be a whole number from 1 up.")
    if alpha is None:
        alpha = rank
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < float("inf"):
        raise InputError(f"The LoRA's alpha is {alpha!r}; it must be a number above 0.")
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise InputError(f"The LoRA's dropout is {dropout!r}; it must be a number from 0 up, below 1.")
    names = _layers(unet, TARGETS if targets is None else targets)
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import Linear as LinearAdapter
    except ImportError as error:
        raise InputError(
            "Training a LoRA needs the package peft: pip install modelscope-i2v[train]."
        ) from error
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names)
    # These are linear layers that the hub's files call convolutions; PEFT would convolve.
    config._register_custom_module({Pointwise: LinearAdapter})
    inject_adapter_in_model(config, unet, _NAME)
    unet.peft_config[_NAME].target_modules = list(TARGETS if targets is None else targets)
    return unet


def _layers(unet: nn.Module, targets: Sequence[str]) -> list[str]:
    """The full names of the layers that are meant. Raises InputError."""
    if isinstance(targets, str) or not targets or not all(isinstance(one, str) and one for one in targets):
        raise InputError(f"The LoRA's targets are {targets!r}; they must be a list of layers' names.")
    if any(".lora_A." in name for name, _ in unet.named_parameters()):
        raise InputError("The network has adapters in training already; add them to a newly loaded one.")
    found = []
    for target in targets:
        named = {
            name: module
            for name, module in unet.named_modules()
            if (name == target or name.endswith(f".{target}")) and not isinstance(module, nn.Identity)
        }
        if not named:
            raise InputError(
                f"The LoRA's target {target!r} is the name of no layer of this network; "
                f"{', '.join(map(repr, (*TARGETS, *FEED_FORWARD)))} are."
            )
        for name, module in named.items():
            if type(module) not in ADAPTABLE:  # PEFT's matrices are of the layer's own class
                kinds = ", ".join(kind.__name__ for kind in ADAPTABLE)
                raise InputError(
                    f"The LoRA's target {target!r} means {name}, a {type(module).__name__}; only layers of "
                    f"the kinds {kinds} can have an adapter."
                )
        found += named
    return list(dict.fromkeys(found))


def save_lora(
    unet: nn.Module,
    path: str | Path,
    *,
    family: str | None = None,
    base: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes the adapters that :func:`add_lora` put into a network, in PEFT's layout.

    The configuration stands in the safetensors file's header too, so that this file by itself is enough.
    A file that was there is replaced in one step: after a failure or a kill, the old one is still whole.

    Args:
        path: a directory, made if it is missing; or a file that ends in ``.safetensors``.
        family: the name of the network's family, for people and for errors.
        base: the checkpoint that it was trained on: an id on the hub, or a directory, of which the file gets
            the last name alone.
        weights: tensors to write in place of the network's parameters of the same names (as
            ``named_parameters`` has them), such as their moving averages.
        dtype: the type to write; by default the parameters' own.

    Returns:
        ``path``.

    Raises:
        InputError: for a network without such adapters.
        OutputError: for a place that cannot be written.
    """
    path = Path(path)
    parameters = {name: value for name, value in unet.named_parameters() if _is_adapters(name)}
    if not parameters:
        raise InputError("The network has no adapters to save; add_lora puts them in.")
    plans = []
    for name, parameter in parameters.items():
        value = (weights or {}).get(name, parameter).detach()
        value = value.to("cpu", dtype or value.dtype)
        key = _PREFIX + name.replace(f".{_NAME}.", ".")
        plans.append(Planned(key, tuple(value.shape), value.dtype, lambda value=value: value))
    if base is not None and (os.path.isabs(base) or os.path.exists(base)):
        base = Path(base).absolute().name
    config = _plain(unet.peft_config[_NAME].to_dict())
    config |= {"base_model_name_or_path": base, "inference_mode": True}
    metadata = {METADATA: json.dumps(config), "family": family, "base": base}
    metadata = {key: value for key, value in metadata.items() if value is not None}

    single = path.suffix == ".safetensors"
    try:
        (path.parent if single else path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The LoRA {path} cannot be written: {reason(error)}.") from error
    with replace_file(path if single else path / WEIGHTS) as part:
        write_safetensors(part, plans, metadata=metadata)
    if not single:
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        with replace_file(path / CONFIG) as part:
            part.write_text(text, encoding="utf-8", newline="\n")
    return path


def _is_adapters(name: str) -> bool:
    return f".lora_A.{_NAME}." in name or f".lora_B.{_NAME}." in name


def _plain(value: Any) -> Any:
    """A configuration as JSON has it: sets as sorted lists, names of enumerations as texts."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)
