"""The demo: a page of videos beside their inputs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from modelscope_i2v.cli import demo, gallery
from modelscope_i2v.media.sheet import contact_sheet
from modelscope_i2v.media.videos import read_video
from modelscope_i2v.spec.families import FAMILIES


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(demo, "_OPTIONS", {"num_inference_steps": 2})


def linked(index: Path) -> list[str]:
    return [
        unquote(link) for link in re.findall(r'(?:src|href)="([^"]+)"', index.read_text(encoding="utf-8"))
    ]


def test_the_demo_shows_each_video_beside_its_input(run, quick, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    ended = run("demo", "-o", "new/folder")
    assert ended.code == 0, ended.err
    folder = tmp_path / "new/folder"
    assert ended.out.splitlines()[-1] == str(Path("new/folder/index.html")) and not opened
    assert "drawn scenes" in ended.out and "warning" not in ended.err
    links = linked(folder / "index.html")
    assert all((folder / link).is_file() and "/" not in link for link in links)
    for name in (*FAMILIES, "animate"):
        assert f"{name}.mp4" in links and f"{name}.png" in links
        assert len(read_video(folder / f"{name}.mp4").frames) == 16
    assert {"video-to-video-input.mp4", "i2vgen-xl-input.png", "animate-first.mp4"} <= set(links)
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "chosen" in text and text.count("<section>") == 5 and str(tmp_path) not in text
    assert len({shlex.join(chosen.combination) for chosen in demo._CHOSEN.values()}) == 5

    command = re.findall(r"<pre>(.*?)</pre>", text)[0]
    monkeypatch.chdir(folder)
    ended = run(*shlex.split(command)[1:], "--num-inference-steps", 2, "-o", "again.mp4")
    assert ended.code == 0, ended.err
    frames = read_video("again.mp4").frames
    np.testing.assert_array_equal(frames, read_video("image-to-video.mp4").frames)


def test_a_picture_and_a_text_of_ones_own(run, monkeypatch, tmp_path):
    given = []

    def load(family, *models, **_):
        def make(inputs, output_video, **options):
            given.append((models, inputs, options["seed"]))
            return demo_video(output_video)

        return make

    def demo_video(path):
        from modelscope_i2v.media.write import write_video

        write_video(np.zeros((2, 96, 96, 3), np.uint8), path)
        if options_first := path.endswith("animate.mp4"):
            assert options_first
            write_video(np.zeros((2, 96, 96, 3), np.uint8), path.replace("animate", "animate-first"))

    monkeypatch.setattr(demo, "load_pipeline", load)
    Image.new("RGB", (40, 30), "red").save("my <b>.png")
    ended = run("demo", "--image", "my <b>.png", "--text", "it's <i>", "-o", "out")
    assert ended.code == 0, ended.err
    assert [models for models, *_ in given] == [
        ("embedded/image-to-video",),
        ("embedded/i2vgen-xl",),
        ("embedded/image-to-video", "embedded/video-to-video"),
    ]
    assert given[1][1]["text"] == "it's <i>"
    with Image.open("out/i2vgen-xl-input.png") as picture:
        assert picture.size == (40, 30)
    text = Path("out/index.html").read_text(encoding="utf-8")
    assert "<i>" not in text and "chosen" not in text and "is yours" in text
    given.clear()
    assert run("demo", "--text", "a blue star moves up", "-o", "out").code == 0
    assert [inputs for _, inputs, _ in given] == [{"text": "a blue star moves up"}]
    assert run("demo", "--image", "none.png", "-o", "other").code == 1 and not Path("other").exists()


@pytest.mark.parametrize(("terminal", "display", "opens"), [(True, ":0", 1), (True, "", 0), (False, ":0", 0)])
def test_the_page_is_opened_on_a_desktop_only(run, monkeypatch, terminal, display, opens):
    opened = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    monkeypatch.setattr(demo, "_make", lambda *_: None)
    monkeypatch.setattr(demo, "page", lambda path, videos, chosen: path.write_text("page"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert run("demo", "-o", "out").code == 0 and len(opened) == opens


def test_a_sheet_has_a_title_and_sharp_pixels():
    frames = np.zeros((2, 96, 96, 3), np.uint8)
    frames[:, 48:] = 255
    plain, titled = contact_sheet(frames), contact_sheet(frames, title="text-to-video: " + "long " * 100)
    assert titled.width == plain.width and titled.height > plain.height
    shown = np.asarray(plain)[20 : 20 + 192, 20 : 20 + 192]
    assert set(np.unique(shown)) == {0, 255}  # a smooth enlargement has greys between


def test_every_video_of_the_demo_has_a_title():
    assert set(gallery._TITLES) == set(demo._CHOSEN)
