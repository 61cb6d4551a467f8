"""What an extraction of graphs trains on: few steps, in which every graph of the whole run comes."""

from collections.abc import Sequence
from itertools import cycle, islice

from neuron_sum.data.layouts import Row

FEWEST_STEPS = 10
"""What AWS's page on neuron_parallel_compile advises; with one shape, the last new graph comes in the third step."""
FIRST_STEPS = 3
"""Of the run itself, as they are: the first has graphs of its own, in the shapes that it happens to have."""
STEPS_OF_A_SHAPE = 3
LOGGING_STEPS = 2
"""At most, so that there are steps with a log line and steps without."""


def extraction_rows(rows: Sequence[Row], step_rows: int) -> list[Row]:
    """The first steps of a run, then some steps of each shape, so that no shape is left to chance.

    Args:
        rows: Of the first epoch, in whose order; every epoch has the same shapes.
        step_rows: How many make an optimizer step, over all processes and micro-batches.
    """
    made = list(rows[: FIRST_STEPS * step_rows])
    made += [made[-1]._replace(examples=())] * (-len(made) % step_rows)
    shapes = list(dict.fromkeys(row.shape for row in rows))
    left = FEWEST_STEPS - len(made) // step_rows
    steps = max(STEPS_OF_A_SHAPE, -(-left // len(shapes)))
    for shape in shapes:
        made += islice(cycle(row for row in rows if row.shape == shape), steps * step_rows)
    return made


def save_step(steps: int) -> int:
    """When to save: near the end, in a step without a log line, and with steps after it; the last one saves again.

    Args:
        steps: Of the extraction.
    """
    return steps - 3 + steps % LOGGING_STEPS
