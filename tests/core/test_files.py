"""Files that appear whole or not at all, and readers that wait for nothing and quote nothing."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelscope_i2v import files
from modelscope_i2v.errors import CheckpointError, InputError, OutputError
from modelscope_i2v.files import open_regular, read_json, replace_file, replace_folder

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX modes, signals and pipes")

_WRITER = """
import signal, sys, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children ignore it
from modelscope_i2v.files import replace_file, replace_folder
with getattr(sys.modules["modelscope_i2v.files"], sys.argv[1])(sys.argv[2]) as part:
    print(part, flush=True)
    time.sleep(60)
"""


def _writing(kind: str, target: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process in the midst of writing ``target``, and its temporary file."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, kind, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@posix
def test_a_new_file_gets_the_usual_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replace_file(tmp_path / "new.bin") as part:
            part.write_bytes(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.bin").stat().st_mode) == 0o640


@posix
def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "old.bin"
    target.write_bytes(b"old")
    target.chmod(0o604)
    with replace_file(target) as part:
        part.unlink()  # as writers do that have a temporary file of their own
        part.write_bytes(b"new")
        part.chmod(0o600)
    assert target.read_bytes() == b"new" and stat.S_IMODE(target.stat().st_mode) == 0o604


def test_a_failure_leaves_the_target_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"old")
    full = pytest.raises(OutputError, match=r"^The disk is full: .*a\.bin was not written")
    with full, replace_file(tmp_path / "a.bin") as part:
        part.write_bytes(b"new")
        raise OSError(errno.ENOSPC, "No space left on device", str(part))
    with pytest.raises(KeyboardInterrupt), replace_folder(tmp_path / "b") as part:
        (part / "x").write_bytes(b"new")
        raise KeyboardInterrupt
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b" / "x").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "b"]


@posix
@pytest.mark.parametrize("writer", [replace_file, replace_folder])
def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "0" * 16)
    (tmp_path / "secret").write_bytes(b"mine")
    (tmp_path / ".out.0000000000000000.part").symlink_to(tmp_path / "secret")
    with pytest.raises(OutputError, match="out cannot be written: File exists"), writer(tmp_path / "out"):
        raise AssertionError("the link was opened")
    assert (tmp_path / "secret").read_bytes() == b"mine"


@posix
def test_a_link_as_target_is_replaced_and_its_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"mine")
    (tmp_path / "out").symlink_to("secret")
    with replace_file(tmp_path / "out") as part:
        part.write_bytes(b"new")
    assert (tmp_path / "secret").read_bytes() == b"mine" and not (tmp_path / "out").is_symlink()


@posix
@pytest.mark.parametrize("kind", ["replace_file", "replace_folder"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_process_leaves_nothing(tmp_path: Path, kind: str, number: int) -> None:
    process, part = _writing(kind, tmp_path / "out")
    assert part.exists()
    process.send_signal(number)
    assert process.wait(30) == -number
    assert os.listdir(tmp_path) == []


@posix
@pytest.mark.parametrize("kind", ["replace_file", "replace_folder"])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, kind: str) -> None:
    process, part = _writing(kind, tmp_path / "out")
    os.utime(part, (time.time() - 3600,) * 2)
    with replace_file(tmp_path / "out"):
        assert part.exists(), "a file that is being written was taken for a stale one"
    process.kill()
    process.wait(30)
    (tmp_path / ".other.0000000000000000.part").touch()
    os.utime(tmp_path / ".other.0000000000000000.part", (0, 0))
    with replace_file(tmp_path / "out"):
        assert not part.exists()
    assert sorted(os.listdir(tmp_path)) == [".other.0000000000000000.part", "out"]


@pytest.mark.parametrize("swap", [True, False], ids=["swap", "two steps"])
def test_a_folder_is_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: bool) -> None:
    if not swap:
        monkeypatch.setattr(files, "_swap", lambda one, other: False)
    target = tmp_path / "frames"
    target.mkdir()
    target.chmod(0o750)
    for name in ("1.png", "2.png", "3.png"):
        (target / name).write_bytes(b"old")
    with replace_folder(target, ours=lambda name: name.endswith(".png")) as part:
        (part / "1.png").write_bytes(b"new")
        (target / "notes.txt").write_bytes(b"theirs")
        (target / "4.png").write_bytes(b"another writer's")
    assert sorted(os.listdir(target)) == ["1.png", "notes.txt"]
    assert (target / "1.png").read_bytes() == b"new" and (target / "notes.txt").read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["frames"]
    if os.name != "nt":
        assert stat.S_IMODE(target.stat().st_mode) == 0o750


@pytest.mark.parametrize("swap", [True, False], ids=["swap", "two steps"])
def test_two_writers_of_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: bool) -> None:
    if not swap:
        monkeypatch.setattr(files, "_swap", lambda one, other: False)
    with replace_folder(tmp_path / "out", ours=lambda name: True) as first:
        (first / "a").touch()
        with replace_folder(tmp_path / "out", ours=lambda name: True) as second:
            (second / "b").touch()
        assert os.listdir(tmp_path / "out") == ["b"]
    assert os.listdir(tmp_path / "out") == ["a"] and os.listdir(tmp_path) == ["out"]


def test_an_exchange_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_swap", lambda one, other: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").touch()
    with pytest.raises(OutputError, match="out cannot be written"), replace_folder(tmp_path / "out") as part:
        part.rmdir()
    assert os.listdir(tmp_path / "out") == ["a"] and os.listdir(tmp_path) == ["out"]


@posix
def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    with replace_folder(tmp_path / "out") as part:
        (part / "a").touch()
    assert (tmp_path / "out").is_symlink() and os.listdir(tmp_path / "disk") == ["a"]


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_an_impossible_name_fails_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot be written"), replace_file(tmp_path / name):
        raise AssertionError("the work was done in vain")


def test_a_long_name_has_a_temporary_one(tmp_path: Path) -> None:
    with replace_file(tmp_path / ("ü" * 120)) as part:
        part.touch()


def test_a_handler_of_the_callers_stays(tmp_path: Path) -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with replace_file(tmp_path / "out"):
            assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@posix
def test_no_pipe_or_device_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe is a named pipe; a file is needed here"):
        read_json(tmp_path / "pipe")
    with pytest.raises(InputError, match="/dev/zero is a device"):
        open_regular("/dev/zero", InputError)
    with pytest.raises(CheckpointError, match="is a directory"):
        open_regular(tmp_path)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"[" * 200_000, "nested too deep"),
        (b'{"a": "secret', r"unterminated string starting at, at line 1, column 7"),
        (b'{"secret": "\xff"}', "byte 12 is not UTF-8"),
        (b"[secret]", "expecting value, at line 1, column 2"),
        (b"9" * 5000, "a number that is too long"),
        (b" " * 5001, "more than 5,000 bytes"),
    ],
)
def test_bad_json_in_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    limit = 5000 if len(content) < 6000 else 1 << 20
    with pytest.raises(InputError, match=said) as caught:
        read_json(tmp_path / "a.json", limit=limit, error=InputError)
    assert "a.json" in str(caught.value) and "secret" not in str(caught.value)
    assert "Error" not in str(caught.value) and "\n" not in str(caught.value)


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("path", ["missing", "a\0b", "x" * 5000])
def test_paths_that_lead_nowhere(tmp_path: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match="There is no file|no path|cannot be read"):
        open_regular(tmp_path / path)
