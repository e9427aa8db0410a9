"""A prompt's text: the weights of its words, and its tokens in rows of 77.

Anybody may have written a text, so all of this takes time in proportion to its length.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator
from itertools import groupby, islice

import open_clip
import torch
from torch import Tensor

from ..errors import InputError

CONTEXT_LENGTH = 77
"""Tokens of CLIP's text tower; the first and the last are its start and end marks."""

MAX_WEIGHT = 10.0
MAX_NESTING = 64
"""Groups with a weight that may lie in each other."""

_ROW = CONTEXT_LENGTH - 2
_SYNTAX = re.compile(r":\s*[+-]?[\d.]+\s*\\?\)")
# "(16:9)" and "(at 10:30)" are no weights: between two digits a colon needs a decimal point behind it.
_WEIGHT = re.compile(r"(?:(?<!\d):\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))|:\s*([+-]?\d*\.\d+))\s*$")
_PARTS = re.compile(r"\\[()]|[()]|[^()\\]+|\\")
# A word's tokens take time in proportion to the square of its length;
# no word with a meaning is so long.
_LONG_WORD = re.compile(r"\S{257}")
_PIECES = re.compile(r"\S{1,256}\s*|\s+")
_QUOTED = 40
"""Tokens that a warning quotes."""

Words = list[tuple[str, float]]
"""Stretches of a text, each with its weight."""


def parse(text: str) -> Words:
    r"""Parts a text into stretches of equal weight; ``(words:1.3)`` weighs its words 1.3 times as much.

    Groups nest, and their weights multiply. ``\(`` and ``\)`` are brackets that mean nothing, and so
    are brackets without a number. A text that holds no weight is one stretch, letter for letter.

    Raises:
        InputError: for a weight that is not from 0 to 10, or more than 64 weights in each other.
    """
    if not _SYNTAX.search(text):
        return [(text, 1.0)]
    stretches: Words = []
    opened: list[tuple[int, int]] = []  # open brackets: index of the stretch, weights inside
    for part in _PARTS.findall(text):
        if part == "(":
            opened.append((len(stretches), 0))
        elif part == ")" and opened:
            start, nesting = opened.pop()
            weighted = _weighted(stretches, start + 1, text)
            if weighted is not None:
                stretches[start:] = weighted
                nesting += 1
            if nesting > MAX_NESTING:
                raise InputError(f"A text has more than {MAX_NESTING} weights in each other: {text!r}.")
            if opened:
                opened[-1] = opened[-1][0], max(opened[-1][1], nesting)
            if weighted is not None:
                continue
        stretches.append((part[1] if len(part) == 2 and part[0] == "\\" else part, 1.0))
    pieces = (
        (weight, "".join(words for words, _ in run)) for weight, run in groupby(stretches, lambda s: s[1])
    )
    return [(words, weight) for weight, words in pieces if words]


def _weighted(stretches: Words, start: int, text: str) -> Words | None:
    """A group from ``start`` on, weighted and without its number; ``None`` if it has none."""
    last, weight = stretches[-1] if len(stretches) > start else ("", 1.0)
    found = _WEIGHT.search(last) if weight == 1 else None
    if found is None:
        return None
    inside = [*stretches[start:-1], (last[: found.start()], 1.0)]
    if not any(words.strip() for words, _ in inside):
        return None
    factor = float(found[1] or found[2])
    weighted = [(words, weight * factor) for words, weight in inside]
    for words, weight in weighted:
        if not 0 <= weight <= MAX_WEIGHT:
            raise InputError(
                f"{words.strip()!r} has the weight {weight:g} in the text {text!r}; weights are from 0 to "
                f"{MAX_WEIGHT:g}. (Brackets that mean no weight are written \\( and \\).)"
            )
    return weighted


@functools.cache
def _tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def _tokens(text: str) -> Iterator[tuple[int, float]]:
    """Tokens and their weights."""
    for words, weight in parse(text):
        for piece in _PIECES.findall(words) if _LONG_WORD.search(words) else [words]:
            for token in _tokenizer().encode(piece):
                yield token, weight


def _rows(text: str, limit: int | None = None) -> list[list[tuple[int, float]]]:
    """Tokens and their weights, at most 75 in a row; only the last of ``limit`` rows is cut in a word."""
    decoder = _tokenizer().decoder
    tokens = list(islice(_tokens(text), None if limit is None else limit * _ROW + 1))
    rows, start = [], 0
    while len(tokens) - start > _ROW and (limit is None or len(rows) + 1 < limit):
        ends = (n for n in range(_ROW, 0, -1) if decoder[tokens[start + n - 1][0]].endswith("</w>"))
        end = start + next(ends, _ROW)
        rows.append(tokens[start:end])
        start = end
    return [*rows, tokens[start : start + _ROW]]


def rows_needed(text: str) -> int:
    """The number of rows of 77 tokens that a text takes; at least one."""
    return len(_rows(text))


def tokenize(text: str, rows: int = 1) -> tuple[Tensor, Tensor]:
    """A text as CLIP's text tower takes it, each row between its own start and end mark.

    Args:
        rows: how many to make: what a text has no words for is empty, what does not fit is cut off.

    Returns:
        Tokens [rows, 77] int64 and their weights [rows, 77]. For one row the tokens are those of
        ``open_clip.tokenize``.
    """
    encoder = _tokenizer().encoder
    start, end = encoder["<start_of_text>"], encoder["<end_of_text>"]
    tokens = torch.zeros(rows, CONTEXT_LENGTH, dtype=torch.long)
    weights = torch.ones(rows, CONTEXT_LENGTH)
    tokens[:, 0], tokens[:, 1] = start, end
    for index, row in enumerate(_rows(text, rows)):
        if row:
            tokens[index, 1 : len(row) + 1] = torch.tensor([token for token, _ in row])
            weights[index, 1 : len(row) + 1] = torch.tensor([weight for _, weight in row])
            tokens[index, len(row) + 1] = end
    return tokens, weights


def check_text(text: str, *, long: bool = False, what: str = "The text") -> None:
    """Warns of what the text tower will not see or not understand.

    Args:
        long: the text may take several rows, so that nothing is cut off.

    Raises:
        InputError: for a weight out of range.
    """
    words = "".join(words for words, _ in parse(text))
    tokens = [token for token, _ in islice(_tokens(text), _ROW + _QUOTED + 1)]
    if len(tokens) > _ROW and not long:
        lost = _tokenizer().decode(tokens[_ROW : _ROW + _QUOTED]).strip()
        lost += "…" * (len(tokens) > _ROW + _QUOTED)
        warnings.warn(
            f"{what} is longer than CLIP's {CONTEXT_LENGTH} tokens; its end has no effect: {lost!r}. "
            "long_prompt=True reads all of it.",
            stacklevel=2,
        )
    letters = [character for character in words if character.isalpha()]
    if letters and sum(character.isascii() for character in letters) < 0.5 * len(letters):
        warnings.warn(
            f"{what} has hardly a Latin letter, and the models were trained on English: expect a video that "
            "has little to do with it.",
            stacklevel=2,
        )
