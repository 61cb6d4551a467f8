"""Packing of several examples into one row."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def pack(source: Integers, target: Integers, source_len: int, target_len: int) -> list[list[int]]:
    """Fills rows with two sides by the best-fit-decreasing algorithm.

    The examples are sorted by the share of a row that they take, both sides added, in descending order. Each goes into
    the row with room for both sides that has the least remaining room for sources.

    Args:
        source: Tokens of each example, at most source_len.
        target: Tokens of each example for the decoder, at most target_len; zeros for a decoder-only model.
        source_len: Maximum tokens of a row.
        target_len: Maximum tokens of a row for the decoder.

    Returns:
        The rows, as positions in `source`. Every position occurs exactly once.

    Raises:
        ValueError: If an example is longer than a row.
    """
    if len(source) and (source.max() > source_len or target.max() > target_len):
        longest = f"{source.max()} + {target.max()}"
        raise ValueError(f"examples of up to {longest} tokens exceed rows of {source_len} + {target_len}")
    rows: list[list[int]] = []
    source_room, target_room = np.full(len(source), source_len), np.full(len(source), target_len)
    fullness = source / source_len + target / max(target_len, 1)
    for example in np.argsort(-fullness, kind="stable"):
        used = slice(len(rows))
        fits = (source_room[used] >= source[example]) & (target_room[used] >= target[example])
        row = int(np.where(fits, source_room[used], source_len + 1).argmin()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
        rows[row].append(int(example))
        source_room[row] -= source[example]
        target_room[row] -= target[example]
    return rows


def spread(rows: Sequence[Sequence[int]], count: int) -> list[tuple[int, ...]]:
    """Distributes the examples over exactly `count` rows: full rows are halved; if none can be halved, rows are empty.

    Args:
        rows: At most `count` rows.
        count: The number of rows to return.

    Returns:
        The rows, empty ones last.
    """
    spread_out = [tuple(row) for row in rows]
    while len(spread_out) < count:
        fullest = max(range(len(spread_out)), key=lambda index: len(spread_out[index]), default=None)
        if fullest is None or len(spread_out[fullest]) < 2:
            break
        row = spread_out[fullest]
        spread_out[fullest] = row[::2]
        spread_out.append(row[1::2])
    return spread_out + [()] * (count - len(spread_out))
