"""LoRA files of several origins, read as pairs of low-rank matrices by the names of their layers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoints.kinds import identify
from ..checkpoints.sections import Section
from ..checkpoints.tensors import read_metadata, read_tensors
from ..errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's names of the two files in an adapter's directory."""

METADATA = "lora_adapter_metadata"
"""Where diffusers, and this package after it, puts the configuration in a safetensors file's header."""

GENERIC = ("adapter_model", "pytorch_lora_weights")
"""Names that many LoRA files have, PEFT's and diffusers'; a directory's weights are called so."""

_SUFFIXES = (".safetensors", ".bin")
_PEFT_ALPHA = 8
"""What PEFT takes where its configuration names no alpha."""

# How the two matrices of a layer are called: by PEFT (a trainer's own state names the adapter too), by
# diffusers before and after its attention processors, by kohya-ss's trainers.
_MATRIX = re.compile(
    r"(?P<layer>.+?)"
    r"(?:\.lora_(?P<peft>[AB])(?:\.\w+)?|(?:\.lora|_lora|\.lora_linear_layer)\.(?P<theirs>down|up)"
    r"|\.lora_(?P<kohya>down|up))\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:\.lora|_lora)?\.alpha")
_PREFIXES = ("base_model.model.", "unet.")

_UNKNOWN = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "alora_invocation_tokens", "arrow_config"),
    *("kasa_config", "monteclora_config", "layer_replication", "modules_to_save", "target_parameters"),
    "trainable_token_indices",
)
"""Settings of PEFT that mean another computation."""

_REWRITING = ("pissa", "olora", "corda")
"""Initialisations that change the layer's own weight too."""


class Pair(NamedTuple):
    """What a LoRA adds to a layer's output: ``factor · up(down(x))``."""

    down: Tensor
    """[rank, in], and a convolution's kernel size behind."""
    up: Tensor
    """[out, rank], and as many ones behind."""
    factor: float
    """alpha / rank, or what else the file's configuration makes of the two."""


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds; which network it is for, nobody has asked yet."""

    path: Path
    pairs: dict[str, Pair]
    """By the layers' names in the file, without their common prefixes."""
    family: str | None
    """The family that it was trained for, where the file tells."""


def read_lora(path: str | Path) -> LoraFile:
    """Reads a PEFT directory, or a single file in the layout of PEFT, diffusers or kohya-ss.

    Raises:
        CheckpointError: for a file that is missing, damaged or no LoRA, and for one that needs more than
            low-rank matrices beside the layers (DoRA, biases, whole layers).
    """
    path = _weights(Path(path))
    tensors = read_tensors(path).tensors
    metadata = read_metadata(path)
    config = _config(path, metadata)
    matrices: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    other = []
    for key, tensor in tensors.items():
        if matrix := _MATRIX.fullmatch(key):
            side = matrix["peft"] or matrix["theirs"] or matrix["kohya"]
            side = {"A": "down", "B": "up"}.get(side, side)
            matrices.setdefault(_layer(matrix["layer"]), {})[side] = tensor
        elif (alpha := _ALPHA.fullmatch(key)) and tensor.numel() == 1:
            alphas[_layer(alpha["layer"])] = float(tensor)
        else:
            other.append(key)
    if not matrices:
        kind = identify(tensors)
        guess = f" It looks like {kind.name}." if kind else ""
        raise CheckpointError(f"{path} is no LoRA: there are no low-rank matrices in it.{guess}")
    if other:
        raise CheckpointError(
            f"{path} is more than a LoRA: it also holds {other[0]}"
            + (f" and {len(other) - 1:,} more" if len(other) > 1 else "")
            + ". Only pairs of low-rank matrices are applied here; not DoRA, biases or whole layers."
        )
    pairs = {layer: _pair(path, layer, found, alphas, config) for layer, found in matrices.items()}
    return LoraFile(path, pairs, metadata.get("family"))


def _weights(path: Path) -> Path:
    """The weights file that ``path`` means."""
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"There is no LoRA {path}: neither a file nor a directory.")
        return path
    for name in GENERIC:
        for suffix in _SUFFIXES:
            if (path / (name + suffix)).is_file():
                return path / (name + suffix)
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if len(found) != 1:
        several = f"there are several: {', '.join(file.name for file in found)}. Name one of them"
        none = f"there is no {WEIGHTS} in it. Name the directory or file of a LoRA"
        raise CheckpointError(f"{path} is a directory, and {several if found else none}.")
    return found[0]


def _layer(name: str) -> str:
    """A layer's name without prefixes, and as it is where an attention processor once stood before it."""
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if ".processor." in name:
        name = name.replace(".processor.", ".")
        name += ".0" if name.endswith(".to_out") else ""
    return name


def _config(path: Path, metadata: Mapping[str, str]) -> Section | None:
    """PEFT's configuration, beside the file or in its header; None where there is none."""
    beside = path.with_name(CONFIG)
    if path.stem == GENERIC[0] and beside.is_file():
        config = Section.read(beside)
    elif METADATA in metadata:
        try:
            values = json.loads(metadata[METADATA])
        except ValueError as error:
            raise CheckpointError(f"{path}: its header's {METADATA} is no valid JSON: {error}.") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: its header's {METADATA} should be a JSON object.")
        values = {key.removeprefix("unet."): value for key, value in values.items()}
        config = Section(values, "", path)
    else:
        return None
    if config.values.get("peft_type", "LORA") != "LORA":
        raise config.error("peft_type", "'LORA': no other kind of adapter is applied here")
    for key in _UNKNOWN:
        if config.values.get(key):
            raise config.error(key, "off: what it adds to a LoRA is not computed here")
    start = config.values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_REWRITING):
        raise config.error(
            "init_lora_weights", "another: this one changes the model's own weights. Convert it by PEFT first"
        )
    return config


def _pair(
    path: Path,
    layer: str,
    found: Mapping[str, Tensor],
    alphas: Mapping[str, float],
    config: Section | None,
) -> Pair:
    if len(found) != 2:
        lost = "second (up, B)" if "down" in found else "first (down, A)"
        raise CheckpointError(f"{path} is incomplete: the {lost} matrix of {layer} is missing.")
    down, up = found["down"], found["up"]
    if min(down.ndim, up.ndim) < 2 or not down.is_floating_point() or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{path}: the matrices of {layer}, {list(down.shape)} and {list(up.shape)}, make no pair: they "
            "should be [rank, in] and [out, rank]."
        )
    if not (down.isfinite().all() and up.isfinite().all()):
        raise CheckpointError(f"{path} is damaged: there is NaN or infinity in its matrices of {layer}.")
    rank = len(down)
    if rank == 0:
        raise CheckpointError(f"{path}: the matrices of {layer} are of rank 0.")
    values: Mapping[str, Any] = config.values if config else {}
    alpha = alphas.get(layer)
    if alpha is None and config is not None:
        alpha = _alpha(config, layer)
    if alpha is None:
        alpha = rank
    return Pair(down, up, alpha / (math.sqrt(rank) if values.get("use_rslora") else rank))


def _alpha(config: Section, layer: str) -> float:
    """What PEFT's configuration says for a layer."""
    patterns = config.section("alpha_pattern")
    for pattern in patterns.values:  # the ends of names, as regular expressions; the first that fits counts
        try:
            fits = re.fullmatch(rf"(.*\.)?({pattern})", layer)
        except re.error as error:
            raise config.error(
                "alpha_pattern", f"of regular expressions; {pattern!r} is none: {error}"
            ) from None
        if fits:
            alpha = patterns.number(pattern)
            break
    else:
        alpha = config.number("lora_alpha")
    return _PEFT_ALPHA if alpha is None else alpha
