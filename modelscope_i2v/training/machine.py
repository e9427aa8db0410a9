"""Where a run computes: one process, or several of them by Accelerate."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..devices import resolve_device
from ..errors import InputError

PATIENCE = datetime.timedelta(days=2)
"""How long processes wait for another one, which may be making a cache of all data."""


class Machine:
    """This process among those of a run.

    ``accelerate launch`` and ``torchrun`` start several processes; each then has a device and an equal share
    of every step's clips. Alone, nothing of Accelerate is needed.

    Attributes:
        device: of this process.
        rank, world: its number, and how many there are.

    Raises:
        InputError: for a device that is not there, and for several processes without Accelerate.
    """

    def __init__(self, device: str | None = None) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = 0
        self._accelerator = None
        if self.world > 1:
            try:
                from accelerate import Accelerator
                from accelerate.utils import InitProcessGroupKwargs
            except ImportError as error:
                raise InputError(
                    "Training by several processes needs the package accelerate: "
                    "pip install modelscope-i2v[train]."
                ) from error
            patient = InitProcessGroupKwargs(timeout=PATIENCE)
            self._accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[patient])
            self.device, self.rank = self._accelerator.device, self._accelerator.process_index
        else:
            self.device = resolve_device(device)

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network to compute with: its gradients are averaged over all processes."""
        return network if self._accelerator is None else self._accelerator.prepare_model(network)

    def local(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Meanwhile, gradients stay in this process: more are to be added to them."""
        return contextlib.nullcontext() if self._accelerator is None else self._accelerator.no_sync(network)

    def mean(self, value: Tensor) -> Tensor:
        """Of a number over all processes."""
        return value if self._accelerator is None else self._accelerator.reduce(value, "mean")

    def any(self, wish: bool) -> bool:
        """Whether any process wishes something."""
        if self._accelerator is None:
            return wish
        return bool(self._accelerator.reduce(torch.tensor(float(wish), device=self.device), "sum") > 0)

    def alone(self, act: Callable[[], object]) -> None:
        """Has the main process do something, while the others wait.

        An error of it ends all of them.
        """
        error: Exception | None = None
        if self.main:
            try:
                act()
            except Exception as caught:
                error = caught
        if self.any(error is not None):
            raise error if error is not None else SystemExit(1)
