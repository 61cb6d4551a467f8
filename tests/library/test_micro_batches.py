"""A whole run as one sequence of micro-batches: every example once per epoch, a constant number of rows, any start."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from neuron_sum.training.neuron.micro_batches import MicroBatches, Tokens


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 4),
    accumulation=st.integers(1, 4),
    devices=st.integers(1, 3),
    first=st.integers(0, 3),
)
def test_micro_batches_contain_every_example_once_in_rows_of_equal_number(
    count: int, batch_size: int, accumulation: int, devices: int, first: int
) -> None:
    def made(rank: int) -> MicroBatches[tuple[int, ...]]:
        return MicroBatches(
            rows=lambda epoch: [((index + epoch) % count,) for index in range(count)],
            empty=lambda _: (),
            tokens=lambda row: Tokens(sum(index + 1 for index in row), len(row)),
            collate=lambda rows: {"rows": rows},  # type: ignore[dict-item]
            batch_size=batch_size,
            accumulation=accumulation,
            devices=devices,
            rank=rank,
        )

    whole = [made(rank) for rank in range(devices)]
    steps_per_epoch = whole[0].steps_per_epoch
    last = 2 * steps_per_epoch
    batches = [[batch["rows"] for batch in one_process(part, 0, last)] for part in whole]
    assert all(len(part) == last * accumulation for part in batches)
    assert all(len(rows) == batch_size for part in batches for rows in part)
    for epoch in range(2):
        of_epoch = [part[epoch * len(part) // 2 : (epoch + 1) * len(part) // 2] for part in batches]
        assert sorted(index for part in of_epoch for rows in part for row in rows for index in row) == list(
            range(count)
        )
    first = min(first, last)
    rest = [batch["rows"] for batch in one_process(made(0), first, last)]
    assert rest == batches[0][first * accumulation :]
    assert sum(whole[0].tokens(step).labels for step in range(steps_per_epoch)) == count * (count + 1) // 2


def one_process(part: MicroBatches[Any], first: int, last: int) -> list[dict[str, Any]]:
    stream = part.between(first, last)
    return [stream[index] for index in range(len(stream))]
