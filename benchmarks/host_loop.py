"""Host time of token selection per step: the search over a session that costs nothing.

    python benchmarks/host_loop.py [--steps 128] [--rounds 5] [--busy]

32,128 tokens, random logits; the candidates of every step are selected beforehand, as a graph does. The n-gram ban is
no_repeat_ngram_size=3. The time is that of this process's CPU, with one thread, the median over the rounds; --busy
keeps all cores busy with other processes meanwhile. Each row has its target, if there is one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import numpy as np
import torch

from compile.graphs.selection import candidates, select
from neuron_sum import console
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import Candidates
from neuron_sum.runtimes.search import Counts, search

VOCABULARY, END = 32128, 1
SHAPES = ((1, 1), (1, 4), (8, 1), (8, 4), (32, 1))
TARGETS_MS = {(8, 4): 0.3, (8, 1): 0.1}
DIFFERENT = 16
"""Number of different steps, which repeat."""


class FreeSession:
    """A session whose steps were computed before.

    Args:
        batch: Number of examples.
        beams: Number of beams.
    """

    def __init__(self, batch: int, beams: int) -> None:
        self.start = np.zeros((batch, beams), dtype=np.int64)
        generator = torch.Generator().manual_seed(0)
        self._steps, self._position = [], 0
        for _ in range(DIFFERENT):
            logits = torch.randn(batch, beams, VOCABULARY, generator=generator) * 3
            logits[..., END] = -100.0  # no row ends early
            values, tokens, log_sum, _ = (part.numpy() for part in select(logits, candidates(beams)))
            self._steps.append(Candidates(values, tokens, log_sum, VOCABULARY, logits.numpy))

    def step(self, tokens: np.ndarray, rows: np.ndarray) -> Candidates:
        """See `Session.step`."""
        self._position += 1
        return self._steps[self._position % DIFFERENT]


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
        for batch, beams in SHAPES:
            session = FreeSession(batch, beams)
            for ngram in (0, 3):
                settings = GenerateConfig(
                    max_new_tokens=options.steps, num_beams=beams, no_repeat_ngram_size=ngram, early_stopping=False
                )
                times, counts = list[float](), Counts()
                for _ in range(options.rounds + 1):  # the first round is not counted
                    started = time.process_time()
                    search(session, session.start[:, :1], [END], settings, counts)
                    times.append(1000 * (time.process_time() - started) / options.steps)
                found, target = statistics.median(times[1:]), TARGETS_MS.get((batch, beams))
                verdict = "" if target is None else "held" if found <= target else "missed"
                wanted = "" if target is None else f"{target}"
                share = f"{counts.all_logits} of {counts.steps}"
                table.add_row(f"{batch} x {beams}", f"{ngram or 'no'}", f"{found:.3f}", wanted, verdict, share)
                results.append({"batch": batch, "beams": beams, "ngram": ngram, "ms": found, "target": target})
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
