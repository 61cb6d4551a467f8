"""Account in one region: sends every call to AWS, and turns every error into one line with a hint.

It uses boto3 instead of sagemaker-core, whose typed resources can create and wait; docs/aws.md gives the reasons.
"""

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.errors import AwsError, MissingExtraError, redacted
from sagemaker_jobs.aws.errors import (
    ASSUME_ROLE,
    BUILD_ELSEWHERE,
    DENIED,
    EXPIRED,
    NO_CREDENTIALS,
    NO_IMAGE,
    SETUP_CALL,
    THROTTLED,
    UNKNOWN_KEY,
    UNREACHED,
    Refused,
    Unreached,
    ignore_missing,
)
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext, bucket_and_key

ATTEMPTS = 8
"""Maximum attempts per call; botocore waits longer after each one. AWS_MAX_ATTEMPTS overrides it."""

PRICING_REGION = "us-east-1"
CONVENIENCES = ("pricing", "service-quotas", "budgets")
"""Optional services, which a VPC may not be able to reach: a launch continues without them after a short timeout."""
ESSENTIAL = ("sts", "sagemaker", "s3")
"""Services that keep the normal timeouts even with `short_timeouts`."""
BRIEF_ATTEMPTS = 4
"""Maximum attempts per call with `short_timeouts`: enough if AWS is busy, and about 15 seconds without an answer."""


class Account:
    """Account in a region, with the credentials that boto3 finds.

    Args:
        region: The region; None for boto3's default (AWS_REGION, the profile).
        short_timeouts: Use short timeouts for all services but ESSENTIAL, and give up a service after one failed
            connection. For commands that call many services, and must delete what they can if one does not answer.
        every_s: Seconds between two polls of what runs or is being deleted.

    Raises:
        MissingExtraError: If boto3 is not installed.
        AwsError: If the region does not exist, or none is set.
    """

    def __init__(self, region: str | None = None, *, short_timeouts: bool = False, every_s: float = 15.0) -> None:
        self.every_s = every_s
        try:
            boto3, botocore = import_module("boto3"), import_module("botocore")
        except ImportError as error:
            raise MissingExtraError("boto3", "aws") from error
        self._errors = import_module("botocore.exceptions")
        self._upload_error = import_module("boto3.exceptions").Boto3Error
        try:
            self._session = boto3.Session(region_name=region)
        except self._errors.BotoCoreError as error:
            raise self._translated(error, "session") from error
        self.region: str = self._session.region_name or ""
        regions = self._session.get_available_regions("sagemaker")
        if not self.region:
            raise AwsError("no AWS region is set", "use --region us-east-1, or set AWS_REGION")
        if self.region not in regions:
            close = difflib.get_close_matches(self.region, regions, n=1)
            raise AwsError(
                f"{self.region!r} is not a region with SageMaker",
                f"did you mean {close[0]}?" if close else f"use one of {', '.join(sorted(regions))}",
            )
        self._config = botocore.config.Config
        self._clients: dict[str, Any] = {}
        self._short_timeouts = short_timeouts
        self._unreachable: dict[str, Unreached] = {}

    @cached_property
    def id(self) -> str:
        """The account id, twelve digits.

        Raises:
            AwsError: If AWS does not accept the credentials.
        """
        return str(self.call("sts", "get_caller_identity")["Account"])

    @property
    def site(self) -> AwsContext:
        """The account, region and partition, from which ARNs are built.

        Raises:
            AwsError: If AWS does not accept the credentials.
        """
        return AwsContext(self.id, self.region, self.partition)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger of the resources that were created in the account and region.

        Raises:
            AwsError: If AWS does not accept the credentials.
        """
        return Ledger(self.site)

    def command(self, *words: object, **options: object) -> str:
        """A command of `neuron-sum aws` to suggest, for this region; the arguments are those of `console.command`."""
        return console.command("aws", *words, **options, region=self.region)

    def tail_command(self, group: str, *options: str) -> str:
        """The command of the AWS CLI that prints a log group.

        Args:
            group: The log group.
            options: Further options.
        """
        return " ".join(map(console.quote, ("aws", "logs", "tail", group, *options, "--region", self.region)))

    @property
    def partition(self) -> str:
        """The partition, which ARNs contain after the first colon."""
        return str(self._session.get_partition_for_region(self.region))

    def client(self, service: str) -> Any:
        """Return a service's boto3 client, which is created once.

        Args:
            service: The service's name in boto3.
        """
        if service not in self._clients:
            # Only a few regions have an endpoint for the Price List, which covers all regions.
            fixed_region = {"region_name": PRICING_REGION} if service == "pricing" else {}
            attempts, connect_s, read_s = int(os.environ.get("AWS_MAX_ATTEMPTS", ATTEMPTS)), 10, 60
            if service in CONVENIENCES:
                attempts, connect_s, read_s = 2, 5, 10
            elif self._short_timeouts and service not in ESSENTIAL:
                attempts, connect_s = min(attempts, BRIEF_ATTEMPTS), 3
            retries = {"mode": "standard", "total_max_attempts": attempts}
            settings = self._config(retries=retries, connect_timeout=connect_s, read_timeout=read_s)
            try:
                self._clients[service] = self._session.client(service, config=settings, **fixed_region)
            except (self._errors.BotoCoreError, ValueError) as error:
                raise self._translated(error, service) from error
        return self._clients[service]

    def call(self, service: str, operation: str, /, **request: Any) -> dict[str, Any]:
        """Send one request; retries if AWS is busy or cannot be reached.

        Args:
            service: The service's name in boto3.
            operation: The client's method.
            request: The method's arguments.

        Raises:
            Refused: If AWS refuses the request.
            Unreached: If AWS does not answer.
            AwsError: If the request could not be sent.
        """
        method = getattr(self.client(service), operation)
        return dict(self._send(service, lambda: method(**request), f"{service} {operation}"))

    def find(self, service: str, operation: str, /, **request: Any) -> dict[str, Any] | None:
        """Like `call`, but return None if the resource does not exist.

        Raises:
            AwsError: As `call`.
        """
        with ignore_missing():
            return self.call(service, operation, **request)
        return None

    def pages(self, service: str, operation: str, key: str, /, **request: Any) -> Iterator[dict[str, Any]]:
        """Yield the items of a listing, page after page.

        Args:
            service: The service's name in boto3.
            operation: The client's method.
            key: The field of a page that contains the items.
            request: The method's arguments.

        Raises:
            AwsError: As `call`.
        """
        if service == "sagemaker":
            request = {"MaxResults": 100, **request}  # the most that AWS accepts; the default is 10
        paginator = self.client(service).get_paginator(operation)
        pages = iter(paginator.paginate(**request))
        while (page := self._send(service, lambda: next(pages, None), f"{service} {operation}")) is not None:
            yield from page.get(key, [])

    def _send(self, service: str, send: Callable[[], Any], what: str) -> Any:
        """Call `translated`; with `short_timeouts`, do not try a service again after a failed connection."""
        if (earlier := self._unreachable.get(service)) is not None:
            raise Unreached(earlier.message, earlier.hint)
        try:
            return self.translated(send, what)
        except Unreached as unreached:
            if self._short_timeouts and unreached.no_connection:
                self._unreachable[service] = unreached
            raise

    def objects(self, address: str, *, owned: bool = True) -> Iterator[dict[str, Any]]:
        """Yield the objects whose S3 addresses begin with an address.

        Args:
            address: The start of the addresses, with the bucket.
            owned: Whether the bucket must belong to the account.

        Raises:
            AwsError: As `call`.
        """
        bucket, prefix = bucket_and_key(address)
        owner = {"ExpectedBucketOwner": self.id} if owned else {}
        return self.pages("s3", "list_objects_v2", "Contents", Bucket=bucket, Prefix=prefix, **owner)

    def upload(self, path: Path, bucket: str, key: str, extra: Mapping[str, Any]) -> None:
        """Upload a file to S3, in parts if it is large.

        Raises:
            AwsError: As `call`.
        """
        arguments = {"ChecksumAlgorithm": "SHA256", **extra}
        self.translated(
            lambda: self.client("s3").upload_file(str(path), bucket, key, ExtraArgs=arguments), "s3 put_object"
        )

    def copy(self, source: str, bucket: str, key: str, extra: Mapping[str, Any]) -> None:
        """Copy an object within S3, in parts if it is large, without downloading it.

        Args:
            source: The source's S3 address.
            bucket: The target bucket.
            key: The target key.
            extra: Further arguments of copy_object.

        Raises:
            AwsError: As `call`.
        """
        copied = dict(zip(("Bucket", "Key"), bucket_and_key(source), strict=True))
        self.translated(lambda: self.client("s3").copy(copied, bucket, key, ExtraArgs=dict(extra)), "s3 copy_object")

    def read(self, address: str) -> bytes:
        """Return the content of the object at an S3 address.

        Raises:
            AwsError: As `call`.
        """
        bucket, key = bucket_and_key(address)
        client = self.client("s3")
        body: bytes = self.translated(lambda: client.get_object(Bucket=bucket, Key=key)["Body"].read(), "s3 get_object")
        return body

    def translated(self, send: Callable[[], Any], what: str) -> Any:
        """Return a function's result, and raise boto3's errors as AwsError.

        Args:
            send: The function, which calls boto3.
            what: The name of the call for the message.

        Raises:
            AwsError: As `call`.
        """
        try:
            return send()
        except (self._errors.ClientError, self._errors.BotoCoreError, self._upload_error, OSError) as error:
            # The error of an upload in parts says only that it failed.
            part = error.__context__ if isinstance(error, self._upload_error) else None
            raise self._translated(part if isinstance(part, self._errors.ClientError) else error, what) from error

    def _translated(self, error: Exception, what: str) -> AwsError:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:
            code = str(response["Error"].get("Code", ""))
            message = redacted(" ".join(str(response["Error"].get("Message") or "").split())) or code
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
            if status >= 500 and code not in THROTTLED:  # the call may have had its effect
                return Unreached(
                    f"AWS failed at {what}: {message:.300}", "try again; health.aws.amazon.com lists outages"
                )
            return Refused(f"AWS refused {what}: {message:.600}", self._remedy(code, message, what), code)
        name, text = type(error).__name__, redacted(" ".join(str(error).split()))
        if name in NO_CREDENTIALS:
            return Refused(
                "no AWS credentials were found", "run aws sso login or aws configure, or set AWS_PROFILE", name
            )
        if name in EXPIRED:
            return Refused("the AWS token has expired", "run aws sso login, or get new temporary credentials", name)
        if name in UNREACHED:
            unreached = Unreached(
                f"AWS did not answer {what}: {text:.300}",
                f"check the network and the way to AWS in {getattr(self, 'region', 'that region')} (a VPC endpoint)",
            )
            unreached.no_connection = True
            return unreached
        return AwsError(f"{what}: {text:.300}", None)

    def _remedy(self, code: str, message: str, what: str) -> str:
        """Return the hint for an AWS error code."""
        if code in EXPIRED:
            return "the AWS token has expired: run aws sso login, or get new temporary credentials"
        if code in UNKNOWN_KEY:
            return "AWS does not know these credentials: run aws sts get-caller-identity, or set AWS_PROFILE"
        if code == "ResourceLimitExceeded":
            return (
                "request a higher quota (Service Quotas, Amazon SageMaker, in this region), or use another --instance "
                "or --region"
            )
        if code == "AccountLimitExceededException":  # CodeBuild
            return f"request a higher quota 'Concurrently running builds for Linux/…', or {BUILD_ELSEWHERE}"
        if code in THROTTLED:
            return f"AWS is still busy after {ATTEMPTS} attempts: try again in a minute"
        if ASSUME_ROLE.search(message):
            compare = self.command("setup", check=True)
            return f"try again in a minute if the stack is new; `{compare}` compares its template"
        if NO_IMAGE.search(message):
            return f"the image is not in {self.region}: use --image with one that is, or another --region"
        if code in DENIED and SETUP_CALL.match(what):
            return f"`{self.command('iam', setup=True)}` prints the policy that the administrator needs"
        if code in DENIED:
            return f"`{self.command('iam')}` prints the policy that the caller needs"
        return f"AWS error code: {code}"
