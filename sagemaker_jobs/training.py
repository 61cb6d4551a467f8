"""A recipe as a training job: what is uploaded, which calls are made, and their making, noted in the ledger."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from neuron_sum.errors import AwsError
from neuron_sum.recipe import Recipe
from sagemaker_jobs import iam, inputs, requests
from sagemaker_jobs.account import ASSUME_ROLE, Account, Refused
from sagemaker_jobs.inputs import Channel
from sagemaker_jobs.ledger import Ledger
from sagemaker_jobs.names import PREFIX, RECIPE_TAG, RUN_TAG, Run, bucket_name, role_path, tags
from sagemaker_jobs.requests import Isolation, Job, Place, Request, inputs_prefix

ROLE_POLICY = "job"
ROLE_READY_S = 90.0
"""A new role is not known everywhere at once; AWS speaks of seconds, and people wait for up to a minute."""

PARTS_KEPT_DAYS = 1
"""What a killed upload leaves of a large file is removed by S3 itself."""


@dataclass(frozen=True)
class Call:
    """One request that makes or sets something.

    Attributes:
        service: As boto3 calls it.
        operation: The client's method.
        request: Its arguments.
        kind: What it makes, for the ledger; None for what only sets something.
        name: AWS's name for that.
    """

    service: str
    operation: str
    request: Request
    kind: str | None = None
    name: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For --dry-run."""
        return {"service": self.service, "operation": self.operation, "request": self.request}


@dataclass(frozen=True)
class Options:
    """What the command line says about a training job.

    Attributes:
        instance: The instance type.
        instances: How many.
        max_runtime_s: When it is stopped at the latest.
        max_wait_s: For spot; None: on demand.
        bucket: The caller's own; None: one is made.
        role_arn: The caller's own; None: one is made.
        image: None: AWS's.
        isolation: Encryption and network.
    """

    instance: str
    instances: int
    max_runtime_s: int
    max_wait_s: int | None = None
    bucket: str | None = None
    role_arn: str | None = None
    image: str | None = None
    isolation: Isolation = field(default_factory=Isolation)


@dataclass(frozen=True)
class Launch:
    """All that a start of a job is.

    Attributes:
        run: Whose.
        place: Where.
        channels: What is uploaded first.
        bucket_calls: That make and set the bucket; none for the caller's own.
        role_calls: That make the role; none for the caller's own.
        job_call: That starts the job.
    """

    run: Run
    place: Place
    channels: tuple[Channel, ...]
    bucket_calls: tuple[Call, ...]
    role_calls: tuple[Call, ...]
    job_call: Call
    encryption: Mapping[str, str]

    def as_dicts(self) -> list[dict[str, Any]]:
        """Every request in its order; an upload's body is the file."""
        uploads = [
            Call("s3", "put_object", {
                "Bucket": self.place.bucket, "Key": inputs_prefix(channel.name, channel.digest) + name,
                "Body": f"file://{path}", "ExpectedBucketOwner": self.place.account, **self.encryption,
            })
            for channel in self.channels for name, path in sorted(channel.files.items())
        ]  # fmt: skip
        return [call.as_dict() for call in (*self.bucket_calls, *uploads, *self.role_calls, self.job_call)]


def launch(
    run: Run, recipe: Recipe, options: Options, channels: list[Channel], account: str, region: str, *,
    attempt: int = 1, partition: str = "aws",
) -> Launch:  # fmt: skip
    """Everything that is to be sent; sends nothing.

    Args:
        run: A new one, or the one that goes on.
        recipe: What is trained.
        options: How.
        channels: What the job reads.
        account: Twelve digits.
        region: Where.
        attempt: From 1.
        partition: Of ARNs.

    Raises:
        AwsError: If SageMaker would refuse the job.
        PlatformError: If AWS has no image in the region.
    """
    bucket = options.bucket or bucket_name(account, region)
    role_name = run.name("role")
    role_arn = options.role_arn or f"arn:{partition}:iam::{account}:role{role_path(region)}{role_name}"
    place = Place(account, region, bucket, role_arn)
    cache = recipe.train.neuron.cache_url
    job = Job(
        run=run,
        stage="train",
        arguments=requests.train_arguments(options.instance, options.instances),
        channels={channel.name: place.inputs(channel.name, channel.digest) for channel in channels},
        instance=options.instance,
        instances=options.instances,
        max_runtime_s=options.max_runtime_s,
        max_wait_s=options.max_wait_s,
        image=options.image or requests.training_image(region),
        attempt=attempt,
        environment={"NEURON_COMPILE_CACHE_URL": cache} if cache else {},
        isolation=options.isolation,
    )
    key = options.isolation.kms_key
    return Launch(
        run,
        place,
        tuple(channels),
        () if options.bucket else _bucket_calls(place),
        () if options.role_arn else _role_calls(run, place, options.isolation, partition),
        Call("sagemaker", "create_training_job", requests.create_training_job(job, place), "training-job", job.name),
        {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {},
    )


def start(
    account: Account, ledger: Ledger, made: Launch, on_upload: Callable[[int], None], *,
    role_ready_s: float = ROLE_READY_S,
) -> str:  # fmt: skip
    """Sends a launch; whatever it makes is in the ledger before it is there.

    Args:
        account: Where.
        ledger: Of that account and region.
        made: What to send.
        on_upload: Told each file's bytes, once it is there.
        role_ready_s: How long a new role may take until SageMaker knows it.

    Returns:
        The job's name.

    Raises:
        AwsError: If AWS refuses, or cannot be reached; `aws down` removes what was made by then.
    """
    _ready_bucket(account, ledger, made)
    for channel in made.channels:
        for _, size in inputs.upload(account, made.place.bucket, channel, made.encryption):
            on_upload(size)
    for call in made.role_calls:
        create(account, ledger, call, made.run)
    # One that was made just now SageMaker may not be able to assume yet.
    unknown_yet = retry_if_exception(
        lambda error: isinstance(error, Refused) and bool(made.role_calls) and bool(ASSUME_ROLE.search(error.message))
    )
    Retrying(retry=unknown_yet, stop=stop_after_delay(role_ready_s), wait=wait_fixed(5), reraise=True)(
        create, account, ledger, made.job_call, made.run
    )
    return made.job_call.name


def create(account: Account, ledger: Ledger, call: Call, run: Run) -> None:
    """One call, with its intent and outcome in the ledger.

    A name that is taken is this run's own: a run's names are random, so an attempt whose reply was lost has made it.

    Raises:
        AwsError: If AWS refuses, which is noted; or no answer came, and the intent stands.
    """
    if call.kind is None:
        account.call(call.service, call.operation, **call.request)
        return
    try:
        with ledger.creating(call.kind, call.name, run.id):
            try:
                account.call(call.service, call.operation, **call.request)
            except Refused as refused:
                if not refused.taken:
                    raise
    except Refused:
        ledger.note("refused", call.kind, call.name, run.id)
        raise


def attempts_of(account: Account, run: Run) -> int:
    """How many training jobs a run has had, whatever became of them."""
    name = run.name("train")
    listing = account.pages("sagemaker", "list_training_jobs", "TrainingJobSummaries", NameContains=name)
    return sum(1 for _ in listing)


def last_job(account: Account, run_id: str) -> str:
    """The name of a run's newest training job, whether it runs or has ended.

    Raises:
        AwsError: If it has none.
    """
    listing = account.pages(
        "sagemaker", "list_training_jobs", "TrainingJobSummaries", NameContains=Run(run_id, "").name("train"),
        SortBy="CreationTime", SortOrder="Descending",
    )  # fmt: skip
    newest = next(listing, None)
    if newest is None:
        raise AwsError(f"no training job of a run {run_id!r} in {account.region}", "neuron-sum aws status")
    return str(newest["TrainingJobName"])


def find_run(account: Account, run_id: str) -> Run:
    """A run of before, by its id, with the name of its recipe.

    Raises:
        AwsError: If no training job is one of its.
    """
    listing = account.pages(
        "sagemaker", "list_training_jobs", "TrainingJobSummaries", NameContains=f"{PREFIX}-{run_id}-"
    )
    for job in listing:
        found = account.call("sagemaker", "list_tags", ResourceArn=job["TrainingJobArn"])["Tags"]
        values = {tag["Key"]: tag["Value"] for tag in found}
        if values.get(RUN_TAG) == run_id:
            return Run(run_id, values.get(RECIPE_TAG, ""))
    raise AwsError(f"no run {run_id!r} in {account.region}", "neuron-sum aws status lists what is there")


def _ready_bucket(account: Account, ledger: Ledger, made: Launch) -> None:
    """The bucket, checked to be the account's own; ours is made where it is missing."""
    bucket, owner = made.place.bucket, {"ExpectedBucketOwner": made.place.account}
    try:
        account.call("s3", "head_bucket", Bucket=bucket, **owner)
    except Refused as refused:
        if not refused.missing or not made.bucket_calls:
            hint = None if refused.missing else refused.hint
            raise AwsError(
                f"bucket {bucket}: {refused.message}", hint or "--bucket with one that is there"
            ) from refused
        create(account, ledger, made.bucket_calls[0], made.run)
    for call in made.bucket_calls[1:]:  # each time: a kill may have come between the bucket and its settings
        account.call(call.service, call.operation, **call.request)


def _bucket_calls(place: Place) -> tuple[Call, ...]:
    bucket, owner = place.bucket, {"ExpectedBucketOwner": place.account}
    # us-east-1 is refused as a LocationConstraint: it is what a bucket has without one.
    elsewhere = (
        {} if place.region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": place.region}}
    )
    closed = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    swept = {
        "ID": "parts-of-killed-uploads", "Status": "Enabled", "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": PARTS_KEPT_DAYS},
    }  # fmt: skip
    return (
        Call("s3", "create_bucket", {"Bucket": bucket, **elsewhere}, "bucket", bucket),
        # The bucket is all runs', so its tag names none.
        Call("s3", "put_bucket_tagging", {"Bucket": bucket, "Tagging": {"TagSet": tags({RUN_TAG: "all"})}, **owner}),
        Call("s3", "put_public_access_block",
             {"Bucket": bucket, "PublicAccessBlockConfiguration": closed, **owner}),
        Call("s3", "put_bucket_lifecycle_configuration",
             {"Bucket": bucket, "LifecycleConfiguration": {"Rules": [swept]}, **owner}),
    )  # fmt: skip


def _role_calls(run: Run, place: Place, isolation: Isolation, partition: str) -> tuple[Call, ...]:
    name = run.name("role")
    policy = iam.job_policy(
        place.account, place.region, place.bucket, run=run, isolation=isolation, partition=partition
    )
    return (
        Call("iam", "create_role", {
            "RoleName": name, "Path": role_path(place.region),
            "AssumeRolePolicyDocument": json.dumps(iam.trust_policy(place.account)),
            "Description": f"Training jobs of the run {run.id}", "Tags": run.tags,
        }, "role", name),
        Call("iam", "put_role_policy", {
            "RoleName": name, "PolicyName": ROLE_POLICY, "PolicyDocument": json.dumps(policy),
        }),
    )  # fmt: skip
