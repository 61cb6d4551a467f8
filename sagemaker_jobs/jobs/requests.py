"""The constants of training and compile jobs, their arguments, and what SageMaker would refuse."""

from collections.abc import Sequence
from pathlib import Path

from neuron_sum import files
from neuron_sum.errors import AwsError
from neuron_sum.platform.matrix import INSTANCES, PLATFORMS
from neuron_sum.platform.successors import NEWER_INSTANCES

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

MAX_RUNTIME_LIMIT_S = 28 * 24 * 3600
"""SageMaker's limit: 28 days."""

VOLUME_GB = 100
"""Disk size of a job's instances without local disks."""

EFA_INSTANCES = ("ml.trn1.32xlarge",)
EFA_ENVIRONMENT = {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"}
"""Settings of the network between several instances (AWS Neuron documentation, trn1 set-up guides)."""


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


def train_arguments(instance: str, instances: int) -> tuple[str, ...]:
    """The arguments of ENTRY for a training job: a process per NeuronCore, or one without NeuronCores."""
    processes = INSTANCES[instance].neuron_cores if instance in INSTANCES else 1
    return ("train", "--instance", instance, "--nodes", str(instances), "--processes", str(processes))


def compile_arguments(target: str, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """The arguments of ENTRY for compiling the run in its channel.

    Args:
        target: The value of `neuron-sum compile --target`.
        overrides: Changes to the run's recipe.
    """
    return ("compile", "--target", target, *(f"--set={override}" for override in overrides))


def receipt_arguments(instance: str, size: str) -> tuple[str, ...]:
    """The arguments of ENTRY for a receipt of the host's Neuron device.

    Args:
        instance: The instance type.
        size: The value of `neuron-sum receipt --size`.
    """
    return ("receipt", "--instance", instance, "--size", size)
