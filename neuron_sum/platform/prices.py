"""What SageMaker instances cost: a dated table, for where AWS's own Price List cannot be asked.

The Price List itself is asked by sagemaker_jobs/cost/price_list.py. EC2's prices for the same hardware are lower
(trn1.2xlarge 1.34, inf2.xlarge 0.758) and wrong for SageMaker.
"""

from dataclasses import dataclass

from neuron_sum.errors import PlatformError

REGION = "us-east-1"
"""The table's only region."""

READ = "2026-09-27"
SOURCE = f"table: {REGION} on demand, read {READ} from one third-party list"

USD_PER_HOUR = {
    "ml.trn1.2xlarge": 1.54,
    "ml.trn1.32xlarge": 24.73,
    "ml.inf2.xlarge": 0.99,
    "ml.inf2.8xlarge": 2.36,
    "ml.inf2.24xlarge": 7.79,
    "ml.inf2.48xlarge": 15.58,
    "ml.g5.2xlarge": 1.52,
    "ml.g5.12xlarge": 7.09,
    "ml.g6.xlarge": 1.127,
    "ml.c7i.4xlarge": 0.857,
}
"""By SageMaker's instance name."""

BUILD_USD_PER_MINUTE = {"BUILD_GENERAL1_MEDIUM": 0.01, "BUILD_GENERAL1_LARGE": 0.02}
"""CodeBuild's, by the minute that is begun, from the request to the end, by its name for a Linux machine."""

BUILD_SOURCE = f"table: CodeBuild in {REGION}, read 2026-11-21 from two third-party pages, not asked live"

S3_USD_PER_GB_MONTH = 0.023
ECR_USD_PER_GB_MONTH = 0.10
LOGS_USD_PER_GB_MONTH = 0.03
S3_SOURCE = f"S3 Standard at ${S3_USD_PER_GB_MONTH} per GB and month, its list price in {REGION}, not asked live"
ECR_SOURCE = f"ECR at ${ECR_USD_PER_GB_MONTH} per GB and month at most, its list price in {REGION}, not asked live"
LOGS_SOURCE = f"CloudWatch Logs at ${LOGS_USD_PER_GB_MONTH} per GB and month, list price in {REGION}, not asked live"


@dataclass(frozen=True)
class Price:
    """What one instance costs for an hour.

    Attributes:
        instance: As SageMaker calls it.
        usd_per_hour: On demand.
        source: Who says so, when, and for which region; shown wherever the price is.
        of_another_region: Whether it is only the nearest that is known: a cap cannot rest on it.
    """

    instance: str
    usd_per_hour: float
    source: str
    of_another_region: bool = False

    def __str__(self) -> str:
        return f"${self.usd_per_hour:g} an hour for {self.instance} ({self.source})"

    def cost(self, hours: float, instances: int = 1) -> float:
        """USD for so many instances for so long."""
        return self.usd_per_hour * hours * instances


def find_price(instance: str, region: str = REGION) -> Price:
    """The table's price; for another region it says that it is not that region's.

    Args:
        instance: With or without `ml.`; or CodeBuild's name for a machine.
        region: Where it shall run.

    Raises:
        PlatformError: If the table does not have the instance.
    """
    other = "" if region == REGION else f"; {region} may cost more"
    if instance in BUILD_USD_PER_MINUTE:
        # A cap may rest on it in any region: a build is cents, and nothing here asks AWS for its price.
        return Price(instance, 60 * BUILD_USD_PER_MINUTE[instance], BUILD_SOURCE + other)
    name = instance if instance.startswith("ml.") else f"ml.{instance}"
    if name not in USD_PER_HOUR:
        raise PlatformError(
            f"no price of {name} in the table of {READ}",
            f"there are {', '.join(USD_PER_HOUR)}; with AWS credentials `neuron-sum aws plan` asks AWS itself",
        )
    return Price(name, USD_PER_HOUR[name], SOURCE + other, bool(other))
