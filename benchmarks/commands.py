"""The time of short commands, each in a new process.

    python benchmarks/commands.py [--rounds 5]

`--help` may take 0.3 s. `recipes list`, `data` on 10,000 dialogues and `explain` on a log of 10,000 lines may take 2 s
more than `--help`. The figures are medians over the rounds, in which the commands take turns; a target is held if the
CPU time, which other processes change least, reaches it.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from neuron_sum import console

HELP_S, MORE_S = 0.3, 2.0
ROWS = 10_000
TEXT = "we need the report by friday so please send it to me when the numbers are right"


class Time(NamedTuple):
    """Seconds of CPU and wall time of a process."""

    cpu: float
    wall: float


def main() -> None:
    """Run the commands in turn, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    rounds: int = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dialogues(folder / "train.jsonl")
        log = write_log(folder / "train.log")
        commands = {
            "--help": ["--help"],
            "recipes list": ["recipes", "list"],
            "data": ["data", "tiny", "data.source=jsonl", f"data.path={folder}", "data.columns.id=id"],
            "explain": ["explain", str(log)],
        }
        times: dict[str, list[Time]] = {command: [] for command in commands}
        for _ in range(rounds + 1):
            for command, arguments in commands.items():
                times[command].append(run(arguments, folder))
    table = console.table("command", "CPU s", "wall s", "target s", "", title=f"{rounds} rounds")
    # The first round is not counted.
    cpu, wall = (
        {command: statistics.median(getattr(each, kind) for each in found[1:]) for command, found in times.items()}
        for kind in Time._fields
    )
    for command in commands:
        target = HELP_S if command == "--help" else cpu["--help"] + MORE_S
        held = "held" if cpu[command] <= target else "missed"
        table.add_row(command, f"{cpu[command]:.2f}", f"{wall[command]:.2f}", f"{target:.2f}", held)
    console.emit({}, table)


def run(arguments: list[str], folder: Path) -> Time:
    """The time of a command.

    Raises:
        SystemExit: If the command fails.
    """
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "neuron_sum", *arguments], capture_output=True, text=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"neuron-sum {' '.join(arguments)} exited with {done.returncode}: {done.stderr}")
    return Time(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall)


def write_dialogues(path: Path) -> None:
    """Dialogues of 8 turns with summaries."""
    numbers = random.Random(0)

    def sentence(words: int) -> str:
        return " ".join(numbers.choices(TEXT.split(), k=words))

    with path.open("w", encoding="utf-8") as lines:
        for number in range(ROWS):
            dialogue = "\n".join(f"{'AB'[turn % 2]}: {sentence(14)}" for turn in range(8))
            lines.write(json.dumps({"id": str(number), "dialogue": dialogue, "summary": sentence(18)}) + "\n")


def write_log(path: Path) -> Path:
    """A training log whose last lines are a traceback."""
    steps = [f"2026-01-01 00:00:00 INFO step {number} loss {1 / (number + 1):.4f}" for number in range(ROWS)]
    error = "RuntimeError: [enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"
    path.write_text("\n".join([*steps, "Traceback (most recent call last):", error, ""]), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
