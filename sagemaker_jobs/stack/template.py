"""The CloudFormation template of the stack, and the parameters that the options of `aws setup` set."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import typer

from neuron_sum.errors import AwsError
from neuron_sum.platform.matrix import REGISTRY_ACCOUNTS
from sagemaker_jobs.aws.names import RUN_TAG, AwsContext
from sagemaker_jobs.aws.policies import document

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
    for token, meaning in TOKENS.items():
        text = text.replace(token, meaning)
    template: dict[str, Any] = yaml.safe_load(text)
    for name, parameter in template["Parameters"].items():
        parameter["Default"] = parameters[name]
    for name, role in template.pop("Roles").items():
        further = list_statements(parameters) if name in ("JobsRole", "EndpointRole") else []
        statements = [each for each in role["Statements"] if registry or each["Sid"] != "PullPublished"]
        template["Resources"][name] = _role(role, [*map(_statement, statements), *further])
    if site.region in WITHOUT_BUILDS:
        for name in BUILDS:
            del template["Resources"][name]
    return template


TOKENS = {
    "OBJECTS": "ARN:s3:::neuron-sum-${AWS::AccountId}-${AWS::Region}",
    "ARN:": "arn:${AWS::Partition}:",
    "HERE": "${AWS::Region}:${AWS::AccountId}",
}
"""Abbreviations in template.yaml, in the order of their replacement."""


def _role(role: dict[str, Any], statements: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the resource of a role that one service may assume, in this account."""
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": f"{role['Service']}.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
    }
    properties = {
        "RoleName": {"Fn::Sub": f"neuron-sum-${{AWS::Region}}-{role['Name']}"},
        "Description": role["Description"],
        "Tags": [{"Key": RUN_TAG, "Value": "all"}],
        "PermissionsBoundary": {"Fn::If": ["HasBoundary", {"Ref": "PermissionsBoundary"}, {"Ref": "AWS::NoValue"}]},
        "AssumeRolePolicyDocument": document(trust),
        "Policies": [{"PolicyName": "neuron-sum", "PolicyDocument": document(*statements)}],
    }
    return {"Type": "AWS::IAM::Role", "Properties": properties}


def _statement(short: dict[str, Any]) -> dict[str, Any]:
    """Return a statement of template.yaml as CloudFormation reads it."""
    resources = short["Resource"]
    if isinstance(resources, list):
        resources = [{"Fn::Sub": each} if "${" in each else each for each in resources]
    statement = {"Effect": "Allow", **short, "Resource": resources}
    condition = statement.pop("If", None)
    return {"Fn::If": [condition, statement, {"Ref": "AWS::NoValue"}]} if condition else statement


def list_statements(parameters: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a statement for each further address in S3, which allows to list it."""
    statements = []
    for number, address in enumerate(filter(None, f"{parameters['Reads']},{parameters['Writes']}".split(",")), 1):
        bucket, _, prefix = address.partition("/")
        condition = {"StringLike": {"s3:prefix": [prefix]}}
        statement = {"Sid": f"List{number}", "Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [bucket]}
        statements.append({**statement, "Condition": condition})
    return statements


def _many(option: str, metavar: str, what: str) -> Any:
    return typer.Option(option, metavar=metavar, help=f"{what}; may be repeated.")


KeyOption = Annotated[str | None, typer.Option(help="ARN or id of a KMS key for the bucket, outputs and volumes.")]
BoundaryOption = Annotated[str | None, typer.Option(help="ARN of an IAM policy that limits every role.")]


@dataclass(frozen=True)
class Settings:
    """The options of `aws setup`; None keeps the present value, and an empty value removes it."""

    kms_key: KeyOption = None
    permissions_boundary: BoundaryOption = None
    subnets: Annotated[list[str] | None, _many("--subnet", "ID", "Id of a VPC subnet for jobs and endpoints")] = None
    security_groups: Annotated[
        list[str] | None, _many("--security-group", "ID", "Id of a security group of the same VPC")
    ] = None
    reads: Annotated[
        list[str] | None, _many("--reads", "S3", "S3 address, s3://…, that jobs and endpoints may read")
    ] = None
    writes: Annotated[list[str] | None, _many("--writes", "S3", "S3 address, s3://…, that jobs may read and write")] = (
        None
    )
    repositories: Annotated[
        list[str] | None, _many("--repository", "ARN", "ARN of an image repository that may be pulled")
    ] = None
    mlflow_servers: Annotated[
        list[str] | None, _many("--mlflow", "ARN", "ARN of an MLflow tracking server for training jobs")
    ] = None

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
            pattern, example, option = FORMATS.get(name, (".*", "", ""))
            pattern = pattern.replace("REGION", re.escape(site.region))
            if wrong := [each for each in value.split(",") if each and not re.fullmatch(pattern, each)]:
                raise AwsError(f"{wrong[0]!r} is not {example}", f"correct {option}")
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
        "--kms-key",
    ),
    "PermissionsBoundary": (
        r"arn:[a-z-]+:iam::(\d{12}|aws):policy/.+",
        "the ARN of an IAM policy",
        "--permissions-boundary",
    ),
    "Subnets": (r"subnet-[0-9a-z]+", "the id of a subnet", "--subnet"),
    "SecurityGroups": (r"sg-[0-9a-z]+", "the id of a security group", "--security-group"),
    "Repositories": (
        r"arn:[a-z-]+:ecr:[a-z0-9-]+:\d{12}:repository/.+",
        "the ARN of an image repository",
        "--repository",
    ),
    # The actions of an MLflow app are not in the Service Authorization Reference.
    "MlflowServers": (
        r"arn:[a-z-]+:sagemaker:REGION:\d{12}:mlflow-tracking-server/[A-Za-z0-9-]+",
        "the ARN of an MLflow tracking server in the stack's region; an MLflow app is not supported",
        "--mlflow",
    ),
}
"""Pattern of each value of a parameter, its name in errors, and the option of `aws setup` that sets it."""


@cache
def _source() -> str:
    return files("sagemaker_jobs.stack").joinpath("template.yaml").read_text(encoding="utf-8")


@cache
def _defaults() -> dict[str, str]:
    import yaml

    parameters = yaml.safe_load(_source())["Parameters"]
    return {name: str(parameter.get("Default", "")) for name, parameter in parameters.items()}


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
