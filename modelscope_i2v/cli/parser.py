"""A parser of command lines that says mistakes in one line, and the flags of the option table."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ..spec.families import Family
from ..spec.options import FIELDS, family_defaults, options_of
from ..spec.runtime import FIELDS as RUNTIME
from ..spec.runtime import Runtime

PROGRAM = "modelscope-i2v"

_HERE = {
    "seed": "makes the same video again, on every device (default: a new one each time, which is told)",
    "num_frames": "frames of the video",
}
"""Help that reads otherwise on the command line than in Python."""

_NUMBERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float}
_METAVARS = {"int": "N", "float": "X", "str": "TEXT"}


class UsageError(Exception):
    """A command line that cannot be meant; its exit code is 2."""


class Parser(argparse.ArgumentParser):
    """One command's parser, or the one above them all."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", _Help)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (help: {self.prog} --help)")

    def reject(self, rest: Sequence[str]) -> NoReturn:
        """Says what is wrong with arguments that no command knows."""
        flags = [argument.partition("=")[0] for argument in rest if argument.startswith("-")]
        if not flags:
            self.error(f"unexpected argument {rest[0]!r}; what has spaces in it goes into quotes")
        near = _nearest(flags[0], [flag for flag in self._option_string_actions if flag.startswith("--")])
        self.error(f"unknown option {flags[0]}" + (f"; did you mean {near}?" if near else ""))


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30, **settings})
        self._action_max_length = 20  # else the commands' names, being indented, have lines of their own


def _nearest(flag: str, known: Sequence[str]) -> str | None:
    """The flag that was likely meant; one word of it may be all that was written (``--steps``)."""
    names: dict[str, str] = {}
    for name in known:
        for word in (name.strip("-"), *name.strip("-").split("-")):
            names.setdefault(word, name)
    near = difflib.get_close_matches(flag.strip("-").replace("_", "-"), names, n=1, cutoff=0.6)
    return names[near[0]] if near else None


def common() -> argparse.ArgumentParser:
    """What every command takes, for ``parents``."""
    parent = argparse.ArgumentParser(add_help=False)
    # Suppressed, since a command's default would undo what stands before the command.
    parent.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show where an error came from"
    )
    return parent


def add_options(
    group: argparse._ArgumentGroup, families: Sequence[Family], names: Sequence[str], prefix: str = ""
) -> None:
    """A flag for each of some options that the command line can give; ``prefix`` goes before their names."""
    for name in names:
        if FIELDS[name].metadata.get("cli", True):
            _add_flag(group, name, FIELDS[name], _help(families, name), prefix)


def _add_flag(
    group: argparse._ArgumentGroup, name: str, field: dataclasses.Field, text: str, prefix: str = ""
) -> None:
    """A flag for a field of a table of settings. Not given is None: the table fills it in."""
    meta, kind = field.metadata, str(field.type).removesuffix(" | None")
    settings: dict[str, Any] = {"dest": prefix + name, "default": None, "help": text}
    if meta.get("negated"):
        group.add_argument(
            flag(f"no_{prefix}{name}"), **{**settings, "help": f"do not {text}"}, action="store_false"
        )
        return
    if kind == "bool":
        settings["action"] = "store_true"
    else:
        choices = meta.get("choices")
        settings["type"] = _checked(meta["check"], kind)
        settings["metavar"] = (
            "{" + ",".join(choices) + "}" if choices else meta.get("metavar", _METAVARS[kind])
        )
    group.add_argument(flag(prefix + name), **settings)


def flag(name: str) -> str:
    """An option's name on the command line."""
    return "--" + name.replace("_", "-")


def options_of_any(families: Sequence[Family]) -> list[str]:
    """The names of the options that at least one of the families has."""
    known = {name for family in families for name in options_of(family)}
    return [name for name in FIELDS if name in known]


def add_machine(parser: argparse.ArgumentParser, models: Mapping[str, str]) -> None:
    """Which models (a flag's name, and its default), and where and how they run."""
    group = parser.add_argument_group("model and machine")
    for name, model in models.items():
        group.add_argument(
            f"--{name}",
            default=model,
            metavar="DIR_OR_ID",
            help="a model directory, an id on the ModelScope hub, which is downloaded, or embedded: the "
            f"small model that ships with the package (default: {model})",
        )
    for name, field in RUNTIME.items():
        _add_flag(group, name, field, field.metadata["help"])


def given_runtime(args: argparse.Namespace) -> dict[str, Any]:
    """The runtime settings that stood on the command line, by their names in Python."""
    return given_options(args, RUNTIME)


def check_machine(args: argparse.Namespace) -> None:
    """Raises InputError for runtime settings that this machine cannot follow: before a download."""
    from ..devices import resolve_device
    from ..engine import components

    runtime = Runtime.of(given_runtime(args))
    components.check(runtime, resolve_device(runtime.device))


def add_loras(parser: argparse.ArgumentParser) -> None:
    """A flag for the LoRAs that the model gets."""
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        type=_lora,
        metavar="PATH[:SCALE]",
        help="a LoRA for the model, a file or PEFT's directory, and its strength (default: 1); may be given "
        "several times",
    )


def _lora(text: str) -> tuple[str, float]:
    """A path and a scale; a colon may also stand in the path, as behind a drive's letter."""
    path, colon, number = text.rpartition(":")
    if not colon or os.path.exists(text):
        return text, 1.0
    try:
        scale = float(number)
    except ValueError:
        return text, 1.0
    if not path or not math.isfinite(scale):
        raise argparse.ArgumentTypeError(f"{text!r} does not work: it must be a path, a colon and a number")
    return path, scale


def given_options(args: argparse.Namespace, names: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Those of some options that stood on the command line, by their names in Python."""
    values = {name: getattr(args, prefix + name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _checked(check: Callable[[Any], Any], kind: str) -> Callable[[str], Any]:
    """Reads a flag's text and has the table check it."""

    def read(text: str) -> Any:
        try:
            value = _NUMBERS.get(kind, str)(text)
        except ValueError:
            value = text  # the check says what it must be
        try:
            return check(value)
        except ValueError as error:
            short = text if len(text) <= 60 else text[:57] + "..."
            raise argparse.ArgumentTypeError(f"{short!r} does not work: it must be {error}") from None

    return read


def _help(families: Sequence[Family], name: str) -> str:
    having = [family for family in families if name in options_of(family)]
    text = _HERE.get(name) if not (having[0].takes_video and name == "num_frames") else None
    text = text or FIELDS[name].metadata["help"]
    default, *others = (_default(family, name) for family in having)
    for family, other in zip(having[1:], others):
        if other not in ("", default):
            default += f", of {family.name} {other}"
    if default:
        text += f" (default: {default})"
    if len(having) < len(families):
        text += f"; for {' and '.join(family.name for family in having)} only"
    return text.replace("%", "%%")


def _default(family: Family, name: str) -> str:
    """A default as the help tells it; an empty text where there is nothing to tell."""
    default = {**{key: field.default for key, field in FIELDS.items()}, **family_defaults(family)}[name]
    if name == "fps":
        default = "the input's" if family.takes_video else family.fps
    if name == "negative_prompt" and default:
        default = "a list of usual flaws"
    if default is None or default is False:
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def say(text: str = "") -> None:
    """A line for the person, on standard output."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line beside the results, on standard error."""
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)
