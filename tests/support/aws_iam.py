"""IAM's evaluation of policies: of the roles in the account, and of the caller for each call.

moto allows every call. The resource of a call and the values of its condition keys are those of the Service
Authorization Reference of AWS.
"""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import parse_qs

from aws_script import ACCOUNT, REGION
from moto.core.exceptions import JsonRESTError
from moto.iam.models import iam_backends
from moto.sagemaker.models import sagemaker_backends

Policy = dict[str, Any]
Request = tuple[str, str, dict[str, str]]
"""An action, its resource, and the values of condition keys."""
TAG = "neuron-sum-run"
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
    policies = [json.loads(text) if isinstance(text, str) else text for text in found.policies.values()]
    return allowed(policies, action, resource, context)


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
        yield from _s3(environ)
    elif service == "scheduler":
        yield from _scheduler(environ, body)
    elif environ.get("HTTP_X_AMZ_TARGET"):
        yield from _json(service, operation, json.loads(body or b"{}"))
    elif service in ("iam", "cloudformation"):
        given = {key: values[0] for key, values in parse_qs(body.decode()).items()}
        if service == "cloudformation":
            name = given["StackName"]
            arn = name if name.startswith("arn:") else _arn("cloudformation", f"stack/{name}/1")
            yield f"{service}:{operation}", arn, {}
        elif operation.startswith("List"):
            yield f"iam:{operation}", "*", {}
        else:
            linked = f"aws-service-role/{given.get('AWSServiceName')}/x"
            name = given.get("RoleName", linked)
            yield f"iam:{operation}", f"arn:aws:iam::{ACCOUNT}:role/{name}", {}


def _arn(service: str, resource: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{resource}"


def _pass(arn: str, service: str) -> Request:
    return "iam:PassRole", arn, {"iam:PassedToService": f"{service}.amazonaws.com"}


def _json(service: str, operation: str, given: dict[str, Any]) -> Iterator[Request]:
    prefix = {"service-quotas": "servicequotas"}.get(service, service)
    action, context = f"{prefix}:{operation}", {}
    resource = "*"
    if service == "sagemaker":
        verb = next(each for each in ("Create", "Describe", "Delete", "Stop", "List", "Invoke") if each in operation)
        kind = KINDS.get(operation.removeprefix(verb))
        if operation == "ListTags":
            resource = given["ResourceArn"]
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
        if "buildspecOverride" in given:
            context["codebuild:source.buildspec"] = "true"
        for key in ("serviceRoleOverride", "serviceRole"):
            if key in given:
                yield _pass(given[key], "codebuild")
    elif service == "ecr":
        name = given.get("repositoryName") or (given.get("repositoryNames") or [None])[0]
        resource = given.get("resourceArn") or _arn("ecr", f"repository/{name}")
    elif service == "logs" and "logGroupName" in given:
        resource = _arn("logs", f"log-group:{given['logGroupName']}:{given.get('logStreamName', '')}")
    elif service == "application-autoscaling" and not operation.startswith("Describe"):
        resource = _arn("application-autoscaling", "scalable-target/0123")
    elif service == "budgets":
        action = "budgets:ViewBudget"
        resource = f"arn:aws:budgets::{ACCOUNT}:budget/{given.get('BudgetName')}"
    yield action, resource, context


def _tags(arn: str) -> list[dict[str, str]]:
    """The tags of a resource of SageMaker; what AWS checks for one that does not exist is not documented."""
    try:
        return list(sagemaker_backends[ACCOUNT][REGION]._get_resource_from_arn(arn).tags or [])
    except (KeyError, JsonRESTError):
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


def _s3(environ: dict[str, Any]) -> Iterator[Request]:
    method, query = environ["REQUEST_METHOD"], parse_qs(environ["QUERY_STRING"] or "", keep_blank_values=True)
    bucket, _, key = environ["PATH_INFO"].strip("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}"
    if key:
        verb = {"GET": "Get", "HEAD": "Get", "PUT": "Put", "POST": "Put", "DELETE": "Delete"}[method]
        if source := environ.get("HTTP_X_AMZ_COPY_SOURCE"):
            yield "s3:GetObject", f"arn:aws:s3:::{source.strip('/')}", {}
        abort = method == "DELETE" and "uploadId" in query
        yield "s3:AbortMultipartUpload" if abort else f"s3:{verb}Object", f"{arn}/{key}", {}
    elif method == "POST":  # DeleteObjects
        yield "s3:DeleteObject", f"{arn}/neuron-sum/x", {}
    elif "uploads" in query:
        yield "s3:ListBucketMultipartUploads", arn, {}
    elif method in ("GET", "HEAD"):
        prefix = query.get("prefix", [""])[0]
        yield "s3:ListBucket", arn, {"s3:prefix": prefix}
    else:
        yield "s3:DeleteBucket" if method == "DELETE" else "s3:CreateBucket", arn, {}
