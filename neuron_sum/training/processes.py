"""Several training processes on this machine, under one parent that forwards signals and returns their exit code.

The agent of torchrun starts them, so their environment is that of torchrun. Its command line is not used: it gives
processes 30 s to end after a signal, which a step and a checkpoint may exceed, and always exits with 1 and a trace.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from neuron_sum import console, files
from neuron_sum.errors import NeuronSumError
from neuron_sum.recipes.schema import TrainConfig
from neuron_sum.subprocesses import ending_with_parent

POLL_S = 0.1
"""Seconds between checks of the processes; the same interval as in torchrun."""


def run_processes(command: Sequence[str], processes: int, port: int) -> int:
    """Run a `neuron-sum` command in several processes, and wait for their end without a time limit.

    Ctrl-C, SIGTERM or SIGHUP makes all of them save and stop; a second Ctrl-C kills them immediately.

    Args:
        command: The arguments of `python -m neuron_sum`.
        processes: The number of processes.
        port: The TCP port of their rendezvous.

    Returns:
        The exit code of the first process that failed, whose error is printed; 0 if none failed.

    Raises:
        NeuronSumError: If a process was killed.
        KeyboardInterrupt: If they were stopped before one could report an error.
    """
    # They are killed if this process is: without it, a step that exchanges gradients may never end.
    program = ending_with_parent([sys.executable, "-u", "-m", "neuron_sum", *command], "KILL")
    options = [f"--nproc_per_node={processes}", f"--master_port={port}", "--no_python", *program]
    stop = _Stop()
    with tempfile.TemporaryDirectory(prefix="neuron-sum-processes-") as folder, stop.listening():
        try:
            with _silent_agent(), console.collect_errors(Path(folder)), ThreadPoolExecutor(1) as pool:
                config, start, arguments = config_from_args(parse_args(options))  # type: ignore[no-untyped-call]
                # In a thread the agent does not handle signals: the main thread receives them.
                agent = pool.submit(elastic_launch(config, start), *arguments)
                stop.wait_for(agent)
            agent.result()
        except ChildFailedError as error:
            # A killed process comes first: the others fail only because they lose it.
            rank, failure = min(error.failures.items(), key=lambda each: (each[1].exitcode >= 0, each[1].timestamp))
            report = Path(folder) / f"{rank}.json"
            if report.exists() and not stop.immediate:
                console.fail(**files.read_json(report))
            elif stop.requested:
                raise KeyboardInterrupt from None
            elif failure.exitcode < 0:
                raise NeuronSumError(
                    f"process {rank} of {processes} was killed by {failure.signal_name()}",
                    "after a SIGKILL, run `dmesg` to see whether main memory was full",
                ) from None
            return int(failure.exitcode)
    return 0


class _Stop:
    """The stop requested by signals.

    Attributes:
        requested: Whether the processes must save and stop.
        immediate: Whether they must end now.
    """

    def __init__(self) -> None:
        self.requested = self.immediate = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals for the duration of a block; SIGHUP stays ignored under nohup."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._request) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def wait_for(self, agent: Future[Any]) -> None:
        """Wait for the agent's end; send every process one SIGTERM on a stop, including those that start later."""
        terminated: set[int] = set()
        parent = psutil.Process()
        while not agent.done():
            wait([agent], POLL_S)
            if not self.requested:
                continue
            for process in parent.children(recursive=self.immediate):
                with suppress(psutil.NoSuchProcess):
                    if self.immediate:
                        process.kill()
                    elif process.pid not in terminated:
                        terminated.add(process.pid)
                        process.terminate()  # they run in separate sessions: the terminal's Ctrl-C does not reach them

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.immediate = self.immediate or (self.requested and number == signal.SIGINT)
        self.requested = True


@contextmanager
def _silent_agent() -> Iterator[None]:
    """Silence the agent's log, which reports failed processes in its format; --debug keeps it in the trace."""
    previous = logging.root.manager.disable
    if not console.settings.debug:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(previous)


def world_size() -> int:
    """The number of processes that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def host_count() -> int:
    """The number of machines on which torchrun started processes."""
    return max(world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size())), 1)


def device_count(train: TrainConfig, processes: int) -> int:
    """The number of devices with a separate batch: one per process, or every GPU of a single process (DataParallel).

    Args:
        train: The train section; processes that share one copy of the model also share one batch.
        processes: The number of processes that train together.
    """
    count = processes if processes > 1 else max(1, torch.cuda.device_count())
    return max(count // train.neuron.tensor_parallel_size, 1)
