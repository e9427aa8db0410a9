"""Several processes, by Accelerate."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from modelscope_i2v.training import snapshot
from modelscope_i2v.training.trainer import Trainer


def test_two_processes_take_the_step_of_both_their_batches(configured, tmp_path):
    config = configured(steps=1, warmup=0, output=str(tmp_path / "two"))
    file = tmp_path / "train.json"
    file.write_text(json.dumps(config.to_dict()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "modelscope_i2v", "train", str(file), "--no-progress"]
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    (path,) = snapshot.snapshots(tmp_path / "two" / "checkpoints")
    two = snapshot.load(path)

    both = configured(steps=1, warmup=0, gradient_accumulation=2, output=str(tmp_path / "one"))
    trainer = Trainer(both, progress=False)
    batch, seed = trainer.batches.batch, trainer._seed

    def of_rank(number: int, *_) -> object:
        trainer.machine.rank = number  # what follows in this batch is drawn as that process draws it
        return batch(0, number, 2)

    trainer.batches.batch = of_rank
    trainer._seed = lambda number, purpose: seed(0, purpose)
    value, norm = trainer._step()
    assert two.curve[0]["loss"] == pytest.approx(value.item(), rel=1e-5)
    assert two.curve[0]["gradient"] == pytest.approx(norm.item(), rel=1e-4)
    for name, weight in trainer.trained.items():
        assert torch.allclose(two.weights[name], weight, atol=1e-5), name
