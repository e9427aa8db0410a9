"""From a fresh checkout to a first video, or to passed tests, in one command.

    python scripts/start.py demo [OPTION …]    # installs into .venv, then makes first videos
    python scripts/start.py test [OPTION …]    # installs into .venv what tests need, then checks everything

Options go to `modelscope-i2v demo`, or to pytest, which then runs alone. Needs Python 3.10 or newer and
nothing else. A second run starts at once.
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
PYTHON = (3, 10)
"""The oldest supported Python."""
WORKERS = min(4, os.cpu_count() or 1)


def python() -> Path:
    """The environment's interpreter."""
    return ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(*command: str | Path, cwd: Path | None = ROOT, **variables: str) -> int:
    """Runs a command and returns its exit code."""
    print("+", *command, flush=True)
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **variables}
    ).returncode


def must(*command: str | Path) -> None:
    """Runs a command that has to succeed."""
    code = run(*command)
    if code:
        sys.exit(code)


def make_environment() -> None:
    """Makes the environment, unless it is there with a Python that is new enough."""
    question = f"import sys; sys.exit(sys.version_info < {PYTHON})"
    there = python().is_file()
    if there and subprocess.run([str(python()), "-c", question], capture_output=True).returncode == 0:
        return
    if there:
        print(f"{ENVIRONMENT} has no Python {version(PYTHON)} or newer that runs, and is made anew.")
    try:
        venv.create(ENVIRONMENT, with_pip=True, clear=there)
    except subprocess.CalledProcessError as error:
        python().unlink()  # without pip it is of no use, and the next run begins again
        sys.exit(f"No environment with pip could be made: {error}\nOn Debian, install python3-venv.")


def install(extra: str) -> None:
    """Installs the checkout, editable, unless its requirements have been installed already."""
    make_environment()
    files = [ROOT / name for name in ("pyproject.toml", "requirements.txt")]
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files) + extra.encode()).hexdigest()
    mark = ENVIRONMENT / f"installed-{extra or 'default'}"
    if mark.is_file() and mark.read_text() == wanted:
        return
    must(python(), "-m", "pip", "install", "--upgrade", "--quiet", "pip")
    must(python(), "-m", "pip", "install", "--editable", f".[{extra}]" if extra else ".")
    mark.write_text(wanted)


def demo(options: list[str]) -> int:
    install("")
    return run(python(), "-m", "modelscope_i2v", "demo", *options, cwd=None)


def test(options: list[str]) -> int:
    """Lint, types and all tests with the newest libraries, then the tests of ModelScope with the oldest."""
    install("test")
    pytest = (python(), "-m", "pytest")
    if options:
        return run(*pytest, *options)
    must(python(), "-m", "ruff", "check")
    must(python(), "-m", "ruff", "format", "--check")
    must(python(), "-m", "mypy")
    shared = (*pytest, "--numprocesses", str(WORKERS), "--dist", "worksteal")
    must(*shared)
    requirements = ROOT / "tests" / "requirements-oldest.txt"
    mark = OLDEST / "installed"
    if not (mark.is_file() and mark.read_text() == requirements.read_text()):
        pip = (python(), "-m", "pip", "install", "--upgrade", "--no-deps", "--target", OLDEST)
        must(*pip, "--requirement", requirements)
        mark.write_text(requirements.read_text())
    chosen = ("tests/plugin", "tests/core/test_conditioning.py")
    return run(*shared, *chosen, PYTHONPATH=str(OLDEST))


def version(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def main() -> int:
    if sys.version_info < PYTHON:
        sys.exit(
            f"modelscope-i2v needs Python {version(PYTHON)} or newer, and this is "
            f"{version(sys.version_info[:3])} ({sys.executable}). Run this script with a newer one."
        )
    # Waiting threads would otherwise spin, which costs more than it gives where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["demo", "test"])
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the demo, or of pytest")
    arguments = parser.parse_args()
    return {"demo": demo, "test": test}[arguments.what](arguments.options)


if __name__ == "__main__":
    sys.exit(main())
