"""Messages that any terminal and any log can show, whatever a file is called."""

from __future__ import annotations

import pytest

from modelscope_i2v import errors


@pytest.mark.parametrize("kind", [errors.CheckpointError, errors.InputError, errors.OutputError])
def test_messages_hold_nothing_that_is_not_text(kind: type[errors.VideoError]) -> None:
    error = kind("a\nb \x1b[31mred\x1b[0m \x9b1m \u202eback \udcff end.")
    assert str(error) == "a b ?[31mred?[0m ?1m ?back ? end."
    assert (
        str(kind(f"{kind.__name__}: {error}")) == f"{kind.__name__}: {error}"
    )  # as ModelScope raises it again


def test_long_names_leave_the_rest_of_the_sentence() -> None:
    message = str(errors.CheckpointError(f"There is no file {'x' * 5000}, which model_args.ckpt_unet names."))
    assert len(message) < 400 and message.endswith("x, which model_args.ckpt_unet names.")
    assert len(str(errors.InputError("word " * 5000))) <= 3000


def test_an_output_error_is_an_oserror_with_its_message() -> None:
    with pytest.raises(OSError, match=r"^no where$"):
        raise errors.OutputError("no\nwhere")
