"""Functions around layers: in one order, whatever was put there first, and gone without a trace."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools

import pytest
import torch
from oracle.compare import relative_rms
from small_unet import small_unet

from modelscope_i2v.adapters.branches import Branch, attach, detach
from modelscope_i2v.compute.compilation import Region, compile_blocks
from modelscope_i2v.compute.formats import cast
from modelscope_i2v.compute.wrapping import Order, wrap, wrapped
from modelscope_i2v.memory.chunking import chunked
from modelscope_i2v.memory.placement import Stream, stream_blocks
from modelscope_i2v.training.networks import checkpoint_gradients


def test_functions_are_called_in_their_order_whatever_was_first():
    layer, x = torch.nn.Linear(3, 3), torch.ones(2, 3)
    plain = layer(x)

    def marked(name, forward, given):
        calls.append(name)
        return forward(given + 1)

    for orders in itertools.permutations(Order):
        calls = []
        wraps = [wrap(layer, order, functools.partial(marked, order)) for order in orders]
        assert torch.equal(layer(x - len(Order)), plain)
        assert calls == sorted(Order, reverse=True)
        copied = copy.deepcopy(layer)
        for done, each in enumerate(wraps, start=1):
            each.remove()
            each.remove()  # once more is nothing
            calls.clear()
            layer(x)
            assert calls == sorted(orders[done:], reverse=True)
        assert "forward" not in vars(layer) and not any(wrapped(layer, order) for order in Order)
        calls.clear()
        assert torch.equal(copied(x - len(Order)), plain) and len(calls) == len(Order)
        copied.weight.data.zero_()  # a copy computes with its own weights
        assert torch.equal(copied(x), layer.bias.expand(2, 3))


def test_a_function_can_take_a_layers_place():
    """As a kernel, or a layer that is spread over devices, does."""
    unet = small_unet()
    plain = evaluated(unet)
    norms = [block.norm for block in unet.modules() if hasattr(block, "proj_in")]

    def normalised(norm, forward, x):
        groups = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
        variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
        x = ((groups - mean) * (variance + norm.eps).rsqrt()).view(x.shape)
        channels = (-1, *[1] * (x.ndim - 2))
        return x * norm.weight.view(channels) + norm.bias.view(channels)

    wraps = [wrap(norm, Order.LORA, functools.partial(normalised, norm)) for norm in norms]
    assert 0 < relative_rms(evaluated(unet), plain) < 1e-5
    for each in wraps:
        each.remove()
    assert torch.equal(evaluated(unet), plain)


# ---- every pair of what wraps layers here ------------------------------------------------------------


def given(unet):
    noise = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, 3, 8, 8, generator=noise)
    return latents, torch.tensor([500]), torch.randn(1, 5, unet.config.context_dim, generator=noise)


@torch.inference_mode()
def evaluated(unet):
    latents, timesteps, text = given(unet)
    return unet(latents, timesteps, unet.prepare(text=text))


def gradient(unet):
    """The gradient of the latents: checkpointing changes nothing before the backward pass."""
    latents, timesteps, text = given(unet)
    unet(latents.requires_grad_(), timesteps, unet.prepare(text=text)).square().mean().backward()
    return latents.grad


@contextlib.contextmanager
def lora(unet):
    noise = torch.Generator().manual_seed(2)
    for layer in (unet.middle_block[1].proj_in, unet.input_blocks[0][0]):
        out, *inner = layer.weight.shape
        down, up = torch.randn(2, *inner, generator=noise), torch.randn(out, 2, generator=noise)
        attach(layer, Branch("one", 0.1 * down, up.view(out, 2, *[1] * (len(inner) - 1)), 1.0, 1.0))
    yield
    detach(unet)


def chunking(unet):
    return chunked(unet, 20)


@contextlib.contextmanager
def compilation(unet):
    compile_blocks(unet.middle_block, "eager")
    yield
    _removed(unet, Order.COMPILATION)


def streaming(unet):
    return Stream(torch.device("cpu")).over(list(stream_blocks(unet)))


@contextlib.contextmanager
def checkpointing(unet):
    checkpoint_gradients(unet)
    yield
    _removed(unet, Order.CHECKPOINTING)


def _removed(unet, order):
    for layer in unet.modules():
        for each in list(vars(layer).get("_wraps", [])):
            if each.order == order:
                each.remove()


KINDS = (lora, chunking, compilation, streaming, checkpointing)


def small():
    return small_unet(dim_mult=(1,))


@functools.cache
def alone(adapted):
    """The output and the gradient of a network that nothing but a LoRA is around."""
    unet = small()
    with lora(unet) if adapted else contextlib.nullcontext():
        return [evaluated(unet), gradient(unet)]


PAIRS = {f"{one.__name__}-{other.__name__}": (one, other) for one, other in itertools.combinations(KINDS, 2)}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_every_pair_in_either_order(pair):
    unet = small()
    wanted, found = alone(lora in pair), []
    for first, second in (pair, pair[::-1]):
        outer, inner = first(unet), second(unet)
        outer.__enter__()
        inner.__enter__()
        found.append([evaluated(unet)] if streaming in pair else [evaluated(unet), gradient(unet)])
        outer.__exit__(None, None, None)  # in the order that they came, not only the other way round
        inner.__exit__(None, None, None)
        assert not any("forward" in vars(layer) for layer in unet.modules())
        assert torch.equal(evaluated(unet), alone(False)[0])
    for one, other, expected in zip(*found, wanted):
        assert torch.equal(one, other)
        assert relative_rms(one, expected) < 1e-5


def test_compiled_blocks_are_looked_through_after_changes_only(monkeypatch):
    unet, walks = small(), []
    compile_blocks(unet.middle_block[1:], "eager")
    regions = [block for block in unet.middle_block[1:] if isinstance(block, Region)]
    walk = torch.nn.Module.named_parameters

    def counted(module, *given, **options):
        walks.append(module)
        return walk(module, *given, **options)

    monkeypatch.setattr(torch.nn.Module, "named_parameters", counted)

    def walked():
        walks.clear()
        evaluated(unet)
        return sum(module in regions for module in walks)

    assert walked() == len(regions) and walked() == 0
    with lora(unet):
        assert walked() == len(regions) and walked() == 0
    assert walked() == len(regions)
    cast(unet, torch.bfloat16)
    assert walked() == len(regions) and walked() == 0
