"""Sections of documents that benchmarks write."""

from __future__ import annotations

from pathlib import Path


def write_section(path: Path, name: str, text: str) -> None:
    """Puts ``text`` between a file's lines ``<!-- name: begin -->`` and ``<!-- name: end -->``.

    Raises ValueError if they are not both there once, in that order; the file then stays as it is.
    """
    begin, end = (f"<!-- {name}: {edge} -->" for edge in ("begin", "end"))
    whole = path.read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(begin) > whole.index(end):
        raise ValueError(f"{path} should hold the lines {begin} and {end} once each, in that order.")
    before, rest = whole.split(begin)
    after = rest.split(end)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
