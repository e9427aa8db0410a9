"""Weights files of every layout are read, and of nothing else."""

from __future__ import annotations

import builtins
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_files import little_state, numbers, save_lightning

from modelscope_i2v.checkpoints.tensors import read_tensors, select
from modelscope_i2v.errors import CheckpointError


def same(read: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> bool:
    return read.keys() == state.keys() and all(
        read[key].dtype == state[key].dtype and torch.equal(read[key], state[key]) for key in state
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("nest", [None, "state_dict", "model", "module"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_reads_what_torch_saved(tmp_path: Path, dtype: Any, nest: Any, legacy: bool, protocol: int) -> None:
    state = little_state(dtype=dtype)
    path = tmp_path / "unet.pth"
    content = state if nest is None else {nest: state, "step": 789000}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    file = read_tensors(path)
    assert same(file.tensors, state)
    assert file.step == (None if nest is None else 789000)
    assert file.format == ("torch (before 1.6)" if legacy else "torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_reads_safetensors(tmp_path: Path, dtype: Any) -> None:
    state = {**little_state(dtype=dtype), "empty": torch.zeros(0, 3), "flags": torch.tensor([True, False])}
    path = tmp_path / "unet.pth"  # the suffix lies; the content counts
    safetensors.torch.save_file(state, path, metadata={"step": "12"})
    file = read_tensors(str(path))
    assert same(file.tensors, state)
    assert (file.step, file.format) == (12, "safetensors")


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_views_parameters_and_shared_storages(tmp_path: Path, legacy: bool) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = {
        "transposed": whole.T,
        "row": whole[2],
        "same": whole,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "nothing": torch.empty(0, 5),
        "scalar": torch.tensor(2.5),
        "note": "not a tensor",
    }
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    tensors = read_tensors(tmp_path / "a.pt").tensors
    del state["note"]
    assert same(tensors, {key: tensor.detach() for key, tensor in state.items()})
    assert tensors["row"].untyped_storage().data_ptr() == tensors["same"].untyped_storage().data_ptr()


def test_reads_types_without_a_storage_class(tmp_path: Path) -> None:
    state = {"scale": torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn)}
    torch.save(state, tmp_path / "a.pt")
    read = read_tensors(tmp_path / "a.pt").tensors["scale"]
    assert read.dtype == torch.float8_e4m3fn and read.float().tolist() == [1.5, -2.0]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
def test_reads_a_lightning_checkpoint_without_lightning(tmp_path: Path, legacy: bool, protocol: int) -> None:
    state = numbers({"first_stage_model.decoder.conv_in.weight": (4, 3), "model.a": (2,)})
    path = tmp_path / "v2-1_512-ema-pruned.ckpt"
    save_lightning(path, state, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    assert b"pytorch_lightning" in content and b"numpy.core.multiarray" in content
    assert protocol > 2 or b"_codecs" in content
    assert not [name for name in sys.modules if name.startswith("pytorch_lightning")]

    file = read_tensors(path)
    assert same(file.tensors, state) and file.step == 875000
    assert not [name for name in sys.modules if name.startswith("pytorch_lightning")]


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    body = torch.tensor([1.0, -3.0]).numpy().tobytes()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + body)
    assert (8 + len(header)) % 4
    assert read_tensors(tmp_path / "a.safetensors").tensors["w"].tolist() == [1.0, -3.0]


def test_mapped_tensors_are_neither_copied_nor_written_back(tmp_path: Path) -> None:
    path = tmp_path / "big.pth"
    with path.open("wb") as file:
        torch.save({"w": torch.full((1 << 26,), 0.5, dtype=torch.float16), "v": torch.ones(3)}, file)
    before = path.read_bytes()[-2000:]
    code = (
        "import re, sys, torch; from modelscope_i2v.checkpoints.tensors import read_tensors\n"
        "def status(): return open('/proc/self/status').read()\n"
        "def resident(): return int(re.search(r'VmRSS:\\s+(\\d+)', status())[1]) / 1024\n"
        "start = resident(); file = read_tensors(sys.argv[1]); w = file.tensors['w']\n"
        "read = resident() - start; total = w.sum(dtype=torch.float32).item(); touched = resident() - start\n"
        "file.release(w); print(read, touched, resident() - start, total, w[1000].item())\n"
        "w.fill_(2.0); file.tensors['v'].fill_(3.0)\n"
    )
    if not Path("/proc/self/status").exists():  # elsewhere the writing is still checked
        code = code.replace("open('/proc/self/status').read()", "'VmRSS: 0'")
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    read, touched, released, total, value = map(float, run.stdout.split())
    assert (total, value) == (1 << 25, 0.5)
    if touched:
        assert read < 16 and touched > 100 and released < 32
    assert path.read_bytes()[-2000:] == before
    assert read_tensors(path).tensors["w"][-1] == 0.5


# Hostile files. Each payload would leave a file behind.


class Payload:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def payloads(marker: Path) -> dict[str, Any]:
    create = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Payload(os.system, f"echo > {marker}"),
        "eval": Payload(builtins.eval, create),
        "exec": Payload(builtins.exec, create),
        "open": Payload(builtins.open, str(marker), "w"),
        "Popen": Payload(subprocess.Popen, ["touch", str(marker)]),
        "getattr": Payload(builtins.getattr, "text", "format"),
        "torch.load": Payload(torch.load, str(marker)),
        "torch.save": Payload(torch.save, {}, str(marker)),
        "mkdir": Payload(os.mkdir, str(marker)),
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("where", ["top", "beside", "inside"])
@pytest.mark.parametrize("name", payloads(Path()))
def test_a_hostile_file_is_refused_and_not_run(
    tmp_path: Path, name: str, where: str, protocol: int, legacy: bool
) -> None:
    marker = tmp_path / "ran"
    payload = payloads(marker)[name]
    state = {"w": torch.ones(2)}
    content = {
        "top": payload,
        "beside": {"state_dict": state, "callbacks": [payload]},
        "inside": {"state_dict": {**state, "evil": payload}},
    }[where]
    path = tmp_path / "unet.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"unet\.pth names .*none of it was run"):
        read_tensors(path)
    assert not marker.exists()


def raw_zip(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3")


NAMES = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("builtins", "eval"),
    ("__builtin__", "eval"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("numpy.f2py", "compile"),
    ("numpy", "load"),
    ("numpy.testing._private.utils", "runstring"),
    ("pytorch_lightning.utilities.cloud_io", "load"),
    ("pytorch_lightning.os", "system"),
    ("pytorch_lightning", "os.System"),
    ("lightningx", "Class"),
    ("torch", "load"),
    ("torch", "serialization.load"),
    ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ("collections", "OrderedDict.__init__"),
    ("functools", "partial"),
    ("importlib", "import_module"),
    ("hostile_module", "Anything"),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
@pytest.mark.parametrize("form", ["GLOBAL", "STACK_GLOBAL", "INST"])
def test_no_instruction_reaches_a_name_outside_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, form: str
) -> None:
    marker = tmp_path / "imported"
    (tmp_path / "hostile_module.py").write_text(f"open({str(marker)!r}, 'w')\nclass Anything: pass\n")
    monkeypatch.syspath_prepend(tmp_path)

    def text(value: str) -> bytes:
        return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()

    argument = text(f"touch {marker}")
    call = {
        "GLOBAL": b"\x80\x02" + f"c{module}\n{name}\n".encode() + argument + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04" + text(module) + text(name) + b"\x93" + argument + b"\x85R.",
        "INST": b"\x80\x02(" + argument + f"i{module}\n{name}\n".encode() + b".",
    }[form]
    raw_zip(tmp_path / "zip.pth", call)
    (tmp_path / "bare.pth").write_bytes(call)
    for path in (tmp_path / "zip.pth", tmp_path / "bare.pth"):
        with pytest.raises(CheckpointError, match=f"names {module}.{name}"):
            read_tensors(path)
    assert not marker.exists()


def test_protocol_0_is_no_way_around(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "a.bin").write_bytes(f"cposix\nsystem\n(Vtouch {marker}\ntR.".encode())
    with pytest.raises(CheckpointError, match="posix.system"):
        read_tensors(tmp_path / "a.bin")
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    ["collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage", "torch\nSize"],
)
def test_a_pickle_cannot_change_the_stand_ins(tmp_path: Path, name: str) -> None:
    """BUILD with a slot state sets attributes of whatever stands on the stack, classes too."""
    state = pickle.dumps((None, {"__new__": 1, "__setstate__": 2, "itemsize": 3}), protocol=2)[2:-1]
    raw_zip(tmp_path / "evil.pth", b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "evil.pth")
    torch.save(little_state(), tmp_path / "good.pth")
    assert same(read_tensors(tmp_path / "good.pth").tensors, little_state())


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(64.0)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert content["a/data.pkl"].count(b"K@\x85") == 1  # the size, (64,)
    content["a/data.pkl"] = content["a/data.pkl"].replace(b"K@\x85", b"K\xff\x85")
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(CheckpointError, match=r"b\.pth is truncated or damaged \(a tensor reaches beyond"):
        read_tensors(tmp_path / "b.pth")


# Files that are no weights, or no longer.


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("part", [0.999, 0.7, 0.5, 0.1])
def test_a_truncated_file_is_told(tmp_path: Path, kind: str, part: float) -> None:
    state = numbers({f"layer.{index}.weight": (50, 10) for index in range(10)})
    path = tmp_path / "cut.bin"
    if kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=r"cut\.bin is (truncated or )?damaged.*ownload it again"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5679802941\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"<html>\x80", "web page"),
        (
            b'{"Code": "NoSuchKey", "Message": "not there"}',
            "is text, not weights, perhaps what a server answered",
        ),
        ("Zugriff verweigert: prüfen Sie die Adresse. ".encode() * 30, "is text"),
        (b"\x00" * 4096, "no weights file that is known"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 600, "no weights file that is known"),
        (b"\x80\x02}q\x00.", "none that torch.save wrote"),
        (b"\x80", "damaged.*truncated"),
        (b"PK\x03\x04 and then nothing", "truncated or damaged"),
        (b"click here", "damaged, or no weights"),
        (b"\x10\0\0\0\0\0\0\0{not json at all}", "damaged, or no weights"),
        (b"a" * 257 + b"ustar" + b"\0" * 300, "tar archive"),
    ],
)
def test_what_is_no_weights_file_is_called_by_its_name(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"(?s)weights\.pth.*{told}") as raised:
        read_tensors(path)
    text = str(raised.value)
    assert "\n" not in text and "Error" not in text and "NoSuchKey" not in text  # nothing of the content


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no file .*unet\.pth"):
        read_tensors(tmp_path / "unet.pth")
    with pytest.raises(CheckpointError, match="is a directory"):
        read_tensors(tmp_path)


def test_other_zip_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("unet.pth", b"x")
    with pytest.raises(CheckpointError, match="zip archive, but none that torch.save wrote"):
        read_tensors(path)

    torch.save({"w": torch.zeros(1000)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="has been compressed"):
        read_tensors(path)

    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if "/data/" not in name:
                new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match="truncated or damaged.*no record 0"):
        read_tensors(path)


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, [1, 2], {"a": 1}, torch.ones(3)])
def test_a_file_without_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "header",
    [
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,12]}}',
        b'{"w":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}',
        b'{"w":{"dtype":"F32","shape":[-2],"data_offsets":[8,0]}}',
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[-8,0]}}',
        b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        b'{"w":{"shape":[2]}}',
        b'{"w":[]}',
    ],
)
def test_a_safetensors_header_is_not_believed(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"a\.safetensors is .*damaged"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "model.",
        "module.model.",
        "model.diffusion_model.",
        "_orig_mod.",
        "cond_stage_model.model.",
    ],
)
def test_prefixes_are_taken_off(prefix: str) -> None:
    state = little_state()
    wrapped = {prefix + key: tensor for key, tensor in state.items()}
    assert same(select(wrapped, state), state)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "module.first_stage_model."])
def test_one_network_is_taken_out_of_many(prefix: str) -> None:
    state = little_state()
    others = {"model.diffusion_model.first.weight": torch.zeros(1), "cond_stage_model.x": torch.zeros(1)}
    wrapped = {prefix + key: tensor for key, tensor in state.items()}
    selected = select({**others, **wrapped}, state)
    assert {key: selected[key] for key in state}.keys() == state.keys()
    assert same({key: selected[key] for key in state}, state)
    assert bool(selected.keys() - state.keys()) == (prefix == "")


def test_without_any_known_key_nothing_is_taken_off() -> None:
    tensors = {"model.a": torch.zeros(1)}
    assert select(tensors, ["b"]).keys() == {"model.a"}
