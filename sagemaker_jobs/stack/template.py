"""The CloudFormation template of the stack, and the parameters that the options of `aws setup` set."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.platform.matrix import REGISTRY_ACCOUNTS
from sagemaker_jobs.aws.names import AwsContext

DESCRIPTION = "neuron-sum: bucket, image repository, build project and roles of one account and region"
"""The template's description, by which a stack is recognized: CloudFormation reports it in every state."""

BUDGET_REGIONS = (
    *("ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2", "ca-central-1"),
    *("cn-north-1", "cn-northwest-1", "eu-central-1", "eu-west-1", "eu-west-2", "eu-west-3", "sa-east-1"),
    *("us-east-1", "us-east-2", "us-west-1", "us-west-2"),
)
WITHOUT_BUILDS = ("ap-east-2", "ca-west-1", "mx-central-1")
"""Regions in which CloudFormation has AWS::Budgets::Budget, and those in which it lacks AWS::CodeBuild::Project (the
resource schemas of cfn-lint 1.58.0). Elsewhere it would reject a template with such a resource, even a disabled one."""

OPTIONAL = {
    "budget": ("Budget", "HasBudget", "MonthlyUsd", "Email"),
    "builds": ("BuildProject", "BuildLogs", "BuildRole"),
}
"""Resources, conditions and parameters that a region may lack."""


def render(site: AwsContext) -> dict[str, Any]:
    """Return the template for a region.

    Args:
        site: The account and region of the stack.
    """
    import yaml

    template: dict[str, Any] = yaml.safe_load(files("sagemaker_jobs.stack").joinpath("template.yaml").read_text())
    registries = {site.region: site.account, **REGISTRY_ACCOUNTS}  # AWS has no registry in some regions
    template["Mappings"] = {"Registry": {region: {"Account": account} for region, account in registries.items()}}
    missing = (*(() if site.region in BUDGET_REGIONS else OPTIONAL["budget"]),)
    missing += OPTIONAL["builds"] if site.region in WITHOUT_BUILDS else ()
    for section in ("Parameters", "Conditions", "Resources"):
        for name in missing:
            template[section].pop(name, None)
    return template


@dataclass(frozen=True)
class Settings:
    """The options of `aws setup`; None keeps the present value, and an empty value removes it.

    Attributes:
        kms_key: The ARN or id of the KMS key.
        permissions_boundary: The ARN of the permissions boundary of every role.
        subnets: The subnets of the VPC.
        security_groups: The security groups of the VPC.
        reads: S3 addresses that jobs and endpoints may read.
        writes: S3 addresses that jobs may write.
        repositories: ARNs of further image repositories.
        monthly_usd: The monthly budget in USD.
        email: The address for the notifications of the budget.
    """

    kms_key: str | None = None
    permissions_boundary: str | None = None
    subnets: Sequence[str] | None = None
    security_groups: Sequence[str] | None = None
    reads: Sequence[str] | None = None
    writes: Sequence[str] | None = None
    repositories: Sequence[str] | None = None
    monthly_usd: float | None = None
    email: str | None = None

    def given(self, site: AwsContext) -> dict[str, str]:
        """Return the template's parameters that the options set.

        Raises:
            AwsError: If a value is invalid.
        """
        key = self.kms_key
        if key and not key.startswith("arn:"):
            key = site.arn("kms", f"key/{key}")
        values = {
            "KmsKey": key,
            "PermissionsBoundary": self.permissions_boundary,
            "Subnets": _list(self.subnets),
            "SecurityGroups": _list(self.security_groups),
            "Reads": _arns(site, self.reads, "--reads"),
            "Writes": _arns(site, self.writes, "--writes"),
            "Repositories": _list(self.repositories),
            "MonthlyUsd": None if self.monthly_usd is None else f"{self.monthly_usd:g}",
            "Email": self.email,
        }
        given = {name: value for name, value in values.items() if value is not None}
        for name, value in given.items():
            pattern, example = FORMATS.get(name, (".*", ""))
            if wrong := [each for each in value.split(",") if each and not re.fullmatch(pattern, each)]:
                raise AwsError(f"{wrong[0]!r} is not {example}", f"correct {OPTIONS[name]}")
        return given

    def parameters(self, site: AwsContext, previous: Mapping[str, str]) -> dict[str, str]:
        """Return all parameters of the template.

        Args:
            site: The account and region of the stack.
            previous: The present parameters of the stack.

        Raises:
            AwsError: If a value is invalid, or parameters that belong together are incomplete.
        """
        given = self.given(site)
        known = _defaults()
        kept = {name: value for name, value in previous.items() if name in known}
        values = {**known, **kept, **given}
        if bool(values["Subnets"]) != bool(values["SecurityGroups"]):
            raise AwsError("a VPC needs both subnets and security groups", "use both --subnet and --security-group")
        has_budget = float(values["MonthlyUsd"]) > 0
        if site.region not in BUDGET_REGIONS:
            if has_budget:
                raise AwsError(
                    f"CloudFormation has no budgets in {site.region}",
                    f"omit --monthly-usd, or use one of {', '.join(BUDGET_REGIONS)}",
                )
            values.pop("MonthlyUsd"), values.pop("Email")
        elif has_budget and not values["Email"]:
            raise AwsError("a budget needs an address for its notifications", "use --email ADDRESS with --monthly-usd")
        arns = [each.rpartition(":")[2] for each in f"{values['Reads']},{values['Writes']}".split(",") if each]
        listed = [each.partition("/") for each in arns]
        values["ListBuckets"] = ",".join(dict.fromkeys(site.s3_arn(bucket) for bucket, _, _ in listed))
        values["ListPrefixes"] = ",".join(dict.fromkeys(prefix for _, _, prefix in listed))
        return values


FORMATS = {
    "KmsKey": (r"arn:[a-z-]+:kms:[a-z0-9-]+:\d{12}:(key|alias)/.+", "the ARN or id of a KMS key"),
    "PermissionsBoundary": (r"arn:[a-z-]+:iam::(\d{12}|aws):policy/.+", "the ARN of an IAM policy"),
    "Subnets": (r"subnet-[0-9a-z]+", "the id of a subnet"),
    "SecurityGroups": (r"sg-[0-9a-z]+", "the id of a security group"),
    "Repositories": (r"arn:[a-z-]+:ecr:[a-z0-9-]+:\d{12}:repository/.+", "the ARN of an image repository"),
    "Email": (r"[^@\s]+@[^@\s]+", "an e-mail address"),
}
"""Pattern of each value of a parameter, and its name in errors."""

OPTIONS = {
    "KmsKey": "--kms-key",
    "PermissionsBoundary": "--permissions-boundary",
    "Subnets": "--subnet",
    "SecurityGroups": "--security-group",
    "Reads": "--reads",
    "Writes": "--writes",
    "Repositories": "--repository",
    "MonthlyUsd": "--monthly-usd",
    "Email": "--email",
}
"""The option of `aws setup` that sets a parameter."""


@cache
def _defaults() -> dict[str, str]:
    parameters = render(AwsContext("", BUDGET_REGIONS[0]))["Parameters"]
    return {name: str(parameter["Default"]) for name, parameter in parameters.items()}


def _list(values: Sequence[str] | None) -> str | None:
    return None if values is None else ",".join(value for value in values if value)


def _arns(site: AwsContext, addresses: Sequence[str] | None, option: str) -> str | None:
    """Return the ARNs of the objects at S3 addresses.

    Raises:
        AwsError: If an address is not one.
    """
    if addresses is None:
        return None
    found = [address for address in addresses if address]
    if invalid := [address for address in found if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]+(/[^*?,]*)?", address)]:
        raise AwsError(f"{option} {invalid[0]} is not an S3 address", f"use {option} s3://BUCKET/PREFIX/")
    places = [address.removeprefix("s3://") for address in found]
    return ",".join(site.s3_arn(f"{place if '/' in place else f'{place}/'}*") for place in places)
