"""One request that makes something, and its making: intent and outcome in the ledger."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from neuron_sum.errors import AwsError, MissingExtraError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import ASSUME_ROLE, Refused
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.aws.place import Request

ROLE_READY_S = 90.0
"""A new role is not known everywhere at once; AWS speaks of seconds, and people wait for up to a minute."""


@dataclass(frozen=True)
class Call:
    """One request that makes or sets something.

    Attributes:
        service: As boto3 calls it.
        operation: The client's method.
        request: Its arguments.
        kind: What it makes, for the ledger; None for what only sets something.
        name: AWS's name for that.
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
        """Refuses what botocore would not send: unknown or missing members, wrong types, lengths and ranges.

        The request is compared with AWS's description of the service; AWS is not asked.

        Raises:
            AwsError: With what does not hold.
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
            raise AwsError(f"{self.service} {operation} would be refused: {report.generate_report()}")

    def as_dict(self) -> dict[str, Any]:
        """For --dry-run."""
        return {"service": self.service, "operation": self.operation, "request": self.request}


@cache
def _service(name: str) -> Any:
    import botocore.session

    return botocore.session.get_session().get_service_model(name)


def create(
    account: Account, ledger: Ledger, call: Call, run: Run, on_send: Callable[[Call], None] = lambda call: None
) -> None:
    """Send a call, and record its intent and outcome in the ledger.

    A name that is taken belongs to this run: names are random, so an earlier attempt whose reply was lost created it.

    Args:
        account: The account to create the resource in.
        ledger: The account's ledger.
        call: The call to send.
        run: The run that owns the resource.
        on_send: Called with the call, as it is sent, just before each attempt.

    Raises:
        AwsError: If AWS refuses, which is recorded, or does not answer, which leaves the intent open.
    """
    call = call.timed()
    on_send(call)
    if call.kind is None:
        call.send(account)
        return
    try:
        with ledger.creating(call.kind, call.name, run.id):
            try:
                call.send(account)
            except Refused as refused:
                if not refused.taken:
                    raise
    except Refused:
        ledger.note("refused", call.kind, call.name, run.id)
        raise


def create_with_new_role(
    account: Account, ledger: Ledger, call: Call, run: Run, on_send: Callable[[Call], None] = lambda call: None
) -> None:
    """Like `create`, for a call with a role that was just created, which AWS may not be able to assume yet.

    Args:
        account: The account to create the resource in.
        ledger: The account's ledger.
        call: The call to send.
        run: The run that owns the resource.
        on_send: Called with the call, as it is sent, just before each attempt.

    Raises:
        AwsError: As `create`; a role that cannot be assumed only after ROLE_READY_S.
    """
    unknown_yet = retry_if_exception(
        lambda error: isinstance(error, Refused) and bool(ASSUME_ROLE.search(error.message))
    )
    Retrying(retry=unknown_yet, stop=stop_after_delay(ROLE_READY_S), wait=wait_fixed(5), reraise=True)(
        create, account, ledger, call, run, on_send
    )
