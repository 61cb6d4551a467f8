"""train.report_to in jobs: TensorBoard, and an MLflow tracking server of SageMaker."""

from pathlib import Path

import pytest
from aws_faults import hasten
from aws_iam import policies_of_jobs
from aws_inputs import CPU, failed, told
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from in_process import neuron_sum

from neuron_sum.platform.project import REQUIREMENTS, project_root
from sagemaker_jobs.jobs import wheelhouse

SERVER = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:mlflow-tracking-server/ours"
OTHER = SERVER.replace("ours", "theirs")
TRAIN = ("aws", "train", "tiny", "--wheelhouse", "wheels", *CPU)
TO_MLFLOW = (*TRAIN, "train.report_to=[mlflow]")


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account without pauses; its stack allows SERVER, and the folder `wheels` has wheels."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    aws.reset()
    aws.set_up(mlflow_servers=[SERVER])
    aws.script.looks = 1
    return aws


def test_a_job_gets_the_address_of_the_server_and_its_role_the_rights(aws: AwsServer) -> None:
    job = told(neuron_sum(*TO_MLFLOW, "--mlflow", SERVER, "--json"))["job"]
    described = aws.boto3("sagemaker").describe_training_job(TrainingJobName=job)
    assert described["Environment"]["MLFLOW_TRACKING_URI"] == SERVER
    [rights] = [each for each in policies_of_jobs()[0]["Statement"] if each["Sid"] == "Mlflow"]
    assert rights["Resource"] == [SERVER] and "sagemaker-mlflow:LogBatch" in rights["Action"]


def test_the_role_has_no_rights_without_a_server(aws: AwsServer) -> None:
    aws.reset()
    aws.set_up()
    assert "Mlflow" not in [each["Sid"] for each in policies_of_jobs()[0]["Statement"]]


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no server": ((*TO_MLFLOW,), "Add --mlflow ARN"),
    "no report": ((*TRAIN, "--mlflow", SERVER), "train.report_to=[mlflow]"),
    "another server": ((*TO_MLFLOW, "--mlflow", OTHER), f"aws setup --mlflow {OTHER}"),
    "an app": ((*TO_MLFLOW, "--mlflow", SERVER.replace("tracking-server", "app")), "an MLflow app is not supported"),
    "no ARN": ((*TO_MLFLOW, "--mlflow", "http://127.0.0.1"), "is not the ARN of an MLflow tracking server"),
    "another region": ((*TO_MLFLOW, "--mlflow", SERVER.replace(REGION, "eu-west-1")), "in the stack's region"),
    "no network": ((*TO_MLFLOW, "--mlflow", SERVER, "--network-isolation"), "Omit --network-isolation"),
    "a rehearsal": (("aws", "rehearse", "tiny", "train.report_to=[mlflow]"), "train.report_to=[]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_server_that_a_job_cannot_use_is_an_error_before_anything_is_created(aws: AwsServer, name: str) -> None:
    words, message = WRONG[name]
    assert message in failed(neuron_sum(*words))
    assert not [call for call in aws.calls if "Create" in call or call.startswith("s3.PUT")]


def test_a_plan_needs_no_server() -> None:
    assert told(neuron_sum("aws", "plan", "tiny", "train.report_to=[mlflow]", "--offline", "--json"))["worst_usd"] > 0


@pytest.mark.parametrize("report_to", [(), ("tensorboard",), ("mlflow",), ("tensorboard", "mlflow")])
def test_the_wheelhouse_has_the_packages_of_the_reports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, report_to: tuple[str, ...]
) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(wheelhouse, "_pip", lambda *arguments: commands.append(arguments))
    monkeypatch.setattr(wheelhouse, "build_own", lambda folder: folder)
    wheelhouse.build(tmp_path / "wheels", report_to=report_to)
    [words] = [command for command in commands if command[0] == "download"]
    assert [Path(word).stem for word in words if word.endswith(".txt")] == ["common", "neuron", *report_to]
    assert "--require-hashes" in words


def test_the_recipe_decides_which_packages_a_job_gets(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[str, ...]] = []

    def build(folder: Path, *, report_to: tuple[str, ...]) -> Path:
        built.append(tuple(report_to))
        return Path("wheels")

    monkeypatch.setattr(wheelhouse, "build", build)
    words = [word for word in TRAIN if word not in ("--wheelhouse", "wheels")]
    told(neuron_sum(*words, "train.report_to=[tensorboard]", "--json"))
    assert built == [("tensorboard",)]


def test_the_packages_of_a_report_are_pinned() -> None:
    for name, package in (("tensorboard", "tensorboard=="), ("mlflow", "sagemaker-mlflow==")):
        text = (project_root() / REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8")
        pinned = [line for line in text.splitlines() if "==" in line]
        assert any(line.startswith(package) for line in pinned)
        assert all(line.endswith(chr(92)) for line in pinned), "a version without a hash"
