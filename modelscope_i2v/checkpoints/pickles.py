"""Reads the pickle inside a PyTorch file without importing or calling anything that it names.

A pickle is a little program: it names functions and has them called. Here every name is looked up
in a table of stand-ins that only hold data, so that nothing else can be reached, whatever the
file says; a name outside the table ends the reading. What comes out are plain dictionaries and
lists, and :class:`View` where tensors belong.

The stand-ins have no attributes to set and answer ``__setstate__``, so that a pickle cannot change
them either (its BUILD instruction would otherwise write into whatever object is at hand).
"""

from __future__ import annotations

import pickle
from typing import IO, Any

import torch


class ForbiddenName(pickle.UnpicklingError):
    """The pickle names something that weights have no use for; ``args[0]`` is the name."""


class Inert:
    """Stands for an object that came along with the weights and is of no use here."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class Dict(dict):
    """Stands for an OrderedDict; what was attached to it (``_metadata``) is dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class Storage(tuple):
    """Numbers in the file: (dtype, key, count)."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a storage with a state of its own")


class View(tuple):
    """A tensor: (storage, offset, size, stride), the last three in elements."""

    __slots__ = ()

    def __new__(cls, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
        if not isinstance(storage, Storage):
            raise pickle.UnpicklingError("a tensor without a storage")
        return tuple.__new__(cls, (storage, offset, tuple(size), tuple(stride)))

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a tensor with a state of its own")


class _TypedView(View):
    """A tensor of a type that has no storage class, such as float8."""

    __slots__ = ()

    def __new__(cls, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        if not isinstance(storage, Storage) or not isinstance(rest[2], torch.dtype):
            raise pickle.UnpicklingError("a tensor without a storage or a type")
        dtype, (_, key, size_in_bytes) = rest[2], storage
        return View(Storage((dtype, key, size_in_bytes // dtype.itemsize)), offset, size, stride)


class _Parameter(Inert):
    """A tensor that was a parameter is that tensor."""

    __slots__ = ()

    def __new__(cls, data: Any = None, *_: Any) -> Any:
        return data


class _FromType(Inert):
    """A tensor that had attributes of its own is that tensor."""

    __slots__ = ()

    def __new__(cls, rebuild: Any, _type: Any, args: Any, _state: Any) -> Any:
        if rebuild not in (View, _TypedView, _Parameter):
            raise pickle.UnpicklingError("a tensor made by something else than tensors are made by")
        return rebuild(*args)


_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}

_TENSORS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Dict,
    ("torch._utils", "_rebuild_tensor"): View,
    ("torch._utils", "_rebuild_tensor_v2"): View,
    ("torch._utils", "_rebuild_tensor_v3"): _TypedView,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _Parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _FromType,
    ("torch.nn.parameter", "Parameter"): _Parameter,
    ("torch", "Size"): tuple,
}

_HARMLESS: dict[str, set[str]] = {
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "builtins": {
        "bool",
        "bytearray",
        "bytes",
        "complex",
        "dict",
        "float",
        "frozenset",
        "int",
        "list",
        "object",
    }
    | {"range", "set", "slice", "str", "tuple"},
    "collections": {"Counter", "defaultdict", "deque"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "timedelta", "timezone"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "torch": {"device", "Tensor"},
    "typing": {"Any"},
}
_HARMLESS["__builtin__"] = _HARMLESS["builtins"]  # Python 2's names
_HARMLESS["copy_reg"] = _HARMLESS["copyreg"]

_TRAINERS = ("lightning", "lightning_fabric", "omegaconf", "pytorch_lightning")
"""Packages whose classes (never their functions) training leaves in checkpoints."""


def _stand_in(module: str, name: str) -> Any:
    if (module, name) in _TENSORS:
        return _TENSORS[module, name]
    if module in ("torch", "torch.storage", "torch.cuda") and name in _DTYPES:
        return _DTYPES[name]
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    if name in _HARMLESS.get(module, ()):
        return Inert
    if module.partition(".")[0] in _TRAINERS and name.isidentifier() and name.lstrip("_")[:1].isupper():
        return Inert
    raise ForbiddenName(f"{module}.{name}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], storages: dict[str, Storage]) -> None:
        super().__init__(file, encoding="latin1")
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        return _stand_in(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] not in ("storage", b"storage"):
            raise pickle.UnpicklingError("something else than a tensor where a tensor belongs")
        _, dtype, key, _, count, *view = pid
        if not isinstance(dtype, torch.dtype) or not isinstance(count, int) or any(view):
            raise pickle.UnpicklingError("a storage that is none")
        storage = Storage((dtype, str(key), count))
        self.storages[str(key)] = storage
        return storage


def load_inert(file: IO[bytes], storages: dict[str, Storage] | None = None) -> Any:
    """Reads one pickle from ``file``, which then stands behind it; fills in the ``storages`` it names.

    Raises:
        ForbiddenName: for a name outside the table; nothing of it has been imported or run.
        Exception: whatever a damaged pickle makes Python's reader raise.
    """
    return _Unpickler(file, {} if storages is None else storages).load()
