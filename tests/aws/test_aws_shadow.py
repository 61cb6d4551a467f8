"""`aws deploy --shadow`: a second model on the endpoint gets copies of the requests; its answers are only captured."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from aws_endpoints import tick
from aws_faults import hasten
from aws_inputs import BUCKET, CPU, RUN, add_images, archive, compiled, digest_of, failed, told
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from far_end import FarEnd
from in_process import neuron_sum
from moto.sagemaker.models import sagemaker_backends

from neuron_sum.monitoring.requests import Item, read_items
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext, Run

NEW = Run("tiny-261122-0900-beef", "tiny")
DEPLOY = ("aws", "deploy", RUN.id, "--shadow", NEW.id, *CPU)
USD_PER_HOUR, QUOTA = 0.857, "ml.c7i.4xlarge for endpoint usage"


@pytest.fixture
def aws(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AwsServer:
    """conftest's account without pauses, with two compiled models."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(tmp_path)
    add_images(aws)
    compiled(aws, RUN, "cpu")
    compiled(aws, NEW, "cpu")
    return aws


def test_the_endpoint_serves_the_first_model_and_copies_to_the_shadow(aws: AwsServer) -> None:
    made = told(neuron_sum(*DEPLOY, "--json"))
    sagemaker = aws.boto3("sagemaker")
    config = sagemaker.describe_endpoint_config(EndpointConfigName=RUN.name("config"))
    [variant], [shadow] = config["ProductionVariants"], config["ShadowProductionVariants"]
    assert {**variant, "VariantName": "shadow", "ModelName": RUN.name("shadow")} == shadow, "equal weights copy all"
    assert made["run"] == RUN.id and variant["VariantName"] == "main" and variant["ModelName"] == RUN.name("model")
    for run, name in ((RUN, "model"), (NEW, "shadow")):
        container = sagemaker.describe_model(ModelName=RUN.name(name))["PrimaryContainer"]
        assert container["ModelDataUrl"].startswith(f"s3://{BUCKET}/neuron-sum/runs/{run.id}/output/")
        assert container["Image"] == digest_of(aws)
    assert made["shadow"] == NEW.id


def test_both_models_are_priced_and_count_against_the_quota(aws: AwsServer) -> None:
    words = (*DEPLOY, "--hours", "3", "--instances", "2")
    most = 4 * USD_PER_HOUR * (3 + 1 / 60)
    assert f"the maximum cost is ${most:.2f}" in failed(neuron_sum(*words, "--max-usd", f"{most - 0.1:.2f}"))
    aws.script.quotas = {QUOTA: 3}
    assert f"{QUOTA!r} is 3 in {REGION}, but the launch needs 4" in failed(neuron_sum(*words))
    assert aws.everything() == []
    aws.script.quotas = {QUOTA: 4}
    made = told(neuron_sum(*words, "--json"))
    assert made["usd_per_hour"] == pytest.approx(4 * USD_PER_HOUR)
    assert made["plan"]["worst_usd"] == pytest.approx(most, abs=0.01)
    extended = told(neuron_sum("aws", "extend", RUN.id, "--hours", "1", "--json"))
    assert extended["worst_usd"] == pytest.approx(4 * USD_PER_HOUR * (1 + 1 / 60), abs=0.01)
    [endpoint] = [each for each in told(neuron_sum("aws", "status", "--json"))["ours"] if each["kind"] == "endpoint"]
    assert endpoint["instances"] == 4 and endpoint["usd_per_hour"] == pytest.approx(4 * USD_PER_HOUR)


def test_the_first_cost_line_names_the_shadow_and_how_to_see_its_answers(aws: AwsServer) -> None:
    made = neuron_sum(*DEPLOY)
    assert made.exit_code == 0 and f"shadow: {NEW.id} gets a copy" in made.stdout and "$1.71 an hour" in made.stdout
    assert "without --capture" in made.stderr


def test_after_its_expiry_nothing_of_the_shadow_is_used_again(aws: AwsServer) -> None:
    made = told(neuron_sum(*DEPLOY, "--json"))
    assert tick(datetime.fromisoformat(made["expires"])) == [RUN.name("endpoint")]
    assert f"model {RUN.name('shadow')}" in {" ".join(left.split()[:2]) for left in aws.everything()}
    told(neuron_sum("aws", "deploy", RUN.id, *CPU, "--json"))
    assert f"model {RUN.name('shadow')}" not in {" ".join(left.split()[:2]) for left in aws.everything()}
    config = aws.boto3("sagemaker").describe_endpoint_config(EndpointConfigName=RUN.name("config", 2))
    assert not config.get("ShadowProductionVariants")
    told(neuron_sum("aws", "down", RUN.id, "--every", "0.01", "--json"))
    assert aws.everything() == []


def test_down_deletes_both_models(aws: AwsServer) -> None:
    told(neuron_sum(*DEPLOY, "--json"))
    told(neuron_sum("aws", "down", RUN.id, "--every", "0.01", "--json"))
    assert aws.everything() == [] and Ledger(AwsContext(ACCOUNT, REGION)).open() == []


@pytest.mark.parametrize("call", ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"])
def test_a_rejected_call_is_rolled_back(aws: AwsServer, call: str) -> None:
    aws.script.refusals[f"sagemaker.{call}"] = ("ValidationException", "no", 400)
    assert "everything was rolled back" in failed(neuron_sum(*DEPLOY))
    assert aws.everything() == [] and Ledger(AwsContext(ACCOUNT, REGION)).open() == []


def test_a_shadow_that_fails_is_rolled_back_with_the_cause_in_its_log(aws: AwsServer) -> None:
    aws.script.endpoint_end, aws.script.reason = "Failed", "The shadow container did not pass the ping health check."
    aws.script.log_variant, aws.script.log = "shadow", ("a line of the shadow",)
    failure = neuron_sum(*DEPLOY)
    assert "did not pass the ping" in failed(failure) and "a line of the shadow" in failure.stderr
    assert aws.everything() == []


def test_the_next_type_is_tried_for_both(aws: AwsServer) -> None:
    aws.script.shortages = {"ml.inf2.xlarge": 1}
    one, other = archive(Path("one.tar.gz"), "inf2"), archive(Path("other.tar.gz"), "inf2")
    words = ("--instance", "ml.inf2.xlarge,ml.inf2.8xlarge", "--every", "0.01", "--json")
    made = told(neuron_sum("aws", "deploy", one, "--shadow", other, *words))
    name = Run(made["run"], "").name("config", 2)
    config = aws.boto3("sagemaker").describe_endpoint_config(EndpointConfigName=name)
    variants = [*config["ProductionVariants"], *config["ShadowProductionVariants"]]
    assert [each["InstanceType"] for each in variants] == ["ml.inf2.8xlarge"] * 2
    assert {each["InferenceAmiVersion"] for each in variants} == {"al2-ami-sagemaker-inference-neuron-2"}


def test_captured_answers_are_told_apart_by_variant(aws: AwsServer, far_end: FarEnd) -> None:
    name = RUN.name("endpoint")
    aws.script.serving |= {name: f"{far_end.url}/invocations", f"{name}/shadow": f"{far_end.url}/shadow"}
    told(neuron_sum(*DEPLOY, "--capture", "100", "--json"))
    far_end.script.extend([None, (200, [{"summary_text": "new", "truncated": False}], {})])
    answer = aws.boto3("sagemaker-runtime").invoke_endpoint(
        EndpointName=name,
        ContentType="application/json",
        Accept="application/json",
        Body=json.dumps({"inputs": ["A: hi"]}),
    )
    assert json.loads(answer["Body"].read())[0]["summary_text"] == "A: HI", "the caller gets the first model's answer"
    assert [path for path, _, _ in far_end.seen] == ["/invocations", "/shadow"] and far_end.sent == [["A: hi"]] * 2
    copied = neuron_sum("aws", "captured", RUN.id, "--unredacted", "--keep")
    for variant in ("main", "shadow"):
        assert f"neuron-sum watch captured/{name}/{variant} --run RUN_FOLDER" in copied.stdout
    copied = told(neuron_sum("aws", "captured", RUN.id, "--unredacted", "--json"))
    assert copied["variants"] == {each: f"captured/{name}/{each}" for each in ("main", "shadow")}
    for variant, summary in (("main", "A: HI"), ("shadow", "new")):
        [path] = Path(copied["variants"][variant]).rglob("*.jsonl")
        [item] = read_items(path)
        assert isinstance(item, Item) and (item.dialogue, item.summary) == ("A: hi", summary)


def test_what_a_shadow_cannot_be_combined_with(aws: AwsServer) -> None:
    one, other = archive(Path("one.tar.gz")), archive(Path("other.tar.gz"), "inf2")
    several = neuron_sum("aws", "deploy", "--multi-model", one, "--shadow", NEW.id, *CPU)
    assert "no shadow variants of multi-model endpoints" in failed(several)
    scaled = ("--max-instances", "2", "--invocations-per-instance", "60")
    assert "--shadow and --max-instances cannot be combined" in failed(neuron_sum(*DEPLOY, *scaled))
    assert "compiled for inf2" in failed(neuron_sum("aws", "deploy", RUN.id, "--shadow", other, *CPU))
    same = failed(neuron_sum("aws", "deploy", RUN.id, "--shadow", RUN.id, *CPU))
    assert f"--shadow {RUN.id} is the model that the endpoint serves" in same
    missing = failed(neuron_sum("aws", "deploy", RUN.id, "--shadow", "s3://other/model.tar.gz", *CPU))
    assert "s3://other/model.tar.gz" in missing
    assert aws.everything() == []


@pytest.mark.parametrize("offline", [True, False])
def test_a_dry_run_prints_both_models(aws: AwsServer, offline: bool) -> None:
    words = ("--dry-run", "--json", *(["--offline"] if offline else []))
    shown = told(neuron_sum("aws", "deploy", RUN.id, "--shadow", archive(Path("new.tar.gz")), *CPU, *words))
    operations = ["put_object", "create_schedule", *["create_model"] * 2, "create_endpoint_config", "create_endpoint"]
    assert [each["operation"] for each in shown["requests"]] == operations
    assert shown["plan"]["worst_usd"] == pytest.approx(2 * USD_PER_HOUR * (2 + 1 / 60), abs=0.01)
    assert aws.everything() == []


def test_variants_that_somebody_changed_are_not_extended(aws: AwsServer) -> None:
    told(neuron_sum(*DEPLOY, "--json"))
    config = sagemaker_backends[ACCOUNT][REGION].endpoint_configs[RUN.name("config")]
    config.shadow_production_variants[0]["InstanceType"] = "ml.c7i.8xlarge"
    error = failed(neuron_sum("aws", "extend", RUN.id, "--hours", "1"))
    assert "main, shadow on ml.c7i.4xlarge, ml.c7i.8xlarge" in error
