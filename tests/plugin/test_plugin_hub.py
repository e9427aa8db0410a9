"""Models by their id on the hub, and directories that bring code of their own, as I2VGen-XL's does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import modelscope
import pytest
from modelscope.models import Model
from modelscope.pipelines import builder, pipeline

import modelscope_i2v
from modelscope_i2v.checkpoints import hub
from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.embedded import model_directory, picture
from modelscope_i2v.engine.cascade import Cascade, animate
from modelscope_i2v.errors import CheckpointError
from modelscope_i2v.plugin import models, pipelines, registration
from modelscope_i2v.plugin.startup import _SOURCE
from modelscope_i2v.spec.families import I2VGEN_XL, IMAGE_TO_VIDEO, TEXT_TO_VIDEO, VIDEO_TO_VIDEO, Family

TASK = I2VGEN_XL.task
ROOT = Path(modelscope_i2v.__file__).resolve().parents[1]
ONE_FOLDER = tuple(map(int, modelscope.__version__.split(".")[:2])) < (1, 38)
"""This ModelScope's cache has one folder a model, and not one a revision."""

WRAPPER = """
from pathlib import Path
from modelscope.models.builder import MODELS
from modelscope.pipelines.builder import PIPELINES

Path({canary!r}).write_text("ran")

@PIPELINES.register_module("image-to-video", module_name="i2v_gen_xl", force=True)
class Remote:
    def __init__(self, *args, **kwargs):
        raise RuntimeError("the remote class was built")
"""
"""What the hub's repository has as ms_wrapper.py, in short."""


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk
        shutil.copy(source, target)


def repository(path: Path, canary: Path, family: Family = I2VGEN_XL) -> Path:
    """A model directory as the hub's I2VGen-XL, which brings a pipeline of its own, with small networks."""
    embedded = model_directory(family.name)
    settings = json.loads((embedded / "configuration.json").read_text())
    arguments = settings["model"]["model_args"]
    path.mkdir(parents=True)
    for key, name in arguments.items():
        arguments[key] = Path(name).name
        link_or_copy(embedded / name, path / arguments[key])
    settings["model"].pop("type")
    settings["allow_remote"] = True
    (path / "configuration.json").write_text(json.dumps(settings))
    (path / "ms_wrapper.py").write_text(WRAPPER.format(canary=str(canary)))
    return path


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def directory(tmp_path, canary) -> Path:
    return repository(tmp_path / "model", canary)


def edit(directory: Path, **values: object) -> None:
    file = directory / "configuration.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


TRUST = [{}, {"trust_remote_code": True}]


@pytest.mark.parametrize("trust", TRUST, ids=["not trusted", "trusted"])
def test_code_of_a_directory_is_never_run(directory, canary, trust, recwarn):
    pipe = pipeline(TASK, model=str(directory), device="cpu", **trust)
    assert type(pipe) is pipelines.I2VGenXLPipeline
    assert type(Model.from_pretrained(str(directory), device="cpu", **trust)) is models.I2VGenXLModel
    assert not canary.exists()


@pytest.mark.parametrize("trust", TRUST, ids=["not trusted", "trusted"])
def test_plugins_are_never_installed(directory, trust, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args))
    edit(directory, plugins=["no-such-package-of-a-model"], allow_remote=False)
    assert type(pipeline(TASK, model=str(directory), device="cpu", **trust)) is pipelines.I2VGenXLPipeline
    assert type(Model.from_pretrained(str(directory), device="cpu", **trust)) is models.I2VGenXLModel
    assert started == []


def test_code_of_a_damaged_directory_is_not_run_either(directory, canary):
    (directory / "unet.safetensors").unlink()
    for load in (lambda path: pipeline(TASK, model=path, trust_remote_code=True), Model.from_pretrained):
        with pytest.raises(CheckpointError, match="There is no file .*unet.safetensors"):
            load(str(directory))
    assert not canary.exists()


def test_transformers_gets_no_directory_of_ours(directory, canary):
    """Older versions of ModelScope give it what they do not know, and let it run the directory's code."""
    (directory / "their_code.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Theirs:\n    pass\n")
    reference = {"AutoConfig": "their_code.Theirs", "AutoModel": "their_code.Theirs"}
    (directory / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": reference}))
    edit(
        directory, model={**json.loads((directory / "configuration.json").read_text())["model"], "type": "?"}
    )
    assert type(Model.from_pretrained(str(directory), device="cpu")) is models.I2VGenXLModel
    assert type(Model.from_pretrained(str(directory), device="cpu", use_hf=True)) is models.I2VGenXLModel
    with pytest.raises(CheckpointError, match="'backbone' is no task of this package"):
        Model.from_pretrained(str(directory), task="backbone", trust_remote_code=True)
    assert not canary.exists()


def test_others_configurations_stay_as_they_are(tmp_path):
    theirs = {"task": TASK, "pipeline": {"type": "theirs"}, "allow_remote": True, "plugins": ["theirs"]}
    (tmp_path / "configuration.json").write_text(json.dumps(theirs))
    config = builder.read_config(str(tmp_path))
    assert config.allow_remote is True and config.plugins == ["theirs"]


# Ids on the hub


@pytest.fixture
def offline(monkeypatch):
    """No network, and none asked."""
    monkeypatch.setattr(hub, "reachable", lambda: False)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    if not ONE_FOLDER:  # it has read the variable already
        from modelscope_hub import config

        monkeypatch.setattr(config, "_default_config", None)
    return tmp_path / "cache"


def put(
    cache: Path, name: str, revision: str, canary: Path, frames: int = 16, family: Family = I2VGEN_XL
) -> Path:
    """A copy in ModelScope's cache, as this version of it makes one when it downloads a model."""
    owner, repo = name.split("/")
    path = cache / "models" / owner / repo
    if not ONE_FOLDER:
        path = cache / "models" / f"{owner}--{repo}" / "snapshots" / revision
    repository(path, canary, family)
    model = json.loads((path / "configuration.json").read_text())["model"]
    model["model_cfg"]["max_frames"] = frames
    edit(path, model=model)
    if ONE_FOLDER:
        from modelscope.hub.utils.caching import ModelFileSystemCache

        index = ModelFileSystemCache(str(cache / "models"), owner, repo)
        index.cached_files.extend({"Path": file.name, "Revision": "a1"} for file in path.iterdir())
        index.save_cached_files()
        index.save_model_version(revision_info={"Revision": revision, "CreatedAt": 1})
    return path


@pytest.mark.parametrize("name", [*I2VGEN_XL.hub_ids, "damo/i2vgen-xl", "someone/their-own"])
def test_a_cached_copy_runs_without_a_network(name, cache, canary, offline):
    path = put(cache, hub.canonical(name), "master", canary)
    pipe = pipeline(TASK, model=name, device="cpu")
    assert type(pipe) is pipelines.I2VGenXLPipeline and pipe.model.model_dir == str(path)
    model = Model.from_pretrained(name, device="cpu")
    assert type(model) is models.I2VGenXLModel and model.model_dir == str(path)
    assert hub.fetch(name) == path
    assert not canary.exists()


@pytest.mark.parametrize("revision", ["v1.1.3", "v1.1.5"])
def test_a_revision_is_honoured(revision, cache, canary, offline):
    name = I2VGEN_XL.hub_ids[0]
    put(cache, name, revision, canary, frames=int(revision[-1]))
    pipe = pipeline(TASK, model=name, model_revision=revision, device="cpu")
    assert pipe.generator.defaults["num_frames"] == int(revision[-1])
    assert (
        Model.from_pretrained(name, revision=revision, device="cpu").generator.defaults
        == pipe.generator.defaults
    )
    pipeline(TASK, model=name, device="cpu")  # a copy of whatever revision will do
    with pytest.raises(CheckpointError, match="has no copy of it at revision v1.1.4; check the network"):
        pipeline(TASK, model=name, model_revision="v1.1.4", device="cpu")


@pytest.mark.skipif(ONE_FOLDER, reason="its cache has one revision of a model")
def test_each_revision_has_a_copy(cache, canary, offline):
    name = I2VGEN_XL.hub_ids[0]
    copies = {revision: put(cache, name, revision, canary) for revision in ("v1.1.3", "v1.1.5")}
    for revision, path in copies.items():
        assert hub.fetch(name, revision) == path
    with pytest.raises(CheckpointError, match="no copy"):
        hub.fetch(name)


def test_both_stages_come_from_the_cache(cache, canary, offline):
    names = [I2VGEN_XL.hub_ids[0], VIDEO_TO_VIDEO.hub_ids[0].lower()]
    paths = [
        put(cache, family.hub_ids[0], "master", canary, family=family)
        for family in (I2VGEN_XL, VIDEO_TO_VIDEO)
    ]
    pipe = pipeline(TASK, model=list(names), device="cpu")
    assert [model.model_dir for model in pipe.models] == list(map(str, paths))
    cascade = Cascade.load(names, device="cpu")
    assert (cascade.first.family, cascade.second.family) == (I2VGEN_XL, VIDEO_TO_VIDEO)


ORDERS = {
    "ours first": "import modelscope_i2v\nfrom modelscope.pipelines import pipeline",
    "stock first": "from modelscope.pipelines import pipeline\nimport modelscope_i2v",
    "enabled": f"exec({_SOURCE!r}, {{'__name__': 'startup'}})\nfrom modelscope.pipelines import pipeline",
}


@pytest.mark.parametrize("first", ORDERS.values(), ids=list(ORDERS))
def test_the_imports_order_makes_no_difference(first, cache, canary):
    put(cache, I2VGEN_XL.hub_ids[0], "v1.1.5", canary)
    script = f"""{first}
from modelscope_i2v.checkpoints import hub
hub.reachable = lambda: False
pipe = pipeline("image-to-video", model="damo/i2vgen-xl", model_revision="v1.1.5", device="cpu")
print(type(pipe).__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == pipelines.__name__
    assert not canary.exists()


def test_with_a_network_the_hub_is_asked_in_its_own_spelling(directory, canary, monkeypatch):
    asked = []

    class Hub:
        def get_model(self, model_id, revision=None, **kwargs):
            asked.append((model_id, revision))
            return {"Owner": "damo", "Name": "I2VGen-XL"}

    def download(model_id, *names, revision=None, **kwargs):
        asked.append((model_id, revision))
        return os.path.join(directory, *names)

    monkeypatch.setattr(hub, "reachable", lambda: True)
    for module, name, stand_in in [
        ("modelscope.pipelines.util", "HubApi", Hub),
        ("modelscope.hub.api", "HubApi", Hub),
        ("modelscope.utils.hub", "model_file_download", download),
    ]:
        monkeypatch.setattr(import_module(module), name, stand_in)
    downloads = SimpleNamespace(snapshot_download=download)
    registration._downloads(downloads)
    for module in ("modelscope.pipelines.builder", "modelscope.models.base.base_model"):
        monkeypatch.setattr(import_module(module), "snapshot_download", downloads.snapshot_download)
    pipe = pipeline(TASK, model="damo/i2vgen-xl", model_revision="v1.1.5", device="cpu")
    assert type(pipe) is pipelines.I2VGenXLPipeline
    model = Model.from_pretrained("DAMO/I2VGen-XL", revision="v1.1.5", device="cpu")
    assert type(model) is models.I2VGenXLModel
    assert set(asked) == {("damo/I2VGen-XL", "v1.1.5")}
    assert not canary.exists()


LOADS = {
    "pipeline": lambda: pipeline(IMAGE_TO_VIDEO.task, model="damo/Image-to-Video"),
    "someone's": lambda: pipeline(IMAGE_TO_VIDEO.task, model="someone/their-own"),
    "model": lambda: Model.from_pretrained("damo/Image-to-Video"),
    "default": lambda: pipeline(TEXT_TO_VIDEO.task),
    "cascade": lambda: Cascade.load(device="cpu"),
    "animate": lambda: animate(str(picture()), text="A boat."),
    "fetch": lambda: hub.fetch("damo/Image-to-Video"),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=list(LOADS))
def test_without_a_network_that_is_said_at_once(load, cache, monkeypatch):
    monkeypatch.setenv("MODELSCOPE_DOMAIN", "127.0.0.1:9")  # nobody listens there
    begin = time.monotonic()
    with pytest.raises(
        CheckpointError, match=r"(damo|someone)/.* cannot be fetched, .*https://127.0.0.1:9\) does not answer"
    ) as told:
        load()
    assert time.monotonic() - begin < 5
    assert told.value.__cause__ is None and told.value.__context__ is None
    assert str(told.value).count(".") < 10 and len(str(told.value)) < 300


def test_a_hub_that_stays_silent_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(hub, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(hub, "_endpoint", lambda: f"http://127.0.0.1:{server.getsockname()[1]}")
        begin = time.monotonic()
        assert not hub.reachable()
        assert time.monotonic() - begin < 2


def test_a_hub_that_answers_anything_is_there(monkeypatch):
    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setattr(hub, "_endpoint", lambda: f"http://127.0.0.1:{server.server_port}")
        assert hub.reachable() and hub.reachable()  # the second answer is the first's


def test_what_is_no_id_is_told_without_a_network(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: pytest.fail("the network was asked"))
    for name in ("no such directory", "/no/such/directory", "a/b/c"):
        with pytest.raises(CheckpointError, match="There is no model directory"):
            hub.fetch(name)


def test_a_pipeline_opens_a_directory_once(directory, monkeypatch):
    opened = []
    read = ModelDirectory._read.__func__
    monkeypatch.setattr(
        ModelDirectory, "_read", classmethod(lambda cls, *given: opened.append(given[0]) or read(cls, *given))
    )
    pipeline(TASK, model=str(directory), device="cpu")
    assert opened == [directory]


def test_a_directory_that_changes_is_opened_again(directory):
    assert ModelDirectory.open(directory).defaults["num_frames"] == 16
    ModelDirectory.open(directory).defaults["num_frames"] = 0  # a caller's own
    assert ModelDirectory.open(directory, TASK).defaults["num_frames"] == 16
    model = json.loads((directory / "configuration.json").read_text())["model"]
    model["model_cfg"]["max_frames"] = 32
    edit(directory, model=model)
    assert ModelDirectory.open(directory).defaults["num_frames"] == 32
    (directory / "unet.safetensors").unlink()
    with pytest.raises(CheckpointError, match="There is no file"):
        ModelDirectory.open(directory)
