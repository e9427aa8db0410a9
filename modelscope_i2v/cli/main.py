"""``modelscope-i2v``: which command runs, and how its end is told.

Exit codes: 0; 2 for a command line that cannot be meant; 1 for anything else that failed; 130 for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import VideoError
from ..version import __version__
from . import animate, convert, decode, demo, doctor, evaluate, make, switch, train
from . import inspect as inspection
from .parser import PROGRAM, Parser, UsageError, common, note

OK, FAILED, BAD_USE, STOPPED = 0, 1, 2, 130

_DESCRIPTION = "Makes videos from pictures, videos and texts with ModelScope's models."
_EPILOG = f"""\
examples:
  {PROGRAM} demo                          a first video, offline, in a minute
  {PROGRAM} doctor                        what this machine has, and what it lacks
  {PROGRAM} image-to-video cat.png        a video of a picture: cat.mp4
  {PROGRAM} image-to-video --help         all about one command
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (by default the process's own) and returns its exit code."""
    # A name that the terminal's encoding lacks must not end a run of an hour.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # OpenMP's threads that wait for work spin by default, and take the cores from those that have some where
    # other processes run too. PyTorch's libgomp reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        with _own_messages(debug):
            code = _run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UsageError as error:
        note(f"error: {error}")
        return BAD_USE
    except KeyboardInterrupt:
        note("stopped")
        return STOPPED
    except BrokenPipeError:  # whoever read the output has gone
        _close_output()
        return FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif isinstance(error, VideoError):
            note(f"error: {_one_line(_original(error))}")
        else:
            what = f"{type(error).__name__}: {_one_line(error)}"
            note(f"error: {what} (unexpected; --debug shows where it came from)")
        return FAILED


def _run(arguments: list[str]) -> int:
    parser, commands = build_parser()
    try:
        args, rest = parser.parse_known_args(arguments)
    except SystemExit as end:  # --help and --version
        return int(end.code or OK)
    if args.command is None:
        if rest:
            parser.reject(rest)
        parser.print_help(sys.stderr)
        return BAD_USE
    if rest:
        commands[args.command].reject(rest)
    return args.run(args)


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser, and those of its commands by name."""
    parent = common()
    parser = Parser(prog=PROGRAM, description=_DESCRIPTION, epilog=_EPILOG, parents=[parent])
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    chooser = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands: dict[str, Parser] = {}

    def command(
        name: str,
        run: Any,
        summary: str,
        text: str = "",
        examples: str = "",
        usage: str | None = None,
        aliases: Sequence[str] = (),
    ) -> Parser:
        made = chooser.add_parser(
            name,
            usage=usage and f"{PROGRAM} {name} {usage}",
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.{text}",
            epilog=f"examples:\n{examples}" if examples else None,
            parents=[parent],
            aliases=aliases,
        )
        made.set_defaults(run=run)
        commands.update(dict.fromkeys((name, *aliases), made))
        return made

    for module in (make, animate, decode, demo, train, convert, evaluate, inspection, doctor, switch):
        module.add_commands(command)
    return parser, commands


@contextlib.contextmanager
def _own_messages(debug: bool) -> Iterator[None]:
    """Shows this package's warnings as lines of its own, and none of the libraries' chatter."""
    if debug:
        yield
        return
    package = str(Path(__file__).resolve().parent.parent)

    def show(message: Any, category: type, filename: str, *_: Any, **__: Any) -> None:
        if str(Path(filename).resolve()).startswith(package):
            note(f"warning: {_one_line(message)}")

    # A filter, since ModelScope sets its logger's level again with each of its imports.
    chatter, ours = logging.getLogger("modelscope"), logging.getLogger(__name__.partition(".")[0])
    handler = _Lines(logging.WARNING)
    chatter.addFilter(_nothing)
    ours.addHandler(handler)
    propagated, ours.propagate = ours.propagate, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = show
            yield
    finally:
        chatter.removeFilter(_nothing)
        ours.removeHandler(handler)
        ours.propagate = propagated


def _nothing(record: logging.LogRecord) -> bool:
    return False  # what matters comes as an exception too


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # a terminal that has gone away ends no work
            note(f"{record.levelname.lower()}: {_one_line(record.getMessage())}")


def _one_line(text: Any) -> str:
    return " ".join(str(text).split()) or type(text).__name__


def _original(error: BaseException) -> BaseException:
    """The error before ModelScope put the names of its classes in front of the message."""
    inner = error.__context__
    while inner is not None and type(inner) is type(error) and str(error).endswith(f": {inner}"):
        error, inner = inner, inner.__context__
    return error


def _close_output() -> None:
    """Lets Python's own flush at exit go nowhere, which would complain of the broken pipe again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
