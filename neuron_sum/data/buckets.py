"""Choice of a few shapes for all examples with as little padding as possible."""

import numpy as np

from neuron_sum.data.packing import Integers


def best_buckets(
    source: Integers, target: Integers, source_grid: Integers, target_grid: Integers, max_shapes: int
) -> list[tuple[tuple[int, int], ...]]:
    """The optimal choice of one shape, of two shapes, and so on, by dynamic programming over nested shapes.

    An example goes into the first shape that is long enough on both sides, and costs source_len + target_len positions.
    If N(s, t) examples fit into (s, t), the last of k shapes adds (N(s, t) - N(s', t')) (s + t) to the cost of the best
    k - 1 shapes that end with (s', t') inside it.

    Args:
        source: Tokens of each example, none longer than the last of source_grid.
        target: Tokens of each summary for the decoder; zeros for a decoder-only model.
        source_grid: Possible lengths, ascending.
        target_grid: Possible lengths for the decoder, ascending.
        max_shapes: Maximum number of shapes.

    Returns:
        The best choice of each count from one to `max_shapes`, smallest shape first; fewer if more do not save padding.
    """
    counts = np.zeros((len(source_grid), len(target_grid)), dtype=np.int64)
    np.add.at(counts, (np.searchsorted(source_grid, source), np.searchsorted(target_grid, target)), 1)
    fitting = counts.cumsum(axis=0).cumsum(axis=1)
    positions = source_grid[:, None] + target_grid[None, :]
    last = fitting.size - 1
    cost, steps, choices = fitting * positions, [], [_shapes([last], source_grid, target_grid)]
    for _ in range(1, max_shapes):
        before, cost = cost, np.empty_like(cost)
        step = np.empty_like(cost)
        for s, t in np.ndindex(*cost.shape):
            inside = before[: s + 1, : t + 1] + (fitting[s, t] - fitting[: s + 1, : t + 1]) * positions[s, t]
            row, column = divmod(int(inside.argmin()), t + 1)
            step[s, t], cost[s, t] = row * len(target_grid) + column, inside[row, column]
        if cost[-1, -1] == before[-1, -1]:
            break
        steps.append(step)
        chain = [last]
        for table in reversed(steps):
            chain.append(int(table.flat[chain[-1]]))
        choices.append(_shapes(chain[::-1], source_grid, target_grid))
    return choices


def _shapes(cells: list[int], source_grid: Integers, target_grid: Integers) -> tuple[tuple[int, int], ...]:
    return tuple((int(source_grid[c // len(target_grid)]), int(target_grid[c % len(target_grid)])) for c in cells)
