"""``enable`` and ``disable``: one file in site-packages, harmless to every other start of Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelscope_i2v.errors import OutputError
from modelscope_i2v.plugin import startup

ROOT = Path(startup.__file__).resolve().parents[2]


@pytest.fixture
def site_packages(tmp_path, monkeypatch):
    """Where ``enable`` writes instead of into the environment that runs the tests."""
    directory = tmp_path / "site packages"
    monkeypatch.setattr(startup, "_directories", lambda: [directory])
    return directory


def test_enable_writes_one_line_and_disable_removes_it(site_packages):
    assert not startup.status().enabled
    assert startup.status().files == (site_packages / startup.FILE,)
    path = startup.enable()
    assert path == site_packages / startup.FILE
    (line,) = path.read_text(encoding="ascii").splitlines()
    assert line.startswith("import sys; ")
    assert os.listdir(site_packages) == [startup.FILE]
    assert startup.status() == startup.Status(True, False, (path,))
    startup.enable()
    assert startup.disable() == [path]
    assert os.listdir(site_packages) == []
    assert startup.disable() == []
    assert not startup.status().enabled


def test_the_users_directory_comes_second(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory", encoding="utf-8")
    monkeypatch.setattr(startup, "_directories", lambda: [blocked, tmp_path / "user"])
    assert startup.enable() == tmp_path / "user" / startup.FILE


def test_directories_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory", encoding="utf-8")
    monkeypatch.setattr(startup, "_directories", lambda: [blocked])
    with pytest.raises(OutputError, match="cannot be written into .*file"):
        startup.enable()


def test_a_failed_replacement_leaves_nothing(site_packages, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        startup.enable()
    assert os.listdir(site_packages) == []


def test_a_file_that_cannot_be_removed_is_named(site_packages, monkeypatch):
    path = startup.enable()

    def refuse(self, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match=f"{startup.FILE} cannot be removed: Permission denied"):
        startup.disable()
    assert path.is_file()


def test_the_environments_own_directory_is_the_first():
    purelib = startup._directories()[0]
    assert str(purelib) in sys.path


def start(directory: Path, script: str, *, path: list[Path], flags: tuple[str, ...] = ("-S",)):
    """Runs a script in a Python that has processed the ``.pth`` files of ``directory`` at its start."""
    script = f"import site; site.addsitedir({str(directory)!r})\n{script}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *flags, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=directory,
    )


FAKE = "modelscope"  # a package of that name and nothing in it


@pytest.fixture
def fake_modelscope(tmp_path):
    directory = tmp_path / "fake"
    (directory / FAKE).mkdir(parents=True)
    (directory / FAKE / "__init__.py").write_text("", encoding="utf-8")
    return directory


LOOK = """
import json, sys
before = "modelscope_i2v" in sys.modules
import modelscope
print(json.dumps([before, "modelscope_i2v" in sys.modules]))
"""


def test_the_plugin_comes_with_modelscope_and_not_earlier(site_packages, fake_modelscope):
    startup.enable()
    done = start(site_packages, LOOK, path=[fake_modelscope, ROOT])
    assert done.stderr == ""
    assert json.loads(done.stdout) == [False, True]


def test_a_package_that_was_uninstalled_breaks_nothing(site_packages, fake_modelscope):
    startup.enable()
    done = start(site_packages, LOOK, path=[fake_modelscope])
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [False, False]


def test_a_package_that_is_broken_is_told_in_one_line(site_packages, fake_modelscope):
    (fake_modelscope / "modelscope_i2v").mkdir()
    (fake_modelscope / "modelscope_i2v" / "__init__.py").write_text("import no_such_module", encoding="utf-8")
    startup.enable()
    done = start(site_packages, LOOK, path=[fake_modelscope])
    assert done.returncode == 0
    assert json.loads(done.stdout) == [False, False]
    assert done.stderr.splitlines() == [
        "modelscope-i2v is enabled and cannot be imported: No module named 'no_such_module'"
    ]


def test_a_process_knows_that_it_was_started_with_it(site_packages, monkeypatch):
    startup.enable()
    finders = list(sys.meta_path)
    monkeypatch.setattr(sys, "meta_path", finders)
    exec(startup._line(), {})
    assert startup.status().active
    assert not finders[0].waiting or finders[0].find_spec("json") is None


def test_the_line_cannot_fail(monkeypatch):
    """Not even where sys.meta_path is no list any more, as in embedded Pythons."""
    monkeypatch.setattr(sys, "meta_path", None)
    exec(startup._line(), {})
    assert sys.meta_path is None


def test_a_start_takes_no_time():
    line, best = startup._line(), 1.0
    for _ in range(20):
        finders = list(sys.meta_path)
        begin = time.perf_counter()
        exec(line, {})
        best = min(best, time.perf_counter() - begin)
        sys.meta_path[:] = finders
    assert best < 0.001
