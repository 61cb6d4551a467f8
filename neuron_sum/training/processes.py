"""Several training processes on this machine, under one parent that hands signals on and ends as they end.

torchrun's own agent starts them, so their environment is torchrun's. Its command line is not used: it gives processes
30 s to end after a signal, which a step and a checkpoint may exceed, and exits with 1 and a trace whatever they say.
"""

import logging
import os
import signal
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

LOOK_S = 0.1
"""How often the parent looks after the processes; torchrun's own interval."""


def run_processes(command: Sequence[str], processes: int, port: int) -> int:
    """Runs a command of ours in several processes, and waits as long as they take.

    Ctrl-C, SIGTERM or SIGHUP asks all of them to stop; a second Ctrl-C ends them at once.

    Args:
        command: What follows `python -m neuron_sum`.
        processes: How many.
        port: Where they meet.

    Returns:
        The exit code of the first that failed, whose error is printed; 0 if none did.

    Raises:
        NeuronSumError: If one was killed.
        KeyboardInterrupt: If they were stopped before they could say more.
    """
    options = [f"--nproc_per_node={processes}", f"--master_port={port}", "-m", "neuron_sum", *command]
    stop = _Stop()
    with tempfile.TemporaryDirectory(prefix="neuron-sum-processes-") as folder, stop.listening():
        try:
            with _silent_agent(), console.collect_errors(Path(folder)), ThreadPoolExecutor(1) as pool:
                config, program, arguments = config_from_args(parse_args(options))  # type: ignore[no-untyped-call]
                # In a thread the agent leaves signals alone: they come to the main one.
                agent = pool.submit(elastic_launch(config, program), *arguments)
                stop.look_after(agent)
            agent.result()
        except ChildFailedError as error:
            # One that was killed first: the others only fail for they lose it.
            rank, failure = min(error.failures.items(), key=lambda each: (each[1].exitcode >= 0, each[1].timestamp))
            said = Path(folder) / f"{rank}.json"
            if said.exists() and not stop.at_once:
                console.fail(**files.read_json(said))
            elif stop.asked:
                raise KeyboardInterrupt from None
            elif failure.exitcode < 0:
                raise NeuronSumError(
                    f"process {rank} of {processes} was ended by {failure.signal_name()}",
                    "SIGKILL often comes from the kernel when main memory is full: `dmesg` says so",
                ) from None
            return int(failure.exitcode)
    return 0


class _Stop:
    """What signals ask for.

    Attributes:
        asked: Whether the processes shall save and stop.
        at_once: Whether they shall end now.
    """

    def __init__(self) -> None:
        self.asked = self.at_once = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over for the length of a block; nohup's SIGHUP stays ignored."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def look_after(self, agent: Future[Any]) -> None:
        """Waits for the agent's end; tells every process once that it shall stop, those too that start later."""
        told: set[int] = set()
        parent = psutil.Process()
        while not agent.done():
            wait([agent], LOOK_S)
            if not self.asked:
                continue
            for process in parent.children(recursive=self.at_once):
                with suppress(psutil.NoSuchProcess):
                    if self.at_once:
                        process.kill()
                    elif process.pid not in told:
                        told.add(process.pid)
                        process.terminate()  # they have sessions of their own: no Ctrl-C reaches them but this

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.at_once = self.at_once or (self.asked and number == signal.SIGINT)
        self.asked = True


@contextmanager
def _silent_agent() -> Iterator[None]:
    """The agent's own log tells of processes that failed, in its words; the trace under --debug keeps it."""
    before = logging.root.manager.disable
    if not console.settings.debug:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def world_size() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def host_count() -> int:
    """On how many machines it started them."""
    return max(world_size() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size())), 1)


def device_count(train: TrainConfig, processes: int) -> int:
    """How many devices take a batch each: a process's own, or every GPU of a single process (DataParallel).

    Args:
        train: Says how many share one copy of the model, and so one batch.
        processes: How many train together.
    """
    count = processes if processes > 1 else max(1, torch.cuda.device_count())
    return max(count // train.neuron.tensor_parallel_size, 1)
