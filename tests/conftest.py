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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
