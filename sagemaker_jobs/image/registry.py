"""Serving images in the account's ECR registry, which `neuron-sum aws image` builds."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError
from neuron_sum.platform.containers import CONTAINERS
from neuron_sum.platform.matrix import ENDED_CONTAINERS, RegistryImage
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import ignore_missing
from sagemaker_jobs.aws.names import PREFIX, AwsContext
from sagemaker_jobs.stack.stack import PRIVATE_IMAGE, Stack
from sagemaker_jobs.stack.storage import repository_is_ours

ENDED = "djl-0.30-neuronx"
"""The last DJL container with Neuron that AWS published; it serves archives written by `package --container`."""

PUBLISHED = (ENDED, *CONTAINERS)
"""The values of --image that name a published container instead of an image that `aws image` built."""


MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)
"""Media types of manifests: without them, ECR may convert one, and the digest would be that of another form."""


@dataclass(frozen=True)
class Image:
    """One image in the repository.

    Attributes:
        uri: The URI with its tag, for display.
        pinned: The URI with its digest, which no later push can move.
        digest: The digest of the manifest.
        size: The compressed size in bytes, as ECR reports it.
    """

    uri: str
    pinned: str
    digest: str
    size: int

    def as_dict(self) -> dict[str, Any]:
        """The fields for --json."""
        return {"image": self.uri, "pinned": self.pinned, "digest": self.digest, "bytes": self.size}


def image_uri(site: AwsContext, tag: str) -> str:
    """The full name of a serving image.

    Args:
        site: The account and region of the registry.
        tag: The tag of the image.
    """
    domain = "amazonaws.com.cn" if site.region.startswith("cn-") else "amazonaws.com"
    return f"{site.account}.dkr.ecr.{site.region}.{domain}/{PREFIX}:{tag}"


def look(account: Account, tag: str) -> Image | None:
    """The image with a tag, or None if it does not exist.

    Raises:
        AwsError: If the repository was not created by neuron-sum, or the request fails.
    """
    if not repository_is_ours(account):
        return None
    answer = account.find("ecr", "describe_images", repositoryName=PREFIX, imageIds=[{"imageTag": tag}])
    if answer is None:
        return None
    [found] = answer["imageDetails"]
    uri, digest = image_uri(account.site, tag), str(found["imageDigest"])
    return Image(uri, f"{uri.removesuffix(':' + tag)}@{digest}", digest, int(found.get("imageSizeInBytes", 0)))


def newest_image(account: Account, target: str) -> str:
    """The full name of the newest serving image for a target.

    Args:
        account: The account that owns the registry.
        target: cpu or inf2, which is the prefix of the image tags.

    Raises:
        AwsError: If there is no image, or the request fails.
    """
    found: list[tuple[datetime, str]] = []
    with ignore_missing():
        listing = account.pages(
            "ecr", "describe_images", "imageDetails", repositoryName=PREFIX, filter={"tagStatus": "TAGGED"}
        )
        for image in listing:
            found += [(image["imagePushedAt"], tag) for tag in image["imageTags"] if tag.startswith(f"{target}-")]
    if not found:
        raise AwsError(
            f"no serving image for {target} in {account.region}: the repository {PREFIX} has no tag {target}-…",
            f"Run `{account.command('image', target=target)}`, or use --image URI.",
        )
    return image_uri(account.site, max(found)[1])


def pin(account: Account | None, stack: Stack, uri: str) -> str:
    """The name of an image with its digest instead of its tag, which a later push may move to another image.

    CreateModel and CreateTrainingJob accept both forms (botocore, ContainerDefinition and AlgorithmSpecification).

    Args:
        account: The account that asks the registry; None in a dry run without one, which prints the tag.
        stack: The stack with the roles that pull the image.
        uri: The full name of the image.

    Returns:
        REPOSITORY@sha256:…; for an image outside of Amazon ECR in this region, its name, with a warning.

    Raises:
        AwsError: If the roles may not pull the image, it does not exist, or the request fails.
    """
    stack.check_image(uri)
    if "@" in uri:
        return uri
    match = PRIVATE_IMAGE.match(uri)
    if match is None or match["region"] != stack.site.region:
        console.warn(f"{uri} is not pinned to a digest: only tags in Amazon ECR in {stack.site.region} are resolved")
        return uri
    if account is None:
        console.note(f"an actual start replaces the tag of {uri} by its digest")
        return uri
    answer = account.find(
        "ecr",
        "batch_get_image",
        registryId=match["account"],
        repositoryName=match["repository"],
        imageIds=[{"imageTag": uri[match.end() :].removeprefix(":") or "latest"}],
        acceptedMediaTypes=[*MANIFESTS],
    )
    if answer is None or not answer["images"]:
        reasons = [each["failureReason"] for each in (answer or {}).get("failures", []) if "failureReason" in each]
        raise AwsError(
            f"the image {uri} was not found{''.join(f': {reason}' for reason in reasons)}",
            f"Run `{account.command('image', target='TARGET')}` to build one, or use --image with an image of this "
            "registry.",
        )
    return f"{match.group()}@{answer['images'][0]['imageId']['imageDigest']}"


def ended_image(region: str) -> str:
    """The URI of the last DJL container with Neuron in a region.

    Raises:
        PlatformError: If AWS has no registry in the region.
    """
    ended = ENDED_CONTAINERS[ENDED]
    repository, _, tag = ended.name.partition(":")
    return RegistryImage(repository, tag, "serve", ended.versions, ended.source, ended.checked).uri(region)
