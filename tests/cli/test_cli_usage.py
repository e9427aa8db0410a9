"""Command lines that cannot be meant, help, and how errors are told."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import get_args

import pytest

from modelscope_i2v import InputError
from modelscope_i2v.cli import convert, make
from modelscope_i2v.spec.families import FAMILIES, TASKS
from modelscope_i2v.spec.options import FIELDS, options_of

COMMANDS = ("image-to-video", "video-to-video", "text-to-video")
ALL_COMMANDS = (*COMMANDS, "animate", "decode", "demo", "convert", "inspect", "doctor", "enable", "disable")


def one_line(err: str) -> str:
    assert err.startswith("modelscope-i2v: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """Whatever is told here is told before a model loads."""

    def load(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(make, "load_pipeline", load)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["image-to-video"], "IMAGE"),
        (["imag-to-video", "cat.png"], "invalid choice: 'imag-to-video'"),
        (["--frames"], "unknown option --frames"),
        (["text-to-video", "a", "--stpes", "4"], "did you mean --num-inference-steps?"),
        (["text-to-video", "a", "--num_frames=4"], "did you mean --num-frames?"),
        (["text-to-video", "a", "--num-inf", "4"], "unknown option --num-inf"),
        (["text-to-video", "a", "--fit", "pad"], "unknown option --fit"),
        (["text-to-video", "a", "cat"], "'cat'; what has spaces in it goes into quotes"),
        (["text-to-video", "a", "--height"], "--height: expected one argument"),
        (["text-to-video", "a", "--height", "100"], "a multiple of 8 such as 96 or 104"),
        (["text-to-video", "a", "--width", "0"], "--width: '0' does not work"),
        (["text-to-video", "a", "--width", "-8"], "--width: '-8' does not work"),
        (["text-to-video", "a", "--width", "99999992"], "from 8 to 8192"),
        (["text-to-video", "a", "--height", "2.5"], "a whole number"),
        (["text-to-video", "a", "--num-frames", "0"], "a whole number from 1"),
        (["text-to-video", "a", "--num-inference-steps", "0"], "from 1 to 1000"),
        (["text-to-video", "a", "--num-inference-steps", "1001"], "from 1 to 1000"),
        (["text-to-video", "a", "--guidance-scale", "nan"], "a number from 0 to 100"),
        (["text-to-video", "a", "--guidance-scale", "much"], "a number from 0 to 100"),
        (["text-to-video", "a", "--seed", "-1"], "a whole number from 0"),
        (["text-to-video", "a", "--scheduler", "euler"], "one of ddim"),
        (["text-to-video", "a", "--seed", "7" * 5000], "..."),
        (["text-to-video", "a", "--device", "gpux"], "cpu, gpu, cuda, cuda:1 or mps"),
        (["text-to-video", "a", "--dtype", "int8"], "fp32"),
        (["text-to-video", "a", "--attention", "flash"], "sdpa"),
        (["animate"], "give a picture, or a video with --refine"),
        (["animate", "cat.png", "--refine", "a.mp4"], "a picture is of no use"),
        (["animate", "--refine", "a.mp4", "--keep-first"], "--keep-first is of no use"),
        (["animate", "--refine", "a.mp4", "--first-width", "64"], "--first-width is of no use"),
        (
            ["animate", "--refine", "a.mp4", "--num-inference-steps", "4"],
            "--num-inference-steps is of no use",
        ),
        (["animate", "--refine", "a.mp4", "--target-fps", "4"], "--target-fps is of no use"),
        (["animate", "cat.png", "--refine-eta", "2"], "--refine-eta: '2' does not work"),
        (["animate", "cat.png", "--first-height", "12"], "a multiple of 8"),
        (["demo", "--task", "video"], "invalid choice"),
        (["convert", "a", "b"], "--to"),
        (["convert", "a", "--to", "hub"], "TARGET"),
        (["convert", "a", "b", "--to", "onnx"], "hub"),
        (["convert", "a", "b", "--to", "hub", "--dtype", "int8"], "fp32"),
        (["convert", "a", "b", "--to", "hub", "--as-published"], "is for --to diffusers"),
        (["inspect"], "PATH"),
        (["doctor", "now"], "unexpected argument 'now'"),
    ],
)
def test_bad_use_is_told_in_one_line_with_exit_code_2(run, tmp_path, arguments, said):
    ended = run(*arguments)
    assert ended.code == 2
    assert said in one_line(ended.err)
    assert "--help)" in ended.err
    assert not ended.out and not list(tmp_path.iterdir())


def test_without_a_command_the_help_is_shown(run):
    ended = run()
    assert ended.code == 2 and "image-to-video cat.png" in ended.err


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_each_command_has_help(run, command):
    ended = run(command, "--help")
    assert ended.code == 0 and f"usage: modelscope-i2v {command}" in ended.out


@pytest.mark.parametrize("command, family", list(zip(COMMANDS, TASKS.values())))
def test_help_shows_an_example_and_every_option_of_the_table(run, command, family):
    text = run(command, "--help").out
    assert f"\n  modelscope-i2v {command} " in text and family.hub_ids[0].split("-")[0] in text
    alike = [other for other in FAMILIES.values() if other.task == family.task]
    for name in {name for other in alike for name in options_of(other)}:
        assert ("--" + name.replace("_", "-") + " " in text) == FIELDS[name].metadata.get("cli", True), name


def test_help_tells_where_the_models_of_a_task_differ(run):
    text = " ".join(run("image-to-video", "--help").out.split())
    assert "(default: 256, of i2vgen-xl 704)" in text
    assert "what the video should not show (default: a list of usual flaws); for i2vgen-xl only" in text
    assert "what happens in the video, in English; for i2vgen-xl only" in text
    assert "frames per second of the written video, 0.01 to 1000 (default: 8)" in text


def test_the_version(run):
    ended = run("--version")
    assert ended.code == 0 and ended.out.startswith("modelscope-i2v ")


def test_names_that_stand_in_for_tables_that_import_torch():
    from modelscope_i2v.checkpoints.convert import Target
    from modelscope_i2v.compute.attention import KERNELS
    from modelscope_i2v.sampling.schedules import SCHEDULES
    from modelscope_i2v.sampling.solvers import SOLVERS
    from modelscope_i2v.spec import options, runtime

    assert tuple(KERNELS) == runtime.ATTENTION
    assert tuple(SOLVERS) == options.SCHEDULERS and tuple(SCHEDULES) == options.SCHEDULES
    assert get_args(Target) == convert.LAYOUTS


def test_animate_has_every_option_of_each_stage(run):
    text = run("animate", "--help").out
    for family in FAMILIES.values():
        for name in options_of(family) if family.name != "text-to-video-synthesis" else ():
            flag = name.replace("_", "-")
            there = FIELDS[name].metadata.get("cli", True)
            assert (f"  --{flag} " in text or f"  --{flag}\n" in text) == there, name
    for flag in (
        "--first-height",
        "--first-width",
        "--refine-num-inference-steps",
        "--refine-guidance-scale",
    ):
        assert f"  {flag} " in text
    assert "--first-num-inference-steps" not in text and "--refine-num-videos" not in text


def test_help_and_bad_use_import_nothing_heavy():
    code = (
        "import sys; from modelscope_i2v.cli.main import main\n"
        "codes = main(['text-to-video', '--help']), main(['text-to-video', 'a', '--height', '7'])\n"
        "heavy = {'torch', 'modelscope', 'open_clip', 'numpy', 'av', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'{codes} {heavy}' if codes != (0, 2) or heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


def test_a_closed_pipe_is_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "modelscope_i2v", "inspect", __file__, "doctor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 1 and "Traceback" not in err and "Exception ignored" not in err


class Raises:
    """A generator of videos that fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, *_, **__):
        raise self.error


@pytest.fixture
def failing(monkeypatch):
    """Makes ``text-to-video`` fail with an error once the model is loaded."""
    from modelscope_i2v.embedded import model_directory

    def fail(error: BaseException) -> list[object]:
        monkeypatch.setattr(make, "load_pipeline", lambda *_, **__: Raises(error))
        return [
            "text-to-video",
            "a",
            "--model",
            model_directory("text-to-video-synthesis"),
            "--device",
            "cpu",
        ]

    return fail


def test_an_expected_error_is_one_line_without_modelscopes_class_names(run, failing):
    try:
        try:
            raise InputError("the file is bad\nreally")
        except InputError as error:
            raise type(error)(f"TextToVideoPipeline: {error}")  # noqa: B904 - as ModelScope does it
    except InputError as wrapped:
        ended = run(*failing(wrapped))
    assert ended.code == 1 and one_line(ended.err) == "modelscope-i2v: error: the file is bad really\n"


def test_an_unexpected_error_says_how_to_see_more(run, failing):
    ended = run(*failing(ZeroDivisionError("division by zero")))
    assert ended.code == 1
    assert "ZeroDivisionError: division by zero" in one_line(ended.err) and "--debug" in ended.err


@pytest.mark.parametrize("error", [InputError("bad"), ZeroDivisionError("zero")])
@pytest.mark.parametrize("place", [0, 2])
def test_debug_shows_the_traceback(run, failing, error, place):
    arguments = failing(error)
    arguments.insert(place, "--debug")
    ended = run(*arguments)
    assert ended.code == 1 and "Traceback" in ended.err and str(error) in ended.err


def test_ctrl_c_ends_with_130_and_leaves_nothing(run, failing, tmp_path):
    ended = run(*failing(KeyboardInterrupt()))
    assert (ended.code, ended.err) == (130, "modelscope-i2v: stopped\n") and not list(tmp_path.iterdir())


def test_own_warnings_are_lines_and_others_are_not_shown(run, failing, monkeypatch):
    arguments = failing(AssertionError())

    def warn(*_, **__):
        import logging

        warnings.warn_explicit("something of ours", UserWarning, make.__file__, 1)
        warnings.warn_explicit("a library's", UserWarning, pytest.__file__, 1)
        logging.getLogger("modelscope").error("chatter")
        logging.getLogger("modelscope_i2v.media.videos").warning("a damaged\nfile")
        return lambda *_, **__: {"output_video": "a.mp4"}

    monkeypatch.setattr(make, "load_pipeline", warn)
    ended = run(*arguments)
    assert ended.code == 0
    lines = [line for line in ended.err.splitlines() if "warning" in line or "chatter" in line]
    assert lines == [
        "modelscope-i2v: warning: something of ours",
        "modelscope-i2v: warning: a damaged file",
    ]
    assert "library" not in ended.err
