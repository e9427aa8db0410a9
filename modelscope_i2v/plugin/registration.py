"""How ModelScope comes to use this package's classes.

ModelScope builds a class in two steps: it imports the module that its source index names for (registry,
group, type), then takes what that registry holds under (group, type). :func:`register` points the index
at the modules of this package, whose classes then register themselves with
:func:`register_families`.

Each part of that is done right after ModelScope's own module was imported, or at once where that has
happened already. So the order of the imports makes no difference, and ModelScope, which takes seconds, is
not imported for the sake of it. Everything that differs between versions of ModelScope is in this file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, VideoError

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from ..spec.families import Family

FIELD = "multi-modal"
"""ModelScope's field of the three tasks; preprocessors are grouped by field, not by task."""

TRAINER_GROUP = "default"
"""ModelScope's group of all trainers."""

_CONFIGURATION = "configuration.json"

_REMOTE_CODE = ("plugins", "allow_remote")
"""Entries of a configuration by which ModelScope installs packages, and runs code of the directory."""

_PACKAGE = __name__.rpartition(".")[0]


def register() -> None:
    """Makes ModelScope use this package for its tasks. Calling it again changes nothing."""
    for name, action in _ACTIONS.items():
        if (module := sys.modules.get(name)) is not None:
            _apply(action, module)
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def register_families(registry: Any, base: Any, describe: Callable[[Family], str]) -> dict[str, type]:
    """Makes a class for each family and registers it in the place of ModelScope's, if that holds it.

    A class that a third party has registered there on purpose stays.

    Args:
        registry: ModelScope's ``MODELS``, ``PIPELINES``, ``PREPROCESSORS`` or ``TRAINERS``.
        base: the class to derive them from; each gets its ``family``.
        describe: their docstrings.

    Returns:
        The classes by their names, such as ``ImageToVideoPipeline``, for the module of ``base``.
    """
    made = {}
    for family in _families():
        name = family.label + registry.name[:-1].capitalize()
        contents = {"__module__": base.__module__, "__doc__": describe(family), "family": family}
        made[name] = ours = type(name, (base,), contents)
        group, key = _place(registry.name.upper(), family)
        held = registry.get(key, group)
        if held is None or _is_stock(held):
            registry.register_module(group, key, ours, force=True)
    return made


def preprocessor_type(family: Family) -> str:
    """The name of a family's preprocessor in ModelScope's PREPROCESSORS registry."""
    return f"{family.name}-preprocessor"


def trainer_type(family: Family) -> str:
    """The name of a family's trainer in ModelScope's TRAINERS registry."""
    return f"{family.name}-trainer"


def classes_in_force() -> dict[str, str]:
    """What ``pipeline(task)`` builds in this process, ``module.Class`` by the family's name.

    Imports ModelScope. A class that cannot be imported is told with the reason.
    """
    registry = import_module("modelscope.pipelines.builder").PIPELINES
    index = _index()
    found = {}
    for family in _families():
        module = index.get(("PIPELINES", family.task, family.pipeline_type), {}).get("module", "")
        try:
            if module:
                import_module(module)
            held = registry.get(family.pipeline_type, family.task)
            found[family.name] = f"{held.__module__}.{held.__qualname__}" if held else "none"
        except Exception as error:  # a stock module may fail in any way
            found[family.name] = f"{module} (cannot be imported: {error})"
    return found


# The tables are not needed by a process that does not use ModelScope.


def _families() -> list[Family]:
    from ..spec.families import FAMILIES

    return list(FAMILIES.values())


def _tasks() -> dict[str, Family]:
    from ..spec.families import TASKS

    return TASKS


def _place(registry: str, family: Family) -> tuple[str, str]:
    """A family's place (group, type) in one of ModelScope's registries."""
    return {
        "PIPELINES": (family.task, family.pipeline_type),
        "MODELS": (family.task, family.model_type),
        "TRAINERS": (TRAINER_GROUP, trainer_type(family)),
        "PREPROCESSORS": (FIELD, preprocessor_type(family)),
    }[registry]


def _index() -> dict[tuple[str, str, str], dict[str, Any]]:
    """ModelScope's source index: a method's result since 1.22, a class attribute before."""
    lazy = import_module("modelscope.utils.import_utils").LazyImportModule
    return (lazy.get_ast_index() if hasattr(lazy, "get_ast_index") else lazy.AST_INDEX)["index"]


def _is_stock(cls: Any) -> bool:
    return getattr(cls, "__module__", "").partition(".")[0] == "modelscope"


def _take_places(builder: ModuleType) -> None:
    """Points the index at our modules, and keeps stock classes out of their places from now on."""
    kind = builder.__name__.split(".")[1]  # pipelines, models, preprocessors, trainers
    name = kind.upper()
    registry, index = getattr(builder, name), _index()
    places = {_place(name, family) for family in _families()}
    file = str(Path(__file__).with_name(f"{kind}.py"))
    for place in places:
        index[(name, *place)] = {"module": f"{_PACKAGE}.{kind}", "filepath": file, "imports": []}

    original = registry._register_module
    if getattr(original, "__module__", "") == __name__:
        return

    def register_module(
        group_key: str = "default", module_name: Any = None, module_cls: Any = None, force: bool = False
    ) -> None:
        if (group_key, module_name) in places and not force and _is_stock(module_cls):
            module_cls.group_key = group_key  # as the registry does: the class itself stays usable
        else:
            original(group_key=group_key, module_name=module_name, module_cls=module_cls, force=force)

    registry._register_module = register_module


def _replace(module: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Puts a function of ours, made from ModelScope's own, in its place; once, and only where it is."""
    original = getattr(module, name, None)
    if original is not None and getattr(original, "__module__", "") != __name__:
        setattr(module, name, make(original))


def _configurations(module: ModuleType) -> None:
    """Lets ModelScope see configurations of our models as they are meant.

    Every version of ModelScope runs the code of a model directory, and installs packages, if the file's
    ``allow_remote`` and ``plugins`` say so; some versions ask whether the directory is trusted. Our models
    need no such code, so these entries are not there for ModelScope. And types that it cannot know, or that
    are missing, are filled in.
    """

    def make(read: Callable[..., Any]) -> Any:
        def from_file(filename: Any, *args: Any, **kwargs: Any) -> Any:
            config = read(filename, *args, **kwargs)
            directory, name = os.path.split(filename)
            if name == _CONFIGURATION and (family := _described(config, directory)) is not None:
                for entry in _REMOTE_CODE:
                    config.pop(entry, None)
                config.merge_from_dict(_types(config, family))
            return config

        return staticmethod(from_file)

    _replace(module.Config, "from_file", make)


def _described(config: Any, directory: str) -> Family | None:
    """The family whose pipeline a configuration names; where it names none, the directory's."""
    pipeline, task = config.safe_get("pipeline.type"), config.safe_get("task")
    if not pipeline:
        return _recognised(directory)
    return next(
        (one for one in _families() if one.pipeline_type == pipeline and task in (None, one.task)), None
    )


def _types(config: Any, family: Family) -> dict[str, str]:
    """What a configuration of the family has to say for ModelScope to find our classes."""
    said = {"task": family.task, "pipeline.type": family.pipeline_type}
    if ("MODELS", family.task, config.safe_get("model.type")) not in _index():
        said["model.type"] = family.model_type
    return said


def _directories(module: ModuleType) -> None:
    """Lets ``pipeline`` take our local directories without a configuration, and our models' ids on the hub.

    The functions are replaced where they are called, so that whoever has imported ``pipeline`` before
    has this too. Everything else goes on to ModelScope's own.
    """

    def reading(read: Callable[..., Any]) -> Any:
        def read_config(model_id_or_path: str, revision: str | None = None, **kwargs: Any) -> Any:
            task = _callers_task()
            model = _embedded(model_id_or_path, task) or model_id_or_path
            model = _cached(model, revision, task) or model
            described = os.path.exists(os.path.join(model, _CONFIGURATION))
            family = None if described else _recognised(model)
            if family is None:
                return read(_canonical(model), revision, **kwargs)
            config = import_module("modelscope.utils.config").Config({})
            config.merge_from_dict(_types(config, family))
            return config

        return read_config

    def knowing(known: Callable[..., bool]) -> Any:
        def is_official_hub_path(path: Any, revision: str | None = None) -> bool:
            paths = [path] if isinstance(path, str) else list(path)
            task = _callers_task()
            tasks = [task] + [None] * len(paths)  # a second model is the next stage's, of another task
            paths = [_embedded(one, wanted) or one for one, wanted in zip(paths, tasks)]
            try:
                theirs = [
                    _canonical(one)
                    for one, wanted in zip(paths, tasks)
                    if _recognised(one, wanted) is None and _cached(one, revision, wanted) is None
                ]
            except VideoError as error:
                if len(paths) == 1:
                    raise
                raise type(error)(f"{error} In a list of models, the one for {task} comes first.") from error
            return not theirs or known(theirs[0] if isinstance(path, str) else theirs, revision)

        return is_official_hub_path

    _replace(module, "read_config", reading)
    _replace(module, "is_official_hub_path", knowing)
    _downloads(module)


def _downloads(module: ModuleType) -> None:
    """Lets our models' ids on the hub have any letters' case, and be taken from the cache offline."""

    def downloading(download: Callable[..., str]) -> Any:
        def snapshot_download(model_id: Any = None, revision: str | None = None, **kwargs: Any) -> str:
            if _embedded(model_id, None):
                return model_id  # which the pipeline, knowing its task, takes by its name
            return _cached(model_id, revision) or download(_canonical(model_id), revision=revision, **kwargs)

        return snapshot_download

    def trusting(trusted: Callable[..., bool]) -> Any:
        def is_model_from_trusted_source(model_id: Any, *args: Any, **kwargs: Any) -> bool:
            return not _offline(model_id) and trusted(_canonical(model_id), *args, **kwargs)

        return is_model_from_trusted_source

    _replace(module, "snapshot_download", downloading)
    _replace(module, "is_model_from_trusted_source", trusting)


def _callers_task() -> str | None:
    """The task of the ``pipeline(…)`` that called a function of ours, which is not handed on to it."""
    task = sys._getframe(2).f_locals.get("task")
    return task if isinstance(task, str) else None


def _embedded(model: Any, task: str | None) -> str | None:
    """The directory of an embedded model by its name; a cascade's second stage has no task here."""
    from ..embedded import find
    from ..spec.families import VIDEO_TO_VIDEO

    found = find(model, task or VIDEO_TO_VIDEO.task) if isinstance(model, str) else None
    return None if found is None else str(found)


def _canonical(model: Any) -> Any:
    from ..checkpoints.hub import canonical

    return canonical(model) if isinstance(model, str) and not os.path.exists(model) else model


def _offline(model: Any) -> bool:
    """Whether it is an id on the hub that nothing can be asked about, since there is no network."""
    from ..checkpoints import hub

    return isinstance(model, str) and not os.path.exists(model) and hub.is_id(model) and not hub.reachable()


def _cached(model: Any, revision: str | None, task: str | None = None) -> str | None:
    """The cached copy of one of our models on the hub, where there is no network; else None.

    Raises:
        CheckpointError: the task or the id is this package's, and there is no copy.
    """
    from ..checkpoints import hub

    if not _offline(model):
        return None
    name = hub.canonical(model)
    ours = task in _tasks() or name in hub.IDS.values()
    try:
        directory = str(hub.cached(name, revision))
    except CheckpointError:
        if ours:
            raise
        return None
    return directory if ours or _recognised(directory) else None


def _names_no_pipeline(path: str) -> bool:
    """Whether it is a local directory whose configuration.json is missing, or leaves that open."""
    if not os.path.isdir(path):
        return False
    try:
        with open(os.path.join(path, _CONFIGURATION), encoding="utf-8-sig") as file:
            return not json.load(file)["pipeline"]["type"]
    except (FileNotFoundError, KeyError, TypeError):
        return True
    except (OSError, ValueError):
        return False  # ModelScope says what is wrong with it


def _recognised(path: str, task: str | None = None) -> Family | None:
    """The family of a local model directory; None where it is not for this package.

    Raises:
        CheckpointError: the task is this package's, and the directory is another task's, or of no use.
    """
    from ..checkpoints.directory import ModelDirectory

    if not os.path.isdir(path):
        return None
    wanted = task if task in _tasks() else None
    try:
        family = ModelDirectory.open(path).family
    except CheckpointError:
        if wanted and _names_no_pipeline(path):
            raise
        return None  # ModelScope's, or another plugin's
    if wanted not in (None, family.task):
        ModelDirectory.open(path, wanted)  # says what it is
    return family


def _take_builder(builder: ModuleType) -> None:
    _take_places(builder)
    _directories(builder)


def _loading(module: ModuleType) -> None:
    """Lets ``Model.from_pretrained`` give no directory of ours to transformers, which may run its code."""

    def knowing(known: Callable[..., bool]) -> Any:
        def can_load_by_ms(model_dir: str, task_name: str | None, *args: Any) -> bool:
            return _is_for(model_dir, task_name) or known(model_dir, task_name, *args)

        return can_load_by_ms

    def loading(load: Callable[..., Any]) -> Any:
        def try_to_load_hf_model(model_dir: str, task_name: str | None, *args: Any, **kwargs: Any) -> Any:
            return None if _is_for(model_dir, task_name) else load(model_dir, task_name, *args, **kwargs)

        return try_to_load_hf_model

    _replace(module, "can_load_by_ms", knowing)
    _replace(module, "try_to_load_hf_model", loading)
    _downloads(module)


def _is_for(directory: str, task: str | None) -> bool:
    """Whether a directory is for this package. Raises CheckpointError if it is, and not for that task."""
    from ..checkpoints.directory import ModelDirectory

    if _recognised(directory) is None:
        return False
    ModelDirectory.open(directory, task)
    return True


def _default_models(metainfo: ModuleType) -> None:
    for family in _tasks().values():
        metainfo.DEFAULT_MODEL_FOR_PIPELINE.setdefault(family.task, (family.pipeline_type, family.hub_ids[0]))


def _inputs(module: ModuleType) -> None:
    kinds = module.InputType
    for family in _tasks().values():
        if family.takes_video:
            inputs = {"video_path": kinds.VIDEO, "video": kinds.VIDEO, "text": kinds.TEXT}
        elif family.reads_image:
            inputs = {"image": kinds.IMAGE, "text": kinds.TEXT}  # the text is for I2VGen-XL alone
        else:
            inputs = {"text": kinds.TEXT}
        module.TASK_INPUTS.setdefault(family.task, inputs)


def _schemas(module: ModuleType) -> None:
    """Gives ModelScope's server our pipelines' options, which it would look for in a class's source text."""

    def make(known: Callable[[str, str], Any]) -> Any:
        def get_pipeline_input_parameters(source_file_path: str, class_name: str) -> Any:
            families = {f"{family.label}Pipeline": family for family in _families()}
            ours = Path(source_file_path) == Path(__file__).with_name("pipelines.py")
            if ours and class_name in families:
                return None, _parameters(families[class_name])
            return known(source_file_path, class_name)

        return get_pipeline_input_parameters

    _replace(module, "get_pipeline_input_parameters", make)


def _parameters(family: Family) -> list[tuple[str, str, bool, Any]]:
    """Name, type, whether there is a default, and that, of the options that JSON can hold."""
    from ..spec.options import Options, family_defaults, options_of

    kinds = {field.name: str(field.type).partition(" ")[0] for field in dataclasses.fields(Options)}
    defaults = family_defaults(family)
    return [
        (name, kinds[name], defaults.get(name) is not None, defaults.get(name))
        for name in options_of(family)
        if kinds[name] in ("bool", "float", "int", "str")
    ]


def _outputs(module: ModuleType) -> None:
    for family in _tasks().values():
        module.TASK_OUTPUTS.setdefault(family.task, [module.OutputKeys.OUTPUT_VIDEO])


def _preprocessor_map(module: ModuleType) -> None:
    for family in _families():
        module.PREPROCESSOR_MAP.setdefault((family.model_type, family.task), preprocessor_type(family))


Action = Callable[[ModuleType], None]

_ACTIONS: dict[str, Action] = {
    "modelscope.utils.config": _configurations,
    "modelscope.metainfo": _default_models,
    "modelscope.pipeline_inputs": _inputs,
    "modelscope.outputs.outputs": _outputs,
    "modelscope.utils.input_output": _schemas,
    "modelscope.preprocessors.base": _preprocessor_map,
    "modelscope.pipelines.base": _directories,
    "modelscope.pipelines.builder": _take_builder,
    "modelscope.models.builder": _take_places,
    "modelscope.models.base.base_model": _loading,
    "modelscope.preprocessors.builder": _take_places,
    "modelscope.trainers.builder": _take_builder,
}
"""What is done to which of ModelScope's modules."""


def _apply(action: Action, module: ModuleType) -> None:
    try:
        action(module)
    except Exception as error:  # ModelScope itself must go on working
        version = getattr(sys.modules.get("modelscope.version"), "__version__", "")
        warnings.warn(
            f"modelscope_i2v cannot take its place in ModelScope {version}: {module.__name__} is not as "
            f"expected ({type(error).__name__}: {error}). Another version of ModelScope may be needed.",
            stacklevel=2,
        )


class _AfterImport:
    """A finder that lets the others find a module, and acts on it after its import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in _ACTIONS:
            return None
        for finder in list(sys.meta_path):
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, _ACTIONS[name])
                return spec
        return None


class _Loader:
    """Loads with another loader, which it leaves in its place, and then acts."""

    def __init__(self, loader: Any, action: Action) -> None:
        self.loader, self.action = loader, action

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _apply(self.action, module)
