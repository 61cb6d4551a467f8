"""Request that creates or configures a resource, and its sending with intent and outcome in the ledger."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from neuron_sum.errors import AwsError, MissingExtraError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import ASSUME_ROLE, Refused
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.stack.stack import Request

READY_S = 90.0
"""Maximum seconds until AWS can use what was just created."""
RETRY_S = 5
NOT_VISIBLE = re.compile(r'Could not find (model|endpoint configuration) "')
"""SageMaker reads from eventually consistent tables, and recommends to retry (documentation of CreateEndpoint)."""
NOT_ASSUMED = ("FailedResourceAccessException",)
"""Error code of Application Auto Scaling while its service-linked role, which its first use creates, is new."""


@dataclass(frozen=True)
class Call:
    """Request that creates or configures a resource.

    Attributes:
        service: The service's name in boto3.
        operation: The client's method.
        request: The method's arguments.
        kind: The kind of resource that it creates, for the ledger; None if it only configures one.
        name: The resource's name in AWS.
        late: Returns the parameters that depend on the time of sending, which may be hours of uploads after planning.
    """

    service: str
    operation: str
    request: Request
    kind: str | None = None
    name: str = ""
    late: Callable[[], Request] | None = None

    def timed(self) -> "Call":
        """The call with its time-dependent parameters set for sending it now."""
        return self if self.late is None else replace(self, request={**self.request, **self.late()}, late=None)

    def send(self, account: Account) -> None:
        """Send the request as it is.

        Raises:
            AwsError: If AWS refuses, or cannot be reached.
        """
        account.call(self.service, self.operation, **self.request)

    def validate(self) -> None:
        """Reject a request that botocore would not send: unknown or missing members, wrong types, lengths and ranges.

        The request is compared with botocore's model of the service, without a call to AWS.

        Raises:
            AwsError: If the request is invalid, with all errors.
            MissingExtraError: If botocore is not installed.
        """
        try:
            from botocore import xform_name
            from botocore.validate import ParamValidator
        except ImportError as error:
            raise MissingExtraError("boto3", "aws") from error
        service = _service(self.service)
        operation = next((name for name in service.operation_names if xform_name(name) == self.operation), None)
        if operation is None:
            raise AwsError(f"{self.service} has no operation {self.operation}")
        report = ParamValidator().validate(self.request, service.operation_model(operation).input_shape)
        if report.has_errors():
            raise AwsError(f"{self.service} {operation}: invalid request: {report.generate_report()}")

    def as_dict(self) -> dict[str, Any]:
        """Return the call as --dry-run prints it."""
        return {"service": self.service, "operation": self.operation, "request": self.request}


@cache
def _service(name: str) -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model(name)


def create(
    account: Account,
    call: Call,
    run: Run,
    on_send: Callable[[Call], None] = lambda call: None,
) -> None:
    """Send a call, and record its intent and outcome in the ledger; repeats it while AWS lacks what was just created.

    Args:
        account: The account to create the resource in.
        call: The call to send.
        run: The run that owns the resource.
        on_send: Called with the call, as it is sent, just before each attempt.

    Raises:
        AwsError: If AWS refuses, which is recorded, or does not answer, which leaves the intent open.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

    entries = account.ledger.entries() if call.kind is not None else []
    # AWS may still have the name of what was deleted, because it deletes asynchronously.
    deleted = any(entry.event == "gone" and (entry.kind, entry.name) == (call.kind, call.name) for entry in entries)

    def is_early(error: BaseException) -> bool:
        if not isinstance(error, Refused):
            return False
        unassumed = error.code in NOT_ASSUMED or bool(ASSUME_ROLE.search(error.message))
        scaling = call.service == "application-autoscaling"
        return bool(NOT_VISIBLE.search(error.message)) or (scaling and unassumed) or (deleted and error.taken)

    retry = Retrying(
        retry=retry_if_exception(is_early), stop=stop_after_delay(READY_S), wait=wait_fixed(RETRY_S), reraise=True
    )
    try:
        retry(_create_once, account, call.timed, run, on_send)
    except Refused as refused:
        if call.kind is None or not refused.taken:
            raise
        # It exists: the reply to an attempt was lost.
        account.ledger.note("made", call.kind, call.name, run.id)


def _create_once(account: Account, timed: Callable[[], Call], run: Run, on_send: Callable[[Call], None]) -> None:
    call = timed()
    on_send(call)
    if call.kind is None:
        call.send(account)
        return
    account.ledger.note("intent", call.kind, call.name, run.id)
    try:
        call.send(account)
    except Refused as refused:
        if not refused.taken:
            account.ledger.note("refused", call.kind, call.name, run.id)
        raise
    account.ledger.note("made", call.kind, call.name, run.id)
