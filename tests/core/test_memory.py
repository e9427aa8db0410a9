"""Memory modes, with copies forced on a CPU, where weights otherwise stay: the logic is the GPU's."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from small_unet import predicted, small_unet

from modelscope_i2v.adapters.branches import Branch, attach, detach
from modelscope_i2v.compute.formats import cast
from modelscope_i2v.embedded import model_directory
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.errors import Cancelled, InputError
from modelscope_i2v.memory.chunking import chunked
from modelscope_i2v.memory.placement import Placement, stream_blocks, streamed_bytes
from modelscope_i2v.spec.runtime import MEMORY as MODES

CPU = torch.device("cpu")
MOVING = pytest.mark.parametrize("mode", ["offload", "minimal"])


def moving(mode):
    return Placement(CPU, mode, moves=True)


@torch.inference_mode()
def evaluated(unet, batch=1, frames=3, height=8, width=8, loop=False):
    noise = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, frames, height, width, generator=noise)
    text = torch.randn(batch, 5, unet.config.context_dim, generator=noise)
    return predicted(unet, latents, torch.full((batch,), 500), text=text, loop=loop)


def addresses(unet):
    return [parameter.data_ptr() for parameter in unet.parameters()]


@MOVING
def test_moving_changes_no_bit_of_any_step(mode):
    unet = small_unet()
    wanted, names = evaluated(unet), list(unet.state_dict())
    with moving(mode).on_device(unet):
        assert all(torch.equal(evaluated(unet), wanted) for _ in range(3))
        assert list(unet.state_dict()) == names
    assert list(unet.state_dict()) == names
    assert torch.equal(evaluated(unet), wanted)


def test_two_blocks_at_most_are_on_the_device():
    unet = small_unet()
    blocks = list(stream_blocks(unet))
    layers = [layer for block in blocks for layer in block.modules() if layer._parameters]
    used: dict[int, int] = {}

    def computes(layer, args, output):
        piece = layer.weight.untyped_storage()
        used[piece.data_ptr()] = piece.nbytes()

    with moving("minimal").on_device(unet):
        home = {layer.weight.untyped_storage().data_ptr() for layer in layers}
        hooks = [layer.register_forward_hook(computes) for layer in layers]
        evaluated(unet)
        evaluated(unet)
        for hook in hooks:
            hook.remove()
        streamed = {id(p) for block in blocks for p in block.parameters()}
        beside = sum(p.nbytes for p in unet.parameters() if id(p) not in streamed)
    assert len(used) == 2 and not used.keys() & home
    assert sum(used.values()) + beside == streamed_bytes(unet) < sum(p.nbytes for p in unet.parameters())


@MOVING
def test_a_failure_in_the_middle_leaves_all_as_it_was(mode):
    unet = small_unet()
    wanted, placement = evaluated(unet), moving(mode)
    with placement.on_device(unet):
        pass
    before = addresses(unet)
    broken = list(stream_blocks(unet))[4]

    def fails(*_):
        raise RuntimeError("in the middle")

    hook = broken.register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="in the middle"), placement.on_device(unet):
        evaluated(unet)
    hook.remove()
    assert addresses(unet) == before
    assert not any(layer._forward_pre_hooks or "forward" in vars(layer) for layer in unet.modules())
    with placement.on_device(unet):
        assert torch.equal(evaluated(unet), wanted)


@MOVING
def test_loras_move_with_their_layers(mode):
    unet, placement = small_unet(), moving(mode)
    plain = evaluated(unet)
    with placement.on_device(unet):
        assert torch.equal(evaluated(unet), plain)
    layer = unet.middle_block[0].emb_layers[1]
    down, up = torch.randn(2, layer.in_features), torch.randn(layer.out_features, 2)
    branch, used = Branch("a", down, up, 1.0, 1.0), []
    attach(layer, branch)
    wanted = evaluated(unet)
    assert not torch.equal(wanted, plain)
    home = {branch.down.data_ptr()}
    hook = branch.register_forward_pre_hook(lambda branch, _: used.append(branch.down.data_ptr()))
    with placement.on_device(unet):
        assert torch.equal(evaluated(unet), wanted)
    hook.remove()
    home.add(branch.down.data_ptr())
    assert len(used) == 1 and not home & set(used)
    detach(unet)
    with placement.on_device(unet):
        assert torch.equal(evaluated(unet), plain)


@MOVING
def test_weights_that_were_cast_meanwhile(mode):
    """As when fp16 overflows, and a video is computed again in fp32."""
    unet, placement = cast(small_unet(), torch.bfloat16), moving(mode)
    reduced = evaluated(unet)
    wider = evaluated(cast(copy.deepcopy(unet), torch.float32))
    for dtype, wanted in ((torch.bfloat16, reduced), (torch.float32, wider), (torch.bfloat16, reduced)):
        cast(unet, dtype)
        with placement.on_device(unet):
            assert torch.equal(evaluated(unet), wanted)


@MOVING
def test_it_is_on_the_device_also_while_it_changes(mode):
    """As :meth:`VideoGenerator._finite` repeats work in fp32."""
    unet, placement = small_unet(), moving(mode)
    home, there = set(addresses(unet)), set()
    hook = unet.middle_block[1].proj_in.register_forward_hook(
        lambda layer, *_: there.add(layer.weight.data_ptr())
    )
    with placement.exclusive(unet), placement.on_device(unet), placement.on_device(unet):
        evaluated(unet)
    hook.remove()
    assert there and not there & home


@MOVING
def test_two_threads_take_turns(mode):
    """Two generators may share a network, as a cascade's do."""
    unet, found = small_unet(), []
    wanted = evaluated(unet)

    def work():
        with moving(mode).on_device(unet):
            found.extend(torch.equal(evaluated(unet), wanted) for _ in range(4))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


@pytest.mark.parametrize("tokens", [9, 100, 10_000])
@pytest.mark.parametrize("extra_rows", [False, True])
def test_parts_give_what_the_whole_gives(tokens, extra_rows):
    unet = small_unet(extra_rows=extra_rows)
    given = {"batch": 2, "height": 10 if extra_rows else 8, "width": 12}
    for loop in (False, True):
        wanted = evaluated(unet, **given, loop=loop)
        with chunked(unet, tokens):
            assert torch.allclose(evaluated(unet, **given, loop=loop), wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(evaluated(unet, **given, loop=loop), wanted)


def test_parts_see_a_part_only():
    unet, seen = small_unet(), []
    block = unet.output_blocks[-1][-2].transformer_blocks[0].ff.net[0]
    block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    with chunked(unet, 40):
        evaluated(unet)
    assert max(seen) <= 40 and sum(seen) == 3 * 8 * 8


@pytest.fixture(scope="module")
def generator():
    made = VideoGenerator.from_directory(model_directory("text-to-video-synthesis"), device="cpu")
    return made


def frames_of(generator, **options):
    quick = {"num_inference_steps": 2, "num_frames": 2, "height": 48, "width": 48, "progress": False}
    (frames,) = generator(["a boat"], output_type="np", seed=1, **{**quick, **options})
    return frames


def test_a_video_in_every_mode_also_after_a_cancelled_one(generator):
    wanted = frames_of(generator, sequential_guidance=True, decode_chunk_size=1)
    try:
        for mode in ("offload", "minimal"):
            generator.placement = moving(mode)
            with pytest.raises(Cancelled):
                frames_of(generator, callback=lambda *_: False)
            given = {} if mode == "minimal" else {"sequential_guidance": True, "decode_chunk_size": 1}
            assert np.array_equal(frames_of(generator, **given), wanted)
    finally:
        generator.placement = Placement(CPU, "resident")


def test_tiles_are_an_option_of_a_call(generator):
    whole, tiled = frames_of(generator, height=96), frames_of(generator, height=96, tile_size=64)
    assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_auto_goes_over_to_a_smaller_mode_while_a_video_needs_it(generator, monkeypatch):
    wanted, asked, modes = frames_of(generator), [], set()

    def choose(model, options, dtype, device, there):
        asked.append((options.num_frames, options.batch_size, there))
        return "offload" if options.num_frames > 2 else "resident"

    monkeypatch.setattr("modelscope_i2v.memory.count.choose", choose)
    generator.placement = Placement(CPU, "resident", adapts=True, moves=True)
    generator.placement.manage(generator.networks)
    try:
        frames_of(generator)
        assert generator.placement.mode == "resident"
        frames_of(generator, num_frames=3, callback=lambda *_: modes.add(generator.placement.mode))
        assert modes == {"offload"}
        assert generator.placement.mode == "resident"
        assert np.array_equal(frames_of(generator, batch_size=4), wanted)
    finally:
        generator.placement = Placement(CPU, "resident")
    assert {frames for frames, *_ in asked} == {2, 3} and all(there > 0 for *_, there in asked)
    assert {videos for _, videos, _ in asked} == {1}


def test_modes_on_a_cpu(generator):
    for mode in MODES[1:]:
        placement = Placement(CPU, mode)
        before = addresses(generator.unet)
        with placement.on_device(generator.unet):
            assert addresses(generator.unet) == before
    with pytest.raises(
        InputError, match="memory='tiny' does not work: it must be one of auto, resident, offload, mini"
    ):
        VideoGenerator.from_directory(model_directory("text-to-video-synthesis"), device="cpu", memory="tiny")
