"""The Markdown page of a receipt: the table of docs/status.md, the costs, and the details of each cell."""

from collections.abc import Iterator, Mapping

from neuron_sum.errors import redacted
from sagemaker_jobs.receipt.record import Observed, Record
from sagemaker_jobs.receipt.steps import ALL, Step

WORDS = 12
"""The maximum number of words in a cell of docs/status.md."""


def render(record: Record, cells: Mapping[str, Observed]) -> str:
    """The page.

    Args:
        record: The receipt.
        cells: The result of every cell.
    """
    return anonymous("\n".join(_lines(record, cells)), record) + "\n"


def anonymous(text: str, record: Record) -> str:
    """A text without the account id, and without the names of users and sessions in messages of AWS."""
    return redacted(text).replace(record.account, "ACCOUNT")


def _lines(record: Record, cells: Mapping[str, Observed]) -> Iterator[str]:
    yield from ("# Receipt of an AWS account", "")
    yield f"{record.region}, from {record.started} UTC, neuron-sum {record.neuron_sum}."
    yield f"At most ${record.worst_usd:.2f}; by the times of its resources ${record.reserved_usd:.2f}."
    yield from ("", "| cell | step and expected result | in an account |", "|---|---|---|")
    for step in ALL.values():
        for cell in step.cells:
            yield f"| {cell.name} | {step.name}: {cell.expected} | {brief(record, step, cells[cell.name])} |"
    yield from ("", "## Observed", "", "| cell | state | observed |", "|---|---|---|")
    for step in ALL.values():
        for cell in step.cells:
            found = cells[cell.name]
            yield f"| {cell.name} | {found.state} | {_flat(found.text)} |"
    yield from ("", "## Costs", "", "| step | started | at most | by its times |", "|---|---|---|---|")
    for attempt in record.attempts:
        usd = "not known" if attempt.usd is None else f"${attempt.usd:.2f}"
        yield f"| {attempt.step} | {attempt.started} | ${attempt.worst_usd:.2f} | {usd} |"


def brief(record: Record, step: Step, found: Observed) -> str:
    """The text of a cell for docs/status.md: its state, date and the start of what was observed."""
    if found.state == "open":
        return "open"
    result = record.results[step.name]
    words = f"{found.state} on {result.ended[:10]}: {_flat(found.text)}".split()
    return " ".join(words if len(words) <= WORDS else [*words[: WORDS - 1], "…"])


def _flat(text: str) -> str:
    """Text that does not end its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
