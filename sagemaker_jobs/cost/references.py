"""Published costs and speeds of similar trainings with their sources, with which a plan is compared."""

from dataclasses import dataclass

from neuron_sum.models.dimensions import DIALOGSUM_EXAMPLES
from neuron_sum.platform.prices import find_price

WRITE_UP = "a learner's write-up of fine-tuning FLAN-T5 on DialogSum"
LAB = "AWS SageMaker lab on FLAN-T5-large"

OVERNIGHT_H = 12.0


@dataclass(frozen=True)
class PublishedCost:
    """Published cost of a training.

    Attributes:
        what: A description of the training.
        instance: The instance type or machine.
        hours: The hours; None if not published.
        usd: The cost in USD.
        source: The publication.
    """

    what: str
    instance: str
    hours: float | None
    usd: float
    source: str


PUBLISHED_COSTS = (
    PublishedCost("FLAN-T5-large on DialogSum, LoRA, about an hour", "ml.g5.12xlarge", 1.0, 7.0, LAB),
    PublishedCost("FLAN-T5-base on DialogSum, LoRA, 7,790 steps", "an L4 GPU", 1.4, 8.98, WRITE_UP),
    PublishedCost("that machine and all tries before it", "an L4 GPU", None, 15.65, WRITE_UP),
)


@dataclass(frozen=True)
class PublishedSpeed:
    """Published speed of a training.

    Attributes:
        model: The base model's hub id.
        instance: The SageMaker instance with that hardware.
        examples_per_s: The training examples per second.
        usd_per_hour: The instance's price in USD per hour; None for the bundled price table.
        source: The publication, with the figures from which the speed is derived.
    """

    model: str
    instance: str
    examples_per_s: float
    usd_per_hour: float | None
    source: str

    @property
    def price(self) -> float:
        """The price in USD per hour."""
        return self.usd_per_hour if self.usd_per_hour is not None else find_price(self.instance).usd_per_hour


PUBLISHED_SPEEDS = (
    PublishedSpeed(
        "google/flan-t5-base", "ml.g6.xlarge", 5 * DIALOGSUM_EXAMPLES / (84 * 60), None,
        f"{WRITE_UP}: LoRA, 5 epochs in 1:24 h on an L4",
    ),
    PublishedSpeed(
        "google/flan-t5-base", "ml.m5.2xlarge", 8 / 30, 0.461,
        f"{WRITE_UP}: LoRA on a CPU, 30 s a step of 8 examples, at its price",
    ),
    PublishedSpeed(
        "google/flan-t5-large", "ml.g5.12xlarge", DIALOGSUM_EXAMPLES / 3600, None,
        f"{LAB}: LoRA, about an hour for over 12,000 dialogues, taken as one epoch",
    ),
)  # fmt: skip


def forgotten_overnight(instance: str) -> PublishedCost:
    """Return the cost of a machine left on overnight, as in the write-up; jobs and endpoints with an expiry end."""
    price = find_price(instance)
    what = f"a machine forgotten overnight ({OVERNIGHT_H:.0f} h)"
    return PublishedCost(what, instance, OVERNIGHT_H, price.cost(OVERNIGHT_H), f"{WRITE_UP}; {price.source}")
