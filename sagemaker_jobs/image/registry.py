"""Images of ours in the account's own registry, which `neuron-sum aws image` fills."""

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.platform.matrix import ENDED_CONTAINERS, RegistryImage
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import ignore_missing
from sagemaker_jobs.aws.names import PREFIX, RUN_TAG, AwsContext

ENDED = "djl-0.30-neuronx"
"""The word for AWS's last DJL container with Neuron, in which serves what `package --container` wrote."""


@dataclass(frozen=True)
class Image:
    """One image in the repository.

    Attributes:
        uri: With its tag, as people read it.
        pinned: With its digest, which no later push can move.
        digest: Of its manifest.
        size: Bytes, compressed, as ECR counts them.
    """

    uri: str
    pinned: str
    digest: str
    size: int

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"image": self.uri, "pinned": self.pinned, "digest": self.digest, "bytes": self.size}


def image_uri(site: AwsContext, tag: str) -> str:
    """The full name of an image of ours.

    Args:
        site: Of the registry.
        tag: Of the image.
    """
    domain = "amazonaws.com.cn" if site.region.startswith("cn-") else "amazonaws.com"
    return f"{site.account}.dkr.ecr.{site.region}.{domain}/{PREFIX}:{tag}"


def look(account: Account, tag: str) -> Image | None:
    """The image of that tag, if it is there.

    Raises:
        AwsError: If the repository of that name is not ours, or AWS cannot be asked.
    """
    if not _is_ours(account):
        return None
    answer = account.find("ecr", "describe_images", repositoryName=PREFIX, imageIds=[{"imageTag": tag}])
    if answer is None:
        return None
    [found] = answer["imageDetails"]
    return _image(account, found, tag)


def newest_image(account: Account, target: str) -> str:
    """The full name of the newest image of ours for a target.

    Args:
        account: Whose registry.
        target: cpu or inf2; its images' tags begin so.

    Raises:
        AwsError: If there is none, or AWS cannot be asked.
    """
    found: list[tuple[datetime, str]] = []
    with ignore_missing():
        listing = account.pages(
            "ecr", "describe_images", "imageDetails", repositoryName=PREFIX, filter={"tagStatus": "TAGGED"}
        )
        for image in listing:
            found += [(_pushed(image), tag) for tag in image["imageTags"] if tag.startswith(f"{target}-")]
    if not found:
        raise AwsError(
            f"no image of ours for {target} in {account.region}: the repository {PREFIX} has no tag {target}-…",
            f"neuron-sum aws image --target {target} builds it; or --image URI",
        )
    return image_uri(account.site, max(found)[1])


def ended_image(region: str) -> str:
    """AWS's last DJL container with Neuron, in a region.

    Raises:
        PlatformError: If AWS publishes no registry there.
    """
    ended = ENDED_CONTAINERS[ENDED]
    repository, _, tag = ended.name.partition(":")
    return RegistryImage(repository, tag, "serve", ended.versions, ended.source, ended.checked).uri(region)


def _pushed(image: dict[str, Any]) -> datetime:
    pushed: datetime = image["imagePushedAt"]
    return pushed if pushed.tzinfo is not None else pushed.replace(tzinfo=timezone.utc)


def _image(account: Account, found: dict[str, Any], tag: str) -> Image:
    uri, digest = image_uri(account.site, tag), str(found["imageDigest"])
    return Image(uri, f"{uri.removesuffix(':' + tag)}@{digest}", digest, int(found.get("imageSizeInBytes", 0)))


def _is_ours(account: Account) -> bool:
    """Whether the repository is there; one of that name without our tag is somebody else's, and stays as it is."""
    answer = account.find("ecr", "describe_repositories", repositoryNames=[PREFIX])
    if answer is None:
        return False
    [found] = answer["repositories"]
    arn = found["repositoryArn"]
    if not any(tag["Key"] == RUN_TAG for tag in account.call("ecr", "list_tags_for_resource", resourceArn=arn)["tags"]):
        raise AwsError(
            f"the repository {PREFIX} in {account.region} is not ours: it has no tag {RUN_TAG}",
            f"if it is yours to use: aws ecr tag-resource --resource-arn {arn} --tags Key={RUN_TAG},Value=all",
        )
    return True
