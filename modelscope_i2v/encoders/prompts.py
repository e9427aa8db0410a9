"""What a prompt's text asks for: the weights of its words, and its tokens in rows of 77."""

from __future__ import annotations

import functools
import re
import warnings

import open_clip
import torch
from torch import Tensor

from ..errors import InputError

CONTEXT_LENGTH = 77
"""Tokens of CLIP's text tower; the first and the last are its start and end marks."""

MAX_WEIGHT = 10.0

_ROW = CONTEXT_LENGTH - 2
_SYNTAX = re.compile(r":\s*[+-]?[\d.]+\s*\\?\)")
# "(16:9)" and "(at 10:30)" are no weights: between two digits a colon needs a decimal point behind it.
_WEIGHT = re.compile(r"(?:(?<!\d):\s*([+-]?(?:\d+\.?\d*|\.\d+))|:\s*([+-]?\d*\.\d+))\s*$")
_PARTS = re.compile(r"\\[()]|[()]|[^()\\]+|\\")

Words = list[tuple[str, float]]
"""Stretches of a text, each with its weight."""


def parse(text: str) -> Words:
    r"""Parts a text into stretches of equal weight; ``(words:1.3)`` weighs its words 1.3 times as much.

    Groups nest, and their weights multiply. ``\(`` and ``\)`` are brackets that mean nothing, and so
    are brackets without a number. A text that holds no weight is one stretch, letter for letter.

    Raises:
        InputError: for a weight that is not from 0 to 10.
    """
    if not _SYNTAX.search(text):
        return [(text, 1.0)]
    groups: list[Words] = [[]]
    for part in _PARTS.findall(text):
        if part == "(":
            groups.append([])
        elif part == ")" and len(groups) > 1:
            group = groups.pop()
            groups[-1] += _weighted(group, text)
        else:
            groups[-1].append((part[1] if len(part) == 2 and part[0] == "\\" else part, 1.0))
    while len(groups) > 1:  # brackets that were never closed
        group = groups.pop()
        groups[-1] += [("(", 1.0), *group]
    return _joined(groups[0])


def _weighted(group: Words, text: str) -> Words:
    """A closed group without its brackets and its number; with both, if it is no weight."""
    last, weight = group[-1] if group else ("", 1.0)
    found = _WEIGHT.search(last) if weight == 1 else None
    inside = [*group[:-1], (last[: found.start()], 1.0)] if found else []
    if found is None or not any(words.strip() for words, _ in inside):
        return [("(", 1.0), *group, (")", 1.0)]
    factor = float(found[1] or found[2])
    weighted = [(words, weight * factor) for words, weight in inside]
    for words, weight in weighted:
        if not 0 <= weight <= MAX_WEIGHT:
            raise InputError(
                f"{words.strip()!r} has the weight {weight:g} in the text {text!r}; weights are from 0 to "
                f"{MAX_WEIGHT:g}. (Brackets that mean no weight are written \\( and \\).)"
            )
    return weighted


def _joined(stretches: Words) -> Words:
    joined: Words = []
    for words, weight in stretches:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + words, weight)
        else:
            joined.append((words, weight))
    return [(words, weight) for words, weight in joined if words]


@functools.cache
def _tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def _rows(text: str, limit: int | None = None) -> list[list[tuple[int, float]]]:
    """Tokens and their weights, at most 75 in a row; only the last of ``limit`` rows is cut in a word."""
    tokenizer = _tokenizer()
    left = [(token, weight) for words, weight in parse(text) for token in tokenizer.encode(words)]
    rows = []
    while len(left) > _ROW and (limit is None or len(rows) + 1 < limit):
        ends = (n for n in range(_ROW, 0, -1) if tokenizer.decoder[left[n - 1][0]].endswith("</w>"))
        cut = next(ends, _ROW)
        rows.append(left[:cut])
        left = left[cut:]
    return [*rows, left[:_ROW]]


def rows_needed(text: str) -> int:
    """How many rows of 77 tokens hold all of a text; at least one."""
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
    tokens = [token for row in _rows(text) for token, _ in row]
    if len(tokens) > _ROW and not long:
        lost = _tokenizer().decode(tokens[_ROW:]).strip()
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
