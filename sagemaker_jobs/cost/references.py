"""What the same kind of work cost others, in figures and with their sources: the rows beside a plan."""

from dataclasses import dataclass

from neuron_sum.models.dimensions import TRAINING_EXAMPLES
from neuron_sum.platform.prices import find_price

WRITE_UP = "a learner's write-up of fine-tuning FLAN-T5 on DialogSum"
LAB = "AWS's SageMaker lab on FLAN-T5-large"

OVERNIGHT_H = 12.0


@dataclass(frozen=True)
class PublishedCost:
    """What somebody paid.

    Attributes:
        what: For what.
        instance: On what.
        hours: For how long; None where nobody says.
        usd: How much.
        source: Who says so.
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
    """How fast somebody trained.

    Attributes:
        model: The base model's hub id.
        instance: The SageMaker instance with that hardware.
        examples_per_s: Training examples.
        usd_per_hour: What that instance costs; None: as the table says.
        source: Who says so, and how the figure comes from what they say.
    """

    model: str
    instance: str
    examples_per_s: float
    usd_per_hour: float | None
    source: str

    @property
    def price(self) -> float:
        """USD an hour."""
        return self.usd_per_hour if self.usd_per_hour is not None else find_price(self.instance).usd_per_hour


PUBLISHED_SPEEDS = (
    PublishedSpeed(
        "google/flan-t5-base", "ml.g6.xlarge", 5 * TRAINING_EXAMPLES["dialogsum"] / (84 * 60), None,
        f"{WRITE_UP}: LoRA, 5 epochs in 1:24 h on an L4",
    ),
    PublishedSpeed(
        "google/flan-t5-base", "ml.m5.2xlarge", 8 / 30, 0.461,
        f"{WRITE_UP}: LoRA on a CPU, 30 s a step of 8 examples, at its price",
    ),
    PublishedSpeed(
        "google/flan-t5-large", "ml.g5.12xlarge", TRAINING_EXAMPLES["dialogsum"] / 3600, None,
        f"{LAB}: LoRA, about an hour for over 12,000 dialogues, taken as one epoch",
    ),
)  # fmt: skip


def forgotten_overnight(instance: str) -> PublishedCost:
    """What a night costs if nobody turns the machine off, as in the write-up; a job and an expiry end by themselves."""
    price = find_price(instance)
    what = f"a machine forgotten overnight ({OVERNIGHT_H:.0f} h)"
    return PublishedCost(what, instance, OVERNIGHT_H, price.cost(OVERNIGHT_H), f"{WRITE_UP}; {price.source}")
