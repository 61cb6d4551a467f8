"""Prompts that join a running batch at different steps."""

from collections.abc import Sequence
from contextlib import closing

from neuron_sum.runtimes.base import RunningBatch


def rolled(
    batch: RunningBatch,
    waiting: Sequence[Sequence[int]],
    names: Sequence[str | None],
    every: int,
    most: int | None = None,
) -> tuple[list[list[int]], int]:
    """The tokens of prompts of which one group joins at every few steps, and the number of joins beside others.

    Args:
        batch: An empty batch.
        waiting: The prompts.
        names: Their adapters.
        every: The number of steps between two groups.
        most: The largest number of prompts in a group.
    """
    tickets: dict[int, int] = {}
    results: list[list[int]] = [[] for _ in waiting]
    joined, beside, steps = 0, 0, 0
    with closing(batch):
        while joined < len(waiting) or batch.running:
            size = batch.room(min(len(waiting) - joined, most or len(waiting)))
            if size and (steps % every == 0 or not batch.running):
                beside += batch.running > 0
                numbers = batch.join(waiting[joined : joined + size], names[joined : joined + size])
                tickets.update(zip(numbers, range(joined, joined + size), strict=True))
                joined += size
            steps += 1
            for number, tokens in batch.step():
                results[tickets[number]] = tokens
    return results, beside
