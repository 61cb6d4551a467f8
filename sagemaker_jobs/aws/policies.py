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
    bucket: str,
    *,
    kms_key: str | None = None,
    old_keys: Iterable[str] = (),
    reads: Iterable[str] = (),
    repositories: Iterable[str] = (),
) -> Policy:
    """Return the policy of the user who runs `neuron-sum aws`, once the stack exists.

    Args:
        site: The account and region of the runs.
        bucket: The stack's bucket.
        kms_key: The ARN of the stack's KMS key.
        old_keys: The ARNs of earlier keys, with which objects in the bucket are encrypted.
        reads: BUCKET/PREFIX of further objects that the roles may read.
        repositories: The ARNs of further image repositories that the roles may pull from.
    """
    arn, s3 = site.arn, site.s3_arn(bucket)
    ours = [arn("sagemaker", f"{kind}/{PREFIX}-*") for kind in SAGEMAKER]
    groups = [*LOG_GROUPS, f"{ENDPOINT_LOGS}{PREFIX}-*"]
    groups_of_models = [arn("sagemaker", f"model-package-group/{PREFIX}-*")]
    published = [REGISTRY_ACCOUNTS[site.region]] if site.region in REGISTRY_ACCOUNTS else []
    with_tag = {"Null": {f"aws:RequestTag/{RUN_TAG}": "false"}}
    on_tagged = {"Null": {f"aws:ResourceTag/{RUN_TAG}": "false"}}
    of_sagemaker = {"StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}}
    return document(
        allow("CreateTagged", [*(f"sagemaker:Create{noun}" for noun in CREATED), "sagemaker:AddTags"], ours, with_tag),
        allow(
            "EndOurs",
            [
                "sagemaker:StopTrainingJob",
                "sagemaker:StopTransformJob",
                "sagemaker:DeleteModel",
                "sagemaker:DeleteEndpoint",
                "sagemaker:DeleteEndpointConfig",
            ],
            ours,
            on_tagged,
        ),
        allow(
            "Look",
            [
                *(f"sagemaker:Describe{noun}" for noun in CREATED),
                "sagemaker:ListTags",
                "sagemaker:InvokeEndpoint",
                "sagemaker:InvokeEndpointWithResponseStream",
                # Autoscaling needs this permission of the caller.
                "sagemaker:UpdateEndpointWeightsAndCapacities",
            ],
            ours,
        ),
        # The build role is not passed: a build starts with the role of its project.
        allow(
            "PassToSageMaker", ["iam:PassRole"], [site.role_arn("jobs"), site.role_arn("endpoint")], _to("sagemaker")
        ),
        allow("PassToScheduler", ["iam:PassRole"], [site.role_arn("expiry")], _to("scheduler")),
        allow(
            "Stack",
            ["cloudformation:DescribeStacks", "cloudformation:GetTemplate"],
            [arn("cloudformation", f"stack/{PREFIX}/*")],
        ),
        allow("Bucket", ["s3:ListBucket", "s3:GetEncryptionConfiguration"], [s3]),
        allow(
            "Objects",
            ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            [f"{s3}/{PREFIX}/*"],
        ),
        allow(
            "Logs",
            ["logs:GetLogEvents", "logs:DeleteLogStream"],
            [
                *(arn("logs", f"log-group:{group}:log-stream:{PREFIX}-*") for group in LOG_GROUPS),
                arn("logs", f"log-group:{ENDPOINT_LOGS}{PREFIX}-*:log-stream:*"),
            ],
        ),
        allow("ListLogs", ["logs:DescribeLogStreams"], [arn("logs", f"log-group:{group}:*") for group in groups]),
        allow("EndpointLogs", ["logs:DeleteLogGroup"], [arn("logs", f"log-group:{ENDPOINT_LOGS}{PREFIX}-*:*")]),
        allow(
            "Expiry",
            [
                "scheduler:CreateSchedule",
                "scheduler:UpdateSchedule",
                "scheduler:GetSchedule",
                "scheduler:DeleteSchedule",
            ],
            [arn("scheduler", f"schedule/default/{PREFIX}-*")],
        ),
        # A caller chooses the Dockerfile, its tag and the size of the machine. Condition keys of StartBuild: Service
        # Authorization Reference, CodeBuild.
        allow(
            "StartBuild",
            ["codebuild:StartBuild"],
            [arn("codebuild", f"project/{PROJECT}")],
            {
                "StringLike": {"codebuild:source.location": f"{bucket}/{PREFIX}/inputs/image/*"},
                "StringEquals": {"codebuild:environment.computeType": [*BUILD_MACHINES]},
                "ForAllValues:StringEquals": {
                    "codebuild:environment.environmentVariables.name": [*BUILD_VARIABLES],
                },
                "Null": {f"codebuild:{key}": "true" for key in NO_OVERRIDE},
            },
        ),
        allow(
            "Builds",
            ["codebuild:StopBuild", "codebuild:BatchGetBuilds", "codebuild:ListBuildsForProject"],
            [arn("codebuild", f"project/{PROJECT}")],
        ),
        allow(
            "Repository",
            ["ecr:DescribeRepositories", "ecr:ListTagsForResource", "ecr:DescribeImages", "ecr:BatchDeleteImage"],
            [arn("ecr", f"repository/{REPOSITORY}")],
        ),
        allow(
            "Digests",
            ["ecr:BatchGetImage"],
            [
                arn("ecr", f"repository/{PREFIX}*"),
                *(replace(site, account=registry).arn("ecr", "repository/*") for registry in published),
                *repositories,
            ],
        ),
        # A version of a model package group has the tags of its group.
        allow("NewGroup", ["sagemaker:CreateModelPackageGroup", "sagemaker:AddTags"], groups_of_models, with_tag),
        allow(
            "Registry",
            [
                "sagemaker:CreateModelPackage",
                "sagemaker:DescribeModelPackage",
                "sagemaker:DescribeModelPackageGroup",
                "sagemaker:ListTags",
            ],
            [*groups_of_models, arn("sagemaker", f"model-package/{PREFIX}-*")],
        ),
        allow(
            "NewScaling",
            ["application-autoscaling:RegisterScalableTarget"],
            [arn("application-autoscaling", "scalable-target/*")],
            {**with_tag, **of_sagemaker},
        ),
        allow(
            "TagScaling",
            ["application-autoscaling:TagResource"],
            [arn("application-autoscaling", "scalable-target/*")],
            with_tag,
        ),
        allow(
            "Scaling",
            ["application-autoscaling:DeregisterScalableTarget", "application-autoscaling:PutScalingPolicy"],
            [arn("application-autoscaling", "scalable-target/*")],
            {**on_tagged, **of_sagemaker},
        ),
        # Target tracking creates its alarms with the caller's permissions.
        allow(
            "Alarms",
            ["cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"],
            [arn("cloudwatch", f"alarm:TargetTracking-endpoint/{PREFIX}-*")],
        ),
        allow(
            "RejectedCalls",
            ["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"],
            [arn("sqs", EXPIRY_QUEUE)],
        ),
        allow("Budget", ["budgets:ViewBudget"], [f"arn:{site.partition}:budgets::{site.account}:budget/{PREFIX}-*"]),
        # None of these accepts the name of a resource.
        allow(
            "ListAndPrices",
            [
                *(f"sagemaker:List{noun}s" for noun in (*CREATED, *LISTED)),
                "scheduler:ListSchedules",
                "logs:DescribeLogGroups",
                "application-autoscaling:DescribeScalableTargets",
                "cloudwatch:DescribeAlarms",
                "pricing:GetProducts",
                "servicequotas:ListServiceQuotas",
                "servicequotas:ListAWSDefaultServiceQuotas",
            ],
            ["*"],
        ),
        *_key_statements(kms_key),
        *([allow("OldKeys", ["kms:Decrypt"], [*old_keys])] if (old_keys := [*old_keys]) else []),
        *_read_statements(site, reads),
    )


def setup_policy(site: AwsContext, bucket: str, *, kms_key: str | None = None, boundary: str | None = None) -> Policy:
    """Return the policy of the administrator who runs `neuron-sum aws setup`, in addition to that of a caller.

    Args:
        site: The account and region of the stack.
        bucket: The stack's bucket.
        kms_key: The ARN of the KMS key that the stack uses.
        boundary: The ARN of the permissions boundary that every role must have.
    """
    arn, s3, roles = site.arn, site.s3_arn(bucket), [site.role_arn("*")]
    logs = arn("logs", f"log-group:/aws/codebuild/{PROJECT}")
    within = {"StringEquals": {"iam:PermissionsBoundary": boundary}} if boundary else None
    return document(
        allow(
            "Stack",
            [
                *(f"cloudformation:{verb}ChangeSet" for verb in ("Create", "Describe", "Execute", "Delete")),
                "cloudformation:ListChangeSets",
                "cloudformation:DescribeEvents",
                "cloudformation:DescribeStackEvents",
                "cloudformation:ContinueUpdateRollback",
                "cloudformation:DeleteStack",
            ],
            [arn("cloudformation", f"stack/{PREFIX}/*")],
        ),
        allow(
            "ChangeRoles",
            [
                "iam:CreateRole",
                "iam:PutRolePolicy",
                "iam:DeleteRolePolicy",
                "iam:DetachRolePolicy",
                "iam:PutRolePermissionsBoundary",
            ],
            roles,
            within,
        ),
        allow(
            "Roles",
            [
                "iam:GetRole",
                "iam:GetRolePolicy",
                "iam:ListRolePolicies",
                "iam:ListAttachedRolePolicies",
                "iam:ListRoleTags",
                "iam:DeleteRole",
                "iam:TagRole",
                "iam:UntagRole",
                "iam:UpdateAssumeRolePolicy",
                "iam:UpdateRole",
                "iam:UpdateRoleDescription",
                *([] if boundary else ["iam:DeleteRolePermissionsBoundary"]),
            ],
            roles,
        ),
        allow(
            "ScalingRole",
            ["iam:CreateServiceLinkedRole"],
            [site.iam_arn("role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*")],
        ),
        allow("PassToCodeBuild", ["iam:PassRole"], [site.role_arn("build")], _to("codebuild")),
        allow(
            "Bucket",
            [
                "s3:CreateBucket",
                "s3:DeleteBucket",
                "s3:ListBucketMultipartUploads",
                # CloudFormation reads all settings of a bucket.
                "s3:GetBucket*",
                "s3:Get*Configuration",
                *(f"s3:Put{noun}" for noun in BUCKET_SETTINGS),
                "s3:DeleteBucketPolicy",
                "s3:DeleteBucketEncryption",
                "s3:DeleteBucketLifecycle",
                "s3:TagResource",
                "s3:UntagResource",
                "s3:ListTagsForResource",
            ],
            [s3],
        ),
        allow(
            "Repository",
            [
                "ecr:CreateRepository",
                "ecr:DeleteRepository",
                "ecr:GetLifecyclePolicy",
                "ecr:GetRepositoryPolicy",
                "ecr:PutImageScanningConfiguration",
                "ecr:PutImageTagMutability",
                "ecr:TagResource",
                "ecr:UntagResource",
            ],
            [arn("ecr", f"repository/{REPOSITORY}")],
        ),
        allow(
            "Project",
            [
                "codebuild:CreateProject",
                "codebuild:UpdateProject",
                "codebuild:DeleteProject",
                "codebuild:BatchGetProjects",
            ],
            [arn("codebuild", f"project/{PROJECT}")],
        ),
        allow(
            "BuildLogs",
            [
                "logs:CreateLogGroup",
                "logs:DeleteLogGroup",
                "logs:PutRetentionPolicy",
                "logs:DeleteRetentionPolicy",
                "logs:TagResource",
                "logs:UntagResource",
                "logs:ListTagsForResource",
            ],
            [logs, f"{logs}:*"],
        ),
        allow(
            "Queue",
            [
                *(f"sqs:{verb}Queue" for verb in ("Create", "Delete", "Tag", "Untag")),
                "sqs:SetQueueAttributes",
                "sqs:ListQueueTags",
            ],
            [arn("sqs", EXPIRY_QUEUE)],
        ),
        allow("Budget", ["budgets:ModifyBudget"], [f"arn:{site.partition}:budgets::{site.account}:budget/{PREFIX}-*"]),
        *_key_statements(kms_key),
    )


BUCKET_SETTINGS = (
    "BucketPolicy",
    "BucketPublicAccessBlock",
    "BucketTagging",
    "EncryptionConfiguration",
    "LifecycleConfiguration",
)
"""Nouns of the IAM actions for the settings of the stack's bucket."""


def documents(policy: Policy) -> list[Policy]:
    """Return a policy as the fewest documents that fit into managed policies, in the order of its statements."""
    found: list[list[Policy]] = [[]]
    for statement in policy["Statement"]:
        if len(json.dumps(document(*found[-1], statement), separators=(",", ":"))) > MANAGED_POLICY:
            found.append([])
        found[-1].append(statement)
    return [document(*statements) for statements in found]


def _to(service: str) -> Policy:
    return {"StringEquals": {"iam:PassedToService": f"{service}.amazonaws.com"}}


def _key_statements(kms_key: str | None) -> list[Policy]:
    """Return the statements to use a key; its key policy must also allow the caller."""
    if kms_key is None:
        return []
    grants = {"Bool": {"kms:GrantIsForAWSResource": "true"}}  # those that volumes of jobs and endpoints need
    return [
        allow("Key", ["kms:Decrypt", "kms:GenerateDataKey*", "kms:DescribeKey"], [kms_key]),
        allow("Grant", ["kms:CreateGrant"], [kms_key], grants),
    ]


def _read_statements(site: AwsContext, reads: Iterable[str]) -> list[Policy]:
    statements = []
    for number, place in enumerate(reads, start=1):
        bucket, _, key = place.partition("/")
        condition = {"StringLike": {"s3:prefix": [f"{key}*"]}}
        statements.append(allow(f"Read{number}", ["s3:GetObject"], [site.s3_arn(f"{bucket}/{key}*")]))
        statements.append(allow(f"List{number}", ["s3:ListBucket"], [site.s3_arn(bucket)], condition))
    return statements


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


def document(*statements: Policy) -> Policy:
    """Return a policy document."""
    return {"Version": "2012-10-17", "Statement": list(statements)}
