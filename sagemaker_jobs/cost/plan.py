"""What a run will cost at most, before it starts: every resource, its price and its longest time.

The worst case is read from the very requests that will be sent, so what bounds the cost there bounds it in AWS.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.models.dimensions import training_examples
from neuron_sum.platform import prices
from neuron_sum.platform.prices import Price
from neuron_sum.recipes.schema import Recipe
from sagemaker_jobs.aws.place import STOP_GRACE_S, Request
from sagemaker_jobs.cost.references import (
    PUBLISHED_COSTS,
    PUBLISHED_SPEEDS,
    PublishedCost,
    forgotten_overnight,
)
from sagemaker_jobs.launch.schedules import LATE_S

BESIDE = ("ml.g5.2xlarge", "ml.g5.12xlarge", "ml.c7i.4xlarge")
"""GPUs and a CPU that a job's hours are compared with."""

NOT_COUNTED = "S3 storage, disks and logs: cents for such a run, and not in these figures"


@dataclass(frozen=True)
class Item:
    """One thing that a run makes.

    Attributes:
        kind: Such as training-job.
        name: AWS's name for it.
        price: None for what costs nothing while it lies there.
        instances: How many are paid.
        worst_hours: The longest that they are.
        expected_hours: What somebody expects; None where nobody does.
        bounded_by: What ends it.
        unbounded: Nothing does but a person.
    """

    kind: str
    name: str
    price: Price | None = None
    instances: int = 1
    worst_hours: float = 0.0
    expected_hours: float | None = None
    bounded_by: str = ""
    unbounded: bool = False

    @property
    def worst_usd(self) -> float:
        """Price × instances × longest time."""
        if self.unbounded:
            return math.inf
        return self.price.cost(self.worst_hours, self.instances) if self.price else 0.0

    @property
    def expected_usd(self) -> float | None:
        """The same for the expected time."""
        if self.price is None:
            return 0.0
        return None if self.expected_hours is None else self.price.cost(self.expected_hours, self.instances)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        priced = self.price is not None
        return {
            "kind": self.kind,
            "name": self.name,
            "instance": self.price.instance if self.price else None,
            "instances": self.instances if priced else None,
            "usd_per_hour": self.price.usd_per_hour if self.price else None,
            "price_source": self.price.source if self.price else None,
            "worst_hours": self.worst_hours if priced and not self.unbounded else None,
            "bounded_by": self.bounded_by or None,
            "worst_usd": _json_usd(self.worst_usd),
            "expected_usd": None if self.expected_usd is None else round(self.expected_usd, 2),
        }


@dataclass(frozen=True)
class Elsewhere:
    """The same on another instance.

    Attributes:
        instance: Which.
        what: The same hours, or the same work.
        hours: How long.
        usd: How much.
        source: Where the price, and the speed where there is one, come from.
        even_hours: It is cheaper than the plan's training only if it takes less than so long.
    """

    instance: str
    what: str
    hours: float
    usd: float
    source: str
    even_hours: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a run makes and costs.

    Attributes:
        items: Everything, in the order of its making.
    """

    items: tuple[Item, ...]

    @property
    def worst_usd(self) -> float:
        """All of it at its longest."""
        return sum(item.worst_usd for item in self.items)

    @property
    def expected_usd(self) -> float | None:
        """All of it as expected; None if of one nothing is."""
        expected = [item.expected_usd for item in self.items]
        return None if None in expected else sum(usd for usd in expected if usd is not None)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        expected = self.expected_usd
        return {
            "items": [item.as_dict() for item in self.items],
            "worst_usd": _json_usd(self.worst_usd),
            "expected_usd": None if expected is None else round(expected, 2),
            "not_counted": NOT_COUNTED,
        }

    def check(self, max_usd: float | None) -> None:
        """Refuses what may cost more than it is allowed to.

        Args:
            max_usd: None: anything.

        Raises:
            AwsError: With what to lower.
        """
        if max_usd is None:
            return
        if guessed := [item.price for item in self.items if item.price is not None and item.price.of_another_region]:
            raise AwsError(
                f"--max-usd {max_usd:g} cannot be held: no price of this region is known, only {guessed[0]}",
                "credentials with pricing:GetProducts, so that AWS is asked; or leave out --max-usd",
            )
        if self.worst_usd <= max_usd:
            return
        dearest = max(self.items, key=lambda item: item.worst_usd)
        if dearest.unbounded:
            raise AwsError(
                f"nothing bounds what {dearest.kind} {dearest.name} costs, and --max-usd allows ${max_usd:.2f}",
                "--hours instead of --keep, or leave out --max-usd",
            )
        raise AwsError(
            f"this may cost ${self.worst_usd:.2f}, and --max-usd allows ${max_usd:.2f}; the most of it is "
            f"{dearest.kind} {dearest.name} (${dearest.worst_usd:.2f})",
            "lower the hours or the instances, take another instance, or raise --max-usd",
        )


def job_item(request: Request, price: Price, expected_hours: float | None = None) -> Item:
    """A training job, from its request.

    Args:
        request: CreateTrainingJob's.
        price: Of its instance.
        expected_hours: As in Item.
    """
    longest_s = request["StoppingCondition"]["MaxRuntimeInSeconds"] + STOP_GRACE_S
    return Item(
        "training-job",
        request["TrainingJobName"],
        price,
        request["ResourceConfig"]["InstanceCount"],
        longest_s / 3600,
        expected_hours,
        f"MaxRuntimeInSeconds and {STOP_GRACE_S} s to stop",
    )


def build_plan(request: Request, region: str = prices.REGION) -> Plan:
    """A build of an image, from its project's request; CodeBuild's prices are the table's.

    Args:
        request: CreateProject's.
        region: Where.

    Raises:
        PlatformError: If the table has no price of its machine.
    """
    name, longest = request["name"], request["timeoutInMinutes"]
    price = prices.find_price(request["environment"]["computeType"], region)
    return Plan(
        (
            Item("bucket", "one for all runs"),
            Item("role", "one for the run"),
            Item("repository", "one for all images"),
            Item("build-project", name),
            Item("build", name, price, 1, (longest + 1) / 60, None, "timeoutInMinutes, and the minute that is begun"),
        )
    )


def endpoint_items(requests: dict[str, Request], price: Price, hours: float) -> list[Item]:
    """An endpoint and what belongs to it.

    Args:
        requests: By kind: model, endpoint-config, endpoint; schedule, without which it is unbounded; scaling-target,
            whose largest number of instances then counts.
        price: Of its instance.
        hours: Until its expiry.
    """
    variants = requests["endpoint-config"]["ProductionVariants"]
    instances = sum(variant["InitialInstanceCount"] for variant in variants)
    name = requests["endpoint"]["EndpointName"]
    if "scaling-target" in requests:
        instances = max(instances, requests["scaling-target"]["MaxCapacity"])
    if "schedule" in requests:
        until = f"the schedule, {hours:g} h after it is made, and {LATE_S} s until it calls"
        endpoint = Item("endpoint", name, price, instances, hours + LATE_S / 3600, hours, until)
    else:
        endpoint = Item("endpoint", name, price, instances, bounded_by="you, with aws down", unbounded=True)
    return [
        *([Item("schedule", requests["schedule"]["Name"])] if "schedule" in requests else []),
        Item("model", requests["model"]["ModelName"]),
        Item("endpoint-config", requests["endpoint-config"]["EndpointConfigName"]),
        endpoint,
        *([Item("scaling-target", requests["scaling-target"]["ResourceId"])] if "scaling-target" in requests else []),
    ]


def elsewhere(plan: Plan, recipe: Recipe) -> list[Elsewhere]:
    """The plan's training on GPUs and a CPU: the same hours; and the same work, where somebody published a speed.

    Args:
        plan: What will be made.
        recipe: What is trained.
    """
    jobs = [item for item in plan.items if item.kind == "training-job" and item.price]
    if not jobs:
        return []
    hours, usd = jobs[0].worst_hours, jobs[0].worst_usd
    found = []
    for name in BESIDE:
        price = prices.find_price(name)
        even = usd / price.usd_per_hour
        found.append(Elsewhere(name, "the same hours", hours, price.cost(hours), price.source, even))
    if (examples := examples_of(recipe)) is not None:
        for speed in PUBLISHED_SPEEDS:
            if speed.model == recipe.model.name_or_path:
                needed = examples / speed.examples_per_s / 3600
                what = f"the same {examples:,.0f} examples"
                found.append(Elsewhere(speed.instance, what, needed, needed * speed.price, speed.source))
    return found


def examples_of(recipe: Recipe) -> float | None:
    """Training examples times epochs; None where only the data could tell."""
    train = recipe.train
    if train.max_steps is not None:
        return None  # rows of a packed batch hold several examples
    count = training_examples(recipe.data)
    return None if count is None else count * train.num_train_epochs


def published() -> Sequence[PublishedCost]:
    """What others paid, and what a forgotten machine would."""
    return (*PUBLISHED_COSTS, forgotten_overnight("ml.g5.12xlarge"), forgotten_overnight("ml.g6.xlarge"))


def _json_usd(usd: float) -> float | None:
    """JSON has no infinity; what is unbounded is null there."""
    return None if math.isinf(usd) else round(usd, 2)
