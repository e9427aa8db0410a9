"""From a fresh checkout to a first video, or to passed tests, in one command.

    python scripts/start.py demo    # installs into .venv, then animates a picture
    python scripts/start.py test    # installs into .venv with what the tests need, then runs them

Needs Python 3.10 or newer and nothing else. A second run starts at once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
OLDEST = ROOT / ".venv-oldest"
"""The oldest supported ModelScope and open_clip, laid over the environment above for a second run."""


def python() -> Path:
    """The environment's interpreter."""
    return ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(*command: str | Path, **variables: str) -> int:
    """Runs a command in the checkout and returns its exit code."""
    print("+", *command, flush=True)
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, env={**os.environ, **variables}
    ).returncode


def must(*command: str | Path) -> None:
    """Runs a command that has to succeed."""
    code = run(*command)
    if code:
        sys.exit(code)


def install(extra: str) -> None:
    """Installs the checkout, editable, unless its requirements have been installed already."""
    files = [ROOT / name for name in ("setup.py", "requirements.txt", "tests/requirements.txt")]
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files) + extra.encode()).hexdigest()
    mark = ENVIRONMENT / f"installed-{extra or 'default'}"
    if mark.is_file() and mark.read_text() == wanted:
        return
    if not python().is_file():
        venv.create(ENVIRONMENT, with_pip=True)
    must(python(), "-m", "pip", "install", "--upgrade", "--quiet", "pip")
    must(python(), "-m", "pip", "install", "--editable", f".[{extra}]" if extra else ".")
    mark.write_text(wanted)


def demo() -> int:
    install("")
    return run(python(), "-m", "modelscope_i2v", "demo")


def test(arguments: list[str]) -> int:
    """All tests with the newest libraries, then those of ModelScope and open_clip with the oldest."""
    install("test")
    code = run(python(), "-m", "pytest", *arguments)
    if code or arguments:
        return code
    requirements = ROOT / "tests" / "requirements-oldest.txt"
    mark = OLDEST / "installed"
    if not (mark.is_file() and mark.read_text() == requirements.read_text()):
        pip = (python(), "-m", "pip", "install", "--upgrade", "--no-deps", "--target", OLDEST)
        must(*pip, "--requirement", requirements)
        mark.write_text(requirements.read_text())
    chosen = ("tests/plugin", "tests/core/test_conditioning.py")
    return run(python(), "-m", "pytest", *chosen, PYTHONPATH=str(OLDEST))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["demo", "test"])
    arguments, others = parser.parse_known_args()
    return test(others) if arguments.what == "test" else demo()


if __name__ == "__main__":
    sys.exit(main())
