"""Instance types in order of preference: if AWS has no free instances of one type, the next one is tried.

The request fields of SageMaker for such lists (InstancePreferences of a training job, InstancePools of an endpoint) are
not used; docs/aws.md gives the reasons.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from neuron_sum import console
from neuron_sum.errors import AwsError, Interrupted
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import NoCapacity
from sagemaker_jobs.cost.plan import Item
from sagemaker_jobs.launch.start import Launch

Result = TypeVar("Result")
Outcome = TypeVar("Outcome")

PAUSE_S = 300.0
"""Seconds between two passes through the list: capacity returns within minutes, or after hours."""


@dataclass(frozen=True)
class Candidates(Generic[Result]):
    """The launches of a command on the instance types that it may use, in order of preference, and how they end.

    Attributes:
        kind: The kind of the resource that is followed.
        prepare: Returns the launch on an instance type, after a number of failed attempts; sends nothing.
        follow: Waits until the resource has ended, or is in service, with its item of the plan.
        instances: The instance types; one empty name for a launch without a choice.
        wait_hours: The hours during which the list is tried again; 0: it is tried once.
        expected_hours: The expected hours of a job; None if unknown.
        hours: The hours until a schedule ends the resource.
        detached: The further fields for --json and the text after the start with --detach; None if `follow` prints it.
        roll_back: Whether to roll back if AWS refuses a request; a failed endpoint is always rolled back.
        ends: Returns when AWS deletes what was started, for the message after Ctrl-C.
        started: Called after the launch was sent, if no other attempt can follow.
    """

    kind: str
    prepare: Callable[[str, int], Launch]
    follow: Callable[[Account, Launch, Item], Result]
    instances: tuple[str, ...] = ("",)
    wait_hours: float = 0.0
    expected_hours: float | None = None
    hours: float = 0.0
    detached: tuple[dict[str, Any], str] | None = None
    roll_back: bool = False
    ends: Callable[[Launch], str] | None = None
    started: Callable[[], object] = lambda: None

    @property
    def is_single(self) -> bool:
        """Whether there is only one attempt."""
        return len(self.instances) == 1 and not self.wait_hours

    def first_available(self, attempt: Callable[[Launch], Outcome], region: str) -> Outcome:
        """Return the result of the first attempt for which AWS has capacity.

        Args:
            attempt: Carries a launch out.
            region: The region, for errors.

        Raises:
            NoCapacity: If AWS has no capacity for any instance type until the end of the wait.
            Interrupted: After Ctrl-C between two passes, when nothing is running.
            AwsError: If an attempt fails for another reason.
        """
        deadline = time.monotonic() + self.wait_hours * 3600
        failures: list[NoCapacity] = []
        while True:
            for instance in self.instances:
                try:
                    return attempt(self.prepare(instance, len(failures)))
                except NoCapacity as failure:
                    failures.append(failure)
                    if len(self.instances) > 1 or self.wait_hours:
                        console.note(f"no capacity for {instance}: {failure.message}")
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._exhausted(failures, region)
            self._pause(min(PAUSE_S, left_s), left_s)

    def _pause(self, seconds: float, left_s: float) -> None:
        ends = datetime.now().astimezone() + timedelta(seconds=left_s)
        console.note(
            f"no capacity for {', '.join(self.instances)}: trying again in {console.duration(seconds)}, "
            f"until {ends:%Y-%m-%d %H:%M:%S %Z}; nothing is running or billed"
        )
        try:
            time.sleep(seconds)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped waiting for capacity of {', '.join(self.instances)}; nothing is running",
                "Run the command again to continue.",
            ) from None

    def _exhausted(self, failures: Sequence[NoCapacity], region: str) -> NoCapacity:
        last = failures[-1]
        hint = "Name further types with --instance A,B, wait with --capacity-wait-hours 6, or use another --region."
        if len(failures) == 1:
            return NoCapacity(last.message, hint)
        waited = f" in {console.duration(self.wait_hours * 3600)}" if self.wait_hours else ""
        return NoCapacity(
            f"no capacity for {', '.join(self.instances)} in {region} after {len(failures)} attempts{waited}; "
            f"the last: {last.message}",
            hint,
        )


def instance_types(text: str, *, detach: bool, wait_hours: float) -> tuple[str, ...]:
    """Return the instance types of --instance, in order of preference.

    Args:
        text: The value of the option: types separated by commas.
        detach: Whether the command returns after the start.
        wait_hours: The hours during which the list is tried again.

    Raises:
        AwsError: If a name is empty or repeated, or --detach is given: AWS reports most shortages after the start.
    """
    names = tuple(name.strip() for name in text.split(","))
    if "" in names or len(set(names)) < len(names):
        raise AwsError(
            f"--instance {text!r} contains an empty or repeated instance type",
            "Separate different types by commas, such as --instance ml.inf2.xlarge,ml.inf2.8xlarge.",
        )
    if detach and (len(names) > 1 or wait_hours):
        raise AwsError(
            "--detach cannot be combined with several instance types or --capacity-wait-hours: AWS reports most "
            "shortages of capacity after the start",
            "Omit --detach, or use one instance type.",
        )
    return names
