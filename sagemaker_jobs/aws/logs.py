"""CloudWatch logs of a job or build, known causes in them, and waiting through AWS failures."""

import io
from collections.abc import Callable, Iterator
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_fixed

from neuron_sum import console
from neuron_sum.console import duration
from neuron_sum.doctor.explain import explain
from neuron_sum.doctor.known_failures import Cause
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import THROTTLED, Refused, Unreached, ignore_missing

PATIENCE_S = 600.0
"""Seconds of retries without an answer, as when a laptop changes its network; the job continues meanwhile."""
Answer = TypeVar("Answer")
LOG_LINES = 2_000
"""Number of last lines that are searched for a known cause."""


class LostContact(AwsError):
    """AWS does not answer any more about a job, build or endpoint that keeps running."""


def read_with_retry(read: Callable[[], Answer], what: str, every_s: float) -> Answer:
    """Return the state of something that runs; without an answer, retry for PATIENCE_S.

    Args:
        read: Requests the state from AWS.
        what: The name of the job, build or endpoint.
        every_s: Seconds between two requests.

    Raises:
        LostContact: If AWS does not answer in that time, or refuses the request.
        AwsError: If nothing of that name exists.
    """

    def log_first_failure(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if state.attempt_number == 1 and isinstance(error, AwsError):
            console.note(f"{what} keeps running, but {error.message}; retrying for up to {duration(PATIENCE_S)}")

    retry = Retrying(
        retry=retry_if_exception(_is_temporary),
        stop=stop_after_delay(PATIENCE_S),
        wait=wait_fixed(every_s),
        before_sleep=log_first_failure,
        reraise=True,
    )
    try:
        return retry(read)
    except AwsError as error:
        if isinstance(error, Unreached) or (isinstance(error, Refused) and not error.missing):
            raise LostContact(error.message, error.hint) from error
        raise


def _is_temporary(error: BaseException) -> bool:
    """Return whether the same call may succeed a minute later."""
    return isinstance(error, Unreached) or (isinstance(error, Refused) and error.code in THROTTLED)


def known_cause(reason: str, lines: list[str]) -> Cause | None:
    """Return the last known cause in the failure reason and the lines of a log; a mere symptom only without a cause.

    Args:
        reason: The failure reason that AWS reports.
        lines: Lines of the log.
    """
    findings = explain(io.BytesIO("\n".join([reason, *lines]).encode(errors="replace"))).findings
    causes = [finding.cause for finding in findings]
    return next((cause for cause in reversed(causes) if not cause.symptom), causes[-1] if causes else None)


class Log:
    """Log in CloudWatch, each line of which is read once.

    Args:
        account: The account that contains the log.
        group: The log group.
        prefix: The prefix of the names of the streams.
    """

    def __init__(self, account: Account, group: str, prefix: str) -> None:
        self._account, self.group, self.prefix = account, group, prefix
        self._tokens: dict[str, str | None] = {}
        self._error: AwsError | None = None
        self.lines: list[str] = []

    def print_new(self) -> None:
        """Print the lines that arrived since the last call; a log that cannot be read is reported once.

        An unreadable log is not an error, because the job or endpoint that writes it continues without a reader.
        """
        if self._error is not None and not _is_temporary(self._error):
            return
        try:
            for line in self.new_lines():
                console.note(line)
        except AwsError as error:
            if self._error is None or not _is_temporary(error):
                console.note(f"continuing without the log of {self.prefix.rstrip('/')}: {error.message}")
            self._error = error
        else:
            self._error = None

    def new_lines(self) -> Iterator[str]:
        """Yield the lines that arrived since the last call; none until a stream exists.

        Raises:
            AwsError: If AWS cannot be reached, or refuses; the lines yielded so far are not lost.
        """
        with ignore_missing():
            streams = self._account.pages(
                "logs",
                "describe_log_streams",
                "logStreams",
                logGroupName=self.group,
                logStreamNamePrefix=self.prefix,
            )
            for stream in sorted(item["logStreamName"] for item in streams):
                yield from self._read(stream)

    def _read(self, stream: str) -> Iterator[str]:
        while True:
            token = self._tokens.get(stream)
            page = self._account.call(
                "logs",
                "get_log_events",
                logGroupName=self.group,
                logStreamName=stream,
                startFromHead=True,
                **({"nextToken": token} if token else {}),
            )
            lines = [event["message"].rstrip("\n") for event in page["events"]]
            self._tokens[stream] = page["nextForwardToken"]
            self.lines = (self.lines + lines)[-LOG_LINES:]
            yield from lines
            if page["nextForwardToken"] == token:  # CloudWatch repeats the token at the end
                return
