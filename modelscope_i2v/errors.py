"""The errors a person is meant to read.

Every message is one sentence or two: what was wrong, where (file, key or argument), and what would
be right. All of them accept a single string, because ModelScope re-raises whatever a constructor
raises as ``type(error)(f"{class name}: {error}")``.
"""


class VideoError(Exception):
    """Base of all errors that this package raises on purpose."""


class InputError(VideoError, ValueError):
    """An argument, an option or an input file that cannot be used."""


class CheckpointError(VideoError):
    """A model directory or a weights file that cannot be used."""


class OutputError(VideoError, OSError):
    """A result that cannot be written where it was asked for."""


class OutOfMemoryError(VideoError, RuntimeError):
    """The device has too little memory; the message names the options that need less."""


class NumericalError(VideoError, ArithmeticError):
    """A result with NaN or infinity, also after computing it again in a wider type."""


class Cancelled(VideoError):
    """A callback returned ``False``."""
