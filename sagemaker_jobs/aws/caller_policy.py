"""Least-privilege IAM policy for the user who runs `neuron-sum aws`, limited to names, prefixes and tags.

It contains a wildcard only where AWS does not support names, prefixes or tags.
"""

from collections.abc import Sequence

from sagemaker_jobs.aws.names import LOG_GROUPS, OWN_LOG_GROUPS, PREFIX, REPOSITORY, RUN_TAG, AwsContext
from sagemaker_jobs.aws.policies import Policy, allow, key_arn, policy, read_statements

MANAGED_POLICY = 6144
"""Maximum number of characters of a managed policy, without white space (IAM's quotas)."""

SERVICES = ("sagemaker", "codebuild", "scheduler")
"""Services that the caller may pass neuron-sum's roles to."""

CREATED = ("TrainingJob", "TransformJob", "Model", "EndpointConfig", "Endpoint")
SAGEMAKER = ("training-job", "transform-job", "model", "endpoint-config", "endpoint")


def caller_policy(
    site: AwsContext, bucket: str, *, kms_key: str | None = None, role_arn: str | None = None, reads: Sequence[str] = ()
) -> Policy:
    """Return the policy of the user who runs `neuron-sum aws`.

    Args:
        site: The account and region of the runs.
        bucket: The bucket for inputs and outputs.
        kms_key: The KMS key for uploads, volumes and images.
        role_arn: An existing role for jobs and endpoints.
        reads: Further S3 addresses that are passed to commands.
    """
    arn = site.arn
    ours = [arn("sagemaker", f"{kind}/{PREFIX}-*") for kind in SAGEMAKER]
    roles, s3 = site.role_arn("*"), site.s3_arn(bucket)
    groups = [
        *(arn("logs", f"log-group:{group}") for group in LOG_GROUPS),
        *(arn("logs", f"log-group:{prefix}{PREFIX}-*") for prefix in OWN_LOG_GROUPS),
    ]
    passed = [roles, *([role_arn] if role_arn is not None else [])]
    # Volumes and repositories need grants; the key policy must also allow the caller.
    key = (
        []
        if kms_key is None
        else [
            allow(
                "Key",
                ["kms:Decrypt", "kms:GenerateDataKey*", "kms:CreateGrant", "kms:DescribeKey"],
                [key_arn(kms_key, site)],
            )
        ]
    )
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
        allow("RoleOfARun", ["iam:CreateRole", "iam:TagRole"], [roles], with_tag),
        allow(
            "Roles",
            [
                "iam:GetRole",
                "iam:PutRolePolicy",
                "iam:ListRolePolicies",
                "iam:DeleteRolePolicy",
                "iam:DeleteRole",
                "iam:ListAttachedRolePolicies",
                "iam:DetachRolePolicy",
            ],
            [roles],
        ),
        allow(
            "PassRole",
            ["iam:PassRole"],
            passed,
            {"StringEquals": {"iam:PassedToService": [f"{service}.amazonaws.com" for service in SERVICES]}},
        ),
        allow(
            "Bucket",
            [
                "s3:CreateBucket",
                "s3:ListBucket",
                "s3:PutBucketTagging",
                "s3:PutBucketPublicAccessBlock",
                "s3:PutLifecycleConfiguration",
                "s3:ListBucketMultipartUploads",
                "s3:DeleteBucket",
                "s3:GetBucketTagging",
                "s3:GetLifecycleConfiguration",
                "s3:GetEncryptionConfiguration",
                "s3:PutEncryptionConfiguration",
            ],
            [s3],
        ),
        allow(
            "Objects",
            ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
            [f"{s3}/{PREFIX}/*"],
        ),
        allow(
            "Logs",
            ["logs:DescribeLogStreams", "logs:GetLogEvents", "logs:DeleteLogStream", "logs:DeleteLogGroup"],
            [f"{group}:*" for group in groups],  # CloudWatch needs the suffix for both groups and streams
        ),
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
        allow(
            "Builds",
            [
                "codebuild:CreateProject",
                "codebuild:DeleteProject",
                "codebuild:StartBuild",
                "codebuild:StopBuild",
                "codebuild:BatchGetProjects",
                "codebuild:BatchGetBuilds",
                "codebuild:ListBuildsForProject",
            ],
            [arn("codebuild", f"project/{PREFIX}-*")],
        ),
        allow(
            "Repository",
            [
                "ecr:CreateRepository",
                "ecr:TagResource",
                "ecr:DescribeRepositories",
                "ecr:ListTagsForResource",
                "ecr:DescribeImages",
                "ecr:DeleteRepository",
            ],
            [arn("ecr", f"repository/{REPOSITORY}")],
        ),
        # Target tracking creates its alarms with the caller's permissions, and a service-linked role on first use.
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
                arn("cloudwatch", "alarm:TargetTracking-endpoint/*"),
            ],
        ),
        allow(
            "ScalingRole",
            ["iam:CreateServiceLinkedRole"],
            [site.iam_arn("role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*")],
        ),
        # None of these accepts the name of a resource.
        allow(
            "ListAndPrices",
            [
                *(f"sagemaker:List{noun}s" for noun in (*CREATED, "NotebookInstance", "App")),
                "iam:ListRoles",
                "scheduler:ListSchedules",
                "codebuild:ListProjects",
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
        *key,
        *read_statements(site, reads),
    )
