"""Worker processes that compile graphs in parallel and end with their parent."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from tqdm import tqdm
from transformers import PretrainedConfig

from compile import failures
from compile.graphs.layers import GraphOptions
from compile.targets.base import Target
from neuron_sum import files
from neuron_sum.artifact import GraphFile

SCRATCH = "neuron-sum-compile-"
CLOSING_S = 20.0
"""Seconds that an idle process has to end by itself; it needs less than one on a machine without other work."""
_CONTEXT = get_context("spawn")


@dataclass(frozen=True)
class Job:
    """One graph to compile.

    Attributes:
        config: The model's configuration.
        options: The options of the artifact's graphs.
        graph: The graph to compile.
        target: The device that the graph is compiled for.
        path: The file to write, in the cache.
        weights: A safetensors file if graphs contain the weights, otherwise None.
    """

    config: PretrainedConfig
    options: GraphOptions
    graph: GraphFile
    target: Target
    path: Path
    weights: Path | None


def compile_all(jobs: Sequence[Job], processes: int) -> Iterator[Job]:
    """Compiles jobs and yields each when it is done; the processes end when the iteration ends, for any reason.

    Args:
        jobs: The graphs to compile, each with a different path.
        processes: The number of processes that run in parallel.

    Raises:
        CompileError: For the first graph that fails, with the path of its log.
    """
    files.sweep(Path(tempfile.gettempdir()), SCRATCH)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH))
    waiting, idle, busy, workers = list(jobs), list[_Worker](), dict[Connection, _Worker](), list[_Worker]()
    try:
        while waiting or busy:
            while waiting and len(busy) < processes:
                if not idle:
                    workers.append(_Worker(scratch))
                    workers[-1].start()
                    idle.append(workers[-1])
                worker = idle.pop()
                worker.begin(waiting.pop(0))
                busy[worker.pipe] = worker
            for ready in connection.wait(list(busy)):
                assert isinstance(ready, Connection)
                worker = busy.pop(ready)
                job = worker.finish()
                if job.target.shares_process:
                    idle.append(worker)
                yield job
    finally:
        with contextlib.ExitStack() as ending:  # ends every process, also if a second Ctrl-C interrupts one end
            ending.callback(shutil.rmtree, scratch, ignore_errors=True)
            for worker in workers:
                ending.callback(worker.end, CLOSING_S if worker in idle else 0)
            for worker in idle:
                ending.callback(worker.close)


class _Worker:
    """A process that compiles graphs, one after another, because imports and probes take most of the first one's time.

    Args:
        scratch: The parent of the temporary folder of each graph.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.pipe, self._child_pipe = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_work, args=(self._child_pipe, scratch))

    def start(self) -> None:
        """Starts the process; separate from `__init__`, because a Ctrl-C may come when the process already runs."""
        # Until the process has a separate group, a Ctrl-C at the terminal would reach it too; `end` kills it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # otherwise the process would run the caller's script again
        try:
            self._process.start()
        finally:
            sys.modules["__main__"] = main
            self._child_pipe.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def begin(self, job: Job) -> None:
        """Sends a graph to the idle process."""
        self._job = job
        with contextlib.suppress(ConnectionError):  # the process died; `finish` reports it
            self.pipe.send(job)

    def finish(self) -> Job:
        """Returns the compiled graph; call it when the pipe is ready. A process for one graph has ended afterwards.

        Raises:
            CompileError: If the graph did not compile.
        """
        job, folder = self._job, self._scratch / self._job.path.stem
        try:
            failure: str | None = self.pipe.recv()
        except (EOFError, ConnectionResetError):  # the process died without reporting an error
            self._process.join()
            failure = failures.exit_reason(self._process.exitcode)
        if failure is not None or not job.target.shares_process:
            self._process.join()  # so that its output is complete
        if failure is not None:
            raise failures.compile_error(
                f"{job.graph.file} did not compile",
                failure,
                [folder / failures.OUTPUT, *failures.compiler_logs(folder)],
                job.path.with_suffix(".log"),
                job.target.memory_advice(),
            )
        return job

    def close(self) -> None:
        """Tells the idle process to end by itself, so that it releases its semaphores."""
        self.pipe.close()

    def end(self, seconds: float) -> None:
        """Kills the process and its compiler, unless it has ended, since another process may have its id by then.

        Args:
            seconds: The time that the process has to end by itself.
        """
        if (pid := self._process.pid) is None:  # it could not be started
            self.pipe.close()
            return
        try:
            self._process.join(seconds)
        finally:  # also after Ctrl-C
            if self._process.is_alive():
                with contextlib.suppress(ProcessLookupError):  # a process that has just started has no separate group
                    os.killpg(pid, signal.SIGKILL)
                self._process.kill()
                self._process.join()
            self.pipe.close()


def _work(pipe: Connection, scratch: Path) -> None:
    """The main function of a process: compiles each job in a separate folder, then moves the graph into the cache."""
    os.setpgid(0, 0)  # so that the compiler is killed together with this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    tqdm.set_lock(threading.RLock())  # a killed process would leave behind the semaphore of the default lock
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:  # no more jobs
            return
        folder = scratch / job.path.stem  # kept until the process ends: Inductor remembers paths in the first one
        folder.mkdir()
        with (folder / failures.OUTPUT).open("wb") as output:  # neuronx-cc prints the reasons of failures
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        failure = None
        try:
            _compile(job, folder)
        except Exception:  # noqa: BLE001  passed to the parent, which raises
            failure = traceback.format_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        pipe.send(failure)
        if failure is not None or not job.target.shares_process:
            return


def _compile(job: Job, scratch: Path) -> None:
    import torch
    from safetensors.torch import load_file

    from compile.graphs.static import static_model

    torch.set_num_threads(1)
    weights = load_file(job.weights) if job.weights is not None else None
    compiled = scratch / f"graph{job.target.suffix}"
    job.target.compile_graph(static_model(job.config, job.options), job.graph, weights, compiled)
    temporary = job.path.with_name(f".{job.path.name}.tmp-{os.getpid()}")
    shutil.move(compiled, temporary)
    temporary.replace(job.path)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
