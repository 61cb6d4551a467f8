"""`neuron-sum receipt`: steps that end, fail, crash or hang; continuing; merging; and all steps on the stand-ins."""

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from in_process import neuron_sum
from micro_models import ROOT
from receipt_stand_ins import EXAMPLE, write_stand_ins

from compile.preflight import device_times
from compile.receipt import cells, runner
from compile.receipt.cells import CELLS, STEPS
from compile.receipt.merge import NOTHING_RAN, SOME_RAN
from compile.receipt.page import STAND_INS
from compile.receipt.schema import today
from neuron_sum.platform.machine import Machine
from neuron_sum.platform.matrix import OPTIMUM, PLATFORMS

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
STATUS = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
FILES = ("docs/status.md", "compile/preflight/device_times.json")
WHOLE = "NEURON_SUM_RECEIPT"
FAKE = f"""#!{sys.executable}
import json, os, signal, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from compile.receipt import steps
name = sys.argv[3]
with open("started.txt", "a") as log:
    log.write(name + "\\n")
plan = json.loads(os.environ.get("FAKE_PLAN", "{{}}")).get(name)

def fake(context):
    if plan in ("crash", "hang"):
        rank = subprocess.Popen(["sleep", "300"], start_new_session=True)
        with open("processes.txt", "a") as log:
            log.write(f"{{os.getpid()}} {{rank.pid}} ")
    cells = next(step.cells for step in steps.STEPS if step.name == name)
    for number, cell in enumerate(cells):
        with context.records.cell(cell.name, needed=number == 0) as finding:
            finding.expect(plan != "different", "as planned")
            if name == "base" and cell.name.endswith("latency"):
                shape = dict(batch=8, source_len=512, target_len=128, num_beams=4)
                finding.data = {{"rows": [shape | dict(encode_ms=9.5, step_ms=2.0, floor_ms=1.5)]}}
            if plan == "raise":
                raise ValueError("a package of another | version")
        if plan == "crash" and number == 0:
            print("the last words", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if plan == "hang" and number == 0:
            time.sleep(100)

steps.FUNCTIONS[name] = fake
steps.main(*sys.argv[3:])
"""
"""A step without torch: its cells pass, or what FAKE_PLAN says."""


def write_fakes(folder: Path) -> str:
    """Writes fake steps; returns the value of STAND_INS."""
    python, stand_ins = folder / "python", folder / "stand-ins.json"
    python.write_text(FAKE)
    python.chmod(0o755)
    stand_ins.write_text(json.dumps({kind: {"python": str(python)} for kind in ("t5", "optimum", "training")}))
    return str(stand_ins)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps that do what FAKE_PLAN says; the folder of the receipt."""
    monkeypatch.setenv(runner.STAND_INS, write_fakes(tmp_path))
    return tmp_path / "receipt"


def plan(monkeypatch: pytest.MonkeyPatch, **steps: str) -> None:
    monkeypatch.setenv("FAKE_PLAN", json.dumps(steps))


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / runner.RECEIPT).read_text())
    return content


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


# The steps.


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
    assert "7 of 7 steps have ended before and are kept" in again.stderr
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
        *("machine", "two_layers", "base", "host", "llama", "training"),
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
    assert started(fakes) == [*steps[:3], *steps[2:]]


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


# Merging.


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The two files of a checkout that a merge changes, before any merge."""
    status, times = (tmp_path / "checkout" / path for path in FILES)
    status.parent.mkdir(parents=True)
    times.parent.mkdir(parents=True)
    page = STATUS.replace(SOME_RAN, NOTHING_RAN)
    assert NOTHING_RAN in page
    for name in CELLS:
        page = re.sub(rf"^(\| {re.escape(name)} \|.*\|)[^|]*\|$", r"\1 open |", page, flags=re.MULTILINE)
    status.write_text(page)
    times.write_text('{"times": []}')
    return tmp_path / "checkout"


@pytest.fixture(scope="module")
def imitated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A receipt of full size, of fake steps."""
    folder = tmp_path_factory.mktemp("imitated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(runner.STAND_INS, write_fakes(folder))
        plan(patch, host="different", training="raise")
        assert neuron_sum("receipt", "--output", str(folder / "receipt")).exit_code == 0
    return read(folder / "receipt")


@pytest.fixture
def real(imitated: dict[str, Any], tmp_path: Path) -> Path:
    """A receipt edited as if it was made on an instance."""
    content = copy.deepcopy(imitated)
    content["setting"] |= {"stand_ins": False, "neuron_devices": 1, "instance": "inf2.8xlarge", "driver": "2.24.7.0"}
    content["setting"]["sdk"] = "neuron-sdk-2.26.1"
    on(content, "2026-12-01")
    path = tmp_path / "real.json"
    path.write_text(json.dumps(content))
    return path


def on(content: dict[str, Any], date: str) -> dict[str, Any]:
    """A receipt whose cells have another date."""
    for cell in content["cells"]:
        cell["date"] = date
    return content


def merge(file: Path, checkout: Path) -> Any:
    return neuron_sum("receipt", "--merge", str(file), "--checkout", str(checkout), "--json")


def test_a_receipt_settles_cells_and_calibrates(real: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = merge(real, checkout)
    assert merged.exit_code == 0, merged.output
    ran = [name for name in CELLS if name != "resume"]
    assert json.loads(merged.stdout) == {
        "changed": ran,
        "unchanged": [],
        "not_measured": ["resume"],
        "step_times": 1,
    }
    page = (checkout / "docs" / "status.md").read_text()
    where = "on 2026-12-01, inf2.8xlarge, neuron-sdk-2.26.1 |\n"
    assert f"| both cores | {CELLS['both cores'].expected} | passed {where}" in page
    assert f"| host time per step | {CELLS['host time per step'].expected} | different {where}" in page
    assert f"| training | {CELLS['training'].expected} | failed {where}" in page
    assert page.count(" | open |") == 1, "the cell that did not run, because the training failed"
    assert "Nothing has run on a Neuron device" not in page
    times = checkout / "compile" / "preflight" / "device_times.json"
    monkeypatch.setattr(device_times, "FILE", times)
    device_times.device_times.cache_clear()
    assert device_times.measured_ratio() == 0.75
    device_times.device_times.cache_clear()
    before = (page, times.read_text())
    again = json.loads(merge(real, checkout).stdout)
    assert (again["changed"], again["step_times"]) == ([], 0)
    other = on(json.loads(real.read_text()), "2026-11-30")
    other["cells"][LATENCY]["data"]["rows"][0]["step_ms"] = 3.0
    other["cells"][0]["state"] = "different"
    real.write_text(json.dumps(other))
    older = json.loads(merge(real, checkout).stdout)
    assert (older["unchanged"], older["step_times"]) == (ran, 0)
    assert ((checkout / "docs" / "status.md").read_text(), times.read_text()) == before, "the newer result stays"
    other["cells"][LATENCY]["date"] = "2026-12-02"
    real.write_text(json.dumps(other))
    newer = json.loads(merge(real, checkout).stdout)
    assert (newer["changed"], newer["step_times"]) == (["FLAN-T5-base latency"], 1)
    [row] = json.loads(times.read_text())["times"]
    assert (row["step_ms"], row["date"]) == (3.0, "2026-12-02")


@pytest.mark.parametrize("state", ["different", "failed"])
def test_times_below_the_floor_do_not_calibrate(
    real: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    content = json.loads(real.read_text())
    content["cells"][LATENCY]["state"] = state
    content["cells"][LATENCY]["data"]["rows"][0]["step_ms"] = 0.5
    real.write_text(json.dumps(content))
    assert json.loads(merge(real, checkout).stdout)["step_times"] == 0
    times = checkout / "compile" / "preflight" / "device_times.json"
    assert json.loads(times.read_text()) == {"times": []}
    row = content["cells"][LATENCY]["data"]["rows"][0] | {"instance": "inf2.xlarge", "sdk": "2.26.1", "date": ""}
    times.write_text(json.dumps({"times": [row]}))
    monkeypatch.setattr(device_times, "FILE", times)
    device_times.device_times.cache_clear()
    assert device_times.measured_ratio() == 1
    device_times.device_times.cache_clear()


def test_a_failure_on_another_instance_does_not_replace_a_passed_cell(real: Path, checkout: Path) -> None:
    assert merge(real, checkout).exit_code == 0
    status = checkout / "docs" / "status.md"
    before = status.read_text()
    content = on(json.loads(real.read_text()), "2026-12-03")
    for cell in content["cells"]:
        cell |= {"state": "failed", "data": {}}
    content["setting"]["instance"] = "inf2.xlarge"
    real.write_text(json.dumps(content))
    assert json.loads(merge(real, checkout).stdout)["changed"] == ["training"], "it had failed before"
    after = status.read_text()
    assert after.count("passed on 2026-12-01, inf2.8xlarge") == before.count("passed on 2026-12-01, inf2.8xlarge") > 9
    content["setting"]["instance"] = "inf2.8xlarge"
    real.write_text(json.dumps(content))
    assert json.loads(merge(real, checkout).stdout)["unchanged"] == []
    failed = status.read_text()
    assert " passed on " not in failed
    for cell in content["cells"]:
        cell |= {"state": "different", "date": "2026-12-01"}
    content["setting"]["instance"] = "inf2.24xlarge"
    real.write_text(json.dumps(content))
    assert merge(real, checkout).exit_code == 0
    assert " failed on " not in status.read_text(), "an older result of another instance, merged later"


def test_a_receipt_of_stand_ins_is_not_merged(imitated: dict[str, Any], checkout: Path, tmp_path: Path) -> None:
    (tmp_path / runner.RECEIPT).write_text(json.dumps(imitated))
    refused = merge(tmp_path / runner.RECEIPT, checkout)
    assert refused.exit_code == 4
    assert "was made with stand-ins, not on a Neuron device: nothing was merged" in refused.stderr


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        target: Any = content
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


LATENCY = [*CELLS].index("FLAN-T5-base latency")
DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (_set("setting", "format_version", value=1), "format_version is 1; this version of neuron-sum reads 2"),
    "boolean format": (_set("setting", "format_version", value=True), "format_version is True"),
    "no format": (lambda content: content["setting"].pop("format_version"), "is not a receipt"),
    "no setting": (_set("setting", value=[]), "is not a receipt"),
    "micro": (_set("setting", "size", value="micro"), "--size micro: only full receipts are merged"),
    "no device": (_set("setting", "neuron_devices", value=0), "neuron_devices is 0"),
    "no driver": (_set("setting", "driver", value=None), "unknown values in setting: driver"),
    "no SDK": (_set("setting", "sdk", value=None), "unknown values in setting: sdk"),
    "missing key": (lambda content: content.pop("machine"), "is damaged: machine: Field required"),
    "state": (_set("cells", 0, "state", value="fine"), "is damaged: cells.0.state"),
    "seconds": (_set("cells", 0, "seconds", value="long"), "is damaged: cells.0.seconds"),
    "unknown cell": (_set("cells", 0, "name", value="x | y"), "unknown cell 'x | y'"),
    "expectation": (_set("cells", 0, "expected", value="any driver"), "'driver' expects 'any driver', here 'in the"),
    "cell twice": (lambda content: content["cells"].append(content["cells"][0]), "has a cell twice: driver"),
    "date": (_set("cells", 0, "date", value="soon | later"), "the date of 'driver' is 'soon | later'"),
    "no date": (lambda content: content["cells"][0].pop("date"), "is damaged: cells.0.date: Field required"),
    "instance": (_set("setting", "instance", value="a | b"), "setting.instance is 'a | b'"),
    "rows": (_set("cells", LATENCY, "data", "rows", value=[{"batch": 1}]), "is damaged: a row of"),
    "rows of another type": (_set("cells", LATENCY, "data", "rows", value=3), "is damaged: a row of"),
    "time": (_set("cells", LATENCY, "data", "rows", 0, "step_ms", value=0.0), "a time that is not positive"),
    "faster than the floor": (_set("cells", LATENCY, "data", "rows", 0, "step_ms", value=1.0), "faster than its floor"),
}


def test_damaged_receipts_change_nothing(real: Path, checkout: Path, tmp_path: Path) -> None:
    before = [(checkout / path).read_text() for path in FILES]
    for name, (change, message) in DAMAGED.items():
        content = json.loads(real.read_text())
        change(content)
        damaged = tmp_path / "damaged.json"
        damaged.write_text(json.dumps(content))
        refused = merge(damaged, checkout)
        assert refused.exit_code == 4, (name, refused.output)
        assert message in json.loads(refused.stderr)["error"]["message"], name
    for text in ("", "{", "[]", '{"setting": NaN}'):
        damaged.write_text(text)
        assert merge(damaged, checkout).exit_code == 4, text
    assert merge(tmp_path / "none.json", checkout).exit_code == 4
    nowhere = merge(real, tmp_path)
    assert nowhere.exit_code == 6
    assert "does not exist" in nowhere.stderr
    assert [(checkout / path).read_text() for path in FILES] == before


# The documentation.


def test_the_status_page_has_each_cell_once() -> None:
    rows = [line for line in STATUS.splitlines() if line.split("|")[1:2] and line.split("|")[1].strip() in CELLS]
    assert [tuple(part.strip() for part in row.split("|")[1:3]) for row in rows] == [
        (cell.name, cell.expected) for cell in CELLS.values()
    ]


def test_the_example_is_marked_and_has_every_cell() -> None:
    page = EXAMPLE.read_text()
    assert STAND_INS in page
    for cell in CELLS.values():
        assert page.count(f"\n| {cell.name} | ") == 1
        assert f" | {cell.expected} ({cell.source}) | " in page
    assert not [folder for folder in ("/tmp/", "/root/", "/home/", str(ROOT)) if folder in page]


# All steps on the stand-ins.


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
        allowed = {"passed", "different"} if name in timing | {"device memory"} else {"passed"}
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
