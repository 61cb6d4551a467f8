"""Merging a receipt into the status page and the calibration: valid, damaged and imitated receipts."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from in_process import neuron_sum
from micro_models import ROOT
from receipt_fakes import on, plan, read, write_fakes

from compile.preflight import device_times
from compile.receipt import runner
from compile.receipt.cells import CELLS
from compile.receipt.merge import NOTHING_RAN, SOME_RAN

STATUS = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
FILES = ("docs/status.md", "compile/preflight/device_times.json")


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
    of_the_device = page.partition("## In an AWS account")[0]
    assert of_the_device.count(" | open |") == 1, "the cell that did not run, because the training failed"
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


def test_the_status_page_has_each_cell_once() -> None:
    rows = [line for line in STATUS.splitlines() if line.split("|")[1:2] and line.split("|")[1].strip() in CELLS]
    assert [tuple(part.strip() for part in row.split("|")[1:3]) for row in rows] == [
        (cell.name, cell.expected) for cell in CELLS.values()
    ]
