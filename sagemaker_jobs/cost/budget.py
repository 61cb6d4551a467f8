"""Monthly budget of `aws setup --monthly-usd`: its limit, and what already counts against it."""

from dataclasses import asdict, dataclass
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import PREFIX


@dataclass(frozen=True)
class Budget:
    """AWS Budget of a stack.

    Attributes:
        name: The budget's name.
        limit_usd: The monthly limit in USD.
        spent_usd: The costs of this month so far in USD, which AWS updates a few times a day.
    """

    name: str
    limit_usd: float
    spent_usd: float

    def __str__(self) -> str:
        return f"budget {self.name}: ${self.spent_usd:.2f} of ${self.limit_usd:.2f} spent this month"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for --json."""
        return asdict(self)


def monthly_budget(account: Account) -> Budget | None:
    """Return the budget of the account's stack; None if there is none, or, with a note, if it cannot be read."""
    name = f"{PREFIX}-{account.region}"
    try:
        answer = account.find("budgets", "describe_budget", AccountId=account.id, BudgetName=name)
    except AwsError as error:
        console.note(f"budget not read: {error.message}")
        return None
    if answer is None:
        return None
    found = answer["Budget"]
    spent = found.get("CalculatedSpend", {}).get("ActualSpend", {}).get("Amount", "0")
    return Budget(name, float(found["BudgetLimit"]["Amount"]), float(spent))
