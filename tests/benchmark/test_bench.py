"""The benchmark, at its smallest: every path of it, and what it writes."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import ROOT, command
from benchmarks.bench import __main__ as bench
from benchmarks.bench import run as runs
from benchmarks.bench.measure import count_autoencoder, count_evaluation
from benchmarks.bench.presets import ORDER, SMOKE, Case
from benchmarks.bench.report import SUBJECTS, full_table, size_of
from modelscope_i2v.spec.families import FAMILIES
from modelscope_i2v.spec.network import AutoencoderConfig

EXACT = {"evaluation": 1e-5, "encode": 1e-5, "decode": 1e-5, "step": 1e-4, "video": 1e-2}
"""How far fp32 may be from the fp32 original; guidance and a video's steps magnify rounding."""


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, *arguments), capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a smoke run wrote."""
    folder = tmp_path_factory.mktemp("benchmark") / "smoke"
    done = script("bench", "--preset", "smoke", "--output", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def result(output: Path) -> dict[str, Any]:
    return json.loads((output / "result.json").read_text(encoding="utf-8"))


def test_every_case_of_every_family_was_measured(result):
    assert result["left_out"] == []
    originals = {name: {"stock"} for name in ORDER}
    originals["text-to-video-synthesis"] = {"stock", "diffusers"}
    originals["i2vgen-xl"] = {"diffusers"}
    wanted = {
        (family, case.what, subject, mode)
        for case in SMOKE.cases
        for family in case.families
        for subject, mode in (
            *(("ours", mode) for mode in SMOKE.modes),
            *((original, "fp32") for original in originals[family]),
        )
    }
    assert {(row["family"], row["what"], row["subject"], row["mode"]) for row in result["rows"]} == wanted
    assert len(result["rows"]) == len(wanted)


def test_it_says_when_where_and_with_what(result):
    assert datetime.datetime.fromisoformat(result["date"]).tzinfo is not None
    assert result["command"] == "python -m benchmarks.bench --preset smoke"
    assert result["hardware"]["processor"] and result["hardware"]["threads"] >= 1
    assert {"python", "torch", "modelscope", "diffusers", "modelscope_i2v"} <= result["versions"].keys()
    assert result["matrix_tflops"]["cpu"].keys() == {"fp32", "bf16"}


def test_ours_computes_what_the_originals_compute(result):
    rows = [row for row in result["rows"] if row["what"] != "loading"]
    for row in rows:
        where = row["family"], row["what"], row["subject"], row["mode"]
        if row["dtype"] == "bf16":
            assert 1e-4 < row["error"] < 0.3, where
        else:
            assert row["error"] <= EXACT[row["what"]], where


def test_figures_of_a_row_fit_each_other(result):
    stock = {(row["family"], row["what"]): row for row in result["rows"] if row["subject"] == "stock"}
    for row in result["rows"]:
        assert row["median"] == statistics.median(row["seconds"])
        assert (row["fastest"], row["slowest"]) == (min(row["seconds"]), max(row["seconds"]))
        slow = stock.get((row["family"], row["what"]))
        if slow is None:
            assert "stock" not in row["speeds"]
        else:
            assert row["speeds"]["stock"] == pytest.approx(slow["median"] / row["median"])
        if row["tflop"] is not None:
            rate = result["matrix_tflops"][row["device"]][row["dtype"]]
            assert row["share"] == pytest.approx(row["tflop"] / row["median"] / rate)
            assert row["share"] > 0


def test_a_guided_step_is_two_evaluations_of_work(result):
    work = {(row["family"], row["what"]): row["tflop"] for row in result["rows"]}
    for family in ORDER:
        assert work[family, "step"] == pytest.approx(2 * work[family, "evaluation"])


def test_the_page_shows_what_the_json_holds(output, result):
    page = (output / "result.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(table) == len(result["rows"])
    for line, row in zip(table, result["rows"]):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert (cells[0], cells[3], cells[4]) == (row["family"], SUBJECTS[row["subject"]], row["mode"])
        assert cells[2] == size_of(row)
        assert float(cells[5].split(" s")[0]) == pytest.approx(row["median"], rel=0.01)
        stock = row["speeds"].get("stock")
        assert cells[6] == ("" if stock is None else f"{stock:.2f}×")
        assert cells[8] == ("" if row["error"] is None else f"{row['error']:.1e}")
    assert result["command"] in page
    assert full_table(result) in page


def test_the_plot_is_a_picture(output):
    with Image.open(output / "result.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
        assert len(set(image.convert("RGB").resize((100, 100)).getdata())) > 20


def test_the_table_goes_into_a_readme_and_is_replaced_there(output, result, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "# Title\n\n<!-- benchmark: begin -->\nold\n<!-- benchmark: end -->\n\nEnd.\n", encoding="utf-8"
    )
    for _ in range(2):
        done = script("readme_table", output / "result.json", readme)
        assert done.returncode == 0, done.stderr
        text = readme.read_text(encoding="utf-8")
    before, table, after = (
        text.partition("<!-- benchmark: begin -->\n")[0],
        text.partition("<!-- benchmark: begin -->\n")[2].partition("\n<!-- benchmark: end -->")[0],
        text.partition("<!-- benchmark: end -->")[2],
    )
    assert (before, after) == ("# Title\n\n", "\n\nEnd.\n")
    assert "old" not in table
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    cases = {(row["family"], row["what"]) for row in result["rows"]}
    assert len(lines) == 1 + len(cases)
    assert "this package, fp32" in lines[0] and "diffusers, fp32" in lines[0]
    step = next(line for line in lines if line.startswith("| text-to-video-synthesis | guided step"))
    (row,) = (
        row
        for row in result["rows"]
        if (row["family"], row["what"], row["mode"]) == ("text-to-video-synthesis", "step", "bf16")
    )
    assert f"({row['speeds']['stock']:.2f}×, {row['speeds']['diffusers']:.2f}×)" in step
    assert script("readme_table", *[output / "result.json"] * 2, readme).returncode == 0
    assert f"begin -->\n{table}\n\n{table}\n<!--" in readme.read_text(encoding="utf-8")


def test_a_readme_without_a_place_is_left_alone(output, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n", encoding="utf-8")
    done = script("readme_table", output / "result.json", readme)
    assert done.returncode == 1
    assert "<!-- benchmark: begin -->" in done.stderr and str(readme) in done.stderr
    assert readme.read_text(encoding="utf-8") == "# Title\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "text-to-image"], "'text-to-image' is no family"),
        (["--repeats", "0"], "1 or more"),
        (["--minutes", "0"], "more than 0"),
    ],
)
def test_mistakes_are_told_at_once(arguments, said):
    done = script("bench", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_work_directory_is_made_or_cannot_be(tmp_path, capsys):
    assert bench.parse(["--work-dir", str(tmp_path / "a" / "b")]).work_dir.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        bench.parse(["--work-dir", str(tmp_path / "file" / "c")])
    assert stopped.value.code == 2
    assert f"--work-dir: {tmp_path / 'file' / 'c'} cannot be made: Not a directory" in capsys.readouterr().err


def small_run(work: Path, minutes: float = 60, repeats: int | None = None) -> runs.Run:
    """One evaluation of image-to-video."""
    case = Case("evaluation", 2, 8, 8, repeats=1, warm=False)
    preset = dataclasses.replace(SMOKE, cases=(case,), minutes=minutes)
    return runs.Run(preset, work, ["image-to-video"], repeats).measure()


@pytest.mark.parametrize("late", ["at once", "with its checkpoint"])
def test_without_time_nothing_is_measured_and_that_is_said(tmp_path, monkeypatch, late):
    make = runs.Checkpoints.make

    def slow(*arguments: Any, **settings: Any) -> Path:
        monkeypatch.setattr(runs.time, "monotonic", lambda: float("inf"))
        return make(*arguments, **settings)

    monkeypatch.setattr(runs.Checkpoints, "make", slow)
    run = small_run(tmp_path, minutes=0 if late == "at once" else 60)
    assert run.rows == []
    told = {"all"} if late == "at once" else {"ours", "stock"}
    assert {(entry["subject"], entry["why"]) for entry in run.left_out} == {
        (subject, runs.NO_TIME) for subject in told
    }
    assert not run.failed
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [], "files are left behind"


def test_a_subject_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    build = runs.build

    def failing(name: str, *others: Any) -> Any:
        if name == "stock":
            raise RuntimeError("stock is broken")
        return build(name, *others)

    monkeypatch.setattr(runs, "build", failing)
    run = small_run(tmp_path, repeats=3)
    assert run.failed
    assert [(entry["subject"], entry["why"]) for entry in run.left_out] == [
        ("stock", "RuntimeError: stock is broken")
    ]
    assert [(row.subject, row.mode, len(row.seconds)) for row in run.rows] == [
        ("ours", mode, 3) for mode in SMOKE.modes
    ]
    assert all(row.error is None for row in run.rows)


@pytest.mark.parametrize(
    ("family", "size", "tflop"),
    [("text-to-video-synthesis", (16, 32, 32), 4.9), ("image-to-video", (32, 32, 56), 17.2)],
)
def test_work_of_the_hubs_sizes(family, size, tflop):
    """As counted on the networks before any change for speed: that must not make less work of it."""
    config = FAMILIES[family].unet
    assert count_evaluation(FAMILIES[family], config, *size) == pytest.approx(tflop, rel=0.02)


def test_work_of_the_autoencoder_grows_with_frames():
    one, three = (count_autoencoder(AutoencoderConfig(), "decode", frames, 8, 8) for frames in (1, 3))
    assert three == pytest.approx(3 * one)


def test_a_family_that_cannot_be_made_does_not_lose_the_others(tmp_path, monkeypatch):
    make = runs.Checkpoints.make

    def failing(checkpoints: runs.Checkpoints, name: str, *others: Any, **settings: Any) -> Path:
        if name == "text-to-video-synthesis":
            raise OSError("the disk is full")
        return make(checkpoints, name, *others, **settings)

    monkeypatch.setattr(runs.Checkpoints, "make", failing)
    case = Case("encode", 1, 8, 8, repeats=1, warm=False)
    preset = dataclasses.replace(SMOKE, cases=(case,))
    run = runs.Run(preset, tmp_path, ["image-to-video", "text-to-video-synthesis"]).measure()
    assert run.failed
    assert {row.family for row in run.rows} == {"image-to-video"}
    assert [(entry["family"], entry["why"]) for entry in run.left_out] == [
        ("text-to-video-synthesis", "OSError: the disk is full")
    ]


def test_a_disk_that_is_too_small_is_told_at_once(tmp_path, monkeypatch, capsys):
    usage = shutil._ntuple_diskusage(100e9, 90e9, 10e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert bench.main(["--preset", "cpu", "--work-dir", str(tmp_path)]) == 1
    assert "35 GB of files go there, and 10 GB are free" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
