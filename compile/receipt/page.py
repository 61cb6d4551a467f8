"""The readable page of a receipt, in Markdown."""

from collections import Counter
from collections.abc import Iterator

from compile.receipt.schema import Receipt

STAND_INS = (
    "**Made with stand-ins: test code replaced the Neuron compiler and the device. Nothing here was measured on a "
    "Neuron device.**"
)
TRACE_LINES = 12
"""The last lines of a trace on the page; receipt.json has all."""


def render(receipt: Receipt) -> str:
    """The page."""
    return "\n".join(_lines(receipt)) + "\n"


def _lines(receipt: Receipt) -> Iterator[str]:
    setting, states = receipt.setting, Counter(result.state for result in receipt.cells)
    yield from ("# Receipt", "")
    if setting.stand_ins:
        yield from (STAND_INS, "")
    counted = ", ".join(f"{states[state]} {state}" for state in ("passed", "different", "failed"))
    yield from (f"{counted}" + ("" if receipt.complete else "; not all steps have ended"), "")
    yield from ("| | |", "|---|---|")
    yield f"| date | {receipt.date} |"
    yield f"| neuron-sum | {setting.neuron_sum}, size {setting.size} |"
    yield f"| instance | {setting.instance or 'unknown'}, {setting.neuron_devices} chips |"
    yield f"| Neuron driver | {setting.driver or 'none'} |"
    yield f"| platform table | {setting.sdk or 'no row of the platform table'} |"
    packages = ", ".join(f"{name} {version}" for name, version in setting.packages.items() if version)
    yield from (f"| versions | {_cell(packages)} |", "")
    yield from ("| cell | state | expected | observed | seconds |", "|---|---|---|---|---|")
    for result in receipt.cells:
        state = result.state if result.state == "passed" else f"**{result.state}**"
        expected = f"{_cell(result.expected)} ({_cell(result.source)})"
        yield f"| {result.name} | {state} | {expected} | {_cell(result.observed)} | {result.seconds:g} |"
    for result in receipt.cells:
        if rows := result.data.get("rows"):
            yield from ("", f"## {result.name}", "")
            yield "| " + " | ".join(name.replace("_", " ") for name in rows[0]) + " |"
            yield "|" + "---|" * len(rows[0])
            yield from ("| " + " | ".join(_cell(str(value)) for value in row.values()) + " |" for row in rows)
    for result in receipt.cells:
        if result.trace is not None:
            yield from ("", f"## {result.name}: trace", "", "```text")
            yield from (line.replace("```", "'''") for line in result.trace.splitlines()[-TRACE_LINES:])
            yield "```"


def _cell(text: str) -> str:
    """Text that does not end its cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
