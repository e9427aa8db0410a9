"""A run as a whole: that it learns, goes on where it stopped, and leaves what it should."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from modelscope_i2v.cli.main import main
from modelscope_i2v.errors import CheckpointError, InputError, NumericalError, OutOfMemoryError, OutputError
from modelscope_i2v.files import hold_lock
from modelscope_i2v.training import curves, networks, progress, snapshot
from modelscope_i2v.training.config import TrainConfig
from modelscope_i2v.training.objective import loss
from modelscope_i2v.training.trainer import Trainer, learning_rate

TEXT = "text-to-video-synthesis"


def run(config: TrainConfig, **settings) -> Trainer:
    trainer = Trainer(config, progress=False, **settings)
    trainer.run()
    return trainer


def told(trainer: Trainer) -> list[tuple]:
    """The curve without the time that it took."""
    return [tuple(value for key, value in point.items() if key != "seconds") for point in trainer.curve]


def advance(trainer: Trainer) -> None:
    """One step, without what the end of a run does."""
    value, norm = trainer._step()
    trainer.step += 1
    trainer._count(value.item(), norm.item())
    trainer._point()


def same(one: Trainer, other: Trainer) -> None:
    assert told(one) == told(other)
    for name, value in one.trained.items():
        assert torch.equal(value, other.trained[name]), name
        assert torch.equal(one.average.values[name], other.average.values[name]), name


@torch.no_grad()
def measured(trainer: Trainer) -> float:
    """The loss on the same noised clips, without dropout."""
    trainer.unet.eval()
    batches = [trainer.prepare(trainer.batches.batch(number), number) for number in range(4)]
    value = sum(loss(trainer.parallel, *batch).mean().item() for batch in batches)
    trainer.unet.train()
    return value


@pytest.mark.parametrize("name", [TEXT, "video-to-video", "i2vgen-xl"])
def test_a_few_clips_are_learned(configured, name):
    trainer = Trainer(configured(name, steps=25, batch_size=4, lr=4e-3, frames=2), progress=False)
    before = measured(trainer)
    trainer.run()
    assert measured(trainer) < 0.9 * before


@pytest.mark.parametrize("name", [TEXT, "video-to-video"])
def test_resume_continues_the_same_curve(configured, tmp_path, name):
    settings = {"image_ratio": 0.25, "log_every": 3, "steps": 5, "checkpoint_every": 4}
    whole = run(configured(name, output=str(tmp_path / "whole"), **settings))
    config = configured(name, output=str(tmp_path / "pieces"), max_minutes=1e-9, **settings)
    for step in range(1, 6):
        piece = Trainer(config, resume=True, progress=False)
        assert piece.step == step - 1
        piece.run()
    same(whole, piece)
    lines = (tmp_path / "pieces" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3, 5]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(configured, tmp_path):
    config = configured(steps=400, checkpoint_every=3, batch_size=1)
    file = tmp_path / "train.json"
    file.write_text(json.dumps(config.to_dict()))
    process = subprocess.Popen(
        [sys.executable, "-m", "modelscope_i2v", "train", str(file), "--no-progress"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    curve = tmp_path / "run" / "curve.jsonl"
    while process.poll() is None and not (curve.is_file() and len(curve.read_text().splitlines()) > 4):
        time.sleep(0.02)
    process.kill()
    assert process.wait() != 0
    drawn = [json.loads(line) for line in curve.read_text().splitlines()[:5]]
    again = Trainer(config, resume=True, progress=False)
    first = again.step
    assert 0 < first < 400 and first % 3 == 0
    for _ in range(3):
        advance(again)
    whole = Trainer(dataclasses.replace(config, output=str(tmp_path / "whole")), progress=False)
    whole.output.mkdir()
    while whole.step < again.step:
        advance(whole)
    same(whole, again)
    for before, after in zip(drawn, whole.curve):
        assert before["loss"] == after["loss"]


def test_a_full_disk_leaves_the_last_checkpoint(configured, tmp_path, monkeypatch):
    settings = {"steps": 6, "checkpoint_every": 2}
    whole = run(configured(output=str(tmp_path / "whole"), **settings))
    config, real = configured(**settings), snapshot.write_safetensors

    def full(path, tensors):
        if "step-4" in str(path) and path.name.startswith("ema"):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, tensors)

    monkeypatch.setattr(snapshot, "write_safetensors", full)
    with pytest.raises(OutputError, match=r"step-4 was not written.*step-2 is the last complete one"):
        run(config)
    monkeypatch.setattr(snapshot, "write_safetensors", real)
    directory = tmp_path / "run" / "checkpoints"
    assert [path.name for path in directory.iterdir()] == ["step-2"]
    (directory / ".step-4.0123456789abcdef.part").mkdir()  # as a kill during the save would leave it
    again = Trainer(config, resume=True, progress=False)
    assert again.step == 2
    again.run()
    same(whole, again)
    assert sorted(path.name for path in directory.iterdir()) == ["step-4", "step-6"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_finishes_the_step_and_saves(configured, monkeypatch, name):
    number = getattr(signal, name)
    trainer = Trainer(configured(steps=50), progress=False)
    step, before = trainer._step, signal.getsignal(number)

    def interrupted():
        if trainer.step == 2:
            signal.raise_signal(number)
        return step()

    monkeypatch.setattr(trainer, "_step", interrupted)
    assert trainer.run() is None and trainer.step == 3 and trainer.stopped_by == number
    assert Trainer(trainer.config, resume=True).step == 3
    assert signal.getsignal(number) is before


def test_a_closed_terminal_leaves_a_snapshot(configured, tmp_path, monkeypatch):
    """It sends SIGHUP, then SIGTERM perhaps, and nothing can be written to it any more."""
    file, step = tmp_path / "train.json", Trainer._step
    file.write_text(json.dumps(configured(steps=50, log_every=1).to_dict()))

    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    def hung_up(trainer):
        if trainer.step == 1:
            monkeypatch.setattr(sys, "stdout", Gone())
            monkeypatch.setattr(sys, "stderr", Gone())
            monkeypatch.setattr(progress, "_PAUSE", 0.0)
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            logging.getLogger("modelscope_i2v").warning("nobody reads this")
        return step(trainer)

    monkeypatch.setattr(Trainer, "_step", hung_up)
    assert main(["train", str(file)]) == 128 + signal.SIGHUP
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir()


def test_the_command_says_which_signal_stopped_it(configured, tmp_path, monkeypatch, capsys):
    file, step = tmp_path / "train.json", Trainer._step
    file.write_text(json.dumps(configured(steps=50).to_dict()))

    def terminated(trainer):
        signal.raise_signal(signal.SIGTERM)
        return step(trainer)

    monkeypatch.setattr(Trainer, "_step", terminated)
    assert main(["train", str(file), "--no-progress"]) == 143
    assert capsys.readouterr().out == "Stopped by SIGTERM after step 1 of 50; --resume goes on.\n"


def test_what_cannot_be_resumed(configured, models, caches, tmp_path):
    run(configured(steps=2))
    with pytest.raises(InputError, match="holds a run already, up to step-2. Resume it"):
        Trainer(configured(steps=2))
    with pytest.raises(InputError, match="step-2 was made with lr = 0.001"):
        Trainer(configured(steps=2, lr=0.1), resume=True)
    with pytest.raises(InputError, match="made with steps = 2.*says 3.*constant"):
        Trainer(configured(steps=3), resume=True)
    path = tmp_path / "run" / "checkpoints" / "step-2" / "state.json"
    written = path.read_text()
    path.write_text(written.replace('"processes": 1', '"processes": 4'))
    with pytest.raises(InputError, match="was made by 4 process.* this run has 1"):
        Trainer(configured(steps=2), resume=True)
    path.write_text(written)
    path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "other'))
    with pytest.raises(InputError, match="made with other data"):
        Trainer(configured(steps=2), resume=True)


def test_learning_rates(configured):
    config = configured(steps=110, warmup=10, lr=2.0)
    rates = [learning_rate(config, step) for step in range(110)]
    assert rates[0] == pytest.approx(0.2) and rates[9] == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0) and 0 < rates[-1] < 1e-3
    constant = dataclasses.replace(config, lr_schedule="constant")
    assert learning_rate(constant, 100) == 2.0


def test_accumulated_batches_are_one_large_batch(configured, tmp_path):
    few = Trainer(configured(gradient_accumulation=2, output=str(tmp_path / "few")), progress=False)
    many = Trainer(configured(batch_size=4, output=str(tmp_path / "many")), progress=False)
    parts = [few.prepare(few.batches.batch(number), number) for number in (0, 1)]
    noised = type(parts[0][0])(
        *(torch.cat([getattr(part[0], f.name) for part in parts]) for f in dataclasses.fields(parts[0][0]))
    )
    conditions = {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}
    many.prepare = lambda batch, number: (noised, conditions)
    for trainer in (few, many):
        trainer.unet.eval()  # dropout draws other numbers for other batches
    (value, norm), (expected, expected_norm) = few._step(), many._step()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert norm.item() == pytest.approx(expected_norm.item(), rel=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(configured, tmp_path):
    plain = run(configured(steps=2, output=str(tmp_path / "a")))
    saving = run(configured(steps=2, output=str(tmp_path / "b"), gradient_checkpointing=True))
    for point, other in zip(told(plain), told(saving)):
        assert point == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "matmul"])
def test_bf16_is_close_to_fp32(configured, tmp_path, attention):
    exact = run(configured("i2vgen-xl", steps=3, output=str(tmp_path / "a")))
    coarse = run(
        configured(
            "i2vgen-xl", steps=3, output=str(tmp_path / "b"), mixed_precision="bf16", attention=attention
        )
    )
    for point, other in zip(exact.curve, coarse.curve):
        assert other["loss"] == pytest.approx(point["loss"], rel=0.02)
    assert all(value.dtype == torch.float32 for value in coarse.trained.values())
    assert exact.curve[-1]["loss"] != coarse.curve[-1]["loss"]


def test_a_loss_that_is_no_number_stops_the_run(configured):
    trainer = Trainer(configured(), progress=False)
    trainer.trained["out.2.bias"].data[0] = math.nan
    with pytest.raises(NumericalError, match="The loss is nan at step 1"):
        trainer.run()


def test_a_gradient_that_is_no_number_changes_nothing(configured, tmp_path):
    trainer = Trainer(configured(log_every=4, checkpoint_every=1), progress=False)
    trainer.step = 0
    step, weights = trainer._step, {}

    def poisoned():
        if trainer.step == 2:
            trainer.trained["out.2.bias"].register_hook(lambda gradient: gradient * math.inf)
            weights.update({name: value.detach().clone() for name, value in trainer.trained.items()})
        return step()

    trainer._step = poisoned
    with pytest.raises(NumericalError, match="The gradient is (inf|nan) at step 3.* checkpoint is unchanged"):
        trainer.run()
    assert weights and all(torch.equal(value, weights[name]) for name, value in trainer.trained.items())
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-1", "step-2"]


def test_a_curve_that_cannot_be_written_ends_no_training(configured, tmp_path, caplog):
    trainer = Trainer(configured(), progress=False)
    step = trainer._step

    def then_a_folder():  # in the place of the file: it cannot be written
        if trainer.step == 1:
            (tmp_path / "run" / "curve.jsonl").unlink()
            (tmp_path / "run" / "curve.jsonl").mkdir()
        return step()

    trainer._step = then_a_folder
    model = trainer.run()
    said = [record.message for record in caplog.records if "curve.jsonl cannot be written" in record.message]
    assert len(said) == 1 and "Is a directory" in said[0]
    lines = (model / "curve.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == trainer.curve and len(lines) == 4


def test_pictures_and_logs_that_cannot_be_written_are_told_once(tmp_path, monkeypatch, caplog):
    writers = pytest.importorskip("torch.utils.tensorboard")

    class Broken:
        def __init__(self, *_, **__):
            if not tmp_path.exists():
                raise TypeError("Descriptors cannot be created directly")

        def add_scalar(self, *_):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writers, "SummaryWriter", Broken)
    point = {"step": 1, "loss": 0.1, "lr": 0.1, "gradient": 0.1}
    board = curves.Board(tmp_path / "log", 0)
    board.point(point)
    board.point(point)
    board.close()
    (tmp_path / "curve.png").mkdir()
    curves.draw([point], tmp_path / "curve.png")
    monkeypatch.setattr(Broken, "__init__", Broken.add_scalar)
    curves.Board(tmp_path / "log", 0).point(point)
    told = [record.message for record in caplog.records]
    assert len(told) == 3 and all("training goes on" in text and "Error" not in text for text in told)
    assert "No space left on device" in told[0] and "curve.png" in told[1]


def test_samples_that_fail_end_no_training(configured, tmp_path, monkeypatch, caplog):
    trainer = Trainer(configured(steps=3, sample_every=1), progress=False)
    errors = iter([OutOfMemoryError("The device is full."), OSError(errno.ENOSPC, "No space left")])

    def sheet():
        for error in errors:
            raise error
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(trainer.previews, "sheet", sheet)
    assert trainer.run() is not None
    assert "No samples at step 1: The device is full." in caplog.text
    assert "samples of step 2 cannot be written (No space left)" in caplog.text
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["step-000003.png"]


def test_two_runs_cannot_share_an_output(configured, tmp_path, monkeypatch):
    config = configured(steps=2)
    one, other, late = (Trainer(config, progress=False) for _ in range(3))
    step, said = one._step, []

    def beside():
        for begin in (other.run, lambda: Trainer(config, resume=True)):
            with pytest.raises(OutputError, match="Another training run is writing to .*run") as told:
                begin()
            said.append(told)
        return step()

    one._step = beside
    assert one.run() is not None and len(said) == 4
    with pytest.raises(InputError, match="Another training run has written to .*run meanwhile"):
        late.run()


def test_a_dead_process_holds_no_output(tmp_path):
    code = "import os, sys; from modelscope_i2v.files import hold_lock\n"
    code += "with hold_lock(sys.argv[1], 'held'): print(flush=True); sys.stdin.read()"
    lock = tmp_path / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    with pytest.raises(OutputError, match="^held$"), hold_lock(lock, "held"):
        pass
    process.kill()
    process.communicate()
    with hold_lock(lock, "held"):
        assert lock.is_file()


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "{}", '{"step": "1"}', "[" * 100_000],
    ids=["cut", "list", "empty", "text", "deep"],
)
def test_a_damaged_snapshot_is_named(configured, tmp_path, content):
    path = tmp_path / "run" / "checkpoints" / "step-2"
    path.mkdir(parents=True)
    (path / "state.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"step-2/state\.json (is damaged|is not valid JSON)"):
        Trainer(configured(), resume=True)


def test_damaged_weights_of_a_snapshot_are_named(configured, tmp_path):
    config = configured(steps=2, max_minutes=1e-9)
    run(config)
    path = tmp_path / "run" / "checkpoints" / "step-1"
    for name, words in (("optimizer.pt", "optimizer.pt cannot be read"), ("unet.safetensors", "damaged")):
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(
            CheckpointError, match=f"snapshot .*step-1 is damaged: .*{words}.*Remove it"
        ) as told:
            Trainer(config, resume=True)
        assert "Error" not in str(told.value)
        (path / name).write_bytes(whole)
    save_file({"other": torch.zeros(1)}, path / "unet.safetensors")
    with pytest.raises(CheckpointError, match="step-1 has the weights of another network"):
        Trainer(config, resume=True)


def test_the_average():
    value = torch.nn.Parameter(torch.zeros(1))
    average = networks.EMA([("w", value)], 0.5)
    expected = 0.0
    for update in range(8):
        value.data.fill_(update + 1.0)
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * (update + 1)
        assert average.values["w"].item() == pytest.approx(expected)
    with average.in_place():
        assert value.item() == pytest.approx(expected)
    assert value.item() == 8.0


def test_a_new_network_predicts_nothing_yet(configured):
    trainer = Trainer(configured(), progress=False)
    noised, conditions = trainer.prepare(trainer.batches.batch(0), 0)
    assert trainer.parallel(noised.latents, noised.timesteps, **conditions).abs().max() == 0


def test_initial_weights_are_taken_where_they_fit(configured, models, caplog):
    source = models("video-to-video") / "unet.safetensors"
    trainer = Trainer(configured("i2vgen-xl", initial_weights=str(source)), progress=False)
    from safetensors.torch import load_file

    given = load_file(source)
    own = trainer.unet.state_dict()
    assert own["input_blocks.0.0.weight"].shape != given["input_blocks.0.0.weight"].shape
    assert torch.equal(own["time_embed.0.weight"], given["time_embed.0.weight"])
    assert f"of {len(own)} tensors match" in caplog.text
    with pytest.raises(InputError, match="no tensor in .* fits"):
        networks.load_matching(torch.nn.Linear(2, 3), source)
