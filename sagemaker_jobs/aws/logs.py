"""Follow what runs in AWS until it ends: its state, its log in CloudWatch, known causes, and AWS failures meanwhile."""

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_fixed

from neuron_sum import console
from neuron_sum.console import duration
from neuron_sum.doctor.explain import explain
from neuron_sum.doctor.known_failures import Cause
from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import THROTTLED, Refused, Unreached, ignore_missing

PATIENCE_S = 600.0
"""Seconds of retries without an answer, as when a laptop changes its network; the job continues meanwhile."""
Answer = TypeVar("Answer")
LOG_LINES = 2_000
"""Number of last lines that are searched for a known cause."""


class LostContact(AwsError):
    """AWS does not answer any more about a job, build or endpoint that keeps running."""


def read_with_retry(account: Account, read: Callable[[], Answer], what: str) -> Answer:
    """Return the state of something that runs; without an answer, retry for PATIENCE_S.

    Args:
        account: The account that it runs in.
        read: Requests the state from AWS.
        what: The name of the job, build or endpoint.

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
        wait=wait_fixed(account.every_s),
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
        prefix: The prefix of the names of the streams; empty: all streams of the group.
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
                name = self.prefix.rstrip("/") or self.group
                console.note(f"continuing without the log of {name}: {error.message}")
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
                **({"logStreamNamePrefix": self.prefix} if self.prefix else {}),
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


@dataclass(frozen=True)
class State:
    """State of a job, a build or an endpoint.

    Attributes:
        text: The state, each change of which is printed.
        ended: Whether the state is final.
        seconds: Seconds from the start until the end, or until now.
        log: The log group and the prefix of its streams; None until it has a log.
        instances: The number of billed instances.
    """

    text: str
    ended: bool
    seconds: float
    log: tuple[str, str] | None
    instances: int = 1


def watch(
    account: Account, name: str, read: Callable[[], tuple[Answer, State]], *, price: Price | None = None
) -> tuple[Answer, State, Log | None]:
    """Wait until something has ended; print each change of its state, its cost so far and the lines of its log.

    Args:
        account: The account that it runs in.
        name: Its name in messages.
        read: Requests its description from AWS, and returns it with its state.
        price: The price of its instances; None prints no cost.

    Returns:
        The last description and state, and the log.

    Raises:
        LostContact: If AWS cannot be reached any more while it runs.
        AwsError: If it does not exist.
    """
    log: Log | None = None
    before = ""
    while True:
        found, state = read_with_retry(account, read, name)
        if state.text != before:
            before = state.text
            cost = f", at most ${price.cost(state.seconds / 3600, state.instances):.2f} by now" if price else ""
            console.note(f"{name}: {state.text} after {duration(state.seconds)}{cost}")
        if log is None and state.log is not None:
            log = Log(account, *state.log)
        if log is not None:
            log.print_new()
        if state.ended:
            return found, state, log
        time.sleep(account.every_s)


def explained(message: str, reason: str, log: Log | None, otherwise: str) -> tuple[str, str]:
    """Return the message and the hint of a failure, with the known cause in its reason and its log.

    Args:
        message: The message without a cause.
        reason: The failure reason that AWS reports.
        log: The log; None without one.
        otherwise: The hint if the cause is not known.
    """
    cause = known_cause(reason, log.lines if log is not None else [])
    return (message, otherwise) if cause is None else (f"{message}; {cause.name}: {cause.cause}", cause.remedy)
