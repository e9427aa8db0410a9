"""``enable`` and ``disable``: the plugin for scripts that do not import it."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .parser import PROGRAM, say


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds both commands."""
    command(
        "enable",
        _enable,
        "make every ModelScope pipeline of this Python environment use this package",
        "\n\nWith this, scripts that cannot be changed need no `import modelscope_i2v`. It writes one small\n"
        "file into the environment's site-packages, which Python reads at its start;\n"
        f"`{PROGRAM} disable` removes it.",
    )
    command("disable", _disable, "undo `enable`")


def _enable(args: argparse.Namespace) -> int:
    from ..plugin import startup

    path = startup.enable()
    say(f"Enabled by {path}; from the next start of Python on, scripts need no import.")
    return 0


def _disable(args: argparse.Namespace) -> int:
    from ..plugin import startup

    removed = startup.disable()
    for path in removed:
        say(f"Disabled: removed {path}.")
    if not removed:
        say("It was not enabled; nothing to undo.")
    return 0
