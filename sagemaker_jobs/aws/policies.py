"""Policies of the users of `neuron-sum aws`, limited to names, prefixes and tags; those of roles are in the template.

They contain a wildcard only where AWS does not support names, prefixes or tags. A caller changes no role, policy,
project or stack; an administrator needs the policy of `aws setup` once.
"""

from collections.abc import Iterable
from typing import Any

from sagemaker_jobs.aws.names import ENDPOINT_LOGS, LOG_GROUPS, PREFIX, PROJECT, REPOSITORY, RUN_TAG, AwsContext

Policy = dict[str, Any]
MANAGED_POLICY = 6144
"""Maximum number of characters of a managed policy, without white space (IAM's quotas)."""

CREATED = ("TrainingJob", "TransformJob", "Model", "EndpointConfig", "Endpoint")
SAGEMAKER = ("training-job", "transform-job", "model", "endpoint-config", "endpoint")


def caller_policy(site: AwsContext, bucket: str, *, kms_key: str | None = None, reads: Iterable[str] = ()) -> Policy:
    """Return the policy of the user who runs `neuron-sum aws`, once the stack exists.

    Args:
        site: The account and region of the runs.
        bucket: The stack's bucket.
        kms_key: The ARN of the stack's KMS key.
        reads: BUCKET/PREFIX of further objects that the roles may read.
    """
    arn, s3 = site.arn, site.s3_arn(bucket)
    ours = [arn("sagemaker", f"{kind}/{PREFIX}-*") for kind in SAGEMAKER]
    groups = [*LOG_GROUPS, f"{ENDPOINT_LOGS}{PREFIX}-*"]
    with_tag = {"Null": {f"aws:RequestTag/{RUN_TAG}": "false"}}
    on_tagged = {"Null": {f"aws:ResourceTag/{RUN_TAG}": "false"}}
    return policy(
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
        allow("Stack", ["cloudformation:DescribeStacks"], [arn("cloudformation", f"stack/{PREFIX}/*")]),
        allow("Bucket", ["s3:ListBucket"], [s3]),
        allow(
            "Objects",
            ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            [f"{s3}/{PREFIX}/*"],
        ),
        allow(
            "Logs",
            ["logs:DescribeLogStreams", "logs:GetLogEvents", "logs:DeleteLogStream"],
            [arn("logs", f"log-group:{group}:*") for group in groups],
        ),
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
        # Another build specification would run other commands; another role needs iam:PassRole (CodeBuild's user
        # guide, action-context-keys).
        allow(
            "StartBuild",
            ["codebuild:StartBuild"],
            [arn("codebuild", f"project/{PROJECT}")],
            {"Null": {"codebuild:source.buildspec": "true"}},
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
        # Target tracking creates its alarms with the caller's permissions.
        allow(
            "Scaling",
            [
                "application-autoscaling:RegisterScalableTarget",
                "application-autoscaling:DeregisterScalableTarget",
                "application-autoscaling:PutScalingPolicy",
                "application-autoscaling:TagResource",
                "cloudwatch:PutMetricAlarm",
                "cloudwatch:DeleteAlarms",
            ],
            [
                arn("application-autoscaling", "scalable-target/*"),
                arn("cloudwatch", f"alarm:TargetTracking-endpoint/{PREFIX}-*"),
            ],
        ),
        allow("Budget", ["budgets:ViewBudget"], [f"arn:{site.partition}:budgets::{site.account}:budget/{PREFIX}-*"]),
        # None of these accepts the name of a resource.
        allow(
            "ListAndPrices",
            [
                *(f"sagemaker:List{noun}s" for noun in (*CREATED, "NotebookInstance", "App")),
                "scheduler:ListSchedules",
                "logs:DescribeLogGroups",
                "application-autoscaling:DescribeScalableTargets",
                "cloudwatch:DescribeAlarms",
                "cloudwatch:GetMetricStatistics",
                "pricing:GetProducts",
                "servicequotas:ListServiceQuotas",
                "servicequotas:ListAWSDefaultServiceQuotas",
            ],
            ["*"],
        ),
        *_key_statements(kms_key),
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
    return policy(
        allow(
            "Stack",
            [
                *(f"cloudformation:{verb}ChangeSet" for verb in ("Create", "Describe", "Execute", "Delete")),
                "cloudformation:DescribeStacks",
                "cloudformation:DescribeStackEvents",
                "cloudformation:DeleteStack",
                "cloudformation:GetTemplate",
            ],
            [arn("cloudformation", f"stack/{PREFIX}/*")],
        ),
        allow(
            "ChangeRoles",
            [
                "iam:CreateRole",
                "iam:PutRolePolicy",
                "iam:DeleteRolePolicy",
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
                "s3:ListBucket",
                "s3:ListBucketMultipartUploads",
                "s3:DeleteBucketPolicy",
                # CloudFormation reads all settings of a bucket that it adopts.
                *(f"s3:{verb}{noun}" for verb in ("Get", "Put") for noun in ("Bucket*", "*Configuration")),
            ],
            [s3],
        ),
        allow(
            "Repository",
            [
                "ecr:CreateRepository",
                "ecr:DeleteRepository",
                "ecr:DescribeRepositories",
                "ecr:GetLifecyclePolicy",
                "ecr:GetRepositoryPolicy",
                "ecr:ListTagsForResource",
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
            ["logs:CreateLogGroup", "logs:DeleteLogGroup", "logs:PutRetentionPolicy", "logs:DeleteRetentionPolicy"],
            [logs, f"{logs}:*"],
        ),
        allow("ListLogs", ["logs:DescribeLogGroups", "logs:ListTagsForResource"], ["*"]),
        allow(
            "Budget",
            ["budgets:ViewBudget", "budgets:ModifyBudget"],
            [f"arn:{site.partition}:budgets::{site.account}:budget/{PREFIX}-*"],
        ),
        *_key_statements(kms_key),
    )


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


def policy(*statements: Policy) -> Policy:
    """Return a policy document."""
    return {"Version": "2012-10-17", "Statement": list(statements)}
