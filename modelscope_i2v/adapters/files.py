"""LoRA files of several origins, read as pairs of low-rank matrices by the names of their layers."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoints.kinds import identify
from ..checkpoints.sections import Section
from ..checkpoints.tensors import read_tensors
from ..errors import CheckpointError
from ..files import parse_json, reason

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's names of the two files in an adapter's directory."""

METADATA = "lora_adapter_metadata"
"""Where diffusers, and this package after it, puts the configuration in a safetensors file's header."""

GENERIC = ("adapter_model", "pytorch_lora_weights")
"""Names that many LoRA files have, PEFT's and diffusers'; a directory's weights are called so."""

_SUFFIXES = (".safetensors", ".bin")
_PEFT_ALPHA = 8
"""What PEFT takes where its configuration names no alpha."""
_MOST_ALPHA = 1e6
"""Beyond it a LoRA could only make noise."""

# How the two matrices of a layer are called: by PEFT (a trainer's own state names the adapter too), by
# diffusers before and after its attention processors, by kohya-ss's trainers.
_MATRIX = re.compile(
    r"(?P<layer>.+?)"
    r"(?:\.lora_(?P<peft>[AB])(?:\.\w+)?|(?:\.lora|_lora|\.lora_linear_layer)\.(?P<theirs>down|up)"
    r"|\.lora_(?P<kohya>down|up))\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:\.lora|_lora)?\.alpha")
_PIECE = re.compile(r"\^?(?:[\w.-]|\\\.)*")
"""Of a pattern that stands for layers' names."""
_WILD = 200
"""Patterns with ``.*`` that a file may have."""
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
    file = read_tensors(path)
    tensors, metadata = file.tensors, file.metadata
    config = _config(path, metadata)
    matrices: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    other = []
    for key, tensor in tensors.items():
        if matrix := _MATRIX.fullmatch(key):
            side = matrix["peft"] or matrix["theirs"] or matrix["kohya"]
            side = {"A": "down", "B": "up"}.get(side, side)
            matrices.setdefault(_layer(matrix["layer"]), {})[side] = tensor
        elif (alpha := _ALPHA.fullmatch(key)) and tensor.numel() == 1 and not tensor.is_complex():
            value = float(tensor)
            if not 0 <= value <= _MOST_ALPHA:  # NaN fails this too
                raise CheckpointError(f"{path}: {key} is {value:g} and should be from 0 to {_MOST_ALPHA:g}.")
            alphas[_layer(alpha["layer"])] = value
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
    configured = _Alphas(config) if config else lambda layer: None

    def alpha_of(layer: str) -> float | None:
        return alphas[layer] if layer in alphas else configured(layer)

    use_rslora = bool(config and config.values.get("use_rslora"))
    pairs = {layer: _pair(path, layer, found, alpha_of, use_rslora) for layer, found in matrices.items()}
    return LoraFile(path, pairs, metadata.get("family"))


def _weights(path: Path) -> Path:
    """The weights file that ``path`` means."""
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise CheckpointError(f"There is no LoRA {path}: neither a file nor a directory.")
        return path
    for name in GENERIC:
        for suffix in _SUFFIXES:
            if os.path.exists(path / (name + suffix)):
                return path / (name + suffix)
    try:
        found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}.") from error
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
    if path.stem == GENERIC[0] and os.path.exists(beside):
        config = Section.read(beside)
    elif METADATA in metadata:
        values = parse_json(metadata[METADATA], f"{path}: its header's {METADATA}")
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
    alphas: Callable[[str], float | None],
    use_rslora: bool,
) -> Pair:
    if len(found) != 2:
        lost = "second (up, B)" if "down" in found else "first (down, A)"
        raise CheckpointError(f"{path} is incomplete: the {lost} matrix of {layer} is missing.")
    down, up = (
        matrix.to(torch.float32) if matrix.is_floating_point() and matrix.itemsize == 1 else matrix
        for matrix in (found["down"], found["up"])
    )  # of float8, torch computes nothing
    floats = down.is_floating_point() and up.is_floating_point()
    if min(down.ndim, up.ndim) < 2 or not floats or down.shape[0] != up.shape[1]:
        raise CheckpointError(
            f"{path}: the matrices of {layer}, {list(down.shape)} and {list(up.shape)}, make no pair: they "
            "should be [rank, in] and [out, rank]."
        )
    if not (down.isfinite().all() and up.isfinite().all()):
        raise CheckpointError(f"{path} is damaged: there is NaN or infinity in its matrices of {layer}.")
    rank = len(down)
    if rank == 0:
        raise CheckpointError(f"{path}: the matrices of {layer} are of rank 0.")
    alpha = alphas(layer)
    alpha = rank if alpha is None else alpha
    return Pair(down, up, alpha / (math.sqrt(rank) if use_rslora else rank))


class _Alphas:
    """What PEFT's configuration says of the layers' alphas.

    To PEFT, ``alpha_pattern`` holds regular expressions for layers' names or their ends, of which the first
    that fits counts. A file's may take for ever, so just names are read, in which ``.*`` may stand for
    anything, and alternatives of them.
    """

    def __init__(self, config: Section) -> None:
        patterns = config.section("alpha_pattern")
        self._standard = config.number("lora_alpha", at_most=_MOST_ALPHA)
        self._values = [patterns.number(pattern, at_most=_MOST_ALPHA) for pattern in patterns.values]
        self._names: dict[str, int] = {}
        self._wild: list[tuple[int, list[str]]] = []
        for index, pattern in enumerate(patterns.values):
            for alternative in pattern.split("|"):
                pieces = alternative.removesuffix("$").split(".*")
                if not all(map(_PIECE.fullmatch, pieces)) or len(self._wild) > _WILD:
                    raise config.error(
                        "alpha_pattern",
                        f"of names of layers, with .* for anything and | between several; {pattern!r} is not",
                    )
                pieces = [piece.replace("\\.", ".") for piece in pieces]
                if len(pieces) == 1:
                    self._names.setdefault(pieces[0], index)
                else:
                    self._wild.append((index, pieces))

    def __call__(self, layer: str) -> float:
        ends = [layer[dot.end() :] for dot in re.finditer(r"^|\.", layer)]
        fitting = [self._names[end] for end in (f"^{layer}", *ends) if end in self._names]
        fitting += [index for index, pieces in self._wild if _fits(pieces, layer)]
        alpha = self._values[min(fitting)] if fitting else self._standard
        return _PEFT_ALPHA if alpha is None else alpha


def _fits(pieces: list[str], layer: str) -> bool:
    """Whether the pieces stand one behind the other in a name, the last at its end."""
    first, *middle, last = pieces
    if first.startswith("^"):
        at = len(first) - 1 if layer.startswith(first[1:]) else -1
    else:  # where a part of the name begins; the earliest place leaves most to the others
        at = f".{layer}".find(f".{first}")
        at += len(first) if at >= 0 else 0
    for piece in middle:
        if at >= 0:
            at = layer.find(piece, at)
            at += len(piece) if at >= 0 else 0
    return 0 <= at <= len(layer) - len(last) and layer.endswith(last)
