"""Requests of an endpoint: its model, configuration, expiry and scaling; nothing is sent here."""

from collections.abc import Mapping
from datetime import datetime

from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.launch.schedules import create_ending
from sagemaker_jobs.stack.stack import Request, Stack

VARIANT = "main"
"""Name of the only production variant of an endpoint."""

EXPIRY_TARGET = "sagemaker:deleteEndpoint"

NEURON_HOST = "al2-ami-sagemaker-inference-neuron-2"
"""Host AMI for ml.inf2.*, with version 2.19 of the Neuron driver: SageMaker's default may have an older driver than the
container's runtime needs, and a container cannot bring its own driver."""

START_TIMEOUT_S = 1800
"""Timeouts of download and of start-up: a compiled model has several GB and takes minutes to load onto NeuronCores.
The default of SageMaker for the start-up is 10 minutes."""

SHORTEST_TIMEOUT_S = 60
"""SageMaker's minimum."""

SCALING = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
"""Identification of a variant's number of instances in Application Auto Scaling."""

SCALE_IN_S, SCALE_OUT_S = 300, 60
"""Seconds between two changes of the number of instances; a new instance takes minutes to start."""


def create_model(
    run: Run,
    stack: Stack,
    *,
    image: str,
    model_data: str,
    environment: Mapping[str, str],
    role: str,
    network_isolation: bool = False,
    name: str | None = None,
    multi_model: bool = False,
) -> Request:
    """CreateModel.

    Args:
        run: The run that owns the model.
        stack: The stack with the bucket and the roles.
        image: The serving image, in a registry of the account.
        model_data: The S3 address of an archive from `neuron-sum package`; with `multi_model`, the prefix of several.
        environment: The environment variables of the container.
        role: The ARN of the role of the model's containers.
        network_isolation: Whether the container has no network access.
        name: The name of the model. Default: the model name of the run.
        multi_model: Whether each request names its model.
    """
    mode = {"Mode": "MultiModel"} if multi_model else {}
    return {
        "ModelName": name or run.name("model"),
        "PrimaryContainer": {"Image": image, "ModelDataUrl": model_data, "Environment": dict(environment), **mode},
        "ExecutionRoleArn": role,
        "EnableNetworkIsolation": network_isolation,
        "Tags": run.tags,
        **stack.vpc,
    }


def create_endpoint_config(
    run: Run, stack: Stack, *, instance: str, instances: int, hours: float | None = None
) -> Request:
    """CreateEndpointConfig, with timeouts that a compiled model needs to start.

    An endpoint cannot be deleted while it is being created. The timeouts let it start or fail within half of its hours.

    Args:
        run: The run that owns the configuration.
        stack: The stack with the KMS key.
        instance: The instance type.
        instances: The initial number of instances.
        hours: The hours until the expiry; None: no expiry.
    """
    key = stack.volume_key(instance)
    longest = START_TIMEOUT_S if hours is None else min(START_TIMEOUT_S, int(hours * 3600 / 4))
    return {
        "EndpointConfigName": run.name("config"),
        "ProductionVariants": [
            {
                "VariantName": VARIANT,
                "ModelName": run.name("model"),
                "InstanceType": instance,
                "InitialInstanceCount": instances,
                "InitialVariantWeight": 1.0,
                "ModelDataDownloadTimeoutInSeconds": max(longest, SHORTEST_TIMEOUT_S),
                "ContainerStartupHealthCheckTimeoutInSeconds": max(longest, SHORTEST_TIMEOUT_S),
                **({"InferenceAmiVersion": NEURON_HOST} if instance.startswith("ml.inf2.") else {}),
            }
        ],
        "Tags": run.tags,
        **({"KmsKeyId": key} if key is not None else {}),
    }


def create_endpoint(run: Run) -> Request:
    """CreateEndpoint."""
    return {"EndpointName": run.name("endpoint"), "EndpointConfigName": run.name("config"), "Tags": run.tags}


def create_expiry(run: Run, stack: Stack, *, at: datetime) -> Request:
    """CreateSchedule for the expiry of an endpoint, which works even if this machine is offline.

    Args:
        run: The run that owns the endpoint.
        stack: The stack with the role and the queue of schedules.
        at: The time of the first attempt, with its time zone.
    """
    return create_ending(
        run.name("expiry"),
        stack,
        at=at,
        target=EXPIRY_TARGET,
        arguments={"EndpointName": run.name("endpoint")},
    )


def scaling_target(run: Run) -> str:
    """The resource id of a run's endpoint variant in Application Auto Scaling."""
    return f"endpoint/{run.name('endpoint')}/variant/{VARIANT}"


def register_scaling(run: Run, *, least: int, most: int) -> Request:
    """RegisterScalableTarget; the endpoint must be in service.

    Args:
        run: The run that owns the endpoint.
        least: The minimum number of instances.
        most: The maximum number of instances, which determines the maximum cost.
    """
    return {
        **SCALING,
        "ResourceId": scaling_target(run),
        "MinCapacity": least,
        "MaxCapacity": most,
        # This service takes tags as a mapping.
        "Tags": {tag["Key"]: tag["Value"] for tag in run.tags},
    }


def put_scaling(run: Run, *, invocations: float) -> Request:
    """PutScalingPolicy: adjust the number of instances to a target request rate.

    Args:
        run: The run that owns the endpoint.
        invocations: The target in requests per minute and instance.
    """
    return {
        **SCALING,
        "ResourceId": scaling_target(run),
        "PolicyName": run.name("scaling"),
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": invocations,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
            "ScaleInCooldown": SCALE_IN_S,
            "ScaleOutCooldown": SCALE_OUT_S,
        },
    }
