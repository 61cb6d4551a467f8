"""Choose a few training steps that together trigger every graph, for neuron_parallel_compile."""

from collections.abc import Sequence
from itertools import cycle, islice

from neuron_sum.data.layouts import Row

MIN_STEPS = 10
"""The number that the AWS page on neuron_parallel_compile recommends; with one shape, step 3 has the last new graph."""
FIRST_STEPS = 3
"""Unchanged first steps of the run: the first step has separate graphs, in the shapes of its rows."""
STEPS_PER_SHAPE = 3
LOGGING_STEPS = 2
"""The largest logging interval, so that some steps have a log line and others do not."""


def extraction_rows(rows: Sequence[Row], step_rows: int) -> list[Row]:
    """The first steps of a run, then some steps of each shape, so that every shape is certain to occur.

    Args:
        rows: The rows of the first epoch, in order; every epoch has the same shapes.
        step_rows: The number of rows in an optimizer step, over all processes and micro-batches.
    """
    chosen = list(rows[: FIRST_STEPS * step_rows])
    chosen += [chosen[-1]._replace(examples=())] * (-len(chosen) % step_rows)
    shapes = list(dict.fromkeys(row.shape for row in rows))
    missing_steps = MIN_STEPS - len(chosen) // step_rows
    steps = max(STEPS_PER_SHAPE, -(-missing_steps // len(shapes)))
    for shape in shapes:
        chosen += islice(cycle(row for row in rows if row.shape == shape), steps * step_rows)
    return chosen


def save_step(steps: int) -> int:
    """The step that saves: near the end, without a log line, and with steps after it; the last step saves again.

    Args:
        steps: The number of steps of the extraction.
    """
    return steps - 3 + steps % LOGGING_STEPS
