"""The errors a person is meant to read.

Every message is one sentence or two: what was wrong, where (file, key or argument), and what would
be right. All of them accept a single string, because ModelScope re-raises whatever a constructor
raises as ``type(error)(f"{class name}: {error}")``.
"""

import re
from collections.abc import Sequence
from typing import Any

_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
"""What moves a terminal's cursor, breaks the line or turns its direction, and what is no letter at all."""

_LONG_WORD, _LONG_MESSAGE = 300, 3000


class VideoError(Exception):
    """Base of all errors that this package raises on purpose.

    Attributes:
        finished: of a call for several inputs, the videos that were done before one failed.

    Names in files and paths may be anything: in the message, line breaks become
    spaces and other control characters ``?``, and words and
    messages beyond all measure are cut in the middle.
    """

    finished: Sequence[Any] = ()

    def __init__(self, *args: object) -> None:
        super().__init__(*(readable(arg) if isinstance(arg, str) else arg for arg in args))


def readable(text: str) -> str:
    """A text from anywhere as a line that a terminal can show."""
    text = _UNSEEN.sub("?", re.sub(r"[\t\r\n]+", " ", text))
    text = re.sub(rf"\S{{{_LONG_WORD},}}", lambda word: _cut(word[0], _LONG_WORD), text)
    return _cut(text, _LONG_MESSAGE)


def _cut(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"


class InputError(VideoError, ValueError):
    """An argument, an option or an input file that cannot be used."""


class CheckpointError(VideoError):
    """A model directory or a weights file that cannot be used."""


class OutputError(VideoError, OSError):
    """A result that cannot be written where it was asked for."""


class OutOfMemoryError(VideoError, RuntimeError):
    """The device has too little memory; the message names the options that need less."""


class NumericalError(VideoError, ArithmeticError):
    """A result with NaN or infinity, also after computing it again in a wider type."""


class Cancelled(VideoError):
    """A callback returned ``False``."""
