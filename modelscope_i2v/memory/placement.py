"""Placement of weights: always on the device, one network at a time, or block by block."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..compute.quantization import stored
from ..compute.wrapping import Order, wrap
from ..networks.blocks import Stage
from ..networks.stunet import STUNet
from ..spec.options import Options
from ..spec.runtime import MEMORY
from .chunking import chunked
from .lock import lock_of

CHUNK_TOKENS = 65_536
"""Pixels, over all frames, that a layer of the U-Net computes at a time in ``minimal``."""

TILED_PIXELS = 1 << 20
TILE_SIZE = 512
"""Frames of more than so many pixels go through the autoencoder in tiles of this side in ``minimal``."""

_ALIGNMENT = 256
"""Bytes; what CUDA's own allocations have at least."""


def frugal(options: Options) -> Options:
    """The options as ``minimal`` follows them: one guidance branch, one frame, one tile at a time."""
    tile = TILE_SIZE if options.height * options.width > TILED_PIXELS else None
    return dataclasses.replace(
        options, sequential_guidance=True, decode_chunk_size=1, tile_size=options.tile_size or tile
    )


_brought: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Networks that are on a device for the thread that holds them exclusively."""


class Placement:
    """Moves a generator's networks to a device while they compute, and back to storage after.

    It alone decides where weights are; whoever needs a network asks :meth:`on_device` or :meth:`exclusive`.

    Attributes:
        device: where networks compute.
        mode: ``resident``: networks stay on the device. ``offload``: a network is on the device while it
            computes. ``minimal``: as ``offload``, but of the U-Net only the block that computes and the next;
            and layers compute in parts, see :func:`frugal` and :mod:`.chunking`.
        moves: whether weights move at all. On a CPU they are mapped files, and stay.
        adapts: whether a call may take a mode with less memory (:meth:`begin`), as ``auto`` allows.
        networks: the networks whose weights it places, see :meth:`manage`.
    """

    def __init__(
        self, device: torch.device, mode: str, *, adapts: bool = False, moves: bool | None = None
    ) -> None:
        self.device, self.mode, self.adapts = device, mode, adapts
        self.moves = device.type != "cpu" if moves is None else moves
        self.networks: tuple[nn.Module, ...] = ()
        self._chosen = mode
        self._guard, self._active, self._calls = threading.Lock(), 0, 0
        self._streams: weakref.WeakKeyDictionary[nn.Module, Stream] = weakref.WeakKeyDictionary()

    def manage(self, networks: Iterable[nn.Module]) -> None:
        """Says which networks' weights it places."""
        self.networks = tuple(networks)

    def bytes_on_device(self) -> int:
        """Bytes of the managed networks' weights on the device."""
        weights = (tensor for network in self.networks for tensor in stored(network.parameters()))
        return sum(tensor.nbytes for tensor in weights if _same(tensor.device, self.device))

    @property
    def storage_device(self) -> torch.device:
        """The device that holds networks while they do not compute."""
        return self.device if self.mode == "resident" or not self.moves else torch.device("cpu")

    def options(self, options: Options) -> Options:
        """A call's options as the mode follows them."""
        return frugal(options) if self.mode == "minimal" else options

    @contextlib.contextmanager
    def on_device(self, network: nn.Module) -> Iterator[None]:
        """Within it, the network can compute on the device; afterwards, also on failure, it is in storage.

        In modes other than ``resident`` one thread at a time holds a network; the same thread may ask again.
        """
        with self._counted() as mode, lock_of(network).acquire(exclusive=mode != "resident"):
            if mode == "resident":
                self._fetch(network)
            away = mode != "resident" and network not in _brought
            with self._bringing(network) if away else contextlib.nullcontext():
                yield

    @contextlib.contextmanager
    def exclusive(self, network: nn.Module) -> Iterator[None]:
        """Within it no other thread computes with the network, so that its weights may change.

        Not to be asked for within :meth:`on_device`.
        """
        with self._counted(), lock_of(network).acquire(exclusive=True):
            yield

    def begin(self, mode: str) -> None:
        """Begins a call: until its :meth:`end` the placement has this mode, if that takes less memory than
        the present one and no other thread computes."""
        with self._guard:
            if MEMORY.index(mode) > MEMORY.index(self.mode) and not self._active:
                self.mode = mode
                for network in self.networks:
                    send(network, self.storage_device)
            self._calls += 1

    def end(self) -> None:
        """Ends a call. After the last one the mode is again the one at the start; networks move back to the
        device when they compute next."""
        with self._guard:
            self._calls -= 1
            if not self._calls:
                self.mode = self._chosen

    @contextlib.contextmanager
    def _counted(self) -> Iterator[str]:
        """Within it, the mode does not change."""
        with self._guard:
            self._active += 1
            mode = self.mode
        try:
            yield mode
        finally:
            with self._guard:
                self._active -= 1

    def _fetch(self, network: nn.Module) -> None:
        """Moves a network back to the device after another generator has displaced it."""
        with self._guard:
            if self.moves and _elsewhere(network, self.device):
                _move(network, self.device)
                self._streams.pop(network, None)  # its page-locked copies of the weights

    @contextlib.contextmanager
    def _bringing(self, network: nn.Module) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            _brought.add(network)
            stack.callback(_brought.discard, network)
            streams = self.mode == "minimal" and isinstance(network, STUNet)
            if streams:
                stack.enter_context(chunked(network, CHUNK_TOKENS))
            if self.moves:
                blocks = list(stream_blocks(network)) if streams else []
                inside = {id(tensor) for block in blocks for tensor in _tensors(block)}
                others = [tensor for tensor in _tensors(network) if id(tensor) not in inside]
                stack.enter_context(copied_to(others, self.device))
                if blocks:
                    if network not in self._streams:
                        self._streams[network] = Stream(self.device)
                    stack.enter_context(self._streams[network].over(blocks))
            yield


def stream_blocks(unet: STUNet) -> Iterator[nn.Module]:
    """The blocks that a U-Net streams by, in the order in which they compute."""
    for entry in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        yield from entry if isinstance(entry, Stage) else [entry]


def streamed_bytes(unet: STUNet) -> int:
    """The most bytes of weights that a streaming U-Net has on the device."""
    blocks = [_size(_tensors(block)) for block in stream_blocks(unet)]
    whole = sum(tensor.nbytes for tensor in _tensors(unet))
    held = sum(tensor.nbytes for block in stream_blocks(unet) for tensor in _tensors(block))
    return whole - held + 2 * max(blocks)


@contextlib.contextmanager
def copied_to(tensors: list[Tensor], device: torch.device) -> Iterator[None]:
    """Within it, parameters and buffers are copies on the device; after it, what they were before."""
    before = [tensor.data for tensor in tensors]
    try:
        with torch.inference_mode(False):
            for tensor in tensors:
                tensor.data = tensor.data.to(device, copy=True)
        yield
    finally:
        _restore(tensors, before)


class Stream:
    """Brings blocks of weights to a device one by one, the next while the present one computes.

    Each block's weights lie in one piece in the host's memory (page-locked for CUDA), and there are two
    pieces of the device's memory that they are copied to in turns.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._packed: weakref.WeakKeyDictionary[nn.Module, _Block] = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def over(self, blocks: list[nn.Module]) -> Iterator[None]:
        """Within it, calling a block has its weights on the device."""
        packed = [self._pack(block) for block in blocks]
        turns = _Turns(packed, _copies(self.device))
        wraps = [
            wrap(block, Order.STREAMING, functools.partial(turns.compute, index))
            for index, block in enumerate(blocks)
        ]
        try:
            yield
        finally:
            for each in wraps:
                each.remove()
            turns.end()

    @torch.inference_mode(False)
    def _pack(self, block: nn.Module) -> _Block:
        """The block's weights in one piece, which they then are views of; anew where any has changed."""
        tensors = list(_tensors(block))
        known = self._packed.get(block)
        if known is None or known.addresses != [tensor.data_ptr() for tensor in tensors]:
            pinned = self.device.type == "cuda"
            known = self._packed[block] = _Block(tensors, pinned)
        return known


class _Block:
    """One block's weights in one piece of the host's memory."""

    def __init__(self, tensors: list[Tensor], pinned: bool) -> None:
        self.tensors = tensors
        self.host = torch.empty(_size(tensors), dtype=torch.uint8, pin_memory=pinned)
        self.before = self.views(self.host)
        for tensor, view in zip(tensors, self.before):
            tensor.data = view.copy_(tensor.data)
        self.addresses = [tensor.data_ptr() for tensor in tensors]

    def views(self, piece: Tensor) -> list[Tensor]:
        """The weights as they lie in a piece of memory."""
        views, start = [], 0
        for tensor in self.tensors:
            flat = piece[start : start + tensor.nbytes].view(tensor.dtype)
            views.append(flat.as_strided(tensor.shape, tensor.stride()))
            start += _padded(tensor.nbytes)
        return views

    def restore(self) -> None:
        _restore(self.tensors, self.before)


class _Turns:
    """Two pieces of the device's memory and the blocks in them."""

    def __init__(self, blocks: list[_Block], copies: Copies) -> None:
        self.blocks, self.copies = blocks, copies
        size = max(len(block.host) for block in blocks)
        with torch.inference_mode(False):
            self.pieces = [torch.empty(size, dtype=torch.uint8, device=copies.device) for _ in range(2)]
        self.left: list[Any] = [copies.mark()] * 2
        """When computation was done with each piece."""
        self.coming: tuple[int, int, Any] | None = None
        """A block on its way, the piece that it goes to, and when it is there."""
        self.present: tuple[int, int] | None = None
        """The block that computes, and its piece."""

    def compute(self, index: int, forward: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """What the block of that number makes of its inputs."""
        self.enter(index)
        return forward(*inputs)

    @torch.inference_mode(False)
    def enter(self, index: int) -> None:
        """Makes a block the one that computes, and sends for the next."""
        piece = 0
        if self.present is not None:
            if self.present[0] == index:
                return
            before, old = self.present
            self.blocks[before].restore()
            self.left[old] = self.copies.mark()
            self.present, piece = None, 1 - old
        if self.coming is None or self.coming[0] != index:
            self._send(index, piece)
        _, piece, ready = self.coming
        self.copies.wait(ready)
        block = self.blocks[index]
        _restore(block.tensors, block.views(self.pieces[piece]))
        self.present = index, piece
        self._send((index + 1) % len(self.blocks), 1 - piece)

    def _send(self, index: int, piece: int) -> None:
        host = self.blocks[index].host
        ready = self.copies.copy(self.pieces[piece][: len(host)], host, self.left[piece])
        self.coming = index, piece, ready

    def end(self) -> None:
        """Points all weights to the host's memory again and waits for copies under way."""
        for block in self.blocks:
            block.restore()
        self.copies.finish()


class Copies:
    """Copies to a device at once, as all devices can."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> Any:
        """A point in the computation, for :meth:`copy`."""

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        """Copies from the host, not before ``after``; returns when it is there, for :meth:`wait`."""
        target.copy_(source)

    def wait(self, ready: Any) -> None:
        """Lets computation wait for a copy."""

    def finish(self) -> None:
        """Lets computation wait for all copies."""


class CudaCopies(Copies):
    """Copies on a stream of their own, concurrent with computation on the current one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)

    def mark(self) -> torch.cuda.Event:
        return torch.cuda.current_stream(self.device).record_event()

    def copy(self, target: Tensor, source: Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        return self.stream.record_event()

    def wait(self, ready: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(ready)

    def finish(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.stream)


def send(network: nn.Module, device: torch.device | str) -> None:
    """Moves a network as soon as no other thread computes with it."""
    with lock_of(network).acquire(exclusive=True):
        _move(network, device)


def _elsewhere(network: nn.Module, device: torch.device) -> bool:
    return any(not _same(tensor.device, device) for tensor in _tensors(network))


def _same(one: torch.device, other: torch.device) -> bool:
    """True if two devices are the same; a missing index is 0."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


@torch.inference_mode(False)
def _move(network: nn.Module, device: torch.device | str) -> None:
    network.to(device)


def _copies(device: torch.device) -> Copies:
    return CudaCopies(device) if device.type == "cuda" else Copies(device)


def _tensors(module: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    """Parameters and buffers, including those of LoRAs."""
    yield from stored((*module.parameters(recurse), *module.buffers(recurse)))


def _restore(tensors: list[Tensor], values: Iterable[Tensor]) -> None:
    with torch.inference_mode(False):
        for tensor, value in zip(tensors, values):
            tensor.data = value


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(_padded(tensor.nbytes) for tensor in tensors)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
