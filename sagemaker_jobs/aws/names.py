"""Names, tags and ARNs of neuron-sum's resources, which distinguish them from others in the account.

Names begin with PREFIX, and every resource that can have tags has RUN_TAG: the policies that `aws iam` prints allow
nothing else, and `aws down` looks for nothing else.
"""

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone

from neuron_sum.console import command
from neuron_sum.errors import AwsError

PREFIX = "neuron-sum"
RUN_TAG = "neuron-sum-run"
RECIPE_TAG = "neuron-sum-recipe"

NAME_LIMIT = 63
"""Maximum length of the name of a training job, model, endpoint or bucket."""

SLUG_LIMIT = 18
"""Maximum length of the recipe's part of a run id, so that the longest name, that of the schedule for a run's 9,999th
batch, has the 64 characters that Scheduler allows; while AWS lacks capacity, each attempt has the next number."""

TAG_LIMIT = 256
NOT_IN_TAGS = r"[^\p{L}\p{Z}\p{N}_.:/=+\-@]"
"""A character that the values of tags cannot contain, by SageMaker's description of its API."""

REPOSITORY = PROJECT = PREFIX
"""Image repository and build project of all runs."""
EXPIRY_QUEUE = f"{PREFIX}-expiry"
"""Queue of the stack for calls of schedules that AWS rejected."""

CAPTURED = f"{PREFIX}/capture/"
"""Prefix of the keys of captured requests, which a lifecycle rule of the bucket deletes."""

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
TRANSFORM_LOG_GROUP = "/aws/sagemaker/TransformJobs"
BUILD_LOG_GROUP = f"/aws/codebuild/{PROJECT}"
LOG_GROUPS = (LOG_GROUP, TRANSFORM_LOG_GROUP, BUILD_LOG_GROUP)
"""Log groups of all jobs and builds, with streams for each; names of streams begin with that of the job or build."""
ENDPOINT_LOGS = "/aws/sagemaker/Endpoints/"
"""Prefix of an endpoint's log group; the endpoint's name follows."""

ANY_ACCOUNT = "123456789012"
"""Account id used in a plan, a dry run or a rehearsal if AWS is not called."""

ENDS = r"\d{6}-\d{4}-[0-9a-f]{4}"
"""Pattern of the end of a run id: date and time (UTC), and four random hex digits."""


@dataclass(frozen=True)
class Run:
    """Run of a recipe in an account; all its resources have its id in the name and in a tag.

    Attributes:
        id: The run id, such as `aws down RUN` accepts.
        recipe: The recipe's name.
    """

    id: str
    recipe: str

    def name(self, kind: str, attempt: int = 1) -> str:
        """Return the name of a resource of this run.

        Args:
            kind: The kind, such as train.
            attempt: The attempt, from 1, because SageMaker accepts the name of a job only once.
        """
        return f"{PREFIX}-{self.id}-{kind}" + (f"-{attempt}" if attempt > 1 else "")

    @property
    def tags(self) -> list[dict[str, str]]:
        """The tags in the form of a create request; a hyphen replaces characters that AWS does not allow in a value."""
        import regex

        return tags({RUN_TAG: self.id, RECIPE_TAG: regex.sub(NOT_IN_TAGS, "-", self.recipe)[:TAG_LIMIT]})


@dataclass(frozen=True)
class AwsContext:
    """Account, region and partition, from which ARNs are built.

    Attributes:
        account: The account id, twelve digits.
        region: The region, such as us-east-1.
        partition: The partition, which ARNs contain after the first colon.
    """

    account: str
    region: str
    partition: str = "aws"

    @property
    def bucket(self) -> str:
        """The stack's bucket; its name contains the account id, so that other accounts do not use it by accident."""
        return f"{PREFIX}-{self.account}-{self.region}"

    def arn(self, service: str, resource: str) -> str:
        """Return the ARN of a resource that belongs to an account and a region.

        Args:
            service: The service, such as sagemaker.
            resource: The part after the account, such as endpoint/NAME.
        """
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def s3_arn(self, place: str) -> str:
        """Return the ARN of a bucket or of objects in one, which contains neither account nor region.

        Args:
            place: The bucket, or the bucket and key (BUCKET/KEY).
        """
        return f"arn:{self.partition}:s3:::{place}"

    def iam_arn(self, resource: str) -> str:
        """Return the ARN of an IAM resource, which is the same in all regions.

        Args:
            resource: The part after the account, such as role/PATH/NAME.
        """
        return f"arn:{self.partition}:iam::{self.account}:{resource}"

    def role_arn(self, kind: str) -> str:
        """Return the ARN of a role of the region's stack.

        Args:
            kind: jobs, endpoint, expiry or build; * for any.
        """
        return self.iam_arn(f"role/{PREFIX}-{self.region}-{kind}")


def tags(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Return a mapping as a list of AWS tags."""
    return [{"Key": key, "Value": value} for key, value in values.items()]


def new_run(recipe: str) -> Run:
    """Return a run with a unique id: the recipe, the time (UTC) and four random hex digits.

    Args:
        recipe: The recipe's name; a hyphen replaces characters that SageMaker does not allow in the id.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", recipe.lower()).strip("-")[:SLUG_LIMIT].strip("-")
    return Run(f"{slug or 'run'}-{datetime.now(timezone.utc):%y%m%d-%H%M}-{secrets.token_hex(2)}", recipe)


def bucket_and_key(address: str) -> tuple[str, str]:
    """Return the bucket and the key, or the prefix, of an S3 address."""
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return bucket, key


def inputs_prefix(channel: str, digest: str) -> str:
    """Return the prefix of the keys of a channel's files."""
    return f"{PREFIX}/inputs/{channel}/{digest}/"


def run_prefix(run: Run) -> str:
    """Return the prefix of the keys of everything that a run writes."""
    return f"{PREFIX}/runs/{run.id}/"


def capture_prefix(run: Run) -> str:
    """Return the prefix of the keys of the requests that SageMaker captures from a run's endpoint."""
    return f"{CAPTURED}{run.id}/"


def last_attempt(names: Iterable[str]) -> int:
    """Return the highest attempt number in the names of a run's jobs of one kind; 0 without a name.

    A request that AWS refused for want of capacity leaves a gap, so that the number of jobs can be smaller.
    """
    found = (re.search(r"-[a-z]+-(\d+)$", name) for name in names)
    return max((int(match.group(1)) if match else 1 for match in found), default=0)


def run_of(name: str) -> str | None:
    """Return the run id in the name of a resource; None if it is not the name of a run's resource.

    Args:
        name: The resource's name, such as Run.name returns.
    """
    match = re.fullmatch(rf"{PREFIX}-(.*{ENDS})-[a-z-]+(-\d+)?", name)
    return match.group(1) if match else None


def owner_of(name: str) -> str | None:
    """Return the run id in the name of any resource; None if it has none.

    A scaling target has the endpoint's name between slashes, and a log stream its job's before a slash.
    """
    return run_of(name.removeprefix("endpoint/").partition("/")[0])


def is_run_id(text: str) -> bool:
    """Return whether a text has the form of a run id."""
    return re.fullmatch(rf"[a-z0-9-]*{ENDS}", text) is not None


def parse_run_id(text: str, region: str | None = None) -> str:
    """Resolve a run id from a run id or from a resource name as `aws status` prints it.

    Args:
        text: A run id, or the full name of a resource such as an endpoint.
        region: The value of --region, for the hint.

    Raises:
        AwsError: If it is neither; a part of an id is not accepted, because several runs may have it.
    """
    if (owner := owner_of(text)) is not None:
        return owner
    if is_run_id(text):
        return text
    raise AwsError(
        f"{text!r} is not a run: a run id ends like tiny-261121-2000-abcd",
        f"{command('aws', 'status', region=region)} lists the runs",
    )
