"""Models by path, or by their id on the ModelScope hub."""

from __future__ import annotations

import functools
import os
import re
import time
from pathlib import Path

from .. import embedded
from ..errors import CheckpointError
from ..spec.families import FAMILIES

IDS = {name.lower(): name for family in FAMILIES.values() for name in family.hub_ids}
"""The families' own ids as the hub spells them, by the same in small letters."""

_ID = re.compile(r"[\w.-]+/[\w.-]+")

_PATIENCE = 4.0
"""Seconds that the hub has for a first answer."""


def fetch(model: str | os.PathLike[str], revision: str | None = None, task: str | None = None) -> Path:
    """The directory of a model, downloaded from the hub (into ModelScope's cache) where it is an id.

    Without a network, a copy in that cache is used.

    Args:
        revision: a tag or branch on the hub, such as ``v1.1.0``; None: the hub's default.
        task: what the name ``embedded`` means: the embedded model of this task.

    Raises:
        CheckpointError: there is no such directory, and no such model on the hub or in the cache.
    """
    if os.path.exists(model):  # unlike pathlib's, it takes a name that is too long for one that is not there
        return Path(model)
    if (found := embedded.find(model, task)) is not None:
        return found
    name = canonical(os.fspath(model))
    if not is_id(name):
        raise CheckpointError(
            f"There is no model directory {name!r}; a model is a directory, or an id on the ModelScope hub "
            "such as damo/Image-to-Video, or embedded."
        )
    try:
        from modelscope.hub.snapshot_download import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"There is no model directory {name!r}, and ModelScope, which fetches models from its hub, "
            f"cannot be imported: {error}"
        ) from error
    if not reachable():
        return cached(name, revision)
    try:
        return Path(snapshot_download(name, revision=revision))
    except Exception as error:  # of the network, of the hub, of the disk: all without a common class
        raise CheckpointError(f"{name} cannot be fetched from the ModelScope hub: {error}") from error


def is_id(name: str) -> bool:
    """An id on the hub: ``owner/name``."""
    return _ID.fullmatch(name) is not None


def canonical(name: str) -> str:
    """The hub's spelling of a family's own id, however its letters are; other names as they are."""
    return IDS.get(name.lower(), name)


def cached(name: str, revision: str | None = None) -> Path:
    """The copy of a hub model in ModelScope's cache. Nothing is asked of the network.

    Raises CheckpointError where there is none of that revision.
    """
    from modelscope.hub.snapshot_download import snapshot_download

    wanted = None if revision == "master" else revision  # ModelScope's default, so any copy will do
    try:
        found = Path(snapshot_download(name, revision=wanted, local_files_only=True))
    except Exception:  # one class in older versions, another in newer ones
        found = None
    if found is None or wanted not in (None, _revision(found, wanted)):
        at = f" at revision {wanted}" if wanted else ""
        raise CheckpointError(
            f"{name} cannot be fetched, since the ModelScope hub ({_endpoint()}) does not answer, and "
            f"ModelScope's cache has no copy of it{at}; check the network, or give a model directory."
        )
    return found


def _revision(directory: Path, wanted: str | None) -> str | None:
    """The revision of a copy; ModelScope writes it down where the directory's name does not say it."""
    try:
        noted = re.match(r"Revision:([^,]+)", (directory / ".mv").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return wanted
    return noted.group(1) if noted else wanted


def reachable() -> bool:
    """The hub answers. Asked at most twice a minute, since one ``pipeline(…)`` needs it several times.

    ModelScope itself tries for half a minute before it says that it cannot connect.
    """
    return _answers(_endpoint(), time.monotonic() // 30)


@functools.lru_cache(maxsize=1)
def _answers(endpoint: str, now: float) -> bool:
    import requests  # as ModelScope does, so that proxies and certificates are the same

    try:
        requests.head(endpoint, timeout=_PATIENCE)
    except requests.RequestException:
        return False
    return True


def _endpoint() -> str:
    from modelscope.hub.utils.utils import get_endpoint

    named = os.environ.get("MODELSCOPE_ENDPOINT")  # newer versions read it first, and not in get_endpoint()
    return f"https://{named}" if named and "://" not in named else named or get_endpoint()
