"""Least-privilege IAM policies of a run's roles, limited to names and prefixes; wildcards only where AWS needs them.

`aws train` creates the job's role from the same policy that `aws iam` prints.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from neuron_sum.platform.containers import CONTAINERS
from neuron_sum.platform.matrix import ENDED_CONTAINERS, PLATFORMS, REGISTRY_ACCOUNTS
from sagemaker_jobs.aws.names import BUILD_LOGS, ENDPOINT_LOGS, LOG_GROUPS, PREFIX, AwsContext, Run
from sagemaker_jobs.aws.place import NetworkSecurity, inputs_prefix, run_prefix

Policy = dict[str, Any]

LOG_ACTIONS = ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents")
PULL_ACTIONS = ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")

PRIVATE_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(?P<repository>[^:@]+)"
)
"""Pattern of the full name of an image in an Amazon ECR registry."""

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
    """Return the trust policy of a job's role: SageMaker, for this account only (against a confused deputy)."""
    return trusted_by("sagemaker.amazonaws.com", account)


def job_policy(
    site: AwsContext, bucket: str, *, run: Run | None = None, isolation: NetworkSecurity | None = None
) -> Policy:
    """Return the policy of a job: read inputs, write its run's files, write logs, pull the image from AWS.

    Args:
        site: The account and region of the job.
        bucket: The bucket for inputs and outputs.
        run: The only run whose files the job may use; None for any.
        isolation: Encryption and network settings; a key and a VPC need further permissions.
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
        # PutMetricData and GetAuthorizationToken accept only * as the resource.
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
    """Return the context of the separate account in which AWS stores its images for a region."""
    return replace(site, account=REGISTRY_ACCOUNTS.get(site.region, site.account))


def extra_statements(
    site: AwsContext, isolation: NetworkSecurity, *, reads: Sequence[str] = (), image: str | None = None
) -> list[Policy]:
    """Return the statements that a command's job needs in addition to those of all jobs.

    Args:
        site: The account and region of the job.
        isolation: Encryption and network settings.
        reads: Further S3 addresses that the job reads: objects or prefixes.
        image: The job's image.
    """
    statements = []
    if image is not None and (match := PRIVATE_IMAGE.match(image)):
        registry = replace(site, account=match["account"], region=match["region"])
        repository = registry.arn("ecr", f"repository/{match['repository']}")
        if repository != site.arn("ecr", f"repository/{PREFIX}"):  # which every job may pull
            statements.append(allow("OwnImage", list(PULL_ACTIONS), [repository]))
    statements += read_statements(site, reads)
    if isolation.kms_key is not None:
        arn = key_arn(isolation.kms_key, site)
        statements.append(allow("Key", ["kms:Decrypt", "kms:GenerateDataKey*", "kms:CreateGrant"], [arn]))
    if isolation.subnets:
        # The Describe calls of EC2 accept no names, and a network interface has no name before it exists.
        statements.append(allow("Network", list(NETWORK_ACTIONS), ["*"]))
    return statements


def read_statements(site: AwsContext, reads: Sequence[str]) -> list[Policy]:
    """Return the statements needed to read S3 addresses.

    Args:
        site: The account and region of the reader.
        reads: The addresses: objects or prefixes.
    """
    statements = []
    for number, address in enumerate(reads, start=1):
        bucket, _, key = address.removeprefix("s3://").partition("/")
        condition = {"StringLike": {"s3:prefix": [f"{key}*"]}}
        statements.append(allow(f"Read{number}", ["s3:GetObject"], [site.s3_arn(f"{bucket}/{key}*")]))
        statements.append(allow(f"List{number}", ["s3:ListBucket"], [site.s3_arn(bucket)], condition))
    return statements


def one_off_policy(action: str, resource: str, sid: str = "OneThing") -> Policy:
    """Return the policy of a one-off schedule: one action on one resource.

    Args:
        action: The action, such as sagemaker:StopTransformJob.
        resource: The resource's ARN.
        sid: The statement's name.
    """
    return policy(allow(sid, [action], [resource]))


def build_trust_policy(account: str) -> Policy:
    """Return the trust policy of a build's role: CodeBuild, for this account only."""
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
    """Return the policy of a build: read its context, push to the repository, write its log.

    Args:
        site: The account and region of the build.
        bucket: The bucket that contains the context.
        key: The key of the context; None for any context.
        project: The build project whose log it writes; None for any of neuron-sum's.
        private: The account, region and name of each repository of base images that needs a login.
        kms_key: The KMS key of the bucket's objects.
    """
    s3 = site.s3_arn(bucket)
    logs = site.arn("logs", f"log-group:{BUILD_LOGS}{project or f'{PREFIX}-*'}")
    push = ["ecr:InitiateLayerUpload", "ecr:UploadLayerPart", "ecr:CompleteLayerUpload", "ecr:PutImage"]
    repository = site.arn("ecr", f"repository/{PREFIX}")
    statements = [
        allow(
            "ReadContext", ["s3:GetObject", "s3:GetObjectVersion"], [f"{s3}/{key or inputs_prefix('image', '*') + '*'}"]
        ),
        # CodeBuild checks the owner and the region of its source's bucket.
        allow("LookAtBucket", ["s3:GetBucketAcl", "s3:GetBucketLocation"], [s3]),
        allow("Push", [*PULL_ACTIONS, *push], [repository]),
        # GetAuthorizationToken accepts only * as the resource.
        allow("RegistryToken", ["ecr:GetAuthorizationToken"], ["*"]),
        allow("Logs", ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"], [logs, f"{logs}:*"]),
    ]
    if private:
        bases = [
            replace(site, account=owner, region=region).arn("ecr", f"repository/{name}")
            for owner, region, name in private
        ]
        statements.append(allow("PullBases", list(PULL_ACTIONS), bases))
    if kms_key is not None:
        statements.append(allow("Key", ["kms:Decrypt", "kms:GenerateDataKey*"], [key_arn(kms_key, site)]))
    return policy(*statements)


def key_arn(key: str, site: AwsContext) -> str:
    """Return the ARN of a KMS key from its ARN or its id."""
    return key if key.startswith("arn:") else site.arn("kms", f"key/{key}")


def endpoint_policy(
    run: Run,
    site: AwsContext,
    data: Sequence[str],
    *,
    image: str | None = None,
    isolation: NetworkSecurity | None = None,
) -> Policy:
    """Return the policy of an endpoint: read its models, write logs, pull its image, use the key and the network.

    Args:
        run: The run that owns the endpoint.
        site: The account and region of the endpoint.
        data: S3 addresses of the models; an address that ends in / is a prefix.
        image: The endpoint's image; None for one from neuron-sum's repository.
        isolation: Encryption and network settings; a key and a VPC need further permissions.
    """
    job = job_policy(site, "", run=run)
    pull = [each for each in job["Statement"] if each["Sid"] in ("RegistryToken", "Image")]
    objects = [site.s3_arn(address.removeprefix("s3://")) for address in data]
    keys_of: dict[str, list[str]] = {}
    for address in data:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        keys_of.setdefault(bucket, []).append(f"{key}*" if key.endswith("/") else key)
    logs = site.arn("logs", f"log-group:{ENDPOINT_LOGS}{run.name('endpoint')}")
    published = {container.name.partition(":")[0] for container in ENDED_CONTAINERS.values()}
    published |= {container.repository for container in CONTAINERS.values()}
    return policy(
        allow("ReadModels", ["s3:GetObject"], [f"{each}*" if each.endswith("/") else each for each in objects]),
        # SageMaker lists the prefix of a multi-model endpoint.
        *(
            allow(f"ListModels{number}", ["s3:ListBucket"], [site.s3_arn(bucket)], {"StringLike": {"s3:prefix": keys}})
            for number, (bucket, keys) in enumerate(sorted(keys_of.items()), start=1)
        ),
        allow("EndpointLogs", list(LOG_ACTIONS), [logs, f"{logs}:*"]),
        allow(
            "PublishedContainers",
            list(PULL_ACTIONS),
            [registry_of_aws(site).arn("ecr", f"repository/{name}") for name in sorted(published)],
        ),
        *pull,
        *extra_statements(site, isolation or NetworkSecurity(), image=image),
    )


def scheduler_trust(account: str) -> Policy:
    """Return the trust policy of an expiry's role: EventBridge Scheduler, for this account only."""
    return trusted_by("scheduler.amazonaws.com", account)


def expiry_policy(run: Run, site: AwsContext) -> Policy:
    """Return the policy of an expiry's role: delete the run's endpoint, also with autoscaling.

    With autoscaling, DeleteEndpoint requires the rights to deregister its targets and to delete their policies' alarms
    (SageMaker's developer guide, endpoint-delete-with-scaling); a target's ARN has no name.

    Args:
        run: The run that owns the endpoint.
        site: The account and region of the endpoint.
    """
    name = run.name("endpoint")
    targets = site.arn("application-autoscaling", "scalable-target/*")
    return policy(
        allow("Endpoint", ["sagemaker:DeleteEndpoint"], [site.arn("sagemaker", f"endpoint/{name}")]),
        allow("Scaling", ["application-autoscaling:DeregisterScalableTarget"], [targets]),
        allow(
            "Alarms", ["cloudwatch:DeleteAlarms"], [site.arn("cloudwatch", f"alarm:TargetTracking-endpoint/{name}*")]
        ),
    )


def role_policies(
    site: AwsContext, bucket: str, isolation: NetworkSecurity, reads: Sequence[str] = ()
) -> dict[str, dict[str, Policy]]:
    """Return the trust and permission policies of every role that the commands create, valid for any run.

    They are for users who create the roles themselves.

    Args:
        site: The account and region of the runs.
        bucket: The bucket for inputs and outputs.
        isolation: Encryption and network settings; a key and a VPC need further permissions.
        reads: Further S3 addresses of data to train on, models to compile or serve, and texts to summarize.
    """
    any_run = Run("*", "*")
    transform_jobs = site.arn("sagemaker", f"transform-job/{any_run.name('batch')}*")
    data, further = [f"s3://{bucket}/{PREFIX}/"], read_statements(site, reads)
    job = job_policy(site, bucket, isolation=isolation)["Statement"]
    endpoint = endpoint_policy(any_run, site, data, isolation=isolation)["Statement"]
    return {
        "jobs": {
            "trust": trust_policy(site.account),
            "policy": policy(*job, *further),
        },
        "endpoint": {
            "trust": trust_policy(site.account),
            "policy": policy(*endpoint, *further),
        },
        "expiry": {
            "trust": scheduler_trust(site.account),
            "policy": policy(
                *expiry_policy(any_run, site)["Statement"],
                *one_off_policy("sagemaker:StopTransformJob", transform_jobs, "StopBatch")["Statement"],
            ),
        },
        "build": {
            "trust": build_trust_policy(site.account),
            "policy": build_policy(site, bucket, kms_key=isolation.kms_key),
        },
    }


def trusted_by(service: str, account: str) -> Policy:
    """Return a trust policy that lets a service assume a role, for this account only.

    Args:
        service: The service's principal, such as sagemaker.amazonaws.com.
        account: The account id, twelve digits.
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
    """Return a statement that allows actions.

    Args:
        sid: The statement's name.
        actions: The allowed actions.
        resources: The ARNs that the actions may be used on.
        condition: The condition for the permission.
    """
    statement: Policy = {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
    return {**statement, "Condition": condition} if condition else statement


def policy(*statements: Policy) -> Policy:
    """Return a policy document."""
    return {"Version": "2012-10-17", "Statement": list(statements)}
