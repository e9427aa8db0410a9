"""Models by path, or by their id on the ModelScope hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CheckpointError

_ID = re.compile(r"[\w.-]+/[\w.-]+")


def fetch(model: str | os.PathLike[str]) -> Path:
    """The directory of a model, downloaded from the hub (into ModelScope's cache) where it is an id.

    Raises:
        CheckpointError: there is no such directory, and no such model on the hub.
    """
    if os.path.exists(model):  # unlike pathlib's, it takes a name that is too long for one that is not there
        return Path(model)
    name = os.fspath(model)
    if not _ID.fullmatch(name):
        raise CheckpointError(
            f"There is no model directory {name!r}; a model is a directory, or an id on the ModelScope hub "
            "such as damo/Image-to-Video."
        )
    try:
        from modelscope.hub.snapshot_download import snapshot_download

        return Path(snapshot_download(name))
    except Exception as error:  # of the network, of the hub, of the disk: all without a common class
        raise CheckpointError(
            f"There is no model directory {name!r} here, and it could not be fetched from the ModelScope "
            f"hub: {type(error).__name__}: {error}"
        ) from error
