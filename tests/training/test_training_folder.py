"""Videos and pictures with captions: what is read, what is skipped, what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.data import folder
from modelscope_i2v.data.cache import Cache, CacheWriter
from modelscope_i2v.data.folder import Cut, Entry, fingerprint, folder_entries, row_entries
from modelscope_i2v.data.live import made_by
from modelscope_i2v.embedded import model_directory
from modelscope_i2v.errors import InputError, OutputError
from modelscope_i2v.media.write import write_video
from modelscope_i2v.training.trainer import Trainer


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four short videos, two pictures, a video that is too short and one that is broken, with captions."""
    place = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    names = []
    for index in range(5):
        frames = random.integers(0, 255, (2 if index == 4 else 6, 48, 80, 3), dtype=np.uint8)
        write_video(frames, place / f"{index}.mp4", fps=8)
        names.append(f"{index}.mp4")
    (place / "still").mkdir()
    for index in range(2):
        pixels = random.integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "still" / f"{index}.png")
        names.append(f"still/{index}.png")
    (place / "broken.mp4").write_bytes(b"no video" * 20)
    names.append("broken.mp4")
    lines = ["caption,file", *(f'"clip, of {name}",{name}' for name in names)]
    (place / "captions.csv").write_text("\n".join(lines))
    records = ({"file_name": name, "text": f"clip, of {name}"} for name in names)
    (place / "others.jsonl").write_text("\n".join(map(json.dumps, records)))
    return place


@pytest.fixture
def on_folder(configured, clips):
    def config(name="i2vgen-xl", **changes):
        data = {"folder": str(clips), "height": 32, "width": 32, **changes.pop("data", {})}
        return configured(name, data=data, **{"frames": 4, "image_ratio": 0.5, "steps": 4, **changes})

    return config


def losses(config, **settings):
    trainer = Trainer(config, progress=False, **settings)
    trainer.run()
    return [point["loss"] for point in trainer.curve], trainer


@pytest.mark.parametrize("name", ["i2vgen-xl", "video-to-video"])
def test_with_and_without_a_cache_the_curve_is_the_same(on_folder, tmp_path, caplog, name):
    cache = str(tmp_path / "cache")
    live, trainer = losses(on_folder(name, output=str(tmp_path / "live")))
    assert len(trainer.batches.data) == 6
    assert "2 files are skipped: 4.mp4" in caplog.text and "broken.mp4" in caplog.text
    assert "4.mp4 has 2 frames, and 4 are needed" in caplog.text
    caplog.clear()
    for run in ("writes", "reads"):
        cached, trainer = losses(on_folder(name, output=str(tmp_path / run), cache=cache))
        assert cached == live and isinstance(trainer.batches.data, Cache)
        assert ("skipped" in caplog.text) == (run == "writes")
        caplog.clear()
    with pytest.raises(InputError, match="was made of other data, sizes or another model"):
        Trainer(on_folder(name, cache=cache, output=str(tmp_path / "x"), data={"width": 48}))


def test_a_cache_is_one_family_s():
    """Families share towers and autoencoder, but not what is added to a caption."""
    one, other = (ModelDirectory.open(model_directory(name)) for name in ("i2vgen-xl", "video-to-video"))
    assert made_by("data", one)["model"] == made_by("data", other)["model"]
    assert made_by("data", one) != made_by("data", other)


def test_a_run_on_a_folder_resumes(on_folder, tmp_path):
    whole, _ = losses(on_folder(output=str(tmp_path / "whole")))
    Trainer(on_folder(max_minutes=1e-9), progress=False).run()
    rest, trainer = losses(on_folder(), resume=True)
    assert rest == whole


def test_a_run_may_go_on_with_a_cache_or_without(on_folder, tmp_path):
    whole, _ = losses(on_folder(output=str(tmp_path / "whole")))
    cache = {"cache": str(tmp_path / "cache")}
    for first, then in (({}, cache), (cache, {})):
        output = {"output": str(tmp_path / f"begun with {len(first)}")}
        Trainer(on_folder(max_minutes=1e-9, **first, **output), progress=False).run()
        rest, _ = losses(on_folder(**then, **output), resume=True)
        assert rest == whole


def test_what_cannot_be_read_any_more_is_passed_over(on_folder, clips, tmp_path, caplog):
    place = shutil.copytree(clips, tmp_path / "clips")
    trainer = Trainer(on_folder(data={"folder": str(place)}), progress=False)
    data = trainer.batches.data
    videos = data.shards[0]
    assert videos.frames == 4 and len(videos) == 4
    (place / "1.mp4").unlink()
    (place / "2.mp4").write_bytes(b"cut off")
    caplog.clear()
    assert videos.readable(np.array([0, 1, 2, 3])).tolist() == [0, 3, 3, 3]
    trainer.run()
    said = [record.message for record in caplog.records if "skipped from now on" in record.message]
    assert len(said) == 2 and "1.mp4" in said[0] and "2.mp4" in said[1]
    assert [name for name, _ in data.broken] == ["4.mp4", "broken.mp4", "1.mp4", "2.mp4"]
    cache = Cache.open(data.write(tmp_path / "cache", progress=False))
    assert [len(shard) for shard in cache.shards] == [2, 2]
    kept = videos.read(np.array([0, 3]), np.zeros(2, int), 4)
    assert np.array_equal(cache.shards[0].latents, kept.latents)
    assert cache.shards[0].captions.tolist() == [cache.captions.index(f"clip, of {n}.mp4") for n in (0, 3)]
    for name in ("0.mp4", "3.mp4"):
        (place / name).unlink()
    with pytest.raises(InputError, match="no readable clip any more"):
        videos.readable(np.array([0]))


def test_a_full_disk_leaves_nothing_of_a_cache(on_folder, tmp_path, monkeypatch):
    add = CacheWriter.add

    def full(self, *arguments, **settings):
        if self._shards:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, *arguments, **settings)

    monkeypatch.setattr(CacheWriter, "add", full)
    with pytest.raises(OutputError, match="cache cannot be written: .*No space left"):
        Trainer(on_folder(cache=str(tmp_path / "cache")), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_stride_reads_as_much_more(on_folder):
    trainer = Trainer(on_folder(frames=3, frame_stride=2), progress=False)
    assert [shard.frames for shard in trainer.batches.data.shards] == [5, 1]
    with pytest.raises(InputError, match=r"max_frames is 4 and .* frames \(5, 3 at a frame_stride of 2\)"):
        Trainer(on_folder(frames=3, frame_stride=2, data={"max_frames": 4}))


def test_videos_that_are_shorter_than_the_longest(on_folder):
    trainer = Trainer(on_folder(frames=2, data={"max_frames": 6}), progress=False)
    shards = trainer.batches.data.shards
    assert [(shard.frames, len(shard)) for shard in shards] == [(6, 4), (2, 1), (1, 2)]
    trainer.run()


def test_captions(clips):
    entries = folder_entries(clips)
    assert entries[0].caption == "clip, of 0.mp4" and not entries[0].is_picture
    assert entries[5].name == "still/0.png" and entries[5].is_picture
    assert folder_entries(clips, "others.jsonl") == entries


def test_without_captions(clips, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").touch()
    assert [entry.name for entry in folder_entries(tmp_path, text=False)] == ["a.jpg", "b.png"]
    with pytest.raises(InputError, match=r"has no captions\.csv or captions\.jsonl"):
        folder_entries(tmp_path)


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("captions.csv", "file,caption\na.png,one\nnone.mp4,two\n", r"names files that .* none\.mp4\."),
        ("captions.csv", "name,words\na.png,one\n", "has the columns name, words; one of file"),
        ("captions.csv", "file,caption\n", "should have a line for each video"),
        ("captions.csv", "file,caption\na.png\n", "record 1 should have a text under file and caption"),
        ("captions.csv", "file,caption\na.png,a boat, at sea\n", "record 1 has more fields.* in quotes"),
        ("captions.csv", 'file,caption\na.png,"a 5" knife"\n', "cannot be read"),
        ("captions.csv", 'file,caption\na.png,"one\na.png,two\n', "cannot be read"),
        ("captions.jsonl", '{"file": "a.png"', r"captions\.jsonl, line 1, is not valid JSON"),
        ("captions.jsonl", "[" * 100_000, "line 1, is not valid JSON.*nested too deep"),
        ("captions.jsonl", '{"file": "a.png", "caption": "\\ud800"}', "record 1 .* not valid Unicode"),
        ("captions.jsonl", '{"file": "%s", "caption": "a"}' % ("a" * 5000), "names files that"),
        ("captions.jsonl", '{"file": "a\\u0000b.png", "caption": "a"}', "names files that"),
        ("captions.csv", b"file,caption\na.png,\xff\n", "is not UTF-8"),
        ("captions.csv", "file,caption\na.png," + "b" * 200_000, "cannot be read as CSV: field larger"),
        ("captions.jsonl", '{"file": "a.png", "caption": 3}', "record 1"),
    ],
)
def test_bad_captions(tmp_path, file, content, words):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words) as told:
        folder_entries(tmp_path)
    assert len(str(told.value)) < 1000 and "Error" not in str(told.value)


def test_pipes_and_circles_of_links_are_no_clips(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.mp4")
    (tmp_path / "c.mp4").symlink_to(tmp_path / "c.mp4")
    (tmp_path / "d").symlink_to(tmp_path)
    assert [entry.name for entry in folder_entries(tmp_path, text=False)] == ["a.png"]
    os.mkfifo(tmp_path / "captions.csv")
    with pytest.raises(InputError, match="there is no file"):
        folder_entries(tmp_path, "captions.csv")
    (tmp_path / "words.csv").write_text("file,caption\nb.mp4,one\n")
    with pytest.raises(InputError, match=r"names files that .* b\.mp4"):
        folder_entries(tmp_path, "words.csv")


@pytest.mark.parametrize(
    "rows, words",
    [
        (5, "it cannot be read as a list of rows"),
        ([["a.png", "b"]], "row 0 is a list"),
        ([{"file": "a.png", "text": "a"}, None], "row 1 is a NoneType"),
        ([{"file": "a.png", "text": "\ud800"}], "row 0 should have"),
        ([{"file": {"path": None}, "text": "a"}], "row 0 should have a file"),
        ([{"file": "a.png", "text": 7}], "row 0 should have"),
    ],
    ids=["number", "list", "none", "surrogate", "no file", "no text"],
)
def test_hostile_rows(rows, words):
    with pytest.raises(InputError, match=words):
        row_entries(rows, "it", {})


def test_hostile_files_in_rows_are_skipped(clips, tmp_path):
    """Each of them is named, and none ends a training on the others."""
    os.mkfifo(tmp_path / "pipe.mp4")
    files = [
        "a" * 5000 + ".png",
        "a\0b.png",
        "file:///dev/zero",
        7,
        {"path": 5},
        str(tmp_path),
    ]
    files += [str(tmp_path / "pipe.mp4"), b"\x89PNG\r\n", [1], np.zeros((2, 2, 2, 2, 2))]
    entries = row_entries([{"file": file, "text": "a"} for file in files], "it", {})
    (odd,) = row_entries([{"file": "https://[/a.png", "text": "a"}], "it", {})
    assert odd.name == "a.png"
    assert len(fingerprint(entries, Cut(8, 8, 1))) == 16
    for entry in entries:
        with pytest.raises(InputError) as told:
            Cut(8, 8, 1).decode(entry)
        assert len(str(told.value)) < 1000 and "Error" not in str(told.value)


def test_bad_folders(clips, tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        folder_entries(tmp_path / "none")
    with pytest.raises(InputError, match="there is no file"):
        folder_entries(clips, "none.csv")
    with pytest.raises(InputError, match="no video and no picture"):
        folder_entries(tmp_path, text=False)


def test_no_readable_clip_is_an_error_before_training(on_folder, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4,one\n")
    with pytest.raises(InputError, match=r"no readable clip: of 1, not one. a\.mp4: .*a\.mp4"):
        Trainer(on_folder(data={"folder": str(tmp_path)}))
    assert not (tmp_path / "run").exists()


def test_sizes(on_folder):
    with pytest.raises(InputError, match="36x32 should be multiples of 8"):
        Trainer(on_folder(data={"width": 36}))
    with pytest.raises(InputError, match=r"data\.max_frames is 3"):
        Trainer(on_folder(data={"max_frames": 3}))


def test_cutting(clips):
    decoded = Cut(24, 32, 3).decode(Entry(clips / "0.mp4", "", "0.mp4"))
    assert decoded.frames.shape == (3, 24, 32, 3) and decoded.first.shape == (48, 80, 3)
    assert decoded.fps == 8
    slower = Cut(24, 32, 3, fps=4.0).decode(Entry(clips / "0.mp4", "", "0.mp4"))
    assert slower.fps == 4 and np.array_equal(slower.frames[0], decoded.frames[0])
    assert np.array_equal(slower.frames[1], decoded.frames[2])
    still = Cut(24, 32, 3).decode(Entry(clips / "still" / "0.png", "", "0.png"))
    assert still.frames.shape == (1, 24, 32, 3) and still.fps == 1


def test_rows_of_a_data_set(clips):
    data = (clips / "0.mp4").read_bytes()
    rows = [{"video": str(clips / "0.mp4"), "text": "a"}, {"video": {"bytes": data}, "text": "b"}]
    first, second = row_entries(rows, "it", {})
    assert first.name == "0.mp4" and second.caption == "b"
    cut = Cut(24, 32, 3)
    assert np.array_equal(cut.decode(first).frames, cut.decode(second).frames)
    named = row_entries(rows[:1], "it", {"file_column": "text", "caption_column": "video"})
    assert named[0].source == "a"
    with pytest.raises(InputError, match="it has no rows"):
        row_entries([], "it", {})
    with pytest.raises(InputError, match="it has the columns video, text; one of words"):
        row_entries(rows, "it", {"caption_column": "words"})
    for lacking in ({"video": "c.mp4", "text": None}, {"video": "c.mp4"}, {"text": "c"}):
        with pytest.raises(
            InputError, match="row 2 should have a file under 'video' and a text under 'text'"
        ):
            row_entries([*rows, lacking], "it", {})
    (bare,) = row_entries([{"video": "c.mp4"}], "it", {}, text=False)
    assert (bare.name, bare.caption) == ("c.mp4", "")


def test_pictures_of_a_data_set_are_known_by_their_names(clips):
    path = clips / "still" / "0.png"
    files = [
        {"bytes": path.read_bytes(), "path": "0.png"},
        str(path),
        "https://here/a.png?size=1",
        b"",
        "https://here/a.mp4",
    ]
    entries = row_entries([{"image": file, "text": "a"} for file in files], "it", {})
    assert [entry.is_picture for entry in entries] == [True, True, True, False, False]
    assert entries[2].name == "a.png"
    first, second = (Cut(24, 32, 3).decode(entry).frames for entry in entries[:2])
    assert np.array_equal(first, second)


def test_what_reads_no_text_needs_no_captions(clips, tmp_path):
    shutil.copy(clips / "0.mp4", tmp_path)
    (tmp_path / "captions.csv").write_text("file\n0.mp4\n")
    (entry,) = folder_entries(tmp_path, text=False)
    assert (entry.name, entry.caption) == ("0.mp4", "")
    with pytest.raises(InputError, match="has the columns file; one of caption"):
        folder_entries(tmp_path)


def test_the_rate_of_a_video_is_not_that_of_its_first_two_frames(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 30)
        for index in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 6 * index, np.uint8))
            frame.pts = index + (index > 0)  # the second comes late
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    decoded = Cut(24, 32, 3, fps=7.5).decode(Entry(tmp_path / "a.mp4", "", "a.mp4"))
    assert round(decoded.frames[1].mean() - decoded.frames[0].mean(), -1) == 20  # every fourth


def test_broken_files_of_one_name_are_all_counted(on_folder, tmp_path, caplog):
    rows = []
    for folder_name in ("a", "b"):
        (tmp_path / folder_name).mkdir()
        (tmp_path / folder_name / "video.mp4").write_bytes(b"nothing")
        rows.append({"video": str(tmp_path / folder_name / "video.mp4"), "caption": "c"})
    with pytest.raises(InputError, match="no readable clip: of 2, not one"):
        Trainer(on_folder(), entries=row_entries(rows, "rows", {}), progress=False)


def test_a_data_set_that_cannot_be_loaded(monkeypatch, clips):
    from modelscope import msdatasets

    class Sets:
        @staticmethod
        def load(name, **settings):
            if name == "none":
                raise FileNotFoundError(name)
            assert settings == {"split": "train"}
            return [{"image:FILE": str(clips / "still" / "0.png"), "prompt": "p"}]

    monkeypatch.setattr(msdatasets, "MsDataset", Sets)
    (entry,) = folder.dataset_entries({"msdataset": "clips", "split": "train"})
    assert entry.is_picture and entry.caption == "p"
    with pytest.raises(InputError, match="data.msdataset: 'none' cannot be loaded: none$"):
        folder.dataset_entries({"msdataset": "none"})


def test_two_writers_of_one_cache_do_not_break_each_other(tmp_path):
    latents = np.zeros((2, 4, 4, 4))
    one, other = (CacheWriter(tmp_path / "cache") for _ in range(2))
    for writer in (one, other):
        writer.add(latents)
    first = Cache.open(one.finish())
    other.finish()
    assert len(Cache.open(tmp_path / "cache")) == len(first) == 1
    assert np.array_equal(first.shards[0].latents[0], latents)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_unexpected_failure_of_a_decoder_is_told_in_words(on_folder, monkeypatch, caplog):
    real = Cut.decode

    def broken(self, entry):
        if entry.name == "1.mp4":
            raise MemoryError("Unable to allocate 3 GiB")
        return real(self, entry)

    monkeypatch.setattr(Cut, "decode", broken)
    trainer = Trainer(on_folder(), progress=False)
    assert ("1.mp4", "It cannot be decoded.") in trainer.batches.data.broken and "Error" not in caplog.text


def test_states_are_those_of_the_pipeline(on_folder):
    trainer = Trainer(on_folder("video-to-video"), progress=False)
    data, encoders = trainer.batches.data, trainer.encoders
    row = data.captions.index("clip, of 1.mp4")
    expected = encoders.text_encoder.encode(["clip, of 1.mp4" + trainer.family.prompt_suffix])
    assert torch.allclose(data.states([row]), expected, atol=1e-3)
    without = encoders.text_encoder.encode([""])  # as a negative prompt is encoded
    assert torch.allclose(trainer.unconditional["text"], without, atol=1e-3)
