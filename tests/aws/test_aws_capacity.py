"""`--instance A,B`: the next type is tried if AWS has no capacity; failed attempts leave nothing."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from aws_faults import hasten
from aws_inputs import RUN, add_images, archive, compiled, failed, told
from aws_script import ACCOUNT, NO_CAPACITY, REGION
from aws_server import AwsServer
from in_process import neuron_sum

from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import is_shortage
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext
from sagemaker_jobs.commands import capacity
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.schedules import time_of

FIRST, SECOND = "ml.c7i.4xlarge", "ml.m5.xlarge"
DEAR = "ml.m5.24xlarge"
USD = {FIRST: 0.857, SECOND: 0.23, DEAR: 5.53}
USES = ("Training", "Hosting", "Batch Transform")
BOTH = ("--instance", f"{FIRST},{SECOND}", "--every", "0.01")
TRAIN = ("aws", "train", "tiny", "--wheelhouse", "wheels")
DEPLOY = ("aws", "deploy", "model.tar.gz")
BATCH = ("aws", "batch", "model.tar.gz", "texts.jsonl", "--output", "answers")
COMMANDS = {"train": TRAIN, "deploy": DEPLOY, "batch": BATCH}


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account without pauses; it has images, and the folder a model, dialogues and wheels."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    add_images(aws)
    archive(Path("model.tar.gz"))
    Path("texts.jsonl").write_text('{"inputs": "A: hi"}\n')
    aws.script.looks = aws.script.endpoint_looks = 1
    aws.script.prices = {(name, use): [price] for name, price in USD.items() for use in USES}
    return aws


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two passes, which take no time."""
    pauses: list[float] = []
    time = SimpleNamespace(monotonic=lambda: sum(pauses), sleep=pauses.append)
    monkeypatch.setattr(capacity, "time", time)
    return pauses


def ledger() -> Ledger:
    return Ledger(AwsContext(ACCOUNT, REGION))


def creations(aws: AwsServer) -> list[str]:
    return [call for call in aws.calls if ".Create" in call or call == "scheduler.POST /schedules"]


@pytest.mark.parametrize("at", ["create", "start"])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_type_is_used_if_the_first_has_no_capacity(aws: AwsServer, name: str, at: str) -> None:
    aws.script.shortages, aws.script.shortage_at = {FIRST: 1}, at
    made = neuron_sum(*COMMANDS[name], *BOTH, "--json")
    result = told(made)
    assert aws.script.launched == [FIRST, SECOND] and result["instance"] == SECOND
    [price] = [item["instance"] for item in result["plan"]["items"] if item["instance"]]
    assert price == SECOND and f"no capacity for {FIRST}" in made.stderr
    if name == "deploy":
        assert sorted(line.split()[0] for line in aws.everything()) == [
            "endpoint", "endpoint-config", "model", "schedule",
        ]  # fmt: skip
        assert neuron_sum("aws", "down", result["run"], "--every", "0.01").exit_code == 0
    else:
        assert result["status"] == "Completed"
    assert aws.everything() == [] and ledger().open() == []


def test_a_compile_job_uses_the_second_type(aws: AwsServer) -> None:
    run = told(neuron_sum(*TRAIN, "--instance", FIRST, "--every", "0.01", "--json"))["run"]
    aws.script.shortages = {FIRST: 1}
    words = ("aws", "compile", run, "--target", "cpu", "--wheelhouse", "wheels", *BOTH, "--json")
    result = told(neuron_sum(*words))
    assert (result["instance"], result["job"]) == (SECOND, f"neuron-sum-{run}-compile-2")
    assert told(neuron_sum("aws", "deploy", run, "--instance", FIRST, "--every", "0.01", "--json"))["run"] == run


def test_status_follow_reports_a_shortage_with_a_hint(aws: AwsServer) -> None:
    aws.script.shortages = {FIRST: 1}
    run = told(neuron_sum(*TRAIN, "--instance", FIRST, "--detach", "--json"))["run"]
    error = failed(neuron_sum("aws", "status", run, "--follow", "--every", "0.01"))
    assert "found no free instances: CapacityError" in error and "--instance A,B" in error


@pytest.mark.parametrize("command", ["train", "compile", "batch"])
def test_a_job_after_a_refused_attempt_has_a_new_number(aws: AwsServer, command: str) -> None:
    """SageMaker rejects a used name, and the earlier job would be followed as if it were the new one."""
    train = (*TRAIN, "--instance", FIRST, "--every", "0.01", "--json")
    run = told(neuron_sum(*train))["run"]
    words: tuple[str, ...] = (*train, "--resume", run)
    if command != "train":
        words = ("aws", "compile", run, "--target", "cpu", "--wheelhouse", "wheels", *train[-5:])
    if command == "batch":
        told(neuron_sum(*words))
        words = ("aws", "batch", run, "texts.jsonl", *train[-5:])
    aws.script.shortages, aws.script.shortage_at = {FIRST: 1}, "create"
    jobs = [told(neuron_sum(*words, "--instance", f"{FIRST},{SECOND}"))["job"]]
    for _ in range(2):
        folder = ("--output", f"answers-{len(jobs)}") if command == "batch" else ()
        jobs.append(told(neuron_sum(*words, *folder))["job"])
    first = 3 if command == "train" else 2
    assert jobs == [f"neuron-sum-{run}-{command}-{number}" for number in range(first, first + 3)]


def test_batch_after_a_kill_between_two_attempts_uses_nothing_of_them(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(aws, RUN, "cpu")
    words = ("aws", "batch", RUN.id, "texts.jsonl", *BOTH)
    send = Call.send

    def killed_at_the_second_job(call: Call, account: Account) -> None:
        if call.name == RUN.name("batch", 2):
            raise KeyboardInterrupt
        send(call, account)

    aws.script.shortages, aws.script.shortage_at, aws.script.looks = {FIRST: 2}, "create", None
    with monkeypatch.context() as patch:
        patch.setattr(Call, "send", killed_at_the_second_job)
        assert neuron_sum(*words, "--max-hours", "1").exit_code == 130
    assert {line.split()[1] for line in aws.everything()} == {
        RUN.name(f"batch-{part}", 2) for part in ("expiry", "model")
    }

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sagemaker_jobs.aws.logs.time", SimpleNamespace(sleep=interrupted))
        assert neuron_sum(*words, "--max-hours", "5").exit_code == 130
    assert {line.split()[1] for line in aws.everything()} == {
        RUN.name(part, 4) for part in ("batch", "batch-expiry", "batch-model")
    }, "the third was refused"
    schedule = aws.boto3("scheduler").get_schedule(Name=RUN.name("batch-expiry", 4))
    assert time_of(schedule) - datetime.now(timezone.utc) > timedelta(hours=4.9), "not the expiry of the killed one"
    assert neuron_sum("aws", "down", RUN.id, "--every", "0.01").exit_code == 0
    assert aws.everything() == [] and ledger().open() == []


def test_a_spot_job_that_waited_in_vain_is_a_shortage(aws: AwsServer) -> None:
    aws.script.shortages, aws.script.shortage_at = {FIRST: 1}, "wait"
    result = told(neuron_sum(*TRAIN, *BOTH, "--max-wait-hours", "5", "--json"))
    assert result["instance"] == SECOND and aws.script.launched == [FIRST, SECOND]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_is_tried_again_until_there_is_capacity(aws: AwsServer, clock: list[float], name: str) -> None:
    aws.script.shortages = {FIRST: 2, SECOND: 3}
    made = neuron_sum(*COMMANDS[name], *BOTH, "--capacity-wait-hours", "1", "--json")
    assert told(made)["instance"] == FIRST
    assert aws.script.launched == [FIRST, SECOND, FIRST, SECOND, FIRST] and clock == [300, 300]
    assert "trying again in 5 min" in " ".join(made.stderr.split()) and "nothing is running or billed" in made.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_without_capacity_until_the_end_there_is_one_error(aws: AwsServer, clock: list[float], name: str) -> None:
    aws.script.shortages = {FIRST: 99, SECOND: 99}
    error = failed(neuron_sum(*COMMANDS[name], *BOTH, "--capacity-wait-hours", "0.15"))
    assert f"no capacity for {FIRST}, {SECOND} in {REGION} after 6 attempts in 9 min" in error
    assert "--region" in error and "aws down" not in error and clock == pytest.approx([300, 240])
    assert aws.everything() == [] and ledger().open() == []


@pytest.mark.parametrize(
    ("reason", "shortage"),
    [
        (NO_CAPACITY, True),
        ("Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error.", True),
        ("EC2InsufficientCapacityError: Instance type 'ml.g5.48xlarge' is temporarily unavailable", True),
        ("Insufficient capacity error from EC2 while launching instances", True),
        ("ResourceLimitExceeded: The account-level service limit is 0 Instances", False),
        ("AlgorithmError: CapacityError: the queue of the model is full", False),
    ],
)
def test_a_shortage_is_recognized_by_its_reason(reason: str, shortage: bool) -> None:
    assert is_shortage(reason) is shortage


def test_a_single_type_without_capacity_is_the_error_of_aws(aws: AwsServer) -> None:
    aws.script.shortages = {FIRST: 9}
    error = failed(neuron_sum(*DEPLOY, "--instance", FIRST, "--every", "0.01"))
    assert "InsufficientInstanceCapacity" in error and "--instance A,B" in error and "--capacity-wait-hours" in error
    assert aws.script.launched == [FIRST] and aws.everything() == []


def test_ctrl_c_in_a_pause_leaves_nothing(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(capacity, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=interrupted))
    aws.script.shortages = {FIRST: 9, SECOND: 9}
    error = failed(neuron_sum(*DEPLOY, *BOTH, "--capacity-wait-hours", "1"), 130)
    assert "stopped waiting for capacity" in error and "nothing is running" in error
    assert aws.everything() == [] and ledger().open() == []


def test_an_attempt_that_cannot_be_rolled_back_is_the_last(aws: AwsServer) -> None:
    aws.script.shortages = {FIRST: 9}
    aws.script.refusals["sagemaker.DeleteEndpoint"] = ("AccessDeniedException", "not authorized", 400)
    error = failed(neuron_sum(*DEPLOY, *BOTH))
    assert "the rollback also failed" in error and "neuron-sum aws down model-" in error
    assert aws.script.launched == [FIRST]
    aws.script.refusals.clear()
    assert neuron_sum("aws", "down", "--all", "--every", "0.01").exit_code == 0 and aws.everything() == []


@pytest.mark.parametrize(
    "reason",
    ["AlgorithmError: CapacityError: the queue of the model is full", "AlgorithmError: out of memory", "InternalError"],
)
def test_another_failure_is_final(aws: AwsServer, reason: str) -> None:
    aws.script.end, aws.script.reason = "Failed", reason
    assert reason in failed(neuron_sum(*TRAIN, *BOTH))
    assert aws.script.launched == [FIRST]


@pytest.mark.parametrize("name", ["train", "batch"])
def test_a_job_that_ran_before_the_shortage_is_not_repeated(aws: AwsServer, name: str) -> None:
    """Its hours are billed; with another attempt, the cost could exceed --max-usd."""
    aws.script.end, aws.script.reason = "Failed", NO_CAPACITY
    assert f"failed: {NO_CAPACITY}" in failed(neuron_sum(*COMMANDS[name], *BOTH, "--max-usd", "4"))
    assert aws.script.launched == [FIRST]


def quotas_missing(aws: AwsServer) -> None:
    names = ("training job usage", "endpoint usage", "transform job usage")
    aws.script.quotas = {f"{FIRST} for {use}": 1.0 for use in names} | {f"{SECOND} for {use}": 0.0 for use in names}


BEFORE: dict[str, tuple[tuple[str, ...], Callable[[AwsServer], object], str]] = {
    "a dear second type": (
        ("--instance", f"{FIRST},{DEAR}", "--max-usd", "4"), lambda _: None, "but --max-usd allows $4.00",
    ),
    "no quota for the second": (("--instance", f"{FIRST},{SECOND}"), quotas_missing, f"the quota '{SECOND} for"),
    "an empty name": (("--instance", f"{FIRST},,{SECOND}"), lambda _: None, "empty or repeated instance type"),
    "a name twice": (("--instance", f"{FIRST}, {FIRST}"), lambda _: None, "empty or repeated instance type"),
    "no type": (("--instance", f"{FIRST},m5.xlarge"), lambda _: None, "such as ml.m5.xlarge"),
    "--detach with a list": (("--instance", f"{FIRST},{SECOND}", "--detach"), lambda _: None, "Omit --detach"),
    "--detach with a wait": (
        ("--instance", FIRST, "--detach", "--capacity-wait-hours", "1"), lambda _: None, "Omit --detach",
    ),
}  # fmt: skip


@pytest.mark.parametrize("problem", BEFORE)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_type_is_checked_before_anything_is_created(aws: AwsServer, name: str, problem: str) -> None:
    words, ready, message = BEFORE[problem]
    ready(aws)
    assert message in failed(neuron_sum(*COMMANDS[name], *words, "--every", "0.01"))
    assert creations(aws) == [] and ledger().open() == []


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (f"{FIRST},ml.inf2.xlarge", "was compiled for cpu, but ml.inf2.xlarge is for inf2"),
        (f"{FIRST},ml.trn1.2xlarge", "cannot serve on ml.trn1.2xlarge"),
    ],
)
@pytest.mark.parametrize("name", ["deploy", "batch"])
def test_the_model_must_fit_every_type(aws: AwsServer, name: str, types: str, message: str) -> None:
    assert message in failed(neuron_sum(*COMMANDS[name], "--instance", types))
    assert creations(aws) == []


def test_one_archive_of_unknown_target_cannot_be_for_two_kinds(aws: AwsServer) -> None:
    s3 = aws.boto3("s3")
    bucket = f"neuron-sum-{ACCOUNT}-{REGION}"
    s3.upload_file("model.tar.gz", bucket, "neuron-sum/inputs/a/model.tar.gz")
    words = (
        "aws",
        "deploy",
        f"s3://{bucket}/neuron-sum/inputs/a/model.tar.gz",
        "--instance",
        f"ml.inf2.xlarge,{FIRST}",
    )
    assert "need different images and models: ml.inf2.xlarge (inf2), ml.c7i.4xlarge (cpu)" in failed(neuron_sum(*words))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_prints_the_requests_on_every_type(aws: AwsServer, name: str) -> None:
    shown = told(neuron_sum(*COMMANDS[name], *BOTH, "--dry-run", "--json"))
    [other] = shown["alternatives"]
    assert FIRST in json.dumps(shown["requests"]) and SECOND not in json.dumps(shown["requests"])
    assert SECOND in json.dumps(other["requests"]) and other["plan"]["worst_usd"] != shown["plan"]["worst_usd"]
    assert creations(aws) == []
