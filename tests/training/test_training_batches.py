"""Which clips come when, and with what."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct

import numpy as np
import pytest
import torch

from modelscope_i2v.data.cache import Cache, CacheWriter
from modelscope_i2v.errors import InputError, OutputError
from modelscope_i2v.spec.families import FAMILIES, I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO
from modelscope_i2v.training.batches import Batches, Order
from modelscope_i2v.training.trainer import Trainer


def test_every_clip_comes_once_an_epoch():
    order = Order((6, 0, 4), 2, seed=3)
    assert order.batches == 5
    epochs = [[order.batch(5 * epoch + place) for place in range(5)] for epoch in (0, 1)]
    for epoch in epochs:
        seen = sorted((bucket, int(row)) for bucket, rows in epoch for row in rows)
        assert seen == [(0, row) for row in range(6)] + [(2, row) for row in range(4)]
    assert str(epochs[0]) != str(epochs[1])
    again = Order((6, 0, 4), 2, seed=3)
    assert str(again.batch(7)) == str(epochs[1][2])  # without those before
    assert str(Order((6, 0, 4), 2, seed=4).batch(0)) != str(epochs[0][0])


def test_fewer_clips_than_a_batch():
    bucket, rows = Order((2,), 5, seed=0).batch(9)
    assert sorted(set(rows)) == [0, 1] and len(rows) == 5


def test_one_batch_of_eight_is_pictures(caches):
    batches = Batches(
        Cache.open(caches(TEXT_TO_VIDEO.name)), TEXT_TO_VIDEO, batch_size=2, seed=0, image_ratio=0.125
    )
    frames = [batches.batch(number).latents.shape[2] for number in range(32)]
    assert frames.count(1) == 4 and [n for n, f in enumerate(frames) if f == 1] == [7, 15, 23, 31]


def test_processes_share_an_epoch(caches):
    batches = Batches(Cache.open(caches(TEXT_TO_VIDEO.name)), TEXT_TO_VIDEO, batch_size=2, seed=0)
    seen = [batches.batch(number, rank, 2).latents for number in range(2) for rank in range(2)]
    firsts = torch.cat(seen)[:, 0, 0, 0, 0]
    assert len(firsts.unique()) == 8


def test_conditions_of_each_family(caches):
    for name, family in FAMILIES.items():
        cache = Cache.open(caches(name))
        batch = Batches(cache, family, batch_size=3, seed=0, frames=2).batch(0)
        assert batch.latents.shape[:3] == (3, 4, 2)
        wanted = {"text"} if family.reads_text else set()
        wanted |= {"image_embeds"} if family.reads_image else set()
        wanted |= {"fps"} if family.unet.fps_embedding else set()
        wanted |= {"image_latents"} if family is I2VGEN_XL else set()
        assert set(batch.conditions) == wanted
        assert (batch.source is not None) == family.takes_video
        shard = cache.shards[0]
        for sample, latents in enumerate(batch.latents):
            rows = [
                row
                for row in range(8)
                if any(np.allclose(latents[0, 0], shard.latents[row, start, 0]) for start in range(3))
            ]
            assert len(rows) == 1
            if "text" in wanted:
                text = batch.conditions["text"][sample]
                assert np.allclose(text, cache.text[shard.captions[rows[0]]])
            if "fps" in wanted:
                assert batch.conditions["fps"][sample] == 6.0 + rows[0]
            if family.reads_image:  # the embedding is the first frame's, so windows begin there
                assert np.allclose(latents[:, 0], shard.latents[rows[0], 0])
                assert np.allclose(batch.conditions["image_embeds"][sample, 0], shard.image[rows[0]])
        if family is I2VGEN_XL:
            assert torch.equal(batch.conditions["image_latents"], batch.latents[:, :, 0])


def test_windows_move(caches):
    cache = Cache.open(caches(TEXT_TO_VIDEO.name))
    batches = Batches(cache, TEXT_TO_VIDEO, batch_size=8, seed=0, frames=2)
    firsts = torch.cat([batches.batch(number).latents for number in range(8)])[:, 0, 0, 0, 0]
    starts = [int(np.argwhere(np.isclose(cache.shards[0].latents[:, :, 0, 0, 0], v))[0][1]) for v in firsts]
    assert set(starts) == {0, 1, 2}
    batches = Batches(cache, TEXT_TO_VIDEO, batch_size=8, seed=0, frames=2, from_start=True)
    firsts = torch.cat([batches.batch(number).latents for number in range(8)])[:, :, 0].numpy()
    assert all(np.isclose(cache.shards[0].latents[:, 0], first).all((1, 2, 3)).any() for first in firsts)


def test_every_other_frame(caches):
    for name in (TEXT_TO_VIDEO.name, VIDEO_TO_VIDEO.name, IMAGE_TO_VIDEO.name):
        cache, family = Cache.open(caches(name)), FAMILIES[name]
        stored, settings = cache.shards[0].latents, {"batch_size": 8, "seed": 0, "stride": 2}
        for frames, length in ((2, 2), (None, math.ceil(cache.shards[0].frames / 2))):
            batch = Batches(cache, family, frames=frames, **settings).batch(0)
            assert batch.latents.shape[2] == length
            for latents in batch.latents.transpose(1, 2).numpy():
                ((row, start),) = np.argwhere(np.isclose(stored, latents[0]).all((2, 3, 4)))
                assert np.allclose(stored[row, start::2][:length], latents)
            assert batch.source is None or batch.source.shape == batch.latents.shape
            if family.unet.fps_embedding:
                assert set((2 * batch.conditions["fps"]).tolist()) == set(cache.shards[0].fps.tolist())
    with pytest.raises(InputError, match="frames is 3 and frame_stride 2; the longest clip of .* has 4"):
        Batches(cache, family, frames=3, **settings)


@pytest.mark.parametrize("name", ["text-to-video-synthesis", "image-to-video", "i2vgen-xl"])
def test_dropped_conditions(configured, caches, name):
    trainer = Trainer(configured(name, batch_size=8, condition_dropout=0.5), progress=False)
    cache, dropped, count = Cache.open(caches(name)), 0, 0
    for number in range(8):
        batch = trainer.batches.batch(number)
        _, conditions = trainer.prepare(batch, number)
        gone = torch.zeros(8, dtype=torch.bool)
        if "text" in conditions:
            gone = (conditions["text"] == cache.states([0])[0]).flatten(1).all(1)
        if "image_embeds" in conditions:
            blank = (conditions["image_embeds"] == 0).flatten(1).all(1)
            assert "text" not in conditions or torch.equal(blank, gone)  # both or none
            gone = blank
        if "image_latents" in conditions:
            assert torch.equal(conditions["image_latents"], batch.conditions["image_latents"])
        dropped, count = dropped + int(gone.sum()), count + 8
    assert 0.3 < dropped / count < 0.7


def test_what_data_lack(caches):
    with pytest.raises(InputError, match="no image embeddings, which image-to-video needs"):
        Batches(Cache.open(caches(TEXT_TO_VIDEO.name)), IMAGE_TO_VIDEO, batch_size=1, seed=0)
    with pytest.raises(InputError, match="no degraded clips, which video-to-video needs"):
        Batches(Cache.open(caches(TEXT_TO_VIDEO.name)), VIDEO_TO_VIDEO, batch_size=1, seed=0)
    with pytest.raises(InputError, match="frames is 5; the longest clip .* has 4"):
        Batches(Cache.open(caches(TEXT_TO_VIDEO.name)), TEXT_TO_VIDEO, batch_size=1, seed=0, frames=5)
    batches = Batches(Cache.open(caches(TEXT_TO_VIDEO.name)), TEXT_TO_VIDEO, batch_size=1, seed=0)
    with pytest.raises(InputError, match="dropped_text is 'nothing'"):
        batches.unconditional("nothing")


@pytest.mark.parametrize(
    "latents, text, words",
    [
        ((4, 3, 8, 8), 32, "latents have 3 channels and should have 4"),
        ((4, 4, 7, 8), 32, "latents are 7x8 and should be 8x8"),
        ((4, 4, 8, 8), 64, "text states are 64 wide and should be 32"),
    ],
)
def test_a_cache_of_another_model(configured, tmp_path, latents, text, words):
    writer = CacheWriter(tmp_path / "cache")
    writer.add_texts([""], np.zeros((1, 77, text)))
    writer.add(np.zeros(latents))
    with pytest.raises(InputError, match=words):
        Trainer(configured(data={"cache": str(writer.finish())}))


def test_a_cache_comes_back_as_it_was_written(tmp_path):
    random = np.random.default_rng(0)
    latents = [random.standard_normal((3, 4, 2, 2)).astype("f2") for _ in range(5)]
    writer = CacheWriter(tmp_path / "cache", made_by={"seed": 1})
    writer.add_texts(["", "a"], torch.zeros(2, 77, 8))
    writer.add_texts(["a", "b"], torch.ones(2, 77, 8))
    for index, clip in enumerate(latents):
        writer.add(torch.from_numpy(clip), caption="ab"[index % 2], fps=index)
    writer.add(latents[0][:1])
    assert not (tmp_path / "cache").exists()
    cache = Cache.open(writer.finish())
    assert len(cache) == 6 and [shard.frames for shard in cache.shards] == [3, 1]
    assert np.array_equal(cache.shards[0].latents, latents) and cache.captions == ("", "a", "b")
    assert cache.shards[0].captions.tolist() == [1, 2, 1, 2, 1] and cache.shards[0].fps[4] == 4
    assert cache.text[1].max() == 0 and cache.text[2].min() == 1 and cache.made_by == {"seed": 1}


def test_what_cannot_be_written_into_a_cache(tmp_path):
    clip = np.zeros((3, 4, 2, 2))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="exists already"):
        CacheWriter(tmp_path / "full")
    writer = CacheWriter(tmp_path / "cache")
    with pytest.raises(InputError, match="No clip"):
        writer.finish()
    writer.add(clip, image=np.zeros(4))
    for wrong, words in (
        ({"latents": clip}, "'image', or none"),
        ({"latents": clip, "image": np.zeros(5)}, r"holds rows of shape \[4\]"),
        ({"latents": clip[0], "image": np.zeros(4)}, "should be"),
        ({"latents": clip + np.inf, "image": np.zeros(4)}, "infinity"),
        ({"latents": clip, "image": np.zeros(4), "source": clip}, "'source', or none"),
    ):
        with pytest.raises(InputError, match=words):
            writer.add(**wrong)
    with pytest.raises(InputError, match="texts and states should be of one length; they are 2 and 1"):
        writer.add_texts(["a", "b"], np.zeros((1, 77, 8)))
    writer.add_texts(["a"], np.zeros((1, 77, 8)))
    with pytest.raises(InputError, match="no text states of the caption ''"):
        writer.finish()


def test_what_is_no_cache(caches, tmp_path):
    with pytest.raises(InputError, match=r"no finished cache: it has no index\.json"):
        Cache.open(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(InputError, match="index.json is not valid JSON"):
        Cache.open(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps({"version": 9}))
    with pytest.raises(InputError, match="version 9"):
        Cache.open(tmp_path)


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


_WHOLE = "{'descr': '<f2', 'fortran_order': False, 'shape': "


@pytest.mark.parametrize(
    "name, content",
    [
        ("latents", b""),
        ("latents", b"PK\x03\x04" + bytes(100)),
        ("latents", lambda whole: whole[:-1000]),
        ("latents", lambda whole: whole[:50]),
        ("latents", header("(" * 9000)),
        ("latents", header(_WHOLE + "(8, 4, 4, 8, 8), 'x': " + "-" * 5000 + "1}")),
        ("latents", header(_WHOLE + f"({2**62}, 4, 4, 8, 8)}}")),
        ("latents", header(_WHOLE + "(-1, 4, 4, 8, 8)}") + bytes(1000)),
        ("latents", header(_WHOLE.replace("<f2", "|O") + "(8, 4, 4, 8, 8)}") + bytes(100)),
        ("latents", np.zeros((8, 4, 4, 8, 8), np.float32)),
        ("latents", np.zeros((8, 4, 4, 8, 9), np.float16)),
        ("latents", np.zeros((7, 4, 4, 8, 8), np.float16)),
        ("latents", np.zeros((8, 4), np.float16)),
        ("image", np.zeros((8, 0), np.float16)),
        ("image", np.zeros((9, 32), np.float16)),
        ("text", np.zeros((2, 77, 32), np.float16)),
        ("text", np.zeros((3, 77, 32), "<U1")),
        ("text", "a named pipe"),
        ("latents", "a directory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_damaged_arrays_are_named(caches, tmp_path, name, content):
    path = shutil.copytree(caches(I2VGEN_XL.name), tmp_path / "cache")
    file = path / ("text.npy" if name == "text" else f"{name}-4x8x8.npy")
    words = "is damaged: " + file.name
    if callable(content):
        content = content(file.read_bytes())
    file.unlink()
    if isinstance(content, np.ndarray):
        np.save(file, content)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        words = f"{file.name} is {content}"
        os.mkfifo(file) if "pipe" in content else file.mkdir()
    with pytest.raises(InputError, match=words) as told:
        Cache.open(path)
    assert "Error" not in str(told.value) and len(str(told.value)) < 600


@pytest.mark.parametrize(
    "change, words",
    [
        ({"captions": 5}, "the captions in its index"),
        ({"captions": [None] * 3}, "the captions in its index"),
        ({"shards": {}}, "at least one shard"),
        ({"shards": []}, "at least one shard"),
        ({"shards": {"../x": {}}}, "for the shard '../x'"),
        ({"shards": {"4x8x8": None}}, "lists of captions and fps"),
        ({"captions of the shard": [0] * 7 + [3]}, "a caption's number that does not exist"),
        ({"captions of the shard": [0] * 7 + [-1]}, "a caption's number that does not exist"),
        ({"captions of the shard": [0] * 7 + [1.0]}, "a caption's number that does not exist"),
        ({"fps of the shard": [8.0] * 7 + [float("nan")]}, "fps that is no number from 0 up"),
        ({"fps of the shard": [8.0] * 7 + ["8"]}, "fps that is no number from 0 up"),
        ({"fps of the shard": [8.0] * 7}, "captions and fps of unequal number"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_damaged_index_is_told(caches, tmp_path, change, words):
    path = shutil.copytree(caches(I2VGEN_XL.name), tmp_path / "cache")
    index = json.loads((path / "index.json").read_text())
    for key, value in change.items():
        name, _, inside = key.partition(" ")
        (index["shards"]["4x8x8"] if inside else index)[name] = value
    (path / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"The cache .* is damaged: .*{words}"):
        Cache.open(path)


def test_numbers_that_are_none_are_told_before_they_are_learned(caches, tmp_path):
    path = shutil.copytree(caches(TEXT_TO_VIDEO.name), tmp_path / "cache")
    file = path / "latents-4x8x8.npy"
    content = np.load(file)
    content[:, 0] = np.nan
    np.save(file, content)
    batches = Batches(Cache.open(path), TEXT_TO_VIDEO, batch_size=2, seed=0)
    with pytest.raises(InputError, match="cache is damaged: latents has NaN or infinity"):
        batches.batch(0)
