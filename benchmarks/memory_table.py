"""Rewrites the table of peaks in docs/evidence/memory.md: ``python -m benchmarks.memory_table``.

Half a minute, no GPU. Bytes are counted on networks without contents (modelscope_i2v/memory/count.py); none
are measured.
"""

from __future__ import annotations

import torch

from modelscope_i2v.memory.count import MODES, Model, peak
from modelscope_i2v.spec.families import FAMILIES, TEXT_TO_VIDEO
from modelscope_i2v.spec.options import resolve

from . import ROOT
from .sections import write_section

DOCUMENT = ROOT / "docs" / "evidence" / "memory.md"


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


if __name__ == "__main__":
    write_section(DOCUMENT, "peaks", table())
