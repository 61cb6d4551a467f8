"""The costs of an account in a region by service, from Cost Explorer, which has them about a day later."""

from dataclasses import dataclass
from datetime import date, timedelta

from sagemaker_jobs.aws.account import Account

SERVICES = ("Amazon SageMaker", "CodeBuild", "Amazon EC2 Container Registry (ECR)", "Amazon Simple Storage Service")
"""Cost Explorer's names of the services that the commands use; it returns nothing for a name without costs."""
DELAY_DAYS = 1
"""Cost Explorer updates its data at least once every 24 hours (AWS Cost Management user guide, ce-what-is)."""


@dataclass(frozen=True)
class Bill:
    """Costs of an account in a region, which contain those of everything else on these days.

    Attributes:
        usd: USD by service.
        estimated: Whether AWS may still change them.
    """

    usd: dict[str, float]
    estimated: bool

    @property
    def total_usd(self) -> float:
        """USD of all services."""
        return sum(self.usd.values())


def read(account: Account, first: date, last: date) -> Bill:
    """The costs of the days from the first to the last, both included, in UTC, without credits, refunds and taxes.

    Args:
        account: The account and region.
        first: The first day.
        last: The last day.

    Raises:
        AwsError: If AWS refuses, or cannot be reached; Cost Explorer must be enabled in the account.
    """
    usd, estimated = dict[str, float](), False
    request = {
        "TimePeriod": {"Start": first.isoformat(), "End": (last + timedelta(days=1)).isoformat()},
        "Granularity": "DAILY",
        "Metrics": ["UnblendedCost"],
        "GroupBy": [{"Type": "DIMENSION", "Key": "SERVICE"}],
        "Filter": {
            "And": [
                {"Dimensions": {"Key": "REGION", "Values": [account.region]}},
                {"Dimensions": {"Key": "SERVICE", "Values": [*SERVICES]}},
                # Credits would hide the costs.
                {"Not": {"Dimensions": {"Key": "RECORD_TYPE", "Values": ["Credit", "Refund", "Tax"]}}},
            ]
        },
    }
    page: dict[str, str] = {}
    while True:
        answer = account.call("ce", "get_cost_and_usage", **request, **page)
        for day in answer["ResultsByTime"]:
            estimated = estimated or bool(day.get("Estimated"))
            for group in day.get("Groups", []):
                [service] = group["Keys"]
                usd[service] = usd.get(service, 0.0) + float(group["Metrics"]["UnblendedCost"]["Amount"])
        if not (token := answer.get("NextPageToken")):
            return Bill(usd, estimated)
        page = {"NextPageToken": token}
