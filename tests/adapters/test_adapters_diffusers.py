"""LoRAs that were trained on diffusers' U-Nets and saved by diffusers, in the layouts of its versions."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from checkpoints_factory import configs, random_state
from diffusers import I2VGenXLUNet, UNet3DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.peft import PeftAdapterMixin
from oracle.compare import relative_rms
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from small_unet import predicted
from torch import Tensor, nn

from modelscope_i2v.adapters.load import load_lora, loras, unload_lora
from modelscope_i2v.checkpoints.key_maps import Layout, unet_names
from modelscope_i2v.errors import CheckpointError
from modelscope_i2v.networks.local_image import over_time
from modelscope_i2v.networks.stunet import STUNet

XL, T2V = "i2vgen-xl", "text-to-video-synthesis"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERY_KIND = [
    *ATTENTION,
    "proj_in",
    "proj_out",
    "conv_in",
    "resnets.0.conv1",
    "conv1.2",
    "conv",
    "time_emb_proj",
]
EVERY_KIND += ["ff.net.0.proj", "ff.net.2", "linear_1", "conv_out"]
LIMIT = 1e-5
CHANGE = 0.05
"""A LoRA without effect would prove nothing."""


@functools.cache
def ours(name: str) -> STUNet:
    # diffusers' first transformer has eight heads, whatever it is told.
    sizes = {"dim": 32, "dim_mult": (1, 2), "attn_scales": (1, 0.5), "num_heads": 8}
    network = STUNet(dataclasses.replace(configs(name).unet, **sizes))
    network.load_state_dict(random_state(network))
    return network.eval().requires_grad_(False)


@functools.cache
def theirs(network: STUNet) -> nn.Module:
    """diffusers' network with the same weights."""
    config = network.config
    made = (I2VGenXLUNet if config.local_image else UNet3DConditionModel)(
        down_block_types=("CrossAttnDownBlock3D",) * 2,
        up_block_types=("CrossAttnUpBlock3D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.head_dim,
    )
    state = network.state_dict()
    shapes = {key: tensor.shape for key, tensor in state.items()}
    layout = Layout("unet", unet_names(config), shapes, doubled=config.local_image)
    weights: dict[str, Tensor] = {}
    for key, tensor in state.items():
        weights |= layout.to_theirs(key, tensor)
    made.load_state_dict(weights)
    return made.eval()


def both(our: STUNet, their: nn.Module) -> tuple[Tensor, Tensor]:
    """What the two make of the same input of 2 frames."""
    generator = torch.Generator().manual_seed(0)
    latents, text, image, picture = (
        torch.randn(shape, generator=generator)
        for shape in ((1, 4, 2, 8, 8), (1, 7, 64), (1, 1, 64), (1, 4, 8, 8))
    )
    times, fps = torch.tensor([400]), torch.tensor([8])
    if not our.config.local_image:
        return predicted(our, latents, times, text=text), their(
            latents, times, encoder_hidden_states=text
        ).sample
    expected = their(
        latents,
        times,
        fps=fps,
        image_latents=over_time(picture, 2),
        image_embeddings=image,
        encoder_hidden_states=text,
    ).sample
    given = {"text": text, "image_embeds": image, "fps": fps, "image_latents": picture}
    return predicted(our, latents, times, **given), expected


@pytest.fixture
def pair(learned: Callable[[nn.Module], nn.Module]) -> Callable[..., tuple[STUNet, nn.Module]]:
    """Our network, and diffusers' with a LoRA in it beside the same weights."""

    def of(name: str, targets: list[str], alpha: float = 8) -> tuple[STUNet, nn.Module]:
        torch.manual_seed(0)
        our, their = copy.deepcopy(ours(name)), copy.deepcopy(theirs(ours(name)))
        patterns = {"attn2.to_k": 3} if "to_k" in targets else {}
        config = LoraConfig(r=4, lora_alpha=alpha, target_modules=targets, alpha_pattern=patterns)
        return our, learned(inject_adapter_in_model(config, their)).eval()

    return of


def check(our: STUNet, their: nn.Module, path: Path) -> None:
    """Loads a LoRA and compares."""
    before, expected = both(our, their)
    assert relative_rms(before, expected) > CHANGE
    load_lora(our, path)
    assert relative_rms(both(our, their)[0], expected) < LIMIT
    unload_lora(our)
    assert torch.equal(both(our, their)[0], before)


@pytest.mark.parametrize("name", [XL, T2V])
@pytest.mark.parametrize("targets", [ATTENTION, EVERY_KIND], ids=["attention", "every"])
def test_a_pipelines_lora(pair, tmp_path, name, targets):
    our, their = pair(name, targets)
    config = {
        key: value for key, value in their.peft_config["default"].to_dict().items() if value is not None
    }
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        tmp_path / "style",
        unet_lora_layers=get_peft_model_state_dict(their),
        unet_lora_adapter_metadata=config | {"target_modules": sorted(config["target_modules"])},
    )
    check(our, their, tmp_path / "style")
    assert load_lora(our, tmp_path / "style" / "pytorch_lora_weights.safetensors") == "style"


def test_a_networks_adapter(pair, tmp_path):
    our, their = pair(T2V, EVERY_KIND)
    PeftAdapterMixin.save_lora_adapter(their, tmp_path)
    check(our, their, tmp_path / "pytorch_lora_weights.safetensors")


def _renamed(state: Mapping[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state.items():
        for old, new in pairs:
            key = key.replace(old, new)
        renamed[key] = tensor
    return renamed


def _before_peft(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return _renamed(state, ("lora_A", "lora.down"), ("lora_B", "lora.up"))


def _with_processors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [(f".to_{kind}.lora", f".processor.to_{kind}_lora") for kind in "qkv"]
    return _renamed(_before_peft(state), *names, (".to_out.0.lora", ".processor.to_out_lora"))


@pytest.mark.parametrize(
    ("name", "layout", "prefix"), [(XL, _before_peft, "unet."), (T2V, _with_processors, "")]
)
def test_older_layouts_have_a_factor_of_one(pair, tmp_path, name, layout, prefix):
    our, their = pair(name, ["attn1.to_q", "attn2.to_v", "to_out.0"], alpha=4)
    state = layout(get_peft_model_state_dict(their))
    torch.save({prefix + key: tensor for key, tensor in state.items()}, tmp_path / "old.bin")
    check(our, their, tmp_path / "old.bin")


def test_kohyas_names_and_alphas(pair, tmp_path):
    our, their = pair(XL, EVERY_KIND)
    state = {}
    for key, tensor in get_peft_model_state_dict(their).items():
        layer, _, rest = key.partition(".lora_")
        layer = "lora_unet_" + layer.replace(".", "_")
        state[f"{layer}.lora_{'down' if rest[0] == 'A' else 'up'}.weight"] = tensor.half()
        state[f"{layer}.alpha"] = torch.tensor(3.0 if layer.endswith("attn2_to_k") else 8.0)
    save_file(state, tmp_path / "kohya.safetensors")
    before, expected = both(our, their)
    load_lora(our, tmp_path / "kohya.safetensors")
    assert relative_rms(both(our, their)[0], expected) < 1e-3 < relative_rms(before, expected)


def test_a_lora_of_stable_diffusion_is_told_apart(pair, tmp_path):
    our, their = pair(T2V, ["attn2.to_k"])
    state = {f"unet.{key}": value for key, value in get_peft_model_state_dict(their).items()}
    state = {
        key: torch.zeros(4, 768) if "lora_A" in key and "temp" not in key else value
        for key, value in state.items()
    }
    state["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 768)
    state["text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight"] = torch.zeros(768, 4)
    save_file(state, tmp_path / "sd.safetensors")
    message = (
        r"it has no text_encoder\.text_model.*; and \d+ of its layers are of another size: .*\[32, 768\]"
    )
    with pytest.raises(CheckpointError, match=message):
        load_lora(our, tmp_path / "sd.safetensors")
    assert loras(our) == {}
