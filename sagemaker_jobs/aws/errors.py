"""Errors of calls to AWS: AWS refused, or AWS could not be reached."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from neuron_sum.console import command
from neuron_sum.errors import AwsError

EXPIRED = (
    *("ExpiredToken", "ExpiredTokenException", "RequestExpired"),
    *("UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError"),
)
UNKNOWN_KEY = (
    *("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"),
    *("SignatureDoesNotMatch", "AuthFailure", "IncompleteSignature"),
)
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden")
THROTTLED = (
    *("Throttling", "ThrottlingException", "ThrottledException"),
    *("TooManyRequestsException", "SlowDown", "RequestLimitExceeded"),
)
NOT_CREATED = "NotCreated"
"""Code of a resource that others created."""
BUILD_ELSEWHERE = "build and push the image with Docker on your own machine (docs/aws.md, The image)"
"""Remedy for an account that may run no build."""
MISSING = re.compile(r"404|NoSuch(Bucket|Key)|\w*NotFound(Exception)?|QueueDoesNotExist|.*NonExistentQueue")
TAKEN = ("ResourceInUse", "ConflictException")
INVALID = ("ValidationException", "ValidationError")
UNREACHED = (
    *("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError"),
    *("ConnectionError", "HTTPClientError", "ProxyConnectionError", "SSLError"),
)
ASSUME_ROLE = re.compile(
    r"could not assume role|unable to assume|cannot be assumed|AssumeRole|to assume the role", re.IGNORECASE
)
SETUP_CALL = re.compile(
    r"cloudformation (?!describe_stacks|get_template)|iam |budgets (create|delete)|ecr put_|"
    r"s3 (get|put)_(bucket|public_access)"
)
"""Calls that only `aws setup` makes."""
NO_IMAGE = re.compile(
    r"(image|repository)\b.*(does not exist|not found|cannot be found)|RepositoryNotFound|ImageNotFound", re.IGNORECASE
)
SHORTAGE = re.compile(
    r"CapacityError|Insufficient ?(Instance ?)?Capacity|Unable to provision requested (ML )?compute capacity",
    re.IGNORECASE,
)
"""AWS has no free instances: "CapacityError: Unable to provision requested ML compute capacity. Please retry using a
different ML instance type." is the reason of a failed job (AWS Batch's user guide, sm_job_stuck_in_runnable_capacity;
grand-challenge.org#2631), InsufficientInstanceCapacity that of a failed endpoint (deep-learning-containers#6411)."""
OF_THE_CODE = "AlgorithmError"
"""Start of the failure reason of a job whose container failed; the rest is its output."""
NO_RECORD = re.compile(r"not found|could not find|does not exist", re.IGNORECASE)
"""SageMaker and CloudFormation report a missing resource as an invalid request; only the text tells them apart."""
ALREADY_THERE = re.compile(r"already exist", re.IGNORECASE)
"""SageMaker reports a taken name of a model, endpoint or endpoint configuration in the same way."""

_denials: ContextVar[list[str] | None] = ContextVar("denials", default=None)


@contextmanager
def collect_denials() -> Iterator[list[str]]:
    """Collects the messages of denied calls in its block, also of those without which a command goes on."""
    denials: list[str] = []
    token = _denials.set(denials)
    try:
        yield denials
    finally:
        _denials.reset(token)


def note_denial(message: str) -> None:
    """Add the message of a denied call to those that `collect_denials` collects, if it does."""
    if (denials := _denials.get()) is not None:
        denials.append(message)


class Refused(AwsError):
    """AWS refused a call, which had no effect.

    Args:
        message: The message of AWS.
        hint: A command or change that may help.
        code: The AWS error code.
    """

    def __init__(self, message: str, hint: str | None, code: str) -> None:
        super().__init__(message, hint)
        self.code = code
        if code in DENIED:
            note_denial(message)

    @property
    def missing(self) -> bool:
        """Whether the requested resource does not exist."""
        return bool(MISSING.fullmatch(self.code)) or (self.code in INVALID and bool(NO_RECORD.search(self.message)))

    @property
    def taken(self) -> bool:
        """Whether a resource of that name already exists."""
        return self.code in TAKEN or (self.code == "ValidationException" and bool(ALREADY_THERE.search(self.message)))


class NoCapacity(AwsError):
    """AWS has no free instances of a type; nothing is left of the attempt to start them."""


def is_shortage(reason: str) -> bool:
    """Return whether the failure reason of a job or endpoint, or an error of AWS, is a lack of free instances."""
    return not reason.startswith(OF_THE_CODE) and SHORTAGE.search(reason) is not None


@contextmanager
def ignore_missing(*codes: str) -> Iterator[None]:
    """Ends its block without an error if AWS refuses a call because the resource does not exist.

    Args:
        codes: Further AWS error codes to ignore.

    Raises:
        Refused: If AWS refuses a call for another reason.
    """
    try:
        yield
    except Refused as refused:
        if not refused.missing and refused.code not in codes:
            raise


class Unreached(AwsError):
    """AWS did not answer, so the call may or may not have had an effect.

    Attributes:
        no_connection: Whether the connection failed; False if AWS failed, which may be temporary.
    """

    no_connection = False


def add_cleanup_hint(error: AwsError, run: str, region: str) -> None:
    """Add to an error's hint the command that deletes the resources created so far."""
    if error.hint is None or "aws down" not in error.hint:
        hint = f"{error.hint}; " if error.hint else ""
        error.hint = f"{hint}{command('aws', 'down', run, region=region)} deletes what was created"
