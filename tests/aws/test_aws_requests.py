"""Every request compared with the service's model, for any options: valid, tagged, bounded, and repeatable."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from aws_requests import KEY, STACK, check, model, runs, stacks
from hypothesis import given
from hypothesis import strategies as st

from neuron_sum.errors import AwsError
from neuron_sum.platform import prices
from sagemaker_jobs.aws.names import RUN_TAG, AwsContext, Run
from sagemaker_jobs.batch import transform as batch
from sagemaker_jobs.batch.inputs import Texts
from sagemaker_jobs.cost import lifetime
from sagemaker_jobs.endpoint import launch as endpoint
from sagemaker_jobs.endpoint.sources import Source
from sagemaker_jobs.jobs import requests, training
from sagemaker_jobs.launch import quotas
from sagemaker_jobs.launch import schedules as schedule_requests
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.launch.options import EndpointOptions, TrainOptions, TransformOptions
from sagemaker_jobs.stack.stack import Stack, planned_stack

RUN = Run("tiny-261121-200000-abcd", "tiny")
INSTANCES = ("ml.trn1.2xlarge", "ml.trn1.32xlarge", "ml.c7i.4xlarge", "ml.g5.12xlarge")


@st.composite
def jobs(draw: st.DrawFn) -> tuple[str, TrainOptions]:
    instance = draw(st.sampled_from(INSTANCES))
    runtime = draw(st.integers(1, requests.MAX_RUNTIME_LIMIT_S))
    wait = draw(st.none() | st.integers(runtime, 2 * runtime))
    return draw(st.sampled_from(["train", "compile"])), TrainOptions(
        instance,
        runtime / 3600,
        None if wait is None else wait / 3600,
        network_isolation=draw(st.booleans()),
        instances=draw(st.integers(1, 16)) if instance == "ml.trn1.32xlarge" else 1,
    )


@given(runs, jobs(), stacks, st.integers(1, 99))
def test_a_job_is_valid_tagged_bounded_and_the_same_twice(
    run: Run, job: tuple[str, TrainOptions], stack: Stack, attempt: int
) -> None:
    stage, options = job
    arguments = requests.train_arguments(options.instance, options.instances)
    if stage == "compile":
        arguments = requests.compile_arguments("inf2")
    inputs = {"code": STACK.inputs("code", "0123"), "data": "s3://b/d/"}

    def launched() -> Call:
        made = training.job_launch(
            run,
            stage,
            arguments,
            options,
            [],
            stack,
            addresses=inputs,
            environment={"A": "b"},
            attempt=attempt,
            instances=options.instances,
        )
        return made["training-job"]

    made = launched().request
    check("sagemaker", "CreateTrainingJob", made)
    assert made == launched().request
    assert {"Key": RUN_TAG, "Value": run.id} in made["Tags"]
    assert made["StoppingCondition"]["MaxRuntimeInSeconds"] == round(options.max_hours * 3600)
    assert made["CheckpointConfig"]["LocalPath"] == "/opt/ml/checkpoints"
    assert run.id in made["CheckpointConfig"]["S3Uri"] and run.id in made["OutputDataConfig"]["S3OutputPath"]
    waits = made["StoppingCondition"].get("MaxWaitTimeInSeconds")
    assert made["EnableManagedSpotTraining"] == (waits is not None)
    assert waits is None or waits >= round(options.max_hours * 3600)
    if options.instance == "ml.trn1.32xlarge":
        assert made["Environment"]["FI_PROVIDER"] == "efa"
    if options.instance.startswith("ml.trn1"):
        assert "VolumeKmsKeyId" not in made["ResourceConfig"]


@given(runs, stacks)
def test_an_expiry_is_repeated_without_an_end(run: Run, stack: Stack) -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    call = endpoint.expiry(run, stack, hours=2)
    expiry = call.request
    check("scheduler", "CreateSchedule", expiry)
    # A call that AWS rejects, because the endpoint is still being created, is repeated, without an end.
    assert expiry["ScheduleExpression"] == "rate(10 minutes)" and "EndDate" not in expiry
    assert before + timedelta(hours=2) <= schedule_requests.time_of(expiry) <= before + timedelta(hours=2, minutes=1)
    assert expiry["StartDate"].endswith("+00:00")
    assert expiry["Target"]["RetryPolicy"]["MaximumEventAgeInSeconds"] <= 600, "no call is waited for twice"
    assert expiry["Target"]["DeadLetterConfig"]["Arn"].endswith(":neuron-sum-expiry")
    other = planned_stack(AwsContext(stack.site.account, "cn-north-1", "aws-cn"))
    china = endpoint.expiry(run, other, hours=2).request
    assert china["Target"]["Arn"] == "arn:aws-cn:scheduler:::aws-sdk:sagemaker:deleteEndpoint"
    assert run.name("endpoint") in expiry["Target"]["Input"]


@given(
    runs,
    stacks,
    st.booleans(),
    st.sampled_from(["ml.inf2.xlarge", "ml.c7i.4xlarge"]),
    st.integers(1, 4),
    st.none() | st.floats(0.25, 1000),
    st.none() | st.integers(0, 4),
    st.floats(0, 20_000),
    st.booleans(),
)
def test_a_launch_of_an_endpoint_is_valid_tagged_and_under_its_cap(
    run: Run,
    stack: Stack,
    isolated: bool,
    instance: str,
    instances: int,
    hours: float | None,
    more: int | None,
    cap: float,
    several: bool,
) -> None:
    most = None if more is None else instances + more
    rate = None if most is None else 60.0
    hosting = EndpointOptions(instance, instances, hours, hours is None, most, rate, isolated)
    sources = [Source("one", None, "s3://theirs/a/model.tar.gz"), Source("other", None, "s3://theirs/b/model.tar.gz")]
    now = datetime.now(timezone.utc)
    made = endpoint.launch(run, sources if several else sources[:1], hosting, "image", stack, multi_model=several)
    for call in (*made.calls, *made.later):
        operation = "".join(word.capitalize() for word in call.operation.split("_"))
        check(call.service, operation, call.request)
        if "Tags" in model(call.service).operation_model(operation).input_shape.members:
            tags = call.request["Tags"]
            tags = tags if isinstance(tags, dict) else {tag["Key"]: tag["Value"] for tag in tags}
            assert tags[RUN_TAG] == run.id
    kinds = [call.kind for call in made.calls]
    assert kinds == [*(["schedule"] if hours else []), "model", "endpoint-config", "endpoint"]
    [variant] = made["endpoint-config"].request["ProductionVariants"]
    waits = variant["ModelDataDownloadTimeoutInSeconds"] + variant["ContainerStartupHealthCheckTimeoutInSeconds"]
    # The driver is the host's, and the default host's may be older than the container's runtime.
    assert ("InferenceAmiVersion" in variant) == instance.startswith("ml.inf2")
    [needed] = quotas.needed((*made.calls, *made.later))["sagemaker"].values()
    assert needed == (most or instances), "what autoscaling may start counts against the quota"
    assert hours is None or waits <= hours * 3600 / 2, "it has come up, or failed, before it is to be deleted"
    plan = lifetime.priced((*made.calls, *made.later), None, None, hours or 0.0)
    try:
        plan.check(cap)
    except AwsError:
        assert hours is None or prices.USD_PER_HOUR[instance] * (most or instances) * (hours + 1 / 60) > cap
    else:
        # Scheduler calls within a minute of its time.
        assert hours is not None and prices.USD_PER_HOUR[instance] * (most or instances) * (hours + 1 / 60) <= cap
        ends = schedule_requests.time_of(made["schedule"].request)
        assert (ends - now).total_seconds() <= hours * 3600 + 60


@given(runs, runs)
def test_two_runs_share_no_names_or_addresses(one: Run, other: Run) -> None:
    for kind in ("train", "compile", "model", "config", "endpoint", "expiry", "batch", "build"):
        assert one.name(kind) != other.name(kind)
        assert len(one.name(kind, 9999)) <= 63
    assert len(one.name("batch-model", 9999)) <= 63 and len(one.name("batch-expiry", 9999)) <= 64
    assert not STACK.output(one).startswith(STACK.output(other))
    assert not STACK.checkpoints(one).startswith(STACK.checkpoints(other))


@pytest.mark.parametrize(
    ("instance", "instances", "runtime", "wait", "told"),
    [
        ("ml.inf2.xlarge", 1, 60, None, "SageMaker does not run training jobs on ml.inf2.xlarge"),
        ("trn1.2xlarge", 1, 60, None, "not a SageMaker instance type"),
        ("ml.trn1.2xlarge", 2, 60, None, "only ml.trn1.32xlarge supports more than one"),
        ("ml.trn1.2xlarge", 0, 60, None, "--instances must be at least 1, got 0"),
        ("ml.trn1.2xlarge", 1, 0, None, "the maximum run time must be .* got 0 s"),
        ("ml.trn1.2xlarge", 1, 10**8, None, "maximum run time"),
        ("ml.trn1.2xlarge", 1, 3600, 1800, "maximum wait of 1800 s is shorter than the maximum run time of 3600 s"),
    ],
)
def test_options_that_sagemaker_rejects_are_rejected(
    instance: str, instances: int, runtime: int, wait: int | None, told: str
) -> None:
    with pytest.raises(AwsError, match=told):
        requests.check_job(instance, instances, runtime, wait)


@pytest.mark.parametrize(
    ("instance", "disks"),
    [
        (f"ml.{name}", True)
        for name in (
            "c5d.xlarge",
            "m5d.large",
            "c6id.large",
            "r5d.large",
            "c6gd.xlarge",
            "m5dn.xlarge",
            "g4dn.xlarge",
            "p4de.24xlarge",
            "trn1.2xlarge",
            "trn1n.32xlarge",
            "g5.xlarge",
        )
    ]
    + [(f"ml.{name}", False) for name in ("c7i.4xlarge", "c7i-flex.large", "m5.large", "inf2.xlarge", "p3.2xlarge")],
)
def test_instances_with_local_disks_get_no_volume_key(instance: str, disks: bool) -> None:
    stack = replace(STACK, kms_key=KEY)
    model = Source("one", None, "s3://theirs/a/model.tar.gz")
    hosted = endpoint.launch(RUN, [model], EndpointOptions(instance), "image", stack)
    transform = batch.launch(RUN, 1, model, Texts("s3://b/t/"), TransformOptions(instance, 1, 1.0), "image", stack)
    assert ("KmsKeyId" not in hosted["endpoint-config"].request) == disks
    assert ("VolumeKmsKeyId" not in transform["transform-job"].request["TransformResources"]) == disks
    if not instance.startswith("ml.inf"):
        made = training.job_launch(RUN, "train", (), TrainOptions(instance, 1), [], stack)["training-job"].request
        assert ("VolumeKmsKeyId" not in made["ResourceConfig"]) == disks and made["OutputDataConfig"]["KmsKeyId"] == KEY
