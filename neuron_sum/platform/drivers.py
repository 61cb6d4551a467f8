"""Neuron drivers: the versions that a runtime works with, and what is known about SageMaker's hosts."""

from dataclasses import dataclass

SAGEMAKER_HOST = "al2-ami-sagemaker-inference-neuron-2"
SAGEMAKER_HOST_DRIVER = "2.19"
SAGEMAKER_HOST_SOURCE = (
    "SageMaker's API, ProductionVariant.InferenceAmiVersion (botocore 1.44.5): the only host image for Inferentia2; "
    "the drivers of the hosts of training and transform jobs are not documented; read 2026-11-29"
)


@dataclass(frozen=True)
class Drivers:
    """The versions of the Neuron driver that a runtime works with.

    Attributes:
        tested: The version that was released with the runtime; whether older ones work is not documented.
        below: The first version that does not work with the runtime.
        source: The sources of both.
        checked: The date on which the sources were read.
    """

    tested: str
    below: str
    source: str
    checked: str

    def __str__(self) -> str:
        return f"tested: {self.tested}; valid before {self.below}"


def sagemaker_driver(instance: str, drivers: Drivers) -> str | None:
    """What is known about the driver of SageMaker's host of an instance type; None for types without Neuron chips.

    Args:
        instance: The SageMaker name of the instance type.
        drivers: The versions that the container's runtime works with.
    """
    if instance.startswith("ml.inf2."):
        return (
            f"on SageMaker, {instance} has driver {SAGEMAKER_HOST_DRIVER} ({SAGEMAKER_HOST}; {drivers}); whether the "
            "container's runtime works with it is not documented"
        )
    if instance.startswith("ml.trn1."):
        return f"on SageMaker, the driver of {instance} is not documented ({drivers}); a job logs it and continues"
    return None
