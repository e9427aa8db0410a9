"""Rewrites the table of peaks in docs/memory.md: ``python scripts/memory_table.py``, half a minute, no GPU.

Bytes are counted on networks without contents (modelscope_i2v/memory_model.py), none are measured.
"""

from __future__ import annotations

from pathlib import Path

import torch

from modelscope_i2v.families import FAMILIES, TEXT_TO_VIDEO
from modelscope_i2v.memory_model import MODES, Model, peak
from modelscope_i2v.options import resolve

BEGIN, END = "<!-- peaks: begin -->", "<!-- peaks: end -->"


def table() -> str:
    """A row for each family's default video, and one for a long video, in GB."""
    cases = [(family, resolve(family, {})) for family in FAMILIES.values()]
    cases.append((TEXT_TO_VIDEO, resolve(TEXT_TO_VIDEO, {"num_frames": 250})))
    lines = ["| full-size model, fp16 | video | " + " | ".join(f"`{mode}`" for mode in MODES) + " |"]
    lines.append("|---|---|" + "---|" * len(MODES))
    for family, options in cases:
        video = f"{options.num_frames} × {options.width}×{options.height}"
        peaks = (peak(Model.full_size(family), options, torch.float16, mode) / 1e9 for mode in MODES)
        lines.append(f"| {family.name} | {video} | " + " | ".join(f"{p:.1f} GB" for p in peaks) + " |")
    return "\n".join(lines)


def main() -> None:
    path = Path(__file__).resolve().parent.parent / "docs" / "memory.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
