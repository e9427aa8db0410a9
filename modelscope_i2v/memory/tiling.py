"""The autoencoder tile by tile: large pictures with the memory of a small one, and the same result.

Decoding each tile by itself shows seams however far the tiles overlap, because group norms look at the
whole picture (figures: docs/evidence/memory.md). So here it is the layers that work in tiles: each takes a
tile with as much of its neighbours as its convolution reaches and writes its output into a map of the whole
picture, whose group statistics are gathered meanwhile for the next norm. Maps lie in the host's memory. The
smallest level, which has attention over all its pixels, is computed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.layers import GroupNorm
from ..networks.autoencoder import AutoencoderKL, Level, Posterior, ResnetBlock

GROUPS = 32
"""Of every norm in the autoencoder."""

REACH = 2
"""Latent pixels around a tile that, at the smallest level, its layers look at most."""

SMALLEST = 64
"""Pixels that a tile's side has at least."""


class _Map:
    """A layer's output for the whole picture [n, c, h, w], and mean and variance of its groups [n, 32].

    The statistics of tiles are merged as Chan et al. do ("Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", 1979).
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    @classmethod
    def of(cls, values: Tensor) -> _Map:
        """Of a tensor that is there already, which is gone through once."""
        made = cls(values)
        if values.shape[1] % GROUPS == 0:
            made._gather(values)
        return made

    def write(self, tile: _Tile, values: Tensor) -> None:
        self.values[tile.at] = values.to(self.values.device)
        if values.shape[1] % GROUPS == 0:
            self._gather(values)

    def _gather(self, values: Tensor) -> None:
        groups = values.float().unflatten(1, (GROUPS, -1)).flatten(2)
        variance, mean = torch.var_mean(groups, dim=2, correction=0)
        count = groups.shape[2]
        if not self.count:
            self.count, self.mean, self.squares = count, mean, variance * count
            return
        total, apart = self.count + count, mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self.squares = self.squares + variance * count + apart**2 * (self.count * count / total)
        self.count = total

    def normalised(self, part: Tensor, norm: GroupNorm) -> Tensor:
        """A part of the map after a group norm that has seen all of it, and SiLU."""
        mean, scale = self.mean, (self.squares / self.count + norm.eps).rsqrt()
        x = part.to(norm.weight.dtype).unflatten(1, (GROUPS, -1))
        x = (x - mean[..., None, None, None]) * scale[..., None, None, None]
        return F.silu(x.flatten(1, 2) * norm.weight[:, None, None] + norm.bias[:, None, None])


class _Tile(NamedTuple):
    """Where a tile lies in a layer's output, and what of the input it is computed from."""

    at: tuple[slice, ...]
    source: tuple[slice, ...]
    inner: tuple[slice, ...]
    """The tile within what the layer makes of ``source``."""


def _tiles(height: int, width: int, tile: int, reach: int, scale: float) -> Iterator[_Tile]:
    """Covers an input of that size; ``reach`` input pixels around each tile are taken too.

    Args:
        tile: of the input, in pixels a side.
        scale: of the layer: 2 doubles height and width, 0.5 halves them.
    """

    def along(length: int) -> Iterator[tuple[slice, slice, slice]]:
        for start in range(0, length, tile):
            stop = min(start + tile, length)
            first, last = max(start - reach, 0), min(stop + reach, length)
            low, high, skip = (int(scale * value) for value in (start, stop, start - first))
            yield slice(low, high), slice(first, last), slice(skip, skip + high - low)

    columns = list(along(width))
    for rows in along(height):
        for pairs in (tuple(zip(rows, column)) for column in columns):
            yield _Tile(*((..., *pair) for pair in pairs))


class _Tiled:
    """Runs layers over maps.

    Args:
        device: where the layers are.
        tile: side of a tile in pixels of the picture; a smaller level's tiles are smaller.
        height: the picture's.
    """

    def __init__(self, device: torch.device, tile: int, height: int) -> None:
        self.device, self.tile, self.height = device, tile, height

    def layer(self, compute: Callable[..., Tensor], *maps: _Map, reach: int = 1, scale: float = 1.0) -> _Map:
        """``compute`` of the same tile of each map, as a map of ``scale`` times the size."""
        height, width = maps[0].values.shape[-2:]
        side = self.tile * height // self.height
        made: _Map | None = None
        for tile in _tiles(height, width, side, reach, scale):
            parts = (one.values[tile.source].to(self.device) for one in maps)
            out = compute(*parts)[tile.inner]
            if made is None:
                shape = (*out.shape[:2], int(height * scale), int(width * scale))
                made = _Map(torch.empty(shape, dtype=out.dtype))
            made.write(tile, out)
        return made

    def resnet(self, block: ResnetBlock, x: _Map) -> _Map:
        h = self.layer(lambda part: block.conv1(x.normalised(part, block.norm1)), x)
        shortcut = getattr(block, "nin_shortcut", nn.Identity())

        def second(part: Tensor, skipped: Tensor) -> Tensor:
            return block.conv2(h.normalised(part, block.norm2)) + shortcut(skipped)

        return self.layer(second, h, x)

    def level(self, level: Level, x: _Map) -> _Map:
        for block in level.block:
            x = self.resnet(block, x)
        if hasattr(level, "downsample"):
            x = self.layer(level.downsample, x, reach=2, scale=0.5)
        if hasattr(level, "upsample"):
            x = self.layer(level.upsample, x, scale=2.0)
        return x

    def last(self, norm: GroupNorm, conv: nn.Module, x: _Map) -> Tensor:
        return self.layer(lambda part: conv(x.normalised(part, norm)), x).values


def tiled_decode(autoencoder: AutoencoderKL, latents: Tensor, tile: int | None) -> Tensor:
    """:meth:`~modelscope_i2v.networks.autoencoder.AutoencoderKL.decode` in tiles: the same to rounding.

    Args:
        latents: [n, embed_dim, h, w].
        tile: side of a tile in pixels of the picture, at least :data:`SMALLEST`; it is rounded down to a
            multiple of ``config.factor``. None: no tiles.

    Returns:
        fp32 [n, 3, h·factor, w·factor], about -1..1; of several tiles, in the host's memory.
    """
    factor, decoder = autoencoder.config.factor, autoencoder.decoder
    tile = _checked(tile, factor)
    if max(latents.shape[2:]) * factor <= tile:
        return autoencoder.decode(latents)
    run = _Tiled(latents.device, tile, latents.shape[2] * factor)
    x = _Map.of(decoder.mid(decoder.conv_in(autoencoder.post_quant_conv(latents))))
    for level in reversed(decoder.up):
        x = run.level(level, x)
    return run.last(decoder.norm_out, decoder.conv_out, x).float()


def tiled_encode(autoencoder: AutoencoderKL, pixels: Tensor, tile: int | None) -> Posterior:
    """:meth:`~modelscope_i2v.networks.autoencoder.AutoencoderKL.encode` in tiles: the same to rounding.

    Args:
        pixels: [n, 3, H, W] in -1..1, H and W multiples of ``config.factor``; may lie in the host's memory.
        tile: as :func:`tiled_decode` has it.

    Returns:
        The posterior, on the autoencoder's device.
    """
    encoder = autoencoder.encoder
    device = encoder.conv_in.weight.device
    tile = _checked(tile, autoencoder.config.factor)
    if max(pixels.shape[2:]) <= tile:
        return autoencoder.encode(pixels.to(device))
    run = _Tiled(device, tile, pixels.shape[2])
    x = run.layer(encoder.conv_in, _Map(pixels))
    for level in encoder.down:
        x = run.level(level, x)
    h = encoder.mid(x.values.to(device))
    moments = autoencoder.quant_conv(encoder.conv_out(encoder.norm_out(h)))
    mean, logvar = moments.float().chunk(2, dim=1)
    return Posterior(mean, logvar.clamp(-30.0, 20.0))


def _checked(tile: int | None, factor: int) -> float:
    """Such that tiles of each level begin where those of the next do."""
    if tile is None:
        return float("inf")
    if tile < SMALLEST:
        raise ValueError(f"tile={tile} does not work: it must be {SMALLEST} pixels or more.")
    return tile // factor * factor
