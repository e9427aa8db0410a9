"""Tables of settings: dataclass fields that carry their check, their help and where they apply.

Each table is a frozen dataclass whose fields are made by :func:`setting`. What reads a table (a call, a
loader, the command line, the documentation) follows by itself when a field is added. Torch is not imported
here: a mistake is reported before any model loads.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..errors import InputError

Check = Callable[[Any], Any]
"""Returns a value as the table keeps it, or raises ValueError with what it must be ("a whole number")."""


def setting(check: Check, text: str, default: Any = None, **metadata: Any) -> Any:
    """A field with its check and its sentence of help.

    Args:
        metadata: ``choices``: the values there are. ``cli``: False where the command line has no flag for it.
            ``applies``: a predicate of a family.
    """
    return dataclasses.field(default=default, metadata={"check": check, "help": text, **metadata})


def fields(table: type) -> dict[str, dataclasses.Field[Any]]:
    """A table's fields by name, in order."""
    return {field.name: field for field in dataclasses.fields(table)}


def checked(table: type, name: str, value: Any) -> Any:
    """One setting's value, checked. Raises InputError."""
    try:
        return fields(table)[name].metadata["check"](value)
    except ValueError as error:
        raise InputError(f"{name}={shortened(value)} does not work: it must be {error}.") from None


def nearest(name: str, known: Collection[str]) -> str | None:
    """The name that was likely meant, if one is near."""
    near = [other for other in known if name in other] or difflib.get_close_matches(name, list(known), n=1)
    return near[0] if near else None


def unknown(owner: str, name: str, known: Collection[str]) -> str:
    """The sentence for a setting that ``owner`` does not have, with the nearest one or all."""
    near = nearest(name, known)
    hint = f"did you mean {near!r}?" if near else f"it has {', '.join(known)}."
    return f"{owner} has no option {name!r}; {hint}"


def shortened(value: Any) -> str:
    """A value for an error message, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def given(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The values that were given (not None), of some names."""
    return {name: value for name, value in values.items() if name in names and value is not None}


def integer(low: int, high: int) -> Check:
    """A whole number in a range, both ends included."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise ValueError("a whole number")
        whole: int = value.__index__()
        if not low <= whole <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return whole

    return check


def number(low: float, high: float, *, above: bool = False) -> Check:
    """A finite number in a range; ``above`` leaves out the lower end."""
    wanted = f"a number {'above' if above else 'from'} {low:g} {'and up ' if above else ''}to {high:g}"

    def check(value: Any) -> float:
        if isinstance(value, (bool, str, bytes)):
            raise ValueError(wanted)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(wanted) from None
        if not math.isfinite(number) or not low <= number <= high or (above and number == low):
            raise ValueError(wanted)
        return number

    return check


def choice(*names: str) -> Check:
    """One of some names."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError("one of " + ", ".join(names))
        return value

    return check


def instance(kind: type | Callable[[Any], bool], wanted: str) -> Check:
    """A value of a type, or one that a predicate accepts."""

    def check(value: Any) -> Any:
        if not (isinstance(value, kind) if isinstance(kind, type) else kind(value)):
            raise ValueError(wanted)
        return value

    return check


flag = instance(bool, "True or False")
"""Check of a switch."""
