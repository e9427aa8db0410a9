"""Model directories: the hub's layout (``configuration.json`` and the files that it names), or diffusers'."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import embedded
from ..errors import CheckpointError
from ..spec.families import FAMILIES, TASKS, TEXT_TO_VIDEO, Family, family_name
from ..spec.network import (
    TEXT_SIZES,
    VISION_SIZES,
    AutoencoderConfig,
    CLIPConfig,
    STUNetConfig,
    clip_misfit,
)
from ..spec.options import SCHEDULERS, SIZE_STEP
from .diffusers_folder import MODEL_INDEX, DiffusersFolder
from .kinds import Part, identify
from .sections import DEEPEST, LARGEST, Section, checked_options, given
from .tensors import SUFFIXES, TensorFile, read_tensors

CONFIGURATION = "configuration.json"

SHARED = "MODELSCOPE_I2V_SHARED"
"""The environment variable that names folders, separated as in PATH, whose files any model may name."""

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"

_UNET_SIZES = ("in_dim", "dim", "context_dim", "out_dim", "num_heads", "head_dim")
_GROUPS = 32
"""Group normalisation splits the channels of every network here into so many."""


@dataclass(frozen=True)
class ModelDirectory:
    """What a directory's configuration says; no weights have been read yet."""

    path: Path
    family: Family
    unet_path: Path
    """The file; in diffusers' layout the component's folder."""
    clip_path: Path
    autoencoder_path: Path
    unet: STUNetConfig
    autoencoder: AutoencoderConfig
    clip: CLIPConfig
    defaults: dict[str, Any]
    """Call options that the configuration sets, by their names in the call; the rest are the family's."""
    folder: DiffusersFolder | None = None
    """The same in diffusers' own terms, where that is the layout."""

    @classmethod
    def open(cls, path: str | Path, task: str | None = None, *, new_unet: bool = False) -> ModelDirectory:
        """Reads what configurations say and finds the weights that they name.

        The hub's layout may lack its ``configuration.json``: then the U-Net's file name tells the
        family. A directory with ``model_index.json`` is a folder of diffusers, unless it has a
        ``configuration.json`` that describes a model (mirrors of such folders have one that doesn't).

        Args:
            path: the directory, or the name of an embedded model (:mod:`modelscope_i2v.embedded`).
            task: what the model is to do, where the caller knows; None: what the configuration says.
            new_unet: the U-Net is yet to be trained, so its file may be missing.

        Raises:
            CheckpointError: for a directory, a file or a key that is missing or wrong, and for a
                model of another task.
        """
        task = task and family_name(task)
        path = embedded.find(path, task) or Path(path)
        if os.path.isfile(path):
            raise CheckpointError(f"{path} is a file; the model directory around it is needed here.")
        if not os.path.isdir(path):
            raise CheckpointError(f"There is no directory {path}.")
        if task is not None and task not in TASKS:
            raise CheckpointError(f"{task!r} is no task of this package; it has {', '.join(TASKS)}.")
        state = _state(path)
        found = None
        if task is not None:
            with contextlib.suppress(CheckpointError):  # some need the task to be known at all
                found = _opened(path, None, new_unet, state)
        if found is None or found.family.task != task:
            found = _opened(path, task, new_unet, state)
        return replace(found, defaults=dict(found.defaults))

    @classmethod
    def _read(cls, path: Path, task: str | None, new_unet: bool) -> ModelDirectory:
        file = path / CONFIGURATION
        root = Section.read(file) if os.path.exists(file) else None
        if os.path.exists(path / MODEL_INDEX) and (root is None or "model" not in root.values):
            return cls._of_folder(DiffusersFolder.open(path), task)
        if root is None:
            root = Section(_recognised(path), "", file)
        model = root.section("model")
        args, cfg = model.section("model_args"), model.section("model_cfg")
        family = _predicting(cfg, _family(root, task))
        autoencoder = _autoencoder(cfg)
        return cls(
            path=path,
            family=family,
            unet_path=_named(path, args, "ckpt_unet") or path / family.unet_file
            if new_unet
            else _weights(path, args, "ckpt_unet", family.unet_file),
            clip_path=_weights(path, args, "ckpt_clip", family.clip_file),
            autoencoder_path=_weights(path, args, "ckpt_autoencoder", family.autoencoder_file),
            unet=_unet(cfg, family),
            autoencoder=autoencoder,
            clip=_clip(cfg),
            defaults=_defaults(args, cfg, family, autoencoder),
        )

    @classmethod
    def _of_folder(cls, folder: DiffusersFolder, task: str | None) -> ModelDirectory:
        if task not in (None, folder.family.task):
            raise CheckpointError(f"{folder.path} is a {folder.family.name} model; {task} was asked.")
        return cls(
            path=folder.path,
            family=folder.family,
            unet_path=folder.path / "unet",
            clip_path=folder.path / "text_encoder",
            autoencoder_path=folder.path / "vae",
            unet=folder.unet,
            autoencoder=folder.autoencoder,
            clip=folder.clip,
            defaults=folder.defaults,
            folder=folder,
        )

    def read(self, part: Part, *, mmap: bool = True, any_kind: bool = False) -> TensorFile:
        """The weights of one of the networks, by the hub's names in any layout.

        Args:
            mmap: see :func:`modelscope_i2v.checkpoints.tensors.read_tensors`.
            any_kind: also a U-Net of another family than the configuration's.

        Raises CheckpointError for files that are missing, damaged or do not fit their configuration.
        """
        if self.folder is not None:
            return self.folder.read(part, mmap=mmap)
        path = {"unet": self.unet_path, "clip": self.clip_path, "autoencoder": self.autoencoder_path}[part]
        file = read_tensors(path, mmap=mmap)
        kind = identify(file.tensors) if part == "unet" and not any_kind else None
        if kind and kind.families and self.family.name not in kind.families:
            raise CheckpointError(
                f"{self.path / CONFIGURATION} describes a {self.family.name} model, and {path} is "
                f"{kind.name}: one of the two belongs to another model."
            )
        return file


@functools.lru_cache(maxsize=8)
def _opened(path: Path, task: str | None, new_unet: bool, state: tuple[Any, ...]) -> ModelDirectory:
    """One ``pipeline(…)`` opens a directory half a dozen times; it is read once, until its state changes."""
    return ModelDirectory._read(path, task, new_unet)


def _state(path: Path) -> tuple[Any, ...]:
    """Sizes and times of the files that a directory's description comes from."""
    state = []
    with contextlib.suppress(OSError):
        parts = path.glob("*/*.json") if (path / MODEL_INDEX).is_file() else ()
        for file in (path, *path.iterdir(), *parts):
            with contextlib.suppress(OSError):
                facts = os.stat(file)
                state.append((file, facts.st_mtime_ns, facts.st_size, facts.st_ino))
    return tuple(sorted(state))


def _recognised(path: Path) -> dict[str, Any]:
    """What a configuration would say of a directory that holds just the hub's weights."""
    for family in FAMILIES.values():
        if _existing(path / family.unet_file) is not None:
            return {"task": family.task, "pipeline": {"type": family.pipeline_type}}
    usual = ", ".join(family.unet_file for family in FAMILIES.values())
    raise CheckpointError(
        f"{path} is no model directory: it holds no {CONFIGURATION} or {MODEL_INDEX}, and no U-Net by one of "
        f"the hub's names ({usual})."
    )


def _family(root: Section, wanted: str | None) -> Family:
    """The family that all the known names in the configuration agree on, and the task ``wanted`` with them.

    A name that is not known here is an error only where nothing before it told anything: I2VGen-XL's
    configurations have model types of several sorts.
    """
    types = {
        "pipeline_type": (root.section("pipeline"), "type"),
        "task": (root, "task"),
        "model_type": (root.section("model"), "type"),
    }
    left, told = list(FAMILIES.values()), []
    for attribute, (section, key) in types.items():
        name = section.text(key)
        if name is None:
            continue
        known = [family for family in FAMILIES.values() if getattr(family, attribute) == name]
        if known:
            meant = " or ".join(family.name for family in known)
            told.append(f"{section.dotted(key)} {name!r} means {meant}")
            left = [family for family in left if family in known]
        elif not told:
            names = dict.fromkeys(getattr(family, attribute) for family in FAMILIES.values())
            raise section.error(key, f"one of those that this package runs: {', '.join(names)}")
    if not left:
        raise CheckpointError(f"{root.file} contradicts itself: {', '.join(told)}.")
    if not told and wanted is None:
        raise CheckpointError(f"{root.file}: task is missing; it should be one of {', '.join(TASKS)}.")
    asked = [family for family in left if wanted in (None, family.task)]
    if not asked:
        raise CheckpointError(f"{root.file.parent} is a {left[0].name} model; {wanted} was asked.")
    return asked[0] if len(asked) == 1 else _by_file(asked, root)


def _by_file(families: list[Family], root: Section) -> Family:
    """Of families that share their names, the one that the U-Net's file is for: by its name, or its keys."""
    directory = root.file.parent
    named = _named(directory, root.section("model").section("model_args"), "ckpt_unet")
    for family in families:
        if named is None and _existing(directory / family.unet_file):
            return family
    path = _existing(named) if named else None
    kind = identify(read_tensors(path).tensors) if path else None
    return next((family for family in families if kind and family.name in kind.families), families[0])


def _existing(path: Path) -> Path | None:
    """That file, or the same with another suffix of weights."""
    candidates = (path, *(path.with_suffix(suffix) for suffix in SUFFIXES))
    return next((one for one in candidates if os.path.exists(one) and not os.path.isdir(one)), None)


def _named(directory: Path, args: Section, key: str) -> Path | None:
    """The path that ``model_args`` gives for a file, which leaves the directory only where that is allowed.

    Links in the directory may lead anywhere: hubs' caches are made of them.
    """
    name = args.text(key)
    if name is None:
        return None
    top, path = os.path.abspath(directory), directory / name
    inside = os.path.normpath(os.path.join(top, name)).startswith(os.path.join(top, ""))
    if "\0" in name or not (inside or _shared(path)):
        raise args.error(
            key,
            "the name of a file in that directory. Put the file or a link to it there, or name its folder in "
            f"the environment variable {SHARED}",
        )
    return path


def _shared(path: Path) -> bool:
    """Whether a file is in a folder that models may share: the embedded models', and the user's."""
    folders = [str(EMBEDDED), *filter(None, os.environ.get(SHARED, "").split(os.pathsep))]
    real = os.path.realpath(path)
    return any(real.startswith(os.path.join(os.path.realpath(folder), "")) for folder in folders)


def _weights(directory: Path, args: Section, key: str, usual: str) -> Path:
    """The file that ``model_args`` names, or the hub's usual one; perhaps with another suffix."""
    named = _named(directory, args, key)
    if (found := _existing(named or directory / usual)) is not None:
        return found
    if named is None:
        raise CheckpointError(
            f"{args.file}: {args.dotted(key)} is missing; it should name a weights file in that directory."
        )
    held = sorted(name for name in os.listdir(directory) if name.endswith(SUFFIXES))
    raise CheckpointError(
        f"There is no file {named}, which {args.dotted(key)} names. The directory "
        + (f"holds {', '.join(held)}." if held else "holds no weights at all: download the model again.")
    )


def _predicting(cfg: Section, family: Family) -> Family:
    """Text-to-video's configurations say what its weights predict; the other families' are all alike."""
    prediction = cfg.text("mean_type")
    if family is not TEXT_TO_VIDEO or prediction in (None, family.prediction):
        return family
    if prediction != "v":
        raise cfg.error("mean_type", "'eps' or 'v'")
    return replace(family, prediction=prediction)


def _unet(cfg: Section, family: Family) -> STUNetConfig:
    sizes = given(**{name: cfg.integer(f"unet_{name}") for name in _UNET_SIZES})
    sizes |= given(dim_mult=cfg.integers("unet_dim_mult"), attn_scales=cfg.numbers("unet_attn_scales"))
    sizes |= given(dropout=cfg.number("unet_dropout", at_most=1), res_blocks=_depth(cfg, "unet_res_blocks"))
    if family.reads_image:  # text-to-video's unet_y_dim is of no use in its network
        sizes |= given(image_dim=cfg.integer("unet_y_dim"), image_tokens=cfg.integer("unet_image_tokens"))
    if str(cfg.values.get("temporal_attention", True)).lower() != "true":
        raise cfg.error("temporal_attention", "true: every network of these families has it")

    config = replace(family.unet, **sizes)
    if config.dim % _GROUPS:
        raise cfg.error("unet_dim", f"a multiple of {_GROUPS}")
    if config.dim * max(config.dim_mult) > LARGEST:
        raise cfg.error("unet_dim_mult", f"so small that no level has more than {LARGEST:,} channels")
    if config.num_heads * config.head_dim > LARGEST:
        raise cfg.error("unet_num_heads", f"so few that all have no more than {LARGEST:,} channels")
    if any(config.dim * multiple % config.head_dim for multiple in config.dim_mult):
        raise CheckpointError(
            f"{cfg.file}: {cfg.dotted('unet_head_dim')} is {config.head_dim} and should divide unet_dim "
            f"({config.dim}) times each of unet_dim_mult."
        )
    return config


def _autoencoder(cfg: Section) -> AutoencoderConfig:
    section = cfg.section("ddconfig")
    sizes = ("ch", "in_channels", "out_ch", "z_channels", "embed_dim")
    config = AutoencoderConfig(
        **given(
            **{name: section.integer(name) for name in sizes},
            num_res_blocks=_depth(section, "num_res_blocks"),
            ch_mult=section.integers("ch_mult"),
        )
    )
    if config.ch % _GROUPS:
        raise section.error("ch", f"a multiple of {_GROUPS}")
    if config.ch * max(config.ch_mult) > LARGEST:
        raise section.error("ch_mult", f"so small that no level has more than {LARGEST:,} channels")
    if SIZE_STEP % config.factor:
        raise section.error(
            "ch_mult",
            f"a list of at most four numbers: heights and widths are multiples of {SIZE_STEP} pixels",
        )
    return config


def _depth(section: Section, key: str) -> int | None:
    """Blocks one behind the other: each takes time to build, however small the file is."""
    return section.integer(key, at_most=DEEPEST)


def _clip(cfg: Section) -> CLIPConfig:
    value = cfg.values.get("clip")
    if value is None:
        return CLIPConfig()
    if type(value) is str and re.fullmatch(
        r"[\w.-]{1,100}", value
    ):  # with a colon, open_clip reads or fetches
        return CLIPConfig(architecture=value)
    if type(value) is not dict:
        raise cfg.error("clip", "the name of an open_clip architecture, or its configuration as an object")
    section = cfg.section("clip")
    section.only(("embed_dim", "vision_cfg", "text_cfg"), "absent: only sizes are taken from there")
    custom: dict[str, Any] = {"embed_dim": section.integer("embed_dim")}
    if custom["embed_dim"] is None:
        raise section.error("embed_dim", "a whole number from 1 up")
    for key, standard in (("vision_cfg", VISION_SIZES), ("text_cfg", TEXT_SIZES)):
        tower = section.section(key)
        if not tower.values:
            raise section.error(key, "an object as in open_clip's model configurations")
        tower.only((*standard, "mlp_ratio"), f"absent: only {', '.join((*standard, 'mlp_ratio'))} are taken")
        bounds = {"layers": DEEPEST, "image_size": 4096, "vocab_size": 1 << 20}
        sizes = {name: tower.integer(name, at_most=bounds.get(name, LARGEST)) for name in standard}
        ratio = tower.number("mlp_ratio", at_most=64)
        custom[key] = standard | given(**sizes, mlp_ratio=ratio)
        if ratio is not None and custom[key]["width"] * ratio < 1:
            raise tower.error("mlp_ratio", "a number above 0, usually 4")
    if problem := clip_misfit(custom["vision_cfg"], custom["text_cfg"]):
        raise CheckpointError(f"{cfg.file}: {section.name}.{problem}.")
    return CLIPConfig(custom=custom)


def _defaults(args: Section, cfg: Section, family: Family, autoencoder: AutoencoderConfig) -> dict[str, Any]:
    options = given(num_frames=cfg.integer("max_frames") or args.integer("max_frames"))
    if family.reads_image and not family.reads_text:
        rows, columns = cfg.integer("latent_hei"), cfg.integer("latent_wid")
        options |= given(
            height=rows and rows * autoencoder.factor, width=columns and columns * autoencoder.factor
        )
    if family.unet.fps_embedding:
        options |= given(target_fps=cfg.integer("target_fps"))
    if family.takes_video and (mode := args.text("solver_mode")) is not None:
        fast = mode == "fast"
        options["scheduler"] = "dpmpp_2m_sde" if fast else "heun"
        options["num_inference_steps"] = 30 if fast else 50
    options |= given(
        height=cfg.integer("height"),
        width=cfg.integer("width"),
        num_inference_steps=cfg.integer("num_inference_steps"),
        guidance_scale=cfg.number("guidance_scale"),
        **_own_options(cfg, family),
    )
    return checked_options(options, cfg.file)


def _own_options(cfg: Section, family: Family) -> dict[str, Any]:
    """Options that no hub file sets, but that a model of one's own may: those its family has."""
    options = given(
        guidance_rescale=cfg.number("guidance_rescale"),
        scheduler=cfg.get("scheduler", str, f"one of {', '.join(SCHEDULERS)}", SCHEDULERS.__contains__),
    )
    if family.reads_text:
        options |= given(negative_prompt=cfg.get("negative_prompt", str, "a text"))
    if family.takes_video:
        options |= given(strength=cfg.number("strength"))
    return options
