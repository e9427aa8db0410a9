"""Progress where there is no terminal: lines for long work, none for short."""

from __future__ import annotations

import io

import pytest

from modelscope_i2v import progress


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def work(clock: Clock, seconds: float, total: int = 40, show: bool | None = None) -> None:
    with progress.bar(total, "Denoising", show) as shown:
        for _ in range(total):
            clock.now += seconds / total
            shown.update()


def test_long_work_tells_its_start_each_tenth_and_its_end(clock, capsys):
    work(clock, 400)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert not out and lines[0] == "Denoising: 40 steps, about 7 min"
    assert lines[1:3] == [
        "Denoising: 10%, about 6 min left",
        "Denoising: 20%, about 5 min left",
    ]
    assert lines[-1] == "Denoising: done after 7 min" and len(lines) == 11


def test_short_work_is_quiet_unless_lines_are_asked_for(clock, capsys):
    work(clock, 4)
    work(clock, 400, show=False)
    assert capsys.readouterr().err == ""
    work(clock, 4, show=True)
    assert capsys.readouterr().err.startswith("Denoising: 40 steps, about 4 s\n")


def test_work_that_fails_tells_how_far_it_came(clock, capsys):
    with pytest.raises(ZeroDivisionError), progress.bar(3, "Loading", unit="file") as loading:
        clock.now += 20
        loading.update()
        raise ZeroDivisionError
    assert capsys.readouterr().err.endswith("Loading: stopped at 1 file after 20 s\n")


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.bar(2, "Converting", unit="B") as shown:
        shown.update(2)
    assert "Converting" in terminal.getvalue() and "\r" in terminal.getvalue()


def test_without_standard_error_nothing_is_shown(monkeypatch, clock):
    monkeypatch.setattr("sys.stderr", None)
    work(clock, 400)
