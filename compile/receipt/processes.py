"""The end of a step with all its processes, because one that remains keeps the device in use."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import psutil

MARK = "NEURON_SUM_RECEIPT_STEP"
"""The variable that all processes of a step inherit, with a value of this run of the step."""
POLL_S = 0.2
"""Seconds between checks."""
END_S = 10
"""Seconds until killed processes are no longer waited for: one in a call to the driver ends later."""


def end_step(process: "subprocess.Popen[Any]", mark: str) -> None:
    """Kills a step and all processes that it started: children in other sessions, as those of torchrun, and orphans.

    Args:
        process: The process of the step, which may have ended.
        mark: The value of MARK in its environment.
    """
    try:
        if process.poll() is None:
            with suppress(psutil.Error):
                step = psutil.Process(process.pid)
                step.suspend()  # so that it does not record the end of its children as a result
                _kill(step.children(recursive=True))
    finally:
        process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_S)
    deadline = time.monotonic() + END_S
    while (remaining := list(_marked(mark))) and time.monotonic() < deadline:
        _kill(remaining)
        time.sleep(POLL_S / 10)


def end_with_runner(runner: int) -> None:
    """Ends this step and all its processes if the runner dies, because the next one would find the device in use.

    Args:
        runner: The process id of the runner.
    """
    mark = os.environ[MARK]

    def watch() -> None:
        while os.getppid() == runner:
            time.sleep(POLL_S)
        here = psutil.Process()
        for pid in {process.pid for process in (*here.children(recursive=True), *_marked(mark))} - {here.pid}:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        os.kill(here.pid, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _marked(mark: str) -> Iterator[psutil.Process]:
    """The processes with this mark in their environment; one that has ended has no environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark:
                yield process


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
