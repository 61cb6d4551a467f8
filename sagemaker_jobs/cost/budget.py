"""Monthly budget of `aws setup --monthly-usd`: its limit, and what already counts against it.

It is not a resource of the stack: CloudFormation lacks budgets in many regions, and cannot change the subscribers of a
budget that has a name (aws-cloudformation/cloudformation-coverage-roadmap#365).
"""

import re
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused
from sagemaker_jobs.aws.names import PREFIX, AwsContext


def name_in(region: str) -> str:
    """Return the name of a region's budget."""
    return f"{PREFIX}-{region}"


def request_of(site: AwsContext, monthly_usd: float, email: str) -> dict[str, Any]:
    """Return the CreateBudget request.

    Args:
        site: The account and the region that the budget covers.
        monthly_usd: The limit in USD.
        email: The address for the notifications.
    """
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
        raise AwsError(f"{email!r} is not an e-mail address", "correct --email")
    subscribers = [{"SubscriptionType": "EMAIL", "Address": email}]
    return {
        "AccountId": site.account,
        "Budget": {
            "BudgetName": name_in(site.region),
            "BudgetType": "COST",
            "TimeUnit": "MONTHLY",
            "BudgetLimit": {"Amount": f"{monthly_usd:.2f}", "Unit": "USD"},
            "CostFilters": {"Service": ["Amazon SageMaker"], "Region": [site.region]},
        },
        "NotificationsWithSubscribers": [
            {
                "Notification": {
                    "NotificationType": kind,
                    "ComparisonOperator": "GREATER_THAN",
                    "Threshold": threshold,
                },
                "Subscribers": subscribers,
            }
            for kind, threshold in (("ACTUAL", 80), ("FORECASTED", 100))
        ],
    }


def delete(account: Account) -> None:
    """Delete the budget, if there is one.

    Raises:
        AwsError: If AWS refuses.
    """
    account.find("budgets", "delete_budget", AccountId=account.id, BudgetName=name_in(account.region))


def replace(account: Account, request: dict[str, Any]) -> None:
    """Create the budget in the place of an earlier one.

    Raises:
        AwsError: If AWS refuses.
    """
    delete(account)
    try:
        account.call("budgets", "create_budget", **request)
    except Refused as refused:
        if refused.code != "DuplicateRecordException":  # a lost reply was retried
            raise


def monthly_budget(account: Account) -> dict[str, Any] | None:
    """Return the budget of the account's stack: name, limit_usd and spent_usd, the costs of this month so far.

    AWS updates the costs a few times a day. Returns None if there is no budget, or, with a note, if it cannot be read.
    """
    name = name_in(account.region)
    try:
        answer = account.find("budgets", "describe_budget", AccountId=account.id, BudgetName=name)
    except AwsError as error:
        console.note(f"budget not read: {error.message}")
        return None
    if answer is None:
        return None
    found = answer["Budget"]
    spent = found.get("CalculatedSpend", {}).get("ActualSpend", {}).get("Amount", "0")
    return {"name": name, "limit_usd": float(found["BudgetLimit"]["Amount"]), "spent_usd": float(spent)}
