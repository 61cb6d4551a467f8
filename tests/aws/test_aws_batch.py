"""`neuron-sum aws batch`: its limits, its requests, its answers, and its leftovers."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from aws_faults import hasten
from aws_inputs import archive
from aws_inputs import compiled as compile_job
from aws_requests import STACK, check, runs, stacks
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from hypothesis import given
from hypothesis import strategies as st
from in_process import neuron_sum

from neuron_sum.recipes.schema import ServeConfig
from sagemaker_jobs.aws.names import RUN_TAG, Run, new_run
from sagemaker_jobs.batch import inputs as batch_texts
from sagemaker_jobs.batch import transform as batch
from sagemaker_jobs.endpoint.sources import Source
from sagemaker_jobs.launch.options import TransformOptions
from sagemaker_jobs.launch.schedules import time_of
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.stack.stack import Stack
from serving.parsing import parse
from serving.schema import JSON_LINES, render

BUCKET = f"neuron-sum-{ACCOUNT}-{REGION}"
IMAGE = "another.registry/theirs:1"
QUICK = ("--every", "0.01", "--json")
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {},
    "layers": [],
}
MODEL = Source("m", None, "s3://b/m.tar.gz")


@pytest.fixture
def aws(aws: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account, a packaged model and two dialogues in the folder; a job is described once while it runs."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(tmp_path)
    model_here(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "one.jsonl").write_text('{"inputs": "A: hi"}\n{"inputs": "B: hello"}\n')
    (tmp_path / "texts" / "two.jsonl").write_text('{"inputs": "C: \\u00e9"}')
    aws.script.looks = 1
    return aws


def model_here(folder: Path, target: str = "inf2") -> None:
    archive(folder / "model.tar.gz", target)


def result_of(*words: str) -> dict[str, Any]:
    made = neuron_sum("aws", "batch", *words, *QUICK)
    assert made.exit_code == 0, made.stderr
    return {**json.loads(made.stdout), "said": made.stderr}


def error_of(*words: str) -> dict[str, Any]:
    made = neuron_sum("aws", "batch", *words, *QUICK)
    assert made.exit_code, made.stdout
    error: dict[str, Any] = json.loads(made.stderr.splitlines()[-1])["error"]
    return {**error, "code": made.exit_code}


INF2 = ("--instance", "ml.inf2.xlarge")
OURS = ("model.tar.gz", "texts", "--image", IMAGE, *INF2)


def test_local_texts_are_transformed_and_answers_downloaded(aws: AwsServer, tmp_path: Path) -> None:
    made = result_of(*OURS)
    folder = tmp_path / f"{made['run']}-batch"
    assert made["files"] == [f"{folder.name}/one.jsonl", f"{folder.name}/two.jsonl"]
    lines = [json.loads(line) for line in (folder / "one.jsonl").read_text().splitlines()]
    assert [line["summary_text"] for line in lines] == ["of 5 characters", "of 8 characters"]
    assert (made["lines"], made["errors"]) == (3, 0)
    kept = {each["Key"] for each in aws.boto3("s3").list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert f"{made['answers'].split('/', 3)[3]}/one.jsonl.out" in kept
    # The stopping schedule exists before the job; it is deleted with the model when the job has ended.
    order = [
        call
        for call in aws.calls
        if call
        in (
            "scheduler.POST /schedules",
            "sagemaker.CreateModel",
            "sagemaker.CreateTransformJob",
            "sagemaker.DeleteModel",
            "scheduler.DELETE /schedules",
        )
    ]
    assert list(dict.fromkeys(order)) == [
        "scheduler.POST /schedules",
        "sagemaker.CreateModel",
        "sagemaker.CreateTransformJob",
        "sagemaker.DeleteModel",
        "scheduler.DELETE /schedules",
    ]
    assert neuron_sum("aws", "down", made["run"]).exit_code == 0
    assert aws.everything() == []
    assert "already exists and is not an empty folder" in error_of(*OURS, "--output", str(folder))["message"]


def test_a_compiled_run_and_texts_in_s3(aws: AwsServer, tmp_path: Path, wheels: Path) -> None:
    """The model of the newest completed compile; inputs in the caller's bucket are counted there."""
    aws.reset()
    aws.set_up(reads=["s3://theirs/"])
    aws.script.looks = 1
    s3, ecr = aws.boto3("s3"), aws.boto3("ecr")
    s3.create_bucket(Bucket="theirs")
    s3.put_object(Bucket="theirs", Key="in/a.jsonl", Body=b'{"inputs": "A: hi"}\n')
    ecr.put_image(repositoryName="neuron-sum", imageManifest=json.dumps(MANIFEST), imageTag="cpu-0123")
    job = ("--instance", "ml.c7i.4xlarge", "--wheelhouse", str(wheels), *QUICK)
    run = json.loads(neuron_sum("aws", "train", "tiny", *job).stdout)["run"]
    compiled = json.loads(neuron_sum("aws", "compile", run, "--target", "cpu", *job).stdout)
    s3.upload_file("model.tar.gz", *compiled["model"].removeprefix("s3://").split("/", 1))
    words = (run, "s3://theirs/in/", "--instance", "ml.c7i.4xlarge", "--output", "answers")
    made = result_of(*words)
    assert made["job"] == f"neuron-sum-{run}-batch" and made["lines"] == 1
    assert made["files"] == ["answers/a.jsonl"]
    assert "-2" in result_of(*words[:-1], "again")["job"]
    wrong = error_of(run, "s3://theirs/in/", "--output", "third", *INF2)
    assert f"{run} was compiled for cpu, but ml.inf2.xlarge is for inf2" in wrong["message"]
    assert f"neuron-sum aws compile {run} --target inf2" in wrong["hint"]
    assert "s3://theirs/out/ contains no files" in error_of(run, "s3://theirs/out/", *words[2:4])["message"]
    assert compiled["model"] in json.dumps(
        json.loads(neuron_sum("aws", "batch", compiled["model"], "texts", "--dry-run", "--json").stdout)
    )


def compiled(aws: AwsServer) -> str:
    """A run with a completed compile job; returns its id."""
    run = Run("tiny-261121-2000-abcd", "tiny")
    compile_job(aws, run, "cpu")
    aws.script.looks = 1
    return run.id


ON_CPU = ("texts", "--image", IMAGE, "--instance", "ml.c7i.4xlarge")
FULL = ("ResourceLimitExceeded", "The account-level service limit is 0", 400)


def test_a_rejected_job_is_rolled_back(aws: AwsServer) -> None:
    run = compiled(aws)
    aws.script.refusals["sagemaker.CreateTransformJob"] = FULL
    for words in ((run, *ON_CPU), OURS):
        error = error_of(*words)
        assert "request a higher quota" in error["hint"] and "everything was rolled back" in error["hint"]
        assert aws.everything() == []


def test_a_retried_batch_reuses_nothing_of_the_rejected_one(aws: AwsServer) -> None:
    """A used name would count as created, with the old expiry and model."""
    run, denied = compiled(aws), ("AccessDeniedException", "not authorized", 400)
    deletes = ("sagemaker.DeleteModel", "scheduler.DELETE /schedules")
    aws.script.refusals.update({"sagemaker.CreateTransformJob": FULL, **dict.fromkeys(deletes, denied)})
    assert "the rollback also failed" in error_of(run, *ON_CPU, "--max-hours", "9")["hint"]
    assert {line.split()[0] for line in aws.everything()} == {"schedule", "model"}
    aws.script.refusals.clear()
    aws.script.looks = None
    again = (*ON_CPU[:2], IMAGE.replace(":1", ":2"), *ON_CPU[3:], "--detach", "--max-hours", "1")
    made = result_of(run, *again)
    assert made["job"] == f"neuron-sum-{run}-batch-2"
    assert sorted(line.split()[0] for line in aws.everything()) == ["model", "schedule", "transform-job"]
    model = aws.boto3("sagemaker").describe_model(ModelName=f"neuron-sum-{run}-batch-model-2")["PrimaryContainer"]
    assert model["Image"].endswith(":2")
    schedule = aws.boto3("scheduler").get_schedule(Name=f"neuron-sum-{run}-batch-expiry-2")
    assert time_of(schedule) - datetime.now(timezone.utc) <= timedelta(hours=1)


def test_rejected_lines_are_counted(aws: AwsServer) -> None:
    refusal = {"error": {"code": 422, "message": "line 1: inputs holds no text", "field": "line 1: inputs"}}
    aws.script.transformed = lambda line: json.dumps(refusal if "hello" in line else {"summary_text": "x"})
    made = result_of(*OURS, "--output", "answers")
    assert (made["lines"], made["errors"]) == (3, 1)
    assert "1 of 3 lines have an error instead of a summary; the first is: line 1: inputs holds no text" in made["said"]


def test_a_line_without_an_answer_is_an_error(aws: AwsServer) -> None:
    aws.script.transformed = lambda line: "" if "hello" in line else '{"summary_text": "x"}\n'
    error = error_of(*OURS, "--output", "answers")
    assert error["code"] == 14
    assert "some lines have no answer: one.jsonl 1 of 2" in error["message"]
    assert "s3://" in error["hint"] and "answers" in error["hint"]
    assert aws.everything() == []


def test_a_failed_job_names_the_record_and_leaves_no_model(aws: AwsServer) -> None:
    aws.script.end, aws.script.reason = "Failed", "ClientError: See job logs for more information"
    aws.script.log = (
        "[sagemaker logs]: MaxConcurrentTransforms=16, MaxPayloadInMB=6, BatchStrategy=SINGLE_RECORD",
        "RuntimeError: neuronx-cc failed with -9",
        "[sagemaker logs]: bucket/in/one.jsonl: ClientError: 413",
    )
    error = error_of(*OURS, "--output", "answers")
    assert "failed: ClientError" in error["message"] and "compiler-killed" in error["message"]
    assert "1 records failed; the first: bucket/in/one.jsonl: ClientError: 413" in error["message"]
    assert aws.everything() == []


def test_a_stopped_job_is_not_complete(aws: AwsServer, tmp_path: Path) -> None:
    """Stopped by the schedule."""
    aws.script.end = "Stopped"
    error = error_of(*OURS, "--output", "answers")
    assert "was stopped by a request to stop before it completed" in error["message"]
    assert "--max-hours" in error["hint"]
    assert not (tmp_path / "answers").exists()


def test_a_detached_job_is_bounded_and_can_be_followed_later(aws: AwsServer) -> None:
    aws.script.looks = None
    made = result_of(*OURS, "--detach")
    kinds = {line.split()[0] for line in aws.everything()}
    assert kinds == {"schedule", "model", "transform-job"}
    schedule = aws.boto3("scheduler").get_schedule(Name=f"neuron-sum-{made['run']}-batch-expiry")
    assert json.loads(schedule["Target"]["Input"]) == {"TransformJobName": made["job"]}
    assert timedelta(hours=1.9) < time_of(schedule) - datetime.now(timezone.utc) <= timedelta(hours=2)
    aws.script.looks = 3
    followed = json.loads(neuron_sum("aws", "status", made["run"], "--follow", *QUICK).stdout)
    assert (followed["job"], followed["status"]) == (made["job"], "Completed")
    assert followed["output"] == made["answers"] and "down" in followed["next"]
    aws.script.looks = None
    assert neuron_sum("aws", "down", made["run"], "--every", "0.01").exit_code == 0
    assert aws.everything() == []


def test_down_stops_a_job(aws: AwsServer) -> None:
    aws.script.looks = None
    made = result_of(*OURS, "--detach")
    assert neuron_sum("aws", "down", made["run"], "--every", "0.01").exit_code == 0
    assert aws.everything() == []


def test_a_dry_run_sends_nothing(aws: AwsServer) -> None:
    made = result_of("model.tar.gz", "texts", *INF2, "--dry-run", "--offline")
    assert not aws.calls
    assert [each["operation"] for each in made["requests"]] == [
        "put_object",
        "put_object",
        "put_object",
        "create_schedule",
        "create_model",
        "create_transform_job",
    ]
    [job] = [item for item in made["plan"]["items"] if item["kind"] == "transform-job"]
    assert job["worst_usd"] == pytest.approx(0.99 * (2 + 180 / 3600), abs=0.01)
    assert (
        "the maximum cost is $"
        in error_of("model.tar.gz", "texts", *INF2, "--offline", "--dry-run", "--max-usd", "1")["message"]
    )


def test_a_dry_run_shows_the_model_address_of_the_compile_job(
    aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address shown before AWS is contacted equals the one in the compile job's request."""
    run = "tiny-261121-2000-abcd"
    words = ("--dry-run", "--offline", "--json")
    compiles = neuron_sum("aws", "compile", run, "--wheelhouse", str(wheels), *words)
    job = json.loads(compiles.stdout)["requests"][-1]["request"]
    output = f"{job['OutputDataConfig']['S3OutputPath']}/{job['TrainingJobName']}/output/model.tar.gz"
    for command in (("batch", run, "texts"), ("deploy", run)):
        requests = json.loads(neuron_sum("aws", *command, *words).stdout)["requests"]
        [model] = [each["request"] for each in requests if each["operation"] == "create_model"]
        assert model["PrimaryContainer"]["ModelDataUrl"] == output


def test_prices_of_transforms_are_requested(aws: AwsServer) -> None:
    aws.script.prices = {("ml.inf2.xlarge", "Hosting"): [1.0], ("ml.inf2.xlarge", "BatchTransform"): [2.0]}
    words = ("model.tar.gz", "texts", *INF2, "--dry-run")
    assert result_of(*words)["plan"]["items"][-1]["usd_per_hour"] == 2.0
    del aws.script.prices["ml.inf2.xlarge", "BatchTransform"]
    told = result_of(*words)["plan"]["items"][-1]
    assert (
        told["usd_per_hour"] == 1.0
        and "Hosting price, because there is none for Batch Transform" in told["price_source"]
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"inputs": "a"}\n\n{"inputs": "b"}\n', "line 2: empty line"),
        (b'{"inputs": "a"}\n{"dialogue": "b"}\n', 'line 2: "inputs" is missing or not a string'),
        (b'{"inputs": "a"}\nA: hi\n', "line 2: invalid JSON"),
        (b'{"inputs": "' + b"a" * (6 << 20) + b'"}\n', "line 1: 6,291,471 bytes, but a record may have at most 6 MB"),
        (b'{"inputs": "\xff"}\n', "invalid UTF-8"),
        (b"", "is empty"),
    ],
)
def test_texts_are_checked_before_anything_is_created(
    aws: AwsServer, tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "bad.jsonl").write_bytes(content)
    error = error_of("model.tar.gz", "bad.jsonl", "--image", IMAGE)
    assert error["code"] == 4 and told in error["message"]
    assert [*aws.everything(), *aws.kept()] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("model.tar.gz", "texts", *INF2), "no serving image for inf2 in us-east-1"),
        (("texts/one.jsonl", "texts", "--image", IMAGE), "texts/one.jsonl cannot be read"),
        (("model.tar.gz", "texts", "--image", IMAGE, "--instance", "ml.c7i.4xlarge"), "was compiled for inf2"),
        (("frozen.tar.gz", "texts", "--image", IMAGE), "which supports only endpoints"),
        (("model.tar.gz", "nowhere", "--image", IMAGE), "contains no .jsonl file"),
        (("model.tar.gz", "texts", "--image", IMAGE, "--instance", "inf2.xlarge"), "is not a SageMaker instance type"),
        (("model.tar.gz", "texts", "--instance", "ml.trn1.2xlarge"), "neuron-sum cannot serve on ml.trn1.2xlarge"),
    ],
)
def test_invalid_options_are_rejected_before_anything_is_created(
    aws: AwsServer, words: tuple[str, ...], told: str
) -> None:
    archive(Path("frozen.tar.gz"), properties="option.entryPoint=djl_python.transformers_neuronx\n")
    assert told in error_of(*words)["message"]
    assert [*aws.everything(), *aws.kept()] == []


# The requests, and the container that answers them


@given(
    runs,
    stacks,
    st.booleans(),
    st.sampled_from(["ml.inf2.xlarge", "ml.c7i.4xlarge"]),
    st.floats(0.01, 48),
    st.integers(1, 99),
)
def test_requests_are_valid_tagged_and_bounded(
    run: Run, stack: Stack, isolated: bool, instance: str, hours: float, attempt: int
) -> None:
    options = TransformOptions(instance, 1, hours, network_isolation=isolated)
    made = batch.launch(run, attempt, MODEL, batch_texts.Texts("s3://b/in/"), options, IMAGE, stack)
    for call in made.calls:
        operation = "".join(word.title() for word in call.operation.split("_"))
        check(call.service, operation, call.request)
        if "Tags" in call.request:
            assert {"Key": RUN_TAG, "Value": run.id} in call.request["Tags"]
    stop, model, job = (call.request for call in made.calls)
    assert job["ModelName"] == model["ModelName"] and len(model["ModelName"]) <= 63
    assert json.loads(stop["Target"]["Input"]) == {"TransformJobName": job["TransformJobName"]}
    assert time_of(stop) <= datetime.now(timezone.utc) + timedelta(hours=hours)
    assert stop["Target"]["RoleArn"] == stack.site.role_arn("expiry")


def _made(hours: float) -> Launch:
    texts, options = batch_texts.Texts("s3://b/in/"), TransformOptions("ml.inf2.xlarge", 1, hours)
    return batch.launch(new_run("batch"), 1, MODEL, texts, options, IMAGE, STACK)


def test_the_container_answers_the_requests_of_a_transform() -> None:
    """One line per request: it is within every limit of `serve`, and an invalid one is an answer, not a failed job."""
    limits, request = ServeConfig(), _made(2).calls[-1].request
    assert request["TransformInput"]["ContentType"] == request["TransformOutput"]["Accept"] == JSON_LINES
    assert request["MaxPayloadInMB"] * 1024 * 1024 <= limits.max_body_bytes
    assert request["MaxConcurrentTransforms"] <= limits.queue_size
    longest = max(limits.deadline_s, ServeConfig.model_fields["deadline_s"].metadata[1].le)
    assert request["ModelClientConfig"]["InvocationsTimeoutInSeconds"] > longest
    [good] = parse(b'{"inputs": "A: hi"}\n', JSON_LINES, limits)
    assert good.error is None
    [bad] = parse(b'{"inputs": ""}', JSON_LINES, limits)
    assert bad.error is not None and bad.field not in ("inputs", "body")  # these would reject the request as a whole
    assert render([bad.error], JSON_LINES).endswith("}\n")
    # Why not MultiRecord: one payload holds more dialogues than a request may have.
    lines = b'{"inputs": "A: hi"}\n' * 100
    assert len(lines) < 1024 * 1024
    with pytest.raises(Exception, match="the request has 100 items; at most 64 are allowed"):
        parse(lines, JSON_LINES, limits)
