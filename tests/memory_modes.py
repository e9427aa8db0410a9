"""Every memory mode and every option that takes less memory, for tests of what comes out of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from torch import nn

from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.memory import count as memory_model
from modelscope_i2v.memory import placement
from modelscope_i2v.memory.placement import Placement
from modelscope_i2v.spec.runtime import MEMORY as MODES

OPTIONS = ({}, {"sequential_guidance": True}, {"decode_chunk_size": 1}, {"tile_size": 64})
TOKENS = 100
"""So few at a time that every layer of a small video computes in parts in ``minimal``."""

__all__ = ["MODES", "OPTIONS", "TOKENS", "working_in"]


class Watched(Placement):
    """A placement that remembers in which modes networks worked."""

    def on_device(self, network: nn.Module) -> contextlib.AbstractContextManager[None]:
        self.modes = getattr(self, "modes", set()) | {self.mode}
        return super().on_device(network)


@contextlib.contextmanager
def working_in(generator: VideoGenerator, mode: str) -> Iterator[None]:
    """Within it, the generator works in that mode as on a GPU, where ``auto`` finds little memory free."""
    before, adapts = generator.placement, mode == "auto"
    with (
        mock.patch.object(placement, "CHUNK_TOKENS", TOKENS),
        mock.patch.object(memory_model, "choose", lambda *_: "minimal"),
    ):
        chosen = "resident" if adapts else mode
        generator.placement = Watched(generator.device, chosen, adapts=adapts, moves=True)
        generator.placement.manage(generator.networks)
        try:
            yield
            assert generator.placement.modes == {"minimal" if adapts else mode}
            assert generator.placement.mode == chosen
        finally:
            generator.placement = before
