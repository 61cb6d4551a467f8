"""Simulated time: sleeping takes none, and EventBridge Scheduler's schedules are executed at their times meanwhile."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from datetime import tzinfo as TimeZone
from typing import Any

import pytest
from aws_endpoints import tick
from aws_script import ACCOUNT, REGION
from moto.scheduler.models import scheduler_backends

MODULES = (
    "sagemaker_jobs.aws.ledger",
    "sagemaker_jobs.commands.receipt_actions",
    "sagemaker_jobs.launch.schedules",
    "sagemaker_jobs.receipt.record",
)
"""The modules that read the time; the times of creation and of ends that AWS reports are real."""


class Clock:
    """The time of this process and of the scheduler; it starts at the present, and `sleep` advances it.

    Args:
        monkeypatch: The fixture.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed, self.ended, clock = timedelta(), list[str](), self

        class Shifted(datetime):
            @classmethod
            def now(cls, tz: TimeZone | None = None) -> "Shifted":
                real = super().now(tz)
                return real + clock.passed

        for module in MODULES:
            monkeypatch.setattr(f"{module}.datetime", Shifted)
        monkeypatch.setattr("time.sleep", self.sleep)

    @property
    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self.passed

    def sleep(self, seconds: float) -> None:
        """Advances the time, and executes the schedules of the time that passes."""
        before = self.now
        self.passed += timedelta(seconds=seconds)
        for due in sorted(set(_due(before, self.now))):
            self.ended += tick(due)


def _due(after: datetime, until: datetime) -> Iterator[datetime]:
    """The times of calls of all schedules in an interval."""
    group: Any = scheduler_backends[ACCOUNT][REGION].schedule_groups["default"]
    for schedule in list(group.schedules.values()):
        time = datetime.fromtimestamp(schedule.start_date, timezone.utc)
        [minutes] = re.fullmatch(r"rate\((\d+) minutes\)", schedule.schedule_expression).groups()
        while time <= until:
            if time > after:
                yield time
            time += timedelta(minutes=int(minutes))
