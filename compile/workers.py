"""Graphs compiled side by side, each in a process of its own that ends with its parent."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from transformers import PretrainedConfig

from compile.layers import GraphOptions
from neuron_sum import files
from neuron_sum.artifact import GraphFile
from neuron_sum.errors import CompileError

SCRATCH = "neuron-sum-compile-"


@dataclass(frozen=True)
class Job:
    """One graph to compile.

    Attributes:
        config: Of the model.
        options: Of the artifact's graphs.
        graph: Which.
        path: The package to write, in the cache.
    """

    config: PretrainedConfig
    options: GraphOptions
    graph: GraphFile
    path: Path


def compile_all(jobs: Sequence[Job], processes: int) -> Iterator[Job]:
    """Compiles jobs, and yields each when it is done; whatever ends the iteration ends the processes.

    Args:
        jobs: Of different paths.
        processes: How many at a time.

    Raises:
        CompileError: For the first graph that fails, with the file that holds its log.
    """
    context = get_context("spawn")
    waiting, running = list(jobs), dict[Connection, tuple[SpawnProcess, Job]]()
    files.sweep(Path(tempfile.gettempdir()), SCRATCH)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH))
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(job, scratch / job.path.stem, theirs))
                # Until it has a group of its own, a Ctrl-C at the terminal would reach it too; we end it ourselves.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                process.start()
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                theirs.close()
                running[ours] = process, job
            for ready in connection.wait(list(running)):
                assert isinstance(ready, Connection)
                process, job = running[ready]
                try:
                    failure: str | None = ready.recv()
                except EOFError:  # it died before it could say anything
                    process.join()
                    failure = f"the compiler's process ended with {process.exitcode}"
                    if process.exitcode == -signal.SIGKILL:
                        failure += ": killed, most likely for want of memory; --jobs 1 needs the least"
                process.join()
                del running[ready]
                ready.close()
                if failure is not None:
                    raise _failed(job, failure)
                yield job
    finally:
        for process, _ in running.values():
            with contextlib.suppress(ProcessLookupError):  # it has no group of its own before it has begun
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()
        shutil.rmtree(scratch, ignore_errors=True)


def _failed(job: Job, failure: str) -> CompileError:
    log = job.path.with_suffix(".log")
    files.write_text(log, failure)
    return CompileError(
        f"{job.graph.file} did not compile: {failure.strip().splitlines()[-1]:.200}", f"whole log: {log}"
    )


def _work(job: Job, scratch: Path, result: Connection) -> None:
    """What a process does: compile in a folder of its own, then move the package into the cache."""
    os.setpgid(0, 0)  # so that the C++ compiler goes with us when we are killed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    scratch.mkdir()
    os.environ.update(OMP_NUM_THREADS="1", TORCHINDUCTOR_CACHE_DIR=str(scratch / "inductor"))
    try:
        import torch
        import torch._inductor.config

        from compile.cpu import compile_graph
        from compile.graphs import static_model

        torch.set_num_threads(1)
        torch._inductor.config.compile_threads = 1  # one C++ compiler: this process is one of several already
        compile_graph(static_model(job.config, job.options), job.graph, scratch / "graph.pt2")
        temporary = job.path.with_name(f".{job.path.name}.tmp-{os.getpid()}")
        shutil.move(scratch / "graph.pt2", temporary)
        temporary.replace(job.path)
        result.send(None)
    except Exception:  # noqa: BLE001  handed to the parent, which raises
        result.send(traceback.format_exc())


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
