"""Host time of token selection per step: the search over a session that costs nothing.

    python benchmarks/host_loop.py [--steps 128] [--rounds 5] [--busy]

32,128 tokens, random logits; the candidates of every step are selected beforehand, as a graph does. The n-gram ban is
no_repeat_ngram_size=3. The time is that of this process's CPU, with one thread, the median over the rounds. --busy
measures a second time, while other processes keep all cores busy. Each row has its target, if there is one; the second
time may be 1.5 times the first.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch

from compile.receipt.host import host_times
from neuron_sum import console

BUSY = 1.5
"""The most time beside other processes, relative to that without."""


def main() -> None:
    """Measure every shape, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=128, help="steps per search")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    parser.add_argument("--busy", action="store_true", help="measure again beside processes that keep all cores busy")
    options = parser.parse_args()
    torch.set_num_threads(1)
    alone = list(host_times(options.steps, options.rounds))
    beside = alone
    if options.busy:
        with busy():
            beside = list(host_times(options.steps, options.rounds))
    table = console.table(
        "batch x beams", "ban", "CPU ms per step", "busy", "ratio", "target", "", "steps that read all logits"
    )
    for row, other in zip(alone, beside, strict=True):
        ratio = other.ms / row.ms
        verdict = "" if row.target is None else "held" if row.holds and ratio <= BUSY else "missed"
        slower = (f"{other.ms:.3f}", f"{ratio:.2f}") if options.busy else ("", "")
        target, share = "" if row.target is None else f"{row.target}", f"{row.all_logits} of {row.steps}"
        shape = f"{row.batch} x {row.beams}"
        table.add_row(shape, f"{row.ngram or 'no'}", f"{row.ms:.3f}", *slower, target, verdict, share)
    versions = {name: version(name) for name in ("neuron-sum", "numpy", "torch")}
    results = [
        row.as_dict() | ({"busy_ms": other.ms} if options.busy else {})
        for row, other in zip(alone, beside, strict=True)
    ]
    console.emit({"results": results, "versions": versions}, table, f"versions: {versions}")


@contextmanager
def busy() -> Iterator[None]:
    """Processes that keep every core busy for the duration of a block."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
