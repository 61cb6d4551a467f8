"""All that a start sends, in its order: bucket, uploads, roles, and what they are for; the ledger beside it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sagemaker_jobs.aws import policies
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import RUN_TAG, Run, Site, role_path, tags
from sagemaker_jobs.jobs import inputs
from sagemaker_jobs.jobs.inputs import Channel
from sagemaker_jobs.jobs.requests import Isolation, Place, inputs_prefix
from sagemaker_jobs.launch import bucket
from sagemaker_jobs.launch.call import Call, create, create_with_new_role

ROLE_POLICY = "job"
PARTS_KEPT_DAYS = 1
"""What a killed upload leaves of a large file is removed by S3 itself."""


@dataclass(frozen=True)
class Copy:
    """One object that S3 copies.

    Attributes:
        source: Its address.
        key: Where to, in the launch's bucket.
    """

    source: str
    key: str

    @property
    def place(self) -> tuple[str, str]:
        """The source's bucket and key."""
        bucket, _, key = self.source.removeprefix("s3://").partition("/")
        return bucket, key


@dataclass(frozen=True)
class Launch:
    """All that a start is.

    Attributes:
        run: Whose.
        place: Where.
        calls: What it is for, in the order of their making.
        channels: What is uploaded first.
        bucket_calls: That make and set the bucket; none for the caller's own.
        role_calls: That make roles; none for the caller's own.
        encryption: Of every upload, as put_object takes it.
        copies: From S3 to keys of the bucket, once the uploads are there.
        later: What can be sent only when the rest has come up; `start` does not.
    """

    run: Run
    place: Place
    calls: tuple[Call, ...]
    channels: tuple[Channel, ...] = ()
    bucket_calls: tuple[Call, ...] = ()
    role_calls: tuple[Call, ...] = ()
    encryption: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[Copy, ...] = ()
    later: tuple[Call, ...] = ()

    def as_dicts(self) -> list[dict[str, Any]]:
        """Every request in its order; an upload's body is the file."""
        uploads = [
            Call("s3", "put_object", {
                "Bucket": self.place.bucket, "Key": inputs_prefix(channel.name, channel.digest) + name,
                "Body": f"file://{path}", "ExpectedBucketOwner": self.place.site.account, **self.encryption,
            })
            for channel in self.channels for name, path in sorted(channel.files.items())
        ]  # fmt: skip
        copies = [
            Call("s3", "copy_object", {
                "CopySource": copy.source.removeprefix("s3://"), "Bucket": self.place.bucket, "Key": copy.key,
                "ExpectedBucketOwner": self.place.site.account, **self.encryption,
            })
            for copy in self.copies
        ]  # fmt: skip
        made = (*self.bucket_calls, *uploads, *copies, *self.role_calls, *self.calls, *self.later)
        return [call.as_dict() for call in made]


def place_of(run: Run, site: Site, *, bucket: str | None = None, role_arn: str | None = None) -> Place:
    """Where a run's things go: the caller's bucket and role, or those that are made for it.

    Args:
        run: Whose.
        site: Where.
        bucket: The caller's own.
        role_arn: The caller's own.
    """
    return Place(site, bucket or site.bucket, role_arn or site.role_arn(run.name("role")))


def encryption_of(isolation: Isolation) -> dict[str, str]:
    """Of uploads, as put_object takes it."""
    key = isolation.kms_key
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key} if key else {}


def start(account: Account, ledger: Ledger, made: Launch, on_upload: Callable[[int], None]) -> None:
    """Sends a launch; whatever it makes is in the ledger before it is there.

    Args:
        account: Where.
        ledger: Of that account and region.
        made: What to send.
        on_upload: Told each file's bytes, once it is there.

    Raises:
        AwsError: If AWS refuses, or cannot be reached; `aws down` removes what was made by then.
    """
    bucket.ready(
        account, ledger, made.run, made.place, made.bucket_calls, made.encryption,
        checkpoints=any("CheckpointConfig" in call.request for call in made.calls), own_role=bool(made.role_calls),
    )  # fmt: skip
    for channel in made.channels:
        for _, size in inputs.upload(account, made.place.bucket, channel, made.encryption):
            on_upload(size)
    for copy in made.copies:
        extra = {**made.encryption, "ExpectedBucketOwner": made.place.site.account}
        account.copy(copy.place, made.place.bucket, copy.key, extra)
    for call in made.role_calls:
        create(account, ledger, call, made.run)
    send = create_with_new_role if made.role_calls else create
    for call in made.calls:
        send(account, ledger, call, made.run)


def bucket_calls(place: Place, kms_key: str | None = None) -> tuple[Call, ...]:
    """The bucket that is made where none is given: closed to the public, swept of killed uploads.

    Args:
        place: Where.
        kms_key: Of what is written without one, as SageMaker writes checkpoints; set when the bucket is made, and never
            later, for a bucket is all runs'.
    """
    name, owner = place.bucket, {"ExpectedBucketOwner": place.site.account}
    # us-east-1 is refused as a LocationConstraint: it is what a bucket has without one.
    region = place.site.region
    elsewhere = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    closed = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    swept = {
        "ID": "parts-of-killed-uploads", "Status": "Enabled", "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": PARTS_KEPT_DAYS},
    }  # fmt: skip
    encrypted = {
        "ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": kms_key},
        "BucketKeyEnabled": True,
    }
    encryption = Call("s3", "put_bucket_encryption", {
        "Bucket": name, "ServerSideEncryptionConfiguration": {"Rules": [encrypted]}, **owner,
    })  # fmt: skip
    return (
        Call("s3", "create_bucket", {"Bucket": name, **elsewhere}, "bucket", name),
        *([encryption] if kms_key is not None else []),  # before the tag, by which a bucket is known to have it
        # The bucket is all runs', so its tag names none.
        Call("s3", "put_bucket_tagging", {"Bucket": name, "Tagging": {"TagSet": tags({RUN_TAG: "all"})}, **owner}),
        Call("s3", "put_public_access_block",
             {"Bucket": name, "PublicAccessBlockConfiguration": closed, **owner}),
        Call("s3", "put_bucket_lifecycle_configuration",
             {"Bucket": name, "LifecycleConfiguration": {"Rules": [swept]}, **owner}),
    )  # fmt: skip


def role_calls(
    run: Run,
    region: str,
    trust: policies.Policy,
    policy: policies.Policy,
    kind: str = "role",
    *,
    policy_name: str = ROLE_POLICY,
) -> tuple[Call, ...]:
    """A role of a run's, with its one policy.

    Args:
        run: Whose.
        region: Where what has the role runs.
        trust: Who may become it.
        policy: What it may.
        kind: What its name ends with: role, build-role or expiry-role.
        policy_name: Where commands of a run share a role, each has a policy of its own there.
    """
    name = run.name(kind)
    return (
        Call("iam", "create_role", {
            "RoleName": name, "Path": role_path(region), "AssumeRolePolicyDocument": json.dumps(trust),
            "Description": f"Of the run {run.id} of neuron-sum", "Tags": run.tags,
        }, "role", name),
        Call("iam", "put_role_policy", {
            "RoleName": name, "PolicyName": policy_name, "PolicyDocument": json.dumps(policy),
        }),
    )  # fmt: skip


def job_role_calls(
    run: Run,
    place: Place,
    isolation: Isolation,
    *,
    stage: str = "endpoint",
    reads: Sequence[str] = (),
    image: str | None = None,
) -> tuple[Call, ...]:
    """The role of a run's jobs and endpoint: what all of them need, and what this one needs besides.

    Two policies, for a role's may have 10,240 characters in all (IAM's quotas), and what one command needs must not
    replace what another's job still needs.

    Args:
        run: Whose.
        place: Where.
        isolation: A key and a VPC.
        stage: Whose needs are added.
        reads: S3 addresses of the caller's.
        image: The caller's own.
    """
    site = place.site
    common = policies.job_policy(site, place.bucket, run=run)
    calls = role_calls(run, site.region, policies.trust_policy(site.account), common)
    own = policies.extra_statements(site, isolation, reads=reads, image=image)
    if not own:
        return calls
    document = json.dumps(policies.policy(*own))
    request = {"RoleName": run.name("role"), "PolicyName": stage, "PolicyDocument": document}
    return (*calls, Call("iam", "put_role_policy", request))
