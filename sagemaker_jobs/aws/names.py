"""What everything of ours is called in an account, and how it is told from what is not ours.

Names begin with PREFIX, roles lie under a path of the region's, and all that can carry tags has RUN_TAG: the policies
that `aws iam` prints allow nothing else, and `aws down` looks for nothing else.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from neuron_sum.errors import AwsError

PREFIX = "neuron-sum"
RUN_TAG = "neuron-sum-run"
RECIPE_TAG = "neuron-sum-recipe"

NAME_LIMIT = 63
"""Of a training job, a model, an endpoint and a bucket; a role may have 64."""

SLUG_LIMIT = 20
"""So that the longest name, a schedule's for the 99th batch of a run, has the 64 characters that Scheduler allows."""

TAG_LIMIT = 256

REPOSITORY = PREFIX
"""Of images, for all runs."""

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
TRANSFORM_LOG_GROUP = "/aws/sagemaker/TransformJobs"
LOG_GROUPS = (LOG_GROUP, TRANSFORM_LOG_GROUP)
"""Of every job in the account; ours are streams in them. Each is the namespace of the same jobs' metrics, too."""
ENDPOINT_LOGS = "/aws/sagemaker/Endpoints/"
"""Prefix of an endpoint's log group; the endpoint's name follows."""
BUILD_LOGS = "/aws/codebuild/"
"""Prefix of a build project's log group; the project's name follows."""
OWN_LOG_GROUPS = (ENDPOINT_LOGS, BUILD_LOGS)
"""Prefixes of the log groups that belong to one endpoint or build project."""

ANY_ACCOUNT = "123456789012"
"""Stands in a plan, a dry run or a rehearsal for an account that is not asked for its number."""

ENDS = r"\d{6}-\d{4}-[0-9a-f]{4}"
"""A run's id ends so: date and time (UTC), and four random digits."""


@dataclass(frozen=True)
class Run:
    """One recipe's life in an account; whatever is made for it has its id in the name and in a tag.

    Attributes:
        id: As `aws down RUN` takes it.
        recipe: The recipe's name.
    """

    id: str
    recipe: str

    def name(self, kind: str, attempt: int = 1) -> str:
        """What a resource of this run is called.

        Args:
            kind: Such as train.
            attempt: From 1; SageMaker takes a job's name only once.
        """
        return f"{PREFIX}-{self.id}-{kind}" + (f"-{attempt}" if attempt > 1 else "")

    @property
    def tags(self) -> list[dict[str, str]]:
        """As every create request takes them."""
        return tags({RUN_TAG: self.id, RECIPE_TAG: self.recipe[:TAG_LIMIT]})


@dataclass(frozen=True)
class AwsContext:
    """An account in a region: what the ARNs of whatever is made there name.

    Attributes:
        account: Twelve digits.
        region: Such as us-east-1.
        partition: What ARNs have after their first colon.
    """

    account: str
    region: str
    partition: str = "aws"

    @property
    def bucket(self) -> str:
        """The bucket that is made where none is given; no other account can have its name by accident."""
        return f"{PREFIX}-{self.account}-{self.region}"

    def arn(self, service: str, resource: str) -> str:
        """The ARN of something that belongs to an account and a region.

        Args:
            service: Such as sagemaker.
            resource: What follows the account, such as endpoint/NAME.
        """
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def s3_arn(self, place: str) -> str:
        """The ARN of a bucket, or of objects in one: S3's name neither account nor region.

        Args:
            place: BUCKET or BUCKET/KEY.
        """
        return f"arn:{self.partition}:s3:::{place}"

    def iam_arn(self, resource: str) -> str:
        """The ARN of something of IAM's, which is the same in all regions.

        Args:
            resource: Such as role/PATH/NAME.
        """
        return f"arn:{self.partition}:iam::{self.account}:{resource}"

    def role_arn(self, name: str) -> str:
        """The ARN of a role of ours for this region.

        Args:
            name: As Run.name makes it; * for any.
        """
        return self.iam_arn(f"role{role_path(self.region)}{name}")


def tags(values: Mapping[str, str]) -> list[dict[str, str]]:
    """A mapping as AWS wants it."""
    return [{"Key": key, "Value": value} for key, value in values.items()]


def new_run(recipe: str) -> Run:
    """A run with an id that no other has: the recipe, the time (UTC), four random digits.

    Args:
        recipe: Its name; what SageMaker does not allow in a name becomes a hyphen in the id.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", recipe.lower()).strip("-")[:SLUG_LIMIT].strip("-")
    return Run(f"{slug}-{datetime.now(timezone.utc):%y%m%d-%H%M}-{secrets.token_hex(2)}", recipe)


def role_path(region: str) -> str:
    """Where roles lie: IAM is the same in all regions, and a region's clean-up must not take another's roles.

    Args:
        region: Where what has the role runs.
    """
    return f"/{PREFIX}/{region}/"


def run_of(name: str) -> str | None:
    """The id of the run whose thing has that name; None if no run's has.

    Args:
        name: As Run.name makes it.
    """
    found = re.fullmatch(rf"{PREFIX}-(.*{ENDS})-[a-z-]+(-\d+)?", name)
    return found.group(1) if found else None


def run_meant(said: str) -> str:
    """The id that somebody means who names a run, or a thing of a run's as `aws status` shows it.

    Args:
        said: An id, or a full name, such as an endpoint's.

    Raises:
        AwsError: If it is neither: no run can be called so, and a part of an id could be several runs'.
    """
    # A scaling target has the endpoint's name between slashes, a build its project's before a colon.
    if (owner := run_of(said.removeprefix("endpoint/").partition("/")[0].partition(":")[0])) is not None:
        return owner
    if re.fullmatch(rf"[a-z0-9-]*{ENDS}", said):
        return said
    raise AwsError(
        f"{said!r} is no run: an id ends like tiny-261121-2000-abcd",
        "neuron-sum aws status lists the runs that are there",
    )
