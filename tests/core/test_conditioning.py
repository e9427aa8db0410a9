"""CLIP's towers against the formula, whichever way round the installed open_clip has its tokens."""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from modelscope_i2v.encoders.clip import ImageEncoder, TextEncoder, build
from modelscope_i2v.encoders.prompts import CONTEXT_LENGTH
from modelscope_i2v.errors import CheckpointError
from modelscope_i2v.spec.network import CLIPConfig

CONFIG = CLIPConfig(
    custom={
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3},
    }
)
TEXTS = ["", "a boat on the sea", "a boat " * 60]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    whole = build(CONFIG).eval()
    for parameter in whole.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    return whole


def attention(state, prefix, x, heads, mask):
    """Multi-head self-attention from its weights: x [b, n, d]."""
    qkv = F.linear(x, state[prefix + "in_proj_weight"], state[prefix + "in_proj_bias"])
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask).softmax(dim=-1)
    out = (weights @ v).transpose(1, 2).flatten(2)
    return F.linear(out, state[prefix + "out_proj.weight"], state[prefix + "out_proj.bias"])


def norm(state, prefix, x):
    return F.layer_norm(x, x.shape[-1:], state[prefix + "weight"], state[prefix + "bias"])


def states(state, tokens, layers, heads):
    """The first ``layers`` layers of the text tower, then the final norm."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    mask = torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), float("-inf")).triu(1)
    for index in range(layers):
        block = f"transformer.resblocks.{index}."
        x = x + attention(state, block + "attn.", norm(state, block + "ln_1.", x), heads, mask)
        h = F.linear(
            norm(state, block + "ln_2.", x), state[block + "mlp.c_fc.weight"], state[block + "mlp.c_fc.bias"]
        )
        x = x + F.linear(F.gelu(h), state[block + "mlp.c_proj.weight"], state[block + "mlp.c_proj.bias"])
    return norm(state, "ln_final.", x)


def test_text_states_are_the_last_layer_but_one_with_the_final_norm(clip):
    encoder = TextEncoder(CONFIG).eval()
    encoder.load_state_dict({k: v for k, v in clip.state_dict().items() if k not in encoder.unused})
    with torch.no_grad():
        found = encoder.encode(TEXTS)
        wanted = states(clip.state_dict(), open_clip.tokenize(TEXTS), layers=2, heads=2)
    assert found.shape == (3, CONTEXT_LENGTH, 32)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_image_embeddings_are_open_clips_and_not_normalised(clip):
    encoder = ImageEncoder(CONFIG).eval()
    encoder.load_state_dict({k: v for k, v in clip.state_dict().items() if k not in encoder.unused})
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = encoder.encode(pixels)
        wanted = clip.encode_image(pixels)
    assert found.shape == (2, 1, 24) and torch.allclose(found[:, 0], wanted, atol=1e-5)
    assert not torch.allclose(found.norm(dim=-1), torch.ones(2, 1), atol=1e-2)


def test_both_towers_together_use_the_whole_file(clip):
    text, image = TextEncoder(CONFIG), ImageEncoder(CONFIG)
    used = set(text.state_dict()) | set(image.state_dict())
    left = set(clip.state_dict()) - used
    assert all("resblocks.2." in key or key in ("text_projection", "logit_scale") for key in left)


@pytest.mark.parametrize(
    "config", [CLIPConfig(architecture="ViT-nowhere"), CLIPConfig(custom={"embed_dim": 8, "vision_cfg": {}})]
)
def test_unknown_architectures_are_told(config):
    with pytest.raises(CheckpointError, match="clip"):
        build(config)
