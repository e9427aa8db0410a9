"""What tests of several folders share: small checkpoints, a picture and a video to work on."""

from __future__ import annotations

import os

# Small networks gain nothing from a second thread, and threads that wait spin: on busy cores tenfold work.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from checkpoints_factory import make_checkpoint
from PIL import Image

SLOW = (
    "adapters/test_adapters_diffusers.py",
    "adapters/test_adapters_pipeline.py",
    "benchmark",
    "cli/test_cli_commands.py",
    "cli/test_cli_decode.py",
    "cli/test_cli_demo.py",
    "cli/test_cli_embedded.py",
    "cli/test_cli_like.py",
    "core/test_anchor_loop.py",
    "core/test_calls.py",
    "core/test_cascade.py",
    "core/test_compilation.py",
    "core/test_generator.py",
    "core/test_quantization.py",
    "core/test_speed.py",
    "core/test_together.py",
    "core/test_wrapping.py",
    "evaluation",
    "parity",
    "plugin",
    "test_examples.py",
    "test_packaging.py",
    "training",
)
"""Files and folders whose tests make videos, train, compile or start processes: the mark ``slow``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks slow tests, and puts them first, so that no worker is left with one of them at the end."""
    here = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(here)
        if str(path) in SLOW or path.parts[0] in SLOW:
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small checkpoint directory of a task, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(task: str) -> Path:
        if task not in made:
            made[task] = make_checkpoint(tmp_path_factory.mktemp(task), task)
        return made[task]

    return of


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """Blots of colour, 320×240."""
    colours = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((320, 240), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory, picture: Image.Image) -> Path:
    """An MP4 of three frames, 160×96, 8 fps, on which ``picture`` moves to the right."""
    path = tmp_path_factory.mktemp("video") / "moving picture.mp4"
    still = np.asarray(picture.resize((160, 96)))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(np.roll(still, 4 * index, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
