"""The processes of a run: one, or several with Accelerate."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..devices import resolve_device
from ..errors import InputError

TIMEOUT = datetime.timedelta(days=2)
"""Time that processes wait for the main one, which may be encoding all data into a cache."""


class Machine:
    """This process of a run.

    ``accelerate launch`` and ``torchrun`` start several processes; each has its own device and an equal share
    of every step's clips. A single process does not need Accelerate.

    Attributes:
        device: the device of this process.
        rank, world: number of this process, and of all processes.

    Raises:
        InputError: a device that does not exist, or several processes without Accelerate.
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
            waiting = InitProcessGroupKwargs(timeout=TIMEOUT)
            self._accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[waiting])
            self.device, self.rank = self._accelerator.device, self._accelerator.process_index
        else:
            self.device = resolve_device(device)

    @property
    def main(self) -> bool:
        """True in the process that writes files and shows progress."""
        return self.rank == 0

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network wrapped so that gradients are averaged over all processes."""
        return network if self._accelerator is None else self._accelerator.prepare_model(network)

    def no_sync(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        """A context in which gradients are accumulated without being averaged over the processes."""
        return contextlib.nullcontext() if self._accelerator is None else self._accelerator.no_sync(network)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a number over all processes."""
        return value if self._accelerator is None else self._accelerator.reduce(value, "mean")

    def any(self, flag: bool) -> bool:
        """True if the flag is set in any process."""
        if self._accelerator is None:
            return flag
        return bool(self._accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum") > 0)

    def on_main(self, act: Callable[[], object]) -> None:
        """Calls ``act`` in the main process while the others wait. An error in it ends all processes."""
        error: Exception | None = None
        if self.main:
            try:
                act()
            except Exception as caught:
                error = caught
        if self.any(error is not None):
            raise error if error is not None else SystemExit(1)
