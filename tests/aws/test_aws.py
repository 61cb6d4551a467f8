"""`neuron-sum aws` with the AWS protocol on 127.0.0.1: plan, train, follow, status, down, and every error."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


BUCKET = f"neuron-sum-{ACCOUNT}-{REGION}"
TRAIN = ("aws", "train", "tiny", "--instance", "ml.c7i.4xlarge", "--every", "0.01")


def test_a_run_from_start_to_nothing_left(
    aws: AwsServer, neuron_sum: CommandLine, wheels: Path, tmp_path: Path
) -> None:
    aws.script.log = ("epoch 1", "loss 0.5")
    made = neuron_sum(*TRAIN, "--wheelhouse", str(wheels), "--json")
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert result["status"] == "Completed"
    assert result["model"].endswith("/output/model.tar.gz")
    assert "loss 0.5" in made.stderr and "Training (InProgress)" in made.stderr
    job = aws.boto3("sagemaker").describe_training_job(TrainingJobName=result["job"])
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 4 * 3600}
    channels = {item["ChannelName"]: item["DataSource"]["S3DataSource"]["S3Uri"] for item in job["InputDataConfig"]}
    assert set(channels) == {"code", "recipe", "wheelhouse"}
    keys = {item["Key"] for item in aws.boto3("s3").list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert {uri.split("/", 3)[3] for uri in channels.values()} <= {key.rpartition("/")[0] + "/" for key in keys}
    assert aws.everything() == []

    again = neuron_sum(*TRAIN, "--wheelhouse", str(wheels), "--resume", result["run"], "--json")
    assert again.returncode == 0, again.stderr
    second = json.loads(again.stdout)
    assert (second["run"], second["job"]) == (result["run"], f"{result['job']}-2")
    resumed = aws.boto3("sagemaker").describe_training_job(TrainingJobName=second["job"])
    assert resumed["CheckpointConfig"] == job["CheckpointConfig"]

    stored = aws.boto3("s3").list_objects_v2(Bucket=BUCKET)["KeyCount"]
    assert stored == len(keys) + 1, "the model of the second job"
    down = neuron_sum("aws", "down", result["run"], "--json")
    assert down.returncode == 0, down.stderr
    assert aws.everything() == []
    assert neuron_sum("aws", "down", "--check").returncode == 0
    assert aws.boto3("s3").list_objects_v2(Bucket=BUCKET)["KeyCount"] == stored
    assert neuron_sum("aws", "down", "--all", "--artifacts").returncode == 0
    assert aws.kept() == []
    assert aws.boto3("logs").describe_log_streams(logGroupName="/aws/sagemaker/TrainingJobs")["logStreams"] == []


def test_a_dry_run_prints_the_requests_and_sends_none(aws: AwsServer, neuron_sum: CommandLine, wheels: Path) -> None:
    made = neuron_sum(*TRAIN, "--wheelhouse", str(wheels), "--dry-run", "--json")
    assert made.returncode == 0, made.stderr
    requests = json.loads(made.stdout)["requests"]
    assert [item["operation"] for item in requests] == [
        "put_object",
        "put_object",
        "put_object",
        "create_training_job",
    ]
    assert set(aws.calls) <= {"sts.GetCallerIdentity", "pricing.GetProducts", "cloudformation.DescribeStacks"}
    assert aws.everything() == aws.kept() == []
    offline = neuron_sum(*TRAIN, "--wheelhouse", str(wheels), "--dry-run", "--offline", "--json")
    role = json.loads(offline.stdout)["requests"][-1]["request"]["RoleArn"]
    assert role == "arn:aws:iam::123456789012:role/neuron-sum-us-east-1-jobs"


def test_a_failed_job_reports_the_reason_and_a_stopped_job_is_an_error(
    aws: AwsServer, neuron_sum: CommandLine, wheels: Path
) -> None:
    aws.script.end, aws.script.reason = "Failed", "AlgorithmError: , exit code: 1"
    aws.script.log = ("RuntimeError: neuronx-cc failed with -9",)
    failed = neuron_sum(*TRAIN, "--wheelhouse", str(wheels))
    assert failed.returncode == 14
    assert "failed: AlgorithmError" in failed.stderr and "compiler-killed" in failed.stderr
    aws.script.end, aws.script.reason, aws.script.log = "Stopped", "", ()
    stopped = neuron_sum(*TRAIN, "--wheelhouse", str(wheels))
    assert stopped.returncode == 14
    assert "was stopped by its maximum run time before it completed" in stopped.stderr
    assert neuron_sum("aws", "down", "--all", "--every", "0.01").returncode == 0
    assert aws.everything() == []


def test_two_runs_do_not_affect_each_other(aws: AwsServer, neuron_sum: CommandLine, wheels: Path) -> None:
    aws.script.looks = None
    one, other = (
        json.loads(neuron_sum(*TRAIN, "--wheelhouse", str(wheels), "--detach", "--json").stdout) for _ in range(2)
    )
    shown = json.loads(neuron_sum("aws", "status", "--json").stdout)
    assert {item["run"] for item in shown["ours"]} == {one["run"], other["run"]}
    assert shown["usd_per_hour"] == pytest.approx(2 * 0.857)
    assert neuron_sum("aws", "down", one["run"], "--every", "0.01").returncode == 0
    assert aws.everything() == [f"training-job {other['job']} InProgress"]
    # From a machine that did not start it:
    assert neuron_sum("aws", "down", "--all", "--every", "0.01").returncode == 0
    assert aws.everything() == []


def test_status_lists_foreign_resources(aws: AwsServer, neuron_sum: CommandLine) -> None:
    aws.boto3("iam").create_role(RoleName="theirs", AssumeRolePolicyDocument="{}")
    aws.boto3("sagemaker").create_notebook_instance(
        NotebookInstanceName="forgotten",
        InstanceType="ml.t2.medium",
        RoleArn=f"arn:aws:iam::{ACCOUNT}:role/theirs",
    )
    made = neuron_sum("aws", "status", "--json")
    assert made.returncode == 0, made.stderr
    shown = json.loads(made.stdout)
    assert shown["ours"] == []
    assert [item["name"] for item in shown["not_ours"]] == ["forgotten"]


REFUSED: dict[str, tuple[str, tuple[str, str, int], str]] = {
    "missing quota": (
        "sagemaker.CreateTrainingJob",
        ("ResourceLimitExceeded", "The account-level service limit 'ml.c7i.4xlarge for training job usage' is 0", 400),
        "request a higher quota",
    ),
    "expired token": (
        "sts.GetCallerIdentity", ("ExpiredToken", "The security token included in the request is expired", 403),
        "aws sso login",
    ),
    "unknown key": (
        "sts.GetCallerIdentity", ("InvalidClientTokenId", "The security token included is invalid", 403),
        "does not know these credentials",
    ),
    "denied": (
        "sagemaker.CreateTrainingJob", ("AccessDeniedException", "User is not authorized to perform", 400),
        "neuron-sum aws iam",
    ),
    "image not in the region": (
        "sagemaker.CreateTrainingJob",
        ("ValidationException", "The repository of your image 1.dkr.ecr.us-east-1.amazonaws.com/x does not exist", 400),
        "the image is not in us-east-1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_rejection_by_aws_is_one_line_and_a_remedy(
    aws: AwsServer, neuron_sum: CommandLine, wheels: Path, name: str
) -> None:
    call, answer, remedy = REFUSED[name]
    aws.script.refusals[call] = answer
    made = neuron_sum(*TRAIN, "--wheelhouse", str(wheels), "--json")
    assert made.returncode == 14, made.stderr
    error = json.loads(made.stderr.splitlines()[-1])["error"]
    assert remedy in error["hint"], error
    assert "\n" not in error["message"]
    aws.script.refusals.clear()
    assert neuron_sum("aws", "down", "--all").returncode == 0
    assert aws.everything() == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no AWS credentials were found"),
        ({"AWS_REGION": "us-est-1", "AWS_DEFAULT_REGION": "us-est-1"}, "'us-est-1' is not a region with SageMaker"),
        ({"AWS_REGION": None, "AWS_DEFAULT_REGION": None}, "no AWS region is set"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "AWS did not answer"),
        ({"AWS_PROFILE": "nobody"}, "no AWS credentials"),
    ],
)
def test_missing_credentials_region_or_network_are_errors(
    aws: AwsServer,
    neuron_sum: CommandLine,
    wheels: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str | None],
    told: str,
) -> None:
    for name, value in change.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    made = neuron_sum(*TRAIN, "--wheelhouse", str(wheels))
    assert made.returncode == 14, made.stderr
    assert f"error: {told}" in made.stderr
    assert made.stderr.splitlines()[-1].startswith("hint: ")


def test_a_plan_states_the_source_of_its_prices(aws: AwsServer, neuron_sum: CommandLine) -> None:
    table = json.loads(neuron_sum("aws", "plan", "trn1-flan-t5-base-lora", "--json").stdout)
    assert "2026-09-27" in str(table["items"]) and "no live price" in str(table["items"])
    training, hosting = ("ml.trn1.2xlarge", "Training"), ("ml.inf2.xlarge", "Hosting")
    cpu = ("ml.c7i.4xlarge", "Training")
    aws.script.prices = {training: [1.5], ("ml.trn1.2xlarge", "Hosting"): [9.0], hosting: [1.0], cpu: [0.9]}
    live = json.loads(neuron_sum("aws", "plan", "trn1-flan-t5-base-lora", "--json").stdout)
    priced = {item["kind"]: item for item in live["items"] if item["usd_per_hour"]}
    assert priced["endpoint"]["usd_per_hour"] == 1.0
    assert priced["endpoint"]["price_source"].startswith("AWS Price List, us-east-1")
    jobs, built = 1.5 * (4 + 720 / 3600) + 0.9 * (2 + 720 / 3600), 61 * 0.01
    hosted = 1.0 * (2 + 60 / 3600)  # the scheduler may be a minute late
    assert live["worst_usd"] == pytest.approx(jobs + built + hosted, abs=0.01)
    aws.script.prices[training] = [1.5, 1.6]
    unclear = neuron_sum("aws", "plan", "trn1-flan-t5-base-lora")
    assert unclear.returncode == 14
    assert "2 prices of ml.trn1.2xlarge for Training in us-east-1: 1.5, 1.6" in unclear.stderr


def test_a_plan_above_its_limit_is_rejected(aws: AwsServer, neuron_sum: CommandLine, wheels: Path) -> None:
    made = neuron_sum("aws", "plan", "tiny", "--offline", "--max-usd", "1")
    assert made.returncode == 14
    assert "the maximum cost is $" in made.stderr and "--max-usd allows $1.00" in made.stderr
    started = neuron_sum(*TRAIN, "--wheelhouse", str(wheels), "--max-usd", "1")
    assert started.returncode == 14
    assert aws.everything() == aws.kept() == []
