"""`aws image`: the context, the requests, the build to its end, and its cost."""

import json
import zipfile
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from aws_faults import hasten
from aws_inputs import write_context
from aws_script import ACCOUNT, REGION
from aws_server import AwsServer
from botocore.validate import validate_parameters
from in_process import neuron_sum

from neuron_sum.platform.matrix import PLATFORMS
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.names import BUILD_LOG_GROUP, LOG_GROUPS, RUN_TAG, AwsContext, Run, owner_of
from sagemaker_jobs.image import build as image
from sagemaker_jobs.image import registry
from sagemaker_jobs.stack.stack import planned_stack

RUN = Run("image-cpu-261121-2000-abcd", "image-cpu")
IMAGE = ("aws", "image", "--context", "context", "--every", "0.01")
TOO_MANY = "toomanyrequests: You have reached your pull rate limit. You may increase the limit by authenticating"


@pytest.fixture
def aws(aws: AwsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AwsServer:
    """conftest's account without pauses; the folder `context` has a build context."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_context(tmp_path / "context")
    return aws


def said(*words: str, code: int = 0) -> dict[str, Any]:
    result = neuron_sum(*words, "--json")
    assert result.exit_code == code, result.stderr
    told: dict[str, Any] = json.loads(result.stderr.splitlines()[-1] if code else result.stdout)
    return told


def test_an_image_is_built_once_and_only_the_image_remains(aws: AwsServer) -> None:
    aws.script.log = ("Step 1/2 : FROM python",)
    built = neuron_sum(*IMAGE, "--json")
    assert built.exit_code == 0, built.stderr
    told = json.loads(built.stdout)
    assert told["built"] and told["bytes"] > 1e9 and told["usd_per_month"] == pytest.approx(0.2, abs=0.01)
    assert told["image"].startswith(f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/neuron-sum:cpu-")
    assert told["pinned"].endswith("@" + told["digest"])
    for heard in ("BUILD (IN_PROGRESS)", "at most $0.0", "Step 1/2 : FROM python", "COMPLETED (SUCCEEDED)"):
        assert heard in " ".join(built.stderr.split()), heard
    assert aws.everything() == []
    assert neuron_sum("aws", "down", "--check").exit_code == 0
    assert registry.newest_image(Account(), "cpu") == told["image"]
    started = aws.calls.count("codebuild.StartBuild")
    again = said(*IMAGE)
    assert again == {**{key: told[key] for key in ("image", "pinned", "digest", "bytes")}, "built": False}
    assert aws.calls.count("codebuild.StartBuild") == started == 1
    assert said("aws", "down", "--check")["artifacts"], "the image and the log stay"
    assert neuron_sum("aws", "down", "--all", "--artifacts").exit_code == 0
    assert aws.kept() == []


@pytest.mark.parametrize(
    ("end", "reason", "log", "expected"),
    [
        ("FAILED", "Error while executing command: docker build . Reason: exit status 1", TOO_MANY, "docker-hub-limit"),
        ("TIMED_OUT", "", "a line", "it took longer than --max-minutes"),
        ("FAULT", "", "a line", "CodeBuild failed internally"),
    ],
)
def test_a_failed_build_reports_its_reason(aws: AwsServer, end: str, reason: str, log: str, expected: str) -> None:
    aws.script.build_end, aws.script.reason, aws.script.log = end, reason, (log,)
    error = said(*IMAGE, code=14)["error"]
    assert end in error["message"] and reason in error["message"] and expected in error["message"]
    assert "aws down image-cpu-" in error["hint"]
    assert aws.everything() == []


def test_a_running_build_is_followed_again_or_stopped(aws: AwsServer) -> None:
    aws.script.looks = None
    told = said(*IMAGE, "--detach")
    status = said("aws", "status")
    [build] = [item for item in status["ours"] if item["kind"] == "build"]
    assert build["name"] == told["build"] and build["usd_per_hour"] == pytest.approx(0.6)
    assert neuron_sum("aws", "down", "--check").exit_code == 14
    aws.script.looks = 0
    followed = said("aws", "status", told["run"], "--follow", "--every", "0.01")
    assert followed["built"] and aws.everything() == []
    aws.script.looks = None
    (Path("context") / "another").write_text("file", encoding="utf-8")
    assert said(*IMAGE, "--detach")["run"] != told["run"]
    assert neuron_sum("aws", "down", "--all", "--every", "0.01").exit_code == 0
    assert aws.everything() == []


def test_ctrl_c_leaves_the_build_and_prints_how_to_follow_and_stop_it(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    aws.script.looks = None
    monkeypatch.setattr("sagemaker_jobs.aws.logs.time.sleep", interrupted)
    error = said(*IMAGE, code=130)["error"]
    assert "stopped waiting for" in error["message"]
    [run] = {item["run"] for item in said("aws", "status")["ours"]}
    assert f"aws status {run} --follow" in error["hint"] and f"aws down {run}" in error["hint"]


def test_a_missing_image_after_a_build_is_an_error(aws: AwsServer) -> None:
    aws.script.refusals["ecr.DescribeImages"] = ("ImageNotFoundException", "no such image", 400)
    assert "succeeded, but neuron-sum has no image cpu-" in said(*IMAGE, code=14)["error"]["message"]


def test_a_foreign_repository_is_not_used(aws: AwsServer) -> None:
    aws.boto3("ecr").untag_resource(
        resourceArn=f"arn:aws:ecr:{REGION}:{ACCOUNT}:repository/neuron-sum", tagKeys=[RUN_TAG]
    )
    error = said(*IMAGE, code=14)["error"]
    assert "was not created by neuron-sum" in error["message"] and RUN_TAG in error["hint"]
    assert aws.everything() == []


def test_a_dry_run_prints_every_request_and_sends_none(aws: AwsServer) -> None:
    told = said(*IMAGE, "--dry-run", "--offline")
    assert aws.calls == []
    made = [f"{call['service']}.{call['operation']}" for call in told["requests"]]
    assert made == ["s3.put_object", "codebuild.start_build"]
    assert told["plan"]["worst_usd"] == pytest.approx(0.61)


@pytest.mark.parametrize(
    ("builder", "minutes", "usd"), [("medium", 60, 0.61), ("large", 5, 0.12), ("large", 2160, 43.22)]
)
def test_the_maximum_cost_is_the_limit_of_the_request(aws: AwsServer, builder: str, minutes: int, usd: float) -> None:
    words = (*IMAGE, "--builder", builder, "--max-minutes", str(minutes))
    assert said(*words, "--dry-run", "--offline", "--max-usd", str(usd))["plan"]["worst_usd"] == pytest.approx(usd)
    error = said(*words, "--max-usd", str(usd - 0.011), code=14)["error"]
    assert "--max-usd allows" in error["message"]
    assert aws.everything() == [] and "s3.PUT Bucket" not in aws.calls


@pytest.mark.parametrize("minutes", ["4", "2161"])
def test_a_time_limit_that_codebuild_rejects_is_rejected(aws: AwsServer, minutes: str) -> None:
    assert "--max-minutes 5 to 2160" in said(*IMAGE, "--max-minutes", minutes, code=14)["error"]["hint"]


def launched(tmp_path: Path, context: Path, **options: Any) -> dict[str, Any]:
    """The StartBuild request for a context."""
    found = image.context("cpu", context, tmp_path)
    stack = planned_stack(AwsContext(ACCOUNT, REGION))
    archive = image.pack_context(found, tmp_path / "a.zip")
    launch = image.launch(RUN, stack, "cpu", found, archive, **{"builder": "large", "max_minutes": 30, **options})
    return launch["build"].request


def test_the_request_is_valid_and_names_its_run(aws: AwsServer, tmp_path: Path) -> None:
    request = launched(tmp_path, Path("context"))
    shape = botocore.session.get_session().get_service_model("codebuild").operation_model("StartBuild").input_shape
    validate_parameters(request, shape)
    assert (request["timeoutInMinutesOverride"], request["computeTypeOverride"]) == (30, "BUILD_GENERAL1_LARGE")
    assert "buildspecOverride" not in request, "the caller may not override it"
    log = request["logsConfigOverride"]["cloudWatchLogs"]
    assert log["groupName"] == BUILD_LOG_GROUP in LOG_GROUPS, "down --artifacts finds the log there"
    assert owner_of(f"{log['streamName']}/0123") == RUN.id


def test_the_same_context_is_the_same_image_on_every_machine(tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        write_context(tmp_path / name)
        (tmp_path / name / "entrypoint").write_text("#!/bin/bash\n", encoding="utf-8")
        made = image.context("cpu", tmp_path / name, tmp_path)
        image.pack_context(made, tmp_path / f"{name}.zip")
        found.append((image.tag_of("cpu", made), (tmp_path / f"{name}.zip").read_bytes()))
    assert found[0] == found[1]
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == ["Dockerfile", "entrypoint", "source/.dockerignore"]
    (tmp_path / "other" / "entrypoint").write_text("#!/bin/sh\n", encoding="utf-8")
    assert image.tag_of("cpu", image.context("cpu", tmp_path / "other", tmp_path)) != found[0][0]


@pytest.mark.parametrize("target", PLATFORMS[0].serving_images)
def test_the_builder_can_pull_the_base_images(tmp_path: Path, target: str) -> None:
    """All base images are public at AWS: they need no login, and Docker Hub's limits do not apply."""
    found = image.context(target, None, tmp_path)
    froms = image.bases(found.files["Dockerfile"].read_text(encoding="utf-8"))
    assert PLATFORMS[0].serving_images[target].name in froms
    assert all(name.startswith("public.ecr.aws/") for name in froms)


def test_a_private_base_needs_a_login(tmp_path: Path) -> None:
    base = "763104351884.dkr.ecr.us-west-2.amazonaws.com"
    write_context(tmp_path / "private", f"{base}/djl-inference:0.36.0")
    variables = launched(tmp_path, tmp_path / "private")["environmentVariablesOverride"]
    [hosts] = [each["value"] for each in variables if each["name"] == image.REGISTRIES]
    assert hosts.split() == [f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com", base]


def test_a_folder_without_a_dockerfile_is_rejected(aws: AwsServer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no Dockerfile" in said("aws", "image", "--context", "empty", code=14)["error"]["message"]
