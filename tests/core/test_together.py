"""Calls at the same time, and calls that fail: neither changes another call's video.

Weights are moved on a CPU here, as in test_memory: the logic is the GPU's.
"""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_unet import SMALL, predicted, small_unet

from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.errors import Cancelled, OutOfMemoryError
from modelscope_i2v.memory import allocator
from modelscope_i2v.memory import count as memory_model
from modelscope_i2v.memory.chunking import chunked
from modelscope_i2v.memory.placement import Placement, send

CPU = torch.device("cpu")
QUICK = {"num_inference_steps": 2, "num_frames": 2, "height": 48, "width": 48, "progress": False}
INPUTS = {"text-to-video-synthesis": "a boat", "image-to-video": picture()}
SOON, LATE = 0.3, 30
"""Seconds in which something should not happen, and in which it must."""


def load(task: str, **settings: Any) -> VideoGenerator:
    return VideoGenerator.from_directory(model_directory(task), device="cpu", **settings)


@pytest.fixture(scope="module")
def generators() -> dict[str, list[VideoGenerator]]:
    """Two of text-to-video, one of image-to-video."""
    return {
        "text-to-video-synthesis": [load("text-to-video-synthesis") for _ in range(2)],
        "image-to-video": [load("image-to-video")],
    }


@pytest.fixture
def generator(generators) -> VideoGenerator:
    return generators["text-to-video-synthesis"][0]


def moving(mode: str) -> Placement:
    return Placement(CPU, mode, moves=True)


def frames_of(generator: VideoGenerator, **options: Any) -> np.ndarray:
    given = INPUTS[generator.family.name]
    (frames,) = generator([given], output_type="np", **{**QUICK, "seed": 1, **options})
    return frames


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each returned, each in a thread of its own."""
    found: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            found[index] = calls[index]()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


# ---- at the same time --------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", [("resident", "minimal"), ("offload", "minimal"), ("minimal", "minimal")])
@pytest.mark.parametrize("other", ["text-to-video-synthesis", "image-to-video"])
def test_two_pipelines_at_once_make_what_each_makes_alone(generators, other, modes):
    pair = [generators["text-to-video-synthesis"][0], generators[other][-1]]
    before = random_states()
    for generator, mode in zip(pair, modes):
        generator.placement = moving(mode)
    try:
        alone = [frames_of(generator, seed=seed) for seed, generator in enumerate(pair)]
        meeting = threading.Barrier(2)  # both are in the middle of it

        def call(seed: int, generator: VideoGenerator) -> np.ndarray:
            return frames_of(generator, seed=seed, callback=lambda *_: meeting.wait(LATE) >= 0)

        together = at_once(*(lambda s=s, g=g: call(s, g) for s, g in enumerate(pair)))
        assert [generator.placement.mode for generator in pair] == list(modes)
    finally:
        for generator in pair:
            generator.placement = Placement(CPU, "resident")
    assert all(np.array_equal(found, wanted) for found, wanted in zip(together, alone))
    assert random_states() == before


@pytest.mark.parametrize("mode", ["resident", "offload", "minimal"])
def test_a_call_that_goes_to_fp32_leaves_another_in_its_own_type(mode):
    generator = load("text-to-video-synthesis", dtype="bf16")
    generator.placement = moving(mode)
    wanted, denoise = frames_of(generator), generator.unet.forward
    overflowing, begun, widened = threading.local(), threading.Event(), threading.Event()

    def overflows(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = denoise(*args, **kwargs)
        if not getattr(overflowing, "here", False):
            return out
        if generator.unet.out[2].weight.dtype == torch.float32:
            widened.set()
            return out
        return out * float("inf")

    def wide() -> None:
        overflowing.here = True
        begun.wait(LATE)
        with pytest.warns(UserWarning, match="again in fp32"):
            frames_of(generator)

    def narrow() -> np.ndarray:
        def callback(step: int, *_: Any) -> None:
            begun.set()
            if step == 1:
                widened.wait(SOON * 5)

        return frames_of(generator, callback=callback)

    generator.unet.forward = overflows
    _, found = at_once(wide, narrow)
    assert widened.is_set()
    assert np.array_equal(found, wanted)
    assert np.array_equal(frames_of(generator), wanted)


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [
        ("resident", "resident", False),
        ("resident", "minimal", True),
        ("minimal", "resident", True),
        ("offload", "minimal", True),
    ],
)
def test_what_one_generator_works_with_no_other_moves(generator, first, second, waits):
    """As the stages of a cascade, that have a network in common."""
    network, there = generator.autoencoder, threading.Event()

    def works() -> None:
        with moving(second).on_device(network):
            there.set()

    thread = threading.Thread(target=works)
    with moving(first).on_device(network):
        thread.start()
        assert there.wait(SOON if waits else LATE) != waits
    thread.join(LATE)
    assert there.is_set()


def test_a_network_is_sent_away_when_its_work_is_done(generator):
    """Who has it meanwhile may ask again, and others do not get in between."""
    network, events = (
        generator.autoencoder,
        {name: threading.Event() for name in ("on", "again", "gone", "new")},
    )

    def holds() -> None:
        with moving("resident").on_device(network):
            events["on"].wait(LATE)
            with moving("resident").on_device(network):
                events["again"].set()

    def comes() -> None:
        with moving("resident").on_device(network):
            events["new"].set()

    def sends() -> None:
        send(network, "cpu")
        events["gone"].set()

    with moving("resident").on_device(network):
        threads = [threading.Thread(target=work, daemon=True) for work in (holds, sends, comes)]
        for thread in threads:
            thread.start()
            thread.join(SOON)
        assert not events["gone"].is_set() and not events["new"].is_set()
        events["on"].set()
        assert events["again"].wait(LATE)
        assert not events["gone"].is_set()
    assert events["gone"].wait(LATE) and events["new"].wait(LATE)


@pytest.mark.parametrize("mode", ["resident", "offload"])
def test_the_mode_changes_between_calls_only(generator, mode):
    placement, working, over = moving(mode), threading.Event(), threading.Event()

    def works() -> None:
        with placement.on_device(generator.unet):
            working.set()
            over.wait(LATE)

    thread = threading.Thread(target=works)
    thread.start()
    working.wait(LATE)
    placement.begin("minimal")
    assert placement.mode == mode
    over.set()
    thread.join(LATE)
    placement.end()
    assert placement.mode == mode
    for smaller in ("minimal", "offload"):
        placement.begin(smaller)
        assert placement.mode == "minimal"
    placement.end()
    assert placement.mode == "minimal"
    placement.end()
    assert placement.mode == mode


def test_memory_is_counted_from_two_threads():
    def count(chunk: int | None) -> int:
        count = memory_model.denoising.__wrapped__  # not what was kept of the last time
        return count(SMALL, 1, 6, 8, 8, torch.float32, chunk)

    chunks = [None, 200]
    alone = [count(chunk) for chunk in chunks]
    assert alone[0] != alone[1]
    assert at_once(*(lambda chunk=chunk: count(chunk) for chunk in chunks)) == alone


def test_parts_within_parts_keep_the_outer_ones():
    unet = small_unet()
    latents, text = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 5, 24)

    def evaluated() -> torch.Tensor:
        return predicted(unet, latents, torch.tensor([500]), text=text)

    with torch.inference_mode():
        plain = evaluated()
        with chunked(unet, 30):
            parts = evaluated()
            with chunked(unet, 50):
                assert torch.equal(evaluated(), parts)
            assert torch.equal(evaluated(), parts)
        assert torch.allclose(parts, plain, rtol=1e-4, atol=1e-4) and torch.equal(evaluated(), plain)


class Library:
    """A C library that keeps what it was told."""

    def __init__(self) -> None:
        self.settings: dict[int, int] = {}
        self.trimmed = 0

    def mallopt(self, setting: int, value: int) -> None:
        self.settings[setting] = value

    def malloc_trim(self, _: int) -> None:
        self.trimmed += 1


def test_memory_is_kept_until_the_last_call_is_over(generators, monkeypatch):
    library = Library()
    monkeypatch.setattr(allocator, "_glibc", lambda: library)
    first_out, meeting, seen = threading.Event(), threading.Barrier(2), []

    def fails(*_: Any) -> None:
        meeting.wait(LATE)
        raise RuntimeError("in the middle")

    def goes_on(step: int, *_: Any) -> None:
        if step == 1:
            meeting.wait(LATE)
            first_out.wait(LATE)
            seen.append((library.settings[allocator._MMAP_MAX], library.trimmed))

    def failing(generator: VideoGenerator) -> None:
        with pytest.raises(RuntimeError, match="in the middle"):
            frames_of(generator, callback=fails)
        first_out.set()

    one, other = generators["text-to-video-synthesis"]
    results = at_once(lambda: failing(one), lambda: frames_of(other, callback=goes_on))
    assert results[0] is None and isinstance(results[1], np.ndarray)
    assert seen == [(0, 0)]
    assert library.settings == allocator._DEFAULTS and library.trimmed == 2  # after latents, after frames


# ---- calls that fail ---------------------------------------------------------------------------------


class Failure(Exception):
    """Of a callback's own."""


def stopped_by_callback(generator: VideoGenerator, patch: pytest.MonkeyPatch) -> tuple[type, dict]:
    return Cancelled, {"callback": lambda step, *_: step < 2}


def error_in_callback(generator: VideoGenerator, patch: pytest.MonkeyPatch) -> tuple[type, dict]:
    def callback(step: int, *_: Any) -> None:
        if step == 2:
            raise Failure("in the callback")

    return Failure, {"callback": callback}


def error_in_unet(generator: VideoGenerator, patch: pytest.MonkeyPatch) -> tuple[type, dict]:
    _fails(generator.unet.middle_block[1].transformer_blocks[0].ff, Failure, "in a layer", patch)
    return Failure, {}


def error_in_decoder(generator: VideoGenerator, patch: pytest.MonkeyPatch) -> tuple[type, dict]:
    _fails(generator.autoencoder.decoder.norm_out, Failure, "in the decoder", patch)
    return Failure, {}


def no_memory_in_unet(generator: VideoGenerator, patch: pytest.MonkeyPatch) -> tuple[type, dict]:
    layer = generator.unet.output_blocks[-1][0].temopral_conv.conv3
    _fails(layer, torch.OutOfMemoryError, "CUDA out of memory.", patch)
    return OutOfMemoryError, {}


def no_memory_in_decoder(generator: VideoGenerator, patch: pytest.MonkeyPatch) -> tuple[type, dict]:
    _fails(generator.autoencoder.decoder.norm_out, torch.OutOfMemoryError, "CUDA out of memory.", patch)
    return OutOfMemoryError, {}


FAILURES = [
    stopped_by_callback,
    error_in_callback,
    error_in_unet,
    error_in_decoder,
    no_memory_in_unet,
    no_memory_in_decoder,
]
given_to: list[weakref.ref] = []
"""What layers were given that then failed."""


def _fails(layer: torch.nn.Module, kind: type[Exception], text: str, patch: pytest.MonkeyPatch) -> None:
    def hook(_: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        given_to.append(weakref.ref(args[0]))
        raise kind(text)

    handle = layer.register_forward_pre_hook(hook)
    patch.setattr(layer, "_failing", handle, raising=False)


def held() -> int:
    """Bytes of all tensors that live, without what garbage collection alone would free.

    Tensors without contents, which a compiler or a count leaves, have no address.
    """
    kinds = (torch.Tensor, torch.nn.Parameter)
    tensors = [t for t in gc.get_objects() if type(t) in kinds and t.device.type != "meta"]
    storages = {t.untyped_storage() for t in tensors}
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def state_of(generator: VideoGenerator) -> list[Any]:
    """Where weights are, of which type, and what was put into layers for a while."""
    networks = (generator.unet, generator.autoencoder, generator.text_encoder)
    layers = [layer for network in networks for layer in network.modules()]
    return [
        [(p.data_ptr(), p.dtype, p.device) for network in networks for p in network.parameters()],
        [(len(layer._forward_pre_hooks), len(layer._forward_hooks)) for layer in layers],
        [vars(layer).get("forward") for layer in layers],
    ]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
@pytest.mark.parametrize("mode", ["resident", "offload", "minimal"])
def test_a_call_that_fails_leaves_nothing_behind(generator, mode, failure, monkeypatch):
    generator.placement = moving(mode)
    try:
        wanted = frames_of(generator)
        given_to.clear()
        gc.collect()
        before, memory = state_of(generator), held()
        gc.disable()  # a cycle that holds tensors would keep a GPU's memory for who knows how long
        with monkeypatch.context() as patch:
            kind, options = failure(generator, patch)
            try:
                frames_of(generator, **options)
                pytest.fail("nothing failed")
            except kind as error:
                if kind is OutOfMemoryError:  # the caller may want that memory while it has the error
                    assert [given() for given in given_to] == [None]
                del error
            for layer in (*generator.unet.modules(), *generator.autoencoder.modules()):
                if "_failing" in vars(layer):
                    layer._failing.remove()
        assert not any("forward" in vars(layer) for layer in generator.unet.modules())
        assert held() == memory
        assert state_of(generator) == before
        gc.enable()
        assert np.array_equal(frames_of(generator), wanted)
        assert state_of(generator) == before
    finally:
        gc.enable()
        generator.placement = Placement(CPU, "resident")


def test_a_generator_that_is_dropped_frees_its_weights():
    generator = load("text-to-video-synthesis")
    generator.placement = moving("minimal")
    frames_of(generator)
    weights = [weakref.ref(generator.unet.out[2].weight), weakref.ref(generator.autoencoder)]
    del generator
    gc.collect()
    assert [weight() for weight in weights] == [None, None]
