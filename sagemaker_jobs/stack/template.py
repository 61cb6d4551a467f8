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

WITHOUT_BUILDS = ("ap-east-2", "ca-west-1", "mx-central-1")
"""Regions in which CloudFormation lacks AWS::CodeBuild::Project (the resource schemas of cfn-lint 1.58.0). It would
reject a template with such a resource."""
BUILDS = ("BuildProject", "BuildLogs", "BuildRole")


def render(site: AwsContext, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return the template for a region; its defaults are the parameters.

    Args:
        site: The account and region of the stack.
        parameters: All parameters of the template.
    """
    import yaml

    registry = REGISTRY_ACCOUNTS.get(site.region)  # AWS has none in some regions
    text = _source().replace("REGISTRY", registry or "")
    template: dict[str, Any] = yaml.safe_load(text)
    for name, parameter in template["Parameters"].items():
        parameter["Default"] = parameters[name]
    resources = template["Resources"]
    if site.region in WITHOUT_BUILDS:
        for name in BUILDS:
            del resources[name]
    for name in {"JobsRole", "EndpointRole", "BuildRole"} & set(resources):
        document = resources[name]["Properties"]["Policies"][0]["PolicyDocument"]
        if registry is None:
            document["Statement"] = [each for each in document["Statement"] if each.get("Sid") != "PullPublished"]
        if name != "BuildRole":
            document["Statement"] = document["Statement"] + list_statements(parameters)
    return template


def list_statements(parameters: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a statement for each further address in S3, which allows to list it."""
    statements = []
    for number, address in enumerate(filter(None, f"{parameters['Reads']},{parameters['Writes']}".split(",")), 1):
        bucket, _, prefix = address.partition("/")
        condition = {"StringLike": {"s3:prefix": [prefix]}}
        statement = {"Sid": f"List{number}", "Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [bucket]}
        statements.append({**statement, "Condition": condition})
    return statements


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
        mlflow_servers: ARNs of MLflow tracking servers that training jobs may report to.
    """

    kms_key: str | None = None
    permissions_boundary: str | None = None
    subnets: Sequence[str] | None = None
    security_groups: Sequence[str] | None = None
    reads: Sequence[str] | None = None
    writes: Sequence[str] | None = None
    repositories: Sequence[str] | None = None
    mlflow_servers: Sequence[str] | None = None

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
            "MlflowServers": _list(self.mlflow_servers),
        }
        given = {name: value for name, value in values.items() if value is not None}
        for name, value in given.items():
            pattern, example = FORMATS.get(name, (".*", ""))
            pattern = pattern.replace("REGION", re.escape(site.region))
            if wrong := [each for each in value.split(",") if each and not re.fullmatch(pattern, each)]:
                raise AwsError(f"{wrong[0]!r} is not {example}", f"correct {OPTIONS[name]}")
        return given

    def parameters(self, site: AwsContext, previous: Mapping[str, str]) -> dict[str, str]:
        """Return all parameters of the template.

        A key that another one replaces is kept in OldKeys, because objects in S3 keep the key they were written with.

        Args:
            site: The account and region of the stack.
            previous: The present parameters of the stack.

        Raises:
            AwsError: If a value is invalid, or parameters that belong together are incomplete.
        """
        known = _defaults()
        kept = {name: value for name, value in previous.items() if name in known}
        values = {**known, **kept, **self.given(site)}
        if bool(values["Subnets"]) != bool(values["SecurityGroups"]):
            raise AwsError("a VPC needs both subnets and security groups", "use both --subnet and --security-group")
        keys = dict.fromkeys([*values["OldKeys"].split(","), kept.get("KmsKey", "")])
        values["OldKeys"] = ",".join(key for key in keys if key not in ("", values["KmsKey"]))
        return values


FORMATS = {
    # A policy cannot name a key by its alias (KMS developer guide, cmks-in-iam-policies).
    "KmsKey": (
        r"arn:[a-z-]+:kms:REGION:\d{12}:key/([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32})",
        "the ARN or id of a KMS key in the stack's region; an alias is invalid",
    ),
    "PermissionsBoundary": (r"arn:[a-z-]+:iam::(\d{12}|aws):policy/.+", "the ARN of an IAM policy"),
    "Subnets": (r"subnet-[0-9a-z]+", "the id of a subnet"),
    "SecurityGroups": (r"sg-[0-9a-z]+", "the id of a security group"),
    "Repositories": (r"arn:[a-z-]+:ecr:[a-z0-9-]+:\d{12}:repository/.+", "the ARN of an image repository"),
    # The actions of an MLflow app are not in the Service Authorization Reference.
    "MlflowServers": (
        r"arn:[a-z-]+:sagemaker:REGION:\d{12}:mlflow-tracking-server/[A-Za-z0-9-]+",
        "the ARN of an MLflow tracking server in the stack's region; an MLflow app is not supported",
    ),
}
"""Pattern of each value of a parameter, and its name in errors."""

OPTIONS = {
    "KmsKey": "--kms-key",
    "PermissionsBoundary": "--permissions-boundary",
    "Subnets": "--subnet",
    "SecurityGroups": "--security-group",
    "Repositories": "--repository",
    "MlflowServers": "--mlflow",
}
"""The option of `aws setup` that sets a parameter."""


@cache
def _source() -> str:
    return files("sagemaker_jobs.stack").joinpath("template.yaml").read_text(encoding="utf-8")


@cache
def _defaults() -> dict[str, str]:
    import yaml

    parameters = yaml.safe_load(_source())["Parameters"]
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
