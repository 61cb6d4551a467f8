"""Fake steps of a receipt, which need neither torch nor a device."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from micro_models import ROOT

from compile.receipt import runner

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


def plan(monkeypatch: pytest.MonkeyPatch, **steps: str) -> None:
    monkeypatch.setenv("FAKE_PLAN", json.dumps(steps))


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / runner.RECEIPT).read_text())
    return content


def on(content: dict[str, Any], date: str) -> dict[str, Any]:
    """A receipt whose cells have another date."""
    for cell in content["cells"]:
        cell["date"] = date
    return content
