"""The exact requests: plain dictionaries, as boto3 takes them; nothing is asked or sent here.

The same run, options and addresses give the same requests, so `--dry-run` prints what would be sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from neuron_sum.errors import AwsError
from neuron_sum.platform.matrix import INSTANCES, PLATFORMS
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.aws.place import Destination, NetworkSecurity, Request, has_local_disks

INPUT = "/opt/ml/input/data"
CHECKPOINTS = "/opt/ml/checkpoints"
CODE, RECIPE, WHEELHOUSE, DATA, MODEL, TRAINED = "code", "recipe", "wheelhouse", "data", "model", "run"
"""Channels; each is a folder of its name below INPUT."""

ENTRY = "entry.py"
"""Starts whatever is asked of it, in the image's own Python: a job needs no toolkit of SageMaker's in the image."""

MAX_RUNTIME_LIMIT_S = 28 * 24 * 3600
"""SageMaker's own."""

EFA_INSTANCES = ("ml.trn1.32xlarge",)
EFA_ENVIRONMENT = {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"}
"""The network between several of them (AWS Neuron documentation, trn1 set-up guides)."""


@dataclass(frozen=True)
class Job:
    """A training job of SageMaker's, which trains or compiles.

    Attributes:
        run: Whose it is.
        stage: train or compile.
        arguments: What ENTRY is told.
        channels: The S3 address of each channel.
        instance: The instance type.
        instances: How many.
        max_runtime_s: When it is stopped at the latest; there is no job without.
        image: Its full name.
        max_wait_s: For spot: running and waiting together. None: on demand.
        volume_gb: Of disk, on instances without disks of their own.
        attempt: From 1; a resumed run's job is another one.
        environment: Of the container.
        isolation: Encryption and network.
    """

    run: Run
    stage: str
    arguments: tuple[str, ...]
    channels: Mapping[str, str]
    instance: str
    instances: int
    max_runtime_s: int
    image: str
    max_wait_s: int | None = None
    volume_gb: int = 100
    attempt: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    isolation: NetworkSecurity = field(default_factory=NetworkSecurity)

    @property
    def name(self) -> str:
        """The job's name."""
        return self.run.name(self.stage, self.attempt)


def processes_on(instance: str) -> int:
    """A process for each NeuronCore; one where there are none."""
    return INSTANCES[instance].neuron_cores if instance in INSTANCES else 1


def training_image(region: str) -> str:
    """AWS's image that is nearest to the platform's row; it has Neuron's compiler, and so compiles on a CPU, too.

    Raises:
        PlatformError: If AWS has no registry in the region.
    """
    return next(image for image in PLATFORMS[0].registry_images if image.stage == "train").uri(region)


def check_job(instance: str, instances: int, max_runtime_s: int, max_wait_s: int | None) -> None:
    """Refuses what SageMaker would refuse, or what cannot be meant.

    Raises:
        AwsError: With what is allowed.
    """
    if instance.startswith("ml.inf"):
        raise AwsError(f"SageMaker runs no jobs on {instance}", "ml.trn1.2xlarge, or a CPU such as ml.c7i.4xlarge")
    if not instance.startswith("ml."):
        raise AwsError(f"{instance!r} is no SageMaker instance", f"did you mean ml.{instance}?")
    if instances < 1:
        raise AwsError(f"{instances} instances are none", "--instances 1")
    if instances > 1 and instance not in EFA_INSTANCES:
        raise AwsError(
            f"{instances} × {instance}: only {', '.join(EFA_INSTANCES)} has the network for several",
            "--instances 1, or --instance ml.trn1.32xlarge",
        )
    if not 1 <= max_runtime_s <= MAX_RUNTIME_LIMIT_S:
        raise AwsError(f"a maximum run time of {max_runtime_s} s", f"1 to {MAX_RUNTIME_LIMIT_S} s, which is 28 days")
    if max_wait_s is not None and max_wait_s < max_runtime_s:
        raise AwsError(
            f"a spot job that may wait {max_wait_s} s in all cannot run {max_runtime_s} s",
            "--max-wait-hours counts running, too: give at least --max-hours",
        )


def create_training_job(job: Job, place: Destination) -> Request:
    """CreateTrainingJob.

    Raises:
        AwsError: If SageMaker would refuse it.
    """
    check_job(job.instance, job.instances, job.max_runtime_s, job.max_wait_s)
    job.isolation.check()
    key = job.isolation.kms_key
    resources: Request = {
        "InstanceType": job.instance,
        "InstanceCount": job.instances,
        "VolumeSizeInGB": job.volume_gb,
    }
    if key is not None and not has_local_disks(job.instance):
        resources["VolumeKmsKeyId"] = key
    stopping = {"MaxRuntimeInSeconds": job.max_runtime_s}
    if job.max_wait_s is not None:
        stopping["MaxWaitTimeInSeconds"] = job.max_wait_s
    return {
        "TrainingJobName": job.name,
        "AlgorithmSpecification": {
            "TrainingImage": job.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", f"{INPUT}/{CODE}/{ENTRY}"],
            "ContainerArguments": list(job.arguments),
        },
        "RoleArn": place.role_arn,
        "InputDataConfig": [_channel(name, uri) for name, uri in sorted(job.channels.items())],
        "OutputDataConfig": {
            "S3OutputPath": place.output(job.run, job.stage),
            "CompressionType": "GZIP",
            **({"KmsKeyId": key} if key is not None else {}),
        },
        "ResourceConfig": resources,
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": job.max_wait_s is not None,
        # With an on-demand job, too: what a job that failed late has saved is not lost.
        "CheckpointConfig": {"S3Uri": place.checkpoints(job.run, job.stage), "LocalPath": CHECKPOINTS},
        "EnableNetworkIsolation": job.isolation.network_isolation,
        "EnableInterContainerTrafficEncryption": job.instances > 1 and key is not None,
        "Environment": {
            **(EFA_ENVIRONMENT if job.instance in EFA_INSTANCES else {}),
            **({"HF_HUB_OFFLINE": "1"} if job.isolation.network_isolation else {}),
            **job.environment,
        },
        "Tags": job.run.tags,
        **job.isolation.vpc,
    }


def train_arguments(instance: str, instances: int) -> tuple[str, ...]:
    """What ENTRY is told to train."""
    return ("train", "--instance", instance, "--nodes", str(instances), "--processes", str(processes_on(instance)))


def compile_arguments(target: str, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """What ENTRY is told to compile the run in its channel.

    Args:
        target: As `neuron-sum compile --target` takes it.
        overrides: Of the run's recipe.
    """
    return ("compile", "--target", target, *(f"--set={override}" for override in overrides))


def _channel(name: str, uri: str) -> Request:
    return {
        "ChannelName": name,
        "DataSource": {
            "S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
        },
        "InputMode": "File",
    }
