"""Fuzzing of all readers and commands with changed copies of valid files.

    python -m benchmarks.fuzz [--inputs 20000] [--reader NAME]... [--output fuzz-failures] [--processes 2]

A reader accepts an input or rejects it with an error of neuron-sum. Everything else is a failure: another exception, a
crash, more than 10 seconds or more than 2 GB. Prints the numbers for each reader, and every distinct failure with the
seed of its first input. That input is reduced and saved below the output folder. Exits with 1 if anything failed.
Ctrl-C ends the run early and prints what is known.
"""

import argparse
import hashlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random

import psutil

from benchmarks.fuzz_readers import Files, Reader, all_readers
from neuron_sum import console, files
from neuron_sum.errors import NeuronSumError
from serving.schema import ServiceError

CPU_LIMIT_S = 10
WALL_LIMIT_S = 60
"""After this time without an answer, a process is killed: it may wait instead of calculating."""
MEMORY_LIMIT = 2 * 1024**3
REJECTED, ACCEPTED, LIMIT = "our errors", "accepted", "more than"
PACKAGES = re.compile(r'File ".*?((?:neuron_sum|compile|serving|sagemaker_jobs)/[\w/]+\.py)", line (\d+)')

Task = tuple[str, int]
"""The name of a reader and the seed of an input."""


class Hang(BaseException):
    """An input needs more than CPU_LIMIT_S."""


@dataclass(frozen=True)
class Failure:
    """One failed input.

    Attributes:
        reader: The name of the reader.
        seed: The seed of the input.
        kind: The exception, and the last line of neuron-sum in its traceback; equal for failures with one cause.
        detail: The traceback.
    """

    reader: str
    seed: int
    kind: str
    detail: str = ""


def run(
    tasks: Sequence[Task], readers: dict[str, Reader], output: Path, processes: int = 2
) -> tuple[Counter[tuple[str, str]], list[Failure]]:
    """Reads inputs in several processes.

    Returns:
        The number of inputs by reader and outcome, and the failures.
    """
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[Failure] = []
    # Small portions, because the inputs of some readers take much longer than those of others.
    portions = [tasks[start : start + 200] for start in range(0, len(tasks), 200)]
    Random(0).shuffle(portions)  # so that an interrupted run has read inputs of every reader
    waiting = deque(portions)
    workers: list[_Worker] = []
    with suppress(KeyboardInterrupt), console.progress("inputs", len(tasks)) as bar:
        while waiting or workers:
            while waiting and len(workers) < processes:
                workers.append(_Worker(waiting.popleft(), readers, output))
            wait([worker.connection for worker in workers], timeout=1)
            for worker in list(workers):
                for outcome in worker.outcomes():
                    bar.advance()
                    name, result = outcome
                    counts[name, result if isinstance(result, str) else "failures"] += 1
                    if isinstance(result, Failure):
                        failures.append(result)
                if worker.ended:
                    workers.remove(worker)
                    if rest := worker.close():
                        waiting.appendleft(rest)
    return counts, failures


class _Worker:
    """A process that reads some inputs, one after another."""

    def __init__(self, tasks: Sequence[Task], readers: dict[str, Reader], output: Path) -> None:
        self._tasks, self._done, self._since = tasks, 0, time.monotonic()
        self.connection, end = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")  # the libraries are loaded only once
        self._process = context.Process(target=_work, args=(tasks, readers, output, end), daemon=True)
        self._process.start()
        end.close()
        self.ended = False

    def outcomes(self) -> list[tuple[str, str | Failure]]:
        """What the process has reported since the last call."""
        reported: list[tuple[str, str | Failure]] = []
        name, seed = self._tasks[min(self._done, len(self._tasks) - 1)]
        try:
            while self.connection.poll():
                reported.append(self.connection.recv())
                self._done += 1
                self._since = time.monotonic()
        except EOFError:
            self.ended = True
            if self._done < len(self._tasks):
                name, seed = self._tasks[self._done]
                self._process.join()
                self._done += 1
                reported.append((name, Failure(name, seed, f"the process ended with {self._process.exitcode}")))
        if not self.ended and time.monotonic() - self._since > WALL_LIMIT_S:
            self._process.kill()
            self._process.join()
            self.ended, name, seed = True, *self._tasks[self._done]
            self._done += 1
            reported.append((name, Failure(name, seed, f"no answer after {WALL_LIMIT_S} s")))
        return reported

    def close(self) -> Sequence[Task]:
        """Ends the process and returns the tasks that it has not done."""
        self._process.join()
        self.connection.close()
        return self._tasks[self._done :]


def _work(tasks: Sequence[Task], readers: dict[str, Reader], output: Path, connection: Connection) -> None:
    """Reads inputs in a process with limits on memory and time, without a terminal."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.environ["HF_HUB_OFFLINE"] = "1"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = psutil.Process().memory_info().vms + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, _stop)
    with tempfile.TemporaryDirectory(prefix="nsum-fuzz-") as folder:
        for name, seed in tasks:
            result = check(readers[name], seed, Path(folder) / "input", output)
            connection.send((name, result))
    connection.close()


def _stop(*_: object) -> None:
    raise Hang


def check(reader: Reader, seed: int, folder: Path, output: Path) -> str | Failure:
    """Reads one input; reduces and saves it if its failure is a new one."""
    random = Random(f"{reader.name} {seed}")
    content = reader.make(random)
    kind, detail = _outcome(reader, content, folder, seed)
    if kind in (ACCEPTED, REJECTED):
        return kind
    place = output / f"{re.sub(r'[^a-z0-9]+', '-', reader.name)}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
    if not place.exists():
        with suppress(FileExistsError), files.new_folder(place) as saved:
            _write(saved, content if kind.startswith(LIMIT) else _reduce(reader, content, kind, folder, seed))
            (saved / "failure.txt").write_text(
                f"{reader.name}, seed {seed}: {kind}\n\n{detail}", errors="backslashreplace"
            )
    return Failure(reader.name, seed, kind, detail)


def _outcome(reader: Reader, content: Files, folder: Path, seed: int) -> tuple[str, str]:
    """Accepted, rejected, or the kind of a failure with its traceback."""
    shutil.rmtree(folder, ignore_errors=True)
    _write(folder, content)
    if reader.complete is not None:
        reader.complete(folder, Random(seed))
    raised: BaseException | None = None
    started = time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
        reader.read(folder)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - what it is decides whether it is a failure
        raised = error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    elapsed = time.process_time() - started
    chain, seen = raised, set()  # libraries raise exceptions that are each other's context
    if elapsed >= CPU_LIMIT_S:  # a reader may have caught Hang
        return f"{LIMIT} {CPU_LIMIT_S} s", _trace(raised)
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        if isinstance(chain, Hang):
            return f"{LIMIT} {CPU_LIMIT_S} s", _trace(raised)
        if isinstance(chain, MemoryError):
            return f"{LIMIT} 2 GB", _trace(raised)
        chain = chain.__cause__ or chain.__context__
    if raised is None:
        return ACCEPTED, ""
    if isinstance(raised, NeuronSumError | ServiceError):
        return REJECTED, ""
    trace = _trace(raised)
    name = type(raised).__name__
    if isinstance(raised, AssertionError):  # the output of a command
        name = ": ".join(re.findall(r"^error: (\w+)", trace, re.MULTILINE)[-1:]) or name
        trace = trace.split("AssertionError", 1)[-1]
    frames = PACKAGES.findall(trace)
    return f"{name} at {':'.join(frames[-1]) if frames else 'an unknown line'}", trace


def _trace(error: BaseException | None) -> str:
    return "".join(traceback.format_exception(error))[-20_000:] if error is not None else ""


def _reduce(reader: Reader, content: Files, kind: str, folder: Path, seed: int) -> Files:
    """A smaller input with the same failure: the original files, and pieces of the changed ones left out."""
    ends = time.monotonic() + 10
    for name in [name for name in content if content[name] != reader.files.get(name)]:
        size = len(content[name]) // 2
        while size and time.monotonic() < ends:
            start = 0
            while start < len(content[name]) and time.monotonic() < ends:
                smaller = {**content, name: content[name][:start] + content[name][start + size :]}
                if _outcome(reader, smaller, folder, seed)[0] == kind:
                    content = smaller
                else:
                    start += size
            size //= 2
    return content


def _write(folder: Path, content: Files) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def plan(readers: dict[str, Reader], inputs: int) -> list[Task]:
    """Half as many inputs for readers that load a model, and three times as many command lines."""
    slow = ("checkpoint", "adapter", "tokenizer")
    weights = {name: 6 if name == "commands" else 1 if name.startswith(slow) else 2 for name in readers}
    total = sum(weights.values())
    return [(name, seed) for name, weight in weights.items() for seed in range(-(-inputs * weight // total))]


def main() -> None:
    """Reads the inputs and prints the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="number of inputs")
    parser.add_argument("--reader", action="append", help="only readers whose name starts with this text")
    parser.add_argument("--output", type=Path, default=Path("fuzz-failures"), help="folder for the failed inputs")
    parser.add_argument("--processes", type=int, default=2, help="number of processes")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if a shell starts this with &
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="nsum-fuzz-hub-", ignore_cleanup_errors=True) as cache:
        os.environ["HF_HOME"] = cache
        _fuzz(options)


def _fuzz(options: argparse.Namespace) -> None:
    readers = all_readers()
    if options.reader:
        readers = {name: reader for name, reader in readers.items() if name.startswith(tuple(options.reader))}
    started = time.monotonic()
    tasks = plan(readers, options.inputs)
    counts, failures = run(tasks, readers, options.output.absolute(), options.processes)
    outcomes = (REJECTED, ACCEPTED, "failures")
    table = console.table(
        "reader",
        "inputs",
        *outcomes,
        title=f"{counts.total()} inputs in {console.duration(time.monotonic() - started)}",
    )
    for name in readers:
        row = [counts[name, outcome] for outcome in outcomes]
        table.add_row(name, str(sum(row)), *map(str, row))
    console.emit({}, table)
    distinct: dict[tuple[str, str], list[Failure]] = defaultdict(list)
    for failure in failures:
        distinct[failure.reader, failure.kind].append(failure)
    for (name, kind), same in sorted(distinct.items()):
        console.emit({}, f"{name}: {kind} ({len(same)} inputs, the first with seed {same[0].seed})")
    if failures:
        console.note(
            f"{len(failures)} failures, {len(distinct)} distinct; inputs and tracebacks are in {options.output}"
        )
        sys.exit(1)
    console.note("no failures")


if __name__ == "__main__":
    main()
