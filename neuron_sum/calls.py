"""The frame of every function of the Python API: output and errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from neuron_sum import console
from neuron_sum.errors import known_cause


@contextmanager
def api_call(progress: bool) -> Iterator[None]:
    """The body of a function of the Python API, which prints nothing unless requested.

    Args:
        progress: Whether to print progress and messages to standard error. If not, warnings are Python warnings.

    Raises:
        ResourceError: If a disk, a path or the memory of this machine is the cause of another exception.
    """
    console.silence_libraries()
    previous, console.settings.hidden = console.settings.hidden, not progress
    try:
        yield
    except Exception as error:
        if (known := known_cause(error)) is None or known is error:
            raise
        raise known from error
    finally:
        console.settings.hidden = previous
