"""`aws deploy --capture` and `aws captured`: requests are stored for a limited time, and copied redacted."""

import json
from pathlib import Path
from typing import Any

import pytest
from aws_faults import hasten
from aws_iam import role_may
from aws_inputs import BUCKET, CPU, RUN, add_images, archive, compiled, failed, told
from aws_requests import KEY
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from far_end import FarEnd
from in_process import neuron_sum

from neuron_sum.monitoring.requests import Item, find_files, read_items

PREFIX = f"neuron-sum/capture/{RUN.id}/"
DEPLOY = ("aws", "deploy", RUN.id, *CPU, "--hours", "1")
CAPTURED = ("aws", "captured", RUN.id)
OLD = {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}}
HOOK = "def upper(text):\n    return text.upper()\n\ndef broken(text):\n    raise ValueError(text)\n"


@pytest.fixture
def aws(aws: AwsServer, far_end: FarEnd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AwsServer:
    """conftest's account, with a compiled model and a server for its endpoint."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(tmp_path)
    add_images(aws)
    compiled(aws, RUN, "cpu")
    aws.script.serving[RUN.name("endpoint")] = f"{far_end.url}/invocations"
    Path("hooks.py").write_text(HOOK)
    return aws


def ask(aws: AwsServer, text: str) -> None:
    aws.boto3("sagemaker-runtime").invoke_endpoint(
        EndpointName=RUN.name("endpoint"),
        ContentType="application/json",
        Accept="application/json",
        Body=json.dumps({"inputs": [text]}),
    )


def stored(aws: AwsServer) -> list[str]:
    listing = aws.boto3("s3").list_objects_v2(Bucket=BUCKET, Prefix="neuron-sum/capture/")
    return [item["Key"] for item in listing.get("Contents", [])]


def capture_of(aws: AwsServer) -> dict[str, Any] | None:
    found = aws.boto3("sagemaker").describe_endpoint_config(EndpointConfigName=RUN.name("config"))
    return found.get("DataCaptureConfig") or None


def test_capture_is_off_by_default(aws: AwsServer) -> None:
    assert "captured" not in told(neuron_sum(*DEPLOY, "--json")) and capture_of(aws) is None
    ask(aws, "A: hi")
    assert stored(aws) == []


def test_captured_requests_are_copied_redacted_and_deleted(aws: AwsServer) -> None:
    made = told(neuron_sum(*DEPLOY, "--capture", "20", "--json"))
    assert made["captured"] == f"s3://{BUCKET}/{PREFIX}"
    config = capture_of(aws)
    assert config is not None and config["InitialSamplingPercentage"] == 20 and "KmsKeyId" not in config
    ask(aws, "A: my name is Ann")
    ask(aws, "B: hi")
    assert len(stored(aws)) == 2 and stored(aws)[0].startswith(f"{PREFIX}{RUN.name('endpoint')}/main/")
    assert "either --redact" in failed(neuron_sum(*CAPTURED))
    assert "either --redact" in failed(neuron_sum(*CAPTURED, "--redact", "hooks:upper", "--unredacted"))
    broken = failed(neuron_sum(*CAPTURED, "--redact", "hooks:broken"), 4)
    assert "ValueError" in broken and len(stored(aws)) == 2, "nothing is deleted"
    assert [path for path in Path("captured").rglob("*") if path.is_file()] == [], "nothing is copied"
    assert len(told(neuron_sum(*CAPTURED, "--redact", "hooks:upper", "--keep", "--json"))["files"]) == 2
    assert len(stored(aws)) == 2
    copied = told(neuron_sum(*CAPTURED, "--redact", "hooks:upper", "--json"))
    assert len(copied["files"]) == 2 and stored(aws) == []
    found = find_files([Path("captured")])
    items = [item for path in found.captured for item in read_items(path)]
    assert all(isinstance(item, Item) for item in items), items
    dialogues = {item.dialogue for item in items if isinstance(item, Item)}
    assert dialogues == {"A: MY NAME IS ANN", "B: HI"} and found.other == []
    assert not list(Path().glob(".captured-*"))
    assert told(neuron_sum(*CAPTURED, "--unredacted", "--json"))["files"] == []


def test_lines_that_cannot_be_read_stay_in_s3(aws: AwsServer) -> None:
    s3 = aws.boto3("s3")
    s3.put_object(Bucket=BUCKET, Key=f"{PREFIX}a.jsonl", Body=b"my name is Ann\n")
    s3.put_object(Bucket=BUCKET, Key=f"{PREFIX}b.jsonl", Body=b'{"text": "Ann"}\n')
    ended = neuron_sum(*CAPTURED, "--redact", "hooks:upper", "--json")
    assert told(ended)["incomplete"] == {f"{PREFIX}a.jsonl": 1} and stored(aws) == [f"{PREFIX}a.jsonl"]
    assert Path("captured/a.jsonl").read_text() == "{}\n"
    assert Path("captured/b.jsonl").read_text() == '{"text": "ANN"}\n'


def test_down_keeps_captured_requests_unless_told_otherwise(aws: AwsServer) -> None:
    told(neuron_sum(*DEPLOY, "--capture", "100", "--json"))
    ask(aws, "A: hi")
    kept = told(neuron_sum("aws", "down", RUN.id, "--every", "0.01", "--json"))
    assert f"s3://{BUCKET}/{PREFIX}" in [each["address"] for each in kept["artifacts"]] and len(stored(aws)) == 1
    gone = told(neuron_sum("aws", "down", RUN.id, "--captured", "--every", "0.01", "--json"))
    left = [each["address"] for each in gone["artifacts"] if each["address"].startswith("s3://")]
    assert stored(aws) == [] and left == [f"s3://{BUCKET}/neuron-sum/runs/{RUN.id}/"]
    aws.boto3("s3").put_object(Bucket=BUCKET, Key=f"{PREFIX}late.jsonl", Body=b"{}")
    told(neuron_sum("aws", "down", "--all", "--artifacts", "--every", "0.01", "--json"))
    assert stored(aws) == []


@pytest.mark.parametrize(
    "rule",
    [
        None,
        {"Filter": {"Prefix": "neuron-sum/capture/"}, "Expiration": {"Days": 8}, **OLD},
        {"Filter": {"Prefix": "neuron-sum/captured/"}, "Expiration": {"Days": 7}, **OLD},
        {"Filter": {"Prefix": "neuron-sum/capture/"}, "Expiration": {"Days": 7}, "Status": "Disabled", **OLD},
        {"Filter": {"Prefix": "neuron-sum/capture/"}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}},
        {"Filter": {"Prefix": "neuron-sum/capture/"}, "Expiration": {"Days": 7}},
    ],
)
def test_a_bucket_that_keeps_captured_requests_is_rejected(aws: AwsServer, rule: dict[str, Any] | None) -> None:
    s3 = aws.boto3("s3")
    if rule is None:
        s3.delete_bucket_lifecycle(Bucket=BUCKET)
    else:
        rules = [{"ID": "mine", "Status": "Enabled", **rule}]
        s3.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": rules})
    assert "no lifecycle rule" in failed(neuron_sum(*DEPLOY, "--capture", "20"))
    assert aws.everything() == []


def test_capture_needs_an_expiry_and_one_model(aws: AwsServer) -> None:
    keep = neuron_sum("aws", "deploy", RUN.id, *CPU, "--keep", "--capture", "5")
    assert "--capture and --keep cannot be combined" in failed(keep)
    several = neuron_sum("aws", "deploy", "--multi-model", archive(Path("one.tar.gz")), *CPU, "--capture", "5")
    assert "multi-model" in failed(several)
    assert neuron_sum(*DEPLOY, "--capture", "0").exit_code == 2


def test_captured_requests_have_the_key_of_the_stack(aws: AwsServer) -> None:
    aws.reset()
    aws.set_up(kms_key=KEY)
    add_images(aws)
    compiled(aws, RUN, "cpu")
    told(neuron_sum(*DEPLOY, "--capture", "5", "--json"))
    config = capture_of(aws)
    assert config is not None and config["KmsKeyId"] == KEY


def test_the_endpoint_may_only_write_captured_requests(aws: AwsServer) -> None:
    role, file = f"arn:aws:iam::{ACCOUNT}:role/neuron-sum-{REGION}-endpoint", f"arn:aws:s3:::{BUCKET}/{PREFIX}a.jsonl"
    assert role_may(role, "s3:PutObject", file)
    assert not role_may(role, "s3:GetObject", file) and not role_may(role, "s3:DeleteObject", file)
    for other in ("runs", "inputs", "cache"):
        assert not role_may(role, "s3:PutObject", f"arn:aws:s3:::{BUCKET}/neuron-sum/{other}/x")


def test_a_file_that_sagemaker_does_not_write_is_rejected(aws: AwsServer) -> None:
    aws.boto3("s3").put_object(Bucket=BUCKET, Key=f"{PREFIX}../../x.jsonl", Body=b"{}")
    assert "SageMaker does not write" in failed(neuron_sum(*CAPTURED, "--unredacted"))
    assert "is not a run" in failed(neuron_sum("aws", "captured", "tiny", "--unredacted"))
