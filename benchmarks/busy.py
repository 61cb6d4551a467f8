"""Duration of a short training on a busy and on an idle machine, by the OpenMP settings of the command.

    python benchmarks/busy.py [--steps 60] [--busy 6] [--rounds 1]

The settings take turns, first without and then with busy processes, which are Python loops at the same priority.
"chosen" sets nothing, so the command chooses; "passive" has a thread per core that sleeps while it waits; "default" is
what libgomp does without a choice: a thread per core that spins. The seconds are those of the steps, from the log of
the run, without loading. Prints medians and the cores that other processes used at the start.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from neuron_sum import console, files
from neuron_sum.platform import threads

SETTINGS = {
    "chosen": {},
    "passive": {"OMP_NUM_THREADS": str(threads.cores()), "OMP_WAIT_POLICY": "PASSIVE"},
    "default": {"OMP_NUM_THREADS": str(threads.cores()), "GOMP_SPINCOUNT": "300000"},
}


def main() -> None:
    """Run all settings and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="number of steps")
    parser.add_argument("--busy", type=int, default=6, help="number of busy processes")
    parser.add_argument("--rounds", type=int, default=1, help="number of rounds")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a training is stopped")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="what to compare")
    options = parser.parse_args()
    seconds: dict[tuple[str, int], list[float]] = {}
    before = threads.usage()
    others = threads.used_by_others(before) if before is not None else None
    for _ in range(options.rounds):
        for count in (0, options.busy):
            with busy(count):
                for name in options.settings:
                    seconds.setdefault((name, count), []).append(training(SETTINGS[name], options))
    table = console.table("settings", "idle s", f"beside {options.busy} busy processes s", "relative to passive")
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    for name in options.settings:
        idle, crowded = medians[name, 0], medians[name, options.busy]
        reference = medians.get(("passive", options.busy))
        table.add_row(name, f"{idle:.1f}", f"{crowded:.1f}", f"{crowded / reference:.2f}" if reference else "")
    load = "unknown" if others is None else f"{others:.1f}"
    versions = f"torch {version('torch')}, {threads.cores()} cores, in use by others at the start: {load}"
    console.emit({}, table, versions)


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


def training(settings: dict[str, str], options: argparse.Namespace) -> float:
    """Seconds of the steps of `tiny`; the limit if it takes longer."""
    names = (threads.COUNT, threads.POLICY, "GOMP_SPINCOUNT", threads.CHOSEN)
    environment = {name: value for name, value in os.environ.items() if name not in names} | settings
    changes = [f"train.max_steps={options.steps}", "train.logging_steps=1", "data.max_validation_examples=1"]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "neuron_sum", "train", "tiny", *changes, "--output", str(run)]
        try:
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=options.limit)
        except subprocess.TimeoutExpired:
            return float(options.limit)
        log = [entry for entry in files.read_jsonl(run / "log.jsonl") if "tokens_per_s" in entry]
        tokens = [0, *(entry["num_input_tokens_seen"] for entry in log)]
        return sum(
            (now - last) / entry["tokens_per_s"] for last, now, entry in zip(tokens, tokens[1:], log, strict=False)
        )


if __name__ == "__main__":
    main()
