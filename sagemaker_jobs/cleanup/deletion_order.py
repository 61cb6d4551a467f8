"""Order in which AWS resources are deleted: by `aws down`, and when a failed start is rolled back."""

from collections.abc import Sequence

from sagemaker_jobs.cleanup import kinds
from sagemaker_jobs.cleanup.kinds import Resource, ResourceKind

DELETION_ORDER = (
    "scaling-target",  # before its endpoint, so that no instance is added meanwhile
    "endpoint",
    "training-job",
    "transform-job",
    "build",
    "endpoint-config",
    "model",
    "schedule",  # after the endpoint, which it deletes if this machine goes offline before
)

KINDS: tuple[ResourceKind, ...] = tuple(kinds.KINDS[name] for name in DELETION_ORDER)
"""All kinds in the order of deletion."""

Found = Sequence[tuple[ResourceKind, Resource]]


def split_found(found: Found) -> tuple[Found, Found]:
    """Split resources into those to wait for, and those to delete once the former are gone.

    Args:
        found: Resources with their kinds, in the order of deletion.

    Returns:
        The autoscaling of endpoints and the resources billed by the hour; and the rest.
    """
    first = [pair for pair in found if pair[0].name == "scaling-target"]
    billed = [pair for pair in found if pair[0].paid]
    return [*first, *billed], [pair for pair in found if pair not in first and pair not in billed]
