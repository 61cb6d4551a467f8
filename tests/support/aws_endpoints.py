"""Patches of moto's endpoints and schedules: they behave as in AWS, and a request goes to a real server.

DeleteEndpoint is rejected here while an endpoint is Creating. The AWS documentation does not mention it; users report
it (aws/amazon-sagemaker-examples#3432, awslabs/stable-diffusion-aws-extension#342), so this is the stricter case.
"""

import base64
import contextlib
import json
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import moto.sagemaker.models as sagemaker_models
import moto.sagemaker.responses as sagemaker_responses
import moto.sagemakerruntime.responses as runtime_responses
import moto.scheduler.responses as scheduler_responses
from aws_builds import image_exists
from aws_iam import assumable, role_may
from aws_script import ACCOUNT, REGION, Script, refuse
from moto.applicationautoscaling.models import applicationautoscaling_backends as scaling_backends
from moto.core.responses import ActionResult, EmptyResult
from moto.logs.models import logs_backends
from moto.s3.models import s3_backends
from moto.sagemaker.models import sagemaker_backends
from moto.scheduler.models import scheduler_backends
from moto.sqs.models import sqs_backends

_Response = sagemaker_responses.SageMakerResponse
_create_model, _create_config, _create = (
    _Response.create_model,
    _Response.create_endpoint_config,
    _Response.create_endpoint,
)
_describe, _delete = _Response.describe_endpoint, _Response.delete_endpoint
_delete_model, _delete_config = _Response.delete_model, _Response.delete_endpoint_config
_Scheduler, _Runtime = scheduler_responses.EventBridgeSchedulerResponse, runtime_responses.SageMakerRuntimeResponse
_create_schedule, _update_schedule = _Scheduler.create_schedule, _Scheduler.update_schedule
_delete_schedule = _Scheduler.delete_schedule

LOG_GROUP = "/aws/sagemaker/Endpoints"


def patch(script: Callable[[], Script]) -> None:
    """Makes moto's endpoints and schedules behave as in AWS."""

    def create_model(self: Any) -> ActionResult:
        # A used name is rejected; moto replaces the model.
        _new(self.sagemaker_backend._models, self._get_param("ModelName"), "model", script())
        if "the-test" in self.headers.get("User-Agent", ""):  # a test creates the resources it needs
            return _create_model(self)
        # The role must exist, trust SageMaker, and be allowed to read the model; moto accepts any.
        _assumable(self._get_param("ExecutionRoleArn"), "sagemaker.amazonaws.com")
        container = self._get_param("PrimaryContainer")
        # The model must exist and be readable; with several models only the prefix is named, which may be empty.
        bucket, _, key = container["ModelDataUrl"].removeprefix("s3://").partition("/")
        found = s3_backends[ACCOUNT]["aws"].buckets.get(bucket)
        if found is None or (container.get("Mode") != "MultiModel" and key not in found.keys):
            raise refuse("ValidationException", f"Could not find model data at {container['ModelDataUrl']}.")
        # An image in a registry of the account must exist.
        if not image_exists(container["Image"]):
            raise refuse("ValidationException", f"Requested image {container['Image']} not found.")
        script().unseen.add(self._get_param("ModelName"))
        return _create_model(self)

    def create_config(self: Any) -> ActionResult:
        name = self._get_param("EndpointConfigName")
        _new(self.sagemaker_backend.endpoint_configs, name, "endpoint configuration", script())
        production, shadows = self._get_param("ProductionVariants"), self._get_param("ShadowProductionVariants") or []
        if "the-test" not in self.headers.get("User-Agent", ""):
            for variant in [*production, *shadows]:
                find(self.sagemaker_backend._models, variant["ModelName"], "model", script())
                model = self.sagemaker_backend._models[variant["ModelName"]]
                if captured := self._get_param("DataCaptureConfig"):
                    # The role of the model writes the files (SageMaker's developer guide, model-monitor-data-capture).
                    address = captured["DestinationS3Uri"]
                    arn = address.replace("s3://", "arn:aws:s3:::") + "/file"
                    if not role_may(model.execution_role_arn, "s3:PutObject", arn):
                        raise refuse("ValidationException", f"The role may not write to {address}.")
                # SageMaker's developer guide, shadow-tests-exclusions, as far as moto stores it
                excluded = {
                    "multi-model endpoints": model.primary_container.get("Mode") == "MultiModel",
                    "several containers": bool(model.containers),
                    "serverless inference": "ServerlessConfig" in variant,
                    "asynchronous inference": bool(self._get_param("AsyncInferenceConfig")),
                    "Inf1 instances": variant.get("InstanceType", "").startswith("ml.inf1."),
                }
                if shadows and (found := [what for what, used in excluded.items() if used]):
                    raise refuse("ValidationException", f"Shadow variants are not supported with {found[0]}.")
            names = [variant["VariantName"] for variant in [*production, *shadows]]
            if len(set(names)) < len(names):
                raise refuse("ValidationException", "Variant names must be unique.")
            if shadows and (len(production), len(shadows)) != (1, 1):
                # botocore, CreateEndpointConfig, ShadowProductionVariants
                raise refuse("ValidationException", "Only one production and one shadow variant can be specified.")
            script().unseen.add(name)
        made = _create_config(self)
        config = self.sagemaker_backend.endpoint_configs[name]
        for variant in shadows:
            config.validate_instance_type(variant["InstanceType"])
        config.shadow_production_variants = shadows  # moto ignores them
        return made

    def create_endpoint(self: Any) -> ActionResult:
        name = self._get_param("EndpointName")
        _new(self.sagemaker_backend.endpoints, name, "endpoint", script())
        config = self._get_param("EndpointConfigName")
        find(self.sagemaker_backend.endpoint_configs, config, "endpoint configuration", script())
        found = self.sagemaker_backend.endpoint_configs[config]
        shadows = found.shadow_production_variants
        types = {variant["InstanceType"] for variant in [*found.production_variants, *shadows]}
        short = any([script().lacks(instance) for instance in sorted(types)])
        made = _create(self)
        # moto's endpoints are created InService.
        endpoint = self.sagemaker_backend.endpoints[name]
        endpoint.endpoint_status, endpoint.looks, endpoint.short = "Creating", 0, short
        endpoint.shadow_production_variants = endpoint._process_production_variants(shadows)
        return made

    def describe_endpoint(self: Any) -> ActionResult:
        endpoint = self.sagemaker_backend.endpoints.get(self._get_param("EndpointName"))
        if endpoint is not None and endpoint.endpoint_status == "Deleting":
            endpoint.looks += 1
            if endpoint.looks > script().deleting_looks:
                script().still_taken.add(endpoint.endpoint_name)
                self.sagemaker_backend.delete_endpoint(endpoint.endpoint_name)
        if endpoint is not None and endpoint.endpoint_status == "Creating":
            endpoint.looks += 1
            if endpoint.short:
                # The reason of an endpoint without capacity (aws/deep-learning-containers#6411).
                endpoint.endpoint_status = "Failed"
                endpoint.failure_reason = (
                    "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error. "
                    "Please retry using a different ML instance type or after some time."
                )
            elif script().endpoint_looks is not None and endpoint.looks > script().endpoint_looks:
                endpoint.endpoint_status = script().endpoint_end
                if script().endpoint_end == "Failed":
                    endpoint.failure_reason = script().reason or None
                _write_log(endpoint.endpoint_name, script().log_variant, script().log)
        return _describe(self)

    def delete_endpoint(self: Any) -> ActionResult:
        endpoint = self.sagemaker_backend.endpoints.get(self._get_param("EndpointName"))
        if endpoint is not None and endpoint.endpoint_status in ("Creating", "Deleting"):
            raise refuse("ValidationException", f'Cannot update in-progress endpoint "{endpoint.arn}".')
        if endpoint is None or "the-test" in self.headers.get("User-Agent", ""):
            return _delete(self)
        # Its instances are removed after the answer: it is described as Deleting meanwhile (DescribeEndpoint).
        endpoint.endpoint_status, endpoint.looks = "Deleting", 0
        return EmptyResult()

    def delete_model(self: Any) -> ActionResult:
        script().still_taken.add(self._get_param("ModelName"))
        return _delete_model(self)

    def delete_config(self: Any) -> ActionResult:
        script().still_taken.add(self._get_param("EndpointConfigName"))
        return _delete_config(self)

    def delete_schedule(self: Any) -> str:
        script().still_taken.add(self.uri.split("?")[0].split("/")[-1])
        return _delete_schedule(self)

    def create_schedule(self: Any) -> str:
        if (name := self.uri.split("?")[0].split("/")[-1]) in script().still_taken:
            script().still_taken.remove(name)
            raise refuse("ConflictException", f"Schedule {name} already exists.")
        if "the-test" not in self.headers.get("User-Agent", ""):
            _assumable(self._get_param("Target")["RoleArn"], "scheduler.amazonaws.com")
        return _create_schedule(self)

    def update_schedule(self: Any) -> str:
        made = _update_schedule(self)
        # Omitted fields are reset to their defaults; moto keeps them, and a removed state.
        name = self.uri.split("?")[0].split("/")[-1]
        schedule = self.scheduler_backend.get_schedule(None, name)
        schedule.action_after_completion = self._get_param("ActionAfterCompletion") or "NONE"
        schedule.state = self._get_param("State") or "ENABLED"
        return made

    def invoke(self: Any) -> Any:
        """AWS rejects endpoints that do not exist or are not in service; moto answers any with fixed text."""
        name = self.path.split("/")[2]
        endpoint = sagemaker_backends[ACCOUNT][REGION].endpoints.get(name)
        if endpoint is None or endpoint.endpoint_status == "Creating":
            return _error(400, "ValidationError", {"Message": f"Endpoint {name} of account {ACCOUNT} not found."})
        target = self.headers.get("X-Amzn-SageMaker-Target-Model")
        if target is not None and not _stored(endpoint, target):
            text = f"Failed to download model data (target model {target}): the object does not exist"
            return _error(400, "ValidationError", {"Message": text})
        url = script().serving.get(target or name)
        if url is None:
            return _error(400, "ValidationError", {"Message": "TargetModel is required, or the test names no server."})
        headers = {key: self.headers[key] for key in ("Content-Type", "Accept") if key in self.headers}
        request = urllib.request.Request(url, self.body.encode() if isinstance(self.body, str) else self.body, headers)
        try:
            kind, text = _answer(request)
            _capture(endpoint, "main", headers.get("Content-Type", ""), request.data.decode(), kind, text)
            # A shadow variant gets a copy; its answer is captured, and not returned (shadow-tests).
            for variant in endpoint.shadow_production_variants:
                copy = urllib.request.Request(
                    script().serving[f"{name}/{variant['VariantName']}"], request.data, headers
                )
                with contextlib.suppress(urllib.error.HTTPError):  # does not reach the caller
                    given, shadow = (headers.get("Content-Type", ""), request.data.decode()), variant["VariantName"]
                    _capture(endpoint, shadow, *given, *_answer(copy))
            return 200, {"Content-Type": kind}, text
        except urllib.error.HTTPError as error:
            # A container's answer with a status other than 2xx arrives as ModelError, whose status is 424.
            said = error.read().decode()
            text = f'Received server error ({error.code}) from primary with message "{said}".'
            body = {"Message": text, "OriginalStatusCode": error.code, "OriginalMessage": said}
            return _error(424, "ModelError", body)

    _Response.create_model, _Response.create_endpoint_config = create_model, create_config
    _Response.create_endpoint, _Response.describe_endpoint = create_endpoint, describe_endpoint
    _Response.delete_endpoint, _Response.delete_model = delete_endpoint, delete_model
    _Response.delete_endpoint_config, _Scheduler.delete_schedule = delete_config, delete_schedule
    _Scheduler.create_schedule, _Scheduler.update_schedule = create_schedule, update_schedule
    _Runtime.invoke_endpoint = invoke
    # The list of instances for hosting predates Inferentia2; AWS includes it.
    sagemaker_models.FakeEndpointConfig.validate_instance_type = _known_instance


def tick(now: datetime) -> list[str]:
    """Executes the schedules of that time, which moto never does: calls targets with their roles.

    A schedule with a rate calls at its StartDate and after each interval until its EndDate, if it has one, regardless
    of the results of the calls; then it is deleted, if it is to be deleted after its completion.

    Returns:
        The endpoints that were deleted, and the transform jobs that were stopped.
    """
    group, backend = scheduler_backends[ACCOUNT][REGION].schedule_groups["default"], sagemaker_backends[ACCOUNT][REGION]
    ended = []
    for schedule in list(group.schedules.values()):
        first = datetime.fromtimestamp(schedule.start_date, timezone.utc)
        end = schedule.end_date
        last = datetime.max.replace(tzinfo=timezone.utc) if end is None else datetime.fromtimestamp(end, timezone.utc)
        [minutes] = re.fullmatch(r"rate\((\d+) minutes\)", schedule.schedule_expression).groups()
        if now >= last and schedule.action_after_completion == "DELETE":
            group.delete_schedule(schedule.name)
        if not first <= now < last or (now - first) % timedelta(minutes=int(minutes)):
            continue
        arn = schedule.target["RoleArn"]
        action, given = schedule.target["Arn"].rpartition(":")[2], json.loads(schedule.target["Input"])
        if action == "deleteEndpoint":
            thing = backend.endpoints.get(given["EndpointName"])
            # With autoscaling, the caller must also be allowed to deregister the variants and to delete the alarms of
            # their policies; otherwise the endpoint stays (SageMaker's developer guide, endpoint-delete-with-scaling).
            scaled = [] if thing is None else _scaled(thing.endpoint_name)
            alarm = f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:TargetTracking-endpoint/{given['EndpointName']}/x"
            if (
                thing is None
                or thing.endpoint_status == "Creating"
                or not all(
                    role_may(arn, "application-autoscaling:DeregisterScalableTarget", target.arn, **_tags(target))
                    and role_may(arn, "cloudwatch:DeleteAlarms", alarm)
                    for target in scaled
                )
                or not role_may(arn, "sagemaker:DeleteEndpoint", thing.arn)
            ):
                _reject(schedule, "Could not delete the endpoint")
                continue
            for target in scaled:
                scaling_backends[ACCOUNT][REGION].deregister_scalable_target(
                    "sagemaker", target.resource_id, target.scalable_dimension
                )
            backend.delete_endpoint(thing.endpoint_name)
            ended.append(thing.endpoint_name)
        elif action == "stopTransformJob":
            thing = backend.transform_jobs.get(given["TransformJobName"])
            if thing is None or thing.transform_job_status != "InProgress":
                _reject(schedule, "Could not stop the transform job")
                continue
            assert role_may(arn, "sagemaker:StopTransformJob", thing.arn)
            thing.transform_job_status = "Stopping"
            ended.append(thing.transform_job_name)
        else:  # any other call of AWS: what the role may do on any resource
            service, _, operation = schedule.target["Arn"].split("aws-sdk:")[1].partition(":")
            if role_may(arn, f"{service}:{operation[0].upper()}{operation[1:]}", "*"):
                ended.append(action)
            else:
                _reject(schedule, f"not authorized to perform {service}:{operation}")
    return ended


def _assumable(arn: str, service: str) -> None:
    if not assumable(arn, service):
        if service.startswith("scheduler"):
            text = "The execution role you provide must allow AWS EventBridge Scheduler to assume the role."
        else:
            text = f"Could not assume role {arn}. Please ensure that the role exists and allows principal '{service}'."
        raise refuse("ValidationException", text)


def _tags(target: Any) -> dict[str, str]:
    return {f"aws:ResourceTag/{key}": value for key, value in target.tags.items()}


def _scaled(endpoint: str) -> list[Any]:
    targets = scaling_backends[ACCOUNT][REGION].describe_scalable_targets("sagemaker", None, None)
    return [target for target in targets if target.resource_id.startswith(f"endpoint/{endpoint}/")]


def _reject(schedule: Any, reason: str) -> None:
    """Scheduler sends a call that its target rejects to the dead-letter queue (configuring-schedule-dlq)."""
    if not (queue := (schedule.target.get("DeadLetterConfig") or {}).get("Arn")):
        return
    assert role_may(schedule.target["RoleArn"], "sqs:SendMessage", queue)
    values = {"SCHEDULE_ARN": schedule.arn, "TARGET_ARN": schedule.target["Arn"], "ERROR_CODE": "ValidationException",
              "ERROR_MESSAGE": reason}  # fmt: skip
    attributes = {key: {"DataType": "String", "StringValue": value} for key, value in values.items()}
    sqs_backends[ACCOUNT][REGION].send_message(queue.rpartition(":")[2], schedule.target["Input"], attributes)


def find(known: dict[str, Any], name: str, what: str, script: Script) -> None:
    """Refuses what does not exist, and for the first reader also what was just created.

    SageMaker reads from a table that is eventually consistent, and recommends to retry (botocore, CreateEndpoint).
    """
    if name not in known or name in script.unseen:
        script.unseen.discard(name)
        raise refuse("ValidationException", f'Could not find {what} "{name}".')


def _new(known: dict[str, Any], name: str, what: str, script: Script) -> None:
    """Refuses a name that exists, and one that was deleted, for the first request after it.

    AWS deletes asynchronously, and reads from a table that is eventually consistent.
    """
    if name in known or name in script.still_taken:
        script.still_taken.discard(name)
        arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{what.split()[0]}/{name}"
        raise refuse("ValidationException", f'Cannot create already existing {what} "{arn}".')


def _known_instance(self: Any, instance: str) -> None:
    from botocore.session import get_session

    known = get_session().get_service_model("sagemaker").shape_for("ProductionVariantInstanceType").enum
    if instance not in known:
        raise refuse("ValidationException", f"Value '{instance}' at 'instanceType' failed to satisfy enum value set")


def _stored(endpoint: Any, target: str) -> bool:
    backend = sagemaker_backends[ACCOUNT][REGION]
    [variant] = backend.endpoint_configs[endpoint.endpoint_config_name].production_variants
    container = backend._models[variant["ModelName"]].primary_container
    bucket, _, prefix = container["ModelDataUrl"].removeprefix("s3://").partition("/")
    return container.get("Mode") == "MultiModel" and prefix + target in s3_backends[ACCOUNT]["aws"].buckets[bucket].keys


def _answer(request: urllib.request.Request) -> tuple[str, str]:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return answer.headers.get("Content-Type", ""), answer.read().decode()


def _capture(endpoint: Any, variant: str, kind: str, given: str, answer_kind: str, answer: str) -> None:
    """SageMaker writes captured requests as lines into ENDPOINT/VARIANT/YYYY/MM/DD/HH/FILE.jsonl; moto writes none.

    A body is stored as text if its content type is in the configuration, otherwise in base64
    (SageMaker's developer guide, model-monitor-data-capture-endpoint).
    """
    config = sagemaker_backends[ACCOUNT][REGION].endpoint_configs[endpoint.endpoint_config_name]
    if not (captured := config.data_capture_config):
        return
    plain = (captured.get("CaptureContentTypeHeader") or {}).get("JsonContentTypes", [])

    def part(mode: str, content_type: str, text: str) -> dict[str, str]:
        as_text = content_type in plain
        data = text if as_text else base64.b64encode(text.encode()).decode()
        encoding = "JSON" if as_text else "BASE64"
        return {"observedContentType": content_type, "mode": mode, "data": data, "encoding": encoding}

    now = datetime.now(timezone.utc)
    line = {
        "captureData": {
            "endpointInput": part("INPUT", kind, given),
            "endpointOutput": part("OUTPUT", answer_kind, answer),
        },
        "eventMetadata": {"eventId": str(uuid.uuid4()), "inferenceTime": f"{now:%Y-%m-%dT%H:%M:%SZ}"},
        "eventVersion": "0",
    }
    bucket, _, prefix = captured["DestinationS3Uri"].removeprefix("s3://").partition("/")
    place = f"{prefix}/{endpoint.endpoint_name}/{variant}/{now:%Y/%m/%d/%H}/{uuid.uuid4()}.jsonl"
    s3_backends[ACCOUNT]["aws"].put_object(bucket, place, (json.dumps(line) + "\n").encode())


def _write_log(endpoint: str, variant: str, lines: tuple[str, ...]) -> None:
    """Each endpoint has a log group with a stream per instance; moto writes none."""
    logs, group, stream = logs_backends[ACCOUNT][REGION], f"{LOG_GROUP}/{endpoint}", f"{variant}/i-0123456789abcdef0"
    if group not in logs.groups:
        logs.create_log_group(group, {})
        logs.create_log_stream(group, stream)
    now = int(datetime.now(timezone.utc).timestamp() * 1000)
    logs.put_log_events(group, stream, [{"timestamp": now + at, "message": line} for at, line in enumerate(lines)])


def _error(status: int, code: str, body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    return status, {"x-amzn-ErrorType": code, "Content-Type": "application/json"}, json.dumps(body)
