"""Requests of training and compile jobs, as dictionaries for boto3; nothing is sent here.

The same run, options and addresses produce the same requests, so `--dry-run` prints exactly what would be sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neuron_sum import files
from neuron_sum.errors import AwsError
from neuron_sum.platform.matrix import INSTANCES, PLATFORMS
from neuron_sum.platform.successors import NEWER_INSTANCES
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.stack.stack import Request, Stack

INPUT = "/opt/ml/input/data"
CHECKPOINTS = "/opt/ml/checkpoints"
GRAPHS = f"{CHECKPOINTS}/graphs"
CODE, RECIPE, WHEELHOUSE, DATA, MODEL, TRAINED = "code", "recipe", "wheelhouse", "data", "model", "run"
"""Channel names; each channel is a folder of that name below INPUT."""

ENTRY = "entry.py"
"""The script that runs every job with the Python of the image; the image does not need SageMaker's training toolkit."""

ENTRY_SHA256 = files.sha256(Path(__file__).with_name(ENTRY))

LAUNCHER = (
    "import hashlib,runpy,sys;path,sha256=sys.argv[1:3];del sys.argv[1:3];"
    "hashlib.sha256(open(path,'rb').read()).hexdigest()==sha256 or sys.exit(path+' is not the file that was uploaded');"
    "runpy.run_path(path,run_name='__main__')"
)
"""Python code that runs ENTRY if its content is unchanged. It is part of the request, so a changed object in S3 cannot
change it; SageMaker allows 256 characters."""

VERIFY = "--verify="
"""Start of the arguments of ENTRY that name the SHA-256 of a channel."""

STOP_GRACE_S = 120
"""Seconds between SIGTERM, which SageMaker sends after the maximum run time, and SIGKILL; they are also billed."""

MAX_RUNTIME_LIMIT_S = 28 * 24 * 3600
"""SageMaker's limit: 28 days."""

EFA_INSTANCES = ("ml.trn1.32xlarge",)
EFA_ENVIRONMENT = {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"}
"""Settings of the network between several instances (AWS Neuron documentation, trn1 set-up guides)."""


@dataclass(frozen=True)
class Job:
    """A SageMaker training job, which trains or compiles.

    Attributes:
        run: The run that owns the job.
        stage: train or compile.
        arguments: The command-line arguments of ENTRY.
        channels: The S3 address of each channel.
        instance: The instance type.
        instances: The number of instances.
        max_runtime_s: The maximum run time in seconds, which every job has.
        image: The full name of the image.
        max_wait_s: The maximum seconds of waiting and running together, for spot; None: on demand.
        volume_gb: The disk size in GB, on instances without local disks.
        attempt: The attempt number, from 1; a resumed run has a new job.
        environment: The environment variables of the container.
        network_isolation: Whether the container has no network access, except to S3 through SageMaker.
        hashes: The SHA-256 of each uploaded channel, which ENTRY verifies.
        encrypt_traffic: Whether the traffic between its instances is encrypted.
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
    network_isolation: bool = False
    hashes: Mapping[str, str] = field(default_factory=dict)
    encrypt_traffic: bool = False

    @property
    def name(self) -> str:
        """The job's name."""
        return self.run.name(self.stage, self.attempt)


def processes_on(instance: str) -> int:
    """The number of processes: one per NeuronCore, or one on instances without NeuronCores."""
    return INSTANCES[instance].neuron_cores if instance in INSTANCES else 1


def training_image(region: str) -> str:
    """The AWS training image closest to the supported platform; it has the Neuron compiler, which also runs on CPU.

    Raises:
        PlatformError: If AWS has no registry in the region.
    """
    return next(image for image in PLATFORMS[0].registry_images if image.stage == "train").uri(region)


def check_job(instance: str, instances: int, max_runtime_s: int, max_wait_s: int | None) -> None:
    """Refuse settings that SageMaker would refuse or that make no sense.

    Raises:
        AwsError: If a setting is invalid; its hint names valid values.
    """
    if instance.startswith("ml.inf"):
        raise AwsError(
            f"SageMaker does not run training jobs on {instance}",
            "Use --instance ml.trn1.2xlarge or a CPU type such as ml.c7i.4xlarge.",
        )
    if newer := NEWER_INSTANCES.get(instance):
        raise AwsError(newer.unsupported, "Use --instance ml.trn1.2xlarge or ml.trn1.32xlarge.")
    if not instance.startswith("ml."):
        raise AwsError(f"{instance!r} is not a SageMaker instance type", f"Use an ml. type, such as ml.{instance}.")
    if instances < 1:
        raise AwsError(f"--instances must be at least 1, got {instances}", "Use --instances 1.")
    if instances > 1 and instance not in EFA_INSTANCES:
        raise AwsError(
            f"{instances} × {instance}: only {', '.join(EFA_INSTANCES)} supports more than one instance",
            "Use --instances 1 or --instance ml.trn1.32xlarge.",
        )
    if not 1 <= max_runtime_s <= MAX_RUNTIME_LIMIT_S:
        raise AwsError(
            f"the maximum run time must be 1 to {MAX_RUNTIME_LIMIT_S} s (28 days), got {max_runtime_s} s",
            "Change --max-hours.",
        )
    if max_wait_s is not None and max_wait_s < max_runtime_s:
        raise AwsError(
            f"the maximum wait of {max_wait_s} s is shorter than the maximum run time of {max_runtime_s} s",
            "Set --max-wait-hours, which includes the run time, to at least --max-hours.",
        )


def create_training_job(job: Job, stack: Stack) -> Request:
    """CreateTrainingJob.

    Raises:
        AwsError: If SageMaker would refuse it.
    """
    check_job(job.instance, job.instances, job.max_runtime_s, job.max_wait_s)
    if job.encrypt_traffic and job.instances == 1:
        raise AwsError(
            "--encrypt-traffic encrypts the traffic between instances, but the job has one",
            "Omit it, or use --instances 2 or more.",
        )
    resources: Request = {
        "InstanceType": job.instance,
        "InstanceCount": job.instances,
        "VolumeSizeInGB": job.volume_gb,
    }
    if (key := stack.volume_key(job.instance)) is not None:
        resources["VolumeKmsKeyId"] = key
    stopping = {"MaxRuntimeInSeconds": job.max_runtime_s}
    if job.max_wait_s is not None:
        stopping["MaxWaitTimeInSeconds"] = job.max_wait_s
    return {
        "TrainingJobName": job.name,
        "AlgorithmSpecification": {
            "TrainingImage": job.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python3", "-c", LAUNCHER, f"{INPUT}/{CODE}/{ENTRY}", ENTRY_SHA256],
            "ContainerArguments": [
                *(f"{VERIFY}{name}={sha256}" for name, sha256 in sorted(job.hashes.items())),
                *job.arguments,
            ],
        },
        "RoleArn": stack.jobs_role,
        "InputDataConfig": [_channel(name, uri) for name, uri in sorted(job.channels.items())],
        "OutputDataConfig": {
            "S3OutputPath": stack.output(job.run, job.stage),
            "CompressionType": "GZIP",
            **({"KmsKeyId": stack.kms_key} if stack.kms_key is not None else {}),
        },
        "ResourceConfig": resources,
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": job.max_wait_s is not None,
        # Also for on-demand jobs, so that the checkpoints of a job that fails late are not lost.
        "CheckpointConfig": {"S3Uri": stack.checkpoints(job.run, job.stage), "LocalPath": CHECKPOINTS},
        "EnableNetworkIsolation": job.network_isolation,
        "EnableInterContainerTrafficEncryption": job.encrypt_traffic,
        "Environment": {
            **(EFA_ENVIRONMENT if job.instance in EFA_INSTANCES else {}),
            **({"HF_HUB_OFFLINE": "1"} if job.network_isolation else {}),
            **job.environment,
        },
        "Tags": job.run.tags,
        **stack.vpc,
    }


def train_arguments(instance: str, instances: int) -> tuple[str, ...]:
    """The arguments of ENTRY for a training job."""
    return ("train", "--instance", instance, "--nodes", str(instances), "--processes", str(processes_on(instance)))


def compile_arguments(target: str, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """The arguments of ENTRY for compiling the run in its channel.

    Args:
        target: The value of `neuron-sum compile --target`.
        overrides: Changes to the run's recipe.
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
