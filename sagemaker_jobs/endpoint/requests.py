"""The exact requests of an endpoint: its model, configuration, expiry and scaling; nothing is asked or sent here."""

from collections.abc import Mapping
from datetime import datetime

from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.aws.place import Destination, NetworkSecurity, Request, has_local_disks
from sagemaker_jobs.launch.schedules import create_ending

VARIANT = "main"
"""An endpoint of ours has one."""

EXPIRY_TARGET = "sagemaker:deleteEndpoint"

NEURON_HOST = "al2-ami-sagemaker-inference-neuron-2"
"""The host's image for ml.inf2.*, with version 2.19 of the Neuron driver: SageMaker's default may have an older one
than the runtime in the container needs, and the driver cannot come in the container."""

START_TIMEOUT_S = 1800
"""Each for download and start-up: a compiled model is several GB, and takes minutes to come onto NeuronCores;
SageMaker's own defaults for start-up are 10 minutes."""

SHORTEST_TIMEOUT_S = 60
"""SageMaker's own."""

SCALING = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
"""How Application Auto Scaling knows the number of instances of a variant."""

SCALE_IN_S, SCALE_OUT_S = 300, 60
"""Between two changes of the number of instances; a new one takes minutes until it answers."""


def create_model(
    run: Run,
    place: Destination,
    *,
    image: str,
    model_data: str,
    environment: Mapping[str, str],
    isolation: NetworkSecurity,
    name: str | None = None,
    multi_model: bool = False,
) -> Request:
    """CreateModel.

    Args:
        run: Whose it is.
        place: Where.
        image: Ours, in a registry of the account.
        model_data: The S3 address of what `neuron-sum package` made; with `multi_model` the prefix of several.
        environment: Of the container.
        isolation: Its network; key and volumes are the endpoint configuration's.
        name: Default: that of the run's endpoint.
        multi_model: Whether a request names the model that it is for.

    Raises:
        AwsError: If SageMaker would refuse it.
    """
    isolation.check()
    mode = {"Mode": "MultiModel"} if multi_model else {}
    return {
        "ModelName": name or run.name("model"),
        "PrimaryContainer": {"Image": image, "ModelDataUrl": model_data, "Environment": dict(environment), **mode},
        "ExecutionRoleArn": place.role_arn,
        "EnableNetworkIsolation": isolation.network_isolation,
        "Tags": run.tags,
        **isolation.vpc,
    }


def create_endpoint_config(
    run: Run, *, instance: str, instances: int, isolation: NetworkSecurity, hours: float | None = None
) -> Request:
    """CreateEndpointConfig, with the time that a compiled model takes to come up.

    An endpoint that is still being made cannot be deleted: it has come up, or failed, before half of its life is over.

    Args:
        run: Whose it is.
        instance: The instance type.
        instances: How many at first.
        isolation: Its key.
        hours: Until its expiry; None: there is none.
    """
    key = isolation.kms_key
    encrypted = key is not None and not has_local_disks(instance)
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
        **({"KmsKeyId": key} if encrypted else {}),
    }


def create_endpoint(run: Run) -> Request:
    """CreateEndpoint."""
    return {"EndpointName": run.name("endpoint"), "EndpointConfigName": run.name("config"), "Tags": run.tags}


def create_expiry(run: Run, *, at: datetime, role_arn: str) -> Request:
    """CreateSchedule for the end of an endpoint: a closed laptop does not prolong it.

    Args:
        run: Whose endpoint ends.
        at: When first, with its time zone.
        role_arn: What may delete that endpoint, for the scheduler.
    """
    return create_ending(
        run.name("expiry"),
        at=at,
        role_arn=role_arn,
        target=EXPIRY_TARGET,
        arguments={"EndpointName": run.name("endpoint")},
    )


def scaling_target(run: Run) -> str:
    """What Application Auto Scaling calls the variant of a run's endpoint."""
    return f"endpoint/{run.name('endpoint')}/variant/{VARIANT}"


def register_scaling(run: Run, *, least: int, most: int) -> Request:
    """RegisterScalableTarget; the endpoint must be in service.

    Args:
        run: Whose endpoint it is.
        least: Instances at any time.
        most: Instances at any time; what may be paid.
    """
    return {
        **SCALING,
        "ResourceId": scaling_target(run),
        "MinCapacity": least,
        "MaxCapacity": most,
        # Here tags are a mapping.
        "Tags": {tag["Key"]: tag["Value"] for tag in run.tags},
    }


def put_scaling(run: Run, *, invocations: float) -> Request:
    """PutScalingPolicy: so many instances that each has about so many requests.

    Args:
        run: Whose endpoint it is.
        invocations: Requests a minute and instance.
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
