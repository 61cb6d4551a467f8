"""The file of a receipt, and the files of its steps."""

import datetime
from typing import Any, Literal

from pydantic import Field

from compile.receipt.cells import SizeName
from neuron_sum.recipes.schema import Section

FORMAT = 2
ATTRIBUTION = ("instance", "driver", "sdk")
"""The values of a setting without which results cannot be attributed to a machine."""
State = Literal["passed", "failed", "different"]


class Result(Section):
    """The result of one cell."""

    name: str
    step: str
    expected: str
    source: str
    observed: str
    state: State
    """failed: an error; different: a result other than the expected one."""
    measured: bool = True
    """False for a failed cell that did not run, because an earlier one failed; it says nothing about its question."""
    date: str
    """The day on which it ended, in UTC."""
    seconds: float
    data: dict[str, Any] = Field(default_factory=dict)
    """Measurements."""
    trace: str | None = None
    """The traceback, or the end of the log of a process that ended."""


class Setting(Section):
    """The conditions of a receipt, which do not change if it is continued."""

    format_version: Literal[2] = 2
    neuron_sum: str
    size: SizeName
    stand_ins: bool
    """Whether test code replaced the compiler and the device."""
    instance: str | None
    neuron_devices: int
    driver: str | None
    sdk: str | None
    """The row of the platform table with these packages."""
    packages: dict[str, str | None]
    environment: dict[str, str]
    """Variables that control the Neuron runtime and the compiler."""

    @property
    def unknown(self) -> list[str]:
        """The names of ATTRIBUTION that are unknown."""
        return [name for name in ATTRIBUTION if getattr(self, name) is None]


class Receipt(Section):
    """The content of receipt.json."""

    setting: Setting
    date: str
    """The date of the newest cell."""
    complete: bool
    """Whether every step has ended."""
    machine: dict[str, Any]
    platform: str
    """The nearest row of the platform table."""
    checks: tuple[dict[str, Any], ...]
    """The checks of `neuron-sum doctor`."""
    cells: tuple[Result, ...]


def today() -> str:
    """The date of a cell that ends now."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
