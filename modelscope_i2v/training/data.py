"""Opens the clips that the configuration's ``data`` names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checkpoints.directory import ModelDirectory
from ..data.cache import INDEX, Cache
from ..data.encode import Encoders
from ..data.folder import Cut, Entry, dataset_entries, fingerprint, folder_entries
from ..data.live import LiveData, made_by
from ..errors import InputError
from .config import TrainConfig
from .machine import Machine


def open_data(
    config: TrainConfig,
    directory: ModelDirectory,
    encoders: Callable[[], Encoders],
    machine: Machine,
    progress: bool | None = None,
    entries: Sequence[Entry] | None = None,
) -> Cache | LiveData:
    """The clips that the configuration names, cached on the disk if it has ``cache``.

    Args:
        encoders: loads the encoders; not called if all clips are in a cache.
        entries: clips that replace the configuration's.

    Raises:
        InputError: the data do not exist, cannot be read, or differ from those in the cache.
    """
    settings, family = config.data, directory.family
    if "cache" in settings:
        return _fitting(Cache.open(settings["cache"]), directory)
    if entries is None and "folder" in settings:
        entries = folder_entries(settings["folder"], settings.get("captions"), text=family.reads_text)
    elif entries is None:
        entries = dataset_entries(settings, text=family.reads_text)
    frames = directory.defaults.get("num_frames", family.num_frames)
    if config.frames is not None:
        frames = (config.frames - 1) * config.frame_stride + 1
    cut = Cut(
        settings.get("height") or directory.defaults.get("height", family.height),
        settings.get("width") or directory.defaults.get("width", family.width),
        settings.get("max_frames") or frames,
        settings.get("fps"),
        frames,
    )
    if cut.height % 8 or cut.width % 8:
        raise InputError(f"data: {cut.width}x{cut.height} should be multiples of 8; set height and width.")
    if cut.frames < frames:
        apart = f", {config.frames} at a frame_stride of {config.frame_stride}" if config.frames else ""
        raise InputError(f"data.max_frames is {cut.frames} and should be at least frames ({frames}{apart}).")

    def live() -> LiveData:
        return LiveData(
            entries,
            cut,
            encoders(),
            dropped_text=config.dropped_text,
            workers=settings.get("workers"),
            progress=progress if machine.main else False,
        )

    if config.cache is None:
        return live()
    place, mark = Path(config.cache), fingerprint(entries, cut)
    machine.on_main(lambda: (place / INDEX).is_file() or live().write(place, progress))
    cache = Cache.open(place)
    if cache.made_by != made_by(mark, directory):
        raise InputError(
            f"The cache {place} was made of other data, sizes or another model than the configuration names. "
            "Remove it, or name another directory under cache."
        )
    _fitting(cache, directory)
    return dataclasses.replace(cache, fingerprint=mark)  # as without a cache: a run may go on with or without


def _fitting(cache: Cache, directory: ModelDirectory) -> Cache:
    """Raises InputError if the cache's shapes do not fit the model."""
    unet, family = directory.unet, directory.family
    wrong = []
    for shard in cache.shards:
        channels, height, width = shard.latents.shape[2:]
        if channels != unet.out_dim:
            wrong.append(f"latents have {channels} channels and should have {unet.out_dim}")
        if unet.canvas(height, width) != (height, width):
            rows, columns = unet.canvas(height, width)
            wrong.append(f"latents are {height}x{width} and should be {rows}x{columns} or the like")
        if family.reads_image and shard.has_image and shard.image_width != unet.image_dim:
            wrong.append(f"picture embeddings are {shard.image_width} wide and should be {unet.image_dim}")
    if family.reads_text and cache.has_texts and cache.text.shape[2] != unet.context_dim:
        wrong.append(f"text states are {cache.text.shape[2]} wide and should be {unet.context_dim}")
    if wrong:
        raise InputError(f"The cache {cache.path} is not for {directory.path}: its {wrong[0]}.")
    return cache
