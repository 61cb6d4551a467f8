"""A dated table of SageMaker prices, used if the AWS Price List is not available.

sagemaker_jobs/cost/price_list.py queries the Price List. EC2 prices for the same hardware are lower (trn1.2xlarge 1.34,
inf2.xlarge 0.758) and do not apply to SageMaker.
"""

from dataclasses import dataclass

from neuron_sum.errors import PlatformError

REGION = "us-east-1"
"""The only region in the table."""

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
"""USD per hour by SageMaker instance name."""

BUILD_USD_PER_MINUTE = {"BUILD_GENERAL1_MEDIUM": 0.01, "BUILD_GENERAL1_LARGE": 0.02}
"""USD per started minute, from the request to the end, by CodeBuild's name of a Linux machine."""

BUILD_SOURCE = f"table: CodeBuild in {REGION}, read 2026-11-21 from two third-party pages, not queried live"

S3_USD_PER_GB_MONTH = 0.023
ECR_USD_PER_GB_MONTH = 0.10
LOGS_USD_PER_GB_MONTH = 0.03
S3_SOURCE = f"S3 Standard at ${S3_USD_PER_GB_MONTH} per GB and month, its list price in {REGION}, not queried live"
ECR_SOURCE = f"ECR at ${ECR_USD_PER_GB_MONTH} per GB and month at most, its list price in {REGION}, not queried live"
LOGS_SOURCE = f"CloudWatch Logs at ${LOGS_USD_PER_GB_MONTH} per GB and month, list price in {REGION}, not queried live"


@dataclass(frozen=True)
class Price:
    """The hourly price of an instance.

    Attributes:
        instance: The SageMaker name of the instance type.
        usd_per_hour: USD per hour, on demand.
        source: The source, date and region of the price; printed next to it.
        of_another_region: Whether the price is for another region, so that it cannot be used for a cost cap.
    """

    instance: str
    usd_per_hour: float
    source: str
    of_another_region: bool = False

    def __str__(self) -> str:
        return f"${self.usd_per_hour:g} an hour for {self.instance} ({self.source})"

    def cost(self, hours: float, instances: int = 1) -> float:
        """The cost in USD of a number of instances for a number of hours."""
        return self.usd_per_hour * hours * instances


def find_price(instance: str, region: str = REGION) -> Price:
    """Find the price in the table. For a region other than the table's, the result is marked as such.

    Args:
        instance: The instance type with or without `ml.`, or CodeBuild's name of a machine.
        region: The region to run in.

    Raises:
        PlatformError: If the table does not have the instance.
    """
    other = "" if region == REGION else f"; {region} may cost more"
    if instance in BUILD_USD_PER_MINUTE:
        # Valid for a cost cap in any region: a build costs cents, and its price is not queried from AWS.
        return Price(instance, 60 * BUILD_USD_PER_MINUTE[instance], BUILD_SOURCE + other)
    name = instance if instance.startswith("ml.") else f"ml.{instance}"
    if name not in USD_PER_HOUR:
        raise PlatformError(
            f"no price of {name} in the table of {READ}",
            f"use one of {', '.join(USD_PER_HOUR)}, or run `neuron-sum aws plan` with AWS credentials to query AWS",
        )
    return Price(name, USD_PER_HOUR[name], SOURCE + other, bool(other))
