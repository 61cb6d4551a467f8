"""One account in one region: every call to AWS goes through here, and every error comes back as one line and a remedy.

boto3 and not sagemaker-core, whose typed resources would serve for create and wait: docs/aws.md has the reasons.
"""

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from neuron_sum.errors import AwsError, MissingExtraError
from sagemaker_jobs.aws.errors import (
    ASSUME_ROLE,
    DENIED,
    EXPIRED,
    NO_CREDENTIALS,
    NO_IMAGE,
    THROTTLED,
    UNKNOWN_KEY,
    UNREACHED,
    Refused,
    Unreached,
    ignore_missing,
)
from sagemaker_jobs.aws.names import AwsContext

ATTEMPTS = 8
"""At most, for one call; botocore waits between them, longer each time. AWS_MAX_ATTEMPTS sets another number."""

PRICING_REGION = "us-east-1"
CONVENIENCES = ("pricing", "service-quotas")
"""Services that a launch does without where there is no way to them, as in a VPC: they are not asked for long."""
ESSENTIAL = ("sts", "sagemaker", "s3")
"""Services that are waited for as long as ever, even in a hurry."""
BRIEF_ATTEMPTS = 4
"""At most, for a call in a hurry: enough where AWS is only busy, and a quarter of a minute where nobody answers."""


class Account:
    """An account in a region, with the credentials that boto3 finds.

    Args:
        region: The region; None for boto3's default (AWS_REGION, the profile).
        short_timeouts: Use short timeouts for all services but ESSENTIAL, and give up a service after one failed
            connection. For commands that call many services, and must delete what they can if one does not answer.

    Raises:
        MissingExtraError: If boto3 is not installed.
        AwsError: If there is no such region, or none at all.
    """

    def __init__(self, region: str | None = None, *, short_timeouts: bool = False) -> None:
        try:
            boto3, botocore = import_module("boto3"), import_module("botocore")
        except ImportError as error:
            raise MissingExtraError("boto3", "aws") from error
        self._errors = import_module("botocore.exceptions")
        self._upload_errors = (import_module("boto3.exceptions").Boto3Error, OSError)
        try:
            self._session = boto3.Session(region_name=region)
        except self._errors.BotoCoreError as error:
            raise self._translated(error, "session") from error
        self.region: str = self._session.region_name or ""
        regions = self._session.get_available_regions("sagemaker")
        if not self.region:
            raise AwsError("no AWS region", "--region us-east-1, or AWS_REGION")
        if self.region not in regions:
            close = difflib.get_close_matches(self.region, regions, n=1)
            raise AwsError(
                f"no region {self.region!r} with SageMaker",
                f"did you mean {close[0]}?" if close else f"regions: {', '.join(sorted(regions))}",
            )
        attempts = int(os.environ.get("AWS_MAX_ATTEMPTS", ATTEMPTS))
        self._settings = botocore.config.Config(
            retries={"mode": "standard", "total_max_attempts": attempts},
            connect_timeout=10,
            read_timeout=60,
        )
        self._hasty = botocore.config.Config(
            retries={"mode": "standard", "total_max_attempts": 2}, connect_timeout=5, read_timeout=10
        )
        self._brief = botocore.config.Config(
            retries={"mode": "standard", "total_max_attempts": min(attempts, BRIEF_ATTEMPTS)}, connect_timeout=3
        )
        self._clients: dict[str, Any] = {}
        self._short_timeouts = short_timeouts
        self._silent: dict[str, Unreached] = {}

    @cached_property
    def id(self) -> str:
        """Twelve digits.

        Raises:
            AwsError: If AWS does not accept the credentials.
        """
        return str(self.call("sts", "get_caller_identity")["Account"])

    @property
    def site(self) -> AwsContext:
        """What ARNs name.

        Raises:
            AwsError: If AWS does not accept the credentials.
        """
        return AwsContext(self.id, self.region, self.partition)

    @property
    def partition(self) -> str:
        """What an ARN has after its first colon."""
        return str(self._session.get_partition_for_region(self.region))

    def client(self, service: str) -> Any:
        """A service's boto3 client, made once.

        Args:
            service: As boto3 calls it.
        """
        if service not in self._clients:
            # The Price List is served from few regions for all.
            elsewhere = {"region_name": PRICING_REGION} if service == "pricing" else {}
            settings = self._settings.merge(self._hasty) if service in CONVENIENCES else self._settings
            if self._short_timeouts and service not in ESSENTIAL:
                settings = settings.merge(self._brief)
            try:
                self._clients[service] = self._session.client(service, config=settings, **elsewhere)
            except (self._errors.BotoCoreError, ValueError) as error:
                raise self._translated(error, service) from error
        return self._clients[service]

    def call(self, service: str, operation: str, /, **request: Any) -> dict[str, Any]:
        """One call, tried again where AWS is busy or cannot be reached.

        Args:
            service: As boto3 calls it.
            operation: The client's method.
            request: Its arguments.

        Raises:
            Refused: If AWS said no.
            Unreached: If no answer came.
            AwsError: If it could not be sent.
        """
        method = getattr(self.client(service), operation)
        return dict(self._asked(service, lambda: method(**request), f"{service} {operation}"))

    def find(self, service: str, operation: str, /, **request: Any) -> dict[str, Any] | None:
        """Like `call`, but return None if the resource does not exist.

        Raises:
            AwsError: As `call`.
        """
        with ignore_missing():
            return self.call(service, operation, **request)
        return None

    def pages(self, service: str, operation: str, key: str, /, **request: Any) -> Iterator[dict[str, Any]]:
        """Everything that a listing has, page after page.

        Args:
            service: As boto3 calls it.
            operation: The client's method.
            key: Where in a page the list is.
            request: Its arguments.

        Raises:
            AwsError: As `call`.
        """
        paginator = self.client(service).get_paginator(operation)
        pages = iter(paginator.paginate(**request))
        while (page := self._asked(service, lambda: next(pages, None), f"{service} {operation}")) is not None:
            yield from page.get(key, [])

    def _asked(self, service: str, made: Callable[[], Any], what: str) -> Any:
        """`translated`; in a hurry, a service to which there was no way is not asked, and waited for, again."""
        if (silent := self._silent.get(service)) is not None:
            raise Unreached(silent.message, silent.hint)
        try:
            return self.translated(made, what)
        except Unreached as unreached:
            if self._short_timeouts and unreached.no_way:
                self._silent[service] = unreached
            raise

    def upload(self, path: Path, bucket: str, key: str, extra: Mapping[str, Any]) -> None:
        """A file into S3, in parts where it is large.

        Raises:
            AwsError: As `call`.
        """
        try:
            self.client("s3").upload_file(str(path), bucket, key, ExtraArgs=dict(extra))
        except self._upload_errors as error:
            cause = error.__context__ if isinstance(error.__context__, self._errors.ClientError) else error
            raise self._translated(cause, "s3 put_object") from error
        except (self._errors.ClientError, self._errors.BotoCoreError) as error:
            raise self._translated(error, "s3 put_object") from error

    def copy(self, source: tuple[str, str], bucket: str, key: str, extra: Mapping[str, Any]) -> None:
        """An object inside S3, in parts where it is large; nothing of it comes here.

        Args:
            source: Bucket and key.
            bucket: Where to.
            key: Under which.
            extra: As copy_object takes it.

        Raises:
            AwsError: As `call`.
        """
        where = {"Bucket": source[0], "Key": source[1]}
        self.translated(lambda: self.client("s3").copy(where, bucket, key, ExtraArgs=dict(extra)), "s3 copy_object")

    def read(self, bucket: str, key: str) -> bytes:
        """An object of the account's in S3, whole.

        Raises:
            AwsError: As `call`.
        """
        request = {"Bucket": bucket, "Key": key}
        client = self.client("s3")
        body: bytes = self.translated(lambda: client.get_object(**request)["Body"].read(), "s3 get_object")
        return body

    def translated(self, made: Callable[[], Any], what: str) -> Any:
        """What a function gives, with boto3's errors as ours.

        Args:
            made: Calls boto3.
            what: The call, for the message.

        Raises:
            AwsError: As `call`.
        """
        try:
            return made()
        except (self._errors.ClientError, self._errors.BotoCoreError) as error:
            raise self._translated(error, what) from error

    def _translated(self, error: Exception, what: str) -> AwsError:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:
            code = str(response["Error"].get("Code", ""))
            message = " ".join(str(response["Error"].get("Message") or "").split()) or code
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
            if status >= 500 and code not in THROTTLED:  # it may have had its effect
                return Unreached(f"AWS failed at {what}: {message:.300}", "try again; health.aws.amazon.com")
            return Refused(f"AWS refused {what}: {message:.600}", self._remedy(code, message, what), code)
        name, text = type(error).__name__, " ".join(str(error).split())
        if name in NO_CREDENTIALS:
            return Refused("no AWS credentials were found", "aws sso login, aws configure, or AWS_PROFILE=NAME", name)
        if name in EXPIRED:
            return Refused("the AWS token has expired", "aws sso login, or fetch new temporary credentials", name)
        if name in UNREACHED:
            unreached = Unreached(
                f"AWS did not answer {what}: {text:.300}",
                f"is there a network, and a way to AWS in {getattr(self, 'region', 'that region')} (a VPC endpoint)?",
            )
            unreached.no_way = True
            return unreached
        return AwsError(f"{what}: {text:.300}", None)

    def _remedy(self, code: str, message: str, what: str) -> str:
        """What to do next, by AWS's word for what is wrong."""
        if code in EXPIRED:
            return "the AWS token has expired: aws sso login, or fetch new temporary credentials"
        if code in UNKNOWN_KEY:
            return "AWS does not know these credentials: aws sts get-caller-identity, AWS_PROFILE=NAME"
        if code == "ResourceLimitExceeded":
            return (
                "ask for a higher quota: Service Quotas, Amazon SageMaker, in this region; or another --instance, or "
                "--region"
            )
        if code in THROTTLED:
            return f"AWS is still busy after {ATTEMPTS} attempts: try again in a minute"
        if code in ("BucketAlreadyExists", "PermanentRedirect", "301"):
            return "the bucket is another account's, or in another region: --bucket with one of yours here"
        if ASSUME_ROLE.search(message):
            return (
                "the role must trust sagemaker.amazonaws.com: `neuron-sum aws iam` prints its policies; or leave out "
                "--role, and one is made"
            )
        if NO_IMAGE.search(message):
            return f"that image is not in {self.region}: --image with one that is, or another --region"
        if what.startswith("s3 ") and code in DENIED:
            return "the bucket is another account's, or `neuron-sum aws iam` has a policy that you lack; --bucket NAME"
        if code in DENIED:
            return "`neuron-sum aws iam` prints the policy that the caller needs"
        return f"AWS's word for it is {code}"
