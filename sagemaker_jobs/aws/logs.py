"""CloudWatch logs of a job or build, known causes in them, and waiting through AWS failures."""

import io
from collections.abc import Callable, Iterator
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_fixed

from neuron_sum.console import duration
from neuron_sum.doctor.explain import explain
from neuron_sum.doctor.known_failures import Cause
from neuron_sum.errors import AwsError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import THROTTLED, Refused, Unreached, ignore_missing

PATIENCE_S = 600.0
"""So long a job is asked for again where no answer comes, as when a laptop changes its network: the job goes on."""
Seen = TypeVar("Seen")
LOG_KEPT = 2_000
"""Lines that are looked through for a known cause; a failure's is among the last."""


class LostContact(AwsError):
    """AWS cannot be asked any more about what was started, and goes on."""


def patiently(look: Callable[[], Seen], what: str, say: Callable[[str], None], every_s: float) -> Seen:
    """What a look at something that runs gives; where no answer comes, it looks again, for PATIENCE_S.

    Args:
        look: Asks AWS.
        what: Runs.
        say: Is told once that there was no answer.
        every_s: Between two looks.

    Raises:
        LostContact: If none came in that time, or AWS refuses to say.
        AwsError: If nothing of that name is there.
    """

    def told(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if state.attempt_number == 1 and isinstance(error, AwsError):
            say(f"{what} goes on, unseen: {error.message}; it is asked for again, for up to {duration(PATIENCE_S)}")

    again = Retrying(
        retry=retry_if_exception(_passing),
        stop=stop_after_delay(PATIENCE_S),
        wait=wait_fixed(every_s),
        before_sleep=told,
        reraise=True,
    )
    try:
        return again(look)
    except AwsError as error:
        if isinstance(error, Unreached) or (isinstance(error, Refused) and not error.missing):
            raise LostContact(error.message, error.hint) from error
        raise


def _passing(error: BaseException) -> bool:
    """Whether the same call may have an answer in a minute."""
    return isinstance(error, Unreached) or (isinstance(error, Refused) and error.code in THROTTLED)


def known_cause(reason: str, lines: list[str]) -> Cause | None:
    """The last known cause in AWS's reason and the lines of a log.

    Args:
        reason: What AWS says.
        lines: Of the log.
    """
    told = explain(io.BytesIO("\n".join([reason, *lines]).encode())).findings
    return told[-1].cause if told else None


class Log:
    """The lines of a log in CloudWatch, each told once.

    Args:
        account: Where.
        group: Its log group.
        begins: What the names of its streams begin with.
    """

    def __init__(self, account: Account, group: str, begins: str) -> None:
        self._account, self.group, self.begins = account, group, begins
        self._tokens: dict[str, str | None] = {}
        self._unread: AwsError | None = None
        self.lines: list[str] = []

    def tell(self, say: Callable[[str], None]) -> None:
        """Tells what has come since the last call; a log that cannot be read is said once, and is no error.

        It is only shown: what writes it goes on without a reader.

        Args:
            say: Is told each line.
        """
        if self._unread is not None and not _passing(self._unread):
            return
        try:
            for line in self.new_lines():
                say(line)
        except AwsError as error:
            if self._unread is None or not _passing(error):
                say(f"going on without the log of {self.begins.rstrip('/')}: {error.message}")
            self._unread = error
        else:
            self._unread = None

    def new_lines(self) -> Iterator[str]:
        """What has come since the last call; none while there is no stream yet.

        Raises:
            AwsError: If AWS cannot be asked; what came before is not lost.
        """
        with ignore_missing():
            streams = self._account.pages(
                "logs",
                "describe_log_streams",
                "logStreams",
                logGroupName=self.group,
                logStreamNamePrefix=self.begins,
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
            self.lines = (self.lines + lines)[-LOG_KEPT:]
            yield from lines
            if page["nextForwardToken"] == token:  # CloudWatch gives the same token at the end
                return
