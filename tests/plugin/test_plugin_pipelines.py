"""``pipeline(task, model=…)`` and ``Model.from_pretrained``, with the small model that ships along."""

from __future__ import annotations

import base64
import copy
import dataclasses
import functools
import json
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from modelscope.models import Model
from modelscope.outputs import OutputKeys
from modelscope.pipelines import builder, pipeline
from modelscope.pipelines.builder import PIPELINES
from modelscope.preprocessors import Preprocessor
from modelscope.preprocessors.builder import build_preprocessor
from modelscope.utils.logger import get_logger
from PIL import Image

from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.embedded import model_directory
from modelscope_i2v.errors import CheckpointError, InputError, OutputError
from modelscope_i2v.media.write import write_video
from modelscope_i2v.plugin import models, pipelines, preprocessors, stock_names
from modelscope_i2v.plugin.registration import FIELD, preprocessor_type
from modelscope_i2v.spec.families import FAMILIES, I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO

ALL = list(FAMILIES.values())
SMALL = {"num_inference_steps": 1, "num_frames": 2, "height": 64, "width": 64, "seed": 7}
NAMES = list(FAMILIES)


def directory(family) -> str:
    return str(model_directory(family.name))


@pytest.fixture(scope="module")
def pipes():
    return {family.name: pipeline(family.task, model=directory(family), device="cpu") for family in ALL}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """An input for each task, as the model cards have it."""
    folder = tmp_path_factory.mktemp("inputs")
    picture, video = folder / "picture.png", folder / "video.mp4"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(picture)
    write_video(pixels, video, fps=8)
    return {
        IMAGE_TO_VIDEO.name: str(picture),
        I2VGEN_XL.name: {"image": str(picture), "text": "A cat runs over a meadow."},
        VIDEO_TO_VIDEO.name: {"video_path": str(video), "text": "noise"},
        TEXT_TO_VIDEO.name: {"text": "A panda eating bamboo on a rock."},
    }


@pytest.fixture
def logged():
    """What ModelScope's logger says from WARNING up."""
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    logger, handler = get_logger(), Keep(logging.WARNING)
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@pytest.mark.parametrize("family", ALL, ids=NAMES)
def test_a_checkpoint_loads_and_runs_without_a_warning(family, given, tmp_path, logged):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = pipeline(family.task, model=directory(family))
        path = tmp_path / "it's a; video.mp4"
        made = pipe(given[family.name], output_video=str(path), **SMALL)
    assert type(pipe).__module__ == pipelines.__name__
    assert made == {OutputKeys.OUTPUT_VIDEO: str(path)}
    assert path.read_bytes()[4:8] == b"ftyp"
    assert logged == []


@pytest.mark.parametrize("family", ALL, ids=NAMES)
def test_without_a_path_the_file_comes_as_bytes(family, pipes, given):
    made = pipes[family.name](given[family.name], **SMALL)
    assert made[OutputKeys.OUTPUT_VIDEO][4:8] == b"ftyp"


@pytest.mark.parametrize("family", ALL, ids=NAMES)
def test_the_steps_give_what_the_call_gives(family, pipes, given):
    pipe = pipes[family.name]
    options = {**SMALL, "output_type": "np"}
    whole = pipe(given[family.name], **options)[OutputKeys.OUTPUT_VIDEO]
    prepared = pipe.preprocess(given[family.name], **options)
    by_steps = pipe.postprocess(pipe.forward(prepared))[OutputKeys.OUTPUT_VIDEO]
    assert np.array_equal(whole, by_steps)
    assert whole.dtype == np.uint8


def test_a_list_gives_a_list_and_numbers_the_files(pipes, given, tmp_path):
    pipe = pipes[TEXT_TO_VIDEO.task]
    made = pipe(["a cat", {"text": "a dog"}], output_video=tmp_path / "out.mp4", batch_size=2, **SMALL)
    assert [one[OutputKeys.OUTPUT_VIDEO] for one in made] == [
        str(tmp_path / "out-1.mp4"),
        str(tmp_path / "out-2.mp4"),
    ]
    assert pipe([]) == []


def test_several_videos_of_one_input_by_steps_too(pipes):
    pipe = pipes[TEXT_TO_VIDEO.task]
    options = {**SMALL, "num_videos": 2, "output_type": "latent"}
    whole = pipe("a cat", **options)[OutputKeys.OUTPUT_VIDEO]
    steps = pipe.postprocess(pipe.forward(pipe.preprocess("a cat", **options)))[OutputKeys.OUTPUT_VIDEO]
    assert len(whole) == len(steps) == 2
    for one, other in zip(whole, steps):
        assert torch.equal(one, other)
    assert not torch.equal(*whole)


@pytest.mark.parametrize("family", ALL, ids=NAMES)
def test_a_model_is_an_object_of_its_own(family, given):
    model = Model.from_pretrained(directory(family), device="cpu", torch_dtype=torch.bfloat16)
    assert type(model).__module__ == models.__name__
    assert model.generator.family.name == family.name
    assert model.generator.dtype == torch.bfloat16
    assert model.model_dir == directory(family)
    assert model.device == torch.device("cpu")
    pipe = pipeline(family.task, model=model)
    assert pipe.generator is model.generator
    prepared = pipe.preprocess(given[family.name], **SMALL)
    (video,) = model(prepared)["videos"]
    assert video.frames.shape[1:] == (3, 64, 64)


@pytest.mark.parametrize("owner", ["damo", "iic"])
@pytest.mark.parametrize("family", ALL, ids=NAMES)
def test_ids_on_the_hub(family, owner, monkeypatch):
    asked = []

    def download(model, revision=None, **kwargs):
        asked.append((model, revision))
        return directory(family)

    read_config = builder.read_config
    monkeypatch.setattr(builder, "is_official_hub_path", lambda path, revision=None: True)
    monkeypatch.setattr(builder, "read_config", lambda model, revision=None: read_config(directory(family)))
    monkeypatch.setattr(builder, "is_model_from_trusted_source", lambda *_: False, raising=False)
    monkeypatch.setattr(builder, "snapshot_download", download)
    (name,) = (hub_id for hub_id in family.hub_ids if hub_id.startswith(f"{owner}/"))
    pipe = pipeline(family.task, model=name, model_revision="v1.1.0")
    assert asked == [(name, "v1.1.0")]
    assert type(pipe).__module__ == pipelines.__name__


def test_the_class_by_itself_takes_a_directory():
    pipe = pipelines.ImageToVideoPipeline(directory(IMAGE_TO_VIDEO), device="cpu", dtype="bf16")
    assert pipe.generator.dtype == torch.bfloat16


@pytest.mark.parametrize("device", [None, "gpu", "cuda", "cuda:0", "gpu:1"])
def test_without_cuda_a_wish_for_it_means_the_best_there_is(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    pipe = pipeline(TEXT_TO_VIDEO.task, model=directory(TEXT_TO_VIDEO), device=device)
    assert pipe.device == pipe.generator.device == torch.device("cpu")


def test_mps_passes_modelscopes_own_check(monkeypatch):
    """The generator alone sees mps; it is put on the CPU here, since there is no such device."""
    asked = []
    load = models.VideoGenerator.from_directory.__func__

    def from_directory(cls, *args, device, **kwargs):
        asked.append(device)
        generator = load(cls, *args, device="cpu", **kwargs)
        generator.device = torch.device("mps")
        return generator

    monkeypatch.setattr(models.VideoGenerator, "from_directory", classmethod(from_directory))
    pipe = pipeline(TEXT_TO_VIDEO.task, model=directory(TEXT_TO_VIDEO), device="mps")
    assert asked == ["mps"]
    assert pipe.device == torch.device("mps")
    assert pipe.device_name == "cpu"
    assert Model.from_pretrained(directory(TEXT_TO_VIDEO), device="mps").device.type == "mps"


def test_an_unknown_device_is_told():
    with pytest.raises(InputError, match="device='tpu' does not work: it must be"):
        pipeline(TEXT_TO_VIDEO.task, model=directory(TEXT_TO_VIDEO), device="tpu")


def test_i2vgen_takes_its_text_beside_the_picture(pipes, given):
    pipe, (picture, text) = pipes[I2VGEN_XL.name], given[I2VGEN_XL.name].values()
    options = {**SMALL, "output_type": "latent"}
    made = [
        pipe(picture, caption=text, **options),
        pipe({"image": picture, "text": text}, **options),
        pipe(Image.open(picture), text=text, **options),
        pipe(picture, caption="something else", **options),
        pipe(picture, caption=text, negative_prompt="dark", **options),
        pipe(picture, caption=text, target_fps=4, **options),
    ]
    first, same, alike, *others = (one[OutputKeys.OUTPUT_VIDEO] for one in made)
    assert torch.equal(first, same) and torch.equal(first, alike)
    for other in others:
        assert not torch.equal(first, other)
    with pytest.raises(InputError, match="image-to-video has no option 'caption'"):
        pipes[IMAGE_TO_VIDEO.name](picture, caption=text)


@pytest.fixture
def copied(tmp_path):
    """A copy of the embedded I2VGen-XL whose configuration can be changed, or removed."""
    embedded = model_directory(I2VGEN_XL.name)
    for file in embedded.parent.glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file) if hasattr(os, "fork") else shutil.copy(file, tmp_path)
    return Path(shutil.copytree(embedded, tmp_path / "model"))


def without(tree: dict, *keys: str) -> dict:
    """A nested dict without the entries at dotted keys."""
    tree = copy.deepcopy(tree)
    for key in keys:
        *parents, last = key.split(".")
        functools.reduce(dict.__getitem__, parents, tree).pop(last)
    return tree


@pytest.mark.parametrize(
    "lacking",
    [["model.type"], ["pipeline"], ["model.type", "pipeline"], ["model.type", "task"], ["framework"]],
)
def test_what_a_configuration_lacks_is_found_out(copied, given, lacking):
    file = copied / "configuration.json"
    file.write_text(json.dumps(without(json.loads(file.read_text()), *lacking)))
    pipe = pipeline(I2VGEN_XL.task, model=str(copied), device="cpu")
    assert type(pipe) is pipelines.I2VGenXLPipeline and pipe.generator.family is I2VGEN_XL
    whole = pipeline(I2VGEN_XL.task, model=directory(I2VGEN_XL), device="cpu")
    options = {**SMALL, "output_type": "np"}
    one, other = (p(given[I2VGEN_XL.name], **options)[OutputKeys.OUTPUT_VIDEO] for p in (pipe, whole))
    assert np.array_equal(one, other)


def test_an_unknown_model_type_is_none_of_our_business(copied):
    file = copied / "configuration.json"
    settings = json.loads(file.read_text())
    settings["model"]["type"] = "image-to-video-of-1.5"
    file.write_text(json.dumps(settings))
    assert pipeline(I2VGEN_XL.task, model=str(copied), device="cpu").family is I2VGEN_XL


def test_a_directory_without_a_configuration(copied, monkeypatch, given):
    """The hub's file names are enough; the small networks' sizes are put in place of the hub's."""
    small = ModelDirectory.open(copied)
    (copied / "configuration.json").unlink()
    (copied / "unet.safetensors").rename((copied / I2VGEN_XL.unet_file).with_suffix(".safetensors"))
    for held, usual in (("open_clip", I2VGEN_XL.clip_file), ("autoencoder", I2VGEN_XL.autoencoder_file)):
        shutil.copy(copied.parent / f"{held}.safetensors", (copied / usual).with_suffix(".safetensors"))
    read = ModelDirectory.open.__func__

    def open_small(cls, path, task=None):
        found = read(cls, path, task)
        return dataclasses.replace(found, unet=small.unet, autoencoder=small.autoencoder, clip=small.clip)

    monkeypatch.setattr(ModelDirectory, "open", classmethod(open_small))
    for model in (str(copied), [str(copied)]):
        pipe = pipeline(I2VGEN_XL.task, model=model, device="cpu")
        assert type(pipe) is pipelines.I2VGenXLPipeline
        assert pipe(given[I2VGEN_XL.name], **SMALL)[OutputKeys.OUTPUT_VIDEO][4:8] == b"ftyp"
    again = pipeline(I2VGEN_XL.task, model=pipe.model)
    assert again.generator is pipe.generator


def test_a_directory_that_is_not_for_the_task_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="is no model directory"):
        pipeline(IMAGE_TO_VIDEO.task, model=str(tmp_path))
    (tmp_path / "configuration.json").write_text('{"task": "image-to-video"}')
    with pytest.raises(CheckpointError, match="ckpt_unet is missing"):
        pipeline(IMAGE_TO_VIDEO.task, model=str(tmp_path))
    with pytest.raises(CheckpointError, match="video-to-video model; image-to-video was asked"):
        pipeline(IMAGE_TO_VIDEO.task, model=directory(VIDEO_TO_VIDEO))


def test_other_tasks_directories_are_modelscopes(tmp_path):
    bare, theirs = tmp_path / "bare", tmp_path / "theirs"
    bare.mkdir()
    theirs.mkdir()
    (theirs / "configuration.json").write_text('{"task": "image-to-video", "pipeline": {"type": "other"}}')
    assert not builder.is_official_hub_path(str(bare))
    assert builder.is_official_hub_path(str(theirs))
    assert builder.read_config(str(theirs)).pipeline.type == "other"
    with pytest.raises((OSError, ValueError), match="configuration.json"):
        builder.read_config(str(bare))
    with pytest.raises(ValueError, match="some are not"):
        builder.is_official_hub_path([str(bare), str(theirs)])
    with pytest.raises(KeyError, match="other"):
        pipeline(IMAGE_TO_VIDEO.task, model=str(theirs))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"device_map": "auto"}, "device_map is not known"),
        ({"attention": "none"}, "attention"),
        ({"dtype": "int3"}, "dtype='int3' does not work: it must be fp32, fp16 or bf16"),
        ({"memroy": "offload"}, "has no option 'memroy'; did you mean 'memory'"),
        ({"dytpe": "fp16"}, "has no option 'dytpe'; did you mean 'dtype'"),
    ],
)
def test_keywords_that_do_not_work_are_told(keywords, message):
    with pytest.raises(InputError, match=message):
        pipeline(TEXT_TO_VIDEO.task, model=directory(TEXT_TO_VIDEO), **keywords)


def test_a_model_that_is_none_of_ours_is_told(pipes):
    other = Model.from_pretrained(directory(IMAGE_TO_VIDEO), device="cpu")
    with pytest.raises(InputError, match="model is for image-to-video, not for text-to-video-synthesis"):
        pipelines.TextToVideoPipeline(other)
    with pytest.raises(InputError, match="model is a object; it must be a checkpoint directory"):
        pipelines.TextToVideoPipeline(object())


def test_a_checkpoint_without_its_weights_is_told(tmp_path):
    source = model_directory(TEXT_TO_VIDEO.task) / "configuration.json"
    (tmp_path / "configuration.json").write_bytes(source.read_bytes())
    with pytest.raises(CheckpointError, match="There is no file"):
        pipeline(TEXT_TO_VIDEO.task, model=str(tmp_path))


def test_bad_options_are_told_before_sampling(pipes, monkeypatch, tmp_path):
    pipe = pipes[TEXT_TO_VIDEO.task]
    monkeypatch.setattr(pipe.generator, "generate", lambda batch: pytest.fail("it sampled"))
    with pytest.raises(InputError, match="did you mean 'num_inference_steps'"):
        pipe("a cat", num_inference_step=3)
    with pytest.raises(OutputError):
        pipe("a cat", output_video=str(tmp_path / "no such folder" / "out.mp4"))
    with pytest.raises(InputError, match="num_steps"):
        pipe.preprocess("a cat", num_steps=3)


def test_a_subclass_may_change_a_step(given, tmp_path):
    class AtNight(pipelines.TextToVideoPipeline):
        def preprocess(self, inputs, **options):
            return super().preprocess(inputs + " at night", **options)

    pipe = AtNight(directory(TEXT_TO_VIDEO), device="cpu")
    options = {**SMALL, "output_type": "np"}
    dark = pipe("a cat", **options)[OutputKeys.OUTPUT_VIDEO]
    plain = pipelines.TextToVideoPipeline(pipe.model)
    assert np.array_equal(dark, plain("a cat at night", **options)[OutputKeys.OUTPUT_VIDEO])
    assert not np.array_equal(dark, plain("a cat", **options)[OutputKeys.OUTPUT_VIDEO])

    made = pipe(["a cat", "a dog"], output_video=tmp_path / "out.mp4", batch_size=2, **SMALL)
    assert [one[OutputKeys.OUTPUT_VIDEO] for one in made] == [
        str(tmp_path / "out-1.mp4"),
        str(tmp_path / "out-2.mp4"),
    ]


def test_a_preprocessor_of_ones_own(pipes):
    class Fixed(preprocessors.TextToVideoPreprocessor):
        def __call__(self, data, **options):
            return super().__call__("always this", **options)

    model = pipes[TEXT_TO_VIDEO.task].model
    pipe = pipeline(TEXT_TO_VIDEO.task, model=model, preprocessor=Fixed())
    options = {**SMALL, "output_type": "np"}
    one, other = (pipe(text, **options)[OutputKeys.OUTPUT_VIDEO] for text in ("this", "that"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("family", ALL, ids=NAMES)
def test_preprocessors_serve_others_too(family, given):
    kind = {"type": preprocessor_type(family), "model_dir": directory(family)}
    built = build_preprocessor(kind, FIELD)
    assert type(built).__module__ == preprocessors.__name__
    sample = built(given[family.name], num_frames=2)["request"]
    assert sample.num_frames == 2
    assert sample.options.height == Model.from_pretrained(directory(family)).generator.defaults["height"]
    found = Preprocessor.from_pretrained(directory(family))
    assert type(found) is type(built)
    assert build_preprocessor({"type": preprocessor_type(family)}, FIELD).defaults == {}


def test_a_data_set_gives_one_video_after_another(pipes):
    from modelscope.msdatasets import MsDataset

    class Texts(MsDataset):
        def __init__(self):
            pass

        def __iter__(self):
            return iter([{"text": "a cat"}, {"text": "a dog"}])

    pipe = pipes[TEXT_TO_VIDEO.task]
    made = pipe(Texts(), **SMALL)
    assert next(made)[OutputKeys.OUTPUT_VIDEO][4:8] == b"ftyp"
    assert len(list(made)) == 1
    with pytest.raises(InputError, match="output_video cannot be given with a dataset"):
        pipe(Texts(), output_video="out.mp4")


def test_the_registry_holds_ours():
    for family in ALL:
        held = PIPELINES.get(family.pipeline_type, family.task)
        assert held.family is family
        assert held.group_key == family.task


@pytest.mark.parametrize("family", ALL, ids=NAMES)
def test_modelscopes_server_can_describe_and_call_it(family, pipes, given):
    """``/describe`` and ``/call`` of its server, with files as it gets them, in base64."""
    from modelscope.utils import input_output as server

    info = server.get_pipeline_information_by_pipeline(pipes[family.name])
    inputs, parameters = (info.schema[part]["properties"] for part in ("input", "parameters"))
    assert parameters["num_frames"] == {"type": "integer", "default": family.num_frames}
    assert parameters["seed"] == {"type": "integer"}
    assert ("text" in inputs) >= family.reads_text and "generator" not in parameters
    values = given[family.name] if isinstance(given[family.name], dict) else {"image": given[family.name]}
    for sent in [values, {"video" if key == "video_path" else key: text for key, text in values.items()}]:
        assert set(sent) <= set(inputs)
        body = {key: encoded(text) for key, text in sent.items()}
        made = server.call_pipeline_with_json(
            info, pipes[family.name], {"input": body, "parameters": {**SMALL, "seed": 7}}
        )
        out = server.pipeline_output_to_service_base64_output(info.task_name, made)
        assert base64.b64decode(out[OutputKeys.OUTPUT_VIDEO])[4:8] == b"ftyp"


def encoded(value: str) -> str:
    return base64.b64encode(Path(value).read_bytes()).decode() if os.path.isfile(value) else value


@pytest.mark.parametrize("family", [VIDEO_TO_VIDEO, TEXT_TO_VIDEO], ids=lambda family: family.name)
def test_names_that_clients_of_stocks_models_use(family, given):
    """As StreamingT2V's enhancement does, in its order."""
    pipe = pipeline(family.task, model=directory(family), device="cpu")
    before = pipe(given[family.name], **SMALL, output_type="np")[OutputKeys.OUTPUT_VIDEO]
    pipe.model.cfg.max_frames = 10000
    pipe.device = "cpu"
    pipe.model = pipe.model.to("cpu").eval()
    pipe.model.device = "cpu"
    pipe.model.clip_encoder.model = pipe.model.clip_encoder.model.to("cpu")
    pipe.model.clip_encoder.device = "cpu"
    pipe.model.autoencoder = pipe.model.autoencoder.to("cpu")
    pipe.model.generator = pipe.model.generator.to("cpu")
    pipe.model.negative_y = pipe.model.negative_y.to("cpu")
    assert pipe.model.cfg.max_frames == pipe.generator.defaults["num_frames"] == 10000
    assert pipe.model.cfg.task == pipe.model.cfg["task"] == family.task
    after = pipe(given[family.name], **SMALL, output_type="np")[OutputKeys.OUTPUT_VIDEO]
    assert np.array_equal(before, after)
    assert pipe.model.clip_encoder("A cat.").shape == pipe.model.negative_y.shape


def test_a_model_goes_to_another_device_and_type(monkeypatch):
    model = Model.from_pretrained(directory(TEXT_TO_VIDEO), device="cpu", attention="matmul")
    model.cfg.max_frames = 3
    first = model.generator
    assert model.to("cpu").generator is first and first.dtype == torch.float32
    assert model.half().generator.dtype == torch.float16 and model.generator is not first
    assert model.half().generator.half() is model.generator
    assert model.generator.runtime.attention == "matmul" and model.generator.defaults["num_frames"] == 3
    moved = []
    monkeypatch.setattr(
        models.VideoGenerator,
        "from_directory",
        lambda path, task, **settings: moved.append(settings) or first,
    )
    monkeypatch.setattr(stock_names, "resolve_device", torch.device)
    model.to("cuda:1")
    assert moved[0]["device"] == "cuda:1" and moved[0]["attention"] == "matmul"


def test_what_a_model_cannot_have_changed_is_told(pipes, monkeypatch):
    model = pipes[VIDEO_TO_VIDEO.name].model
    with pytest.raises(InputError, match="load it with dtype='fp16'"):
        model.generator.half()
    with pytest.raises(InputError, match="negative_prompt says what to avoid"):
        model.negative_y = model.negative_y + 1
    with pytest.raises(InputError, match="cannot be exchanged"):
        model.autoencoder = torch.nn.Identity()
    monkeypatch.setattr(type(model.generator), "loras", {"mine": 1.0})
    with pytest.raises(InputError, match="with LoRAs does not move"):
        model.half()


def test_options_by_the_names_in_clients_of_stocks_pipelines(pipes, given):
    pipe, plain = pipes[VIDEO_TO_VIDEO.name], {**SMALL, "output_type": "np"}
    sizes = {"out_height": plain.pop("height"), "out_width": plain.pop("width")}
    theirs = {"positive_prompt": "", "negative_prompt": "", "total_noise_levels": 400, **sizes}
    ours = {"prompt_suffix": "", "negative_prompt": "", "strength": 0.4, "height": 64, "width": 64}
    inputs = given[VIDEO_TO_VIDEO.name]
    made = [
        pipe({**inputs, **theirs}, **plain),
        pipe(inputs, **theirs, **plain),
        pipe(inputs, **ours, **plain),
        pipe(inputs, **{**ours, "strength": 0.6}, **plain),
        pipe(inputs, **{**ours, "prompt_suffix": ", by night"}, **plain),
        pipe({**inputs, "text": inputs["text"] + ", by night"}, **ours, **plain),
    ]
    first, *same, stronger, suffixed, longer = (one[OutputKeys.OUTPUT_VIDEO] for one in made)
    assert all(np.array_equal(first, other) for other in same)
    assert np.array_equal(suffixed, longer) and not np.array_equal(suffixed, first)
    assert not np.array_equal(stronger, first)
    with pytest.raises(InputError, match="strength and total_noise_levels mean the same"):
        pipe(inputs, strength=0.6, total_noise_levels=600)
    with pytest.raises(InputError, match="strength=.* does not work"):
        pipe(inputs, total_noise_levels="many")


def test_calls_without_a_path_may_write_a_file(pipes, given, tmp_path, monkeypatch):
    pipe, text = pipes[TEXT_TO_VIDEO.name], given[TEXT_TO_VIDEO.name]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = Path(pipe(text, output_video=True, **SMALL)[OutputKeys.OUTPUT_VIDEO])
    assert path.parent == tmp_path and path.read_bytes()[4:8] == b"ftyp"
    folder = tmp_path / "videos"
    folder.mkdir()
    monkeypatch.setenv("MODELSCOPE_I2V_OUTPUT", str(folder))
    made = pipe([text, text], **SMALL)
    paths = {Path(one[OutputKeys.OUTPUT_VIDEO]) for one in made}
    assert paths == set(folder.iterdir()) and len(paths) == 2
    assert pipe(text, output_type="np", **SMALL)[OutputKeys.OUTPUT_VIDEO].shape == (2, 64, 64, 3)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="does not exist"):
        pipe(text, **SMALL)
