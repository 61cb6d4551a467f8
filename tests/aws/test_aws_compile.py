"""`neuron-sum aws compile`: the compiled run, the job's request, quotas; and the script in the container."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aws_faults import hasten
from aws_inputs import BUCKET
from aws_requests import check
from aws_server import AwsServer
from in_process import neuron_sum
from micro_models import SHAPE

from compile.source import open_source
from neuron_sum.artifact import open_artifact
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.runs.contents import MARK, RUN_FILES
from neuron_sum.runs.fingerprint import model_parts
from sagemaker_jobs.jobs import entry
from sagemaker_jobs.jobs.compiling import LEFT_HERE
from sagemaker_jobs.jobs.requests import compile_arguments
from serving import properties

QUICK = ("--every", "0.01", "--json")
OURS = f"s3://{BUCKET}/neuron-sum/runs/model.tar.gz"


@pytest.fixture
def aws(aws: AwsServer, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """conftest's account; the folder `wheels` has wheels, and a job is described once while it runs."""
    hasten(aws, monkeypatch)
    monkeypatch.chdir(wheels.parent)
    aws.script.looks = 1
    return aws


def result_of(*words: str) -> dict[str, Any]:
    made = neuron_sum("aws", *words, *QUICK)
    assert made.exit_code == 0, made.stderr
    result: dict[str, Any] = json.loads(made.stdout)
    return result


def error_of(*words: str) -> dict[str, Any]:
    made = neuron_sum("aws", *words, *QUICK)
    assert made.exit_code, made.stdout
    error: dict[str, Any] = json.loads(made.stderr.splitlines()[-1])["error"]
    return error


def job(aws: AwsServer, name: str) -> dict[str, Any]:
    described: dict[str, Any] = aws.boto3("sagemaker").describe_training_job(TrainingJobName=name)
    return described


def channels(described: dict[str, Any]) -> dict[str, str]:
    return {item["ChannelName"]: item["DataSource"]["S3DataSource"]["S3Uri"] for item in described["InputDataConfig"]}


def trained(aws: AwsServer, *words: str) -> dict[str, Any]:
    return result_of("train", "tiny", "--instance", "ml.c7i.4xlarge", "--wheelhouse", "wheels", *words)


def test_a_run_is_compiled_from_the_output_of_its_training(aws: AwsServer) -> None:
    first = trained(aws)
    made = result_of("compile", first["run"], "compile.batch_sizes=[1,8]", "--wheelhouse", "wheels")
    assert (made["run"], made["job"]) == (first["run"], f"neuron-sum-{first['run']}-compile")
    described = job(aws, made["job"])
    arguments = described["AlgorithmSpecification"]["ContainerArguments"]
    assert [word.split("=")[:2] for word in arguments[:2]] == [["--verify", "code"], ["--verify", "wheelhouse"]]
    assert arguments[2:] == [
        "compile",
        "--target",
        "inf2",
        "--set=compile.batch_sizes=[1,8]",
    ]
    assert channels(described)["run"] == first["model"]
    assert set(channels(described)) == {"code", "wheelhouse", "run"}
    assert described["StoppingCondition"] == {"MaxRuntimeInSeconds": 2 * 3600}
    # A compile job does not write among the training's files, nor does it download gigabytes of checkpoints.
    training = job(aws, first["job"])
    for section, key in (("OutputDataConfig", "S3OutputPath"), ("CheckpointConfig", "S3Uri")):
        addresses = [each[section][key] for each in (described, training)]
        assert all(first["run"] in address for address in addresses)
        assert not addresses[0].startswith(addresses[1]) and not addresses[1].startswith(addresses[0])
    # A second compile is another job that finds the first one's graphs; a later failed training has no effect.
    aws.script.end = "Failed"
    error_of("train", "tiny", "--instance", "ml.c7i.4xlarge", "--wheelhouse", "wheels", "--resume", first["run"])
    aws.script.end = "Completed"
    again = result_of("compile", first["run"], "--wheelhouse", "wheels", "--target", "cpu")
    assert again["job"] == f"{made['job']}-2"
    assert channels(job(aws, again["job"]))["run"] == first["model"]
    assert job(aws, again["job"])["CheckpointConfig"] == described["CheckpointConfig"]
    assert neuron_sum("aws", "down", first["run"]).exit_code == 0
    assert aws.everything() == []


def test_the_newest_completed_training_is_used(aws: AwsServer) -> None:
    first = trained(aws)
    second = trained(aws, "--resume", first["run"])
    made = result_of("compile", first["run"], "--wheelhouse", "wheels")
    assert second["job"] in channels(job(aws, made["job"]))["run"]


def test_a_folder_is_uploaded_by_content_with_its_base_model(
    aws: AwsServer, micro_lora_run: Path, tmp_path: Path
) -> None:
    """An adapter's base model in another local folder is uploaded with it."""
    run, base = tmp_path / "here", tmp_path / "base"
    shutil.copytree(micro_lora_run, run)
    (run / "base").rename(base)
    (run / "artifacts").mkdir()
    (run / "artifacts" / "large").write_text("not for a compile")
    (run / "notes.txt").write_text("another person's file")
    recipe = load_recipe(str(run / "recipe.yaml"), [f"model.name_or_path={base}"])
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    words = ("compile", str(run), "--wheelhouse", "wheels", "--dry-run", "--offline")
    requests = result_of(*words)["requests"]
    assert not aws.calls
    uploads = [each["request"]["Key"] for each in requests if each["operation"] == "put_object"]
    of_run = {key.split("/", 4)[4] for key in uploads if "/inputs/run/" in key}
    assert {name.split("/")[0] for name in of_run} == {"recipe.yaml", "run.json", "all_results.json", "adapter"}
    assert any("/inputs/model/" in key and key.endswith(".safetensors") for key in uploads)
    assert set(channels(requests[-1]["request"])) == {"code", "wheelhouse", "run", "model"}
    check("sagemaker", "CreateTrainingJob", requests[-1]["request"])
    shutil.rmtree(base)
    assert "base" in error_of(*words)["message"]


def test_a_model_at_any_s3_address(aws: AwsServer) -> None:
    """The stack must allow it."""
    address = "s3://their-bucket/some/where/model.tar.gz"
    requests = result_of("compile", address, "--wheelhouse", "wheels", "--dry-run", "--offline")["requests"]
    assert channels(requests[-1]["request"])["run"] == address
    error = error_of("compile", address, "--wheelhouse", "wheels")
    assert f"roles may not read {address}" in error["message"] and f"aws setup --reads {address}" in error["hint"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nobodys-run",), "no run 'nobodys-run'"),
        (("s3://b/folder/",), "is not the address of a model.tar.gz"),
        ((OURS, "train.learning_rate=1"), "changes a setting that the run was trained with"),
        ((OURS, "compile.batch_size=[1]"), "most similar: batch_sizes"),
        (
            (OURS, "--instance", "ml.inf2.xlarge"),
            "SageMaker does not run training jobs on ml.inf2.xlarge",
        ),
        ((OURS, "--target", "cpu", "compile.neuron.opt_level=1"), "1 error"),
        ((".",), "is not a run"),
    ],
)
def test_invalid_sources_are_rejected_before_anything_is_created(
    aws: AwsServer, words: tuple[str, ...], told: str
) -> None:
    error = error_of("compile", *words, "--wheelhouse", "wheels")
    assert told in error["message"], error
    assert not {call for call in aws.calls if "Create" in call or "PUT" in call}


def test_a_run_with_unfinished_training_is_rejected(aws: AwsServer) -> None:
    aws.script.end = "Failed"
    error_of("train", "tiny", "--instance", "ml.c7i.4xlarge", "--wheelhouse", "wheels")
    name = aws.boto3("sagemaker").list_training_jobs()["TrainingJobSummaries"][0]["TrainingJobName"]
    run = name.removeprefix("neuron-sum-").removesuffix("-train")
    error = error_of("compile", run, "--wheelhouse", "wheels")
    assert f"no completed train job of run {run}: none of its 1 jobs has completed" in error["message"]


def test_a_stopped_compile_prints_the_command_to_resume(aws: AwsServer) -> None:
    first = trained(aws)
    aws.script.end = "Stopped"
    error = error_of("compile", first["run"], "--wheelhouse", "wheels")
    assert "was stopped by its maximum run time before it completed" in error["message"]
    again = f"neuron-sum aws compile {first['run']} --target inf2 --region us-east-1"
    assert f"Run `{again}` with the same changes" in error["hint"]


QUOTA = "ml.c7i.4xlarge for training job usage"


@pytest.mark.parametrize(
    ("quotas", "refused"),
    [
        ({"another": 1, "and another": 5, QUOTA: 0}, True),  # on the second page
        ({QUOTA: 1}, False),
        ({"another": 0}, False),
        (None, False),  # without permission to read quotas it continues
    ],
)
def test_a_quota_is_checked_before_anything_is_created(
    aws: AwsServer, quotas: dict[str, float] | None, refused: bool
) -> None:
    aws.script.quotas = quotas
    words = ("aws", "train", "tiny", "--instance", "ml.c7i.4xlarge", "--wheelhouse", "wheels", *QUICK)
    made = neuron_sum(*words)
    assert (made.exit_code == 14) == refused, made.stderr
    if refused:
        error = json.loads(made.stderr.splitlines()[-1])["error"]
        assert error["message"] == f"the quota {QUOTA!r} is 0 in us-east-1, but the launch needs 1"
        assert "request-service-quota-increase" in error["hint"] and "L-00000002" in error["hint"]
        assert [*aws.everything(), *aws.kept()] == []
    elif quotas is None:
        assert "quotas not checked" in made.stderr
    elif QUOTA not in quotas:
        assert f"quota {QUOTA!r} not checked: AWS does not list it" in made.stderr


def test_spot_and_batch_have_separate_quotas() -> None:
    from sagemaker_jobs.launch import quotas
    from sagemaker_jobs.launch.call import Call

    resources = {"InstanceType": "ml.trn1.2xlarge", "InstanceCount": 2}
    variants = [{"InstanceType": "ml.inf2.xlarge", "InitialInstanceCount": 3}]
    spot = {"EnableManagedSpotTraining": True, "StoppingCondition": {"MaxRuntimeInSeconds": 60}}
    calls = [
        Call("sagemaker", "", {"ResourceConfig": resources, **spot}, "training-job"),
        Call("sagemaker", "", {"TransformResources": resources}, "transform-job"),
        Call("sagemaker", "", {"ProductionVariants": variants}, "endpoint-config"),
        Call("sagemaker", "", {}, "model"),
    ]
    assert quotas.needed(calls)["sagemaker"] == {
        "ml.trn1.2xlarge for spot training job usage": 2,
        "ml.trn1.2xlarge for transform job usage": 2,
        "ml.inf2.xlarge for endpoint usage": 3,
    }


# In the container


def container(folder: Path, run: Path) -> Path:
    """/opt/ml of a compile job, at another path; the run's paths are those of another container."""
    base, moved = folder / "ml", folder / "moved"
    for name in ("input/data/run", "model", "output", "checkpoints"):
        (base / name).mkdir(parents=True)
    shutil.copytree(run, moved)
    (moved / "base").rename(base / "input/data/model")  # the adapter's base comes from the training job's folder
    elsewhere = [
        "data.source=jsonl",
        "data.path=/opt/ml/input/data/data",
        "model.name_or_path=/opt/ml/input/data/gone",
        "train.deepspeed=/opt/ml/input/data/deepspeed/zero.json",
    ]
    (moved / "recipe.yaml").write_text(load_recipe(str(run / "recipe.yaml"), elsewhere).to_yaml())
    with tarfile.open(base / "input/data/run/model.tar.gz", "w:gz") as archive:
        archive.add(moved, "run")  # as the train stage writes it, and SageMaker packs it
    return base


def run_entry(base: Path, overrides: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, entry.__file__, *compile_arguments("cpu", overrides)],
        capture_output=True,
        text=True,
        check=False,
        cwd=base.parent,
        env={**os.environ, "SAGEMAKER_BASE_DIR": str(base)},
    )


def test_the_entry_script_writes_a_model_for_an_endpoint(
    micro_lora_run: Path, tmp_path: Path, graph_cache: Path
) -> None:
    base = container(tmp_path, micro_lora_run)
    # Graphs compiled by an earlier job: the job's cache is in the folder that SageMaker keeps.
    (graph_cache / "graphs").mkdir(exist_ok=True)
    (base / "checkpoints" / "cache").mkdir()
    (base / "checkpoints" / "cache" / "graphs").symlink_to(graph_cache / "graphs")
    (base / "checkpoints" / "cache" / ".graph.so.tmp-7").write_text("what a killed job had begun")
    made = run_entry(base, [*SHAPE, "serve.max_items=5"])
    assert made.returncode == 0, made.stdout[-3000:]
    assert "$ -m neuron_sum doctor" in made.stdout
    model = base / "model"
    assert {path.name for path in model.iterdir()} == {"serving.properties", "artifact", "neuron_sum", "serving"}
    artifact = open_artifact(model / "artifact")
    assert [bucket.batch for bucket in artifact.manifest.buckets] == [3]
    assert properties.read_limits(properties.read(model / properties.FILE)).max_items == 5
    assert not (base / "output" / "failure").exists()
    assert not list((base / "checkpoints" / "cache").glob(".*"))
    assert list((graph_cache / "graphs").iterdir())
    # The run's base model: another base would have given another model.
    assert model_parts(artifact.manifest.source.fingerprint) == model_parts(
        open_source(micro_lora_run, None, []).fingerprint()
    )


def test_a_run_from_a_folder_channel_is_linked(tmp_path: Path) -> None:
    """Nothing is written to a channel."""
    channel = tmp_path / "run"
    (channel / "adapter").mkdir(parents=True)
    (channel / "recipe.yaml").write_text("name: a")
    found = entry._run_folder(channel, tmp_path / "work" / "run")
    assert found == tmp_path / "work" / "run" and (found / "recipe.yaml").read_text() == "name: a"
    (found / "base").mkdir()
    assert sorted(path.name for path in channel.iterdir()) == ["adapter", "recipe.yaml"]


def _slip(archive: tarfile.TarFile, file: Path) -> None:
    archive.add(file, "run/../../outside")


def _link(archive: tarfile.TarFile, file: Path) -> None:
    link = tarfile.TarInfo("run/recipe.yaml")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive.addfile(link)


def _no_run(archive: tarfile.TarFile, file: Path) -> None:
    archive.add(file, "weights.bin")


@pytest.mark.parametrize(
    ("fill", "told"),
    [(_slip, "'run/../../outside', which is not a file of a run"), (_link, "'run/recipe.yaml', which is not a file"),
     (_no_run, "the channel run contains no run: model.tar.gz"), (None, "cannot be unpacked")],
)  # fmt: skip
def test_an_archive_without_a_run_is_rejected(
    tmp_path: Path, fill: Callable[[tarfile.TarFile, Path], None] | None, told: str
) -> None:
    channel = tmp_path / "ml" / "input" / "data" / "run"
    channel.mkdir(parents=True)
    file = tmp_path / "file"
    file.write_text("x")
    if fill is None:
        (channel / "model.tar.gz").write_bytes(b"\x1f\x8b no archive")
    else:
        with tarfile.open(channel / "model.tar.gz", "w:gz") as archive:
            fill(archive, file)
    made = run_entry(tmp_path / "ml", [])
    assert made.returncode == 1
    assert told in (tmp_path / "ml" / "output" / "failure").read_text()
    assert not (tmp_path / "ml" / "outside").exists() and not (tmp_path / "ml" / "work" / "outside").exists()


def test_a_compile_job_reads_or_leaves_every_file_of_a_run() -> None:
    """Not the history of an MLflow store, which changes with every evaluation."""
    read = {"recipe.yaml", "all_results.json", "base", "checkpoint", "adapter", MARK}
    temporary = {name for name in RUN_FILES if name.endswith(".tmp")}
    assert set(RUN_FILES) == read | temporary | set(LEFT_HERE)
