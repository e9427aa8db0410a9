"""From a picture to a large video in one call, with the embedded small models."""

import json
import shutil

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import modelscope_i2v
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine import cascade as cascade_module
from modelscope_i2v.engine.cascade import Animation, Cascade, animate, free_memory
from modelscope_i2v.engine.generator import VideoGenerator
from modelscope_i2v.errors import Cancelled, CheckpointError, InputError, OutputError
from modelscope_i2v.media.videos import read_video
from modelscope_i2v.memory import count

TEXT = "A boat on the sea."
MODELS = (model_directory("image-to-video"), model_directory("video-to-video"))
FIRST = {"num_frames": 3, "num_inference_steps": 3}
SMALL = {"height": 32, "width": 48}
SECOND = {"num_inference_steps": 2, "guidance_scale": 5}
LARGE = {"height": 48, "width": 64}
BOTH = {"seed": 5, "progress": False}
CALL = {**FIRST, **LARGE, **BOTH, "first_options": SMALL, "refine_options": SECOND}


@pytest.fixture(scope="module", params=["image-to-video", "i2vgen-xl"])
def pair(request):
    return Cascade.load((model_directory(request.param), MODELS[1]), device="cpu")


@pytest.fixture(scope="module")
def cascade():
    return Cascade.load(MODELS, device="cpu")


@pytest.fixture(scope="module")
def by_hand(cascade):
    """Both videos of CALL."""
    first = cascade.first([picture()], output_type="pt", **FIRST, **SMALL, **BOTH)[0]
    given = {"frames": first, "text": TEXT}
    return cascade.second([given], output_type="np", **SECOND, **LARGE, **BOTH)[0], first


def made(cascade, **options):
    return cascade([{"image": picture(), "text": TEXT}], **{"output_type": "np", **CALL, **options})[0]


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def copy_of(directory, to, change=None):
    """A model directory with all its files in it; ``change`` is a file that gets other weights."""
    shutil.copytree(directory, to)
    file = to / "configuration.json"
    values = json.loads(file.read_text())
    args = values["model"]["model_args"]
    for key in ("ckpt_clip", "ckpt_autoencoder"):
        name = args[key].removeprefix("../")
        shutil.copy(directory / args[key], to / name)
        args[key] = name
        if key == change:
            tensors = load_file(to / name)
            tensors = {key: t * 1.01 if t.is_floating_point() else t for key, t in tensors.items()}
            save_file(tensors, to / name)
    file.write_text(json.dumps(values))
    return to


def test_one_call_is_both_stages_by_hand(pair):
    text = {"text": TEXT} if pair.first.family.reads_text else {}
    first = pair.first([{"image": picture(), **text}], output_type="pt", **FIRST, **SMALL, **BOTH)[0]
    assert first.shape == (3, 3, 32, 48)
    given = {"frames": first, "text": TEXT}
    wanted = pair.second([given], output_type="np", **SECOND, **LARGE, **BOTH)[0]
    assert wanted.shape == (3, 48, 64, 3)
    assert np.array_equal(made(pair), wanted)
    video, kept = made(pair, output_type="pt", keep_first=True)
    assert torch.equal(kept, first) and video.shape == (3, 3, 48, 64)


def test_an_mp4_in_between_changes_little(cascade, by_hand, tmp_path):
    path = tmp_path / "small.mp4"
    cascade.first([picture()], str(path), **FIRST, **SMALL, **BOTH)
    given = {"video_path": path, "text": TEXT}
    through_file = cascade.second([given], output_type="np", **SECOND, **LARGE, **BOTH)[0]
    assert not np.array_equal(through_file, by_hand[0])
    assert 20 < psnr(through_file, by_hand[0]) < 60


def test_text_leads_both_stages():
    pair = Cascade.load((model_directory("i2vgen-xl"), MODELS[1]), device="cpu")
    one, other = (
        pair([{"image": picture(), "text": t}], output_type="np", keep_first=True, **CALL)[0]
        for t in (TEXT, "A red house")
    )
    assert not np.array_equal(one.first, other.first) and not np.array_equal(one.video, other.video)


def test_text_leads_the_second_stage(cascade):
    one, other = (
        cascade([{"image": picture(), "text": t}], output_type="np", keep_first=True, **CALL)[0]
        for t in (TEXT, "A red house")
    )
    assert np.array_equal(one.first, other.first) and not np.array_equal(one.video, other.video)


def test_equal_networks_are_in_memory_once(tmp_path):
    first = copy_of(model_directory("i2vgen-xl"), tmp_path / "first")
    second = copy_of(MODELS[1], tmp_path / "second")
    for models in ((first, second), (model_directory("i2vgen-xl"), MODELS[1])):
        for dtype in ("fp32", "bf16"):
            pair = Cascade.load(models, device="cpu", dtype=dtype)
            assert pair.first.autoencoder is pair.second.autoencoder
            assert pair.first.text_encoder is pair.second.text_encoder
            assert pair.first.unet is not pair.second.unet
            assert pair.second.image_encoder is None and pair.first.image_encoder is not None


@pytest.mark.parametrize("changed", ["ckpt_clip", "ckpt_autoencoder"])
def test_other_weights_are_not_shared(tmp_path, changed):
    first = copy_of(model_directory("i2vgen-xl"), tmp_path / "first")
    second = copy_of(MODELS[1], tmp_path / "second", change=changed)
    pair = Cascade.load((first, second), device="cpu")
    alone = VideoGenerator.from_directory(second, device="cpu"), VideoGenerator.from_directory(first)
    assert (pair.first.autoencoder is pair.second.autoencoder) == (changed == "ckpt_clip")
    assert (pair.first.text_encoder is pair.second.text_encoder) == (changed == "ckpt_autoencoder")
    for name in ("autoencoder", "text_encoder"):
        for stage, by_itself in zip((pair.second, pair.first), alone):
            mine, right = (getattr(x, name).state_dict() for x in (stage, by_itself))
            assert mine.keys() == right.keys() and all(torch.equal(mine[k], right[k]) for k in mine)


def test_one_file_is_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(cascade_module, "holds", lambda *_: pytest.fail("compared with itself"))
    pair = Cascade.load((model_directory("i2vgen-xl"), MODELS[1]), device="cpu")
    assert pair.first.autoencoder is pair.second.autoencoder


def test_first_video_is_written_beside_the_other(cascade, by_hand, tmp_path):
    path = tmp_path / "boat.mp4"
    both = made(cascade, output_type="mp4", output_video=str(path), keep_first=True)
    assert isinstance(both, Animation)
    assert both == (str(path), str(tmp_path / "boat-first.mp4"))
    assert read_video(both.video).frames.shape == (3, 48, 64, 3)
    assert read_video(both.first).frames.shape == (3, 32, 48, 3)
    alone = cascade.first([picture()], str(tmp_path / "alone.mp4"), **FIRST, **SMALL, **BOTH)[0]
    assert np.array_equal(read_video(both.first).frames, read_video(alone).frames)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["alone.mp4", "boat-first.mp4", "boat.mp4"]


def test_without_being_asked_the_first_video_is_not_kept(cascade, tmp_path):
    path = tmp_path / "boat.gif"
    assert made(cascade, output_type="mp4", output_video=path) == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["boat.gif"]


def test_both_videos_in_memory(cascade, by_hand):
    both = made(cascade, keep_first=True)
    assert np.array_equal(both.video, by_hand[0])
    assert both.first.dtype == np.uint8 and both.first.shape == (3, 32, 48, 3)
    as_bytes = made(cascade, output_type="mp4", keep_first=True)
    assert read_video(as_bytes.first).frames.shape == (3, 32, 48, 3)
    latents = made(cascade, output_type="latent", keep_first=True)
    assert latents.video.shape == (4, 3, 6, 8) and torch.equal(latents.first, by_hand[1])


@pytest.mark.parametrize("kind", ["pt", "np", "pil", "path", "bytes"])
def test_refining_continues_from_a_first_video(cascade, by_hand, tmp_path, kind):
    output_type = kind if kind in ("pt", "np", "pil") else "mp4"
    path = tmp_path / "small.mp4" if kind == "path" else None
    first = cascade.first([picture()], path, output_type=output_type, **FIRST, **SMALL, **BOTH)[0]
    options = {"output_type": "np", "refine_options": SECOND, **LARGE, **BOTH}
    refined = animate(None, TEXT, models=MODELS, refine=first, device="cpu", **options)
    assert refined.shape == by_hand[0].shape
    assert np.array_equal(refined, by_hand[0]) if kind == "pt" else psnr(refined, by_hand[0]) > 20


def test_refining_loads_the_second_stage_alone(by_hand, tmp_path, monkeypatch):
    loaded = []
    load = VideoGenerator.from_directory.__func__
    monkeypatch.setattr(
        VideoGenerator,
        "from_directory",
        classmethod(lambda cls, model, **settings: loaded.append(model.path) or load(cls, model, **settings)),
    )
    options = {"output_type": "np", "refine_options": SECOND, **LARGE, **BOTH}
    models = (tmp_path / "not needed", MODELS[1])
    refined = animate(picture(), TEXT, models=models, refine=by_hand[1], device="cpu", **options)
    assert np.array_equal(refined, by_hand[0]) and loaded == [MODELS[1]]


def test_refining_several_videos(cascade, by_hand, tmp_path):
    first = by_hand[1]
    options = {"refine_options": SECOND, **LARGE, **BOTH}
    listed = animate(
        text=TEXT, refine=[first, first.flip(0)], models=MODELS, device="cpu", output_type="np", **options
    )
    assert len(listed) == 2 and np.array_equal(listed[0], by_hand[0])
    assert not np.array_equal(listed[1], by_hand[0])
    one = cascade.refine([{"frames": first, "text": TEXT}], output_type="np", num_videos=2, **options)[0]
    assert len(one) == 2 and np.array_equal(one[0], by_hand[0])


def test_frame_rate_passes_on_and_can_be_set(cascade, tmp_path):
    for options, fps in (({}, 8), ({"fps": 12}, 12), ({"first_options": {**SMALL, "fps": 6}}, 6)):
        both = made(cascade, output_type="mp4", output_video=tmp_path / "a.mp4", keep_first=True, **options)
        assert [read_video(path).fps for path in both] == [fps, fps]


def test_seeds(cascade, by_hand):
    assert np.array_equal(made(cascade), by_hand[0])
    assert not np.array_equal(made(cascade, seed=6), by_hand[0])
    one, other = (made(cascade, keep_first=True, refine_options={**SECOND, "seed": seed}) for seed in (5, 6))
    assert np.array_equal(one.first, other.first)
    assert np.array_equal(one.video, by_hand[0]) and not np.array_equal(other.video, one.video)
    two = [made(cascade, seed=None) for _ in range(2) if torch.manual_seed(3)]
    assert np.array_equal(*two)


def test_several_videos_of_a_picture_count_their_seeds_up(cascade, by_hand, tmp_path):
    videos = made(cascade, num_videos=2, keep_first=True)
    assert [type(video) for video in videos] == [Animation, Animation]
    single = made(cascade, seed=6, keep_first=True)
    assert np.array_equal(videos[0].video, by_hand[0])
    assert all(np.array_equal(mine, right) for mine, right in zip(videos[1], single))
    path = tmp_path / "a.mp4"
    made(cascade, num_videos=2, keep_first=True, output_type="mp4", output_video=path)
    names = ["a-1-first.mp4", "a-1.mp4", "a-2-first.mp4", "a-2.mp4"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_a_list_of_pictures(cascade, by_hand, tmp_path):
    other = Image.open(picture()).rotate(90)
    inputs = [picture(), {"image": other, "text": "Hills", "seed": 6, "num_frames": 2}]
    call = {name: value for name, value in CALL.items() if name not in ("seed", "num_frames")}
    listed = animate(inputs, TEXT, models=MODELS, device="cpu", output_type="np", num_frames=None, **call)
    assert [len(video) for video in listed] == [16, 2]
    alone = cascade([{**inputs[1]}], output_type="np", **call)[0]
    assert np.array_equal(listed[1], alone)
    paths = [tmp_path / "a.mp4", tmp_path / "b.gif"]
    both = [{"image": picture(), "text": TEXT}, inputs[1]]
    assert cascade(both, paths, **{**CALL, "seed": None}) == [str(path) for path in paths]
    assert len(read_video(paths[0]).frames) == 3


def test_options_go_where_they_belong(cascade):
    seen = []
    made(cascade, callback=lambda step, total, latents: seen.append((step, total, latents.shape[-2:])))
    assert seen == [(i, 3, (4, 8)) for i in (1, 2, 3)] + [(i, 2, (6, 8)) for i in (1, 2)]
    base = made(cascade, keep_first=True)
    for options, first_changes in (
        ({"strength": 0.3}, False),
        ({"inversion": "ddim"}, False),
        ({"negative_prompt": "a house"}, False),
        ({"refine_options": {**SECOND, "guidance_scale": 6}}, False),
        ({"guidance_scale": 6}, True),
        ({"target_fps": 3}, True),
        ({"first_options": {**SMALL, "guidance_scale": 6}}, True),
    ):
        video, first = made(cascade, keep_first=True, **options)
        assert np.array_equal(first, base.first) != first_changes, options
        assert not np.array_equal(video, base.video), options


def test_many_frames_all_reach_the_second_stage(cascade):
    assert len(made(cascade, num_frames=18)) == 18  # its own default is 16
    assert len(made(cascade, refine_options={**SECOND, "num_frames": 2})) == 2


def test_first_video_survives_what_stops_the_second(cascade, tmp_path):
    def stop(step, total, latents):
        return total != SECOND["num_inference_steps"]

    for keep_first, left in ((False, []), (True, ["a-first.mp4"])):
        with pytest.raises(Cancelled):
            made(
                cascade,
                output_type="mp4",
                output_video=tmp_path / "a.mp4",
                keep_first=keep_first,
                callback=stop,
            )
        assert [file.name for file in tmp_path.iterdir()] == left


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"strenght": 0.5}, InputError, "strenght"),
        ({"strength": 2}, InputError, "strength=2"),
        ({"height": 33}, InputError, "height=33"),
        ({"first_options": {"height": 33}}, InputError, "height=33"),
        ({"refine_options": {"inversion": "x"}}, InputError, "inversion='x'.*noise, ddim"),
        ({"refine_options": {"target_fps": 8}}, InputError, "video-to-video has no option 'target_fps'"),
        ({"refine_options": {"num_videos": 2}}, InputError, "num_videos.*without refine_options"),
        ({"first_options": {"output_type": "np"}}, InputError, "output_type.*without first_options"),
        ({"output_video": "a.mp4"}, InputError, "output_type='np'"),
        ({"output_type": "mp4", "output_video": "no/a.mp4"}, OutputError, "does not exist"),
        ({"output_type": "mp4", "output_video": ["a.mp4", "b.mp4"]}, InputError, "2 paths for 1"),
    ],
)
def test_mistakes_are_told_before_any_work(cascade, monkeypatch, tmp_path, options, error, words):
    monkeypatch.chdir(tmp_path)
    steps = []
    with pytest.raises(error, match=words):
        made(cascade, callback=lambda *step: steps.append(step), **options)
    assert not steps and not list(tmp_path.iterdir())


def test_small_path_is_checked_before_any_work(cascade, tmp_path):
    (tmp_path / "a-first.mp4").mkdir()
    with pytest.raises(OutputError, match=r"a-first\.mp4.*directory"):
        made(
            cascade,
            output_type="mp4",
            output_video=tmp_path / "a.mp4",
            keep_first=True,
            callback=lambda *_: pytest.fail("too late"),
        )


def test_wrong_inputs(cascade):
    for given, words in (
        ({"image": picture(), "text": 3}, "text is a int"),
        ({"text": TEXT}, "'image' or 'image_path'"),
        ("no.png", "no.png"),
    ):
        with pytest.raises(InputError, match=words):
            cascade([given], **CALL)
    with pytest.raises(InputError, match="nothing to animate"):
        animate(text=TEXT, models=MODELS)
    for options in ({"keep_first": True}, {"first_options": SMALL}):
        with pytest.raises(InputError, match=f"{next(iter(options))} has no use"):
            animate(refine="a.mp4", models=MODELS, **options)
    for name in ("num_inference_steps", "target_fps"):
        with pytest.raises(InputError, match=f"{name}.*refine_options="):
            cascade.refine(["a.mp4"], **{name: 4})
    with pytest.raises(InputError, match="no.mp4"):
        cascade.refine(["no.mp4"])
    with pytest.raises(InputError, match="only refine"):
        Cascade(None, cascade.second)([picture()])


def test_models_in_the_wrong_place(cascade, tmp_path):
    i2v, v2v = MODELS
    t2v = model_directory("text-to-video-synthesis")
    for models, words in (
        ((v2v, i2v), r"models\[0\].*holds video-to-video.*first stage.*Image-to-Video.*other way round"),
        ((v2v, v2v), r"models\[0\], .*video-to-video, holds video-to-video.*first stage"),
        (
            (i2v, i2v),
            r"models\[1\], .*image-to-video, holds image-to-video.*second stage.*Video-to",
        ),
        ((t2v, v2v), r"models\[0\].*holds text-to-video-synthesis"),
        ((i2v, t2v), r"models\[1\].*holds text-to-video-synthesis"),
        ((i2v, tmp_path / "none"), "no model directory .*none"),
        ((i2v, "a/b/c"), "no model directory 'a/b/c'.*hub"),
        ((i2v, tmp_path), "configuration.json"),
    ):
        with pytest.raises(CheckpointError, match=words):
            animate(picture(), TEXT, models=models, device="cpu")
    with pytest.raises(CheckpointError, match="second stage"):
        animate(refine="a.mp4", models=(i2v, i2v))
    with pytest.raises(CheckpointError, match="The first model holds video-to-video"):
        Cascade(cascade.second, cascade.second)
    for models in (i2v, str(i2v), [i2v], (i2v, v2v, v2v), None):
        with pytest.raises(InputError, match="must be a pair"):
            animate(picture(), models=models)


def test_models_by_their_ids_on_the_hub(monkeypatch):
    asked = []
    known = dict(zip(cascade_module.MODELS, MODELS))
    monkeypatch.setattr(cascade_module, "fetch", lambda name, *_, **__: asked.append(name) or known[name])
    pair = Cascade.load(device="cpu")
    assert asked == ["damo/Image-to-Video", "damo/Video-to-Video"]
    assert (pair.first.family.name, pair.second.family.name) == ("image-to-video", "video-to-video")


def test_a_unet_leaves_where_memory_is_short(monkeypatch, by_hand):
    """On a CPU moving changes nothing; what counts is which U-Net is sent where, and when."""
    moves = []
    to = torch.nn.Module.to

    def watched(module, *args, **kwargs):
        moves.append((module, torch.device(args[0]).type if args else None))
        return to(module, *args, **kwargs)

    free = {"bytes": None}
    pair = Cascade.load(MODELS, device="cpu", free_memory=lambda _: free["bytes"])
    monkeypatch.setattr(torch.nn.Module, "to", watched)
    one, two = pair.first.unet, pair.second.unet
    options = pair.second.resolve("x", {**LARGE, "num_frames": 3})[1]
    need = count.working_memory(pair.second.sizes, options, pair.second.dtype)
    for available, order in (
        (None, [one, two]),
        (1 << 40, [one, two]),
        (0, [two, one, one, two]),
        (need, [one, two]),
        (need - 1, [one, one, two]),
    ):
        free["bytes"] = available
        moves.clear()
        assert np.array_equal(made(pair), by_hand[0])
        unets = [module for module, _ in moves if module in (one, two)]
        assert len(unets) == len(order) and all(x is y for x, y in zip(unets, order)), available
    moves.clear()
    loaded = Cascade.load(MODELS, device="cpu", free_memory=lambda _: 0)
    assert [module for module, _ in moves if module in (loaded.first.unet, loaded.second.unet)] == [
        loaded.second.unet
    ]


def test_free_memory_matters_on_gpus_only(monkeypatch):
    assert free_memory(torch.device("cpu")) is None and free_memory(torch.device("mps")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_memory(torch.device("cuda", 0)) == 130


def test_metadata_of_the_file_tells_the_second_stage(cascade, tmp_path):
    path = made(cascade, output_type="mp4", output_video=tmp_path / "a.mp4")
    with av.open(path) as container:
        comment = json.dumps(dict(container.metadata))
    assert TEXT in comment and "strength" in comment


def test_the_package_offers_it():
    assert modelscope_i2v.animate is animate and modelscope_i2v.Cascade is Cascade
