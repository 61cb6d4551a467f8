"""Host time of token selection per step: the search over a session that costs nothing.

    python benchmarks/host_loop.py [--steps 128] [--rounds 5] [--busy]

32,128 tokens, random logits; the candidates of every step are selected beforehand, as a graph does. The n-gram ban is
no_repeat_ngram_size=3. The time is that of this process's CPU, with one thread, the median over the rounds; --busy
keeps all cores busy with other processes meanwhile. Each row has its target, if there is one.
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


def main() -> None:
    """Measure every shape, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=128, help="steps per search")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    parser.add_argument("--busy", action="store_true", help="keep all cores busy with other processes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = console.table("batch x beams", "ban", "CPU ms per step", "target", "", "steps that read all logits")
    results = []
    with busy(options.busy):
        for row in host_times(options.steps, options.rounds):
            verdict = "" if row.target is None else "held" if row.holds else "missed"
            target = "" if row.target is None else f"{row.target}"
            share = f"{row.all_logits} of {row.steps}"
            table.add_row(f"{row.batch} x {row.beams}", f"{row.ngram or 'no'}", f"{row.ms:.3f}", target, verdict, share)
            results.append(row.as_dict())
    versions = {name: version(name) for name in ("neuron-sum", "numpy", "torch")}
    console.emit({"results": results, "versions": versions}, table, f"versions: {versions}")


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Processes that keep every core busy for the duration of a block."""
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1) if wanted
    ]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
