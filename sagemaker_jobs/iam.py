"""The least that the roles of a run need: by name, by prefix; a wildcard only where AWS allows no name.

`aws train` makes the job's role from the same policy that `aws iam` prints.
"""

import re
from collections.abc import Sequence
from typing import Any

from neuron_sum.stack import ENDED_CONTAINERS, PLATFORMS, REGISTRY_ACCOUNTS
from sagemaker_jobs.names import PREFIX, Run
from sagemaker_jobs.requests import Isolation, inputs_prefix, run_prefix

Policy = dict[str, Any]

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
ENDPOINT_LOGS = "/aws/sagemaker/Endpoints"
"""An endpoint has a group of its own below it, with the endpoint's name."""

LOG_ACTIONS = ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents")
PULL_ACTIONS = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
BUILD_LOGS = "/aws/codebuild/"
"""A build project's own log group begins so."""

TRANSFORM_LOG_GROUP = "/aws/sagemaker/TransformJobs"
LOG_GROUPS = (LOG_GROUP, TRANSFORM_LOG_GROUP)
"""Each is the namespace of the same jobs' metrics, too."""

PRIVATE_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(?P<repository>[^:@]+)"
)
"""The full name of an image in a registry of AWS's."""

NETWORK_ACTIONS = (
    "ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission", "ec2:DescribeNetworkInterfaces", "ec2:DescribeVpcs",
    "ec2:DescribeDhcpOptions", "ec2:DescribeSubnets", "ec2:DescribeSecurityGroups",
)  # fmt: skip


def trust_policy(account: str) -> Policy:
    """Who may become a job's role: SageMaker, for this account alone (the confused deputy)."""
    return trusted_by("sagemaker.amazonaws.com", account)


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
    inputs = f"{PREFIX}/inputs/"
    s3 = f"arn:{partition}:s3:::{bucket}"
    logs = [f"arn:{partition}:logs:{region}:{account}:log-group:{group}" for group in LOG_GROUPS]
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
            list(LOG_ACTIONS),
            [each for group in logs for each in (group, f"{group}:*")],
        ),
        # No resource can be named: PutMetricData and GetAuthorizationToken have none.
        allow(
            "Metrics", ["cloudwatch:PutMetricData"], ["*"],
            {"StringEquals": {"cloudwatch:namespace": list(LOG_GROUPS)}},
        ),
        allow("RegistryToken", ["ecr:GetAuthorizationToken"], ["*"]),
        allow(
            "Image", list(PULL_ACTIONS),
            [*images, f"arn:{partition}:ecr:{region}:{account}:repository/{PREFIX}*"],
        ),
    ]  # fmt: skip
    return policy(*statements, *extra_statements(account, region, isolation or Isolation(), partition=partition))


def extra_statements(
    account: str, region: str, isolation: Isolation, *, reads: Sequence[str] = (), image: str | None = None,
    partition: str = "aws",
) -> list[Policy]:  # fmt: skip
    """What one command's job needs beyond every job's.

    Args:
        account: Twelve digits.
        region: Where it runs.
        isolation: A key and a VPC.
        reads: S3 addresses of the caller's that it reads, too: objects, or prefixes.
        image: What it runs in.
        partition: Of ARNs.
    """
    statements = []
    if image is not None and (found := PRIVATE_IMAGE.match(image)):
        repository = f"arn:{partition}:ecr:{found['region']}:{found['account']}:repository/{found['repository']}"
        if repository != f"arn:{partition}:ecr:{region}:{account}:repository/{PREFIX}":  # which every job may pull
            statements.append(allow("OwnImage", list(PULL_ACTIONS), [repository]))
    for number, address in enumerate(reads, start=1):
        theirs, _, key = address.removeprefix("s3://").partition("/")
        objects, whole = f"arn:{partition}:s3:::{theirs}/{key}*", f"arn:{partition}:s3:::{theirs}"
        statements.append(allow(f"Read{number}", ["s3:GetObject"], [objects]))
        statements.append(
            allow(f"List{number}", ["s3:ListBucket"], [whole], {"StringLike": {"s3:prefix": [f"{key}*"]}})
        )
    if isolation.kms_key is not None:
        arn = key_arn(isolation.kms_key, account, region, partition)
        statements.append(allow("Key", ["kms:Decrypt", "kms:GenerateDataKey*", "kms:CreateGrant"], [arn]))
    if isolation.subnets:
        # EC2 takes no names for its Describe calls, and a network interface has none before it is there.
        statements.append(allow("Network", list(NETWORK_ACTIONS), ["*"]))
    return statements


def one_off_policy(action: str, resource: str, sid: str = "OneThing") -> Policy:
    """What a one-off schedule may do: one thing to one thing.

    Args:
        action: Such as sagemaker:StopTransformJob.
        resource: Its ARN.
        sid: The statement's name.
    """
    return policy(allow(sid, [action], [resource]))


def build_trust_policy(account: str) -> Policy:
    """Who may become the role of a build: CodeBuild, for this account alone."""
    return trusted_by("codebuild.amazonaws.com", account)


def build_policy(
    account: str, region: str, bucket: str, *, key: str | None = None, project: str | None = None,
    private: Sequence[tuple[str, ...]] = (), kms_key: str | None = None, partition: str = "aws",
) -> Policy:  # fmt: skip
    """What a build may do: read its context, push to the one repository, write its own log.

    Args:
        account: Twelve digits.
        region: Where it runs.
        bucket: With the context.
        key: The context's; None: any.
        project: The one whose log it writes; None: any of ours.
        private: Repositories of base images that need a login: account, region and name of each.
        kms_key: Of the bucket's objects.
        partition: Of ARNs.
    """
    s3 = f"arn:{partition}:s3:::{bucket}"
    logs = f"arn:{partition}:logs:{region}:{account}:log-group:{BUILD_LOGS}{project or f'{PREFIX}-*'}"
    pushed = ["ecr:InitiateLayerUpload", "ecr:UploadLayerPart", "ecr:CompleteLayerUpload", "ecr:PutImage"]
    own = [f"arn:{partition}:ecr:{region}:{account}:repository/{PREFIX}"]
    statements = [
        allow("ReadContext", ["s3:GetObject", "s3:GetObjectVersion"],
              [f"{s3}/{key or inputs_prefix('image', '*') + '*'}"]),
        # CodeBuild looks whose the bucket of its source is, and where.
        allow("LookAtBucket", ["s3:GetBucketAcl", "s3:GetBucketLocation"], [s3]),
        allow("Push", [*PULL_ACTIONS, *pushed], own),
        # No resource can be named.
        allow("RegistryToken", ["ecr:GetAuthorizationToken"], ["*"]),
        allow("Logs", ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"], [logs, f"{logs}:*"]),
    ]  # fmt: skip
    if private:
        bases = [f"arn:{partition}:ecr:{where}:{owner}:repository/{name}" for owner, where, name in private]
        statements.append(allow("PullBases", list(PULL_ACTIONS), bases))
    if kms_key is not None:
        statements.append(allow("Key", ["kms:Decrypt", "kms:GenerateDataKey*"],
                                [key_arn(kms_key, account, region, partition)]))  # fmt: skip
    return policy(*statements)


def key_arn(key: str, account: str, region: str, partition: str) -> str:
    """A KMS key's ARN, where it was given by its id alone."""
    return key if key.startswith("arn:") else f"arn:{partition}:kms:{region}:{account}:key/{key}"


def endpoint_policy(
    run: Run, account: str, region: str, data: Sequence[str], *, image: str | None = None,
    isolation: Isolation | None = None, partition: str = "aws",
) -> Policy:  # fmt: skip
    """What an endpoint may do: read its models, log, pull its image; and what a job needs for key and network.

    Args:
        run: Whose endpoint it is.
        account: Twelve digits.
        region: Where it runs.
        data: S3 addresses of what it serves; one that ends in / is a prefix.
        image: What it runs in; None: one of ours.
        isolation: A key and a VPC need more.
        partition: Of ARNs.
    """
    job = job_policy(account, region, "", run=run, partition=partition)
    pulling = [each for each in job["Statement"] if each["Sid"] in ("RegistryToken", "Image")]
    objects = [f"arn:{partition}:s3:::{place.removeprefix('s3://')}" for place in data]
    buckets = sorted({place.removeprefix("s3://").partition("/")[0] for place in data})
    logs = f"arn:{partition}:logs:{region}:{account}:log-group:{ENDPOINT_LOGS}/{run.name('endpoint')}"
    ended = {container.name.partition(":")[0] for container in ENDED_CONTAINERS.values()}
    registry = REGISTRY_ACCOUNTS.get(region, account)
    return policy(
        allow("ReadModels", ["s3:GetObject"], [f"{each}*" if each.endswith("/") else each for each in objects]),
        # Of a multi-model endpoint SageMaker lists the prefix.
        allow("ListModels", ["s3:ListBucket"], [f"arn:{partition}:s3:::{bucket}" for bucket in buckets]),
        allow("EndpointLogs", list(LOG_ACTIONS), [logs, f"{logs}:*"]),
        allow(
            "EndedContainer", list(PULL_ACTIONS),
            [f"arn:{partition}:ecr:{region}:{registry}:repository/{name}" for name in sorted(ended)],
        ),
        *pulling,
        *extra_statements(account, region, isolation or Isolation(), image=image, partition=partition),
    )  # fmt: skip


def scheduler_trust(account: str) -> Policy:
    """Who may become the role of an expiry: the scheduler, for this account alone."""
    return trusted_by("scheduler.amazonaws.com", account)


def expiry_policy(run: Run, account: str, region: str, *, partition: str = "aws") -> Policy:
    """What the scheduler may do with it: delete that one endpoint.

    Args:
        run: Whose endpoint it is.
        account: Twelve digits.
        region: Where it runs.
        partition: Of ARNs.
    """
    endpoint = f"arn:{partition}:sagemaker:{region}:{account}:endpoint/{run.name('endpoint')}"
    return one_off_policy("sagemaker:DeleteEndpoint", endpoint)


def role_policies(
    account: str, region: str, bucket: str, *, isolation: Isolation, partition: str = "aws"
) -> dict[str, dict[str, Policy]]:  # fmt: skip
    """Trust and policy of every role that the commands make, for any run: for those who make roles themselves.

    Args:
        account: Twelve digits.
        region: Where everything runs.
        bucket: With inputs and outputs.
        isolation: A key and a VPC need more.
        partition: Of ARNs.
    """
    anything = Run("*", "*")
    stopped = f"arn:{partition}:sagemaker:{region}:{account}:transform-job/{anything.name('batch')}*"
    data = [f"s3://{bucket}/{PREFIX}/"]
    return {
        "jobs": {
            "trust": trust_policy(account),
            "policy": job_policy(account, region, bucket, isolation=isolation, partition=partition),
        },
        "endpoint": {
            "trust": trust_policy(account),
            "policy": endpoint_policy(anything, account, region, data, isolation=isolation, partition=partition),
        },
        "expiry": {
            "trust": scheduler_trust(account),
            "policy": policy(
                *expiry_policy(anything, account, region, partition=partition)["Statement"],
                *one_off_policy("sagemaker:StopTransformJob", stopped, "StopBatch")["Statement"],
            ),
        },
        "build": {
            "trust": build_trust_policy(account),
            "policy": build_policy(account, region, bucket, kms_key=isolation.kms_key, partition=partition),
        },
    }


def trusted_by(service: str, account: str) -> Policy:
    """Who may become a role: a service, for this account alone.

    Args:
        service: Its name as a principal.
        account: Twelve digits.
    """
    return policy(
        {
            "Effect": "Allow",
            "Principal": {"Service": service},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": account}},
        }
    )


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
