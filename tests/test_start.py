"""scripts/start.py: what it runs, and what it refuses before it installs anything."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "start.py"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, which writes commands into ``start.ran`` instead of running them."""
    spec = importlib.util.spec_from_file_location("start", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ran = []

    def ran(command: list[str], **settings: object) -> SimpleNamespace:
        module.ran.append((command[1:], settings))
        return SimpleNamespace(returncode=module.codes.get(command[2], 0))

    module.codes = {}
    monkeypatch.setattr(module.subprocess, "run", ran)
    monkeypatch.setattr(module, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(module, "OLDEST", tmp_path / ".venv-oldest")
    monkeypatch.setattr(module.venv, "create", lambda path, **_: Path(path).mkdir(exist_ok=True))
    (tmp_path / ".venv-oldest").mkdir()
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    return module


def call(start: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["start.py", *arguments])
    return start.main()


def test_the_demos_options_reach_it_in_the_callers_folder(start, monkeypatch):
    assert call(start, monkeypatch, "demo", "-o", "videos", "--task", "image-to-video") == 0
    command, settings = start.ran[-1]
    assert command == ["-m", "modelscope_i2v", "demo", "-o", "videos", "--task", "image-to-video"]
    assert settings["cwd"] is None
    assert settings["env"]["OMP_WAIT_POLICY"] == "passive"


def test_a_wait_policy_of_the_user_stays(start, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    call(start, monkeypatch, "demo")
    assert start.ran[-1][1]["env"]["OMP_WAIT_POLICY"] == "active"


@pytest.mark.parametrize("arguments", [["--fast", "demo"], ["demos"], []])
def test_what_is_unknown_is_refused_before_anything_is_made(start, monkeypatch, arguments):
    with pytest.raises(SystemExit) as stopped:
        call(start, monkeypatch, *arguments)
    assert stopped.value.code == 2
    assert start.ran == [] and not start.ENVIRONMENT.exists()


def test_an_old_python_is_refused_before_anything_is_made(start, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 7, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.10 or newer, and this is 3\.9\.7"):
        call(start, monkeypatch, "demo")
    assert start.ran == [] and not start.ENVIRONMENT.exists()


@pytest.mark.parametrize("code", [0, 1])
def test_an_environment_of_an_old_python_is_made_anew(start, monkeypatch, code):
    start.python().parent.mkdir(parents=True)
    start.python().touch()
    start.codes["import sys; sys.exit(sys.version_info < (3, 10))"] = code
    made = []
    monkeypatch.setattr(start.venv, "create", lambda path, **settings: made.append(settings["clear"]))
    call(start, monkeypatch, "demo")
    assert made == [True] * code


def test_an_environment_without_pip_is_not_kept(start, monkeypatch):
    def halfway(path: Path, **_: object) -> None:
        start.python().parent.mkdir(parents=True)
        start.python().touch()
        raise start.subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.setattr(start.venv, "create", halfway)
    with pytest.raises(SystemExit, match="python3-venv"):
        call(start, monkeypatch, "demo")
    assert not start.python().exists()


def modules(start: ModuleType) -> list[str]:
    return [command[1] for command, _ in start.ran]


def test_test_checks_style_and_types_before_both_runs_of_the_tests(start, monkeypatch):
    assert call(start, monkeypatch, "test") == 0
    assert modules(start) == ["pip", "pip", "ruff", "ruff", "mypy", "pytest", "pip", "pytest"]
    assert start.ran[-1][1]["env"]["PYTHONPATH"] == str(start.OLDEST)
    start.ran.clear()
    assert call(start, monkeypatch, "test") == 0
    assert modules(start) == ["ruff", "ruff", "mypy", "pytest", "pytest"]  # all is installed


@pytest.mark.parametrize("failing", ["ruff", "mypy", "pytest"])
def test_a_check_that_fails_ends_it_with_its_code(start, monkeypatch, failing):
    start.codes[failing] = 3
    with pytest.raises(SystemExit) as stopped:
        sys.exit(call(start, monkeypatch, "test"))
    assert stopped.value.code == 3
    assert modules(start)[-1] == failing


def test_options_of_test_go_to_pytest_alone(start, monkeypatch):
    assert call(start, monkeypatch, "test", "-m", "not slow") == 0
    assert start.ran[-1][0] == ["-m", "pytest", "-m", "not slow"]
    assert modules(start) == ["pip", "pip", "pytest"]
