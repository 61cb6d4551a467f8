"""Policies of the users of `neuron-sum aws`, limited to names, prefixes and tags; those of roles are in the template.

They contain a wildcard only where AWS does not support names, prefixes or tags. A caller changes no role, policy,
project or stack; an administrator needs the policy of `aws setup` once.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from neuron_sum.platform.matrix import REGISTRY_ACCOUNTS
from sagemaker_jobs.aws.names import (
    ENDPOINT_LOGS,
    EXPIRY_QUEUE,
    LOG_GROUPS,
    PREFIX,
    PROJECT,
    REPOSITORY,
    RUN_TAG,
    AwsContext,
)

Policy = dict[str, Any]
MANAGED_POLICY = 6144
"""Maximum number of characters of a managed policy, without white space (IAM's quotas)."""

CREATED = ("TrainingJob", "TransformJob", "Model", "EndpointConfig", "Endpoint")
SAGEMAKER = ("training-job", "transform-job", "model", "endpoint-config", "endpoint")
LISTED = ("NotebookInstance", "App", "ModelPackageGroup", "ModelPackage")
"""Further nouns of SageMaker whose resources are listed."""


NO_OVERRIDE = (
    *("source.buildspec", "source.auth.type", "secondarySources", "artifacts", "environment.image"),
    *("environment.fleet.fleetArn", "serviceRole", "logsConfig.s3Logs"),
)
"""Condition keys of CodeBuild for settings of a build that a caller must take from the project."""
BUILD_VARIABLES = ("NEURON_SUM_TAG", "NEURON_SUM_REGISTRIES", "NEURON_SUM_RUN")
BUILD_MACHINES = ("BUILD_GENERAL1_MEDIUM", "BUILD_GENERAL1_LARGE")


def caller_policy(
    site: AwsContext,
    *,
    kms_key: str | None = None,
    old_keys: Iterable[str] = (),
    reads: Iterable[str] = (),
    repositories: Iterable[str] = (),
) -> Policy:
    """Return the policy of the user who runs `neuron-sum aws`, once the stack exists.

    Args:
        site: The account and region of the runs.
        kms_key: The ARN of the stack's KMS key.
        old_keys: The ARNs of earlier keys, with which objects in the bucket are encrypted.
        reads: BUCKET/PREFIX of further objects that the roles may read.
        repositories: The ARNs of further image repositories that the roles may pull from.
    """
    arn, s3 = site.arn, site.s3_arn(site.bucket)
    ours = [arn("sagemaker", f"{kind}/{PREFIX}-*") for kind in SAGEMAKER]
    created, described = (" ".join(f"{verb}{noun}" for noun in CREATED) for verb in ("Create", "Describe"))
    listed = " ".join(f"List{noun}s" for noun in (*CREATED, *LISTED))
    published = [REGISTRY_ACCOUNTS[site.region]] if site.region in REGISTRY_ACCOUNTS else []
    pulled = [
        arn("ecr", f"repository/{PREFIX}*"),
        *(replace(site, account=registry).arn("ecr", "repository/*") for registry in published),
        *repositories,
    ]
    model_groups = [arn("sagemaker", f"model-package-group/{PREFIX}-*")]
    groups = [*LOG_GROUPS, f"{ENDPOINT_LOGS}{PREFIX}-*"]
    scaling = [arn("application-autoscaling", "scalable-target/*")]
    project, images = [arn("codebuild", f"project/{PROJECT}")], [arn("ecr", f"repository/{REPOSITORY}")]
    with_tag = {"Null": {f"aws:RequestTag/{RUN_TAG}": "false"}}
    on_tagged = {"Null": {f"aws:ResourceTag/{RUN_TAG}": "false"}}
    of_sagemaker = {"StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}}
    # A caller chooses the Dockerfile, its tag and the size of the machine. Condition keys of StartBuild: Service
    # Authorization Reference, CodeBuild.
    build = {
        "StringLike": {"codebuild:source.location": f"{site.bucket}/{PREFIX}/inputs/image/*"},
        "StringEquals": {"codebuild:environment.computeType": [*BUILD_MACHINES]},
        "ForAllValues:StringEquals": {"codebuild:environment.environmentVariables.name": [*BUILD_VARIABLES]},
        "Null": {f"codebuild:{key}": "true" for key in NO_OVERRIDE},
    }
    ending = "StopTrainingJob StopTransformJob DeleteModel DeleteEndpoint DeleteEndpointConfig"
    # Autoscaling needs UpdateEndpointWeightsAndCapacities of the caller.
    looking = "ListTags InvokeEndpoint InvokeEndpointWithResponseStream UpdateEndpointWeightsAndCapacities"
    streams = [
        *(arn("logs", f"log-group:{group}:log-stream:{PREFIX}-*") for group in LOG_GROUPS),
        arn("logs", f"log-group:{ENDPOINT_LOGS}{PREFIX}-*:log-stream:*"),
    ]
    schedules = [arn("scheduler", f"schedule/default/{PREFIX}-*")]
    return document(
        allow("CreateTagged", f"sagemaker: {created} AddTags", ours, with_tag),
        allow("EndOurs", f"sagemaker: {ending}", ours, on_tagged),
        allow("Look", f"sagemaker: {described} {looking}", ours),
        # The build role is not passed: a build starts with the role of its project.
        _pass("PassToSageMaker", [site.role_arn("jobs"), site.role_arn("endpoint")], "sagemaker"),
        _pass("PassToScheduler", [site.role_arn("expiry")], "scheduler"),
        allow("Stack", "cloudformation: DescribeStacks GetTemplate", [arn("cloudformation", f"stack/{PREFIX}/*")]),
        allow("Bucket", "s3: ListBucket GetEncryptionConfiguration GetLifecycleConfiguration", [s3]),
        allow("Objects", "s3: GetObject PutObject DeleteObject AbortMultipartUpload", [f"{s3}/{PREFIX}/*"]),
        allow("Logs", "logs: GetLogEvents DeleteLogStream", streams),
        allow("ListLogs", "logs: DescribeLogStreams", [arn("logs", f"log-group:{group}:*") for group in groups]),
        allow("EndpointLogs", "logs: DeleteLogGroup", [arn("logs", f"log-group:{ENDPOINT_LOGS}{PREFIX}-*:*")]),
        allow("Expiry", "scheduler: CreateSchedule UpdateSchedule GetSchedule DeleteSchedule", schedules),
        allow("StartBuild", "codebuild: StartBuild", project, build),
        allow("Builds", "codebuild: StopBuild BatchGetBuilds ListBuildsForProject", project),
        allow("Repository", "ecr: DescribeRepositories ListTagsForResource DescribeImages BatchDeleteImage", images),
        allow("Digests", "ecr: BatchGetImage", pulled),
        # A version of a model package group has the tags of its group.
        allow("NewGroup", "sagemaker: CreateModelPackageGroup AddTags", model_groups, with_tag),
        allow(
            "Registry",
            "sagemaker: CreateModelPackage DescribeModelPackage DescribeModelPackageGroup ListTags",
            [*model_groups, arn("sagemaker", f"model-package/{PREFIX}-*")],
        ),
        allow("NewScaling", "application-autoscaling: RegisterScalableTarget", scaling, {**with_tag, **of_sagemaker}),
        allow("TagScaling", "application-autoscaling: TagResource", scaling, with_tag),
        allow(
            "Scaling",
            "application-autoscaling: DeregisterScalableTarget PutScalingPolicy",
            scaling,
            {**on_tagged, **of_sagemaker},
        ),
        # Target tracking creates its alarms with the caller's permissions.
        allow(
            "Alarms",
            "cloudwatch: PutMetricAlarm DeleteAlarms",
            [arn("cloudwatch", f"alarm:TargetTracking-endpoint/{PREFIX}-*")],
        ),
        allow("RejectedCalls", "sqs: GetQueueUrl GetQueueAttributes ReceiveMessage", [arn("sqs", EXPIRY_QUEUE)]),
        allow("Budget", "budgets: ViewBudget", [_budget(site)]),
        # For the bill of `aws receipt` only; it shows the costs of the whole account.
        allow("Costs", "ce: GetCostAndUsage", ["*"]),
        # None of these accepts the name of a resource.
        allow(
            "ListAndPrices",
            f"sagemaker: {listed} scheduler: ListSchedules logs: DescribeLogGroups application-autoscaling: "
            "DescribeScalableTargets cloudwatch: DescribeAlarms pricing: GetProducts servicequotas: ListServiceQuotas "
            "ListAWSDefaultServiceQuotas",
            ["*"],
        ),
        *_key_statements(kms_key),
        *([allow("OldKeys", "kms: Decrypt", [*old_keys])] if (old_keys := [*old_keys]) else []),
        *_read_statements(site, reads),
    )


def setup_policy(site: AwsContext, *, kms_key: str | None = None, boundary: str | None = None) -> Policy:
    """Return the policy of the administrator who runs `neuron-sum aws setup`, in addition to that of a caller.

    Args:
        site: The account and region of the stack.
        kms_key: The ARN of the KMS key that the stack uses.
        boundary: The ARN of the permissions boundary that every role must have.
    """
    arn, roles = site.arn, [site.role_arn("*")]
    logs = arn("logs", f"log-group:/aws/codebuild/{PROJECT}")
    within = {"StringEquals": {"iam:PermissionsBoundary": boundary}} if boundary else None
    unbound = "" if boundary else "DeleteRolePermissionsBoundary"
    scaling = site.iam_arn("role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*")
    return document(
        allow(
            "Stack",
            "cloudformation: CreateStack UpdateStack DescribeStackEvents ContinueUpdateRollback DeleteStack",
            [arn("cloudformation", f"stack/{PREFIX}/*")],
        ),
        allow(
            "ChangeRoles",
            "iam: CreateRole PutRolePolicy DeleteRolePolicy DetachRolePolicy PutRolePermissionsBoundary",
            roles,
            within,
        ),
        allow(
            "Roles",
            "iam: GetRole GetRolePolicy ListRolePolicies ListAttachedRolePolicies ListRoleTags DeleteRole TagRole "
            f"UntagRole UpdateAssumeRolePolicy UpdateRole UpdateRoleDescription {unbound}",
            roles,
        ),
        allow("ScalingRole", "iam: CreateServiceLinkedRole", [scaling]),
        _pass("PassToCodeBuild", [site.role_arn("build")], "codebuild"),
        # CloudFormation reads all settings of a bucket.
        allow(
            "Bucket",
            "s3: CreateBucket DeleteBucket ListBucketMultipartUploads GetBucket* Get*Configuration PutBucketPolicy "
            "PutBucketPublicAccessBlock PutBucketTagging PutEncryptionConfiguration PutLifecycleConfiguration "
            "DeleteBucketPolicy DeleteBucketEncryption DeleteBucketLifecycle TagResource UntagResource "
            "ListTagsForResource",
            [site.s3_arn(site.bucket)],
        ),
        allow(
            "Repository",
            "ecr: CreateRepository DeleteRepository GetLifecyclePolicy GetRepositoryPolicy PutImageTagMutability "
            "PutImageScanningConfiguration TagResource UntagResource",
            [arn("ecr", f"repository/{REPOSITORY}")],
        ),
        allow(
            "Project",
            "codebuild: CreateProject UpdateProject DeleteProject BatchGetProjects",
            [arn("codebuild", f"project/{PROJECT}")],
        ),
        allow(
            "BuildLogs",
            "logs: CreateLogGroup DeleteLogGroup PutRetentionPolicy DeleteRetentionPolicy TagResource UntagResource "
            "ListTagsForResource",
            [logs, f"{logs}:*"],
        ),
        allow(
            "Queue",
            "sqs: CreateQueue DeleteQueue TagQueue UntagQueue SetQueueAttributes ListQueueTags",
            [arn("sqs", EXPIRY_QUEUE)],
        ),
        allow("Budget", "budgets: ModifyBudget", [_budget(site)]),
        *_key_statements(kms_key),
    )


def documents(policy: Policy) -> list[Policy]:
    """Return a policy as the fewest documents that fit into managed policies, in the order of its statements."""
    found: list[list[Policy]] = [[]]
    for statement in policy["Statement"]:
        if len(json.dumps(document(*found[-1], statement), separators=(",", ":"))) > MANAGED_POLICY:
            found.append([])
        found[-1].append(statement)
    return [document(*statements) for statements in found]


def _pass(sid: str, roles: list[str], service: str) -> Policy:
    return allow(sid, "iam: PassRole", roles, {"StringEquals": {"iam:PassedToService": f"{service}.amazonaws.com"}})


def _budget(site: AwsContext) -> str:
    return f"arn:{site.partition}:budgets::{site.account}:budget/{PREFIX}-*"


def _key_statements(kms_key: str | None) -> list[Policy]:
    """Return the statements to use a key; its key policy must also allow the caller."""
    if kms_key is None:
        return []
    grants = {"Bool": {"kms:GrantIsForAWSResource": "true"}}  # those that volumes of jobs and endpoints need
    return [
        allow("Key", "kms: Decrypt GenerateDataKey* DescribeKey", [kms_key]),
        allow("Grant", "kms: CreateGrant", [kms_key], grants),
    ]


def _read_statements(site: AwsContext, reads: Iterable[str]) -> list[Policy]:
    statements = []
    for number, place in enumerate(reads, start=1):
        bucket, _, key = place.partition("/")
        condition = {"StringLike": {"s3:prefix": [f"{key}*"]}}
        statements.append(allow(f"Read{number}", "s3: GetObject", [site.s3_arn(f"{bucket}/{key}*")]))
        statements.append(allow(f"List{number}", "s3: ListBucket", [site.s3_arn(bucket)], condition))
    return statements


def allow(sid: str, actions: str, resources: list[str], condition: Policy | None = None) -> Policy:
    """Return a statement that allows actions.

    Args:
        sid: The statement's name.
        actions: The allowed actions as words, after the service and a colon, such as "s3: GetObject PutObject".
        resources: The ARNs that the actions may be used on.
        condition: The condition for the permission.
    """
    service, allowed = "", []
    for word in actions.split():
        if word.endswith(":"):
            service = word
        else:
            allowed.append(service + word)
    statement: Policy = {"Sid": sid, "Effect": "Allow", "Action": allowed, "Resource": resources}
    return {**statement, "Condition": condition} if condition else statement


def document(*statements: Policy) -> Policy:
    """Return a policy document."""
    return {"Version": "2012-10-17", "Statement": list(statements)}
