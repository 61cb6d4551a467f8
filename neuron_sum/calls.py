"""The frame of every function of the Python API: output, threads and errors."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from neuron_sum import console
from neuron_sum.errors import known_cause
from neuron_sum.platform import threads


@contextmanager
def api_call(progress: bool) -> Iterator[None]:
    """The body of a function of the Python API, which prints nothing unless requested.

    Args:
        progress: Whether to print progress and messages to standard error. If not, warnings are Python warnings.

    Raises:
        ResourceError: If a disk, a path or the memory of this machine is the cause of another exception.
    """
    console.silence_libraries()
    if "torch" not in sys.modules and threads.CHOSEN not in os.environ:  # torch's OpenMP reads them when it is loaded
        threads.choose(os.environ, threads.usage(), serves=True)
    token = console.hidden.set(not progress)
    try:
        yield
    except Exception as error:
        if (known := known_cause(error)) is None or known is error:
            raise
        raise known from error
    finally:
        console.hidden.reset(token)
