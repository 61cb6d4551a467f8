"""Tables that the commands of `neuron-sum aws` print: cost plans, comparisons and resources."""

from collections.abc import Iterable
from typing import Any

from rich.table import Table

from neuron_sum import console
from sagemaker_jobs.aws.names import PREFIX
from sagemaker_jobs.cleanup.kinds import Resource
from sagemaker_jobs.cost.plan import NOT_COUNTED, Plan
from sagemaker_jobs.cost.references import Cost


def plan_tables(plan: Plan, title: str) -> list[Any]:
    """The table of a cost plan, followed by its notes.

    Args:
        plan: The plan.
        title: The title of the table.
    """
    table = console.table("what", "instance", "$ an hour", "at most", "worst $", "expected $", title=title)
    table.columns[1].no_wrap = True
    names = [item.name for item in plan.items if f"{PREFIX}-" in item.name]
    for item in plan.items:
        shortened = item.name in names and len(names) > 1  # the names differ only in their ends
        name = f"{item.kind} " + (f"…-{item.name.rpartition('-')[2]}" if shortened else item.name)
        if item.price is None:
            table.add_row(name, "", "", "", "0.00", "0.00")
            continue
        table.add_row(
            name,
            f"{item.instances} × {item.price.instance}",
            f"{item.price.usd_per_hour:.3f}",
            *(
                ("until deleted", "unbounded")
                if item.unbounded
                else (f"{item.worst_hours:.2f} h", f"{item.worst_usd:.2f}")
            ),
            "unknown" if item.expected_usd is None else f"{item.expected_usd:.2f}",
        )
    sources = sorted({item.price.source for item in plan.items if item.price})
    hourly = sum(item.price.cost(1, item.instances) for item in plan.items if item.price and item.unbounded)
    worst = f"unbounded: ${hourly:.2f} an hour until you delete it" if hourly else f"${plan.worst_usd:.2f}"
    return [table, f"worst case: {worst}", *(f"prices: {source}" for source in sources), f"not counted: {NOT_COUNTED}"]


def comparison_table(costs: Iterable[Cost], title: str) -> Table:
    """The table of costs that a plan is compared with.

    Args:
        costs: The costs of the same or similar work.
        title: The title of the table.
    """
    table = console.table("instance", "what", "hours", "$", "cheaper if under", "source", title=f"\n{title}")
    table.columns[1].justify = table.columns[-1].justify = "left"
    for row in costs:
        hours, even = ("" if each is None else f"{each:.2f}" for each in (row.hours, row.even_hours))
        table.add_row(row.instance, row.what, hours, f"{row.usd:.2f}", even and f"{even} h", row.source)
    return table


def resource_table(found: Iterable[Resource], title: str) -> Table:
    """The table of the resources in an account.

    Args:
        found: The resources to list.
        title: The title of the table.
    """
    table = console.table("what", "run", "state", "age", "$ an hour", title=title)
    for item in found:
        cost = "no price known" if item.usd_per_hour is None else f"{item.usd_per_hour:.2f}"
        table.add_row(f"{item.kind} {item.name}", item.run or "", item.state, console.duration(item.hours * 3600), cost)
    return table
