"""The least that who runs `neuron-sum aws …` needs: by name, by prefix, by tag; a wildcard only where AWS has none."""

from collections.abc import Sequence

from sagemaker_jobs.aws.names import LOG_GROUPS, OWN_LOG_GROUPS, PREFIX, REPOSITORY, RUN_TAG, AwsContext
from sagemaker_jobs.aws.policies import Policy, allow, key_arn, policy, read_statements

MANAGED_POLICY = 6144
"""Characters that a managed policy may have, white space not counted (IAM's quotas)."""

SERVICES = ("sagemaker", "codebuild", "scheduler")
"""Whose services get roles of ours."""

CREATED = ("TrainingJob", "TransformJob", "Model", "EndpointConfig", "Endpoint")
SAGEMAKER = ("training-job", "transform-job", "model", "endpoint-config", "endpoint")


def caller_policy(
    site: AwsContext, bucket: str, *, kms_key: str | None = None, role_arn: str | None = None, reads: Sequence[str] = ()
) -> Policy:
    """What whoever runs `neuron-sum aws …` may do.

    Args:
        site: Where everything runs.
        bucket: With inputs and outputs.
        kms_key: With which uploads, volumes and images are encrypted.
        role_arn: Of a role that somebody else made, which jobs and endpoints get.
        reads: S3 addresses of the caller's own that commands are given.
    """
    arn = site.arn
    ours = [arn("sagemaker", f"{kind}/{PREFIX}-*") for kind in SAGEMAKER]
    roles, s3 = site.role_arn("*"), site.s3_arn(bucket)
    groups = [
        *(arn("logs", f"log-group:{group}") for group in LOG_GROUPS),
        *(arn("logs", f"log-group:{begins}{PREFIX}-*") for begins in OWN_LOG_GROUPS),
    ]
    passed = [roles, *([role_arn] if role_arn is not None else [])]
    # Volumes and repositories take grants; the key's own policy must allow the caller, too.
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
    asked = {"Null": {f"aws:RequestTag/{RUN_TAG}": "false"}}
    tagged = {"Null": {f"aws:ResourceTag/{RUN_TAG}": "false"}}
    return policy(
        allow("CreateTagged", [*(f"sagemaker:Create{noun}" for noun in CREATED), "sagemaker:AddTags"], ours, asked),
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
            tagged,
        ),
        allow(
            "LookAtOurs",
            [
                *(f"sagemaker:Describe{noun}" for noun in CREATED),
                "sagemaker:ListTags",
                "sagemaker:InvokeEndpoint",
                # Autoscaling acts with the caller's right to it.
                "sagemaker:UpdateEndpointWeightsAndCapacities",
            ],
            ours,
        ),
        allow("RoleOfARun", ["iam:CreateRole", "iam:TagRole"], [roles], asked),
        allow(
            "RoleKeeping",
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
            "PassToServices",
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
            [f"{group}:*" for group in groups],  # so CloudWatch wants it, for groups and for streams
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
        allow(
            "Autoscaling",
            [
                "application-autoscaling:RegisterScalableTarget",
                "application-autoscaling:DeregisterScalableTarget",
                "application-autoscaling:PutScalingPolicy",
                "application-autoscaling:TagResource",
            ],
            [arn("application-autoscaling", "scalable-target/*")],
        ),
        # Target tracking makes its alarms with the caller's rights, and its own role on first use.
        allow(
            "ScalingAlarms",
            ["cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"],
            [arn("cloudwatch", "alarm:TargetTracking-endpoint/*")],
        ),
        allow(
            "ScalingRole",
            ["iam:CreateServiceLinkedRole"],
            [site.iam_arn("role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/*")],
        ),
        # None of these takes a resource's name.
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
                "pricing:GetProducts",
                "servicequotas:ListServiceQuotas",
            ],
            ["*"],
        ),
        *key,
        *read_statements(site, reads),
    )
