"""`neuron-sum receipt`: steps that end, fail, crash or hang; continuing; and all steps on the stand-ins."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from in_process import neuron_sum
from micro_models import ROOT
from receipt_fakes import on, plan, read, write_fakes
from receipt_stand_ins import EXAMPLE, write_stand_ins

from compile.preflight import device_times
from compile.receipt import cells, runner
from compile.receipt.cells import CELLS, STEPS
from compile.receipt.page import STAND_INS
from compile.receipt.schema import today
from neuron_sum.platform.machine import Machine
from neuron_sum.platform.matrix import OPTIMUM, PLATFORMS

WHOLE = "NEURON_SUM_RECEIPT"


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps that do what FAKE_PLAN says; the folder of the receipt."""
    monkeypatch.setenv(runner.STAND_INS, write_fakes(tmp_path))
    return tmp_path / "receipt"


def states(folder: Path) -> dict[str, str]:
    return {cell["name"]: cell["state"] for cell in read(folder)["cells"]}


def started(folder: Path) -> list[str]:
    return (folder / "started.txt").read_text().split()


def printed(text: str, pattern: str) -> list[str]:
    """The arguments of a command that was printed."""
    [command] = re.findall(pattern, text)
    name, *arguments = shlex.split(command)
    assert name == "neuron-sum"
    return arguments


def assert_no_process_remains(folder: Path) -> None:
    """The steps that crashed or hung have ended, and so have their children in another session."""
    pids, deadline = [int(pid) for pid in (folder / "processes.txt").read_text().split()], time.monotonic() + 20
    assert pids
    while running := [
        process
        for process in psutil.process_iter(["status"])
        if process.pid in pids and process.info["status"] != "zombie"
    ]:
        assert time.monotonic() < deadline, running
        time.sleep(0.05)


def test_all_steps_run_once_and_are_kept(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = neuron_sum("receipt", "--output", str(fakes), "--size", "micro", "--json")
    assert first.exit_code == 0, first.output
    assert states(fakes) == dict.fromkeys(CELLS, "passed")
    content = read(fakes)
    assert json.loads(first.stdout)["cells"] == content["cells"]
    assert (content["complete"], content["setting"]["stand_ins"], content["setting"]["size"]) == (True, True, "micro")
    page = (fakes / runner.PAGE).read_text()
    assert STAND_INS in page
    assert f"\n{len(CELLS)} passed, 0 different, 0 failed\n" in page
    assert "| 8 | 512 | 128 | 4 | 9.5 | 2.0 | 1.5 |" in page
    again = neuron_sum("receipt", "--output", str(fakes), "--size", "micro")
    assert "8 of 8 steps have ended before and are kept" in again.stderr
    assert started(fakes) == [step.name for step in STEPS]
    training = fakes / "steps" / "training.json"
    interrupted = json.loads(training.read_text())
    interrupted["cells"].pop()
    training.write_text(json.dumps(interrupted))
    machine_step = fakes / "steps" / "machine.json"
    earlier = on(json.loads(machine_step.read_text()), "2026-01-02")
    machine_step.write_text(json.dumps(earlier))
    assert neuron_sum("receipt", "--output", str(fakes), "--size", "micro").exit_code == 0
    assert states(fakes) == dict.fromkeys(CELLS, "passed"), "repeated, because the runner had not added its last cell"
    assert started(fakes) == [*(step.name for step in STEPS), "training"]
    assert [cell["date"] for cell in read(fakes)["cells"]] == ["2026-01-02"] * 2 + [today()] * (len(CELLS) - 2)
    assert read(fakes)["date"] == today()
    other = neuron_sum("receipt", "--output", str(fakes))
    assert other.exit_code == 8
    assert "receipt of another size: 'micro', now 'full'" in other.stderr
    monkeypatch.setenv("NEURON_CC_FLAGS", "-O1")
    flags = neuron_sum("receipt", "--output", str(fakes), "--size", "micro")
    assert flags.exit_code == 8
    assert "receipt of another environment.NEURON_CC_FLAGS: None, now '-O1'" in flags.stderr


def test_a_step_that_fails_crashes_or_hangs_costs_its_own_cells(fakes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = [replace(step, minutes=8 / 60) if step.name == "training" else step for step in STEPS]
    monkeypatch.setattr(runner, "STEPS", tuple(short))
    plan(monkeypatch, two_layers="crash", base="raise", host="different", training="hang")
    made = neuron_sum("receipt", "--output", str(fakes), "--size", "micro")
    assert made.exit_code == 0, made.output
    assert_no_process_remains(fakes)
    found = {cell["name"]: cell for cell in read(fakes)["cells"]}
    assert [*found] == [*CELLS]
    for cell in found.values():
        assert cell["measured"] is not cell["observed"].startswith(("not measured, because", "not run, because")), cell
    assert found["two-layer T5 compiles"]["state"] == "passed", "recorded before the crash"
    assert found["inputs by name"]["observed"] == "the process was ended by SIGSEGV"
    assert "the last words" in found["inputs by name"]["trace"]
    assert found["two-layer T5 tokens"]["observed"] == "not measured, because `inputs by name` failed"
    assert found["FLAN-T5-base compiles"]["observed"] == "a package of another | version"
    assert "ValueError" in found["FLAN-T5-base compiles"]["trace"]
    assert found["weights are present"]["observed"] == "not measured, because `FLAN-T5-base compiles` failed"
    assert found["both cores"]["observed"] == "not run, because the step base failed"
    assert found["host time per step"]["state"] == "different"
    assert (found["training"]["state"], found["resume"]["state"]) == ("passed", "failed")
    assert found["resume"]["observed"] == "the process was ended after 8 s"
    assert found["Llama verify"]["state"] == "passed"
    page = (fakes / runner.PAGE).read_text()
    assert "a package of another \\| version" in page
    assert "ValueError: a package of another | version" in page
    plan(monkeypatch)
    assert neuron_sum("receipt", "--output", str(fakes), "--size", "micro").exit_code == 0
    assert states(fakes)["both cores"] == "failed", "kept"
    assert neuron_sum(*printed(made.stdout, "repeat failed steps: (.*)")).exit_code == 0
    assert states(fakes) == dict.fromkeys(CELLS, "passed") | {"host time per step": "different"}
    assert started(fakes) == [
        *("machine", "two_layers", "greedy_steps", "base", "host", "llama", "training"),
        *("two_layers", "base", "cores", "training"),
    ]


@pytest.mark.new_interpreter
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_receipt_continues(fakes: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals) -> None:
    plan(monkeypatch, base="hang")
    command = [sys.executable, "-m", "neuron_sum", "receipt", "--output", str(fakes), "--size", "micro", "--retry"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    path, deadline = fakes / "steps" / "base.json", time.monotonic() + 120
    while not (path.exists() and json.loads(path.read_text())["cells"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(end)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if end == signal.SIGINT else -end), errors
    assert_no_process_remains(fakes)
    assert read(fakes)["complete"] is False
    plan(monkeypatch)
    again = command[3:]
    if end == signal.SIGINT:
        again = printed(errors, "to continue, run `(.*)`")
        assert again == command[3:]
    assert neuron_sum(*again).exit_code == 0
    assert states(fakes) == dict.fromkeys(CELLS, "passed")
    steps = [step.name for step in STEPS]
    base = steps.index("base")
    assert started(fakes) == [*steps[: base + 1], *steps[base:]]


def machine(**changes: Any) -> Machine:
    here = runner.describe_machine([])
    return replace(here, **{"neuron_devices": 0, "driver": None, "instance": "inf2.8xlarge", **changes})


def test_without_a_device_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runner.STAND_INS, raising=False)
    output = tmp_path / "receipt"
    for here, message in (
        (machine(), "this machine has no Neuron device (no /dev/neuron0)"),
        (machine(neuron_devices=1), f"these packages are missing: {', '.join((*PLATFORMS[0].vendor_pins, OPTIMUM))}\n"),
    ):
        monkeypatch.setattr(runner, "describe_machine", lambda *_, here=here: here)
        refused = neuron_sum("receipt", "--output", str(output))
        assert refused.exit_code == 13
        assert message in refused.stderr
        assert "hint: run" in refused.stderr
        assert not output.exists()


def test_a_receipt_that_cannot_be_merged_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(runner.STAND_INS, raising=False)
    valid, here = {**PLATFORMS[0].vendor_pins, OPTIMUM: PLATFORMS[0].optimum_neuron}, machine(neuron_devices=1)
    monkeypatch.setattr(runner, "describe_machine", lambda *_: here)
    for versions, unknown in ((valid, "driver"), (valid | {OPTIMUM: "0.4.4"}, "driver, sdk")):
        monkeypatch.setattr(runner, "package_version", versions.get)
        runner.describe_setting("full")
        warning = f"unknown: {unknown}; `neuron-sum receipt --merge` will reject this receipt"
        assert warning in " ".join(capsys.readouterr().err.split())


def test_the_example_is_marked_and_has_every_cell() -> None:
    page = EXAMPLE.read_text()
    assert STAND_INS in page
    for cell in CELLS.values():
        assert page.count(f"\n| {cell.name} | ") == 1
        assert f" | {cell.expected} ({cell.source}) | " in page
    assert not [folder for folder in ("/tmp/", "/root/", "/home/", str(ROOT)) if folder in page]


@pytest.mark.slow
@pytest.mark.skipif(WHOLE not in os.environ, reason=f"takes more than four minutes of CPU: set {WHOLE}=1")
def test_a_receipt_on_the_stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in write_stand_ins(tmp_path / "stand-ins").items():
        monkeypatch.setenv(name, value)
    made = neuron_sum("receipt", "--output", str(tmp_path / "receipt"), "--size", "micro")
    assert made.exit_code == 0, made.output
    content = read(tmp_path / "receipt")
    found = {cell["name"]: cell for cell in content["cells"]}
    timing = {
        "driver",
        "packages",
        "buffers are not copied",
        "FLAN-T5-base latency",
        "both cores",
        "host time per step",
    }
    assert [*found] == [*CELLS]
    for name, cell in found.items():
        allowed = {"passed", "different"} if name in timing else {"passed"}
        if name in ("device memory", "buffers are not copied") and not cell["measured"]:
            allowed = {"failed"}
        assert cell["state"] in allowed, (name, cell["observed"], cell["trace"])
    graphs = found["inputs by name"]["data"]["graphs"]
    step = next(graph for graph in graphs if graph["graph"].startswith("graphs/step"))
    types = {tensor["name"]: tensor["type"] for tensor in step["inputs"]}
    assert {types[name] for name in types if name.startswith("state_")} == {"state"}
    assert set(step["aliases"].values()) == {name for name in types if name.startswith("state_")}
    assert types["tokens"] == "user input"
    assert found["weights are present"]["observed"].startswith("0 of ")
    for name in ("FLAN-T5-base verify", "Llama verify"):
        assert found[name]["data"]["verification"]["passed"] is True
    [row] = found["FLAN-T5-base latency"]["data"]["rows"]
    device_times.DeviceTime(instance="inf2.xlarge", sdk="2.26.1", date="2026-12-01", **row)
    assert cells.SIZES["micro"].examples == 4
