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

from compile import failures
from compile.layers import GraphOptions
from compile.target import Target
from neuron_sum import files
from neuron_sum.artifact import GraphFile

SCRATCH = "neuron-sum-compile-"


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
                    failure = failures.ended(process.exitcode)
                process.join()
                del running[ready]
                ready.close()
                if failure is not None:
                    own = scratch / job.path.stem
                    raise failures.failed(
                        f"{job.graph.file} did not compile", failure,
                        [own / failures.OUTPUT, *failures.compiler_logs(own)], job.path.with_suffix(".log"),
                        job.target.memory_advice(),
                    )  # fmt: skip
                yield job
    finally:
        for process, _ in running.values():
            with contextlib.suppress(ProcessLookupError):  # it has no group of its own before it has begun
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            process.join()
        shutil.rmtree(scratch, ignore_errors=True)


def _work(job: Job, scratch: Path, result: Connection) -> None:
    """What a process does: compile in a folder of its own, then move the graph into the cache."""
    os.setpgid(0, 0)  # so that the compiler goes with us when we are killed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    scratch.mkdir()
    with (scratch / failures.OUTPUT).open("wb") as output:  # a compiler talks, and neuronx-cc's reasons stand there
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        import torch
        from safetensors.torch import load_file

        from compile.graphs import static_model

        torch.set_num_threads(1)
        weights = load_file(job.weights) if job.weights is not None else None
        made = scratch / f"graph{job.target.suffix}"
        job.target.compile_graph(static_model(job.config, job.options), job.graph, weights, made)
        temporary = job.path.with_name(f".{job.path.name}.tmp-{os.getpid()}")
        shutil.move(made, temporary)
        temporary.replace(job.path)
        result.send(None)
    except Exception:  # noqa: BLE001  handed to the parent, which raises
        result.send(traceback.format_exc())


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
