"""Latents saved on the command line, and videos of latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelscope_i2v import VideoGenerator
from modelscope_i2v.media.videos import read_video

SMALL = ("--num-frames", 2, "--height", 64, "--width", 64, "--num-inference-steps", 1, "--seed", 4)


def test_saved_latents_become_the_same_video(run, tmp_path):
    make = ("text-to-video", "a red star moves up", "--model", "embedded", *SMALL)
    assert run(*make, "-o", "direct.mp4", "--crf", 0).code == 0
    ended = run(*make, "-o", "star.safetensors")
    assert (ended.code, ended.out) == (0, "Wrote star.safetensors\n"), ended.err
    ended = run("decode", "star.safetensors", "--crf", 0)
    assert (ended.code, ended.out) == (0, "Wrote star.mp4\n"), ended.err
    wanted = read_video("direct.mp4").frames
    np.testing.assert_array_equal(read_video("star.mp4").frames, wanted)

    generator = VideoGenerator.from_directory("embedded", "text-to-video")
    options = dict(zip(("num_frames", "height", "width", "num_inference_steps", "seed"), SMALL[1::2]))
    latents = generator("a red star moves up", output_type="latent", **options)
    torch.save({"latents": latents}, "star.pt")
    np.save("star.npy", latents.numpy())
    for name in ("star.pt", "star.npy"):
        ended = run("decode", name, "--model", "embedded/i2vgen-xl", "-o", "again.mp4", "--crf", 0)
        assert ended.code == 0, ended.err
        np.testing.assert_array_equal(read_video("again.mp4").frames, wanted)


def test_what_holds_no_latents_is_said_in_one_line(run, tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"a": torch.zeros(1), "b": 2}, "two.pt")
    torch.save(torch.nn.Linear(1, 1), "module.pt")  # which could run code
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("small.npy", np.zeros((2, 2), np.float32))
    for name in ("text.safetensors", "two.pt", "module.pt", "objects.npy", "small.npy"):
        ended = run("decode", name, "--model", "embedded/i2vgen-xl")
        assert ended.code == 1 and f"{name} does not hold latents" in ended.err, (name, ended.err)
        assert ended.err.count("\n") == 1 and "unexpected" not in ended.err
    assert "no file none.npy" in run("decode", "none.npy").err
    np.save("good.npy", np.zeros((4, 1, 8, 8), np.float32))
    ended = run("decode", "good.npy")
    assert ended.code == 2 and "give the --model that made the latents" in ended.err


@pytest.mark.parametrize("path", ["none/a.safetensors", "folder.safetensors"])
def test_where_latents_cannot_be_written_is_said_before_a_model_loads(run, tmp_path, monkeypatch, path):
    from modelscope_i2v.cli import make

    monkeypatch.setattr(make, "load_pipeline", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "folder.safetensors").mkdir()
    ended = run("text-to-video", "a", "--model", "embedded", "-o", path)
    assert ended.code == 1 and "cannot be written" in ended.err
