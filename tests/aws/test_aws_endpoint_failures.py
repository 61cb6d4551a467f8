"""`neuron-sum aws deploy` that fails: wrong input, rejected calls, a failed endpoint, a lost network, Ctrl-C."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from aws_endpoints import tick
from aws_faults import hasten
from aws_inputs import BUCKET, CHECKPOINT, CPU, IMAGE, RUN, add_images, archive, compiled, failed, told, vllm_archive
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from in_process import neuron_sum
from moto.scheduler.models import scheduler_backends

from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext


@pytest.fixture
def aws(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AwsServer:
    """conftest's account without pauses; its registry has neuron-sum's images."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(tmp_path)
    add_images(aws)
    return aws


REFUSALS: dict[str, tuple[str, tuple[str, str, int], str]] = {
    "quota": (
        "sagemaker.CreateEndpoint",
        ("ResourceLimitExceeded", "The account-level service limit 'ml.c7i.4xlarge for endpoint usage' is 0", 400),
        "request a higher quota",
    ),
    "no pass role": ("sagemaker.CreateModel", ("AccessDeniedException", "not authorized: PassRole", 400), "aws iam"),
    "scheduler": (
        "scheduler.POST /schedules", ("ServiceQuotaExceededException", "too many schedules", 402),
        "AWS error code: ServiceQuotaExceededException",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_rejected_deployment_is_rolled_back(aws: AwsServer, name: str) -> None:
    call, answer, remedy = REFUSALS[name]
    aws.script.refusals[call] = answer
    error = failed(neuron_sum("aws", "deploy", archive(Path("model.tar.gz")), *CPU))
    assert remedy in error and "everything was rolled back" in error
    assert aws.everything() == []
    assert Ledger(AwsContext(ACCOUNT, REGION)).open() == []


SCALED = ("--max-instances", "2", "--invocations-per-instance", "60")


@pytest.mark.parametrize("operation", ["RegisterScalableTarget", "PutScalingPolicy"])
def test_an_endpoint_in_service_is_kept_if_its_scaling_fails(aws: AwsServer, operation: str) -> None:
    model = archive(Path("model.tar.gz"))
    aws.script.refusals[f"application-autoscaling.{operation}"] = ("LimitExceededException", "too many targets", 400)
    result = neuron_sum("aws", "deploy", model, *CPU, *SCALED)
    error = failed(result)
    assert "is in service, but its autoscaling failed" in error and "too many targets" in error
    assert "rolled back" not in result.stderr and "down model-" in error
    assert {left.split()[0] for left in aws.everything()} >= {"endpoint", "schedule", "model", "endpoint-config"}
    aws.script.refusals.clear()
    assert neuron_sum("aws", "down", "--all", "--every", "0.01").exit_code == 0
    assert aws.everything() == []


def test_the_service_linked_role_of_autoscaling_is_waited_for(aws: AwsServer) -> None:
    aws.script.scaling_role_unknown = aws.script.scaling_alarms_unknown = 3
    told(neuron_sum("aws", "deploy", archive(Path("model.tar.gz")), *CPU, *SCALED, "--json"))
    assert aws.calls.count("application-autoscaling.RegisterScalableTarget") == 4
    assert aws.calls.count("application-autoscaling.PutScalingPolicy") == 4


def test_a_resource_that_sagemaker_does_not_find_yet_is_waited_for(aws: AwsServer) -> None:
    told(neuron_sum("aws", "deploy", archive(Path("model.tar.gz")), *CPU, "--json"))
    assert [aws.calls.count(f"sagemaker.Create{each}") for each in ("Model", "EndpointConfig", "Endpoint")] == [1, 2, 2]
    Path("texts.jsonl").write_text('{"inputs": "A: hi"}\n')
    told(neuron_sum("aws", "batch", "model.tar.gz", "texts.jsonl", *CPU, "--detach", "--json"))
    assert aws.calls.count("sagemaker.CreateTransformJob") == 2


def test_a_failed_endpoint_is_rolled_back_with_its_reason(aws: AwsServer) -> None:
    aws.script.endpoint_end, aws.script.reason = "Failed", "The primary container did not pass the ping health check."
    aws.script.log = ("RuntimeError: neuronx-cc failed with -9",)
    compiled(aws, RUN, "cpu")
    result = neuron_sum("aws", "deploy", RUN.id, *CPU)
    error = failed(result)
    assert "failed: The primary container did not pass" in error and "compiler-killed" in error
    assert "everything was rolled back" in error
    assert aws.everything() == []
    assert result.stderr.index("deleting endpoint ") < result.stderr.index("deleting schedule ")


def test_a_rejected_deploy_keeps_the_schedule_of_a_batch_job(aws: AwsServer) -> None:
    """A batch job's schedule and model have the same kinds and the same run; without the schedule nothing stops it."""
    compiled(aws, RUN, "cpu")
    aws.script.looks = None
    Path("texts.jsonl").write_text('{"inputs": "A: hi"}\n')
    told(neuron_sum("aws", "batch", RUN.id, "texts.jsonl", *CPU, "--detach", "--json"))
    before = aws.everything()
    assert {left.split()[0] for left in before} == {"schedule", "model", "transform-job"}
    aws.script.refusals["sagemaker.CreateEndpoint"] = ("ResourceLimitExceeded", "the limit is 0", 400)
    assert "everything was rolled back" in failed(neuron_sum("aws", "deploy", RUN.id, *CPU))
    assert aws.everything() == before


def test_resources_that_cannot_be_rolled_back_are_reported(aws: AwsServer) -> None:
    aws.script.endpoint_end = "Failed"
    aws.script.refusals["sagemaker.DeleteEndpoint"] = ("AccessDeniedException", "not authorized", 400)
    result = neuron_sum("aws", "deploy", archive(Path("model.tar.gz")), *CPU)
    assert "the rollback also failed" in failed(result) and "neuron-sum aws down model-" in failed(result)
    assert [left.split()[0] for left in aws.everything()].count("schedule") == 1, "it still ends the endpoint"
    aws.script.refusals.clear()
    assert neuron_sum("aws", "down", "--all", "--every", "0.01").exit_code == 0
    assert aws.everything() == []


def test_an_unreadable_log_is_not_a_failure_of_the_endpoint(aws: AwsServer) -> None:
    model, denied = archive(Path("model.tar.gz")), ("AccessDeniedException", "not authorized", 400)
    aws.script.refusals["logs.DescribeLogStreams"] = denied
    made = neuron_sum("aws", "deploy", model, *CPU, "--json")
    assert told(made)["status"] == "InService" and made.stderr.count("continuing without the log") == 1
    aws.script.refusals["sagemaker.DescribeEndpoint"] = denied
    error = failed(neuron_sum("aws", "deploy", model, *CPU))
    assert "neuron-sum aws down model-" in error
    assert [left.split()[0] for left in aws.everything()].count("endpoint") == 2


def test_a_lost_network_is_reported_with_the_cleanup_command(aws: AwsServer) -> None:
    words = ("aws", "deploy", archive(Path("model.tar.gz")), *CPU, "--image", "another.registry/image:1")
    told(neuron_sum(*words, "--json"))
    point = aws.calls.index("sagemaker.CreateModel")
    aws.reset()
    aws.set_up()
    aws.fault, aws.point = "before", point
    error = failed(neuron_sum(*words))
    assert aws.hit == "sagemaker.CreateModel"
    assert "AWS did not answer" in error and "neuron-sum aws down model-" in error
    aws.point = None
    assert [left.split()[0] for left in aws.everything()].count("schedule") == 1


def test_ctrl_c_leaves_the_endpoint_to_its_expiry(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sagemaker_jobs.aws.logs.time", SimpleNamespace(sleep=interrupted))
    error = failed(neuron_sum("aws", "deploy", archive(Path("model.tar.gz")), *CPU), 130)
    assert "stopped waiting for" in error and "AWS deletes it" in error and "aws down" in error
    assert {left.split()[0] for left in aws.everything()} >= {"endpoint", "schedule"}


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no run": (("tiny-261121-2000-ffff",), "neuron-sum aws status"),
    "no compile that completed": ((RUN.id,), f"neuron-sum aws compile {RUN.id}"),
    "a cpu's on inf2": (("cpu.tar.gz", "--instance", "ml.inf2.xlarge"), "cpu was compiled for cpu"),
    "inf2's on a cpu": (("inf2.tar.gz", *CPU), "--instance ml.inf2.xlarge"),
    "no ml.": (("cpu.tar.gz", "--instance", "c7i.4xlarge"), "such as ml.c7i.4xlarge."),
    "Arm": (("cpu.tar.gz", "--instance", "ml.c7g.4xlarge"), "has an Arm processor"),
    "a GPU": (("cpu.tar.gz", "--instance", "ml.g5.2xlarge"), "neuron-sum cannot serve on"),
    "no file": (("nowhere.tar.gz", *CPU), "does not exist"),
    "a folder": ((".", *CPU), "neuron-sum package"),
    "no object": ((f"s3://{BUCKET}/neuron-sum/no/model.tar.gz", *CPU), "aws s3 ls"),
    "no archive in S3": ((f"s3://{BUCKET}/model", *CPU), "is not the S3 address of an archive"),
    "two": (("cpu.tar.gz", "cpu.tar.gz", *CPU), "--multi-model"),
    "several on inf2": (("inf2.tar.gz", "--multi-model"), "do not run on Inferentia2"),
    "one name twice": (("cpu.tar.gz", "cpu.tar.gz", "--multi-model", *CPU), "cpu-2=SOURCE"),
    "the frozen container's": (("frozen.tar.gz",), "--image djl-0.30-neuronx"),
    "not the frozen container's": (("inf2.tar.gz", "--image", "djl-0.30-neuronx"), "Omit --image"),
    "an image that is not there": (("cpu.tar.gz", *CPU, "--image", IMAGE + "c"), "not found"),
    "the vLLM container's": (("vllm.tar.gz",), "Use --image hf-vllm."),
    "the vLLM container's in another": (("vllm.tar.gz", "--image", "djl-0.30-neuronx"), "Use --image hf-vllm."),
    "not the vLLM container's": (("inf2.tar.gz", "--image", "hf-vllm"), "Omit --image hf-vllm."),
    "the vLLM container's on a cpu": (("vllm.tar.gz", "--image", "hf-vllm", *CPU), "--instance ml.inf2.xlarge"),
    "the vLLM container's twice": (
        ("vllm.tar.gz", "vllm.tar.gz", "--image", "hf-vllm", "--multi-model"), "do not run on Inferentia2",
    ),
    "a checkpoint without a network": (
        ("vllm.tar.gz", "--image", "hf-vllm", "--network-isolation"), "neuron-sum compile RUN --target inf2",
    ),
    "autoscaling nobody waits for": (
        ("cpu.tar.gz", *CPU, "--detach", "--max-instances", "2", "--invocations-per-instance", "9"), "--detach",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_and_a_remedy(aws: AwsServer, name: str) -> None:
    for target in ("cpu", "inf2"):
        archive(Path(f"{target}.tar.gz"), target)
    archive(Path("frozen.tar.gz"), properties="option.entryPoint=djl_python.transformers_neuronx\n")
    vllm_archive(Path("vllm.tar.gz"), CHECKPOINT)
    words, remedy = WRONG[name]
    if words == (RUN.id,):
        compiled(aws, RUN, "inf2", end="Failed")
    assert remedy in failed(neuron_sum("aws", "deploy", *words))
    assert aws.everything() == []


def test_a_missing_image_is_reported_with_the_build_command(aws: AwsServer) -> None:
    aws.boto3("ecr").batch_delete_image(repositoryName="neuron-sum", imageIds=[{"imageTag": "inf2-0123456789ab"}])
    model = archive(Path("model.tar.gz"), "inf2")
    assert "neuron-sum aws image --target inf2" in failed(neuron_sum("aws", "deploy", model))


def test_an_unknown_price_and_an_invalid_instance_are_rejected(aws: AwsServer) -> None:
    model = archive(Path("model.tar.gz"))
    words = ("aws", "deploy", model, "--instance", "ml.c99.huge", "--every", "0.01")
    assert "no price of ml.c99.huge" in failed(neuron_sum(*words), 13)
    aws.script.prices = {("ml.c99.huge", "Hosting"): [1.0]}
    error = failed(neuron_sum(*words))
    assert "ml.c99.huge" in error and "everything was rolled back" in error
    assert aws.everything() == []


@pytest.mark.parametrize("name", ["model (1)", "größe", "e\u0301te\u0301 💬", "模型", "{a}~b"])
def test_a_model_file_may_have_any_name(aws: AwsServer, name: str) -> None:
    made = told(neuron_sum("aws", "deploy", archive(Path(f"{name}.tar.gz")), *CPU, "--json"))
    assert made["status"] == "InService" and not made["run"].startswith("-")
    assert neuron_sum("aws", "down", made["run"], "--every", "0.01").exit_code == 0


def test_status_warns_of_an_endpoint_that_outlives_its_expiry(aws: AwsServer) -> None:
    started = datetime.now(timezone.utc) - timedelta(hours=2)
    made = told(neuron_sum("aws", "deploy", archive(Path("model.tar.gz")), *CPU, "--detach", "--json"))
    assert "should have been deleted" not in neuron_sum("aws", "status").stderr
    schedules = scheduler_backends[ACCOUNT][REGION].schedule_groups["default"].schedules
    for schedule in schedules.values():
        schedule.start_date = started.timestamp()
    for minutes in (0, 10):
        assert tick(datetime.fromtimestamp(started.timestamp(), timezone.utc) + timedelta(minutes=minutes)) == []
    status = neuron_sum("aws", "status", "--json")
    assert list(told(status)["rejected_calls"]) == [f"neuron-sum-{made['run']}-expiry"]
    assert told(status)["overdue"] == [made["endpoint"]]
    said = " ".join(status.stderr.split())
    assert f"{made['endpoint']} should have been deleted" in said and "aws down" in said
    assert "Could not delete the endpoint (the queue neuron-sum-expiry has 2 rejected calls" in said
    told(neuron_sum("aws", "down", made["run"], "--every", "0.01", "--json"))
    assert told(neuron_sum("aws", "status", "--json"))["rejected_calls"] == {}, "those of a deleted schedule"
