"""`neuron-sum aws deploy`, `extend`, `invoke`, `models`: from a model to an endpoint, and its deletion by AWS."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from aws_endpoints import tick
from aws_faults import hasten
from aws_inputs import (
    BUCKET,
    CHECKPOINT,
    CPU,
    IMAGE,
    PRECOMPILED,
    RUN,
    add_images,
    archive,
    compiled,
    digest_of,
    failed,
    told,
    vllm_archive,
)
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from far_end import FarEnd
from in_process import neuron_sum

from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext, Run
from sagemaker_jobs.launch import channels
from sagemaker_jobs.launch.schedules import time_of


@pytest.fixture
def aws(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AwsServer:
    """conftest's account without pauses; its registry has neuron-sum's images."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(tmp_path)
    add_images(aws)
    return aws


@dataclass(frozen=True)
class Deployed:
    """An endpoint of RUN for three hours.

    Attributes:
        before: A time shortly before the command.
        result: The output of `aws deploy --json`.
        stderr: The other output.
    """

    before: datetime
    result: dict[str, Any]
    stderr: str


@pytest.fixture
def deployed(aws: AwsServer) -> Deployed:
    compiled(aws, RUN, "cpu")
    compiled(aws, RUN, "cpu", 2, "Failed")
    aws.script.log = ("Model server started.",)
    before = datetime.now(timezone.utc)
    made = neuron_sum("aws", "deploy", RUN.id, *CPU, "--hours", "3", "--json")
    return Deployed(before, told(made), made.stderr)


def test_deploy_serves_the_newest_completed_compile_job(aws: AwsServer, deployed: Deployed) -> None:
    result, stderr = deployed.result, deployed.stderr
    assert (
        result["endpoint"] == RUN.name("endpoint") and result["address"] == f"sagemaker:{RUN.name('endpoint')}@{REGION}"
    )
    assert result["plan"]["worst_usd"] == pytest.approx((3 + 1 / 60) * 0.857, abs=0.01)
    assert "Creating" in stderr and "InService" in stderr and "Model server started." in stderr
    model = aws.boto3("sagemaker").describe_model(ModelName=RUN.name("model"))["PrimaryContainer"]
    assert model["Image"] == result["pinned"] == digest_of(aws), "the newest for this target"
    assert result["image"] == IMAGE
    assert model["ModelDataUrl"].startswith(f"s3://{BUCKET}/neuron-sum/runs/{RUN.id}/output/{RUN.name('compile')}/")
    assert "already has an endpoint" in failed(neuron_sum("aws", "deploy", RUN.id, *CPU))


def test_deploy_creates_the_expiry_before_the_endpoint(aws: AwsServer, deployed: Deployed) -> None:
    order = [
        aws.calls.index(call)
        for call in (
            "scheduler.POST /schedules",
            "sagemaker.CreateModel",
            "sagemaker.CreateEndpointConfig",
            "sagemaker.CreateEndpoint",
        )
    ]
    assert order == sorted(order), "the expiry comes first"
    first = time_of(aws.boto3("scheduler").get_schedule(Name=RUN.name("expiry")))
    assert timedelta(hours=3) - timedelta(seconds=2) <= first - deployed.before <= timedelta(hours=3, minutes=2)


@pytest.mark.usefixtures("deployed")
def test_invoke_prints_the_answer_of_a_run_or_an_endpoint(
    aws: AwsServer, far_end: FarEnd, capfd: pytest.CaptureFixture[str]
) -> None:
    aws.script.serving[RUN.name("endpoint")] = f"{far_end.url}/invocations"
    Path("dialogue.txt").write_text("#Person1#: Hello.")
    capfd.readouterr()
    assert neuron_sum("aws", "invoke", RUN.id, "dialogue.txt", "--max-new-tokens", "9", "--json").exit_code == 0
    assert json.loads(capfd.readouterr().out)["summary_text"] == "#PERSON1#: HELLO."
    [(path, body, headers)] = far_end.seen
    assert path == "/invocations" and body["parameters"]["max_new_tokens"] == 9
    assert headers["Content-Type"] == headers["Accept"] == "application/json"
    far_end.script.append((422, {"error": {"code": 422, "message": "too long", "field": None}}, {}))
    refused = neuron_sum("aws", "invoke", RUN.name("endpoint"), "dialogue.txt")
    assert refused.exit_code == 12 and "too long" in capfd.readouterr().err


@pytest.mark.usefixtures("deployed")
def test_extend_moves_the_expiry(aws: AwsServer) -> None:
    schedule = aws.boto3("scheduler").get_schedule(Name=RUN.name("expiry"))
    first = time_of(schedule)
    extended = told(neuron_sum("aws", "extend", RUN.id, "--hours", "5", "--json"))
    assert extended["ended_before"] == first.isoformat() and extended["worst_usd"] == pytest.approx(
        (5 + 1 / 60) * 0.857, abs=0.01
    )
    assert "the maximum cost is $4.30" in failed(neuron_sum("aws", "extend", RUN.id, "--hours", "5", "--max-usd", "1"))
    again = aws.boto3("scheduler").get_schedule(Name=RUN.name("expiry"))
    assert again["Target"] == schedule["Target"]
    last = time_of(again)
    assert last.isoformat() == extended["expires"]
    assert tick(first) == [] and tick(last - timedelta(seconds=1)) == []
    assert tick(last) == [RUN.name("endpoint")]


@pytest.fixture
def expired(aws: AwsServer, deployed: Deployed) -> None:
    """The endpoint of RUN is deleted by its schedule."""
    assert tick(datetime.fromisoformat(deployed.result["expires"])) == [RUN.name("endpoint")]


@pytest.mark.usefixtures("expired")
def test_an_expired_endpoint_is_gone(aws: AwsServer) -> None:
    Path("dialogue.txt").write_text("#Person1#: Hello.")
    assert not [left for left in aws.everything() if "endpoint " in left]
    gone = neuron_sum("aws", "invoke", RUN.id, "dialogue.txt")
    assert "no endpoint of" in failed(gone) and "deploy" in gone.stderr
    assert "no endpoint of" in failed(neuron_sum("aws", "extend", RUN.id, "--hours", "1"))


@pytest.mark.usefixtures("expired")
def test_deploy_replaces_the_remains_of_an_expired_endpoint(aws: AwsServer) -> None:
    older = IMAGE.replace("0123456789ab", "000000000000")
    told(neuron_sum("aws", "deploy", RUN.id, *CPU, "--image", older, "--json"))
    model = aws.boto3("sagemaker").describe_model(ModelName=RUN.name("model", 2))["PrimaryContainer"]
    assert model["Image"] == digest_of(aws, older) != digest_of(aws)
    assert f"model {RUN.name('model')}" not in aws.everything()
    assert neuron_sum("aws", "down", RUN.id, "--every", "0.01").exit_code == 0
    assert aws.everything() == []


@pytest.mark.usefixtures("deployed")
def test_a_deployment_just_after_a_deletion_has_new_names(aws: AwsServer) -> None:
    """AWS deletes asynchronously, so that the names of the deleted resources are still taken."""
    assert neuron_sum("aws", "down", RUN.id, "--every", "0.01").exit_code == 0
    again = told(neuron_sum("aws", "deploy", RUN.id, *CPU, "--hours", "5", "--json"))
    assert again["endpoint"] == RUN.name("endpoint"), "the clients' name"
    assert sorted(left.split()[1] for left in aws.everything()) == sorted(
        [RUN.name("config", 2), RUN.name("endpoint"), RUN.name("expiry"), RUN.name("model", 2)]
    )
    ends = time_of(aws.boto3("scheduler").get_schedule(Name=RUN.name("expiry")))
    assert ends.isoformat() == again["expires"]


@pytest.mark.usefixtures("deployed")
def test_an_endpoint_without_its_configuration_has_no_known_price(aws: AwsServer) -> None:
    aws.boto3("sagemaker").delete_endpoint_config(EndpointConfigName=RUN.name("config"))
    shown = told(neuron_sum("aws", "status", "--json"))
    assert shown["no_price_known"] == [f"endpoint {RUN.name('endpoint')}"] and shown["usd_per_hour"] is None


def test_an_expiry_that_comes_too_early_is_retried(aws: AwsServer) -> None:
    made = told(neuron_sum("aws", "deploy", archive(Path("model.tar.gz")), *CPU, "--detach", "--json"))
    assert made["status"] == "Creating"
    ends = datetime.fromisoformat(made["expires"])
    assert tick(ends) == [] and tick(ends + timedelta(days=8)) == []
    aws.script.endpoint_looks = 0
    aws.boto3("sagemaker").describe_endpoint(EndpointName=made["endpoint"])
    assert tick(ends + timedelta(days=8, minutes=10)) == [made["endpoint"]]
    assert tick(ends + timedelta(minutes=20)) == [], "what is gone is asked for in vain"


def test_the_lifetime_begins_after_the_uploads(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload may take longer than the lifetime: an expiry that passed before the endpoint exists bounds nothing."""
    clock, upload = [datetime.now(timezone.utc)], channels.upload

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return clock[0]

    def slowly(*given: Any) -> Any:
        yield from upload(*given)
        clock[0] += timedelta(hours=3)

    monkeypatch.setattr("sagemaker_jobs.launch.schedules.datetime", Later)
    monkeypatch.setattr("sagemaker_jobs.launch.start.upload", slowly)
    began = clock[0].replace(microsecond=0)
    words = ("aws", "deploy", archive(Path("model.tar.gz")), *CPU, "--detach", "--hours", "1", "--json")
    made = told(neuron_sum(*words))
    assert datetime.fromisoformat(made["expires"]) - began == timedelta(hours=4)
    schedule = aws.boto3("scheduler").get_schedule(Name=f"neuron-sum-{made['run']}-expiry")
    assert time_of(schedule).isoformat() == made["expires"]
    Path("texts.jsonl").write_text('{"inputs": "A: hi"}\n')
    began = clock[0].replace(microsecond=0)
    words = ("aws", "batch", "model.tar.gz", "texts.jsonl", *CPU, "--image", IMAGE, "--detach", "--max-hours", "1")
    made = told(neuron_sum(*words, "--json"))
    schedule = aws.boto3("scheduler").get_schedule(Name=f"neuron-sum-{made['run']}-batch-expiry")
    assert time_of(schedule) - began > timedelta(hours=4)
    assert tick(time_of(schedule)) == [made["job"]] and tick(time_of(schedule) + timedelta(minutes=10)) == []


def test_arns_have_the_partition_of_the_region(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    Path("texts.jsonl").write_text('{"inputs": "A: hi"}\n')
    model, words = archive(Path("model.tar.gz")), (*CPU, "--region", "cn-north-1", "--dry-run", "--offline", "--json")
    for command in (("deploy", model), ("batch", model, "texts.jsonl")):
        requests = neuron_sum("aws", *command, *words).stdout
        assert "arn:aws-cn:scheduler:::aws-sdk:sagemaker:" in requests and "arn:aws:" not in requests
    assert "unknown region 'nowhere'" in failed(neuron_sum("aws", "deploy", model, *words, "--region", "nowhere"))


def test_keep_must_be_explicit_and_extend_adds_an_expiry(aws: AwsServer) -> None:
    model = archive(Path("model.tar.gz"))
    assert "--keep and --hours 1 cannot be combined" in failed(
        neuron_sum("aws", "deploy", model, *CPU, "--keep", "--hours", "1")
    )
    assert "--max-usd 5" in failed(neuron_sum("aws", "deploy", model, *CPU, "--keep", "--max-usd", "5"))
    shown = neuron_sum("aws", "deploy", model, *CPU, "--keep", "--dry-run")
    assert "unbounded: $0.86 an hour until you delete it" in shown.stdout
    made = told(neuron_sum("aws", "deploy", model, *CPU, "--keep", "--json"))
    assert made["expires"] is None and made["plan"]["worst_usd"] is None
    assert not any("scheduler" in call for call in aws.calls if "POST" in call)
    extended = told(neuron_sum("aws", "extend", made["run"], "--hours", "1", "--json"))
    assert extended["ended_before"] is None
    assert {entry.kind for entry in Ledger(AwsContext(ACCOUNT, REGION)).open(made["run"])} >= {
        "schedule",
        "endpoint",
    }
    assert tick(datetime.fromisoformat(extended["expires"])) == [made["endpoint"]]


def test_autoscaling_is_bounded_by_the_plan(aws: AwsServer) -> None:
    model = archive(Path("model.tar.gz"), "inf2")
    scaled = ("--max-instances", "3", "--invocations-per-instance", "60", "--every", "0.01")
    assert "the maximum cost is $5.99" in failed(neuron_sum("aws", "deploy", model, *scaled, "--max-usd", "5"))
    assert "--invocations-per-instance 60" in failed(neuron_sum("aws", "deploy", model, "--max-instances", "3"))
    assert aws.everything() == []
    made = told(neuron_sum("aws", "deploy", model, *scaled, "--json"))
    scaling = aws.boto3("application-autoscaling")
    [target] = scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)
    [policy] = scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 60
    extended = told(neuron_sum("aws", "extend", made["endpoint"], "--hours", "1", "--json"))
    assert extended["worst_usd"] == pytest.approx(3 * 0.99 * (1 + 1 / 60), abs=0.01)
    assert tick(datetime.fromisoformat(extended["expires"])) == [made["endpoint"]], "its scaling does not keep it"
    assert not [left for left in aws.everything() if left.startswith(("endpoint ", "scaling-target "))]
    assert neuron_sum("aws", "down", made["run"], "--every", "0.01").exit_code == 0
    assert aws.everything() == []


def test_the_frozen_container_is_deployed_with_a_warning(aws: AwsServer) -> None:
    model = archive(Path("frozen.tar.gz"), properties="option.entryPoint=djl_python.transformers_neuronx\n")
    made = neuron_sum("aws", "deploy", model, "--image", "djl-0.30-neuronx", "--every", "0.01", "--json")
    assert told(made)["image"].endswith("/djl-inference:0.30.0-neuronx-sdk2.20.1")
    assert "has not been supported since 2025-09-16" in made.stderr


def test_a_llama_is_deployed_with_the_environment_of_its_archive(
    aws: AwsServer, capfd: pytest.CaptureFixture[str]
) -> None:
    model = vllm_archive(Path("llama.tar.gz"), CHECKPOINT)
    made = told(neuron_sum("aws", "deploy", model, "--image", "hf-vllm", "--every", "0.01", "--json"))
    repository = "huggingface-vllm-inference-neuronx"
    assert made["image"].endswith(
        f".amazonaws.com/{repository}:0.11.0-optimum0.4.5-neuronx-py310-sdk2.26.1-ubuntu22.04"
    )
    run, sagemaker = Run(made["run"], ""), aws.boto3("sagemaker")
    container = sagemaker.describe_model(ModelName=run.name("model"))["PrimaryContainer"]
    assert container["Environment"] == CHECKPOINT
    config = sagemaker.describe_endpoint_config(EndpointConfigName=run.name("config"))
    [variant] = config["ProductionVariants"]
    assert variant["InferenceAmiVersion"] == "al2-ami-sagemaker-inference-neuron-2"
    told(neuron_sum("aws", "down", run.id, "--artifacts", "--json"))
    aws.reset()
    aws.set_up(reads=["s3://other/"])
    aws.boto3("s3").create_bucket(Bucket="other")
    aws.boto3("s3").upload_file(vllm_archive(Path("llama.tar.gz"), PRECOMPILED), "other", "llama.tar.gz")
    words = ("aws", "deploy", "s3://other/llama.tar.gz", "--image", "hf-vllm", "--network-isolation")
    assert "reads the manifest or the container's environment from s3://other" in neuron_sum(*words, "--dry-run").stderr
    made = neuron_sum(*words, "--every", "0.01")
    assert made.exit_code == 0 and "dialogue.txt --chat" in made.stdout, made.stderr
    [name] = [each["ModelName"] for each in sagemaker.list_models()["Models"]]
    assert sagemaker.describe_model(ModelName=name)["PrimaryContainer"]["Environment"] == PRECOMPILED
    invoked = neuron_sum("aws", "invoke", "llama-x", "d.txt", "--chat", "--dry-run")
    assert invoked.stdout.split()[-1] == "--chat" and "--batch-size" not in invoked.stdout


def test_several_models_on_one_endpoint(aws: AwsServer, far_end: FarEnd, capfd: pytest.CaptureFixture[str]) -> None:
    compiled(aws, RUN, "cpu")
    one, other = archive(Path("one.tar.gz")), archive(Path("other.tar.gz"))
    words = ("aws", "deploy", "--multi-model", one, f"trained={RUN.id}", *CPU)
    made = told(neuron_sum(*words, "--json"))
    run, sagemaker = Run(made["run"], ""), aws.boto3("sagemaker")
    assert made["models"] == ["one", "trained"] and made["run"] != RUN.id
    container = sagemaker.describe_model(ModelName=run.name("model"))["PrimaryContainer"]
    prefix = f"neuron-sum/runs/{run.id}/models/"
    assert container["Mode"] == "MultiModel" and container["ModelDataUrl"] == f"s3://{BUCKET}/{prefix}"
    keys = {item["Key"] for item in aws.boto3("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]}
    assert keys == {f"{prefix}one.tar.gz", f"{prefix}trained.tar.gz"}

    added = told(neuron_sum("aws", "models", run.id, "--add", other, "--json"))
    assert [model["name"] for model in added["models"]] == ["one", "other", "trained"]
    assert "another name with other-2=SOURCE" in failed(neuron_sum("aws", "models", run.id, "--add", other))
    removed = neuron_sum("aws", "models", run.id, "--remove", "one", "--json")
    assert [model["name"] for model in told(removed)["models"]] == ["other", "trained"]
    assert "no documented call that unloads a model" in removed.stderr
    assert "one of its models: other, trained" in failed(neuron_sum("aws", "models", run.id, "--remove", "one"))

    aws.script.serving["other.tar.gz"] = f"{far_end.url}/models/other/invoke"
    Path("dialogue.txt").write_text("hello")
    capfd.readouterr()
    assert neuron_sum("aws", "invoke", run.id, "dialogue.txt", "--target-model", "other").exit_code == 0
    assert capfd.readouterr().out == "HELLO\n"
    assert [path for path, _, _ in far_end.seen] == ["/models/other/invoke"]
    assert neuron_sum("aws", "invoke", run.id, "dialogue.txt", "--target-model", "one").exit_code == 12
    assert "one.tar.gz" in capfd.readouterr().err
    assert neuron_sum("aws", "down", run.id, "--artifacts", "--every", "0.01").exit_code == 0
    assert "Contents" not in aws.boto3("s3").list_objects_v2(Bucket=BUCKET, Prefix=prefix)


def test_model_commands_require_a_multi_model_endpoint(aws: AwsServer) -> None:
    made = told(neuron_sum("aws", "deploy", archive(Path("model.tar.gz")), *CPU, "--json"))
    assert "is not a multi-model endpoint" in failed(neuron_sum("aws", "models", made["run"]))


@pytest.mark.parametrize("offline", [True, False])
def test_dry_runs_send_nothing(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    if offline:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        compiled(aws, RUN, "inf2")
    before = list(aws.calls)
    words = ("--dry-run", "--json", *(["--offline"] if offline else []))
    scaled = ("--max-instances", "2", "--invocations-per-instance", "9")
    requests = told(neuron_sum("aws", "deploy", RUN.id, *scaled, *words))["requests"]
    assert [each["operation"] for each in requests] == [
        "create_schedule",
        "create_model",
        "create_endpoint_config",
        "create_endpoint",
        "register_scalable_target",
        "put_scaling_policy",
    ]
    several = ("--multi-model", archive(Path("a.tar.gz")), *CPU)
    requests = told(neuron_sum("aws", "deploy", *several, *words))["requests"]
    assert [each["operation"] for each in requests].count("copy_object") == 1
    assert told(neuron_sum("aws", "invoke", RUN.id, "--dry-run", "--json"))["command"][:2] == ["neuron-sum", "request"]
    if offline:
        extended = told(neuron_sum("aws", "extend", RUN.id, "--hours", "1", *words))["requests"]
        assert [each["operation"] for each in extended] == ["update_schedule"]
        added = told(neuron_sum("aws", "models", RUN.id, "--add", "a.tar.gz", "--remove", "b", *words))["requests"]
        assert [each["operation"] for each in added] == ["put_object", "copy_object", "delete_object"]
        assert aws.calls == before
    assert {call.partition(".")[2].split()[0][:6] for call in aws.calls[len(before) :]} <= {
        "GetCal",
        "GetPro",
        "ListTr",
        "Descri",
        "ListTa",
    }
