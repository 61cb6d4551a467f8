"""`neuron-sum aws receipt`: the cheapest life cycle that shows what only AWS can show."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from neuron_sum import console
from neuron_sum.errors import AwsError, Interrupted
from sagemaker_jobs.launch.options import MAX_HOURS, EveryOption, OfflineOption, RegionOption, WheelhouseOption

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from sagemaker_jobs.cost.plan import Plan
    from sagemaker_jobs.receipt.record import Record
    from sagemaker_jobs.receipt.runner import Runner


def receipt(
    output: Annotated[Path, typer.Option(help="Folder of the receipt.")] = Path("aws-receipt"),
    max_usd: Annotated[
        float, typer.Option(min=0, help="Maximum cost of all steps in USD; a step that may exceed it is left out.")
    ] = 5.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the receipt in the folder; on the next day, add the bill.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="With --resume: also repeat the steps that failed.")] = False,
    device_size: Annotated[
        Literal["full", "micro"], typer.Option(help="Size of the device receipt; micro cannot be merged.")
    ] = "full",
    device_hours: Annotated[
        float,
        typer.Option(
            min=0.1, max=MAX_HOURS, help="Maximum run time of the device receipt on ml.trn1.2xlarge in hours."
        ),
    ] = 1.0,
    wheelhouse: WheelhouseOption = None,
    region: RegionOption = None,
    every: EveryOption = 15.0,
    offline: OfflineOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the steps and their maximum costs; create nothing.")
    ] = False,
) -> None:
    """Run the cheapest life cycle in an account, and write a page with the results that only AWS can show."""
    from neuron_sum import files
    from sagemaker_jobs.commands import session
    from sagemaker_jobs.commands.receipt_actions import AwsActions
    from sagemaker_jobs.receipt import costs
    from sagemaker_jobs.receipt.record import RecordFile
    from sagemaker_jobs.receipt.runner import Actions, Runner
    from sagemaker_jobs.receipt.steps import STEPS
    from sagemaker_jobs.stack.stack import describe, is_usable, planned_stack, require_stack

    if retry and not resume:
        raise AwsError("--retry needs --resume", "Use both to repeat the failed steps of a receipt.")
    if dry_run and offline:
        account, stack = None, planned_stack(session.offline_context(region))
    else:
        account = session.account_in(region, dry_run=dry_run, every_s=every)
        described = describe(account)
        usable = described is not None and is_usable(described)  # otherwise the first step creates it
        stack = require_stack(account) if usable else planned_stack(account.site)
    priced_with = None if offline else account
    plans = {step.name: costs.worst_case(step.name, stack, priced_with, device_hours) for step in STEPS}
    table, worst_usd = _plan_table(plans), sum(plan.worst_usd for plan in plans.values())
    for plan in plans.values():
        plan.check(max(max_usd, plan.worst_usd))  # rejects prices of another region, with which no cap can be enforced
    cap = f"at most ${worst_usd:.2f}; --max-usd allows ${max_usd:.2f}"
    if worst_usd > max_usd:
        cap += ", and a step that may exceed the rest is left out"
    if dry_run or account is None:
        result = {"steps": {name: plan.as_dict() for name, plan in plans.items()}, "worst_usd": round(worst_usd, 2)}
        console.emit(result, table, cap, "dry run: nothing was created")
        return
    file = RecordFile(output)
    with files.lock_output(output):
        record = file.load(account.site, resume=resume)
        if resume:
            record.check_ledger(account.ledger, output)
        else:
            record.begin(account.ledger)
        if retry and (repeated := record.drop_failed()):
            console.note(f"repeating {', '.join(repeated)}")
        console.note_table(table)
        console.note(cap)
        file.save(record)
        steps = AwsActions(account, record, output, plans, device_size, device_hours, every, wheelhouse)
        actions = Actions(steps.perform, steps.resume, steps.remove, steps.read_bill)
        runner = Runner(file, record, account, plans, max_usd, actions)
        again = account.command(
            "receipt",
            resume=True,
            output=output,
            max_usd=max_usd,
            device_size=device_size,
            device_hours=device_hours,
            wheelhouse=wheelhouse,
            offline=offline,
        )
        try:
            runner.run()
        except KeyboardInterrupt:
            if not runner.cleaned_up:
                raise Interrupted(
                    "the receipt was interrupted while deleting what it created: resources may remain and be billed",
                    f"Delete them and continue with `{again}`.",
                ) from None
            raise Interrupted(
                "the receipt was interrupted; what it created was deleted, except artifacts",
                f"Continue with `{again}`.",
            ) from None
        except AwsError as error:
            error.hint = f"{error.hint}; continue with `{again}`" if error.hint else f"Continue with `{again}`."
            raise
        finally:
            _write(output, record, runner)
    _emit(output, record, runner, again)


def _plan_table(plans: "Mapping[str, Plan]") -> "Table":
    from sagemaker_jobs.receipt.steps import ALL

    table = console.table("step", "instance", "at most", "worst $", "what", title="steps")
    table.columns[-1].justify = "left"
    for name, plan in plans.items():
        items = [item for item in plan.items if item.price is not None]
        instances = ", ".join(f"{item.instances} × {item.price.instance}" for item in items if item.price is not None)
        hours = f"{sum(item.worst_hours for item in items):.2f} h" if items else ""
        table.add_row(name, instances, hours, f"{plan.worst_usd:.2f}", ALL[name].what)
    return table


def _write(output: Path, record: "Record", runner: "Runner") -> None:
    """Write the page, and the same as JSON, both without the account id."""
    from neuron_sum import files
    from sagemaker_jobs.receipt.page import anonymous, render
    from sagemaker_jobs.receipt.record import PAGE, RECEIPT

    cells = runner.cells
    files.write_text(output / PAGE, render(record, cells))
    text = anonymous(files.to_json(_as_dict(record, runner), indent=2), record)
    files.write_text(output / RECEIPT, text + "\n")


def _as_dict(record: "Record", runner: "Runner") -> dict[str, Any]:
    from sagemaker_jobs.receipt.steps import ALL

    found = runner.cells
    cells = [
        {"name": cell.name, "step": step.name, "expected": cell.expected, **found[cell.name].model_dump(mode="json")}
        for step in ALL.values()
        for cell in step.cells
    ]
    return {
        "region": record.region,
        "started": record.started,
        "neuron_sum": record.neuron_sum,
        "worst_usd": round(record.worst_usd, 2),
        "usd": round(record.reserved_usd, 2),
        "cells": cells,
        "attempts": [attempt.model_dump(mode="json") for attempt in record.attempts],
    }


def _emit(output: Path, record: "Record", runner: "Runner", again: str) -> None:
    """Print the cells.

    Raises:
        AwsError: If resources remain, or a step failed.
    """
    from sagemaker_jobs.receipt.record import PAGE, RECEIPT
    from sagemaker_jobs.receipt.steps import DOWN

    found = runner.cells
    table = console.table("cell", "state", "observed")
    table.columns[-1].justify = "left"
    for name, cell in found.items():
        table.add_row(name, cell.state, cell.text)
    counted = ", ".join(
        f"{sum(cell.state == state for cell in found.values())} {state}"
        for state in ("passed", "different", "failed", "open")
    )
    paths = {"receipt": str(output / RECEIPT), "page": str(output / PAGE)}
    console.emit(
        {**paths, **_as_dict(record, runner)},
        table,
        f"{counted}; ${record.reserved_usd:.2f} by the times of its resources, at most ${record.worst_usd:.2f}",
        f"wrote {paths['page']} and {paths['receipt']}",
    )
    failed = [name for name, result in record.results.items() if result.failed]
    if DOWN in failed and record.results[DOWN].cells["nothing left"].state == "failed":
        raise AwsError(
            f"resources may remain: {record.results[DOWN].cells['nothing left'].text}",
            f"Run `{console.command('aws', 'status', region=record.region)}`, then "
            f"`{console.command('aws', 'down', 'RUN', region=record.region)}`.",
        )
    if failed:
        raise AwsError(f"steps with a failed cell: {', '.join(failed)}", f"Repeat them with `{again} --retry`.")
