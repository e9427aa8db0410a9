"""The training configuration: a JSON file, checked key by key. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import InputError
from ..files import read_json

Check = Callable[[Any], Any]
"""Returns the value, converted where needed, or raises ValueError with what the value must be."""

MODES = ("scratch", "full", "lora")

SOURCES = ("cache", "folder", "captions", "msdataset", "namespace", "subset_name", "split")
"""Keys of ``data`` that say where clips come from; the others say how they are read."""

_PATHS = ("output", "initial_weights", "cache")
"""Keys whose values are paths; so are these of ``data``:"""
_DATA_PATHS = ("cache", "folder", "captions")

_DEEPEST = 20
"""Levels of lists and objects in a value that is handed on as it is."""
_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes, as Linux has them."""
_SHOWN = 200
"""Letters of a wrong value that a message shows."""


def _whole(low: int, high: int = 10**9) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high:,}")
        return value

    return check


def _number(low: float = 0.0, high: float = 1e9, above: bool = False) -> Check:
    def check(value: Any) -> float:
        inside = type(value) in (int, float) and low <= value <= high  # NaN is not
        if not inside or (above and value == low):
            raise ValueError(f"a number {'above' if above else 'from'} {low:g} to {high:g}")
        return float(value)

    return check


def _choice(*names: str) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str or value not in names:
            raise ValueError(" or ".join(map(repr, names)))
        return value

    return check


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("a text of valid Unicode") from None
    return value


def _path(value: Any) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("a path")
    try:
        written = os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError("a path of valid Unicode") from None
    if b"\0" in written:
        raise ValueError("a path without null characters")
    if len(written) > _LONGEST_PATH or max(map(len, written.split(os.fsencode(os.sep)))) > _LONGEST_NAME:
        raise ValueError(
            f"a path of at most {_LONGEST_PATH:,} bytes, each name in it of at most {_LONGEST_NAME}"
        )
    return str(value)


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _or_none(check: Check) -> Check:
    def checked(value: Any) -> Any:
        try:
            return None if value is None else check(value)
        except ValueError as error:
            raise ValueError(f"{error}, or null") from None

    return checked


def _betas(value: Any) -> tuple[float, float]:
    try:
        first, second = (_number(0, 0.999999)(item) for item in value)
    except (TypeError, ValueError):
        raise ValueError("two numbers from 0 up, below 1, such as [0.9, 0.99]") from None
    return first, second


def _timesteps(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"power"}:
        return {"power": _number(0, 1000, above=True)(value["power"])}
    if type(value) is not str or value not in ("uniform", "stratified"):
        raise ValueError("'uniform', 'stratified' or {\"power\": a number above 0}")
    return value


def _weighting(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"min_snr"}:
        return {"min_snr": _number(0, above=True)(value["min_snr"])}
    if type(value) is not str or value not in ("none", "v"):
        raise ValueError("'none', 'v' or {\"min_snr\": a number above 0}")
    return value


def _object(required: tuple[tuple[str, ...], ...], known: Mapping[str, Check]) -> Check:
    """An object with known keys, and exactly one key of each group in ``required``."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"an object with keys of {', '.join(known)}")
        for key in value:
            if key not in known:
                raise ValueError(f"an object whose keys are of {', '.join(known)}, without {_shown(key)}")
        for group in required:
            if sum(key in value for key in group) != 1:
                raise ValueError(f"an object with one of the keys {', '.join(group)}")
        checked = {}
        for key, item in value.items():
            try:
                checked[key] = known[key](item)
            except ValueError as error:
                raise ValueError(f"an object whose {key!r} is {error}") from None
        return checked

    return check


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it; paths become texts."""
    if depth > _DEEPEST:
        raise ValueError(f"nested at most {_DEEPEST} levels deep")
    if value is None or type(value) is bool:
        return value
    if isinstance(value, Path):
        return _path(value)
    if isinstance(value, str):
        return _text(value)
    if type(value) in (int, float):
        if not -(2**63) <= value < 2**63:  # NaN is not
            raise ValueError("made of finite numbers below 2⁶³")
        return value
    if isinstance(value, Mapping):
        return {_text(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in value]
    raise ValueError(f"made of what JSON can hold, and of paths; {type(value).__name__} is neither")


def _settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("an object")
    return _plain(value)


def _prompts(value: Any) -> Any:
    kinds = (str, Path, Mapping)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, kinds) for item in value):
        raise ValueError("a list of inputs of the pipeline: texts, paths, or objects")
    return _plain(value)


def _names(value: Any) -> list[str]:
    if not isinstance(value, (list, tuple)) or not all(type(item) is str for item in value):
        raise ValueError("a list of texts")
    return [_text(item) for item in value]


_DATA = _object(
    (("cache", "folder", "msdataset"),),
    {
        "cache": _path,
        "folder": _path,
        "captions": _path,
        "msdataset": _text,
        "namespace": _text,
        "subset_name": _text,
        "split": _text,
        "file_column": _text,
        "caption_column": _text,
        "height": _whole(8, 8192),
        "width": _whole(8, 8192),
        "fps": _number(0.01, 1000),
        "max_frames": _whole(1, 10_000),
        "workers": _whole(0, 256),
    },
)

_LORA = _object(
    (),
    {
        "rank": _whole(1, 8192),
        "alpha": _number(0, above=True),
        "dropout": _number(0, 0.99),
        "targets": _names,
    },
)


def _field(check: Check, help: str, default: Any = dataclasses.MISSING, harmless: bool = False) -> Any:
    """``harmless``: a run may be resumed with another value."""
    metadata = {"check": check, "help": help, "harmless": harmless}
    if isinstance(default, (dict, list)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. docs/guide/training.md lists the fields with their ``help``."""

    model: str = _field(_path, "a model directory in the hub's layout, or an id on the hub")
    output: str = _field(_path, "directory for checkpoints, curves and the model", harmless=True)
    data: dict[str, Any] = _field(_DATA, "where clips come from")
    mode: str = _field(
        _choice(*MODES),
        "scratch: train a new U-Net; full: fine-tune the model's U-Net; lora: train a LoRA for it",
        "scratch",
    )
    initial_weights: str | None = _field(
        _or_none(_path),
        "scratch: a U-Net file; its tensors of the same name and shape initialise the new U-Net",
        None,
    )
    cache: str | None = _field(
        _or_none(_path),
        "directory in which the latents and text states of a folder are cached",
        None,
        harmless=True,
    )
    steps: int = _field(_whole(1), "number of optimiser steps", 10_000)
    batch_size: int = _field(_whole(1, 65_536), "clips in a batch, on each device", 8)
    gradient_accumulation: int = _field(_whole(1), "batches whose gradients are accumulated for one step", 1)
    lr: float = _field(_number(0, above=True), "peak learning rate", 1e-4)
    lr_schedule: str = _field(
        _choice("cosine", "constant"), "cosine: decays to 0; constant: no decay", "cosine"
    )
    warmup: int = _field(_whole(0), "steps in which the learning rate rises from 0", 100)
    optimizer: str = _field(_choice("adamw", "muon"), "adamw or muon", "adamw")
    weight_decay: float = _field(_number(), "weight decay of matrices; norms and biases have none", 0.01)
    betas: tuple[float, float] = _field(_betas, "betas of AdamW", (0.9, 0.99))
    max_grad_norm: float = _field(_number(), "gradients are clipped to this norm; 0: no clipping", 1.0)
    ema: float = _field(
        _number(0, 0.999999), "decay of the moving average of the weights; 0: no average", 0.999
    )
    frames: int | None = _field(
        _or_none(_whole(1, 10_000)), "frames of each training clip; null: all of the clip", None
    )
    frame_stride: int = _field(_whole(1, 1000), "2 takes every other frame, at half the fps", 1)
    from_start: bool = _field(_truth, "take a clip's first frames, not a random window", False)
    image_ratio: float = _field(_number(0, 1), "share of the batches that are single pictures", 0.0)
    condition_dropout: float = _field(
        _number(0, 1),
        "share of the samples trained without text and image, for classifier-free guidance",
        0.1,
    )
    dropped_text: str = _field(_text, "the text of these samples", "")
    noise_offset: float | None = _field(
        _or_none(_number()), "weight of the noise that all pixels of a frame share; null: the family's", None
    )
    strength: float | None = _field(
        _or_none(_number(0, 1, above=True)),
        "video-to-video: noise up to this strength; null: the family's",
        None,
    )
    timesteps: Any = _field(
        _timesteps,
        'distribution of timesteps: uniform, stratified or {"power": p}; p below 1 draws more high noise',
        "stratified",
    )
    loss_weighting: Any = _field(
        _weighting, 'weighting of the squared error: none, v or {"min_snr": m}', "none"
    )
    gradient_checkpointing: bool = _field(
        _truth, "recompute activations in the backward pass, to use less memory", False, True
    )
    mixed_precision: str = _field(
        _choice("no", "bf16", "fp16"), "data type of the computation: no (fp32), bf16 or fp16", "no"
    )
    attention: str = _field(
        _choice("sdpa", "matmul", "xformers"),
        "sdpa, xformers or matmul; matmul has the faster backward pass in bf16 on a CPU",
        "sdpa",
    )
    compile: bool = _field(_truth, "torch.compile: slow to start, then faster", False, True)
    device: str | None = _field(_or_none(_text), "cpu, cuda …; null: the best there is", None, True)
    num_threads: int | None = _field(
        _or_none(_whole(1, 1024)), "PyTorch's CPU threads; null: PyTorch's default", None, harmless=True
    )
    seed: int = _field(_whole(0, 2**63 - 1), "seed of weights, data order and noise", 0)
    log_every: int = _field(_whole(1), "steps between points of the curve", 20)
    checkpoint_every: int = _field(_whole(1), "steps between checkpoints", 500, harmless=True)
    keep_checkpoints: int = _field(
        _whole(1), "number of checkpoints that are kept, the latest", 2, harmless=True
    )
    sample_every: int = _field(_whole(0), "steps between sample sheets; 0: none", 0, harmless=True)
    sample_inputs: list[Any] = _field(_prompts, "pipeline inputs that samples are generated from", [], True)
    sample_options: dict[str, Any] = _field(
        _settings, "call options of the pipeline for samples", {}, harmless=True
    )
    max_minutes: float | None = _field(
        _or_none(_number(0, above=True)), "stop after so many minutes, with a checkpoint", None, harmless=True
    )
    lora: dict[str, Any] = _field(_LORA, "lora: its rank, alpha, dropout and targets", {})
    card: dict[str, Any] = _field(_settings, "fields of the model card's front matter", {}, harmless=True)

    @classmethod
    def read(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> TrainConfig:
        """Reads a JSON file; relative paths in it are relative to the working directory.

        Args:
            changes: values that replace the file's.

        Raises:
            InputError: the file holds no JSON object, a key that does not exist, or a wrong value. The
                message names the file and the key.
        """
        return cls.of({**read_values(path), **(changes or {})}, str(path))

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str = "the training configuration") -> TrainConfig:
        """A configuration from its values; ``source`` is their name in messages. Raises InputError."""
        fields = {item.name: item for item in dataclasses.fields(cls)}
        checked = {}
        for key, value in values.items():
            if key not in fields:
                near = difflib.get_close_matches(str(key)[:_SHOWN], fields, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(fields)}."
                raise InputError(f"{source}: there is no key {_shown(key)}; {hint}")
            try:
                checked[key] = fields[key].metadata["check"](value)
            except ValueError as error:
                raise InputError(f"{source}: {key} is {_shown(value)} and should be {error}.") from None
        for name, item in fields.items():
            missing = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            if missing and name not in checked:
                raise InputError(f"{source}: the key {name!r} is missing; it is {item.metadata['help']}.")
        config = cls(**checked)
        if config.warmup >= config.steps:
            raise InputError(
                f"{source}: warmup ({config.warmup}) should be less than steps ({config.steps})."
            )
        if config.initial_weights and config.mode != "scratch":
            raise InputError(f"{source}: initial_weights goes with mode 'scratch', not {config.mode!r}.")
        return config

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def published(self) -> dict[str, Any]:
        """The values as JSON types, with paths on this machine cut to their last name, for publication."""
        values = {key: _public(value) for key, value in self.to_dict().items()}
        for holder, keys in ((values, _PATHS), (values["data"], _DATA_PATHS)):
            holder.update({key: _last_name(holder[key]) for key in keys if holder.get(key)})
        return values

    def check_resume(self, earlier: Mapping[str, Any], where: str | Path) -> None:
        """Raises InputError if this configuration cannot resume a run of the configuration ``earlier``.

        ``steps`` may change with a constant learning rate; with a cosine schedule they would change the
        learning rates of the steps that are done.

        Args:
            where: the snapshot of the earlier run, for the message.
        """
        mine, earlier = _comparable(self.to_dict()), _comparable(earlier)
        for item in dataclasses.fields(self):
            key = item.name
            if key not in earlier or item.metadata["harmless"] or mine[key] == earlier[key]:
                continue
            if key == "steps" and self.lr_schedule == "constant":
                continue
            hint = " (with lr_schedule 'constant' they may change)" if key == "steps" else ""
            raise InputError(
                f"The training snapshot {where} was made with {key} = {json.dumps(earlier[key])}, and the "
                f"configuration says {json.dumps(mine[key])}{hint}. Use another output directory, or the "
                "value of the snapshot."
            )


def read_values(path: str | Path) -> dict[str, Any]:
    """The values of a configuration file, unchecked. Raises InputError if it holds no JSON object."""
    values = read_json(path, error=InputError)
    if not isinstance(values, dict):
        raise InputError(f"The configuration {path} should hold a JSON object.")
    return values


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # the latter for a number of thousands of digits
        return f"of type {type(value).__name__}, too long to show,"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return _last_name(value) if isinstance(value, str) and _is_local(value) else value


def _is_local(text: str) -> bool:
    """True for a path on this machine, not for a prompt or an id on the hub."""
    if text.startswith(("~", "file:")) or any(
        kind(text).is_absolute() for kind in (PurePosixPath, PureWindowsPath)
    ):
        return True
    try:
        return os.path.lexists(text)
    except ValueError:  # a null character
        return False


def _last_name(path: str) -> str:
    name = PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name
    return name.encode(errors="replace").decode()


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without the number of decoding threads, which does not change the clips."""
    data = {key: value for key, value in values["data"].items() if key != "workers"}
    return {**values, "data": data}
