"""Requests of an endpoint: the expiry schedule, then model, configuration, endpoint and autoscaling; sends nothing."""

from collections.abc import Sequence

from sagemaker_jobs.aws.names import Run, run_prefix
from sagemaker_jobs.cleanup.kinds import SCALING
from sagemaker_jobs.endpoint import capture
from sagemaker_jobs.endpoint.sources import ARCHIVE, Source
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.options import EndpointOptions
from sagemaker_jobs.launch.schedules import ending
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.stack.stack import Request, Stack

VARIANT, SHADOW = "main", "shadow"
"""Names of the only production variant of an endpoint, and of its shadow variant, which gets copies of the requests."""

NEURON_HOST = "al2-ami-sagemaker-inference-neuron-2"
"""Host AMI for ml.inf2.*, with version 2.19 of the Neuron driver: SageMaker's default may have an older driver than the
container's runtime needs, and a container cannot bring its own driver."""

START_TIMEOUT_S = 1800
"""Timeouts of download and of start-up: a compiled model has several GB and takes minutes to load onto NeuronCores.
The default of SageMaker for the start-up is 10 minutes."""

SHORTEST_TIMEOUT_S = 60
"""SageMaker's minimum."""

SCALE_IN_S, SCALE_OUT_S = 300, 60
"""Seconds between two changes of the number of instances; a new instance takes minutes to start."""

PARTS = ("config", "model", "shadow", "expiry", "endpoint")
"""The parts of the names of an endpoint's resources after the run id. Those of the first three have the number of the
attempt; the endpoint keeps its name for its clients, and so does its expiry."""


def models_prefix(run: Run) -> str:
    """The S3 key prefix of the models of a multi-model endpoint."""
    return f"{run_prefix(run)}models/"


def scaling_target(run: Run) -> str:
    """The resource id of a run's endpoint variant in Application Auto Scaling."""
    return f"endpoint/{run.name('endpoint')}/variant/{VARIANT}"


def launch(
    run: Run,
    sources: Sequence[Source],
    hosting: EndpointOptions,
    image: str,
    stack: Stack,
    *,
    multi_model: bool = False,
    shadow: Source | None = None,
    attempt: int = 1,
) -> Launch:
    """The launch of an endpoint.

    Args:
        run: A new run, or the run that compiled the model.
        sources: The models to serve; exactly one unless `multi_model`.
        hosting: The options of the endpoint.
        image: The full name of the image, which `registry.pin` returned.
        stack: The stack with the bucket and the roles.
        multi_model: Whether each request names its model.
        shadow: The model that gets copies of the requests, on as many instances of the same type; not with
            `multi_model`.
        attempt: The number of the attempt, from 1.

    Raises:
        AwsError: If SageMaker would refuse the endpoint, or its role may not read a model.
    """
    hosting.check()
    addresses = [source.address_in(stack) for source in sources]
    shadows = [] if shadow is None else [shadow]
    stack.check_readable([*addresses, *(source.address_in(stack) for source in shadows)])
    copies: dict[str, str] = {}
    container = container_of(image, sources[0], stack)
    if multi_model:
        names = [f"{models_prefix(run)}{source.name}{ARCHIVE}" for source in sources]
        copies = dict(zip(names, addresses, strict=True))
        data = f"s3://{stack.bucket}/{models_prefix(run)}"
        container = {"Image": image, "ModelDataUrl": data, "Environment": {}, "Mode": "MultiModel"}

    def model(part: str, container: Request) -> Call:
        return create_model(run, stack, run.name(part, attempt), container, "endpoint", hosting.network_isolation)

    config = _config(run, hosting, stack, attempt, shadow=shadow is not None)
    endpoint = {"EndpointName": run.name("endpoint"), "EndpointConfigName": config.name, "Tags": run.tags}
    calls = (
        *([] if hosting.lifetime_h is None else [expiry(run, stack, hours=hosting.lifetime_h)]),
        model("model", container),
        *(model("shadow", container_of(image, source, stack)) for source in shadows),
        config,
        Call("sagemaker", "create_endpoint", endpoint, "endpoint", run.name("endpoint")),
    )
    channels = tuple(source.channel for source in [*sources, *shadows] if source.channel is not None)
    return Launch(run, stack, calls, channels, copies, _scaling(run, hosting))


def expiry(run: Run, stack: Stack, *, hours: float) -> Call:
    """The call that creates the expiry of a run's endpoint, which works even if this machine is offline.

    Args:
        run: The run that owns the endpoint.
        stack: The stack with the role and the queue of schedules.
        hours: The hours until the expiry.
    """
    arguments = {"EndpointName": run.name("endpoint")}
    return ending(run.name("expiry"), stack, "sagemaker:deleteEndpoint", arguments, hours=hours)


def container_of(image: str, source: Source, stack: Stack) -> Request:
    """The container of one model.

    Args:
        image: The serving image, in a registry of the account.
        source: The model.
        stack: The stack with the bucket.
    """
    return {"Image": image, "ModelDataUrl": source.address_in(stack), "Environment": dict(source.environment)}


def create_model(run: Run, stack: Stack, name: str, container: Request, role: str, network_isolation: bool) -> Call:
    """The call that creates the model of an endpoint or a transform job.

    Args:
        run: The run that owns the model.
        stack: The stack with the VPC and the role.
        name: The name of the model.
        container: Its container.
        role: The role of the container: endpoint or jobs.
        network_isolation: Whether the container has no network access.
    """
    request = {
        "ModelName": name,
        "PrimaryContainer": container,
        "ExecutionRoleArn": stack.site.role_arn(role),
        "EnableNetworkIsolation": network_isolation,
        "Tags": run.tags,
        **stack.vpc,
    }
    return Call("sagemaker", "create_model", request, "model", name)


def _config(run: Run, hosting: EndpointOptions, stack: Stack, attempt: int, *, shadow: bool) -> Call:
    """The call that creates the configuration, with timeouts that a compiled model needs to start.

    An endpoint cannot be deleted while it is being created. The timeouts let it start or fail within half of its hours.
    With equal weights, the shadow variant gets a copy of each request (SageMaker's developer guide,
    model-shadow-deployment).
    """
    key = stack.volume_key(hosting.instance)
    longest = (
        START_TIMEOUT_S if hosting.lifetime_h is None else min(START_TIMEOUT_S, int(hosting.lifetime_h * 3600 / 4))
    )
    variant = {
        "VariantName": VARIANT,
        "ModelName": run.name("model", attempt),
        "InstanceType": hosting.instance,
        "InitialInstanceCount": hosting.instances,
        "InitialVariantWeight": 1.0,
        "ModelDataDownloadTimeoutInSeconds": max(longest, SHORTEST_TIMEOUT_S),
        "ContainerStartupHealthCheckTimeoutInSeconds": max(longest, SHORTEST_TIMEOUT_S),
        **({"InferenceAmiVersion": NEURON_HOST} if hosting.instance.startswith("ml.inf2.") else {}),
    }
    shadows = [{**variant, "VariantName": SHADOW, "ModelName": run.name("shadow", attempt)}] if shadow else []
    name = run.name("config", attempt)
    request = {
        "EndpointConfigName": name,
        "ProductionVariants": [variant],
        **({"ShadowProductionVariants": shadows} if shadow else {}),
        "Tags": run.tags,
        **({"KmsKeyId": key} if key is not None else {}),
        **({} if hosting.capture is None else {"DataCaptureConfig": capture.config(run, stack, hosting.capture)}),
    }
    return Call("sagemaker", "create_endpoint_config", request, "endpoint-config", name)


def _scaling(run: Run, hosting: EndpointOptions) -> tuple[Call, ...]:
    """The calls that adjust the number of instances to a target request rate; the endpoint must be in service."""
    if hosting.max_instances is None or hosting.invocations_per_instance is None:
        return ()
    service, name = "application-autoscaling", scaling_target(run)
    register = {
        **SCALING,
        "ResourceId": name,
        "MinCapacity": hosting.instances,
        "MaxCapacity": hosting.max_instances,
        "Tags": {tag["Key"]: tag["Value"] for tag in run.tags},  # this service takes tags as a mapping
    }
    policy = {
        **SCALING,
        "ResourceId": name,
        "PolicyName": run.name("scaling"),
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": hosting.invocations_per_instance,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
            "ScaleInCooldown": SCALE_IN_S,
            "ScaleOutCooldown": SCALE_OUT_S,
        },
    }
    return (
        Call(service, "register_scalable_target", register, "scaling-target", name),
        Call(service, "put_scaling_policy", policy),
    )
