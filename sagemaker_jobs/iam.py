"""The least that a job and its caller need: by name, by prefix, by tag; a wildcard only where AWS allows no name.

`aws train` makes the job's role from the same policy that `aws iam` prints.
"""

from collections.abc import Sequence
from typing import Any

from neuron_sum.stack import ENDED_CONTAINERS, PLATFORMS, REGISTRY_ACCOUNTS
from sagemaker_jobs.names import PREFIX, RUN_TAG, Run, role_path
from sagemaker_jobs.requests import Isolation, inputs_prefix, run_prefix

Policy = dict[str, Any]

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDPOINT_LOGS = "/aws/sagemaker/Endpoints"
"""An endpoint has a group of its own below it, with the endpoint's name."""

LOG_ACTIONS = ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents")
PULL_ACTIONS = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
METRICS_NAMESPACE = "/aws/sagemaker/TrainingJobs"
NETWORK_ACTIONS = (
    "ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission", "ec2:DescribeNetworkInterfaces", "ec2:DescribeVpcs",
    "ec2:DescribeDhcpOptions", "ec2:DescribeSubnets", "ec2:DescribeSecurityGroups",
)  # fmt: skip


def trust_policy(account: str) -> Policy:
    """Who may become a job's role: SageMaker, for this account alone (the confused deputy)."""
    return _trust("sagemaker.amazonaws.com", account)


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
        _allow("ReadInputs", ["s3:GetObject"], [f"{s3}/{inputs}*"]),
        _allow("OwnRun", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], [f"{s3}/{runs}*"]),
        _allow("ListBoth", ["s3:ListBucket"], [s3], {"StringLike": {"s3:prefix": [f"{inputs}*", f"{runs}*"]}}),
        _allow(
            "Logs",
            list(LOG_ACTIONS),
            [logs, f"{logs}:*"],
        ),
        # No resource can be named: PutMetricData and GetAuthorizationToken have none.
        _allow(
            "Metrics", ["cloudwatch:PutMetricData"], ["*"],
            {"StringEquals": {"cloudwatch:namespace": METRICS_NAMESPACE}},
        ),
        _allow("RegistryToken", ["ecr:GetAuthorizationToken"], ["*"]),
        _allow(
            "Image", list(PULL_ACTIONS),
            [*images, f"arn:{partition}:ecr:{region}:{account}:repository/{PREFIX}*"],
        ),
    ]  # fmt: skip
    if isolation is not None and isolation.kms_key is not None:
        key = isolation.kms_key
        arn = key if key.startswith("arn:") else f"arn:{partition}:kms:{region}:{account}:key/{key}"
        statements.append(_allow("Key", ["kms:Decrypt", "kms:GenerateDataKey*", "kms:CreateGrant"], [arn]))
    if isolation is not None and isolation.subnets:
        # EC2 takes no names for its Describe calls, and a network interface has none before it is there.
        statements.append(_allow("Network", list(NETWORK_ACTIONS), ["*"]))
    return _policy(*statements)


def endpoint_policy(
    run: Run, account: str, region: str, data: Sequence[str], *, isolation: Isolation | None = None,
    partition: str = "aws",
) -> Policy:  # fmt: skip
    """What an endpoint may do: read its models, log, pull its image; and what a job needs for key and network.

    Args:
        run: Whose endpoint it is.
        account: Twelve digits.
        region: Where it runs.
        data: S3 addresses of what it serves; one that ends in / is a prefix.
        isolation: A key and a VPC need more.
        partition: Of ARNs.
    """
    job = job_policy(account, region, "", run=run, isolation=isolation, partition=partition)
    shared = [each for each in job["Statement"] if each["Sid"] in ("RegistryToken", "Image", "Key", "Network")]
    objects = [f"arn:{partition}:s3:::{place.removeprefix('s3://')}" for place in data]
    buckets = sorted({place.removeprefix("s3://").partition("/")[0] for place in data})
    logs = f"arn:{partition}:logs:{region}:{account}:log-group:{ENDPOINT_LOGS}/{run.name('endpoint')}"
    ended = {container.name.partition(":")[0] for container in ENDED_CONTAINERS.values()}
    registry = REGISTRY_ACCOUNTS.get(region, account)
    return _policy(
        _allow("ReadModels", ["s3:GetObject"], [f"{each}*" if each.endswith("/") else each for each in objects]),
        # Of a multi-model endpoint SageMaker lists the prefix.
        _allow("ListModels", ["s3:ListBucket"], [f"arn:{partition}:s3:::{bucket}" for bucket in buckets]),
        _allow("EndpointLogs", list(LOG_ACTIONS), [logs, f"{logs}:*"]),
        _allow(
            "EndedContainer", list(PULL_ACTIONS),
            [f"arn:{partition}:ecr:{region}:{registry}:repository/{name}" for name in sorted(ended)],
        ),
        *shared,
    )  # fmt: skip


def scheduler_trust(account: str) -> Policy:
    """Who may become the role of an expiry: the scheduler, for this account alone."""
    return _trust("scheduler.amazonaws.com", account)


def expiry_policy(run: Run, account: str, region: str, *, partition: str = "aws") -> Policy:
    """What the scheduler may do with it: delete that one endpoint.

    Args:
        run: Whose endpoint it is.
        account: Twelve digits.
        region: Where it runs.
        partition: Of ARNs.
    """
    endpoint = f"arn:{partition}:sagemaker:{region}:{account}:endpoint/{run.name('endpoint')}"
    return _policy(_allow("EndEndpoint", ["sagemaker:DeleteEndpoint"], [endpoint]))


def caller_policy(account: str, region: str, bucket: str, *, partition: str = "aws") -> Policy:
    """What whoever runs `neuron-sum aws …` may do.

    Args:
        account: Twelve digits.
        region: Where jobs run.
        bucket: With inputs and outputs.
        partition: Of ARNs.
    """
    jobs = f"arn:{partition}:sagemaker:{region}:{account}:training-job/{PREFIX}-*"
    roles = f"arn:{partition}:iam::{account}:role{role_path(region)}*"
    s3 = f"arn:{partition}:s3:::{bucket}"
    logs = f"arn:{partition}:logs:{region}:{account}:log-group:{LOG_GROUP}"
    tagged = {"Null": {f"aws:RequestTag/{RUN_TAG}": "false"}}
    ours = {"Null": {f"aws:ResourceTag/{RUN_TAG}": "false"}}
    return _policy(
        _allow("CreateTagged", ["sagemaker:CreateTrainingJob", "sagemaker:AddTags"], [jobs], tagged),
        _allow("StopOurs", ["sagemaker:StopTrainingJob"], [jobs], ours),
        _allow("LookAtJobs", ["sagemaker:DescribeTrainingJob", "sagemaker:ListTags"], [jobs]),
        _allow("RoleOfARun", ["iam:CreateRole", "iam:TagRole"], [roles], tagged),
        _allow(
            "RoleKeeping",
            [
                "iam:GetRole", "iam:PutRolePolicy", "iam:ListRolePolicies", "iam:DeleteRolePolicy", "iam:DeleteRole",
                "iam:ListRoleTags", "iam:ListAttachedRolePolicies", "iam:ListInstanceProfilesForRole",
            ],
            [roles],
        ),
        _allow(
            "PassToSageMaker", ["iam:PassRole"], [roles],
            {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
        ),
        _allow(
            "Bucket",
            [
                "s3:CreateBucket", "s3:ListBucket", "s3:PutBucketTagging", "s3:PutBucketPublicAccessBlock",
                "s3:PutLifecycleConfiguration", "s3:ListBucketMultipartUploads",
            ],
            [s3],
        ),
        _allow(
            "Objects", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            [f"{s3}/{PREFIX}/*"],
        ),
        _allow("DeleteBucketForArtifacts", ["s3:DeleteBucket"], [s3]),
        _allow(
            "Logs", ["logs:DescribeLogStreams", "logs:GetLogEvents", "logs:DeleteLogStream"], [logs, f"{logs}:*"]
        ),
        # None of these takes a resource's name.
        _allow("ListAndPrices", ["sagemaker:ListTrainingJobs", "iam:ListRoles", "pricing:GetProducts"], ["*"]),
    )  # fmt: skip


def _trust(service: str, account: str) -> Policy:
    return _policy(
        {
            "Effect": "Allow",
            "Principal": {"Service": service},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": account}},
        }
    )


def _allow(sid: str, actions: list[str], resources: list[str], condition: Policy | None = None) -> Policy:
    made: Policy = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return {**made, "Condition": condition} if condition else made


def _policy(*statements: Policy) -> Policy:
    return {"Version": "2012-10-17", "Statement": list(statements)}
