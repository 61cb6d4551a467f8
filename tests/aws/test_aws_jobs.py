"""The parts of a job: the cost limit, the uploads, the wheelhouse, and the script that runs in the container."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_sum.errors import AwsError, DataError
from neuron_sum.platform import prices
from neuron_sum.recipes.loading import load_recipe
from sagemaker_jobs.aws.names import AwsContext, Run, new_run
from sagemaker_jobs.cost import lifetime
from sagemaker_jobs.jobs import entry, inputs, requests, training, wheelhouse
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.launch.options import TrainOptions
from sagemaker_jobs.launch.quotas import STOP_GRACE_S, UPLOAD_S
from sagemaker_jobs.launch.schedules import LATE_S
from sagemaker_jobs.stack.stack import planned_stack

RUN = Run("tiny-261121-2000-abcd", "tiny")
STACK = planned_stack(AwsContext("123456789012", "us-east-1"))
TINY = load_recipe("tiny")
TRAINS = sorted(name for name in prices.USD_PER_HOUR if not name.startswith("ml.inf"))


@st.composite
def wishes(draw: st.DrawFn) -> TrainOptions:
    instance = draw(st.sampled_from(TRAINS))
    runtime_s = draw(st.integers(36, 28 * 24 * 3600))
    wait_s = draw(st.none() | st.integers(runtime_s, 2 * runtime_s))
    return TrainOptions(
        instance,
        runtime_s / 3600,
        None if wait_s is None else wait_s / 3600,
        instances=draw(st.integers(1, 8)) if instance == "ml.trn1.32xlarge" else 1,
    )


@given(wishes(), st.floats(0, 20_000), st.floats(0, 1000), st.sampled_from(sorted(prices.USD_PER_HOUR)))
def test_no_request_can_exceed_the_cap(options: TrainOptions, cap: float, hours: float, hosts: str) -> None:
    """For any options, a launch is rejected exactly if AWS could bill more than the limit for its requests."""
    launch = training.launch(RUN, TINY, options, [], STACK)
    _, *others = lifetime.planned_calls(
        RUN, STACK, train=(options.instance, 1, 1.0), compiling=(options.instance, 0), endpoint=(hosts, hours)
    )
    job, requests = launch.calls[0].request, {call.kind: call.request for call in others}
    longest_h = (job["StoppingCondition"]["MaxRuntimeInSeconds"] + STOP_GRACE_S + UPLOAD_S) / 3600
    resources = job["ResourceConfig"]
    billed = prices.USD_PER_HOUR[resources["InstanceType"]] * resources["InstanceCount"] * longest_h
    if "endpoint" in requests:
        [variant] = requests["endpoint-config"]["ProductionVariants"]
        billed += (
            prices.USD_PER_HOUR[variant["InstanceType"]] * variant["InitialInstanceCount"] * (hours + LATE_S / 3600)
        )
        assert requests["schedule"]["ScheduleExpression"].startswith("rate(")
        build = requests["build"]
        machine = prices.BUILD_USD_PER_MINUTE[build["computeTypeOverride"]]
        billed += machine * (build["timeoutInMinutesOverride"] + 1)  # a started minute is billed
    plan = lifetime.priced([*launch.calls, *others], None, None, hours)
    assert plan.worst_usd == pytest.approx(billed)
    try:
        plan.check(cap)
    except AwsError:
        assert plan.worst_usd > cap
    else:
        assert plan.worst_usd <= cap


def test_a_plan_compares_instances_and_what_others_paid() -> None:
    from sagemaker_jobs.cost import references

    recipe = load_recipe("trn1-flan-t5-base-lora")
    calls = lifetime.planned_calls(
        new_run(recipe.name), STACK, train=("ml.trn1.2xlarge", 1, 4.0), compiling=("", 0), endpoint=("", 0)
    )
    made = lifetime.priced(calls, None, 2.0, 0)
    assert made.worst_usd == pytest.approx(1.54 * (4 + 720 / 3600))
    assert made.expected_usd == pytest.approx(3.08)
    rows = {(row.instance, row.what.split()[2]): row for row in references.elsewhere(made, recipe)}
    assert {"ml.g5.2xlarge", "ml.g5.12xlarge", "ml.c7i.4xlarge"} <= {instance for instance, _ in rows}
    same_hours = rows["ml.g5.12xlarge", "hours"]
    assert same_hours.even_hours == pytest.approx(made.worst_usd / 7.09)
    # The run of the published report: five epochs in 84 minutes; here with the recipe's number of examples.
    assert any(row.instance == "ml.g6.xlarge" and "examples" in row.what for row in rows.values())
    paid = {round(cost.usd, 2) for cost in references.published()}
    assert {7.0, 8.98, 15.65, round(12 * 7.09, 2)} <= paid
    assert all(cost.source for cost in references.published())


def test_the_expected_cost_uses_the_projection_of_preflight(tmp_path: Path) -> None:
    from neuron_sum.models import base as models
    from neuron_sum.training.estimate.projection import project_epoch
    from sagemaker_jobs.cost.expected import training_hours

    preflight = "neuron-sum preflight tiny --json"
    recipe = load_recipe("tiny", ["train.num_train_epochs=3", "train.shapes.plan=fixed"])
    epoch = project_epoch(recipe, models.load_config(recipe.model))
    report = tmp_path / "preflight.json"
    report.write_text(json.dumps({"recipe": "tiny", "training": epoch.as_dict()}))
    assert epoch.projected_s
    one, _ = training_hours(report, recipe, "ml.trn1.2xlarge", 1, preflight)
    assert one is not None and one == pytest.approx(3 * epoch.projected_s / 3600)
    assert training_hours(report, recipe, "ml.trn1.32xlarge", 2, preflight)[0] == pytest.approx(one / 32)
    assert training_hours(report, recipe, "ml.c7i.4xlarge", 1, preflight)[0] is None
    # A step takes the same time on every core, regardless of their number.
    steps = load_recipe("tiny", ["train.max_steps=10", "train.shapes.plan=fixed"])
    few, many = (training_hours(report, steps, f"ml.trn1.{size}xlarge", 1, preflight)[0] for size in (2, 32))
    assert few == pytest.approx(many)
    with pytest.raises(AwsError, match="is the preflight report of tiny, but the recipe is tiny-lora"):
        training_hours(report, load_recipe("tiny-lora"), "ml.trn1.2xlarge", 1, preflight)
    report.write_text("{}")
    with pytest.raises(AwsError, match="is not a preflight report") as caught:
        training_hours(report, recipe, "ml.trn1.2xlarge", 1, preflight)
    assert caught.value.hint == f"run {preflight} > {report}"


def test_folders_become_channels_and_the_recipe_has_their_paths(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "train.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n')
    (data / "sub" / "more.txt").write_text("x")
    (data / ".hidden").write_text("secret")
    recipe = load_recipe("tiny", ["data.source=jsonl", f"data.path={data}"])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = {channel.name: channel for channel in inputs.channels(recipe, scratch, None)}
    assert set(found) == {"code", "recipe", "data"}
    assert set(found["data"].files) == {"train.jsonl"}, "no file that the recipe does not read"
    assert "path: /opt/ml/input/data/data" in found["recipe"].files["recipe.yaml"].read_text()
    before = found["data"].digest
    (data / "train.jsonl").touch()
    assert Channel("data", found["data"].files).digest == before
    (data / "train.jsonl").write_text("other")
    assert Channel("data", found["data"].files).digest != before


def test_a_container_gets_the_folder_of_a_converted_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder, scratch = tmp_path / "converted", tmp_path / "scratch"
    for path in (folder, scratch):
        path.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(inputs, "folder_of", lambda source: str(folder))
    recipe = load_recipe("smollm2-lora", ["data.source=sample"])
    found = {channel.name: channel for channel in inputs.channels(recipe, scratch, None, isolated=True)}
    assert set(found["model"].files) == {"config.json"}
    assert "name_or_path: /opt/ml/input/data/model" in found["recipe"].files["recipe.yaml"].read_text()


def test_unreachable_inputs_are_rejected_before_the_job_starts(tmp_path: Path) -> None:
    hub = load_recipe("flan-t5-base-lora")
    with pytest.raises(AwsError, match="must be downloaded from a hub, but --network-isolation blocks"):
        inputs.channels(hub, tmp_path, None, isolated=True)
    gone = load_recipe("tiny", ["data.source=jsonl", "data.path=/nowhere/at/all"])
    with pytest.raises(DataError, match="/nowhere/at/all does not exist"):
        inputs.channels(gone, tmp_path, None)
    with pytest.raises(AwsError, match="contains no wheels"):
        inputs.channels(load_recipe("tiny"), tmp_path, tmp_path)


def test_a_wheelhouse_is_verified_and_has_no_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(wheelhouse, "_pip", lambda *arguments: commands.append(arguments))
    monkeypatch.setattr(wheelhouse, "build_own", lambda folder: folder)
    wheelhouse.build(tmp_path / "wheels")
    assert all("--require-hashes" in command and "--no-deps" in command for command in commands)
    names = [Path(word).name for command in commands for word in command if word.endswith(".txt")]
    assert sorted(names) == ["common.txt", "neuron.txt", "source.txt"]


def _container(folder: Path, overrides: list[str]) -> Path:
    """/opt/ml in SageMaker's layout, at another path."""
    base = folder / "ml"
    for name in ("input/config", "input/data/recipe", "model", "output", "checkpoints"):
        (base / name).mkdir(parents=True)
    recipe = load_recipe(
        "tiny", ["train.max_steps=2", "data.max_examples=16", "data.max_validation_examples=4", *overrides]
    )
    (base / "input/data/recipe/recipe.yaml").write_text(recipe.to_yaml())
    (base / "input/config/resourceconfig.json").write_text(json.dumps({"current_host": "algo-1", "hosts": ["algo-1"]}))
    return base


def _run_entry(base: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, entry.__file__, *requests.train_arguments("ml.c7i.4xlarge", 1)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=base.parent,
        env={**os.environ, "SAGEMAKER_BASE_DIR": str(base)},
    )


def test_the_entry_script_trains_and_writes_the_model(tmp_path: Path) -> None:
    base = _container(tmp_path, [])
    made = _run_entry(base)
    assert made.returncode == 0, made.stdout[-3000:]
    assert "$ -m neuron_sum doctor" in made.stdout
    assert list((base / "model" / "run" / "checkpoint").glob("*.safetensors"))
    assert (base / "model" / "run" / "all_results.json").is_file()
    assert not (base / "output" / "failure").exists()


def _uploaded(base: Path) -> list[str]:
    """The command of a job whose channels are as they were uploaded."""
    channel = Channel("recipe", {"recipe.yaml": base / "input/data/recipe/recipe.yaml"})
    (base / "input/data/code").mkdir()
    shutil.copy(entry.__file__, base / "input/data/code" / requests.ENTRY)
    launch = training.launch(new_run("tiny"), TINY, TrainOptions("ml.c7i.4xlarge", 1), [channel], STACK)
    specification = launch.calls[0].request["AlgorithmSpecification"]
    assert all(len(word) <= 256 for word in specification["ContainerEntrypoint"])  # SageMaker's limit
    words = [*specification["ContainerEntrypoint"], *specification["ContainerArguments"]]
    return [sys.executable, *(word.replace(requests.INPUT, str(base / "input/data")) for word in words[1:])]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("code/entry.py", "entry.py is not the file that was uploaded"),
        ("recipe/recipe.yaml", "the files of the channel recipe are not those that were uploaded"),
        ("recipe/another.whl", "the files of the channel recipe are not those that were uploaded"),
    ],
)
def test_a_job_refuses_inputs_that_were_changed_in_s3(tmp_path: Path, changed: str, message: str) -> None:
    base = _container(tmp_path, [])
    command = _uploaded(base)
    with (base / "input/data" / changed).open("a") as file:
        file.write("# changed\n")
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(base)}
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert made.returncode == 1
    assert message in made.stdout + made.stderr
    assert "$ " not in made.stdout, "a step ran"


def test_a_job_starts_with_the_inputs_that_were_uploaded(tmp_path: Path) -> None:
    base = _container(tmp_path, ["data.source=jsonl", "data.path=/nowhere"])
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(base)}
    made = subprocess.run(_uploaded(base), capture_output=True, text=True, check=False, env=environment)
    assert "$ -m neuron_sum doctor" in made.stdout


def test_the_entry_script_keeps_the_results_of_a_receipt_that_ends_early(tmp_path: Path) -> None:
    """The receipt needs a Neuron device, which this machine lacks."""
    base = _container(tmp_path, [])
    earlier = base / "work" / "receipt"
    earlier.mkdir(parents=True)
    (earlier / "receipt.json").write_text("{}")
    command = [sys.executable, entry.__file__, *requests.receipt_arguments("ml.trn1.2xlarge", "micro")]
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(base)}
    made = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert made.returncode == 13, made.stdout
    assert "no Neuron device" in (base / "output" / "failure").read_text()
    for place in ("checkpoints/receipt", "model"):
        assert (base / place / "receipt.json").read_text() == "{}"


def test_the_entry_script_reports_the_failure_reason(tmp_path: Path) -> None:
    base = _container(tmp_path, ["data.source=jsonl", "data.path=/nowhere"])
    made = _run_entry(base)
    assert made.returncode == 4
    reason = (base / "output" / "failure").read_text()
    assert reason.startswith("error: ") and "/nowhere" in reason and len(reason) <= 1024
