"""IAM's evaluation of policies: of the roles in the account, and of the caller for each call.

moto allows every call. The resource of a call and the values of its condition keys are those of the Service
Authorization Reference of AWS.
"""

import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import unescape

from aws_script import ACCOUNT, REGION
from moto.applicationautoscaling.models import applicationautoscaling_backends as scaling_backends
from moto.core.exceptions import JsonRESTError
from moto.iam.models import iam_backends
from moto.sagemaker.models import sagemaker_backends

Policy = dict[str, Any]
Request = tuple[str, str, dict[str, str]]
"""An action, its resource, and the values of condition keys."""
TAG = "neuron-sum-run"
THE_JOB = "the-job"
"""A part of the user agent of calls that a job makes, with the permissions of its role."""
WITHOUT_RESOURCES = ("ce", "pricing", "service-quotas", "cloudwatch")
BUILD_KEYS = {
    "buildspecOverride": "source.buildspec", "sourceLocationOverride": "source.location",
    "sourceAuthOverride": "source.auth.type", "secondarySourcesOverride": "secondarySources",
    "artifactsOverride": "artifacts", "imageOverride": "environment.image",
    "fleetOverride": "environment.fleet.fleetArn",
    "computeTypeOverride": "environment.computeType", "serviceRoleOverride": "serviceRole",
}  # fmt: skip
"""StartBuild's condition keys by the request's member."""
KINDS = {
    "TrainingJob": "training-job", "TransformJob": "transform-job", "Model": "model",
    "EndpointConfig": "endpoint-config", "Endpoint": "endpoint",
}  # fmt: skip


def allowed(policies: list[Policy], action: str, resource: str, context: Mapping[str, str] | None = None) -> bool:
    """Whether a statement allows the action; none of the policies has a Deny."""
    return any(
        any(fnmatchcase(action, each) for each in _several(statement["Action"]))
        and any(fnmatchcase(resource, each) for each in _several(statement["Resource"]))
        and _holds(statement.get("Condition", {}), context or {})
        for policy in policies
        for statement in policy["Statement"]
    )


def _holds(conditions: dict[str, dict[str, Any]], context: Mapping[str, str]) -> bool:
    for operator, keys in conditions.items():
        for key, wanted in keys.items():
            given = context.get(key)
            if operator == "Null":
                if (str(wanted) == "true") != (given is None):
                    return False
            elif operator == "ForAllValues:StringEquals":
                if not {*filter(None, (given or "").split(","))} <= {*_several(wanted)}:
                    return False
            else:
                assert operator in ("StringLike", "StringEquals", "Bool"), operator
                if given is None or not any(fnmatchcase(given, each) for each in _several(wanted)):
                    return False
    return True


def _several(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def role(arn: str) -> Any:
    """The role with an ARN; None if it does not exist."""
    return next((each for each in iam_backends[ACCOUNT]["aws"].roles.values() if each.arn == arn), None)


def role_may(arn: str, action: str, resource: str, **context: str) -> bool:
    """Whether a role's policies allow the action; a role of a test that is not neuron-sum's may do everything."""
    found = role(arn)
    if found is None:
        return False
    if not found.name.startswith("neuron-sum-"):
        return True
    return allowed(policies_of(found), action, resource, context)


def policies_of(found: Any) -> list[Policy]:
    """The policies of a role."""
    return [json.loads(text) if isinstance(text, str) else text for text in found.policies.values()]


def policies_of_jobs() -> list[Policy]:
    """The policies of the stack's role for jobs."""
    return policies_of(role(f"arn:aws:iam::{ACCOUNT}:role/neuron-sum-{REGION}-jobs"))


def assumable(arn: str, service: str) -> bool:
    """Whether a role exists and trusts a service."""
    found = role(arn)
    return found is not None and service in json.dumps(found.assume_role_policy_document)


def refused(policies: list[Policy], call: str, environ: dict[str, Any], body: bytes) -> str | None:
    """The error message if the caller's policies do not allow a call; None if they do."""
    for action, resource, context in requests(call, environ, body):
        if not allowed(policies, action, resource, context):
            return f"User: caller is not authorized to perform: {action} on resource: {resource}"
    return None


def requests(call: str, environ: dict[str, Any], body: bytes) -> Iterator[Request]:
    """The actions of a call, as AWS checks them."""
    service, _, operation = call.partition(".")
    if service == "s3":
        yield from _s3(environ, body)
    elif service == "scheduler":
        yield from _scheduler(environ, body)
    elif environ.get("HTTP_X_AMZ_TARGET"):
        yield from _json(service, operation, json.loads(body or b"{}"))
    elif service in ("iam", "cloudformation", "sts"):
        given = {key: values[0] for key, values in parse_qs(body.decode()).items()}
        if service == "sts":
            if operation != "GetCallerIdentity":  # which needs no permission
                yield f"sts:{operation}", given.get("RoleArn", "*"), {}
        elif service == "cloudformation":
            name = given["StackName"]
            arn = name if name.startswith("arn:") else _arn("cloudformation", f"stack/{name}/1")
            yield f"{service}:{operation}", arn, {}
        elif operation.startswith("List"):
            yield f"iam:{operation}", "*", {}
        else:
            linked = f"aws-service-role/{given.get('AWSServiceName')}/x"
            name = given.get("RoleName", linked)
            yield f"iam:{operation}", f"arn:aws:iam::{ACCOUNT}:role/{name}", {}
    elif service == "sagemaker":  # the runtime
        yield "sagemaker:InvokeEndpoint", _arn("sagemaker", f"endpoint/{environ['PATH_INFO'].split('/')[2]}"), {}
    else:
        raise AssertionError(f"unknown actions of {call}")


def _arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def _pass(arn: str, service: str) -> Request:
    return "iam:PassRole", arn, {"iam:PassedToService": f"{service}.amazonaws.com"}


def _json(service: str, operation: str, given: dict[str, Any]) -> Iterator[Request]:
    prefix = {"service-quotas": "servicequotas"}.get(service, service)
    action, context = f"{prefix}:{operation}", {}
    resource = "*"
    if service == "sagemaker":
        verbs = ("Create", "Describe", "Delete", "Stop", "List", "Add")
        verb = next(each for each in verbs if operation.startswith(each))
        kind = KINDS.get(operation.removeprefix(verb))
        if operation == "ListTags":
            resource = given["ResourceArn"]
        elif operation == "AddTags":
            resource = given["ResourceArn"]
            context = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in given["Tags"]}
        elif operation == "CreateModelPackage":
            yield action, _arn("sagemaker", f"model-package-group/{given['ModelPackageGroupName']}"), {}
            resource = _arn("sagemaker", f"model-package/{given['ModelPackageGroupName']}/1")
        elif operation == "DescribeModelPackage":
            resource = given["ModelPackageName"]
        elif operation.endswith("ModelPackageGroup"):
            resource = _arn("sagemaker", f"model-package-group/{given['ModelPackageGroupName']}")
            context = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in given.get("Tags", [])}
        elif kind is not None:
            name = given[f"{operation.removeprefix(verb)}Name"]
            resource = _arn("sagemaker", f"{kind}/{name}")
            if verb == "Create":
                context = {f"aws:RequestTag/{tag['Key']}": tag["Value"] for tag in given.get("Tags", [])}
            elif verb in ("Delete", "Stop"):
                context = {f"aws:ResourceTag/{tag['Key']}": tag["Value"] for tag in _tags(resource)}
        for key in ("RoleArn", "ExecutionRoleArn"):
            if key in given:
                yield _pass(given[key], "sagemaker")
    elif service == "codebuild":
        project = given.get("projectName") or given.get("name") or (given.get("ids") or [given.get("id")])[0]
        resource = _arn("codebuild", f"project/{str(project).partition(':')[0]}")
        for name, key in BUILD_KEYS.items():
            if name in given:
                context[f"codebuild:{key}"] = str(given[name])
        if variables := given.get("environmentVariablesOverride"):
            names = ",".join(each["name"] for each in variables)
            context["codebuild:environment.environmentVariables.name"] = names
        if "s3Logs" in given.get("logsConfigOverride", {}):
            context["codebuild:logsConfig.s3Logs"] = "true"
        for key in ("serviceRoleOverride", "serviceRole"):
            if key in given:
                yield _pass(given[key], "codebuild")
    elif service == "ecr":
        name = given.get("repositoryName") or (given.get("repositoryNames") or [None])[0]
        registry = given.get("registryId", ACCOUNT)
        resource = given.get("resourceArn") or f"arn:aws:ecr:{REGION}:{registry}:repository/{name}"
    elif service == "logs" and "logGroupName" in given:
        stream = f"log-stream:{given['logStreamName']}" if "logStreamName" in given else ""
        resource = _arn("logs", f"log-group:{given['logGroupName']}:{stream}")
    elif service == "application-autoscaling" and not operation.startswith("Describe"):
        target = _arn("application-autoscaling", "scalable-target/0123")
        resource, context = target, {"application-autoscaling:service-namespace": given["ServiceNamespace"]}
        if operation == "RegisterScalableTarget":
            tags = {f"aws:RequestTag/{key}": value for key, value in given.get("Tags", {}).items()}
            context |= tags
            if tags:
                yield "application-autoscaling:TagResource", target, tags
        else:
            context |= _target_tags(given)
    elif service == "sqs":
        name = given.get("QueueName") or given["QueueUrl"].rpartition("/")[2]
        resource = _arn("sqs", name)
    elif service == "budgets":
        action = "budgets:ViewBudget" if operation.startswith("Describe") else "budgets:ModifyBudget"
        name = given.get("BudgetName") or given["Budget"]["BudgetName"]
        resource = f"arn:aws:budgets::{ACCOUNT}:budget/{name}"
    elif service not in WITHOUT_RESOURCES:
        assert operation.startswith(("List", "Describe")), f"unknown resource of {service}:{operation}"
    yield action, resource, context


def _target_tags(given: dict[str, Any]) -> dict[str, str]:
    """The tags of a scalable target, as condition keys."""
    backend = scaling_backends[ACCOUNT][REGION]
    return {
        f"aws:ResourceTag/{key}": value
        for target in backend.describe_scalable_targets(given["ServiceNamespace"], None, None)
        if target.resource_id == given["ResourceId"]
        for key, value in target.tags.items()
    }


def _tags(arn: str) -> list[dict[str, str]]:
    """The tags of a resource of SageMaker; what AWS checks for one that does not exist is not documented."""
    try:
        return list(sagemaker_backends[ACCOUNT][REGION]._get_resource_from_arn(arn).tags or [])
    except (KeyError, JsonRESTError, AttributeError):  # moto has None for an endpoint that is gone
        return [{"Key": TAG, "Value": "unknown"}]


def _scheduler(environ: dict[str, Any], body: bytes) -> Iterator[Request]:
    method, parts = environ["REQUEST_METHOD"], environ["PATH_INFO"].strip("/").split("/")
    if len(parts) == 1:
        yield "scheduler:ListSchedules", "*", {}
        return
    verb = {"POST": "Create", "PUT": "Update", "GET": "Get", "DELETE": "Delete"}[method]
    yield f"scheduler:{verb}Schedule", _arn("scheduler", f"schedule/default/{parts[1]}"), {}
    if method in ("POST", "PUT"):
        yield _pass(json.loads(body)["Target"]["RoleArn"], "scheduler")


def _s3(environ: dict[str, Any], body: bytes) -> Iterator[Request]:
    method, query = environ["REQUEST_METHOD"], parse_qs(environ["QUERY_STRING"] or "", keep_blank_values=True)
    bucket, _, key = environ["PATH_INFO"].strip("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}"
    setting = next((noun for name, noun in SETTINGS.items() if name in query), None)
    if key:
        verb = {"GET": "Get", "HEAD": "Get", "PUT": "Put", "POST": "Put", "DELETE": "Delete"}[method]
        if source := environ.get("HTTP_X_AMZ_COPY_SOURCE"):
            yield "s3:GetObject", f"arn:aws:s3:::{source.strip('/')}", {}
        abort = method == "DELETE" and "uploadId" in query
        yield "s3:AbortMultipartUpload" if abort else f"s3:{verb}Object", f"{arn}/{key}", {}
    elif method == "POST":  # DeleteObjects
        for name in re.findall(r"<Key>(.*?)</Key>", body.decode()):
            yield "s3:DeleteObject", f"{arn}/{unescape(name)}", {}
    elif setting is not None:
        yield f"s3:{'Get' if method == 'GET' else 'Put'}{setting}", arn, {}
    elif "uploads" in query:
        yield "s3:ListBucketMultipartUploads", arn, {}
    elif method in ("GET", "HEAD"):
        prefix = query.get("prefix", [""])[0]
        yield "s3:ListBucket", arn, {"s3:prefix": prefix}
    else:
        yield "s3:DeleteBucket" if method == "DELETE" else "s3:CreateBucket", arn, {}


SETTINGS = {
    "tagging": "BucketTagging", "encryption": "EncryptionConfiguration", "publicAccessBlock": "BucketPublicAccessBlock",
    "policy": "BucketPolicy", "lifecycle": "LifecycleConfiguration",
}  # fmt: skip
"""The noun of the action for each setting of a bucket."""
