"""A contact sheet: a whole video at a glance, in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError

_MARGIN, _GAP, _LABEL = 20, 10, 24
_BACKGROUND, _TEXT = (250, 250, 248), (110, 110, 108)
_SMALLEST = 160
"""Width below which frames are enlarged, if a whole number of times fits, so that they can be seen."""


def contact_sheet(
    frames: Sequence[np.ndarray],
    *,
    columns: int = 4,
    rows: int = 2,
    max_width: int = 1280,
    fps: float | None = None,
    title: str = "",
) -> Image.Image:
    """Evenly spaced frames, the first and the last among them, in a grid.

    Args:
        frames: uint8 [f, h, w, 3] RGB.
        columns: pictures in a row; fewer where there are fewer frames.
        rows: the most rows.
        max_width: of the sheet, in pixels.
        fps: labels each picture with its time; ``None`` with the number of its frame, from 1.
        title: a line above them, cut to the sheet's width.
    """
    if not len(frames) or columns < 1 or rows < 1:
        raise InputError("A contact sheet needs at least one frame, one column and one row.")
    count = min(len(frames), columns * rows)
    columns = min(columns, count)
    rows = -(-count // columns)
    height, width = frames[0].shape[:2]
    room = (max_width - 2 * _MARGIN - (columns - 1) * _GAP) // columns
    times = min(-(-_SMALLEST // width), room // width)  # whole times, so that pixels stay sharp
    cell_width = width * times if times > 1 else max(1, min(room, width))
    top = _MARGIN + (_LABEL if title else 0)
    cell_height = max(1, round(height * cell_width / width))
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + columns * cell_width + (columns - 1) * _GAP,
            top + _MARGIN + rows * (cell_height + _LABEL) + (rows - 1) * _GAP,
        ),
        _BACKGROUND,
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    while title and draw.textlength(title, font) > sheet.width - 2 * _MARGIN:
        title = title.rstrip("…")[:-1] + "…" if len(title) > 2 else ""
    draw.text((_MARGIN, _MARGIN - 4), title, _TEXT, font)
    way = Image.Resampling.NEAREST if times > 1 else Image.Resampling.LANCZOS
    for place, index in enumerate(np.linspace(0, len(frames) - 1, count).round().astype(int)):
        row, column = divmod(place, columns)
        x = _MARGIN + column * (cell_width + _GAP)
        y = top + row * (cell_height + _LABEL + _GAP)
        picture = Image.fromarray(np.ascontiguousarray(frames[index]))
        sheet.paste(picture.resize((cell_width, cell_height), way), (x, y))
        label = f"{index + 1}" if fps is None else f"{index / fps:.2f} s"
        draw.text((x + cell_width / 2, y + cell_height + 5), label, _TEXT, font, anchor="ma")
    return sheet
