"""Entries of neuron-sum in the Model Registry of SageMaker: free records, which `aws down` keeps with their models."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import PREFIX, RUN_TAG, is_run_id

REGISTRY = f"{PREFIX}/registry/"
"""Prefix of the keys of registered models; unlike those of runs, `aws down --artifacts` keeps them."""


@dataclass(frozen=True)
class Registered:
    """Version of a model package group.

    Attributes:
        arn: The ARN of the model package.
        group: The name of the group.
        version: The version.
        approval: Approved, Rejected or PendingManualApproval.
        run: The run that compiled the model; None if unknown.
    """

    arn: str
    group: str
    version: int
    approval: str
    run: str | None

    def __str__(self) -> str:
        return f"{self.group} version {self.version} ({self.approval}) in the Model Registry, with its model"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for --json."""
        return asdict(self)


def registered(account: Account, run: str | None = None) -> Iterator[Registered]:
    """Yield the entries in the groups that `aws register` created.

    Args:
        account: The account and region.
        run: The only run whose models to include; None for all.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    for group in account.pages(
        "sagemaker", "list_model_package_groups", "ModelPackageGroupSummaryList", NameContains=f"{PREFIX}-"
    ):
        name = group["ModelPackageGroupName"]
        if not name.startswith(f"{PREFIX}-") or not is_ours(account, group["ModelPackageGroupArn"]):
            continue
        listing = account.pages(
            "sagemaker", "list_model_packages", "ModelPackageSummaryList", ModelPackageGroupName=name
        )
        for each in listing:
            owner = str(each.get("ModelPackageDescription", "")).partition(":")[0]
            owner_id = owner if is_run_id(owner) else None
            if run in (None, owner_id):
                approval = each.get("ModelApprovalStatus", "PendingManualApproval")
                yield Registered(each["ModelPackageArn"], name, each["ModelPackageVersion"], approval, owner_id)


def known_entries(account: Account, run: str | None = None) -> list[Registered]:
    """The same as a list; empty, with a note, if the registry cannot be read, on which no deletion depends."""
    try:
        return list(registered(account, run))
    except AwsError as error:
        console.note(f"the Model Registry was not read: {error.message}")
        return []


def image_digests(account: Account) -> set[str]:
    """The digests of the images that registered models need.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    found: set[str | None] = set()
    for entry in registered(account):
        # Others may have deleted it meanwhile, or registered a version without an image, or with a tag and a digest.
        package = account.find("sagemaker", "describe_model_package", ModelPackageName=entry.arn) or {}
        for container in package.get("InferenceSpecification", {}).get("Containers", []):
            found |= {container.get("ImageDigest"), container.get("Image", "").partition("@")[2]}
    return {digest for digest in found if digest}


def is_ours(account: Account, arn: str) -> bool:
    """Whether neuron-sum created a model package group, by its tag.

    Raises:
        AwsError: If AWS refuses, or cannot be reached.
    """
    tags = account.call("sagemaker", "list_tags", ResourceArn=arn)["Tags"]
    return any(tag["Key"] == RUN_TAG for tag in tags)
