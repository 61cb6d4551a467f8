"""The least that the roles of a run need: by name, by prefix; a wildcard only where AWS allows no name.

`aws train` makes the job's role from the same policy that `aws iam` prints.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from neuron_sum.platform.matrix import ENDED_CONTAINERS, PLATFORMS, REGISTRY_ACCOUNTS
from sagemaker_jobs.aws.names import BUILD_LOGS, ENDPOINT_LOGS, LOG_GROUPS, PREFIX, AwsContext, Run
from sagemaker_jobs.aws.place import NetworkSecurity, inputs_prefix, run_prefix

Policy = dict[str, Any]

LOG_ACTIONS = ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents")
PULL_ACTIONS = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")

PRIVATE_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(?P<repository>[^:@]+)"
)
"""The full name of an image in a registry of AWS's."""

NETWORK_ACTIONS = (
    "ec2:CreateNetworkInterface",
    "ec2:CreateNetworkInterfacePermission",
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeVpcs",
    "ec2:DescribeDhcpOptions",
    "ec2:DescribeSubnets",
    "ec2:DescribeSecurityGroups",
)


def trust_policy(account: str) -> Policy:
    """Who may become a job's role: SageMaker, for this account alone (the confused deputy)."""
    return trusted_by("sagemaker.amazonaws.com", account)


def job_policy(
    site: AwsContext, bucket: str, *, run: Run | None = None, isolation: NetworkSecurity | None = None
) -> Policy:
    """What a job may do: read inputs, write its own run, log, pull AWS's image.

    Args:
        site: Where it runs.
        bucket: With inputs and outputs.
        run: The only one that it may touch; None: any.
        isolation: A key and a VPC need more.
    """
    runs = run_prefix(run) if run is not None else f"{PREFIX}/runs/"
    inputs = f"{PREFIX}/inputs/"
    s3 = site.s3_arn(bucket)
    logs = [site.arn("logs", f"log-group:{group}") for group in LOG_GROUPS]
    images = [
        registry_of_aws(site).arn("ecr", f"repository/{image.repository}")
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
            "Metrics",
            ["cloudwatch:PutMetricData"],
            ["*"],
            {"StringEquals": {"cloudwatch:namespace": list(LOG_GROUPS)}},
        ),
        allow("RegistryToken", ["ecr:GetAuthorizationToken"], ["*"]),
        allow(
            "Image",
            list(PULL_ACTIONS),
            [*images, site.arn("ecr", f"repository/{PREFIX}*")],
        ),
    ]
    return policy(*statements, *extra_statements(site, isolation or NetworkSecurity()))


def registry_of_aws(site: AwsContext) -> AwsContext:
    """Where AWS keeps its images for a region: in an account of its own."""
    return replace(site, account=REGISTRY_ACCOUNTS.get(site.region, site.account))


def extra_statements(
    site: AwsContext, isolation: NetworkSecurity, *, reads: Sequence[str] = (), image: str | None = None
) -> list[Policy]:
    """What one command's job needs beyond every job's.

    Args:
        site: Where it runs.
        isolation: A key and a VPC.
        reads: S3 addresses of the caller's that it reads, too: objects, or prefixes.
        image: What it runs in.
    """
    statements = []
    if image is not None and (found := PRIVATE_IMAGE.match(image)):
        registry = replace(site, account=found["account"], region=found["region"])
        repository = registry.arn("ecr", f"repository/{found['repository']}")
        if repository != site.arn("ecr", f"repository/{PREFIX}"):  # which every job may pull
            statements.append(allow("OwnImage", list(PULL_ACTIONS), [repository]))
    statements += read_statements(site, reads)
    if isolation.kms_key is not None:
        arn = key_arn(isolation.kms_key, site)
        statements.append(allow("Key", ["kms:Decrypt", "kms:GenerateDataKey*", "kms:CreateGrant"], [arn]))
    if isolation.subnets:
        # EC2 takes no names for its Describe calls, and a network interface has none before it is there.
        statements.append(allow("Network", list(NETWORK_ACTIONS), ["*"]))
    return statements


def read_statements(site: AwsContext, reads: Sequence[str]) -> list[Policy]:
    """What reading S3 addresses of the caller's needs.

    Args:
        site: Where.
        reads: Objects, or prefixes.
    """
    statements = []
    for number, address in enumerate(reads, start=1):
        bucket, _, key = address.removeprefix("s3://").partition("/")
        begins = {"StringLike": {"s3:prefix": [f"{key}*"]}}
        statements.append(allow(f"Read{number}", ["s3:GetObject"], [site.s3_arn(f"{bucket}/{key}*")]))
        statements.append(allow(f"List{number}", ["s3:ListBucket"], [site.s3_arn(bucket)], begins))
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
    site: AwsContext,
    bucket: str,
    *,
    key: str | None = None,
    project: str | None = None,
    private: Sequence[tuple[str, ...]] = (),
    kms_key: str | None = None,
) -> Policy:
    """What a build may do: read its context, push to the one repository, write its own log.

    Args:
        site: Where it runs.
        bucket: With the context.
        key: The context's; None: any.
        project: The one whose log it writes; None: any of ours.
        private: Repositories of base images that need a login: account, region and name of each.
        kms_key: Of the bucket's objects.
    """
    s3 = site.s3_arn(bucket)
    logs = site.arn("logs", f"log-group:{BUILD_LOGS}{project or f'{PREFIX}-*'}")
    pushed = ["ecr:InitiateLayerUpload", "ecr:UploadLayerPart", "ecr:CompleteLayerUpload", "ecr:PutImage"]
    own = [site.arn("ecr", f"repository/{PREFIX}")]
    statements = [
        allow(
            "ReadContext", ["s3:GetObject", "s3:GetObjectVersion"], [f"{s3}/{key or inputs_prefix('image', '*') + '*'}"]
        ),
        # CodeBuild looks whose the bucket of its source is, and where.
        allow("LookAtBucket", ["s3:GetBucketAcl", "s3:GetBucketLocation"], [s3]),
        allow("Push", [*PULL_ACTIONS, *pushed], own),
        # No resource can be named.
        allow("RegistryToken", ["ecr:GetAuthorizationToken"], ["*"]),
        allow("Logs", ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"], [logs, f"{logs}:*"]),
    ]
    if private:
        bases = [
            replace(site, account=owner, region=where).arn("ecr", f"repository/{name}")
            for owner, where, name in private
        ]
        statements.append(allow("PullBases", list(PULL_ACTIONS), bases))
    if kms_key is not None:
        statements.append(allow("Key", ["kms:Decrypt", "kms:GenerateDataKey*"], [key_arn(kms_key, site)]))
    return policy(*statements)


def key_arn(key: str, site: AwsContext) -> str:
    """A KMS key's ARN, where it was given by its id alone."""
    return key if key.startswith("arn:") else site.arn("kms", f"key/{key}")


def endpoint_policy(
    run: Run,
    site: AwsContext,
    data: Sequence[str],
    *,
    image: str | None = None,
    isolation: NetworkSecurity | None = None,
) -> Policy:
    """What an endpoint may do: read its models, log, pull its image; and what a job needs for key and network.

    Args:
        run: Whose endpoint it is.
        site: Where it runs.
        data: S3 addresses of what it serves; one that ends in / is a prefix.
        image: What it runs in; None: one of ours.
        isolation: A key and a VPC need more.
    """
    job = job_policy(site, "", run=run)
    pulling = [each for each in job["Statement"] if each["Sid"] in ("RegistryToken", "Image")]
    objects = [site.s3_arn(address.removeprefix("s3://")) for address in data]
    keys_of: dict[str, list[str]] = {}
    for address in data:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        keys_of.setdefault(bucket, []).append(f"{key}*" if key.endswith("/") else key)
    logs = site.arn("logs", f"log-group:{ENDPOINT_LOGS}{run.name('endpoint')}")
    ended = {container.name.partition(":")[0] for container in ENDED_CONTAINERS.values()}
    return policy(
        allow("ReadModels", ["s3:GetObject"], [f"{each}*" if each.endswith("/") else each for each in objects]),
        # Of a multi-model endpoint SageMaker lists the prefix.
        *(
            allow(f"ListModels{number}", ["s3:ListBucket"], [site.s3_arn(bucket)], {"StringLike": {"s3:prefix": keys}})
            for number, (bucket, keys) in enumerate(sorted(keys_of.items()), start=1)
        ),
        allow("EndpointLogs", list(LOG_ACTIONS), [logs, f"{logs}:*"]),
        allow(
            "EndedContainer",
            list(PULL_ACTIONS),
            [registry_of_aws(site).arn("ecr", f"repository/{name}") for name in sorted(ended)],
        ),
        *pulling,
        *extra_statements(site, isolation or NetworkSecurity(), image=image),
    )


def scheduler_trust(account: str) -> Policy:
    """Who may become the role of an expiry: the scheduler, for this account alone."""
    return trusted_by("scheduler.amazonaws.com", account)


def expiry_policy(run: Run, site: AwsContext) -> Policy:
    """What the scheduler may do with it: delete that one endpoint.

    Args:
        run: Whose endpoint it is.
        site: Where it runs.
    """
    return one_off_policy("sagemaker:DeleteEndpoint", site.arn("sagemaker", f"endpoint/{run.name('endpoint')}"))


def role_policies(
    site: AwsContext, bucket: str, isolation: NetworkSecurity, reads: Sequence[str] = ()
) -> dict[str, dict[str, Policy]]:
    """Trust and policy of every role that the commands make, for any run: for those who make roles themselves.

    Args:
        site: Where everything runs.
        bucket: With inputs and outputs.
        isolation: A key and a VPC need more.
        reads: S3 addresses of the caller's that are to be trained from, compiled, asked or served.
    """
    anything = Run("*", "*")
    stopped = site.arn("sagemaker", f"transform-job/{anything.name('batch')}*")
    data, theirs = [f"s3://{bucket}/{PREFIX}/"], read_statements(site, reads)
    job = job_policy(site, bucket, isolation=isolation)["Statement"]
    endpoint = endpoint_policy(anything, site, data, isolation=isolation)["Statement"]
    return {
        "jobs": {
            "trust": trust_policy(site.account),
            "policy": policy(*job, *theirs),
        },
        "endpoint": {
            "trust": trust_policy(site.account),
            "policy": policy(*endpoint, *theirs),
        },
        "expiry": {
            "trust": scheduler_trust(site.account),
            "policy": policy(
                *expiry_policy(anything, site)["Statement"],
                *one_off_policy("sagemaker:StopTransformJob", stopped, "StopBatch")["Statement"],
            ),
        },
        "build": {
            "trust": build_trust_policy(site.account),
            "policy": build_policy(site, bucket, kms_key=isolation.kms_key),
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
