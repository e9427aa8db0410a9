"""Loading a checkpoint, each time in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import torch
from oracle import stock

from modelscope_i2v.spec.families import FAMILIES

from ..load import forget
from .measure import timed
from .subjects import build


def load_apart(name: str, mode: str, family: str, device: str, directory: Path) -> tuple[float, float | None]:
    """:func:`load` in a process of its own, from files that are not in the system's cache."""
    forget(directory)
    # A server that has imported everything forks the processes: each starts at once, and all alike.
    served = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if served else "spawn")
    if served:
        context.set_forkserver_preload([__name__])
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}  # the server does not take it over by itself
    with mock.patch.dict(os.environ, path), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(load, name, mode, family, device, directory).result()


def load(name: str, mode: str, family: str, device: str, directory: Path) -> tuple[float, float | None]:
    """Loads once in this process.

    Returns:
        Seconds, and the peak of this process's memory in GB over what the imports hold.
    """
    if name == "stock":
        stock.load()
    place = torch.device(device)
    if place.type == "cuda":
        torch.zeros(1, device=place)  # the driver's own start does not count
    loaded = timed(lambda: build(name, mode, FAMILIES[family], place, directory, light=False), place)
    return loaded.seconds, loaded.memory_gb
