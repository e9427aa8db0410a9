"""Small files that are meant to cost time, memory or more: each ends in one sentence, soon."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import change, little_state, touch_weights, write_configuration
from safetensors.torch import save_file

from modelscope_i2v.adapters.files import read_lora
from modelscope_i2v.checkpoints.convert import convert
from modelscope_i2v.checkpoints.directory import ModelDirectory
from modelscope_i2v.checkpoints.inspect import inspect
from modelscope_i2v.checkpoints.load import load_module
from modelscope_i2v.checkpoints.tensors import read_tensors
from modelscope_i2v.errors import CheckpointError

pytestmark = pytest.mark.timeout(120)

T2V, I2V = "text-to-video-synthesis", "image-to-video"
ONCE, PAIR = b")", b"2\x86"  # an empty tuple; the top twice, in a tuple
DEEP = ONCE + b"\x85" * 150_000
DOUBLED = ONCE + PAIR * 60


def told(call: Callable[[], Any], match: str) -> str:
    """The one sentence that ``call`` fails with."""
    with pytest.raises(CheckpointError, match=match) as raised:
        call()
    text = str(raised.value)
    for bad in ("Error", "\n", "\x1b", "object at 0x", "Exception", "storage of size", "torch."):
        assert bad not in text.replace("torch.save", ""), text
    assert len(text) <= 3000
    return text


def pickled(path: Path, program: bytes, legacy: bool = False) -> Path:
    """A file of torch.save with this program for its pickle."""
    if legacy:
        magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
        path.write_bytes(magic + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + b"\x80\x02" + program)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + program)
            archive.writestr("a/data/0", b"\0" * 64)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(key: bytes, count: bytes = b"K\x10") -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + key + text("cpu") + count + b"tQ"


def tensor(size: bytes, stride: bytes, key: bytes = text("0")) -> bytes:
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key) + b"K\0" + size + stride + b"\x89}tR"


def long(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"}" + DEEP + b"Ns.", "no tensors|truncated"),
        (b"}" + DOUBLED + b"Ns.", "no tensors|truncated"),
        (b"}(" + DOUBLED + b"Nu.", "no tensors|truncated"),
        (b"(" + DOUBLED + b"Nd.", "no tensors|truncated"),
        (b"\x8f(" + DOUBLED + b"\x90.", "no tensors|truncated"),
        (b"(" + DOUBLED + b"\x91.", "no tensors|truncated"),
        (storage(DEEP) + b".", "truncated or damaged"),
        (storage(DOUBLED) + b".", "truncated or damaged"),
        (b"}" + text("w") + tensor(DEEP, ONCE) + b"s.", "truncated or damaged"),
        (b"}" + text("w") + tensor(DOUBLED, DOUBLED) + b"s.", "truncated or damaged"),
        (b"}r\0\0\0\x10.", "no tensors|truncated"),  # memo 2**28
        (b"N" * 3_000_000 + b".", "more than 2,000,000 instructions"),
        # one long list, gone through again and again
        (
            b"ccollections\nOrderedDict\nq\0](" + PAIR_ITEMS + b"eq\1" + b"h\0h\1\x85R0" * 100_000 + b"."
            if (PAIR_ITEMS := b"\x8c\1a\x8c\1b\x86" * 100_000)
            else b"",
            "no tensors|truncated",
        ),
        (b"ccollections\nOrderedDict\n" + long(1 << 64) + b"\x85R.", "no tensors|truncated"),
        (b"\x82\1.", "instruction EXT1, which no weights file needs"),
        (b"}" + b"\x8b\xff\xff\xff\x7f" + b"Ns.", "damaged"),
        (b"C\xff.", "damaged"),
        (b"\x8e" + b"\xff" * 7 + b"\x7f.", "damaged|longer"),
        (b"0.", "damaged"),
        (b"K\1K\2b.", "no tensors|truncated"),
    ],
)
def test_programs_that_never_end(tmp_path: Path, program: bytes, words: str, legacy: bool) -> None:
    path = pickled(tmp_path / "unet.pth", program, legacy)
    told(lambda: read_tensors(path), words)


def test_the_programs_here_are_well_made(tmp_path: Path) -> None:
    path = pickled(tmp_path / "a.pth", b"}" + text("w") + tensor(b"K\4K\4\x86", b"K\4K\1\x86") + b"s.")
    assert read_tensors(path).tensors["w"].shape == (4, 4)


@pytest.mark.parametrize(
    ("size", "stride", "words"),
    [
        (long(1 << 34) + b"\x85", b"K\0\x85", "would have 68,719,476,736 bytes"),
        (long(1 << 62) + b"\x85", b"K\0\x85", "no number that a file can have"),
        (b"K\x11\x85", b"K\1\x85", "reaches beyond its numbers"),
        (b"J\xff\xff\xff\xff\x85", b"K\1\x85", "no number that a file can have"),
        (b"K\4\x85", b"J\xff\xff\xff\xff\x85", "no number that a file can have"),
        (b"K\4K\4\x86", b"K\4\x85", "differ in length"),
        (b"(" + b"K\1" * 65 + b"t", b"(" + b"K\1" * 65 + b"t", "no list of numbers"),
        (long(1 << 40) + b"K\0\x86", b"K\1K\1\x86", "an empty tensor"),
        (b"\x88\x85", b"K\1\x85", "no number that a file can have"),
    ],
)
def test_sizes_that_no_file_has(tmp_path: Path, size: bytes, stride: bytes, words: str) -> None:
    path = pickled(tmp_path / "a.bin", b"}" + text("w") + tensor(size, stride) + b"s.")
    told(lambda: read_tensors(path), words)


def test_one_number_that_stands_for_gigabytes(tmp_path: Path) -> None:
    one = torch.ones(()).expand(1 << 17, 1 << 17)
    torch.save(
        {"input_blocks.0.0.weight": one, "input_blocks.1.0.temopral_conv.conv1.2.weight": one}, tmp_path / "a"
    )
    told(lambda: convert(tmp_path / "a", tmp_path / "b", to="safetensors"), "would have 68,719,476,736 bytes")
    assert os.listdir(tmp_path) == ["a"]
    torch.save({"to_q.lora_A.weight": one, "to_q.lora_B.weight": one}, tmp_path / "a")
    told(lambda: read_lora(tmp_path / "a"), "would have 68,719,476,736 bytes")


@pytest.mark.parametrize("name", ["byteorder", "data.pkl", "data/0"])
def test_compressed_records(tmp_path: Path, name: str) -> None:
    torch.save({"w": torch.zeros(100)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for record in old.namelist():
            kind = zipfile.ZIP_DEFLATED if record == f"a/{name}" else zipfile.ZIP_STORED
            content = b"little" + b" " * (1 << 24) if record == "a/byteorder" else old.read(record)
            new.writestr(record, content, compress_type=kind)
    told(lambda: read_tensors(tmp_path / "b.pth"), "has been compressed")


def test_lists_longer_than_any(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\2" + b"B" + struct.pack("<I", 1 << 27) + bytes(1 << 27) + b".")
    told(lambda: read_tensors(tmp_path / "a.pth"), "its lists are longer than those of any weights")


def header(path: Path, content: Any, tail: int = 64) -> Path:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(tail))
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a":' + b"[" * 100_000, "damaged, or no weights file"),
        (b"{" + b" " * (1 << 25) + b"}", "its header has 33,554,434 bytes"),
        ({"w": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}, "has no size"),
        ({"w": {"dtype": "F32", "shape": [2**70, 0], "data_offsets": [0, 0]}}, "damaged"),
        ({"w": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "has no size"),
        ({"w": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, "cannot be bytes 0 to 4"),
        ({"w": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, "damaged"),
        ({"w": None}, "damaged"),
        ({"__metadata__": [1]}, "damaged"),
        (
            {"\x1b[31m" + "x" * 5000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
            "has 5,005 letters",
        ),
        ({"." * 100: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "name of a tensor"),
    ],
)
def test_headers_that_lie(tmp_path: Path, content: Any, words: str) -> None:
    path = header(tmp_path / "a.safetensors", content)
    told(lambda: read_tensors(path), words)


def test_many_tensors_of_the_same_bytes(tmp_path: Path) -> None:
    size = 1 << 20
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    path = header(tmp_path / "a.safetensors", {str(number): entry for number in range(100)}, size)
    told(lambda: read_tensors(path), "its tensors up to .* would have")


def test_keys_that_are_no_text_for_a_terminal(tmp_path: Path) -> None:
    save_file(
        {"\x1b]0;evil\x07\nfake: line": torch.ones(1), "time_embed.0.weight": torch.ones(1)}, tmp_path / "a"
    )
    write_configuration(tmp_path / "model", T2V)
    touch_weights(tmp_path / "model")
    for name in ("unet.pth", "clip.bin", "v2-1_512-ema-pruned.ckpt"):
        (tmp_path / "model" / name).write_bytes((tmp_path / "a").read_bytes())
    report = str(inspect(tmp_path / "model"))
    assert "?]0;evil? fake: line" in report and "\x1b" not in report and "\nfake" not in report


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.complex64])
def test_weights_that_are_no_floats(tmp_path: Path, kind: torch.dtype) -> None:
    state = {key: value.to(kind) if key == "first.weight" else value for key, value in little_state().items()}
    torch.save(state, tmp_path / "a.pth")
    from checkpoint_files import on_meta

    told(
        lambda: load_module(on_meta(), read_tensors(tmp_path / "a.pth")),
        "first.weight has numbers of the type",
    )


# What is no file, and files that are not where they should be.


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_configuration(model, T2V)
    touch_weights(model)
    (model / "unet.pth").unlink()
    os.mkfifo(model / "unet.pth")
    os.mkfifo(tmp_path / "adapter_model.safetensors")
    told(lambda: inspect(model), r"unet\.pth is a named pipe")
    told(lambda: read_lora(tmp_path), "is a named pipe")
    told(lambda: convert(model / "unet.pth", tmp_path / "x", to="hub"), "is a named pipe")
    (model / "configuration.json").unlink()
    os.mkfifo(model / "configuration.json")
    told(lambda: ModelDirectory.open(model), r"configuration\.json is a named pipe")
    (model / "configuration.json").unlink()
    os.mkfifo(model / "model_index.json")
    told(lambda: ModelDirectory.open(model), r"model_index\.json is a named pipe")
    told(lambda: read_tensors("/dev/zero"), "is a device")
    told(lambda: inspect("/dev/zero"), "is a device")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux")
@pytest.mark.parametrize("path", ["/proc/self/mem", "/proc/self/environ"])
def test_files_of_the_system(path: str) -> None:
    told(lambda: read_tensors(path), "is empty|cannot be read|cannot be mapped|is text")


@pytest.mark.parametrize("name", ["/", ".", "..", "../x.pth", "/etc/passwd", "a/../../x.pth", "a\0b"])
@pytest.mark.parametrize("key", ["ckpt_unet", "ckpt_clip", "ckpt_autoencoder"])
def test_files_outside_of_the_directory(tmp_path: Path, name: str, key: str) -> None:
    model = tmp_path / "model"
    by_keys = {"pipeline": ..., "model__type": ...} if key == "ckpt_unet" else {}
    write_configuration(model, I2V, **by_keys, **{f"model__model_args__{key}": name})
    touch_weights(model)
    (tmp_path / "x.pth").write_text("a secret")
    words = rf"model_args\.{key} is .* and should be the name of a file in that directory"
    assert "secret" not in told(lambda: ModelDirectory.open(model), words)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300, "y\n\x1b[31m.pth", "sub/none.pth"])
def test_names_of_files_that_are_none(tmp_path: Path, name: str) -> None:
    write_configuration(tmp_path, T2V, model__model_args__ckpt_clip=name)
    touch_weights(tmp_path)
    told(lambda: ModelDirectory.open(tmp_path), "There is no file .*, which model.model_args.ckpt_clip names")
    told(lambda: ModelDirectory.open(tmp_path / name), "There is no directory")
    told(lambda: inspect(tmp_path / name), "There is no directory")
    told(lambda: read_tensors(tmp_path / name), "There is no file|cannot be read")
    told(lambda: read_lora(tmp_path / name), "There is no LoRA")


def test_files_outside_that_the_user_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, shared = tmp_path / "model", tmp_path / "shared"
    write_configuration(model, T2V, model__model_args__ckpt_clip="../shared/clip.bin")
    touch_weights(model)
    shared.mkdir()
    (model / "clip.bin").rename(shared / "clip.bin")
    told(lambda: ModelDirectory.open(model), "environment variable MODELSCOPE_I2V_SHARED")
    monkeypatch.setenv("MODELSCOPE_I2V_SHARED", os.pathsep.join([str(tmp_path / "other"), str(shared)]))
    assert ModelDirectory.open(model).clip_path.samefile(shared / "clip.bin")
    monkeypatch.delenv("MODELSCOPE_I2V_SHARED")
    write_configuration(model, T2V)
    (model / "clip.bin").symlink_to(shared / "clip.bin")  # as hubs' caches have it
    assert ModelDirectory.open(model).clip_path.samefile(shared / "clip.bin")


# Configurations.

CFG = "model__model_cfg__"
SIZES: list[tuple[str, Any, str]] = [
    ("unet_res_blocks", 1_000_000, "from 1 up to 128"),
    ("unet_dim_mult", [1] * 4000, "at most 8 whole numbers"),
    ("unet_dim_mult", [1, 1 << 12], "no level has more than 65,536 channels"),
    ("unet_dim", 2**62, "from 1 up to 65,536"),
    ("unet_num_heads", 1 << 14, "have no more than 65,536 channels"),
    ("unet_attn_scales", [1.0] * 4000, "at most 8 numbers"),
    ("unet_attn_scales", [10**400], "a list of numbers"),
    ("unet_dropout", 5, "a number from 0 up to 1"),
    ("ddconfig__num_res_blocks", 10**6, "from 1 up to 128"),
    ("ddconfig__ch_mult", [1, 1, 1, 1, 1], "at most four numbers: heights and widths are multiples of 8"),
    ("ddconfig__ch", 1 << 17, "from 1 up to 65,536"),
    ("clip__text_cfg__layers", 10**7, "from 1 up to 128"),
    ("clip__vision_cfg__layers", [3, 4, 6, 3], "a whole number"),
    ("clip__vision_cfg__patch_size", 0, "a whole number from 1 up"),
    ("clip__vision_cfg__mlp_ratio", 1e308, "a number from 0 up to 64"),
    ("clip__vision_cfg__mlp_ratio", 0, "a number above 0"),
    ("clip__text_cfg__hf_model_name", "evil/model", "absent"),
    ("clip__text_cfg__hf_tokenizer_name", "evil/model", "absent"),
    ("clip__vision_cfg__timm_model_name", "local-dir:/tmp/x", "absent"),
    ("clip__multimodal_cfg", {}, "absent"),
    ("clip", "hf-hub:evil/model", "the name of an open_clip architecture"),
    ("clip", "local-dir:/tmp/evil", "the name of an open_clip architecture"),
    ("clip", "x" * 5000, "the name of an open_clip architecture"),
]


@pytest.mark.parametrize(("key", "value", "right"), SIZES)
def test_sizes_of_a_configuration_have_bounds(tmp_path: Path, key: str, value: Any, right: str) -> None:
    write_configuration(tmp_path, I2V, **{CFG + key: value})
    touch_weights(tmp_path)
    words = told(lambda: ModelDirectory.open(tmp_path), right)
    where = key.replace("__", ".").rsplit(".", 1)
    assert f"configuration.json: model.model_cfg.{where[0]}" in words and where[-1] in words


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("clip__text_cfg__heads", 3, "text_cfg.heads is 3 and should divide its width, 16"),
        ("clip__vision_cfg__head_width", 7, "vision_cfg.head_width is 7 and should divide its width, 32"),
        ("clip__vision_cfg__patch_size", 33, "patch_size is larger than its image_size, 32"),
        ("clip__text_cfg__context_length", 10, "context_length is 10 and should be 77"),
        ("clip__text_cfg__vocab_size", 100, "vocab_size is 100 and should be 49408 at least"),
        ("clip__text_cfg__layers", 1, "layers is 1 and should be 2 at least"),
        ("width", 63, "its width=63 does not work: it must be a multiple of 8 such as 56 or 64"),
        ("latent_hei", 3, "its height=6 does not work"),
        ("max_frames", 20_000, "its num_frames=20000 does not work"),
        ("guidance_scale", 1e9, "its guidance_scale=1000000000.0 does not work"),
    ],
)
def test_sizes_that_do_not_go_together(tmp_path: Path, key: str, value: Any, words: str) -> None:
    write_configuration(tmp_path, I2V, **{CFG + key: value})
    touch_weights(tmp_path)
    assert "configuration.json" in told(lambda: ModelDirectory.open(tmp_path), words)


@pytest.mark.parametrize(
    "name", ["xlm-roberta-base-ViT-B-32", "ViT-B-16-SigLIP", "RN50", "ViT-H-14-quickgelu"]
)
def test_architectures_with_other_than_plain_towers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    from modelscope_i2v.encoders.clip import build
    from modelscope_i2v.spec.network import CLIPConfig

    def never(*args: Any) -> None:
        raise AssertionError("open_clip was given it")

    monkeypatch.setattr(open_clip, "CLIP", never)
    told(lambda: build(CLIPConfig(name)), "is no plain pair of towers")
    for bad in ("hf-hub:evil/model", "local-dir:/tmp/evil"):
        told(lambda bad=bad: build(CLIPConfig(bad)), "does not know the architecture")
    tower = {"text_cfg": {"hf_model_name": "evil/model"}, "vision_cfg": {}, "embed_dim": 8}
    told(lambda: build(CLIPConfig(custom=tower)), "text_cfg.hf_model_name cannot be used here")


def test_what_a_tower_leaves_out_is_open_clips(tmp_path: Path) -> None:
    write_configuration(tmp_path, T2V, **{CFG + "clip__text_cfg": {"layers": 3}})
    touch_weights(tmp_path)
    text_cfg = ModelDirectory.open(tmp_path).clip.custom["text_cfg"]
    assert text_cfg == {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 3}


def test_json_nested_deep(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    deep = '{"model": ' + "[" * 200_000
    (tmp_path / "configuration.json").write_text(deep)
    told(lambda: ModelDirectory.open(tmp_path), "nested too deep")
    (tmp_path / "configuration.json").write_text('{"task": ' + "[" * 500 + "]" * 500 + "}")
    told(lambda: ModelDirectory.open(tmp_path), "task is .* and should be a text")
    (tmp_path / "configuration.json").unlink()
    (tmp_path / "model_index.json").write_text(deep)
    told(lambda: ModelDirectory.open(tmp_path), "nested too deep")
    save_file({"to_q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(deep)
    told(lambda: read_lora(tmp_path), "nested too deep")
    save_file(
        {"to_q.lora_A.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors", {"lora_adapter_metadata": deep}
    )
    told(lambda: read_lora(tmp_path / "x.safetensors"), "nested too deep")


@pytest.mark.parametrize("value", [[["a"]], {"a": ["b"]}, {"a": {}}, {"a": "../b"}, {"a": ".."}, {}])
def test_an_index_of_shards_that_is_none(tmp_path: Path, folder: Callable[[str], Path], value: Any) -> None:
    import shutil

    path = Path(shutil.copytree(folder(T2V), tmp_path / "folder"))
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": value}))
    told(lambda: ModelDirectory.open(path).read("unet"), "weight_map is .* and should be|shard .* is missing")


@pytest.mark.parametrize(
    ("component", "key", "value", "words"),
    [
        ("unet", "layers_per_block", 10**6, "from 1 up to 128"),
        ("unet", "block_out_channels", [32] * 9, "at most 8"),
        ("vae", "block_out_channels", [32] * 5, "at most four"),
        ("text_encoder", "num_hidden_layers", 10**7, "from 1 up to 128"),
        ("text_encoder", "num_attention_heads", 7, "text_cfg.heads is 7 and should divide"),
        ("unet", "sample_size", 10**5, r"unet/config\.json: its height=.* does not work"),
    ],
)
def test_sizes_of_diffusers_have_bounds(
    tmp_path: Path, folder: Callable[[str], Path], component: str, key: str, value: Any, words: str
) -> None:
    import shutil

    ignored = shutil.ignore_patterns("*.safetensors")
    path = Path(shutil.copytree(folder(T2V), tmp_path / "folder", ignore=ignored))
    change(path / component / "config.json", **{key: value})
    told(lambda: ModelDirectory.open(path), words)


def test_an_autoencoder_of_another_factor_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import checkpoints_factory
    from PIL import Image

    from modelscope_i2v.engine.generator import VideoGenerator

    small = {"ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1}
    monkeypatch.setattr(checkpoints_factory, "SMALL_DDCONFIG", small)
    generator = VideoGenerator.from_directory(checkpoints_factory.make_checkpoint(tmp_path / "model", I2V))
    size = {"num_frames": 2, "height": 24, "width": 40}
    video = generator([Image.new("RGB", (40, 24))], output_type="np", num_inference_steps=1, **size)[0]
    assert video.shape == (2, 24, 40, 3)
