"""Duration of commands on a busy and on an idle machine, by the OpenMP settings of the command.

    python benchmarks/busy.py [--commands train evaluate …] [--busy 6] [--rounds 1]

The settings take turns, first without and then with busy processes, which are Python loops at the same priority.
"chosen" sets nothing, so the command chooses; "passive" has a thread per core that sleeps while it waits; "default" is
what libgomp does without a choice: a thread per core that spins. A tiny model is trained, compiled and packaged first.

- train: the seconds of 60 steps of `tiny`, from the log of the run, without loading.
- evaluate, compile, demo: the whole command; 32 dialogues, all graphs anew, `demo --tiny`.
- summarize: the whole command with an artifact, batch 1.
- serve: 16 requests, one after another, to DJL Serving, without its start.

Targets: beside busy processes at most 1.3 times "passive", on an idle machine at most 1.1 times the best setting.
Prints medians and the cores that other processes used at the start.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import httpx
from rich.progress import track

from neuron_sum import console, files
from neuron_sum.demo import DIALOGUE
from neuron_sum.platform import threads
from neuron_sum.subprocesses import cli_command, printed_document

SETTINGS = {
    "chosen": {},
    "passive": {"OMP_NUM_THREADS": str(threads.cores()), "OMP_WAIT_POLICY": "PASSIVE"},
    "default": {"OMP_NUM_THREADS": str(threads.cores()), "GOMP_SPINCOUNT": "300000"},
}


BUSY_TARGET, IDLE_TARGET = 1.3, 1.1
REQUESTS = 16


class Prepared:
    """A folder with a trained tiny model, its artifact and its package.

    Attributes:
        folder: The folder.
        run: The run.
        artifact: The artifact for the CPU.
        package: The archive for DJL Serving.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        self.artifact, self.package = folder / "artifact", folder / "package.tar.gz"

    def make(self) -> None:
        """Train, compile and package."""
        environment = without_settings()
        train(self, environment, self.run)
        call(environment, "compile", str(self.run), "--output", str(self.artifact))
        call(environment, "package", str(self.artifact), "--output", str(self.package))


def main() -> None:
    """Run all settings and print a table for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS), help="what to run")
    parser.add_argument("--busy", type=int, default=6, help="number of busy processes")
    parser.add_argument("--rounds", type=int, default=1, help="number of rounds")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="what to compare")
    options = parser.parse_args()
    before = threads.usage()
    others = threads.used_by_others(before) if before is not None else None
    load = "unknown" if others is None else f"{others:.1f}"
    print(f"torch {version('torch')}, {threads.cores()} cores, in use by others at the start: {load}")
    with tempfile.TemporaryDirectory() as folder:
        prepared = Prepared(Path(folder))
        prepared.make()
        for command in options.commands:
            seconds: dict[tuple[str, int], list[float]] = {}
            turns = [
                (count, name) for _ in range(options.rounds) for count in (0, options.busy) for name in options.settings
            ]
            for count, name in track(turns, command):
                with busy(count), tempfile.TemporaryDirectory(dir=folder) as output:
                    taken = COMMANDS[command](prepared, without_settings() | SETTINGS[name], Path(output) / "output")
                    seconds.setdefault((name, count), []).append(taken)
            report(command, seconds, options)


def report(command: str, seconds: Mapping[tuple[str, int], list[float]], options: argparse.Namespace) -> None:
    """Print the table of a command, and whether its targets are held."""
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    table = console.table(command, "idle s", f"beside {options.busy} busy processes s", "relative to passive")
    for name in options.settings:
        idle, crowded = medians[name, 0], medians[name, options.busy]
        reference = medians.get(("passive", options.busy))
        table.add_row(name, f"{idle:.1f}", f"{crowded:.1f}", f"{crowded / reference:.2f}" if reference else "")
    console.emit({}, table)
    if "chosen" in options.settings and "passive" in options.settings:
        best = min(medians[name, 0] for name in options.settings)
        ratios = {
            f"beside busy processes, relative to passive, at most {BUSY_TARGET}": (
                medians["chosen", options.busy] / medians["passive", options.busy],
                BUSY_TARGET,
            ),
            f"idle, relative to the best, at most {IDLE_TARGET}": (medians["chosen", 0] / best, IDLE_TARGET),
        }
        for text, (ratio, target) in ratios.items():
            print(f"{command} {text}: {ratio:.2f}, {'held' if ratio <= target else 'missed'}")


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep this many processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def without_settings() -> dict[str, str]:
    """The environment without settings of threads."""
    names = (threads.COUNT, threads.POLICY, "GOMP_SPINCOUNT", threads.CHOSEN)
    return {name: value for name, value in os.environ.items() if name not in names}


def call(environment: Mapping[str, str], *arguments: str, text: str | None = None) -> float:
    """Run a command; returns its seconds."""
    started = time.perf_counter()
    subprocess.run(cli_command(*arguments), env=environment, check=True, capture_output=True, input=text, text=True)
    return time.perf_counter() - started


def train(prepared: Prepared, environment: Mapping[str, str], output: Path) -> float:
    """Seconds of the steps of `tiny`."""
    changes = ("train.max_steps=60", "train.logging_steps=1", "data.max_validation_examples=1")
    call(environment, "train", "tiny", *changes, "--output", str(output))
    log = [entry for entry in files.read_jsonl(output / "log.jsonl") if "tokens_per_s" in entry]
    tokens = [0, *(entry["num_input_tokens_seen"] for entry in log)]
    taken = ((now - last) / entry["tokens_per_s"] for last, now, entry in zip(tokens, tokens[1:], log, strict=False))
    return float(sum(taken))


def evaluate(prepared: Prepared, environment: Mapping[str, str], output: Path) -> float:
    """Seconds of an evaluation of the run."""
    dialogues = ("--set", "data.max_test_examples=32")
    return call(environment, "evaluate", str(prepared.run), *dialogues, "--output", str(output))


def compile_run(prepared: Prepared, environment: Mapping[str, str], output: Path) -> float:
    """Seconds of a compilation without the cache."""
    cache = {"NEURON_SUM_CACHE": str(output.with_name("cache"))}
    return call({**environment, **cache}, "compile", str(prepared.run), "--output", str(output))


def summarize(prepared: Prepared, environment: Mapping[str, str], output: Path) -> float:
    """Seconds of a summary by the artifact."""
    return call(environment, "summarize", str(prepared.artifact), text=DIALOGUE)


def serve(prepared: Prepared, environment: Mapping[str, str], output: Path) -> float:
    """Seconds of requests to a server that runs with the settings; the requests themselves use no threads."""
    command = cli_command("serve", str(prepared.package), "--port", "0", "--quiet", "--json")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            if (document := printed_document(server.stdout)) is None:
                raise SystemExit("the server did not start")
            started = time.perf_counter()
            for _ in range(REQUESTS):
                httpx.post(f"{document['url']}/invocations", json={"inputs": DIALOGUE}, timeout=600).raise_for_status()
            return time.perf_counter() - started
        finally:
            server.terminate()


def demo(prepared: Prepared, environment: Mapping[str, str], output: Path) -> float:
    """Seconds of the tiny demo."""
    return call(environment, "demo", "--tiny", "--output", str(output))


COMMANDS: dict[str, Callable[[Prepared, Mapping[str, str], Path], float]] = {
    "train": train,
    "evaluate": evaluate,
    "compile": compile_run,
    "summarize": summarize,
    "serve": serve,
    "demo": demo,
}


if __name__ == "__main__":
    main()
