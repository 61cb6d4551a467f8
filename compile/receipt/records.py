"""The cells of one step while its process runs; each is written when it ends, so that a crash loses none."""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compile.receipt.cells import Step
from compile.receipt.schema import Result, State, today
from neuron_sum import files


class Stopped(Exception):
    """A cell failed that the later cells of its step need; the failure is recorded."""


@dataclass
class Finding:
    """What a cell observes.

    Attributes:
        observed: The observation in words.
        state: The state, unless an exception is raised.
        measured: False if nothing was measured.
        data: Measurements.
    """

    observed: str = ""
    state: State = "passed"
    measured: bool = True
    data: dict[str, Any] = field(default_factory=dict)

    def expect(self, holds: bool, observed: str) -> None:
        """Records an observation, which is `different` if the expectation does not hold."""
        self.observed, self.state = observed, "passed" if holds else "different"

    def skip(self, reason: str) -> None:
        """Records that nothing was measured."""
        self.observed, self.state, self.measured = f"not measured, because {reason}", "failed", False


class Records:
    """The results of a step.

    Args:
        step: The step.
        path: The file to write.
    """

    def __init__(self, step: Step, path: Path) -> None:
        self._step, self._path = step, path
        self.results: list[Result] = []
        self._write(ended=False)

    @contextmanager
    def cell(self, name: str, *, needed: bool = False) -> Iterator[Finding]:
        """Measures and records one cell; an exception fails it and does not leave the block.

        Args:
            name: The name of the cell.
            needed: Whether later cells need it; then a failure ends the step.

        Raises:
            Stopped: If the block fails and is needed.
        """
        described = next(cell for cell in self._step.cells if cell.name == name)
        finding, trace, started = Finding(), None, time.monotonic()
        try:
            yield finding
        except Exception as error:  # noqa: BLE001  an unexpected package version raises anything
            finding.state, finding.observed = "failed", describe(error)
            trace = traceback.format_exc()
        self.results.append(
            Result(
                name=name,
                step=self._step.name,
                expected=described.expected,
                source=described.source,
                observed=finding.observed,
                state=finding.state,
                measured=finding.measured,
                date=today(),
                seconds=round(time.monotonic() - started, 1),
                data=finding.data,
                trace=trace,
            )
        )
        self._write(ended=False)
        if trace is not None and needed:
            raise Stopped(name)

    def end(self) -> None:
        """Marks the step as ended."""
        self._write(ended=True)

    def _write(self, *, ended: bool) -> None:
        cells = [result.model_dump(mode="json") for result in self.results]
        files.write_json(self._path, {"ended": ended, "cells": cells})


def describe(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join((str(error) or type(error).__name__).split())[:500]
