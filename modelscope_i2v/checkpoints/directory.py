"""Model directories in the hub's layout: ``configuration.json`` and the files that it names."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..families import FAMILIES, TASKS, Family
from ..networks.config import AutoencoderConfig, CLIPConfig, STUNetConfig
from .kinds import identify
from .tensors import SUFFIXES, read_tensors

CONFIGURATION = "configuration.json"

_UNET_SIZES = ("in_dim", "dim", "context_dim", "out_dim", "num_heads", "head_dim", "res_blocks")
_GROUPS = 32
"""Group normalisation splits the channels of every network here into so many."""


@dataclass(frozen=True)
class ModelDirectory:
    """What a directory's configuration says; no weights have been read yet."""

    path: Path
    family: Family
    unet_path: Path
    clip_path: Path
    autoencoder_path: Path
    unet: STUNetConfig
    autoencoder: AutoencoderConfig
    clip: CLIPConfig
    defaults: dict[str, Any]
    """Call options that the configuration sets, by their names in the call; the rest are the family's."""

    @classmethod
    def open(cls, path: str | Path, task: str | None = None) -> ModelDirectory:
        """Reads ``path``/configuration.json and finds the weights that it names.

        Args:
            task: what the model is to do, where the caller knows; None: what the configuration says.

        Raises:
            CheckpointError: for a directory, a file or a key that is missing or wrong, and for a
                model of another task.
        """
        path = Path(path)
        root = _Section.read(path)
        model = root.section("model")
        args, cfg = model.section("model_args"), model.section("model_cfg")
        family = _family(root, task)
        autoencoder = _autoencoder(cfg)
        return cls(
            path=path,
            family=family,
            unet_path=_weights(path, args, "ckpt_unet", family.unet_file),
            clip_path=_weights(path, args, "ckpt_clip", family.clip_file),
            autoencoder_path=_weights(path, args, "ckpt_autoencoder", family.autoencoder_file),
            unet=_unet(cfg, family),
            autoencoder=autoencoder,
            clip=_clip(cfg),
            defaults=_defaults(args, cfg, family, autoencoder),
        )


def _recognised(path: Path) -> dict[str, Any]:
    """What a configuration would say of a directory that holds just the hub's weights."""
    for family in FAMILIES.values():
        if _existing(path / family.unet_file) is not None:
            return {"task": family.task, "pipeline": {"type": family.pipeline_type}}
    usual = ", ".join(family.unet_file for family in FAMILIES.values())
    raise CheckpointError(
        f"{path} is no model directory: it holds no {CONFIGURATION}, and no U-Net by one of the hub's names "
        f"({usual})."
    )


class _Section:
    """An object of the configuration that knows its dotted name, for errors."""

    def __init__(self, values: dict[str, Any], name: str, file: Path) -> None:
        self.values, self.name, self.file = values, name, file

    @classmethod
    def read(cls, path: Path) -> _Section:
        """The whole configuration of a model directory."""
        file = path / CONFIGURATION
        if path.is_file():
            raise CheckpointError(f"{path} is a file; the model directory around it is needed here.")
        if not path.is_dir():
            raise CheckpointError(f"There is no directory {path}.")
        if not file.is_file():
            return cls(_recognised(path), "", file)
        try:
            values = json.loads(file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from error
        except ValueError as error:  # bad JSON, and bytes that are not UTF-8
            raise CheckpointError(f"{file} is not valid JSON: {error}.") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{file} should hold a JSON object, and holds a {type(values).__name__}.")
        return cls(values, "", file)

    def dotted(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def error(self, key: str, right: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: {self.dotted(key)} is {self.values.get(key)!r} and should be {right}."
        )

    def section(self, key: str) -> _Section:
        """An inner object; an empty one where the key is absent."""
        return _Section(self.get(key, dict, "an object") or {}, self.dotted(key), self.file)

    def get(self, key: str, kind: type, right: str, valid: Callable[[Any], bool] = lambda _: True) -> Any:
        """A value of just this type, or None where the key is absent (or null)."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) is not kind or not valid(value):
            raise self.error(key, right)
        return value

    def text(self, key: str) -> str | None:
        return self.get(key, str, "a text that is not empty", bool)

    def integer(self, key: str, at_least: int = 1) -> int | None:
        return self.get(key, int, f"a whole number from {at_least} up", lambda value: value >= at_least)

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not _is_number(value) or value < 0:
            raise self.error(key, "a number from 0 up")
        return value

    def integers(self, key: str) -> tuple[int, ...] | None:
        right = "a list of whole numbers from 1 up"
        value = self.get(
            key, list, right, lambda items: all(type(item) is int and item > 0 for item in items)
        )
        if value == []:
            raise self.error(key, right)
        return None if value is None else tuple(value)

    def numbers(self, key: str) -> tuple[float, ...] | None:
        value = self.get(key, list, "a list of numbers", lambda items: all(map(_is_number, items)))
        return None if value is None else tuple(float(item) for item in value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def _family(root: _Section, wanted: str | None) -> Family:
    """The family that all the names in the configuration agree on, and the task ``wanted`` with them."""
    if wanted is not None and wanted not in TASKS:
        raise CheckpointError(f"{wanted!r} is no task of this package; it has {', '.join(TASKS)}.")
    types = {
        "pipeline_type": (root.section("pipeline"), "type"),
        "task": (root, "task"),
        "model_type": (root.section("model"), "type"),
    }
    left, told = list(FAMILIES.values()), []
    for attribute, (section, key) in types.items():
        name = section.text(key)
        known = {getattr(family, attribute): family for family in FAMILIES.values()}
        if name is None or (name not in known and told):
            continue
        if name not in known:
            raise section.error(key, f"one of those that this package runs: {', '.join(known)}")
        told.append(f"{section.dotted(key)} {name!r} means {known[name].name}")
        left = [family for family in left if getattr(family, attribute) == name]
    if not left:
        raise CheckpointError(f"{root.file} contradicts itself: {', '.join(told)}.")
    asked = [family for family in left if wanted in (None, family.task)]
    if not asked:
        raise CheckpointError(f"{root.file.parent} is a {left[0].name} model; {wanted} was asked.")
    if not told and wanted is None:
        raise CheckpointError(f"{root.file}: task is missing; it should be one of {', '.join(TASKS)}.")
    if len(asked) > 1:
        asked = _by_file(asked, root)
    return asked[0]


def _by_file(families: list[Family], root: _Section) -> list[Family]:
    """Those of some families, alike by name, whose keys the U-Net's file has."""
    name = root.section("model").section("model_args").text("ckpt_unet")
    path = name and _existing(root.file.parent / name)
    kind = identify(read_tensors(path).tensors) if path else None
    named = [family for family in families if kind and family.name in kind.families]
    return named or families


def _existing(path: Path) -> Path | None:
    """That file, or the same with another suffix of weights."""
    candidates = (path, *(path.with_suffix(suffix) for suffix in SUFFIXES))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _weights(directory: Path, args: _Section, key: str, usual: str) -> Path:
    """The file that ``model_args`` names, or the hub's usual one; perhaps with another suffix."""
    named = args.text(key)
    path = directory / (named or usual)
    if (found := _existing(path)) is not None:
        return found
    if named is None:
        raise CheckpointError(
            f"{args.file}: {args.dotted(key)} is missing; it should name a weights file in that directory."
        )
    held = sorted(file.name for file in directory.iterdir() if file.suffix in SUFFIXES)
    raise CheckpointError(
        f"There is no file {path}, which {args.dotted(key)} names. The directory "
        + (f"holds {', '.join(held)}." if held else "holds no weights at all: download the model again.")
    )


def _unet(cfg: _Section, family: Family) -> STUNetConfig:
    sizes = _given(**{name: cfg.integer(f"unet_{name}") for name in _UNET_SIZES})
    sizes |= _given(dim_mult=cfg.integers("unet_dim_mult"), attn_scales=cfg.numbers("unet_attn_scales"))
    sizes |= _given(dropout=cfg.number("unet_dropout"))
    if family.reads_image:  # text-to-video's unet_y_dim is of no use in its network
        sizes |= _given(image_dim=cfg.integer("unet_y_dim"), image_tokens=cfg.integer("unet_image_tokens"))
    if str(cfg.values.get("temporal_attention", True)).lower() != "true":
        raise cfg.error("temporal_attention", "true: every network of these families has it")

    config = replace(family.unet, **sizes)
    if config.dim % _GROUPS:
        raise cfg.error("unet_dim", f"a multiple of {_GROUPS}")
    if any(config.dim * multiple % config.head_dim for multiple in config.dim_mult):
        raise CheckpointError(
            f"{cfg.file}: {cfg.dotted('unet_head_dim')} is {config.head_dim} and should divide unet_dim "
            f"({config.dim}) times each of unet_dim_mult."
        )
    return config


def _autoencoder(cfg: _Section) -> AutoencoderConfig:
    section = cfg.section("ddconfig")
    sizes = ("ch", "num_res_blocks", "in_channels", "out_ch", "z_channels", "embed_dim")
    config = AutoencoderConfig(
        **_given(**{name: section.integer(name) for name in sizes}, ch_mult=section.integers("ch_mult"))
    )
    if config.ch % _GROUPS:
        raise section.error("ch", f"a multiple of {_GROUPS}")
    return config


def _clip(cfg: _Section) -> CLIPConfig:
    value = cfg.values.get("clip")
    if value is None:
        return CLIPConfig()
    if type(value) is str and value:
        return CLIPConfig(architecture=value)
    if type(value) is not dict:
        raise cfg.error("clip", "the name of an open_clip architecture, or its configuration as an object")
    section = cfg.section("clip")
    if section.integer("embed_dim") is None:
        raise section.error("embed_dim", "a whole number from 1 up")
    for key in ("vision_cfg", "text_cfg"):
        if not section.section(key).values:
            raise section.error(key, "an object as in open_clip's model configurations")
    return CLIPConfig(custom=value)


def _defaults(
    args: _Section, cfg: _Section, family: Family, autoencoder: AutoencoderConfig
) -> dict[str, Any]:
    options = _given(num_frames=cfg.integer("max_frames") or args.integer("max_frames"))
    if family.reads_image and not family.reads_text:
        rows, columns = cfg.integer("latent_hei"), cfg.integer("latent_wid")
        options |= _given(
            height=rows and rows * autoencoder.factor, width=columns and columns * autoencoder.factor
        )
    if family.unet.fps_embedding:
        options |= _given(target_fps=cfg.integer("target_fps"))
    if family.takes_video and (mode := args.text("solver_mode")) is not None:
        fast = mode == "fast"
        options["scheduler"] = "dpmpp_2m_sde" if fast else "heun"
        options["num_inference_steps"] = 30 if fast else 50
    return options | _given(
        height=cfg.integer("height"),
        width=cfg.integer("width"),
        num_inference_steps=cfg.integer("num_inference_steps"),
        guidance_scale=cfg.number("guidance_scale"),
    )
