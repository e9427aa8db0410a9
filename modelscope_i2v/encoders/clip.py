"""Text and picture conditioning by OpenCLIP's two towers."""

from __future__ import annotations

import open_clip
import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..spec.network import TEXT_SIZES, VISION_SIZES, CLIPConfig
from .prompts import tokenize


def build(config: CLIPConfig) -> nn.Module:
    """Both towers, with open_clip's own code and its state-dict keys, on the current default device.

    Only sizes reach open_clip, and only architectures that it brings along: by other names and keys it would
    fetch models, read folders or run code.

    Raises CheckpointError for an architecture that open_clip does not know or cannot build.
    """
    settings = config.custom
    if not settings:
        if config.architecture not in open_clip.list_models():
            raise CheckpointError(
                f"The installed open_clip does not know the architecture {config.architecture!r} that "
                "model_cfg.clip names."
            )
        settings = open_clip.get_model_config(config.architecture)
    towers = {"vision_cfg": {*VISION_SIZES, "mlp_ratio"}, "text_cfg": {*TEXT_SIZES, "mlp_ratio"}}
    other = set(settings) ^ {"embed_dim", *towers}  # too many, or too few
    for key, known in towers.items():
        tower = settings.get(key, {})
        other |= {f"{key}.{name}" for name, value in tower.items() if name not in known or not _size(value)}
    if other or not _size(settings.get("embed_dim")):
        raise CheckpointError(
            f"model_cfg.clip, {'its own' if config.custom else config.architecture}, is no plain pair of "
            f"towers: {', '.join(sorted(other)) or 'embed_dim'} cannot be used here."
        )
    try:
        return open_clip.CLIP(settings["embed_dim"], *(dict(settings[key]) for key in towers))
    except Exception as error:  # sizes that do not go together make it raise anything
        raise CheckpointError(
            "model_cfg.clip (embed_dim, vision_cfg, text_cfg) has sizes that make no towers of open_clip's."
        ) from error


def _size(value: object) -> bool:
    return type(value) in (int, float) and value > 0  # type: ignore[operator]


class TextEncoder(nn.Module):
    """OpenCLIP's text tower up to its last layer but one, then the final layer norm.

    As Stable Diffusion 2 is conditioned. Keys are those of the whole OpenCLIP file, of which
    :attr:`unused` stay unread.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        clip = build(config)
        names = frozenset(clip.state_dict())
        self.token_embedding = clip.token_embedding
        self.positional_embedding = clip.positional_embedding
        self.transformer = clip.transformer
        self.transformer.resblocks = self.transformer.resblocks[:-1]
        self.ln_final = clip.ln_final
        self.unused = names - frozenset(self.state_dict())

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [b, 77] int64. Returns [b, 77, width]."""
        dtype = self.positional_embedding.dtype
        x = self.token_embedding(tokens).to(dtype) + self.positional_embedding
        length = x.shape[1]
        mask = torch.full((length, length), float("-inf"), dtype=dtype, device=x.device).triu_(1)
        # open_clip's blocks take [b, n, d] since 2.25 or so, and took [n, b, d] before.
        batch_first = self.transformer.resblocks[0].attn.batch_first
        x = x if batch_first else x.transpose(0, 1)
        for block in self.transformer.resblocks:
            x = block(x, attn_mask=mask)
        return self.ln_final(x if batch_first else x.transpose(0, 1))

    def encode(self, texts: list[str], rows: int = 1) -> Tensor:
        """Text states [len(texts), 77·rows, width] in fp32, on the encoder's device.

        A token of weight w has the state e + w · (s − e), where s is its own and e that of the empty
        text in its place: the rule of the library compel and of ComfyUI.
        """
        device = self.positional_embedding.device
        tokens, weights = (torch.cat(parts) for parts in zip(*(tokenize(text, rows) for text in texts)))
        states = self(tokens.to(device)).float()
        if bool((weights != 1).any()):
            weights = weights.to(device).unsqueeze(-1)
            empty = self(tokenize("")[0].to(device)).float()
            states = torch.where(weights == 1, states, empty + weights * (states - empty))
        return states.unflatten(0, (len(texts), rows)).flatten(1, 2)


class ImageEncoder(nn.Module):
    """OpenCLIP's image tower with its projection, not normalised."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        clip = build(config)
        names = frozenset(clip.state_dict())
        self.visual = clip.visual
        self.image_size = self.visual.image_size[0]
        self.unused = names - frozenset(self.state_dict())

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: [b, 3, image_size, image_size], normalised as CLIP has it. Returns [b, embed_dim]."""
        return self.visual(pixels)

    def encode(self, pixels: Tensor) -> Tensor:
        """Image embeddings [b, 1, embed_dim] in fp32, on the encoder's device."""
        weight = self.visual.conv1.weight
        return self(pixels.to(weight.device, weight.dtype)).float().unsqueeze(1)
