"""The model card of a trained model: README.md with the front matter that ModelScope's hub reads."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..memory.count import denoising
from ..spec.families import Family
from ..spec.network import STUNetConfig

_MEGABYTE = 1_000_000
_PROCESS = 1500
"""Megabytes that a process with Python, PyTorch and ModelScope takes before a model is loaded."""


def memory(weights: int, config: STUNetConfig, frames: int, height: int, width: int) -> dict[str, int]:
    """The hub's ``inferencespec``: an estimate of the memory for inference, in megabytes.

    Args:
        weights: bytes of the model's files.
        height, width: of a video, in pixels.
    """
    canvas = config.canvas(height // 8, width // 8)

    def activations(dtype: torch.dtype) -> int:
        return denoising(config, 2, frames, *canvas, dtype)  # both branches of guidance

    def rounded(size: int) -> int:
        return math.ceil((size / _MEGABYTE + _PROCESS) / 500) * 500

    # Weights are fp32 on a CPU, and mostly fp16 in the files.
    return {
        "cpu": 4,
        "memory": rounded(2 * weights + activations(torch.float32)),
        "gpu": 1,
        "gpu_memory": rounded(weights + activations(torch.float16)),
    }


def inputs(family: Family) -> list[dict[str, Any]]:
    """The fields of the hub's demo page."""
    picture = {"type": "image", "name": "image", "title": "Picture"}
    video = {"type": "video", "name": "video_path", "title": "Video"}
    text = {"type": "text", "name": "text", "title": "Text", "validator": {"max_words": 75}}
    wanted = [video] if family.takes_video else [picture] if family.reads_image else []
    return [*wanted, text] if family.reads_text else wanted


def front_matter(
    family: Family, spec: Mapping[str, int], example: Mapping[str, str], fields: Mapping[str, Any] = {}
) -> str:
    """The YAML at the top of a card, between its lines of dashes.

    Args:
        spec: the result of :func:`memory`.
        example: values of the inputs by name; a file is ``git://`` and its path in the repository.
        fields: values that replace these fields or come in addition, such as ``license``.
    """
    content = {
        "tasks": [family.task],
        "domain": ["multi-modal"],
        "frameworks": ["pytorch"],
        "license": "Apache License 2.0",
        "language": ["en"],
        "tags": ["modelscope-i2v", family.name],
        "widgets": [
            {
                "task": family.task,
                "inputs": inputs(family),
                "examples": [
                    {
                        "name": 1,
                        "title": "Example 1",
                        "inputs": [{"name": name, "data": value} for name, value in example.items()],
                    }
                ],
                "inferencespec": dict(spec),
            }
        ],
        **fields,
    }
    return "---\n" + "\n".join(_yaml(content, 0)) + "\n---\n"


def _yaml(value: Any, depth: int) -> list[str]:
    """Lines of YAML; texts are quoted as in JSON, which YAML understands."""
    space = "  " * depth
    lines: list[str] = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, (Mapping, list)) and item:
                lines += [f"{space}{_key(key)}:", *_yaml(item, depth + 1)]
            else:
                lines.append(f"{space}{_key(key)}: {_flow(item)}")
    else:
        for item in value:
            if isinstance(item, Mapping) and item:
                first, *rest = _yaml(item, depth + 1)
                lines += [f"{space}- {first.lstrip()}", *rest]
            else:
                lines.append(f"{space}- {_flow(item)}")
    return lines


def _key(key: str) -> str:
    plain = re.fullmatch("[a-z_]{3,}", key) and key not in ("true", "false", "null", "yes", "off")
    return key if plain else _flow(key)


def _flow(value: Any) -> str:
    """A value on one line; letters that YAML does not allow are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)


def text(family: Family, header: str, name: str, facts: Mapping[str, Any], example: Mapping[str, str]) -> str:
    """A whole README.md.

    Args:
        header: the result of :func:`front_matter`.
        facts: rows of the table about the training.
    """
    stand_ins = {"image": "picture.png", "video_path": "video.mp4"}
    given = {
        wanted["name"]: example.get(wanted["name"], stand_ins.get(wanted["name"], "")).removeprefix("git://")
        for wanted in inputs(family)
    }
    call = json.dumps(given if len(given) > 1 else next(iter(given.values())), ensure_ascii=False)
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""{header}
# {name}

A model for {family.task}, trained with modelscope-i2v.

## Use

```python
import modelscope_i2v
from modelscope.pipelines import pipeline

make = pipeline("{family.task}", "path/to/this/model")
make({call}, output_video="video.mp4")
```

## Training

| | |
|---|---|
{rows}

The loss is in `curve.png`, point by point in `curve.jsonl`, and the whole configuration in `train.json`.
"""


def example(family: Family, directory: Path, samples: Sequence[Any], caption: str) -> dict[str, str]:
    """Example inputs: the first of ``samples`` (inputs of the pipeline), or a caption of the data.

    A file is copied into the model's directory; an example whose file cannot be copied goes without.
    """
    first = samples[0] if samples else {}
    given = dict(first) if isinstance(first, Mapping) else {inputs(family)[0]["name"]: first}
    made = {}
    for name in (wanted["name"] for wanted in inputs(family)):
        value = given.get(name, caption if name == "text" else None)
        if name != "text" and isinstance(value, str) and os.path.isfile(value):
            copy = directory / f"example{Path(value).suffix.lower()}"
            with contextlib.suppress(OSError):  # a finished model is worth more than its example
                shutil.copyfile(value, copy)
                made[name] = f"git://{copy.name}"
        elif name == "text":
            made[name] = str(value)
    return made
