"""JSON configurations, read value by value, with errors that name file and key."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, InputError
from ..files import read_json
from ..spec.options import check

LARGEST = 1 << 16
"""Above it no size, count or length in any configuration of these networks makes sense."""

DEEPEST = 128
"""More layers than any tower has, and blocks than any level: each takes time to build."""

_ENTRIES = 8
"""Of a list: the networks' levels are four."""

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxlist, _SHOWN.maxstring, _SHOWN.maxother = 2, 12, 80, 80


class Section:
    """An object of a JSON file that knows its dotted name there, for errors."""

    def __init__(self, values: dict[str, Any], name: str, file: Path) -> None:
        self.values, self.name, self.file = values, name, file

    @classmethod
    def read(cls, file: Path) -> Section:
        """A whole JSON file. Raises CheckpointError where it is no JSON object."""
        values = read_json(file)
        if not isinstance(values, dict):
            raise CheckpointError(f"{file} should hold a JSON object, and holds a {type(values).__name__}.")
        return cls(values, "", file)

    def dotted(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def error(self, key: str, right: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: {self.dotted(key)} is {_SHOWN.repr(self.values.get(key))} and should be {right}."
        )

    def section(self, key: str) -> Section:
        """An inner object; an empty one where the key is absent."""
        return Section(self.get(key, dict, "an object") or {}, self.dotted(key), self.file)

    def only(self, keys: Collection[str], right: str) -> None:
        """Refuses other keys than these."""
        for key in self.values:
            if key not in keys:
                raise self.error(key, right)

    def get(self, key: str, kind: type, right: str, valid: Callable[[Any], bool] = lambda _: True) -> Any:
        """A value of just this type, or None where the key is absent (or null)."""
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) is not kind or not valid(value):
            raise self.error(key, right)
        return value

    def text(self, key: str) -> str | None:
        text: str | None = self.get(key, str, "a text that is not empty", bool)
        return text

    def integer(self, key: str, at_least: int = 1, at_most: int = LARGEST) -> int | None:
        right = f"a whole number from {at_least} up" + (
            f" to {at_most:,}" if self._over(key, at_most) else ""
        )
        whole: int | None = self.get(key, int, right, lambda value: at_least <= value <= at_most)
        return whole

    def number(self, key: str, at_most: float = math.inf) -> float | None:
        value: float | None = self.values.get(key)
        if value is None:
            return None
        if not _is_number(value) or not 0 <= value <= at_most:
            raise self.error(
                key, "a number from 0 up" + (f" to {at_most:,g}" if self._over(key, at_most) else "")
            )
        return value

    def integers(self, key: str, at_most: int = LARGEST) -> tuple[int, ...] | None:
        """A list of few numbers."""
        value = self.get(key, list, "a list of whole numbers from 1 up")
        if value is None:
            return None
        if not value or not all(type(item) is int and item > 0 for item in value):
            raise self.error(key, "a list of whole numbers from 1 up")
        if len(value) > _ENTRIES or max(value) > at_most:
            raise self.error(key, f"a list of at most {_ENTRIES} whole numbers from 1 to {at_most:,}")
        return tuple(value)

    def numbers(self, key: str) -> tuple[float, ...] | None:
        value = self.get(key, list, "a list of numbers", lambda items: all(map(_is_number, items)))
        if value is not None and len(value) > _ENTRIES:
            raise self.error(key, f"a list of at most {_ENTRIES} numbers")
        return None if value is None else tuple(float(item) for item in value)

    def _over(self, key: str, most: float) -> bool:
        """Whether the error has to name the upper bound, which is far from all that anyone writes."""
        value = self.values.get(key)
        return isinstance(value, (int, float)) and value > most


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 1 << 60)


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {key: value for key, value in values.items() if value is not None}


def checked_options(options: dict[str, Any], file: Path) -> dict[str, Any]:
    """Defaults that a file sets for a call, checked as the call checks them. Raises CheckpointError."""
    for name, value in options.items():
        try:
            check(name, value)
        except InputError as error:
            raise CheckpointError(f"{file}: its {error}") from None
    return options
