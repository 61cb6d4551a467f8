"""Every call of `aws train` fails, in every way that a call can; afterwards `aws down` leaves nothing.

The network goes before a call has its effect, or after it with the reply lost, and stays away; a call is throttled
once;
the process is killed before or after a call's effect. The number of points is printed (pytest -s, or the report's end).
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
from aws_server import FAULTS, AwsServer, Fault
from in_process import neuron_sum

from sagemaker_jobs.ledger import Ledger

TRAIN = ["aws", "train", "tiny", "--instance", "ml.c7i.4xlarge", "--every", "0.01"]


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's, asked through one session for all commands of this process, and without pauses between attempts."""
    monkeypatch.setattr("boto3.Session", cache(_Session))
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    return aws


def cleared(aws: AwsServer, where: str) -> None:
    """Healthy again, `down` leaves nothing, and the ledger has nothing open; it lost nothing that is there."""
    aws.point = aws.client = None
    aws.script.looks = None  # what runs goes on until it is stopped
    [*ledgers] = Path(os.environ["NEURON_SUM_STATE"]).glob("aws/*.jsonl")
    noted = {(e.kind, e.name) for path in ledgers for e in Ledger(path.stem[:12], path.stem[13:], _state()).open()}
    for left in aws.everything():
        kind, name = left.split()[:2]
        assert ({"job": "training-job"}.get(kind, kind), name) in noted, f"{where}: the ledger lost {left}"
    down = neuron_sum("aws", "down", "--all", "--every", "0.01")
    assert down.exit_code == 0, f"{where}: {down.stderr}"
    assert aws.everything() == [], where
    assert neuron_sum("aws", "down", "--check").exit_code == 0
    gone = neuron_sum("aws", "down", "--all", "--artifacts", "--every", "0.01")
    assert gone.exit_code == 0, f"{where}: {gone.stderr}"
    assert aws.boto3("s3").list_buckets()["Buckets"] == [], where
    for path in ledgers:
        assert Ledger(path.stem[:12], path.stem[13:], _state()).open() == [], where


class _Session(boto3.session.Session):
    """Reading AWS's description of SageMaker takes as long as all calls of a run; a client is made once."""

    made: ClassVar[dict[str, Any]] = {}

    def client(self, service: str, **options: Any) -> Any:  # type: ignore[override]
        if service not in self.made:
            self.made[service] = super().client(service, **options)
        return self.made[service]


def _state() -> Path:
    return Path(os.environ["NEURON_SUM_STATE"])


def _killed(aws: AwsServer, words: list[str]) -> int:
    """The command in a process of its own, which the server kills at its point."""
    with subprocess.Popen([sys.executable, "-c", _WAITS, *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as process:  # fmt: skip
        aws.client = process.pid
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.close()
        return process.wait()


_WAITS = "import sys; sys.stdin.readline(); from neuron_sum.cli import main; main()"


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_call_of_train_leaves_nothing(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, fault: Fault
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*TRAIN, "--wheelhouse", "wheels"]
    points: list[str] = []
    codes: Counter[int] = Counter()
    while True:
        number = len(points)
        aws.reset()
        monkeypatch.setenv("NEURON_SUM_STATE", str(tmp_path / f"state-{number}"))
        aws.script.looks, aws.script.log, aws.fault, aws.point = 1, ("a line",), fault, number
        code = _killed(aws, words) if fault.startswith("killed") else neuron_sum(*words).exit_code
        if aws.hit is None:  # the command is over before its n-th call: there are no more points
            assert code == 0
            break
        points.append(aws.hit)
        codes[code] += 1
        where = f"{fault} {aws.hit} (call {number})"
        if fault == "throttled":
            assert code == 0, where
        elif fault.startswith("killed"):
            assert code == -9, where
        cleared(aws, where)
    assert len(points) >= 20, " ".join(aws.calls)
    assert "sagemaker.CreateTrainingJob" in points and "iam.CreateRole" in points
    with capsys.disabled():
        print(f"\n{fault}: {len(points)} calls of `aws train`, exit codes {dict(codes)}, 0 left over")


def test_the_words_of_a_job_under_way(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C leaves the job, says how to come back; then --follow comes back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURON_SUM_STATE", str(tmp_path / "state"))
    aws.script.looks = None
    command = [sys.executable, "-m", "neuron_sum", *TRAIN, "--wheelhouse", "wheels", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while aws.calls.count("sagemaker.DescribeTrainingJob") < 3 and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    error = json.loads(errors.splitlines()[-1])["error"]
    assert "as it is" in error["message"] and "status" in error["hint"] and "down" in error["hint"]
    run = json.loads(neuron_sum("aws", "status", "--json").stdout)["ours"][0]["run"]
    aws.script.looks = 0
    followed = neuron_sum("aws", "status", run, "--follow", "--every", "0.01", "--json")
    assert followed.exit_code == 0, followed.stderr
    assert json.loads(followed.stdout)["status"] == "Completed"


def test_a_new_role_is_waited_for(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SageMaker cannot assume a role in the first seconds after its making."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURON_SUM_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    aws.script.roles_unknown = 3
    assert neuron_sum(*TRAIN, "--wheelhouse", "wheels").exit_code == 0
    assert aws.calls.count("sagemaker.CreateTrainingJob") == 4
