"""Host time of token selection per step: the search over a session that costs nothing."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compile.graphs.selection import candidates, select
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import Candidates, Greedy
from neuron_sum.runtimes.search import Counts, search

VOCABULARY, END = 32128, 1
SHAPES = ((1, 1), (1, 4), (8, 1), (8, 4), (32, 1))
TARGETS_MS = {(8, 4): 0.3, (8, 1): 0.1}
DIFFERENT = 16
"""Number of different steps, which repeat."""


@dataclass(frozen=True)
class HostTime:
    """The CPU time of one shape.

    Attributes:
        batch: The number of examples.
        beams: The beam width.
        ngram: no_repeat_ngram_size.
        ms: CPU milliseconds per step, the median over the rounds.
        target: The target in milliseconds; None without one.
        all_logits: Steps that read all logits.
        steps: All steps.
    """

    batch: int
    beams: int
    ngram: int
    ms: float
    target: float | None
    all_logits: int
    steps: int

    @property
    def holds(self) -> bool:
        """Whether the time is within the target, if there is one."""
        return self.target is None or self.ms <= self.target

    def as_dict(self) -> dict[str, Any]:
        """The values for --json."""
        return asdict(self)


class FreeSession:
    """A session whose steps were computed before.

    Args:
        batch: Number of examples.
        beams: Number of beams.
    """

    def __init__(self, batch: int, beams: int) -> None:
        self.start = np.zeros((batch, beams), dtype=np.int64)
        self.greedy: Greedy | None = None
        generator = torch.Generator().manual_seed(0)
        self._steps, self._position = [], 0
        for _ in range(DIFFERENT):
            logits = torch.randn(batch, beams, VOCABULARY, generator=generator) * 3
            logits[..., END] = -100.0  # no row ends early
            values, tokens, log_sum, _ = (part.numpy() for part in select(logits, candidates(beams)))
            self._steps.append(Candidates(values, tokens, log_sum, VOCABULARY, logits.numpy))

    def step(self, tokens: NDArray[np.int64], rows: NDArray[np.int64]) -> Candidates:
        """See `Session.step`."""
        self._position += 1
        return self._steps[self._position % DIFFERENT]


def host_times(steps: int, rounds: int) -> Iterator[HostTime]:
    """Measures every shape, without and with a ban of n-grams.

    Args:
        steps: The number of steps of a search.
        rounds: The number of searches, after one that is not counted.
    """
    for batch, beams in SHAPES:
        session = FreeSession(batch, beams)
        for ngram in (0, 3):
            settings = GenerateConfig(
                max_new_tokens=steps, num_beams=beams, no_repeat_ngram_size=ngram, early_stopping=False
            )
            times, counts = list[float](), Counts()
            for _ in range(rounds + 1):
                started = time.process_time()
                search(session, session.start[:, :1], [END], settings, counts)
                times.append(1000 * (time.process_time() - started) / steps)
            target = TARGETS_MS.get((batch, beams))
            ms = round(statistics.median(times[1:]), 4)
            yield HostTime(batch, beams, ngram, ms, target, counts.all_logits, counts.steps)
