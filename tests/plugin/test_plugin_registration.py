"""Ours are the classes that ModelScope builds, whatever was imported first."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import modelscope_i2v
from modelscope_i2v.plugin import registration
from modelscope_i2v.spec.families import FAMILIES, TASKS

ALL = list(FAMILIES.values())
ROOT = Path(modelscope_i2v.__file__).resolve().parents[1]


def run(script: str) -> Any:
    """What a script prints last as JSON, in a fresh Python."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_import_is_light():
    told = run(
        """
        import json, sys, time
        start = time.perf_counter()
        import modelscope_i2v
        took = time.perf_counter() - start
        heavy = [name for name in ("torch", "numpy", "open_clip", "modelscope") if name in sys.modules]
        print(json.dumps({"took": took, "heavy": heavy}))
        """
    )
    assert told["heavy"] == []
    assert told["took"] < 0.3


STOCK_FIRST = """
import json, sys, time, warnings
warnings.simplefilter("error", RuntimeWarning)
from modelscope.models.multi_modal.video_synthesis import TextToVideoSynthesis as Stock
from modelscope.pipelines.builder import PIPELINES
from modelscope.models.builder import MODELS

class StockPipeline:
    pass

StockPipeline.__module__ = "modelscope.pipelines.multi_modal.image_to_video_pipeline"
PIPELINES.register_module("image-to-video", "image-to-video-task-pipeline", StockPipeline)
before = MODELS.get("latent-text-to-video-synthesis", "text-to-video-synthesis") is Stock
start = time.perf_counter()
import modelscope_i2v
took = time.perf_counter() - start
"""

OURS_FIRST = """
import json, sys
import modelscope_i2v
before, took = "modelscope" not in sys.modules, 0
from modelscope.models.multi_modal.video_synthesis import TextToVideoSynthesis as Stock
from modelscope.pipelines.builder import PIPELINES
from modelscope.models.builder import MODELS

class StockPipeline:
    pass

StockPipeline.__module__ = "modelscope.pipelines.multi_modal.image_to_video_pipeline"
PIPELINES.register_module("image-to-video", "image-to-video-task-pipeline", StockPipeline)
"""

LOOK = """
from modelscope_i2v.embedded import model_directory
from modelscope.models import Model
from modelscope_i2v.plugin.registration import classes_in_force
model = Model.from_pretrained(str(model_directory("text-to-video-synthesis")))
# A stock class that is imported after ours: it neither fails nor wins.
MODELS.register_module("text-to-video-synthesis", "latent-text-to-video-synthesis", Stock)
again = MODELS.get("latent-text-to-video-synthesis", "text-to-video-synthesis")
print(json.dumps({
    "before": before, "took": took, "classes": classes_in_force(), "model": type(model).__module__,
    "group": Stock.group_key, "again": again is type(model),
}))
"""


@pytest.mark.parametrize("first", [STOCK_FIRST, OURS_FIRST], ids=["stock first", "ours first"])
def test_ours_win_in_either_order(first):
    told = run(first + LOOK)
    assert told["before"]
    assert told["took"] < 0.3
    assert set(told["classes"]) == set(FAMILIES)
    for name in told["classes"].values():
        assert name.startswith("modelscope_i2v.plugin.pipelines.")
    assert told["model"] == "modelscope_i2v.plugin.models"
    assert told["group"] == "text-to-video-synthesis"
    assert told["again"]


def test_no_package_that_only_stock_needs_is_imported():
    told = run(
        """
        import json, sys
        before = set(sys.modules)
        from modelscope.pipelines import pipeline
        theirs = set(sys.modules)
        import modelscope_i2v.plugin.pipelines
        unwanted = {"xformers", "fairscale", "rotary_embedding_torch", "pytorch_lightning", "easydict",
                    "einops", "cv2"}
        print(json.dumps(sorted(unwanted & (set(sys.modules) - theirs))))
        """
    )
    assert told == []


@pytest.mark.parametrize("family", TASKS.values(), ids=list(TASKS))
def test_inputs_outputs_and_default_models_are_known(family):
    from modelscope.metainfo import DEFAULT_MODEL_FOR_PIPELINE
    from modelscope.outputs import TASK_OUTPUTS
    from modelscope.pipeline_inputs import TASK_INPUTS
    from modelscope.utils.input_output import get_input_schema, get_output_schema

    assert DEFAULT_MODEL_FOR_PIPELINE[family.task][0] == family.pipeline_type
    assert DEFAULT_MODEL_FOR_PIPELINE[family.task][1] in family.hub_ids
    assert TASK_OUTPUTS[family.task] == ["output_video"]
    key = {"image-to-video": "image", "video-to-video": "video_path"}.get(family.task, "text")
    assert key in TASK_INPUTS[family.task]
    assert key in get_input_schema(family.task, None)["properties"]  # what ModelScope's server asks for
    assert get_output_schema(family.task)["properties"]


@pytest.mark.parametrize("name", ["pipelines", "models", "preprocessors"])
def test_the_index_names_our_modules(name):
    importlib.import_module(f"modelscope.{name}.builder")
    index = registration._index()
    for family in ALL:
        place = registration._place(name.upper(), family)
        assert index[(name.upper(), *place)]["module"] == f"modelscope_i2v.plugin.{name}"


def test_registering_again_changes_nothing():
    from modelscope.pipelines.builder import PIPELINES

    finders, method = list(sys.meta_path), PIPELINES._register_module
    registration.register()
    assert sys.meta_path == finders
    assert PIPELINES._register_module is method


class Registry:
    """What ModelScope's registry looks like from here."""

    name = "pipelines"

    def __init__(self):
        self.held = {}

    def get(self, name, group):
        return self.held.get((group, name))

    def _register_module(self, group_key, module_name, module_cls, force=False):
        if (group_key, module_name) in self.held and not force:
            raise KeyError(f"{module_name} is already registered")
        self.held[group_key, module_name] = module_cls

    def register_module(self, group, name, cls, force=False):
        self._register_module(group_key=group, module_name=name, module_cls=cls, force=force)


def stock() -> type:
    return type("Stock", (), {"__module__": "modelscope.pipelines.somewhere"})


@pytest.fixture
def builder(monkeypatch):
    """A builder module of ModelScope with an index of its own."""
    index = {}
    monkeypatch.setattr(registration, "_index", lambda: index)
    module = ModuleType("modelscope.pipelines.builder")
    module.PIPELINES = Registry()
    registration._take_places(module)
    return module


PLACE = (ALL[0].task, ALL[0].pipeline_type)


def test_ours_replace_stock_but_not_a_third_partys(builder):
    registry, theirs = Registry(), type("Theirs", (), {"__module__": "their_plugin"})
    other = (ALL[1].task, ALL[1].pipeline_type)
    registry.register_module(*PLACE, stock())
    registry.register_module(*other, theirs)
    made = registration.register_families(registry, type("Base", (), {}), lambda family: family.makes)
    assert registry.get(*reversed(PLACE)) is made[f"{ALL[0].label}Pipeline"]
    assert registry.get(*reversed(other)) is theirs


@pytest.mark.parametrize("family", ALL, ids=list(FAMILIES))
@pytest.mark.parametrize("kind", ["model", "pipeline", "preprocessor", "trainer"])
def test_each_family_has_classes_of_its_own(family, kind):
    module = importlib.import_module(f"modelscope_i2v.plugin.{kind}s")
    cls = getattr(module, f"{family.label}{kind.capitalize()}")
    assert (cls.__module__, cls.__qualname__) == (module.__name__, f"{family.label}{kind.capitalize()}")
    assert cls.family is family and family.makes in cls.__doc__
    assert pickle.loads(pickle.dumps(cls)) is cls


def test_stock_stays_out_of_our_places_and_free_elsewhere(builder):
    registry = builder.PIPELINES
    later = stock()
    registry.register_module(*PLACE, later)
    assert registry.get(*reversed(PLACE)) is None
    assert later.group_key == PLACE[0]
    registry.register_module("other-task", "other", stock())
    with pytest.raises(KeyError, match="already registered"):
        registry.register_module("other-task", "other", stock())


def test_who_forces_a_class_into_our_place_gets_it(builder):
    theirs = stock()
    builder.PIPELINES.register_module(*PLACE, theirs, force=True)
    assert builder.PIPELINES.get(*reversed(PLACE)) is theirs


def test_an_unknown_layout_is_told_in_one_warning():
    strange = ModuleType("modelscope.metainfo")
    with pytest.warns(UserWarning, match="modelscope.metainfo is not as expected.*DEFAULT_MODEL"):
        registration._apply(registration._default_models, strange)


def test_the_older_form_of_the_index_is_used_too(monkeypatch):
    index = {("PIPELINES", "a", "b"): {}}
    old = SimpleNamespace(LazyImportModule=SimpleNamespace(AST_INDEX={"index": index}))
    new = SimpleNamespace(LazyImportModule=SimpleNamespace(get_ast_index=lambda: {"index": index}))
    for version in (old, new):
        monkeypatch.setattr(registration, "import_module", lambda name, version=version: version)
        assert registration._index() is index


def test_a_watched_module_keeps_its_own_loader(tmp_path, monkeypatch):
    (tmp_path / "watched_module.py").write_text("value = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    monkeypatch.setitem(registration._ACTIONS, "watched_module", lambda module: seen.append(module.value))
    module = importlib.import_module("watched_module")
    assert seen == [1]
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__.loader is module.__loader__
    importlib.reload(module)
    assert seen == [1, 1]


def test_classes_that_cannot_be_imported_are_told(monkeypatch):
    broken = {("PIPELINES", f.task, f.pipeline_type): {"module": "no_such_module"} for f in ALL}
    monkeypatch.setattr(registration, "_index", lambda: broken)
    for text in registration.classes_in_force().values():
        assert text.startswith("no_such_module (cannot be imported:")


def test_public_names():
    assert modelscope_i2v.VideoGenerator.__module__ == "modelscope_i2v.engine.generator"
    assert issubclass(modelscope_i2v.InputError, modelscope_i2v.VideoError)
    assert modelscope_i2v.__version__.count(".") == 2
    assert set(modelscope_i2v.__all__) <= set(dir(modelscope_i2v))
    with pytest.raises(AttributeError, match="no attribute 'VideoGenerater'"):
        modelscope_i2v.VideoGenerater  # noqa: B018


def test_importing_without_modelscope_says_nothing_and_works():
    told = run(
        """
        import json, sys, warnings
        sys.modules["modelscope"] = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            import modelscope_i2v
        try:
            import modelscope_i2v.plugin.pipelines
        except ImportError as error:
            message = str(error)
        print(json.dumps({"caught": len(caught), "message": message}))
        """
    )
    assert told["caught"] == 0
    assert "modelscope" in told["message"]


def test_warnings_are_not_raised_on_the_known_versions():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registration.register()
