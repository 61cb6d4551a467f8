"""`neuron-sum receipt`."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from neuron_sum import console


def receipt(
    output: Annotated[Path, typer.Option(help="Folder of the receipt; an unfinished one continues.")] = Path("receipt"),
    size: Annotated[
        Literal["full", "micro"],
        typer.Option(help="Size of the models: micro is a quick run, which cannot be merged."),
    ] = "full",
    retry: Annotated[bool, typer.Option("--retry", help="Repeat the steps that have a failed cell.")] = False,
    merge: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Run nothing; add the results of this receipt.json to the status page."),
    ] = None,
    checkout: Annotated[Path, typer.Option(help="With --merge: folder of a checkout of neuron-sum.")] = Path(),
) -> None:
    """Test and measure on a Neuron device what only a device shows; write one file and one page."""
    if merge is not None:
        _merge(merge, checkout)
        return
    from compile.receipt.runner import PAGE, RECEIPT, command_line, run_steps

    made = run_steps(output, size, retry=retry)
    states = Counter(result.state for result in made.cells)
    table = console.table("cell", "state", "observed")
    for result in made.cells:
        table.add_row(result.name, result.state, result.observed)
    counted = ", ".join(f"{states[state]} {state}" for state in ("passed", "different", "failed"))
    again = f"; repeat failed steps: {command_line(output, size, retry=True)}" if states["failed"] else ""
    console.emit(
        {"receipt": str(output / RECEIPT), "page": str(output / PAGE), **made.model_dump(mode="json")},
        table,
        f"{counted}{again}",
        f"wrote {output / RECEIPT} and {output / PAGE}, which contain paths and versions of this machine; attach both "
        "to an issue",
    )


def _merge(file: Path, checkout: Path) -> None:
    from compile.receipt.merge import merge

    merged = merge(file, checkout)
    console.emit(
        {
            "changed": merged.changed,
            "unchanged": merged.unchanged,
            "not_measured": merged.not_measured,
            "step_times": merged.step_times,
        },
        f"{len(merged.changed)} cells of {merged.page} changed, {len(merged.unchanged)} not, "
        f"{len(merged.not_measured)} were not measured; "
        f"{merged.step_times} step times in {merged.data}",
    )
