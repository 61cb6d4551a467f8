"""Exceptions of libraries become errors that name the file."""

import errno
from contextlib import suppress

import pytest

from neuron_sum.errors import DataError, Interrupted, ModelError, NeuronSumError, ResourceError, reading


class Panic(BaseException):
    """What a Rust library raises."""


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), DataError, "a.csv cannot be read: 'utf-8'"),
        (RecursionError("maximum depth"), DataError, "a.csv cannot be read: maximum depth"),
        (Panic(), DataError, "a.csv cannot be read: Panic"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), DataError, "a.csv cannot be read: File name too long"),
        (OSError(errno.ENOSPC, "No space left on device"), ResourceError, "the disk is full: a.csv"),
        (MemoryError(), ResourceError, "a.csv does not fit into memory"),
        (ModelError("an error of a model"), ModelError, "an error of a model"),
    ],
)
def test_what_a_reader_raises_becomes_one_error(
    raised: BaseException, expected: type[NeuronSumError], message: str
) -> None:
    with pytest.raises(expected) as error, reading("a.csv", DataError, "a hint"):
        raise raised
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped", "start again")])
def test_a_stop_is_neither_converted_nor_caught_as_an_error(stop: KeyboardInterrupt) -> None:
    with pytest.raises(type(stop)), suppress(Exception), reading("a.csv", DataError):
        raise stop
