"""What the commands of `aws` show: plans, and what is there."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.table import Table

from neuron_sum import console
from sagemaker_jobs.aws.names import PREFIX
from sagemaker_jobs.cleanup.kinds import Resource
from sagemaker_jobs.cost.plan import NOT_COUNTED, Elsewhere, Plan
from sagemaker_jobs.cost.references import PublishedCost


def plan_tables(made: Plan, title: str) -> list[Any]:
    """A plan as people read it; the table comes first.

    Args:
        made: The plan.
        title: Above it.
    """
    table = console.table("what", "instance", "$ an hour", "at most", "worst $", "expected $", title=title)
    table.columns[1].no_wrap = True
    ours = [item.name for item in made.items if f"{PREFIX}-" in item.name]
    for item in made.items:
        several = item.name in ours and len(ours) > 1  # they differ in the end alone
        name = f"{item.kind} " + (f"…-{item.name.rpartition('-')[2]}" if several else item.name)
        if item.price is None:
            table.add_row(name, "", "", "", "0.00", "0.00")
            continue
        table.add_row(
            name,
            f"{item.instances} × {item.price.instance}",
            f"{item.price.usd_per_hour:.3f}",
            *(
                ("until you end it", "unbounded")
                if item.unbounded
                else (f"{item.worst_hours:.2f} h", f"{item.worst_usd:.2f}")
            ),
            "unknown" if item.expected_usd is None else f"{item.expected_usd:.2f}",
        )
    sources = sorted({item.price.source for item in made.items if item.price})
    hourly = sum(item.price.cost(1, item.instances) for item in made.items if item.price and item.unbounded)
    worst = f"unbounded: ${hourly:.2f} an hour until you end it" if hourly else f"${made.worst_usd:.2f}"
    return [table, f"worst case: {worst}", *(f"prices: {source}" for source in sources), f"not counted: {NOT_COUNTED}"]


def beside_tables(beside: Iterable[Elsewhere], published: Sequence[PublishedCost]) -> Iterator[Table]:
    """What the plan is compared with.

    Args:
        beside: The same on other instances.
        published: What others paid.
    """
    elsewhere = console.table(
        "instance", "what", "hours", "$", "cheaper if under", "source", title="\nthe same elsewhere"
    )
    elsewhere.columns[1].justify = elsewhere.columns[-1].justify = "left"
    for row in beside:
        even = "" if row.even_hours is None else f"{row.even_hours:.2f} h"
        elsewhere.add_row(row.instance, row.what, f"{row.hours:.2f}", f"{row.usd:.2f}", even, row.source)
    paid = console.table("for what", "on", "hours", "$", "source", title="\nwhat others paid")
    paid.columns[1].justify = paid.columns[-1].justify = "left"
    for cost in published:
        paid.add_row(
            cost.what, cost.instance, "" if cost.hours is None else f"{cost.hours:.1f}", f"{cost.usd:.2f}", cost.source
        )
    yield elsewhere
    yield paid


def found_table(found: Iterable[Resource], title: str) -> Table:
    """What is in the account.

    Args:
        found: Of ours, or not.
        title: Above it.
    """
    table = console.table("what", "run", "state", "age", "$ an hour", title=title)
    for item in found:
        cost = "no price known" if item.usd_per_hour is None else f"{item.usd_per_hour:.2f}"
        table.add_row(f"{item.kind} {item.name}", item.run or "", item.state, console.duration(item.hours * 3600), cost)
    return table
