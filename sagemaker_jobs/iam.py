"""The least that the roles of a run need: by name, by prefix; a wildcard only where AWS allows no name.

`aws train` makes the job's role from the same policy that `aws iam` prints.
"""

from typing import Any

from neuron_sum.stack import PLATFORMS, REGISTRY_ACCOUNTS
from sagemaker_jobs.names import PREFIX, Run
from sagemaker_jobs.requests import Isolation, inputs_prefix, run_prefix

Policy = dict[str, Any]

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
METRICS_NAMESPACE = "/aws/sagemaker/TrainingJobs"
NETWORK_ACTIONS = (
    "ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission", "ec2:DescribeNetworkInterfaces", "ec2:DescribeVpcs",
    "ec2:DescribeDhcpOptions", "ec2:DescribeSubnets", "ec2:DescribeSecurityGroups",
)  # fmt: skip


def trust_policy(account: str) -> Policy:
    """Who may become a job's role: SageMaker, for this account alone (the confused deputy)."""
    return policy(
        {
            "Effect": "Allow",
            "Principal": {"Service": "sagemaker.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": account}},
        }
    )


def job_policy(
    account: str, region: str, bucket: str, *, run: Run | None = None, isolation: Isolation | None = None,
    partition: str = "aws",
) -> Policy:  # fmt: skip
    """What a job may do: read inputs, write its own run, log, pull AWS's image.

    Args:
        account: Twelve digits.
        region: Where it runs.
        bucket: With inputs and outputs.
        run: The only one that it may touch; None: any.
        isolation: A key and a VPC need more.
        partition: Of ARNs.
    """
    runs = run_prefix(run) if run is not None else f"{PREFIX}/runs/"
    inputs = inputs_prefix("", "").removesuffix("//") + "/"
    s3 = f"arn:{partition}:s3:::{bucket}"
    logs = f"arn:{partition}:logs:{region}:{account}:log-group:{LOG_GROUP}"
    images = [
        f"arn:{partition}:ecr:{region}:{REGISTRY_ACCOUNTS.get(region, account)}:repository/{image.repository}"
        for image in PLATFORMS[0].registry_images
        if image.stage == "train"
    ]
    statements = [
        allow("ReadInputs", ["s3:GetObject"], [f"{s3}/{inputs}*"]),
        allow("OwnRun", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], [f"{s3}/{runs}*"]),
        allow("ListBoth", ["s3:ListBucket"], [s3], {"StringLike": {"s3:prefix": [f"{inputs}*", f"{runs}*"]}}),
        allow(
            "Logs",
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
            [logs, f"{logs}:*"],
        ),
        # No resource can be named: PutMetricData and GetAuthorizationToken have none.
        allow(
            "Metrics", ["cloudwatch:PutMetricData"], ["*"],
            {"StringEquals": {"cloudwatch:namespace": METRICS_NAMESPACE}},
        ),
        allow("RegistryToken", ["ecr:GetAuthorizationToken"], ["*"]),
        allow(
            "Image", ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            [*images, f"arn:{partition}:ecr:{region}:{account}:repository/{PREFIX}*"],
        ),
    ]  # fmt: skip
    if isolation is not None and isolation.kms_key is not None:
        key = isolation.kms_key
        arn = key if key.startswith("arn:") else f"arn:{partition}:kms:{region}:{account}:key/{key}"
        statements.append(allow("Key", ["kms:Decrypt", "kms:GenerateDataKey*", "kms:CreateGrant"], [arn]))
    if isolation is not None and isolation.subnets:
        # EC2 takes no names for its Describe calls, and a network interface has none before it is there.
        statements.append(allow("Network", list(NETWORK_ACTIONS), ["*"]))
    return policy(*statements)


def allow(sid: str, actions: list[str], resources: list[str], condition: Policy | None = None) -> Policy:
    """A statement.

    Args:
        sid: Its name.
        actions: What may be done.
        resources: To what.
        condition: When.
    """
    made: Policy = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return {**made, "Condition": condition} if condition else made


def policy(*statements: Policy) -> Policy:
    """A policy's document."""
    return {"Version": "2012-10-17", "Statement": list(statements)}
