"""`neuron-sum aws receipt`: the whole life cycle in simulated time, its cap, and interruptions at any call."""

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from aws_clock import Clock
from aws_faults import hasten
from aws_forks import Session
from aws_inputs import failed, told, write_context
from aws_script import ACCOUNT
from aws_server import AwsServer
from botocore.exceptions import EndpointConnectionError
from far_end import FarEnd
from in_process import neuron_sum
from micro_models import ROOT

from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.commands import receipt_actions
from sagemaker_jobs.cost.plan import Plan
from sagemaker_jobs.image.build import SOURCE
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.receipt.record import RecordFile
from sagemaker_jobs.receipt.steps import ALL, STEPS

RECEIPT = ("aws", "receipt", "--wheelhouse", "wheels", "--every", "2")
RESUME = (*RECEIPT, "--resume")
TRN1 = "ml.trn1.2xlarge for training job usage"
DEVICE = {
    "complete": True,
    "cells": [
        {"name": "driver", "state": "passed", "observed": "2.24.7"},
        {"name": "packages", "state": "different", "observed": "one is missing"},
    ],
}
CREATES = ("sagemaker.Create", "scheduler.POST", "codebuild.StartBuild", "application-autoscaling.Register")


class Everywhere(dict[str, str]):
    """A server for every endpoint."""

    def get(self, key: str, default: Any = None) -> str:
        return self["any"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, far_end: FarEnd, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account in simulated time, in which every endpoint has a server; build contexts are small."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)

    def context(target: str, existing: Path | None, scratch: Path) -> Channel:
        write_context(scratch, f"python:3.11-slim-{target}")
        return Channel(SOURCE, {"Dockerfile": scratch / "Dockerfile"})

    monkeypatch.setattr("sagemaker_jobs.image.build.context", context)
    prepare(aws, far_end.url)
    return aws


def prepare(aws: AwsServer, url: str) -> None:
    """The course of the jobs, builds and endpoints."""
    aws.script.looks, aws.script.endpoint_looks, aws.script.receipt = 1, 1, DEVICE
    aws.script.serving = Everywhere(any=f"{url}/invocations")
    names = ("training job usage", "endpoint usage")
    instances = ("ml.c7i.4xlarge", "ml.trn1.2xlarge", "ml.inf2.xlarge")
    aws.script.quotas = {f"{instance} for {name}": 4 for instance in instances for name in names}
    aws.script.quotas["Concurrently running builds for Linux/Medium environment"] = 1
    prices = {"ml.c7i.4xlarge": 0.857, "ml.trn1.2xlarge": 1.54, "ml.inf2.xlarge": 0.99}
    aws.script.prices = {(name, part): [usd] for name, usd in prices.items() for part in ("Training", "Hosting")}


def states(result: dict[str, Any]) -> dict[str, str]:
    return {cell["name"]: cell["state"] for cell in result["cells"]}


def observed(result: dict[str, Any], name: str) -> str:
    [text] = [cell["text"] for cell in result["cells"] if cell["name"] == name]
    return str(text)


def test_the_life_cycle_shows_every_cell_and_leaves_nothing(aws: AwsServer, clock: Clock) -> None:
    result = told(neuron_sum(*RECEIPT, "--json"))
    assert {name for name, state in states(result).items() if state != "passed"} <= {"bill"}
    assert [attempt["step"] for attempt in result["attempts"]] == [step.name for step in STEPS]
    assert aws.everything() == []
    [ended] = clock.ended
    assert ended.endswith("-endpoint"), "the schedule has deleted the CPU endpoint"
    assert observed(result, "expiry").startswith("found deleted ") and "SUMMARY" not in observed(result, "expiry")
    assert "#PERSON1#: THE MEETING" in observed(result, "answer of the CPU endpoint")
    assert result["usd"] < result["worst_usd"] < 5
    page = Path("aws-receipt/aws-receipt.md").read_text()
    assert ACCOUNT not in page + Path("aws-receipt/aws-receipt.json").read_text()
    rows = [line.strip("|").split("|") for line in page.split("## Observed")[0].splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(states(result)) and max(len(cell.split()) for row in rows for cell in row) <= 12


def test_the_bill_is_added_a_day_later_and_nothing_is_repeated(aws: AwsServer, clock: Clock) -> None:
    first = told(neuron_sum(*RECEIPT, "--json"))
    aws.script.costs = {"Amazon SageMaker": 0.4, "CodeBuild": 0.05, "Amazon Relational Database Service": 99}
    again = told(neuron_sum(*RESUME, "--json"))
    assert observed(again, "bill") == "not run" and "ce.GetCostAndUsage" not in aws.calls
    clock.sleep(25 * 3600)
    costs, aws.script.costs = aws.script.costs, {}
    early = told(neuron_sum(*RESUME, "--json"))
    assert states(early)["bill"] == "open" and "no costs of these days yet" in observed(early, "bill")
    aws.script.costs = costs
    before = len(aws.calls)
    later = told(neuron_sum(*RESUME, "--json"))
    assert states(later)["bill"] == "passed" and observed(later, "bill").startswith("$0.45, estimated, for all")
    assert not [call for call in aws.calls[before:] if call.startswith(CREATES)]
    assert later["attempts"] == first["attempts"]
    assert {**states(later), "bill": "open"} == states(first)


def test_a_denied_bill_leaves_its_cell_open(aws: AwsServer, clock: Clock) -> None:
    told(neuron_sum(*RECEIPT, "--json"))
    clock.sleep(25 * 3600)
    aws.script.refusals["ce.GetCostAndUsage"] = ("AccessDeniedException", "not authorized", 400)
    later = told(neuron_sum(*RESUME, "--json"))
    assert states(later)["bill"] == "open" and "not authorized" in observed(later, "bill")


def test_the_printed_maximum_is_that_of_the_commands(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Plan] = []
    monkeypatch.setattr(Plan, "check", lambda self, max_usd: checked.append(self))
    printed = told(neuron_sum(*RECEIPT, "--dry-run", "--json"))
    assert not [call for call in aws.calls if call.startswith(CREATES)] and not Path("aws-receipt").exists()
    assert printed["worst_usd"] < 5
    checked.clear()
    made = told(neuron_sum(*RECEIPT, "--json"))
    planned = [round(attempt["worst_usd"], 6) for attempt in made["attempts"] if attempt["worst_usd"]]
    commands = [round(plan.worst_usd, 6) for plan in checked[len(STEPS) :]]  # the first ones are the table's
    assert list(dict.fromkeys(commands)) == list(dict.fromkeys(planned)) and len(planned) == 8


def test_a_step_that_may_exceed_the_cap_is_left_out(aws: AwsServer) -> None:
    made = told(neuron_sum(*RECEIPT, "--max-usd", "1.6", "--json"))
    assert "may cost $1.85" in observed(made, "device receipt") and states(made)["device receipt"] == "open"
    assert states(made)["inf2 endpoint"] == states(made)["expiry"] == "passed"
    assert made["usd"] <= 1.6 and aws.everything() == []
    more = told(neuron_sum(*RESUME, "--max-usd", "4", "--json"))
    assert states(more)["device receipt"] == "passed"
    assert [attempt["step"] for attempt in more["attempts"]].count("train") == 1


def test_a_failed_step_does_not_prevent_independent_ones(aws: AwsServer) -> None:
    assert aws.script.quotas is not None
    aws.script.quotas[TRN1] = 0
    error = failed(neuron_sum(*RECEIPT))
    assert "device" in error and "--resume" in error and "--retry" in error
    kept = json.loads(Path("aws-receipt/aws-receipt.json").read_text())
    assert "is 0" in observed(kept, "device receipt") and f"{TRN1} is 0 (needed: 1)" in observed(kept, "quota names")
    assert states(kept)["inf2 endpoint"] == states(kept)["expiry"] == states(kept)["nothing left"] == "passed"
    [device] = [attempt for attempt in kept["attempts"] if attempt["step"] == "device"]
    assert device["usd"] == 0, "nothing was created"
    assert neuron_sum(*RESUME).exit_code == 14, "a failed step is repeated only with --retry"
    aws.script.quotas[TRN1] = 1
    before = aws.calls.count("sagemaker.CreateTrainingJob")
    retried = told(neuron_sum(*RESUME, "--retry", "--json"))
    assert states(retried)["device receipt"] == "passed"
    assert aws.calls.count("sagemaker.CreateTrainingJob") == before + 1


def test_a_failed_or_stopped_build_is_repeated(aws: AwsServer) -> None:
    cap = ("--max-usd", "0.41")  # too little for the steps after it
    aws.script.build_end = "FAILED"
    error = failed(neuron_sum(*RECEIPT, *cap))
    assert "image-cpu" in error and "--max-usd 0.41 " in error and "--retry" in error
    assert "image-cpu" in failed(neuron_sum(*RESUME, *cap)), "a failed step is repeated only with --retry"
    aws.script.build_end = "SUCCEEDED"
    repeated = told(neuron_sum(*RESUME, "--retry", "--max-usd", "0.45", "--json"))
    assert states(repeated)["CPU image"] == "passed"


def test_steps_that_need_a_failed_one_do_not_run(aws: AwsServer) -> None:
    aws.script.refusals["sagemaker.CreateTrainingJob"] = ("AccessDeniedException", "not authorized to create", 400)
    failed(neuron_sum(*RECEIPT))
    kept = json.loads(Path("aws-receipt/aws-receipt.json").read_text())
    assert "not authorized to create" in observed(kept, "permissions") and states(kept)["permissions"] == "failed"
    assert observed(kept, "CPU endpoint") == "not run, because it needs the step compile-cpu"
    assert states(kept)["CPU image"] == states(kept)["inf2 image"] == "passed"
    assert aws.everything() == []


def test_a_device_receipt_that_reaches_the_time_limit_counts(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.script.receipt = {**DEVICE, "complete": False}

    def limited(*arguments: Any, **options: Any) -> None:
        aws.script.end = "Stopped"
        try:
            original(*arguments, **options)
        finally:
            aws.script.end = "Completed"

    original = receipt_actions.carry_out
    monkeypatch.setattr(receipt_actions, "carry_out", limited)
    made = told(neuron_sum(*RECEIPT, "--json"))
    assert states(made)["device receipt"] == "different"
    assert observed(made, "device receipt").startswith("1 passed, 1 different, 0 failed; not complete: ")
    assert "its maximum run time" in observed(made, "device receipt")
    assert json.loads(Path("aws-receipt/device/receipt.json").read_text()) == aws.script.receipt


def test_an_endpoint_that_does_not_expire_is_a_failed_cell_and_deleted(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aws_clock.tick", lambda now: [])
    assert "expiry" in failed(neuron_sum(*RECEIPT))
    kept = json.loads(Path("aws-receipt/aws-receipt.json").read_text())
    assert states(kept)["expiry"] == "failed" and "after its expiry" in observed(kept, "expiry")
    assert aws.everything() == []


def test_a_failed_answer_does_not_prevent_the_expiry(aws: AwsServer, far_end: FarEnd) -> None:
    far_end.script.extend([(422, {"error": {"code": 422, "message": "too long", "field": None}}, {})] * 2)
    assert "endpoint-cpu" in failed(neuron_sum(*RECEIPT))
    kept = json.loads(Path("aws-receipt/aws-receipt.json").read_text())
    assert states(kept)["answer of the CPU endpoint"] == "failed" and states(kept)["expiry"] == "passed"


def test_an_account_without_a_stack_gets_one(aws: AwsServer, far_end: FarEnd) -> None:
    aws.reset()
    prepare(aws, far_end.url)
    made = told(neuron_sum(*RECEIPT, "--json"))
    assert observed(made, "stack") == "created by CloudFormation" and states(made)["expiry"] == "passed"


def test_a_receipt_is_continued_only_on_request_and_in_its_account(aws: AwsServer) -> None:
    assert "has no receipt to continue" in failed(neuron_sum(*RESUME), 8)
    assert "--retry needs --resume" in failed(neuron_sum(*RECEIPT, "--retry"))
    told(neuron_sum(*RECEIPT, "--max-usd", "0.1", "--json"))
    assert "already has a receipt" in failed(neuron_sum(*RECEIPT), 8)
    path = Path("aws-receipt/state.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "account": "210987654321"}))
    assert "account 210987654321 in us-east-1, but" in failed(neuron_sum(*RESUME), 8)
    path.write_text(json.dumps(content))
    ledger = Path(os.environ["NEURON_SUM_STATE"])
    ledger.rename("elsewhere")
    before = len(aws.calls)
    assert "was written on another machine, or with another NEURON_SUM_STATE" in failed(neuron_sum(*RESUME), 8)
    assert (
        not [call for call in aws.calls[before:] if call.startswith(CREATES)]
        and json.loads(path.read_text()) == content
    )
    Path("elsewhere").rename(ledger)
    told(neuron_sum(*RESUME, "--max-usd", "0.1", "--json"))
    path.write_text(json.dumps({**content, "attempts": 3}))
    assert "state.json is damaged: attempts" in failed(neuron_sum(*RESUME), 8)


def test_the_status_page_has_the_cells_of_the_receipt() -> None:
    text = (ROOT / "docs" / "status.md").read_text().split("## In an AWS account")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| " in line]
    assert [row[:2] for row in rows[1:]] == [
        [cell.name, f"{step.name}: {cell.expected}"] for step in ALL.values() for cell in step.cells
    ]


class Dead(BaseException):
    """A killed process: nothing that it does later has an effect."""


MODES = ("killed before", "killed after", "no network", "interrupted")


def stop(reason: type[BaseException]) -> NoReturn:
    """Raises an exception in the main thread, as a signal does, also from a request in another thread."""
    if threading.current_thread() is threading.main_thread():
        raise reason
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT if reason is not Dead else signal.SIGUSR1)
    raise SystemExit


def die(*_: object) -> NoReturn:
    raise Dead


def stop_at(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, number: int, mode: str) -> Callable[[], bool]:
    """Stops the command at its n-th call to AWS.

    Args:
        aws: The account.
        monkeypatch: The fixture.
        number: The number of the call, from 0.
        mode: One of MODES: killed before or after the effect of the call, without a network from then on, or Ctrl-C.

    Returns:
        A function that returns whether the call came.
    """
    seen, stopped = 0, False

    def directly(request: Any, **_: Any) -> Any:
        nonlocal seen, stopped
        seen += 1
        if not stopped and seen > number:
            stopped = True
            if mode == "interrupted":
                stop(KeyboardInterrupt)
            if mode == "killed after":
                aws.directly(request)
        if stopped and mode == "no network":
            raise EndpointConnectionError(endpoint_url=request.url)
        if stopped and mode.startswith("killed"):
            stop(Dead)
        return aws.directly(request)

    def unless_dead(write: Callable[..., None]) -> Callable[..., None]:
        def checked(*arguments: Any, **options: Any) -> None:
            if stopped and mode.startswith("killed"):
                raise Dead
            write(*arguments, **options)

        return checked

    signal.signal(signal.SIGUSR1, die)
    monkeypatch.setattr(Session, "directly", staticmethod(directly))
    monkeypatch.setattr(Ledger, "note", unless_dead(Ledger.note))
    monkeypatch.setattr(RecordFile, "save", unless_dead(RecordFile.save))
    return lambda: stopped


@pytest.mark.slow
def test_a_receipt_continues_after_a_stop_at_any_call(
    aws: AwsServer, far_end: FarEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, points = 0, 0
    while True:
        mode = MODES[points % len(MODES)]
        aws.reset()
        aws.set_up()
        prepare(aws, far_end.url)
        monkeypatch.setenv("NEURON_SUM_STATE", str(tmp_path / f"state-{number}"))
        words = ("--output", f"receipt-{number}", "--max-usd", "8", "--json")
        with monkeypatch.context() as patched:
            stopped = stop_at(aws, patched, number, mode)
            ended = neuron_sum(*RECEIPT, *words)
            if not stopped():
                break
            where = f"{mode} at call {number}: {aws.calls[-1:]} {ended.stderr[-2000:]}"
            assert (code := ended.exit_code), where
            if mode == "interrupted":
                assert code == 130, where
                assert aws.everything() == [] or "resources may remain and be billed" in ended.stderr, where
        begun = Path(f"receipt-{number}/state.json").exists()
        made = told(neuron_sum(*(RESUME if begun else RECEIPT), *words))
        assert {name for name, state in states(made).items() if state != "passed"} <= {"bill", "dead-letter queue"}, (
            where
        )
        assert aws.everything() == [], where
        steps = [attempt["step"] for attempt in made["attempts"]]
        assert max(steps.count(step.name) for step in STEPS) <= 2 and len(steps) <= len(STEPS) + 2, where
        points += 1
        number += 1 if os.environ.get("NEURON_SUM_ALL_FAULTS") == "1" else 79
    assert points >= 4
