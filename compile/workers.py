"""Graphs compiled side by side, in processes that end with their parent."""

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

from transformers import PretrainedConfig

from compile import failures
from compile.graphs.layers import GraphOptions
from compile.targets.base import Target
from neuron_sum import files
from neuron_sum.artifact import GraphFile

SCRATCH = "neuron-sum-compile-"
_CONTEXT = get_context("spawn")


@dataclass(frozen=True)
class Job:
    """One graph to compile.

    Attributes:
        config: Of the model.
        options: Of the artifact's graphs.
        graph: Which.
        target: Where it will run.
        path: The file to write, in the cache.
        weights: A safetensors file, where graphs hold the weights.
    """

    config: PretrainedConfig
    options: GraphOptions
    graph: GraphFile
    target: Target
    path: Path
    weights: Path | None


def compile_all(jobs: Sequence[Job], processes: int) -> Iterator[Job]:
    """Compiles jobs, and yields each when it is done; whatever ends the iteration ends the processes.

    Args:
        jobs: Of different paths.
        processes: How many at a time.

    Raises:
        CompileError: For the first graph that fails, with the file that holds its log.
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
        for worker in workers:
            worker.end()
        shutil.rmtree(scratch, ignore_errors=True)


class _Worker:
    """A process that compiles graphs, one after another: most of the first one's time is imports and probes.

    Args:
        scratch: For a folder for each graph.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.pipe, self._theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_work, args=(self._theirs, scratch))

    def start(self) -> None:
        """Starts it; apart from its making, for a Ctrl-C may come when it runs already."""
        # Until it has a group of its own, a Ctrl-C at the terminal would reach it too; we end it ourselves.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            self._theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def begin(self, job: Job) -> None:
        """Gives it a graph; it has none."""
        self._job = job
        with contextlib.suppress(ConnectionError):  # it died, as `finish` will find
            self.pipe.send(job)

    def finish(self) -> Job:
        """Its graph, once the pipe says that there is news; a process that takes no other one has ended then.

        Raises:
            CompileError: If it did not compile.
        """
        job, own = self._job, self._scratch / self._job.path.stem
        try:
            failure: str | None = self.pipe.recv()
        except (EOFError, ConnectionResetError):  # it died before it could say anything
            self._process.join()
            failure = failures.ended(self._process.exitcode)
        if failure is not None or not job.target.shares_process:
            self._process.join()  # its last words are in its output then
        if failure is not None:
            raise failures.failed(
                f"{job.graph.file} did not compile",
                failure,
                [own / failures.OUTPUT, *failures.compiler_logs(own)],
                job.path.with_suffix(".log"),
                job.target.memory_advice(),
            )
        return job

    def end(self) -> None:
        """Kills it, and the compiler that it may have started, unless it has ended: its id may be another's."""
        if self._process.is_alive():
            assert self._process.pid is not None  # it lives
            with contextlib.suppress(ProcessLookupError):  # it has no group of its own before it has begun
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
        self.pipe.close()


def _work(pipe: Connection, scratch: Path) -> None:
    """What a process does with each job: compile in a folder of the job's own, then move the graph into the cache."""
    os.setpgid(0, 0)  # so that the compiler goes with us when we are killed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:  # nobody wants more of it
            return
        own = scratch / job.path.stem  # it stays as long as the process does: Inductor remembers paths in its first one
        own.mkdir()
        with (own / failures.OUTPUT).open("wb") as output:  # a compiler talks, and neuronx-cc's reasons stand there
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        failure = None
        try:
            _compile(job, own)
        except Exception:  # noqa: BLE001  handed to the parent, which raises
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
    made = scratch / f"graph{job.target.suffix}"
    job.target.compile_graph(static_model(job.config, job.options), job.graph, weights, made)
    temporary = job.path.with_name(f".{job.path.name}.tmp-{os.getpid()}")
    shutil.move(made, temporary)
    temporary.replace(job.path)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
