"""Registration of a model in the Model Registry: its own copy, manifest, scores and card, and the requests."""

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuron_sum import files
from neuron_sum.errors import AwsError, DataError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import NAME_LIMIT, PREFIX, RUN_TAG, Run, bucket_and_key, tags
from sagemaker_jobs.cleanup.registered import REGISTRY, is_ours
from sagemaker_jobs.endpoint.sources import Source
from sagemaker_jobs.launch.channels import DIGEST_DIGITS
from sagemaker_jobs.stack.stack import Request, Stack

GROUP = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
"""Pattern of a group's name (botocore, CreateModelPackageGroup)."""
INSTANCES = {
    "cpu": ("ml.c7i.4xlarge", "ml.c7i.8xlarge", "ml.c7i.16xlarge"),
    "inf2": ("ml.inf2.xlarge", "ml.inf2.8xlarge", "ml.inf2.24xlarge", "ml.inf2.48xlarge"),
}
"""Instance types that the registry lists for a model, by the kind of its image."""
JSON = "application/json"
LONGEST = 1024
"""Maximum length of a text in a model card."""
WAITING = ("Pending", "InProgress")


@dataclass(frozen=True)
class Scores:
    """Scores of `evaluate` or `compare`.

    Attributes:
        path: The file, metrics.json or comparison.json.
        systems: The record of each system in it.
    """

    path: Path
    systems: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Registration:
    """A model to register.

    Attributes:
        group: The full name of the model package group.
        source: The model.
        run: The run that compiled the model, or a new one.
        image: The image with its digest.
        target: The kind of the image: cpu or inf2.
        digest: The start of the hash of the archive, for its address.
        scores: The scores.
        approved: Whether the model may be deployed without a further approval.
    """

    group: str
    source: Source
    run: Run
    image: str
    target: str
    digest: str
    scores: Sequence[Scores] = ()
    approved: bool = False

    @property
    def prefix(self) -> str:
        """The prefix of the keys of its files."""
        return f"{REGISTRY}{self.group}/{self.digest}/"

    def key_of(self, scores: Scores) -> str:
        """The key of a file of scores, with a hash of its content: another version of the model may have others."""
        return f"{self.prefix}{files.sha256(scores.path)[:DIGEST_DIGITS]}/{scores.path.name}"


def group_name(text: str) -> str:
    """The full name of a group, with neuron-sum's prefix, which the policy of callers requires.

    Raises:
        AwsError: If AWS would refuse the name.
    """
    name = text if text.startswith(f"{PREFIX}-") else f"{PREFIX}-{text}"
    if not GROUP.fullmatch(name) or len(name) > NAME_LIMIT:
        raise AwsError(
            f"{text!r} is not the name of a model package group",
            f"Use at most {NAME_LIMIT - len(PREFIX) - 1} letters, digits and hyphens, such as --group summaries.",
        )
    return name


def read_scores(path: Path) -> Scores:
    """The scores in metrics.json of `evaluate` or comparison.json of `compare`.

    Raises:
        DataError: If the file is neither.
    """
    hint = "Use metrics.json written by `neuron-sum evaluate`, or comparison.json written by `neuron-sum compare`."
    content = files.read_json(path, hint=hint) if path.is_file() else None
    systems = content.get("systems", [content]) if isinstance(content, dict) else None
    if not isinstance(systems, list) or not systems or not all(_is_record(system) for system in systems):
        raise DataError(f"{path} contains no scores", hint)
    return Scores(path, systems)


def _is_record(system: Any) -> bool:
    try:
        return all(isinstance(score["value"], int | float) for score in system["scores"].values())
    except (AttributeError, KeyError, TypeError):
        return False


def digest_of(source: Source, account: Account | None) -> str:
    """The start of a hash of a model's archive: of its content, or of the ETag and the size that S3 reports.

    Raises:
        AwsError: If the object cannot be read.
    """
    if source.channel is not None:
        return source.channel.digest
    assert source.address is not None  # a source has either a channel or an address
    text = source.address
    if account is not None:
        bucket, key = bucket_and_key(source.address)
        found = account.call("s3", "head_object", Bucket=bucket, Key=key)
        text = f"{found['ETag']} {found['ContentLength']}"
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_DIGITS]


def create_group(group: str) -> Request:
    """CreateModelPackageGroup."""
    return {
        "ModelPackageGroupName": group,
        "ModelPackageGroupDescription": "Models of neuron-sum; `neuron-sum aws down` keeps them",
        "Tags": tags({RUN_TAG: "all"}),
    }


def create_package(registration: Registration, stack: Stack) -> Request:
    """CreateModelPackage of the next version in the group, which has the tags of the group.

    Args:
        registration: The model.
        stack: The stack with the bucket.
    """
    address = f"s3://{stack.bucket}/{registration.prefix}"
    metrics = {}
    if registration.scores:
        first = registration.scores[0]
        metrics = {
            "ModelMetrics": {
                "ModelQuality": {
                    "Statistics": {
                        "ContentType": JSON,
                        "ContentDigest": f"sha256:{files.sha256(first.path)}",
                        "S3Uri": f"s3://{stack.bucket}/{registration.key_of(first)}",
                    }
                }
            }
        }
    source = registration.source
    return {
        "ModelPackageGroupName": registration.group,
        "ModelPackageDescription": f"{registration.run.id}: {source.name} for {registration.target}"[:LONGEST],
        "InferenceSpecification": {
            "Containers": [
                {
                    "Image": registration.image,
                    **({"ImageDigest": registration.image.partition("@")[2]} if "@" in registration.image else {}),
                    "ModelDataUrl": f"{address}model.tar.gz",
                    "Environment": dict(source.environment),
                }
            ],
            "SupportedContentTypes": [JSON],
            "SupportedResponseMIMETypes": [JSON],
            "SupportedRealtimeInferenceInstanceTypes": [*INSTANCES[registration.target]],
        },
        "ModelApprovalStatus": "Approved" if registration.approved else "PendingManualApproval",
        "ModelCard": {
            "ModelCardContent": json.dumps(card(registration, f"{address}model.tar.gz")),
            "ModelCardStatus": "Approved" if registration.approved else "PendingReview",
        },
        "Domain": "NATURAL_LANGUAGE_PROCESSING",
        "Task": "OTHER",
        **metrics,
    }


def card(registration: Registration, address: str) -> dict[str, Any]:
    """The content of the model card, in the schema of a model package's card (botocore, ModelPackageModelCard).

    Args:
        registration: The model.
        address: The S3 address of its archive.
    """
    compiled = {
        key: value for key, value in registration.source.record.items() if isinstance(value, str | int) and value != ""
    }
    details = {
        **{f"manifest_{key}": str(value)[:LONGEST] for key, value in compiled.items()},
        "run": registration.run.id,
        "recipe": registration.run.recipe[:LONGEST],
        "target": registration.target,
        "image": registration.image,
    }
    evaluations = [
        {
            "name": f"{system.get('system', 'model')} on {system.get('data', 'data')}"[:63],
            "evaluation_observation": f"{system.get('examples', '?')} dialogues of {system.get('split', '?')}",
            "metric_groups": [
                {
                    "name": "scores",
                    "metric_data": [
                        {"name": name[:255], "type": "number", "value": score["value"], "notes": _interval(score)}
                        for name, score in system["scores"].items()
                    ],
                }
            ],
        }
        for scores in registration.scores
        for system in scores.systems
    ]
    return {
        "model_overview": {"model_creator": "neuron-sum", "model_artifact": [address]},
        "intended_uses": {
            "purpose_of_model": "Summaries of dialogues.",
            "intended_uses": "Dialogues like those that it was trained on; a summary can contain false statements.",
        },
        **({"evaluation_details": evaluations} if evaluations else {}),
        "additional_information": {"custom_details": details},
    }


def _interval(score: Mapping[str, Any]) -> str:
    return f"95 % interval {score['low']} to {score['high']}" if {"low", "high"} <= score.keys() else ""


def register(account: Account, stack: Stack, registration: Registration) -> dict[str, Any]:
    """Copy the model and its files, and create the next version of the group.

    A repetition after a failure or a kill writes the same objects again; an entry is only created by its last request.

    Args:
        account: The account and region.
        stack: The stack with the bucket.
        registration: The model.

    Returns:
        The description of the model package.

    Raises:
        AwsError: If the group is not neuron-sum's, AWS refuses, or the model package fails.
    """
    bucket, owner, prefix = stack.bucket, {"ExpectedBucketOwner": stack.site.account}, registration.prefix
    _ensure_group(account, registration.group)
    source = registration.source
    if source.channel is not None:
        [path] = source.channel.files.values()
        account.upload(path, bucket, f"{prefix}model.tar.gz", owner)
    else:
        account.copy(source.address_in(stack), bucket, f"{prefix}model.tar.gz", owner)
    text = json.dumps(dict(source.record), indent=2).encode()
    account.call("s3", "put_object", Bucket=bucket, Key=f"{prefix}manifest.json", Body=text, **owner)
    for scores in registration.scores:
        account.upload(scores.path, bucket, registration.key_of(scores), owner)
    arn = account.call("sagemaker", "create_model_package", **create_package(registration, stack))["ModelPackageArn"]
    while True:
        found = account.call("sagemaker", "describe_model_package", ModelPackageName=arn)
        if found["ModelPackageStatus"] not in WAITING:
            break
        time.sleep(account.every_s)
    if found["ModelPackageStatus"] != "Completed":
        statuses = found.get("ModelPackageStatusDetails", {}).get("ValidationStatuses") or []
        reasons = "; ".join(filter(None, (each.get("FailureReason") for each in statuses)))
        raise AwsError(
            f"the model package {arn} is {found['ModelPackageStatus']}: {reasons or 'AWS reports no reason'}",
            f"Delete it with `aws sagemaker delete-model-package --model-package-name {arn}`.",
        )
    return found


def _ensure_group(account: Account, group: str) -> None:
    """Create the group unless it exists."""
    found = account.find("sagemaker", "describe_model_package_group", ModelPackageGroupName=group)
    if found is None:
        account.call("sagemaker", "create_model_package_group", **create_group(group))
    elif not is_ours(account, found["ModelPackageGroupArn"]):
        raise AwsError(f"the model package group {group} was not created by neuron-sum", "Use another --group.")
