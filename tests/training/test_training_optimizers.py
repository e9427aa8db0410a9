"""Muon, and which parameters are whose."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from modelscope_i2v.training import optimizers
from modelscope_i2v.training.optimizers import RMS, Muon, orthogonal
from modelscope_i2v.training.trainer import Trainer


@pytest.mark.parametrize("shape", [(3, 24, 64), (2, 64, 24), (1, 32, 32)])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-3, 1.0, 1e3])[: shape[0], None, None]
    made = orthogonal(matrices)
    assert made.shape == matrices.shape and made.dtype == matrices.dtype
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.3 and values.max() < 1.4
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert nn.functional.cosine_similarity(made.flatten(1), (u @ v).flatten(1)).min() > 0.95


def test_an_update_has_the_size_that_is_told():
    torch.manual_seed(0)
    conv, lr = nn.Conv2d(32, 16, 3, bias=False), 1e-2
    muon, before = Muon(conv.parameters(), lr), conv.weight.detach().clone()
    conv.weight.grad = torch.randn_like(conv.weight)
    muon.step()
    size = (conv.weight - before).square().mean().sqrt()
    assert 0.7 * RMS * lr < size < 1.3 * RMS * lr
    far = nn.functional.cosine_similarity((before - conv.weight).flatten(), conv.weight.grad.flatten(), 0)
    assert far > 0.5


def test_muon_finds_what_gradient_descent_barely_sees():
    """A target whose directions differ a thousandfold in how much of the error they are."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 32) * torch.logspace(0, -1.5, 32)
    target = torch.linalg.qr(torch.randn(32, 32)).Q
    layer = nn.Linear(32, 32, bias=False)
    muon = Muon(layer.parameters(), lr=0.05)
    for step in range(200):
        muon.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        layer.zero_grad()
        (layer(inputs) - inputs @ target.T).square().mean().backward()
        muon.step()
    assert (layer.weight - target).abs().max() < 0.05


def test_every_parameter_has_one_optimizer(configured):
    trainer = Trainer(configured(optimizer="muon"), progress=False)
    adamw, muon = trainer.optimizers
    kept = {id(p): group for group in adamw.param_groups for p in group["params"]}
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    assert not kept.keys() & taken and len(kept) + len(taken) == len(trainer.trained)
    for name, parameter in trainer.trained.items():
        if id(parameter) in taken:
            assert min(parameter.flatten(1).shape) >= optimizers.SMALLEST, name
        elif parameter.ndim < 2:
            assert kept[id(parameter)]["weight_decay"] == 0.0, name
    assert len(taken) > 20


def test_a_run_with_muon_goes_on_where_it_stopped(configured, tmp_path):
    settings = {"optimizer": "muon", "steps": 4, "checkpoint_every": 2}
    whole = Trainer(configured(output=str(tmp_path / "whole"), **settings), progress=False)
    whole.run()
    config = configured(output=str(tmp_path / "pieces"), max_minutes=1e-9, **settings)
    for _ in range(4):
        piece = Trainer(config, resume=True, progress=False)
        piece.run()
    for name, value in whole.trained.items():
        assert torch.equal(value, piece.trained[name]), name
