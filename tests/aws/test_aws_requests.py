"""Every request compared with the service's model, for any options: valid, tagged, bounded, and repeatable."""

from dataclasses import replace
from datetime import datetime, timezone

import pytest
from aws_requests import KEY, STACK, check, model, runs, stacks
from hypothesis import given
from hypothesis import strategies as st

from neuron_sum.errors import AwsError
from neuron_sum.platform import prices
from sagemaker_jobs.aws.names import RUN_TAG, AwsContext, Run
from sagemaker_jobs.batch import requests as batch_requests
from sagemaker_jobs.cost import lifetime
from sagemaker_jobs.endpoint import launch as endpoint
from sagemaker_jobs.endpoint import requests as endpoint_requests
from sagemaker_jobs.endpoint.launch import EndpointOptions
from sagemaker_jobs.endpoint.sources import Source
from sagemaker_jobs.jobs import requests
from sagemaker_jobs.jobs.requests import Job
from sagemaker_jobs.launch import quotas
from sagemaker_jobs.launch import schedules as schedule_requests
from sagemaker_jobs.stack.stack import Stack, planned_stack

RUN = Run("tiny-261121-200000-abcd", "tiny")
INSTANCES = ("ml.trn1.2xlarge", "ml.trn1.32xlarge", "ml.c7i.4xlarge", "ml.g5.12xlarge")


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    instance = draw(st.sampled_from(INSTANCES))
    instances = draw(st.integers(1, 16)) if instance == "ml.trn1.32xlarge" else 1
    runtime = draw(st.integers(1, requests.MAX_RUNTIME_LIMIT_S))
    stage = draw(st.sampled_from(["train", "compile"]))
    return Job(
        run=draw(runs),
        stage=stage,
        channels={"code": STACK.inputs("code", "0123"), "data": "s3://b/d/"},
        arguments=requests.train_arguments(instance, instances)
        if stage == "train"
        else requests.compile_arguments("inf2"),
        instance=instance,
        instances=instances,
        max_runtime_s=runtime,
        max_wait_s=draw(st.none() | st.integers(runtime, 2 * runtime)),
        attempt=draw(st.integers(1, 99)),
        image=requests.training_image("us-east-1"),
        network_isolation=draw(st.booleans()),
        environment={"A": "b"},
    )


@given(jobs(), stacks)
def test_a_job_is_valid_tagged_bounded_and_the_same_twice(job: Job, stack: Stack) -> None:
    made = requests.create_training_job(job, stack)
    check("sagemaker", "CreateTrainingJob", made)
    assert made == requests.create_training_job(job, stack)
    assert {"Key": RUN_TAG, "Value": job.run.id} in made["Tags"]
    assert made["StoppingCondition"]["MaxRuntimeInSeconds"] == job.max_runtime_s
    assert made["CheckpointConfig"]["LocalPath"] == "/opt/ml/checkpoints"
    assert job.run.id in made["CheckpointConfig"]["S3Uri"] and job.run.id in made["OutputDataConfig"]["S3OutputPath"]
    waits = made["StoppingCondition"].get("MaxWaitTimeInSeconds")
    assert made["EnableManagedSpotTraining"] == (waits is not None)
    assert waits is None or waits >= job.max_runtime_s
    if job.instance == "ml.trn1.32xlarge":
        assert made["Environment"]["FI_PROVIDER"] == "efa"
    if job.instance.startswith("ml.trn1"):
        assert "VolumeKmsKeyId" not in made["ResourceConfig"]


@given(runs, stacks, st.sampled_from(["ml.inf2.xlarge", "ml.c7i.4xlarge"]))
def test_requests_of_an_endpoint_are_valid_and_tagged(run: Run, stack: Stack, instance: str) -> None:
    made = [
        (
            "sagemaker",
            "CreateModel",
            endpoint_requests.create_model(
                run,
                stack,
                image="123456789012.dkr.ecr.us-east-1.amazonaws.com/neuron-sum:1",
                model_data="s3://b/m.tar.gz",
                environment={},
                role=stack.endpoint_role,
            ),
        ),
        (
            "sagemaker",
            "CreateEndpointConfig",
            endpoint_requests.create_endpoint_config(run, stack, instance=instance, instances=1),
        ),
        ("sagemaker", "CreateEndpoint", endpoint_requests.create_endpoint(run)),
    ]
    for service, operation, request in made:
        check(service, operation, request)
        assert {"Key": RUN_TAG, "Value": run.id} in request["Tags"]
    ends = datetime(2026, 11, 21, 23, 30, tzinfo=timezone.utc)
    expiry = endpoint_requests.create_expiry(run, stack, at=ends)
    check("scheduler", "CreateSchedule", expiry)
    # A call that AWS rejects, because the endpoint is still being created, is repeated, without an end.
    assert expiry["ScheduleExpression"] == "rate(10 minutes)" and "EndDate" not in expiry
    assert expiry["StartDate"] == "2026-11-21T23:30:00+00:00"
    assert expiry["Target"]["RetryPolicy"]["MaximumEventAgeInSeconds"] <= 600, "no call is waited for twice"
    assert expiry["Target"]["DeadLetterConfig"]["Arn"].endswith(":neuron-sum-expiry")
    other = planned_stack(AwsContext(stack.site.account, "cn-north-1", "aws-cn"))
    china = endpoint_requests.create_expiry(run, other, at=ends)
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
    hosting = EndpointOptions(instance, instances, hours, most, None if most is None else 60.0, isolated)
    sources = [Source("one", None, "s3://theirs/a/model.tar.gz"), Source("other", None, "s3://theirs/b/model.tar.gz")]
    now = datetime(2026, 11, 21, 23, 30, tzinfo=timezone.utc)
    made = endpoint.launch(
        run, sources if several else sources[:1], hosting, "image", stack, now=now, multi_model=several
    )
    for call in (*made.calls, *made.later):
        operation = "".join(word.capitalize() for word in call.operation.split("_"))
        check(call.service, operation, call.request)
        if "Tags" in model(call.service).operation_model(operation).input_shape.members:
            tags = call.request["Tags"]
            tags = tags if isinstance(tags, dict) else {tag["Key"]: tag["Value"] for tag in tags}
            assert tags[RUN_TAG] == run.id
    kinds = [call.kind for call in made.calls]
    assert kinds == [*(["schedule"] if hours else []), "model", "endpoint-config", "endpoint"]
    requests = made.requests
    [variant] = requests["endpoint-config"]["ProductionVariants"]
    waits = variant["ModelDataDownloadTimeoutInSeconds"] + variant["ContainerStartupHealthCheckTimeoutInSeconds"]
    # The driver is the host's, and the default host's may be older than the container's runtime.
    assert ("InferenceAmiVersion" in variant) == instance.startswith("ml.inf2")
    [needed] = quotas.needed((*made.calls, *made.later)).values()
    assert needed == (most or instances), "what autoscaling may start counts against the quota"
    assert hours is None or waits <= hours * 3600 / 2, "it has come up, or failed, before it is to be deleted"
    plan = lifetime.priced(requests, None, None, hours or 0.0)
    try:
        plan.check(cap)
    except AwsError:
        assert hours is None or prices.USD_PER_HOUR[instance] * (most or instances) * (hours + 1 / 60) > cap
    else:
        # Scheduler calls within a minute of its time.
        assert hours is not None and prices.USD_PER_HOUR[instance] * (most or instances) * (hours + 1 / 60) <= cap
        ends = schedule_requests.time_of(requests["schedule"])
        assert (ends - now).total_seconds() <= hours * 3600 + 1e-6  # the precision of timedelta


@given(runs, runs)
def test_two_runs_share_no_names_or_addresses(one: Run, other: Run) -> None:
    for kind in ("train", "compile", "model", "config", "endpoint", "expiry", "batch", "build"):
        assert one.name(kind) != other.name(kind)
        assert len(one.name(kind, 99)) <= 63
    assert len(one.name("batch-model", 99)) <= 63 and len(one.name("batch-expiry", 99)) <= 64
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
    config = endpoint_requests.create_endpoint_config(RUN, stack, instance=instance, instances=1)
    transform = batch_requests.create_transform_job(RUN, stack, instance=instance, instances=1, source="s3://b/t/")
    assert ("KmsKeyId" not in config) == disks
    assert ("VolumeKmsKeyId" not in transform["TransformResources"]) == disks
    if not instance.startswith("ml.inf"):
        job = Job(RUN, "train", (), {"code": "s3://b/c/"}, instance, 1, 60, "image")
        made = requests.create_training_job(job, stack)
        assert ("VolumeKmsKeyId" not in made["ResourceConfig"]) == disks and made["OutputDataConfig"]["KmsKeyId"] == KEY
