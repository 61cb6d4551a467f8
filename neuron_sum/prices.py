"""What SageMaker's instances cost by the hour: a dated table, for where no live price can be had."""

from dataclasses import dataclass

from neuron_sum.errors import PlatformError


@dataclass(frozen=True)
class Price:
    """What an instance costs on demand.

    Attributes:
        instance: As CreateTrainingJob and CreateEndpointConfig take it.
        usd_per_hour: Training or hosting; EC2's own price for the same type is lower.
        region: Where.
        read: The day it was read.
        source: Where.
    """

    instance: str
    usd_per_hour: float
    region: str
    read: str
    source: str

    def __str__(self) -> str:
        return f"${self.usd_per_hour:g} an hour for {self.instance} in {self.region}, read {self.read} ({self.source})"


REGION, READ = "us-east-1", "2026-09-27"
SOURCE = "a third party's list of SageMaker's on-demand prices, not AWS's own"
FALLBACK = {
    instance: Price(instance, usd_per_hour, REGION, READ, SOURCE)
    for instance, usd_per_hour in (
        ("ml.trn1.2xlarge", 1.54),
        ("ml.trn1.32xlarge", 24.73),
        ("ml.inf2.xlarge", 0.99),
        ("ml.inf2.8xlarge", 2.36),
        ("ml.inf2.24xlarge", 7.79),
        ("ml.inf2.48xlarge", 15.58),
        ("ml.g5.2xlarge", 1.52),
        ("ml.g5.12xlarge", 7.09),
        ("ml.g6.xlarge", 1.127),
        ("ml.c7i.4xlarge", 0.857),
    )
}


def find_price(instance: str) -> Price:
    """The table's price of an instance type.

    Raises:
        PlatformError: If the table does not have it.
    """
    if instance not in FALLBACK:
        raise PlatformError(f"no price of {instance!r} in the table", f"there are {', '.join(FALLBACK)}")
    return FALLBACK[instance]
