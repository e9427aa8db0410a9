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
    """An object with known keys, of which one of each group in ``required`` is there."""

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
    """``harmless``: a run may go on from a checkpoint that was made with another value."""
    metadata = {"check": check, "help": help, "harmless": harmless}
    if isinstance(default, (dict, list)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Every field's meaning is its ``help``; docs/guide/training.md has them as a table."""

    model: str = _field(_path, "a model directory in the hub's layout, or an id on the hub")
    output: str = _field(_path, "the directory for checkpoints, curves and the model", harmless=True)
    data: dict[str, Any] = _field(_DATA, "where clips come from")
    mode: str = _field(
        _choice(*MODES), "scratch: a new U-Net; full: all of the model's own; lora: beside it", "scratch"
    )
    initial_weights: str | None = _field(
        _or_none(_path), "scratch: a U-Net file whose fitting tensors the new U-Net starts with", None
    )
    cache: str | None = _field(
        _or_none(_path), "where latents and text states of a folder are kept", None, harmless=True
    )
    steps: int = _field(_whole(1), "optimiser steps in all", 10_000)
    batch_size: int = _field(_whole(1, 65_536), "clips a step, on each device", 8)
    gradient_accumulation: int = _field(_whole(1), "batches whose gradients are added up for a step", 1)
    lr: float = _field(_number(0, above=True), "learning rate at its highest", 1e-4)
    lr_schedule: str = _field(
        _choice("cosine", "constant"), "cosine: falls to 0 along one; constant: stays", "cosine"
    )
    warmup: int = _field(_whole(0), "steps in which the learning rate rises from 0", 100)
    optimizer: str = _field(
        _choice("adamw", "muon"), "adamw, or muon, which learns a new network's rare things sooner", "adamw"
    )
    weight_decay: float = _field(_number(), "for weights, but not for norms and biases", 0.01)
    betas: tuple[float, float] = _field(_betas, "of AdamW", (0.9, 0.99))
    max_grad_norm: float = _field(_number(), "gradients longer than this are shortened; 0: never", 1.0)
    ema: float = _field(_number(0, 0.999999), "decay of the averaged weights; 0: no average", 0.999)
    frames: int | None = _field(
        _or_none(_whole(1, 10_000)), "frames of each training clip; null: all that the data has", None
    )
    frame_stride: int = _field(_whole(1, 1000), "2 takes every other frame, at half the fps", 1)
    from_start: bool = _field(_truth, "frames are a clip's first, not any in a row", False)
    image_ratio: float = _field(_number(0, 1), "share of the batches that are single pictures", 0.0)
    condition_dropout: float = _field(
        _number(0, 1), "share of the samples trained without text and picture, for guidance", 0.1
    )
    dropped_text: str = _field(_text, "the text that these have", "")
    noise_offset: float | None = _field(
        _or_none(_number()), "weight of noise shared by a frame's pixels; null: the family's", None
    )
    strength: float | None = _field(
        _or_none(_number(0, 1, above=True)),
        "video-to-video: noise up to this strength; null: the family's",
        None,
    )
    timesteps: Any = _field(
        _timesteps,
        'how noise levels are drawn: uniform, stratified or {"power": p}, p below 1 for more high noise',
        "stratified",
    )
    loss_weighting: Any = _field(_weighting, 'of the squared error: none, v or {"min_snr": m}', "none")
    gradient_checkpointing: bool = _field(_truth, "compute activations twice, to keep fewer", False, True)
    mixed_precision: str = _field(
        _choice("no", "bf16", "fp16"), "the type that networks compute in: no (fp32), bf16 or fp16", "no"
    )
    attention: str = _field(
        _choice("sdpa", "matmul", "xformers"),
        "sdpa, xformers, or matmul, faster backwards in bf16 on a CPU",
        "sdpa",
    )
    compile: bool = _field(_truth, "torch.compile: slow to start, then faster", False, True)
    device: str | None = _field(_or_none(_text), "cpu, cuda …; null: the best there is", None, True)
    num_threads: int | None = _field(_or_none(_whole(1, 1024)), "of PyTorch on a CPU", None, harmless=True)
    seed: int = _field(_whole(0, 2**63 - 1), "of weights, data order, noise", 0)
    log_every: int = _field(_whole(1), "steps between points of the curve", 20)
    checkpoint_every: int = _field(_whole(1), "steps between checkpoints", 500, harmless=True)
    keep_checkpoints: int = _field(_whole(1), "how many of the last checkpoints stay", 2, harmless=True)
    sample_every: int = _field(_whole(0), "steps between sample sheets; 0: none", 0, harmless=True)
    sample_inputs: list[Any] = _field(_prompts, "inputs of the pipeline to make samples of", [], True)
    sample_options: dict[str, Any] = _field(
        _settings, "options of the pipeline for samples", {}, harmless=True
    )
    max_minutes: float | None = _field(
        _or_none(_number(0, above=True)), "stop after this time, with a checkpoint", None, harmless=True
    )
    lora: dict[str, Any] = _field(_LORA, "lora: rank, alpha, dropout and targets", {})
    card: dict[str, Any] = _field(_settings, "fields of the model card's front matter", {}, harmless=True)

    @classmethod
    def read(cls, path: str | Path, changes: Mapping[str, Any] | None = None) -> TrainConfig:
        """Reads a JSON file; relative paths in it are relative to the working directory.

        Args:
            changes: values that replace the file's.

        Raises:
            InputError: naming file and key, for a file that is no JSON object, a key that does not
                exist or a value of the wrong kind.
        """
        return cls.of({**read_values(path), **(changes or {})}, str(path))

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str = "the training configuration") -> TrainConfig:
        """Checks values by their names; ``source`` is what errors call them. Raises InputError."""
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
        """As JSON would have it."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def published(self) -> dict[str, Any]:
        """As :meth:`to_dict`, for others to read: of every path on this machine its last name alone."""
        values = {key: _public(value) for key, value in self.to_dict().items()}
        for holder, keys in ((values, _PATHS), (values["data"], _DATA_PATHS)):
            holder.update({key: _last_name(holder[key]) for key in keys if holder.get(key)})
        return values

    def check_resume(self, earlier: Mapping[str, Any], where: str | Path) -> None:
        """Raises InputError if a run of this configuration cannot continue one of ``earlier``.

        More ``steps`` are fine where the learning rate is constant; along a cosine they would change the
        curve that is already drawn.
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
    """Whether a text is a path on this machine; a prompt or an id on the hub is none."""
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
    """Without the number of threads that decode, which changes no clip."""
    data = {key: value for key, value in values["data"].items() if key != "workers"}
    return {**values, "data": data}
