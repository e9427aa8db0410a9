"""JSON configurations, read value by value, with errors that name file and key."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError


class Section:
    """An object of a JSON file that knows its dotted name there, for errors."""

    def __init__(self, values: dict[str, Any], name: str, file: Path) -> None:
        self.values, self.name, self.file = values, name, file

    @classmethod
    def read(cls, file: Path) -> Section:
        """A whole JSON file. Raises CheckpointError where it is no JSON object."""
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

    def section(self, key: str) -> Section:
        """An inner object; an empty one where the key is absent."""
        return Section(self.get(key, dict, "an object") or {}, self.dotted(key), self.file)

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


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {key: value for key, value in values.items() if value is not None}
