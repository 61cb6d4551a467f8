"""One greedy step per call compared with several: the time of the host per token, and of whole summaries.

    OMP_NUM_THREADS=1 python benchmarks/greedy_steps.py [--steps 4] [--batches 1,8] [--rounds 5] [--work FOLDER]

The host: CPU milliseconds of this process per token, for the search and the session over graphs that cost nothing.
Summaries: CPU milliseconds of a batch, FLAN-T5-small's dimensions with random weights in fp32 on the CPU target, 256
tokens in, exactly 64 out; both ways in turn within a round, with the same artifact. Figures are medians over rounds,
ratios are medians of those within a round.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from generation import VOCABULARY, small_artifact

from compile.graphs.selection import candidates
from neuron_sum import console
from neuron_sum.artifact import Bucket
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes import aoti
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.graphs import Array, GraphSession
from neuron_sum.runtimes.search import Counts, search

ROOT = Path(__file__).parents[1]
SOURCE_TOKENS, NEW_TOKENS, WORD, END = 256, 64, 7, 1
HOST_TOKENS = 512
SETTINGS = GenerateConfig(max_new_tokens=NEW_TOKENS)


def main() -> None:
    """Measure both, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=4, choices=range(2, 33), metavar="N", help="greedy steps per call, 2 to 32"
    )
    parser.add_argument("--batches", default="1,8", metavar="N,…", help="batch sizes of the summaries")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "greedy-steps", help="folder for the artifact")
    options = parser.parse_args()
    batches = [int(batch) for batch in options.batches.split(",")]
    columns = ("batch x beams", "1 step", f"{options.steps} steps", "ratio")
    tables = (
        ("host, CPU ms per step", 1000 / HOST_TOKENS, _host_calls(options.steps)),
        ("summaries, CPU ms of a batch", 1000, _summary_calls(options.work.resolve(), batches, options.steps)),
    )
    for title, scale, calls in tables:
        table = console.table(*columns, title=title)
        for batch, pair in calls:
            one, several, ratio = _compare(pair, options.rounds)
            table.add_row(f"{batch} x 1", f"{one * scale:.4g}", f"{several * scale:.4g}", f"{ratio:.2f}")
        console.emit({}, table)
    console.emit({}, f"versions: { {name: version(name) for name in ('neuron-sum', 'numpy', 'torch')} }")


def _compare(pair: Sequence[Callable[[], object]], rounds: int) -> tuple[float, float, float]:
    """The CPU seconds of both calls, in turn, and the median of their ratios; the first round is not counted."""
    times = list[list[float]]()
    for _ in range(rounds + 1):
        row = []
        for call in pair:
            started = time.process_time()
            call()
            row.append(time.process_time() - started)
        times.append(row)
    one, several = ([row[place] for row in times[1:]] for place in range(2))
    ratios = [first / second for first, second in zip(one, several, strict=True)]
    return statistics.median(one), statistics.median(several), statistics.median(ratios)


def _host_calls(steps: int) -> Iterator[tuple[int, list[Callable[[], object]]]]:
    """Searches over prepared results of graphs, for every batch size: with one step per call, and with several."""
    asked = GenerateConfig(max_new_tokens=HOST_TOKENS)
    for batch in (1, 8):
        values = np.tile(-np.arange(candidates(1), dtype=np.float32), (batch, 1, 1))
        tokens = np.tile(np.arange(WORD, WORD + candidates(1)), (batch, 1, 1))
        unread = np.broadcast_to(np.float32(0), (batch, 1, VOCABULARY))
        prepared: dict[int, list[Array]] = {
            1: [values, tokens, np.zeros((batch, 1), np.float32), unread],
            steps: [np.full((batch, steps), WORD), np.zeros((batch, steps), np.float32)],
        }
        bucket = Bucket(batch=batch, source_len=SOURCE_TOKENS, target_len=HOST_TOKENS)

        def run(
            greedy_steps: int, batch: int = batch, bucket: Bucket = bucket, prepared: dict[int, list[Array]] = prepared
        ) -> None:
            start, slot = np.zeros((batch, 1), dtype=np.int64), np.zeros(batch, dtype=np.int64)
            session = GraphSession(lambda *inputs: prepared[inputs[-1]], bucket, batch, start, slot, greedy_steps)
            search(session, session.start, [END], asked, Counts())

        yield batch, [partial(run, 1), partial(run, steps)]


def _summary_calls(work: Path, batches: Sequence[int], steps: int) -> Iterator[tuple[int, list[Callable[[], object]]]]:
    """Whole summaries of a batch of every size, after a check that both ways have the same tokens."""
    runtime = aoti.load(small_artifact(work, batches, SOURCE_TOKENS, NEW_TOKENS, [f"compile.greedy_steps={steps}"]))
    assert runtime.greedy_steps == steps
    for batch in batches:
        prompts = torch.randint(3, 32000, (batch, SOURCE_TOKENS), generator=torch.Generator().manual_seed(1)).tolist()
        generators = [StepGenerator(replace(runtime, greedy_steps=number)) for number in (1, steps)]
        calls = [partial(generator.generate, prompts, SETTINGS) for generator in generators]
        one, several = (call() for call in calls)
        assert one == several, "other tokens"
        assert {len(row) for row in one} == {NEW_TOKENS}
        yield batch, list(calls)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
