"""Runs the steps of a receipt, each in a process, so that a crash or a hang costs one step; finished ones are kept."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compile.receipt.cells import STEPS, Kind, SizeName, Step
from compile.receipt.processes import MARK, end_step
from compile.receipt.schema import Receipt, Result, Setting, today
from neuron_sum import __version__, console, files
from neuron_sum.doctor import machine_check
from neuron_sum.errors import Interrupted, PlatformError, RunError
from neuron_sum.platform.machine import Machine, describe_machine, environment, package_version
from neuron_sum.platform.matrix import NEURON_INDEX, OPTIMUM, PLATFORMS, platform_row

STAND_INS = "NEURON_SUM_RECEIPT_STAND_INS"
"""A JSON file with `Stand` by kind, of the tests; a receipt that was made with it cannot be merged."""
RECEIPT, PAGE, SETTING, STEPS_FOLDER = "receipt.json", "receipt.md", "setting.json", "steps"
LOG_LINES = 40
"""Lines of a step's log that are kept if its process ends without recording an error."""


@dataclass(frozen=True)
class Stand:
    """How a kind of step is started.

    Attributes:
        python: The interpreter.
        env: Additional environment variables.
        train: The command that trains a recipe, in two processes as on a trn1.2xlarge.
    """

    python: str = sys.executable
    env: dict[str, str] = field(default_factory=dict)
    train: tuple[str, ...] = (sys.executable, "-m", "neuron_sum", "train", "--processes", "2")


def stand(kind: Kind) -> Stand:
    """How the steps of a kind are started, with the stand-ins of the tests if the environment names them."""
    if not (path := os.environ.get(STAND_INS)):
        return Stand()
    return Stand(**files.read_json(Path(path))[kind])


def describe_setting(size: SizeName) -> tuple[Setting, Machine]:
    """The conditions of a receipt on this machine.

    Raises:
        PlatformError: If there is no Neuron device, or a package is missing, and no stand-ins are used.
    """
    machine, stand_ins = describe_machine(machine_check.distributions()), STAND_INS in os.environ
    needed = (*PLATFORMS[0].vendor_pins, OPTIMUM)
    versions = {name: (package_version(name) or "").partition("+")[0] or None for name in needed}
    if not stand_ins:
        _check_machine(machine, versions)
    setting = Setting(
        neuron_sum=__version__,
        size=size,
        stand_ins=stand_ins,
        instance=machine.instance,
        neuron_devices=machine.neuron_devices,
        driver=machine.driver,
        sdk=platform_row(versions),
        packages=machine.packages,
        environment=environment(),
    )
    if not stand_ins and setting.unknown:
        console.warn(f"unknown: {', '.join(setting.unknown)}; `neuron-sum receipt --merge` will reject this receipt")
    return setting, machine


def _check_machine(machine: Machine, versions: dict[str, str | None]) -> None:
    row = PLATFORMS[0]
    image = row.registry_images[0]
    if machine.neuron_devices == 0:
        raise PlatformError(
            "this machine has no Neuron device (no /dev/neuron0), and a receipt is measured on one",
            f"run it on an inf2 or trn1 instance with the Neuron driver and the packages of SDK {row.neuron_sdk}, such "
            f"as in the image {image.repository}:{image.tag}",
        )
    if missing := [name for name, version in versions.items() if version is None]:
        valid = {**row.vendor_pins, OPTIMUM: row.optimum_neuron}
        pins = " ".join(f"{name}=={valid[name]}" for name in missing)
        raise PlatformError(
            f"this machine has a Neuron device, but these packages are missing: {', '.join(missing)}",
            f"run `pip install --extra-index-url={NEURON_INDEX} {pins}`",
        )


def command_line(folder: Path, size: SizeName, *, retry: bool) -> str:
    """The command that continues a receipt, or repeats its failed steps."""
    return console.command("receipt", output=folder, size=size, retry=retry)


def run_steps(folder: Path, size: SizeName, *, retry: bool) -> Receipt:
    """Runs all steps that have not ended, and writes the receipt after each.

    Args:
        folder: The folder of the receipt; an unfinished one continues.
        size: The size of the models.
        retry: Whether to repeat steps with a failed cell.

    Returns:
        The receipt.

    Raises:
        PlatformError: If this machine cannot make a receipt.
        RunError: If the folder has a receipt of another size, version or machine.
        Interrupted: If it is stopped; the steps that have ended are kept.
    """
    setting, machine = describe_setting(size)
    files.check_writable(folder, 0)
    (folder / STEPS_FOLDER).mkdir(parents=True, exist_ok=True)
    with files.lock(folder):
        _check_setting(folder, setting)
        waiting = [step for step in STEPS if not _is_kept(folder, step, retry=retry)]
        done = len(STEPS) - len(waiting)
        if done:
            console.note(f"{done} of {len(STEPS)} steps have ended before and are kept")
        with console.progress("receipt", len(STEPS), done) as bar:
            for step in waiting:
                console.note(f"step {step.name}, at most {console.duration(60 * step.minutes)}")
                try:
                    _run(folder, step, size)
                except KeyboardInterrupt as error:
                    hint = f"to continue, run `{command_line(folder, size, retry=retry)}`"
                    raise Interrupted(f"interrupted in the step {step.name}", hint) from error
                receipt = _write(folder, setting, machine)
                results = [result for result in receipt.cells if result.step == step.name]
                for result in results:
                    console.note(f"  {result.name}: {result.state}: {result.observed}")
                bar.advance(detail=step.name)
        return _write(folder, setting, machine)


def _check_setting(folder: Path, setting: Setting) -> None:
    path, content = folder / SETTING, setting.model_dump(mode="json")
    if not path.exists():
        files.write_json(path, content)
        return
    before, current = (
        _flat(files.read_json(path, RunError, f"remove {folder}, or use another --output")),
        _flat(content),
    )
    if changed := [name for name in {**before, **current} if before.get(name) != current.get(name)]:
        name = changed[0]
        raise RunError(
            f"{folder} has an unfinished or finished receipt of another {name}: {before.get(name)!r:.80}, now "
            f"{current.get(name)!r:.80}",
            "use another folder with --output",
        )


def _flat(setting: dict[str, Any]) -> dict[str, Any]:
    """The values by name; a package or a variable has a name such as environment.NEURON_CC_FLAGS."""
    parts = [(name, value if isinstance(value, dict) else {"": value}) for name, value in setting.items()]
    return {f"{name}.{key}".rstrip("."): value for name, values in parts for key, value in values.items()}


def _is_kept(folder: Path, step: Step, *, retry: bool) -> bool:
    """Whether a step has ended with all its cells, of which the runner adds the last ones, and is not repeated."""
    path = _results(folder, step)
    if not path.exists():
        return False
    content = files.read_json(path, RunError, f"remove {path}")
    cells = content.get("cells", [])
    ended = bool(content.get("ended")) and [cell["name"] for cell in cells] == [cell.name for cell in step.cells]
    return ended and not (retry and any(cell["state"] == "failed" for cell in cells))


def _results(folder: Path, step: Step) -> Path:
    return folder / STEPS_FOLDER / f"{step.name}.json"


def _run(folder: Path, step: Step, size: SizeName) -> None:
    """Runs a step to its end, and records the cells that its process did not."""
    chosen, log, begun = stand(step.kind), folder / STEPS_FOLDER / f"{step.name}.log", time.monotonic()
    _results(folder, step).unlink(missing_ok=True)
    reason = blocked = _blocked(folder, step)
    if reason is None:
        command = [chosen.python, "-m", "compile.receipt.steps", step.name, size, json.dumps(chosen.train)]
        command.append(str(os.getpid()))
        with log.open("w") as output, _process(command, folder, {**os.environ, **chosen.env}, output) as process:
            try:
                code: int | None = process.wait(60 * step.minutes)
            except subprocess.TimeoutExpired:
                code = None
        reason = _reason(code, step)
    _complete(folder, step, reason, log, time.monotonic() - begun, started=blocked is None)


def _blocked(folder: Path, step: Step) -> str | None:
    """The reason why a step cannot run."""
    if step.needs is None:
        return None
    needed = next(other for other in STEPS if other.name == step.needs)
    cells = files.read_json(_results(folder, needed))["cells"]
    if cells and cells[0]["state"] != "failed":
        return None
    return f"not run, because the step {step.needs} failed"


def _reason(code: int | None, step: Step) -> str:
    if code is None:
        return f"the process was ended after {console.duration(60 * step.minutes)}"
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}" + (
            ", nearly always because memory ran out" if code == -signal.SIGKILL else ""
        )
    return f"the process ended with exit code {code}"


@contextmanager
def _process(command: Sequence[str], folder: Path, env: dict[str, str], output: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process in a separate session, which is ended with all processes that it started at the end of the block."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**env, MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_step(process, mark)


def _complete(folder: Path, step: Step, reason: str, log: Path, seconds: float, *, started: bool) -> None:
    """Adds a failed cell for each that the step did not record."""
    path = _results(folder, step)
    content = files.read_json(path) if path.exists() else {}
    cells = list(content.get("cells", []))
    if content.get("ended") and len(cells) == len(step.cells):
        return
    failed = cells[-1]["name"] if content.get("ended") and cells else None  # the cell that the others need
    for cell in step.cells[len(cells) :]:
        ran = started and failed is None
        result = Result(
            name=cell.name,
            step=step.name,
            expected=cell.expected,
            source=cell.source,
            observed=reason if failed is None else f"not measured, because `{failed}` failed",
            state="failed",
            measured=ran,
            date=today(),
            seconds=round(seconds, 1) if ran else 0.0,
            trace=_tail(log) if ran else None,
        )
        failed = failed or (cell.name if started else None)
        cells.append(result.model_dump(mode="json"))
    files.write_json(path, {"ended": True, "cells": cells})


def _tail(log: Path) -> str | None:
    if not log.exists():
        return None
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])


def _write(folder: Path, setting: Setting, machine: Machine) -> Receipt:
    """Writes the receipt and its page, from the steps that have ended."""
    from compile.receipt.page import render

    ended = [files.read_json(path) for step in STEPS if (path := _results(folder, step)).exists()]
    cells = tuple(Result.model_validate(cell) for content in ended for cell in content["cells"])
    receipt = Receipt(
        setting=setting,
        date=max(cell.date for cell in cells),
        complete=len(ended) == len(STEPS) and all(content["ended"] for content in ended),
        cells=cells,
        **machine_check.describe(machine),
    )
    files.write_json(folder / RECEIPT, receipt.model_dump(mode="json"))
    files.write_text(folder / PAGE, render(receipt))
    return receipt
