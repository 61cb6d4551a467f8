"""What the training of a plan would cost elsewhere, and what similar trainings cost others, each with its source."""

from dataclasses import dataclass

from neuron_sum.models.dimensions import DIALOGSUM_EXAMPLES, training_examples
from neuron_sum.platform.prices import find_price
from neuron_sum.recipes.schema import Recipe
from sagemaker_jobs.cost.plan import Plan

COMPARED = ("ml.g5.2xlarge", "ml.g5.12xlarge", "ml.c7i.4xlarge")
"""GPU and CPU instances with which a job's cost is compared."""

WRITE_UP = "a learner's write-up of fine-tuning FLAN-T5 on DialogSum"
LAB = "AWS SageMaker lab on FLAN-T5-large"

OVERNIGHT_H = 12.0
"""Hours of a machine left on overnight, as in the write-up; jobs and endpoints with an expiry end."""


@dataclass(frozen=True)
class Cost:
    """Cost of a training on an instance.

    Attributes:
        instance: The instance type or machine.
        what: The training, or what is compared: the same hours, or the same examples.
        hours: The hours; None if not published.
        usd: The cost in USD.
        source: The source of the price and of the speed, or the publication.
        even_hours: The hours below which the instance is cheaper than the plan's training; None for the same work.
    """

    instance: str
    what: str
    hours: float | None
    usd: float
    source: str
    even_hours: float | None = None


SPEEDS = (
    (
        "google/flan-t5-base", "ml.g6.xlarge", 5 * DIALOGSUM_EXAMPLES / (84 * 60), None,
        f"{WRITE_UP}: LoRA, 5 epochs in 1:24 h on an L4",
    ),
    (
        "google/flan-t5-base", "ml.m5.2xlarge", 8 / 30, 0.461,
        f"{WRITE_UP}: LoRA on a CPU, 30 s a step of 8 examples, at its price",
    ),
    (
        "google/flan-t5-large", "ml.g5.12xlarge", DIALOGSUM_EXAMPLES / 3600, None,
        f"{LAB}: LoRA, about an hour for over 12,000 dialogues, taken as one epoch",
    ),
)  # fmt: skip
"""Published speeds: base model, SageMaker instance with that hardware, examples per second, USD per hour (None for the
bundled price table), and the publication with the figures from which the speed is derived."""


def elsewhere(plan: Plan, recipe: Recipe) -> list[Cost]:
    """Return the cost of the plan's training on GPUs and a CPU: for the same hours and, with a published speed, work.

    Args:
        plan: The plan.
        recipe: The recipe to train.
    """
    job = next((item for item in plan.items if item.kind == "training-job" and item.price), None)
    if job is None:
        return []
    found = []
    for name in COMPARED:
        price = find_price(name)
        even = job.worst_usd / price.usd_per_hour
        found.append(Cost(name, "the same hours", job.worst_hours, price.cost(job.worst_hours), price.source, even))
    # Rows of a packed batch contain several examples, so a number of steps does not determine that of examples.
    count = None if recipe.train.max_steps is not None else training_examples(recipe.data)
    if count is not None:
        examples = count * recipe.train.num_train_epochs
        for model, instance, speed, usd, source in SPEEDS:
            if model == recipe.model.name_or_path:
                hours = examples / speed / 3600
                cost = hours * (find_price(instance).usd_per_hour if usd is None else usd)
                found.append(Cost(instance, f"the same {examples:,.0f} examples", hours, cost, source))
    return found


def published() -> list[Cost]:
    """Return published costs, and the cost of a machine that runs overnight by mistake."""
    found = [
        Cost("ml.g5.12xlarge", "FLAN-T5-large on DialogSum, LoRA, about an hour", 1.0, 7.0, LAB),
        Cost("an L4 GPU", "FLAN-T5-base on DialogSum, LoRA, 7,790 steps", 1.4, 8.98, WRITE_UP),
        Cost("an L4 GPU", "that machine and all tries before it", None, 15.65, WRITE_UP),
    ]
    for instance in ("ml.g5.12xlarge", "ml.g6.xlarge"):
        price, what = find_price(instance), f"a machine forgotten overnight ({OVERNIGHT_H:.0f} h)"
        source = f"{WRITE_UP}; {price.source}"
        found.append(Cost(instance, what, OVERNIGHT_H, price.cost(OVERNIGHT_H), source))
    return found
