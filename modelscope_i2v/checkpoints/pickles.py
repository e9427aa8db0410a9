"""Reads the pickle inside a PyTorch file without importing or calling anything that it names.

A pickle is a little program for a stack machine: it names functions and has them called. The machine here
knows a table of names, each with a stand-in that only holds data; any other name ends the reading. No
attribute of any object is looked up, set or called, whatever the program says. What comes out are plain
dictionaries, lists and tuples, :class:`View` where tensors belong, and :data:`INERT` for all else.

A program is also limited in what it costs: in its instructions, and in its dictionaries' keys, which are
texts and small numbers. A tuple as a key would be hashed, and that may go deeper than the interpreter's
stack or, where each tuple holds another twice, never end; so what stands under such a key is left out.

Source: the instructions are those of Python's :mod:`pickletools`, which takes them apart.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from types import FunctionType
from typing import IO, Any

import torch

_INSTRUCTIONS = 2_000_000
"""As many as a program may have: fifty times those of a large checkpoint, and a few seconds' work."""
_DIMENSIONS = 64
_LARGEST = 1 << 60
"""Numbers beyond it count no element of any file."""


class Damaged(Exception):
    """A file that cannot be what it says it is; ``args[0]`` says why, as the end of a sentence."""


class ForbiddenName(Exception):
    """The pickle names something that weights have no use for; ``args[0]`` is the name."""


class Inert:
    """The kind of :data:`INERT`."""

    __slots__ = ()


INERT = Inert()
"""Stands for an object that came along with the weights and is of no use here."""


class Storage(tuple[Any, ...]):
    """Numbers in the file: (dtype, key, count)."""

    __slots__ = ()


class View(tuple[Any, ...]):
    """A tensor: (storage, offset, size, stride), the last three in elements."""

    __slots__ = ()


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or len(values) > _DIMENSIONS:
        raise Damaged("a tensor's size is no list of numbers")
    return tuple(map(_count, values))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise Damaged("a tensor's size or place is no number that a file can have")
    return value


# The stand-ins, each a function of the tuple of arguments with which the program calls it.


def _inert(args: tuple[Any, ...]) -> Any:
    return INERT


def _view(args: tuple[Any, ...]) -> View:
    storage, offset, size, stride = args[:4]
    if not isinstance(storage, Storage):
        raise Damaged("a tensor has no numbers")
    size, stride = _counts(size), _counts(stride)
    if len(size) != len(stride):
        raise Damaged("a tensor's size and stride differ in length")
    return View((storage, _count(offset), size, stride))


def _typed_view(args: tuple[Any, ...]) -> View:
    """A tensor of a type that has no storage class, such as float8."""
    storage, dtype = args[0], args[6]
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise Damaged("a tensor has no numbers or no type")
    _, key, size_in_bytes = storage
    return _view((Storage((dtype, key, size_in_bytes // dtype.itemsize)), *args[1:4]))


def _parameter(args: tuple[Any, ...]) -> Any:
    """A tensor that was a parameter is that tensor."""
    return args[0] if args else INERT


def _from_type(args: tuple[Any, ...]) -> Any:
    """A tensor that had attributes of its own is that tensor."""
    rebuild, _type, inner, _state = args
    if rebuild not in (_view, _typed_view, _parameter) or type(inner) is not tuple:
        raise Damaged("a tensor is made by something else than tensors are made by")
    return rebuild(inner)


def _size(args: tuple[Any, ...]) -> tuple[int, ...]:
    return _counts(*args)


def _ordered(args: tuple[Any, ...]) -> dict[Any, Any]:
    """An OrderedDict; Python 2 gave it its pairs when it was made."""
    made: dict[Any, Any] = {}
    if args and type(args[0]) is list:
        for key, value in args[0]:
            _set(made, key, value)
        args[0].clear()  # once is enough: a program might have the same list gone through for ever
    return made


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

_TENSORS: dict[tuple[str, str], Callable[[tuple[Any, ...]], Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_view,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch", "Size"): _size,
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


def _stand_in(module: Any, name: Any) -> Any:
    if not isinstance(module, str) or not isinstance(name, str):
        raise Damaged("a name in its pickle is no text")
    if (module, name) in _TENSORS:
        return _TENSORS[module, name]
    if module in ("torch", "torch.storage", "torch.cuda") and name in _DTYPES:
        return _DTYPES[name]
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    if name in _HARMLESS.get(module, ()):
        return _inert
    if module.partition(".")[0] in _TRAINERS and name.isidentifier() and name.lstrip("_")[:1].isupper():
        return _inert
    raise ForbiddenName(f"{module}.{name}")


def _call(function: Any, args: Any) -> Any:
    if not isinstance(function, FunctionType) or type(args) is not tuple:
        raise Damaged("its pickle calls what is no function")
    return function(args)


def _set(target: Any, key: Any, value: Any) -> None:
    if type(target) is dict:
        if type(key) is str or (type(key) is int and -_LARGEST < key < _LARGEST):
            target[key] = value
    elif target is not INERT:
        raise Damaged("its pickle sets an item of what is no dictionary")


def _add(target: Any, items: list[Any]) -> None:
    if type(target) is list:
        target.extend(items)
    elif target is not INERT:
        raise Damaged("its pickle adds to what is no list")


def _storage(pid: Any, storages: dict[str, Storage]) -> Storage:
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] not in ("storage", b"storage"):
        raise Damaged("something else stands where a tensor belongs")
    _, dtype, key, _, count, *view = pid
    if not isinstance(dtype, torch.dtype) or any(part is not None for part in view):
        raise Damaged("a tensor's numbers are of no known kind")
    if type(key) is not str:
        key = _count(key)
    storage = Storage((dtype, str(key), _count(count)))
    storages[str(key)] = storage
    return storage


_PLAIN = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
"""Instructions that push their own argument."""
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "EMPTY_SET": INERT}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load_inert(file: IO[bytes], storages: dict[str, Storage] | None = None) -> Any:
    """Reads one pickle from ``file``, which then stands behind it; fills in the ``storages`` it names.

    Raises:
        ForbiddenName: for a name outside the table; nothing of it has been imported or run.
        Damaged: for a program that makes no sense, or has too many instructions.
        Exception: whatever else a damaged file makes the reader of instructions raise.
    """
    storages = {} if storages is None else storages
    stack: list[Any] = []
    marked: list[list[Any]] = []  # the stacks below the marks
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, marked.pop()
        return items

    arg: Any
    for number, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        if number > _INSTRUCTIONS:
            raise Damaged(f"its pickle has more than {_INSTRUCTIONS:,} instructions")
        name = opcode.name
        if name in _PLAIN:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[arg])
        elif name == "MARK":
            marked.append(stack)
            stack = []
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(stack) < count:
                raise Damaged("its pickle takes what was never given")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            items = since_mark()
            stack.append(tuple(items))
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "REDUCE" or name == "NEWOBJ":
            args = stack.pop()
            stack[-1] = _call(stack[-1], args)
        elif name == "NEWOBJ_EX":
            stack.pop()
            args = stack.pop()
            stack[-1] = _call(stack[-1], args)
        elif name == "BINPERSID":
            stack[-1] = _storage(stack[-1], storages)
        elif name == "GLOBAL":
            stack.append(_stand_in(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute = stack.pop()
            stack[-1] = _stand_in(stack[-1], attribute)
        elif name == "INST":
            items = since_mark()
            stack.append(_call(_stand_in(*arg.split(" ", 1)), tuple(items)))
        elif name == "OBJ":
            items = since_mark()
            stack.append(_call(items[0], tuple(items[1:])))
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], key, value)
        elif name == "SETITEMS" or name == "DICT":
            items = since_mark()
            if name == "DICT":
                stack.append({})
            for index in range(0, len(items) - 1, 2):
                _set(stack[-1], items[index], items[index + 1])
        elif name == "APPEND":
            item = stack.pop()
            _add(stack[-1], [item])
        elif name == "APPENDS":
            items = since_mark()
            _add(stack[-1], items)
        elif name == "LIST":
            items = since_mark()
            stack.append(items)
        elif name == "ADDITEMS":
            since_mark()
        elif name == "FROZENSET":
            since_mark()
            stack.append(INERT)
        elif name == "BUILD":
            stack.pop()  # an object's state: none of the stand-ins has one
        elif name == "POP":
            if stack:
                stack.pop()
            else:
                stack = marked.pop()
        elif name == "POP_MARK":
            since_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "STOP":
            return stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise Damaged(f"its pickle has the instruction {name}, which no weights file needs")
    raise Damaged("its pickle has no end")
