"""The script behind the comparisons of solvers, speeds and types."""

from __future__ import annotations

import json
import subprocess

from benchmarks import ROOT, command


def quality(output, *options):
    one = command("quality", "text-to-video-synthesis", "--output", output, "--clips", 1, *options)
    return subprocess.run(one, capture_output=True, text=True, cwd=ROOT)


def test_writes_what_it_measured(tmp_path):
    done = quality(
        tmp_path,
        *("--parts", "solvers", "speeds", "precisions", "rescales", "--solvers", "unipc", "--steps", "2"),
        *("--long", "3", "--own-steps", "4", "--dtypes", "bf16", "int8"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "quality.json").read_text())
    assert [row["speed"] for row in result["speeds"]] == ["exact", "fast", "turbo"]
    assert "points lost" in result["speeds"][1] and 10 < result["speeds"][1]["PSNR to exact"] < 60
    assert [(row["solver"], row["steps"]) for row in result["solvers"]] == [("ddim", 3), ("unipc", 2)]
    _, bf16, int8 = result["precisions"]
    assert 25 < bf16["PSNR to fp32"] < 70 and 25 < int8["PSNR to fp32"] < 80
    assert bf16["PSNR to fp32"] != int8["PSNR to fp32"]
    assert len({row["contrast"] for row in result["rescales"]}) == len(result["rescales"]) == 4
    assert "| solver | steps |" in (tmp_path / "quality.md").read_text()
    assert (tmp_path / "quality.png").stat().st_size > 10_000


def test_solvers_need_a_long_run(tmp_path):
    done = quality(tmp_path / "none", "--long", "0")
    assert done.returncode == 2 and "--long should be 1 or more" in done.stderr
    assert not (tmp_path / "none").exists()
