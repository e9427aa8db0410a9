"""Switching the plugin on for scripts that do not import it.

``enable`` writes one file into the environment's site-packages, a ``.pth`` file, whose line Python runs at
each start. The line only sets a finder that waits for ``import modelscope``; the plugin is imported then.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError
from .registration import classes_in_force

__all__ = ["Status", "classes_in_force", "disable", "enable", "status"]

FILE = "modelscope_i2v_startup.pth"
_NAME = "modelscope_i2v_startup"

# Runs in any process of the environment, also after this package was removed: it may not raise, and does
# as little as it can. The finder stays in sys.meta_path, since changing that while it is walked through
# would make Python leave out another finder.
_SOURCE = """
import sys
class Finder:
    waiting = True
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "modelscope" and cls.waiting:
            cls.waiting = False
            try:
                import modelscope_i2v
            except ImportError as error:
                if error.name != "modelscope_i2v" and sys.stderr:
                    sys.stderr.write("modelscope-i2v is enabled and cannot be imported: %s\\n" % error)
            except Exception as error:
                if sys.stderr:
                    sys.stderr.write("modelscope-i2v is enabled and cannot be imported: %s\\n" % error)
sys.meta_path.insert(0, Finder)
"""


@dataclass(frozen=True)
class Status:
    """Whether scripts that do not import the plugin use it."""

    enabled: bool
    """Python finds the startup file at its next start."""
    active: bool
    """This very process was started with it."""
    files: tuple[Path, ...]
    """Where it is; where ``enable`` would write it, if it is nowhere."""


def enable() -> Path:
    """Makes every ``pipeline(...)`` of this Python environment use the plugin, from the next start on.

    Returns:
        The file that was written; :func:`disable` removes it.

    Raises:
        OutputError: no site-packages directory of the environment can be written.
    """
    reasons = []
    for directory in _directories():
        try:
            return _write(directory / FILE)
        except OSError as error:
            reasons.append(f"{directory} ({error.strerror or error})")
    raise OutputError(
        f"The startup file cannot be written into {' or '.join(reasons)}; run this as a user who may, or in "
        "a virtual environment."
    )


def disable() -> list[Path]:
    """Undoes :func:`enable`.

    Returns:
        The files that were removed; an empty list if there was none.

    Raises:
        OutputError: a file cannot be removed.
    """
    removed = []
    for path in _present():
        try:
            path.unlink()
        except OSError as error:
            raise OutputError(f"{path} cannot be removed: {error.strerror or error}.") from error
        removed.append(path)
    return removed


def status() -> Status:
    """Whether the plugin is enabled, and whether this process was started with it."""
    present = _present()
    active = any(getattr(finder, "__module__", None) == _NAME for finder in sys.meta_path)
    return Status(bool(present), active, tuple(present or [_directories()[0] / FILE]))


def _directories() -> list[Path]:
    """Where Python looks for ``.pth`` files: the environment's own directory first, then the user's."""
    directories = [Path(sysconfig.get_path("purelib"))]
    if site.ENABLE_USER_SITE:
        directories.append(Path(site.getusersitepackages()))
    return directories


def _present() -> list[Path]:
    return [path for path in (directory / FILE for directory in _directories()) if path.is_file()]


def _line() -> str:
    """The one line of the file: Python runs lines that start with ``import``, each by itself."""
    return f"import sys; exec({_guarded()!r}, {{'__name__': {_NAME!r}}})\n"


def _guarded() -> str:
    body = "".join(f"    {line}\n" for line in _SOURCE.strip().splitlines())
    return f"try:\n{body}except Exception:\n    pass\n"


def _write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_NAME}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="ascii", newline="\n") as file:
            file.write(_line())
        os.chmod(name, 0o644)  # mkstemp's are for one user, and others may start Python here
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
