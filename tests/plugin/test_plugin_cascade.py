"""``pipeline("image-to-video", model=[first, second])``: both stages in one call."""

from __future__ import annotations

import numpy as np
import pytest
from modelscope.outputs import OutputKeys
from modelscope.pipelines import builder, pipeline

from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.cascade import Cascade
from modelscope_i2v.errors import CheckpointError, InputError
from modelscope_i2v.media.videos import read_video
from modelscope_i2v.plugin import pipelines
from modelscope_i2v.spec.families import I2VGEN_XL, IMAGE_TO_VIDEO, VIDEO_TO_VIDEO

TASK = IMAGE_TO_VIDEO.task
FIRST, SECOND, BOTH = (str(model_directory(f.name)) for f in (IMAGE_TO_VIDEO, VIDEO_TO_VIDEO, I2VGEN_XL))
SMALL = {
    "num_frames": 2,
    "height": 80,
    "width": 64,
    "seed": 7,
    "num_inference_steps": 1,
    "first_options": {"height": 64, "width": 64},
    "refine_options": {"num_inference_steps": 3},
}


@pytest.fixture(scope="module")
def pipe():
    return pipeline(TASK, model=[FIRST, SECOND], device="cpu")


def test_two_models_are_a_cascade(pipe):
    made = pipe(str(picture()), text="A boat.", output_type="np", **SMALL)[OutputKeys.OUTPUT_VIDEO]
    cascade = Cascade.load((FIRST, SECOND), device="cpu")
    (right,) = cascade([{"image": str(picture()), "text": "A boat."}], output_type="np", **SMALL)
    assert type(pipe) is pipelines.ImageToVideoPipeline
    assert made.shape == (2, 80, 64, 3) and np.array_equal(made, right)
    (other,) = cascade([str(picture())], output_type="np", **SMALL)
    assert not np.array_equal(made, other)


def test_what_both_models_have_alike_is_there_once(pipe):
    assert (
        pipe.cascade.first is pipe.generator
        and pipe.cascade.first.autoencoder is pipe.cascade.second.autoencoder
    )
    assert [model.family for model in pipe.models] == [IMAGE_TO_VIDEO, VIDEO_TO_VIDEO]
    assert [model.model_dir for model in pipe.models] == [FIRST, SECOND]


def test_the_small_video_is_kept(pipe, tmp_path):
    inputs = [{"image": str(picture()), "text": "A boat."}, str(picture())]
    made = pipe(inputs, output_video=tmp_path / "out.mp4", keep_first=True, **SMALL)
    for number, one in enumerate(made, start=1):
        large, small = tmp_path / f"out-{number}.mp4", tmp_path / f"out-{number}-first.mp4"
        assert one == {OutputKeys.OUTPUT_VIDEO: str(large), pipelines.FIRST_VIDEO: str(small)}
        assert read_video(large).frames.shape[1:3] == (80, 64)
        assert read_video(small).frames.shape[1:3] == (64, 64)
    several = pipe(str(picture()), keep_first=True, num_videos=2, output_type="np", **SMALL)
    assert [len(videos) for videos in several.values()] == [2, 2]
    assert several[pipelines.FIRST_VIDEO][0].shape == (2, 64, 64, 3)


def test_both_videos_may_go_to_a_folder(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_I2V_OUTPUT", str(tmp_path))
    large, small = pipe(str(picture()), keep_first=True, **SMALL).values()
    assert small == large.replace(".mp4", "-first.mp4")
    assert {large, small} == {str(path) for path in tmp_path.iterdir()}


def test_loaded_models_make_a_cascade(pipe):
    again = pipeline(TASK, model=pipe.models, device="cpu")
    assert again.cascade.first is pipe.cascade.first and again.cascade.second is pipe.cascade.second


def test_i2vgen_comes_first_too():
    pipe = pipeline(TASK, model=[BOTH, SECOND], device="cpu", dtype="bf16")
    assert type(pipe) is pipelines.I2VGenXLPipeline
    assert pipe.cascade.first.text_encoder is pipe.cascade.second.text_encoder
    made = pipe(str(picture()), caption="A boat.", output_type="np", **SMALL)
    assert made[OutputKeys.OUTPUT_VIDEO].shape == (2, 80, 64, 3)


def test_ids_on_the_hub_are_fetched(monkeypatch):
    read, there = builder.read_config, {IMAGE_TO_VIDEO.hub_ids[0]: FIRST, VIDEO_TO_VIDEO.hub_ids[0]: SECOND}
    monkeypatch.setattr(builder, "is_official_hub_path", lambda path, revision=None: True)
    monkeypatch.setattr(builder, "read_config", lambda model, *_, **__: read(there.get(model, model)))
    monkeypatch.setattr(builder, "is_model_from_trusted_source", lambda *_: False, raising=False)
    monkeypatch.setattr(builder, "snapshot_download", lambda model, **_: there[model])
    pipe = pipeline(TASK, model=list(there), device="cpu")
    assert [model.model_dir for model in pipe.models] == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        (
            [SECOND, FIRST],
            CheckpointError,
            "is a video-to-video model; image-to-video was asked.*the one for image-to-video comes first",
        ),
        ([FIRST, BOTH], CheckpointError, "i2vgen-xl; the second stage"),
        ([FIRST, SECOND, SECOND], InputError, "lists 3 models"),
    ],
)
def test_models_that_are_no_cascade_are_told(models, error, message):
    with pytest.raises(error, match=message):
        pipeline(TASK, model=models, device="cpu")


def test_what_is_no_model_is_told(pipe):
    with pytest.raises(InputError, match="model is a str; it must be"):
        pipelines.ImageToVideoPipeline([pipe.models[0], SECOND])
    with pytest.raises(InputError, match="no option 'keep_first'"):
        pipeline(TASK, model=pipe.models[0])(str(picture()), keep_first=True)
