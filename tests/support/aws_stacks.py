"""CloudFormation in the tests' account: stacks as in AWS, with resources in moto's services.

moto's CloudFormation imports all of its services with their packages, executes an operation within its request, reports
no failures, and lacks build projects and bucket policies. Here an operation takes as many looks as the script says, and
each resource has its events.
"""

import json
import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from aws_script import ACCOUNT, REGION, Script, refuse
from aws_template import NAMES, Resolver
from botocore import xform_name
from moto.codebuild.models import codebuild_backends
from moto.core.exceptions import JsonRESTError
from moto.ecr.models import ecr_backends
from moto.iam.models import iam_backends
from moto.logs.models import logs_backends
from moto.s3.models import cfn_to_api_encryption, s3_backends
from moto.sqs.models import sqs_backends

RETAINED = ("AWS::S3::Bucket", "AWS::S3::BucketPolicy", "AWS::ECR::Repository")
UPDATABLE = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")


class Stack:
    """One stack, and what CloudFormation is doing with it."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.status, self.reason, self.token = name, "", "", ""
        self.id = f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{name}/{number:08x}-0000-4000-8000-000000000000"
        self.template: dict[str, Any] = {}
        self.parameters: dict[str, str] = {}
        self.resources: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.looks, self.pending = 0, None  # what the last look executes

    def note(self, logical: str, kind: str, status: str, reason: str = "") -> None:
        event = {
            "StackId": self.id,
            "EventId": f"{len(self.events):08}",
            "StackName": self.name,
            "LogicalResourceId": logical,
            "ResourceType": kind,
            "Timestamp": datetime.now(timezone.utc),
            "ResourceStatus": status,
            "ClientRequestToken": self.token,
        }
        self.events.append({**event, **({"ResourceStatusReason": reason} if reason else {})})

    def become(self, status: str, reason: str = "") -> None:
        self.status, self.reason = status, reason
        self.note(self.name, "AWS::CloudFormation::Stack", status, reason)

    def described(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "StackId": self.id,
            "StackName": self.name,
            "CreationTime": datetime.now(timezone.utc),
            "StackStatus": self.status,
            "StackStatusReason": self.reason,
            "Tags": [],
        }
        told["Parameters"] = [{"ParameterKey": key, "ParameterValue": each} for key, each in self.parameters.items()]
        return {**told, "Description": self.template.get("Description", "")}


class Stacks:
    """Answers the calls of CloudFormation.

    Args:
        script: Returns the state of the account.
    """

    def __init__(self, script: Callable[[], Script]) -> None:
        self.script, self.of_a_test = script, False

    def answer(self, operation: str, body: bytes, *, of_a_test: bool) -> tuple[int, str]:
        """The status and the XML of the answer to a call."""
        method = xform_name(operation)
        self.of_a_test = of_a_test
        try:
            found = getattr(self, method)(_members(body)) or {}
        except JsonRESTError as error:
            told = json.loads(error.get_body())
            text = f"<Error><Code>{told['__type']}</Code>{_xml('Message', told['message'])}</Error>"
            return 400, f"<ErrorResponse>{text}</ErrorResponse>"
        inner = "".join(_xml(key, value) for key, value in found.items())
        return 200, f"<{operation}Response><{operation}Result>{inner}</{operation}Result></{operation}Response>"

    def find(self, name: str) -> Stack:
        for stack in self.script().stacks:
            if stack.id == name or (stack.name == name and stack.status != "DELETE_COMPLETE"):
                return stack
        raise refuse("ValidationError", f"Stack with id {name} does not exist")

    def create_stack(self, given: dict[str, Any]) -> dict[str, Any] | None:
        change = self.change(given)
        try:
            stack = self.find(given["StackName"])
        except JsonRESTError:
            stack = Stack(given["StackName"], len(self.script().stacks))
            self.script().stacks.append(stack)
        else:
            if stack.token == given["ClientRequestToken"]:
                return {"StackId": stack.id}
            raise refuse("AlreadyExistsException", f"Stack [{stack.name}] already exists")
        stack.template, stack.parameters = change["template"], change["parameters"]
        return self.start(stack, change, "CREATE", given)

    def update_stack(self, given: dict[str, Any]) -> dict[str, Any] | None:
        change, stack = self.change(given), self.find(given["StackName"])
        if stack.token == given["ClientRequestToken"]:
            return {"StackId": stack.id}
        if stack.status not in UPDATABLE:
            raise refuse("ValidationError", f"Stack:{stack.id} is in {stack.status} state and can not be updated.")
        if (change["template"], change["parameters"]) == (stack.template, stack.parameters):
            raise refuse("ValidationError", "No updates are to be performed.")
        return self.start(stack, change, "UPDATE", given)

    def change(self, given: dict[str, Any]) -> dict[str, Any]:
        body, pairs = given["TemplateBody"], given.get("Parameters", [])
        template = json.loads(body)
        parameters = {each["ParameterKey"]: each["ParameterValue"] for each in pairs}
        if len(body) > 51_200:  # CloudFormation's quota
            raise refuse("ValidationError", "Member must have length less than or equal to 51200")
        if unknown := set(parameters) - set(template["Parameters"]):
            raise refuse("ValidationError", f"Parameters: {sorted(unknown)} do not exist in the template")
        for key, value in parameters.items():
            pattern = template["Parameters"][key].get("AllowedPattern", ".*")
            if not re.fullmatch(pattern, value):
                raise refuse("ValidationError", f"Parameter {key} failed to satisfy constraint: {pattern}")
        if "CAPABILITY_NAMED_IAM" not in given.get("Capabilities", []):
            raise refuse("InsufficientCapabilitiesException", "Requires capabilities : [CAPABILITY_NAMED_IAM]")
        return {"template": template, "parameters": parameters}

    def start(self, stack: Stack, change: dict[str, Any], action: str, given: dict[str, Any]) -> dict[str, Any]:
        stack.looks, stack.token = 0, given["ClientRequestToken"]
        stack.become(f"{action}_IN_PROGRESS", "User Initiated")
        stack.pending = lambda: self.apply(stack, change, action)
        return {"StackId": stack.id}

    def apply(self, stack: Stack, change: dict[str, Any], action: str) -> None:
        resolver = Resolver(change["template"], change["parameters"])
        wanted, before = resolver.resources(), stack.resources
        done: dict[str, dict[str, Any]] = {}
        for logical, resource in wanted.items():
            verb = "UPDATE" if logical in before else "CREATE"
            if before.get(logical) == resource:
                continue
            stack.note(logical, resource["Type"], f"{verb}_IN_PROGRESS")
            failure = self.script().stack_failures.get(logical)
            if failure is None and verb == "CREATE" and exists(resource):
                failure = f"{name_of(resource)} already exists"
            if failure is not None:
                stack.note(logical, resource["Type"], f"{verb}_FAILED", failure)
                self.undo(stack, done, action)
                return
            put(self.script(), resource)
            done[logical] = resource
            stack.note(logical, resource["Type"], f"{verb}_COMPLETE")
        for logical in set(before) - set(wanted):
            remove(self.script(), before[logical])
        stack.template, stack.parameters = change["template"], change["parameters"]
        stack.resources = wanted
        stack.become(f"{action}_COMPLETE")

    def undo(self, stack: Stack, done: dict[str, dict[str, Any]], action: str) -> None:
        """RetainExceptOnCreate: what a failed creation made is deleted."""
        for resource in reversed(done.values()):
            remove(self.script(), resource)
        for resource in stack.resources.values():
            put(self.script(), resource)
        stack.become(self.script().stack_rollback if action == "CREATE" else "UPDATE_ROLLBACK_COMPLETE")

    def describe_stacks(self, given: dict[str, Any]) -> dict[str, Any] | None:
        stack = self.find(given.get("StackName"))
        if stack.pending is not None and not self.of_a_test:
            stack.looks += 1
            if stack.looks > self.script().stack_looks:
                pending, stack.pending = stack.pending, None
                pending()
                self.find(given.get("StackName"))  # a deleted stack has only its id
        return {"Stacks": [stack.described()]}

    def describe_stack_events(self, given: dict[str, Any]) -> dict[str, Any] | None:
        return {"StackEvents": self.find(given.get("StackName")).events[::-1]}

    def get_template(self, given: dict[str, Any]) -> dict[str, Any] | None:
        return {"TemplateBody": json.dumps(self.find(given.get("StackName")).template)}

    def delete_stack(self, given: dict[str, Any]) -> dict[str, Any] | None:
        stack = self.find(given.get("StackName"))
        if stack.status == "DELETE_COMPLETE":
            return None
        stack.looks, stack.token = 0, given["ClientRequestToken"]
        stack.become("DELETE_IN_PROGRESS", "User Initiated")

        def finish() -> None:
            for logical, resource in reversed(stack.resources.items()):
                if (failure := self.script().stack_failures.get(logical)) is not None:
                    stack.note(logical, resource["Type"], "DELETE_FAILED", failure)
                    stack.become("DELETE_FAILED")
                    return
                if resource["Type"] in RETAINED:
                    stack.note(logical, resource["Type"], "DELETE_SKIPPED")
                else:
                    remove(self.script(), resource)
            stack.become("DELETE_COMPLETE")

        stack.pending = finish
        return None


def _members(body: bytes) -> dict[str, Any]:
    """The members of a query: lists are numbered from 1."""
    found: dict[str, Any] = {}
    for key, (value, *_) in parse_qs(body.decode(), keep_blank_values=True).items():
        if ".member" not in key:
            found[key] = value
            continue
        name, _, rest = key.partition(".member.")
        number, _, member = rest.partition(".")
        listed = found.setdefault(name, [])
        while len(listed) < int(number):
            listed.append({})
        if member:
            listed[int(number) - 1][member] = value
        else:
            listed[int(number) - 1] = value
    return found


def _xml(name: str, value: Any) -> str:
    if isinstance(value, dict):
        inner = "".join(_xml(key, each) for key, each in value.items())
    elif isinstance(value, list):
        inner = "".join(_xml("member", each) for each in value)
    else:
        inner = escape(value.isoformat() if isinstance(value, datetime) else str(value))
    return f"<{name}>{inner}</{name}>"


def create(script: Script, template: dict[str, Any], parameters: dict[str, str]) -> None:
    """A stack that an earlier `aws setup` created."""
    resolver, stack = Resolver(template, parameters), Stack("neuron-sum", len(script.stacks))
    stack.template, stack.parameters = template, parameters
    stack.resources = resolver.resources()
    for resource in stack.resources.values():
        put(script, resource)
    stack.become("CREATE_COMPLETE")
    script.stacks.append(stack)


def name_of(resource: dict[str, Any]) -> str:
    return str(resource["Properties"][NAMES[resource["Type"]]])


def exists(resource: dict[str, Any]) -> bool:
    """Whether moto has a bucket or a repository."""
    known = {"AWS::S3::Bucket": _s3().buckets, "AWS::ECR::Repository": ecr_backends[ACCOUNT][REGION].repositories}
    return name_of(resource) in known.get(resource["Type"], ())


def put(script: Script, resource: dict[str, Any]) -> None:
    """Creates or updates a resource."""
    kind, name, given = resource["Type"], name_of(resource), resource["Properties"]
    if kind == "AWS::S3::Bucket":
        if not exists(resource):
            _s3().create_bucket(name, REGION)
        _s3().put_bucket_encryption(name, cfn_to_api_encryption(given["BucketEncryption"]))
        _s3().put_bucket_tagging(name, {tag["Key"]: tag["Value"] for tag in given["Tags"]})
        rules = given.get("LifecycleConfiguration", {}).get("Rules", [])
        _s3().put_bucket_lifecycle(name, [_lifecycle_rule(rule) for rule in rules])
    elif kind == "AWS::S3::BucketPolicy":
        script.bucket_policies[name] = given["PolicyDocument"]  # moto does not evaluate its condition
    elif kind == "AWS::ECR::Repository":
        if not exists(resource):
            registry = ecr_backends[ACCOUNT][REGION]
            registry.create_repository(name, None, None, None, given["ImageTagMutability"], given["Tags"])
    elif kind == "AWS::IAM::Role":
        trust, boundary = json.dumps(given["AssumeRolePolicyDocument"]), given.get("PermissionsBoundary")
        role = next((each for each in _iam().roles.values() if each.name == name), None)
        if role is None:
            role = _iam().create_role(name, trust, "/", boundary, given["Description"], given["Tags"], None)
        role.permissions_boundary_arn = boundary
        for policy in given["Policies"]:
            role.put_policy(policy["PolicyName"], json.dumps(policy["PolicyDocument"]))
    elif kind == "AWS::Logs::LogGroup":
        logs = logs_backends[ACCOUNT][REGION]
        if name not in logs.groups:
            logs.create_log_group(name, {})
        logs.put_retention_policy(name, given["RetentionInDays"])
    elif kind == "AWS::CodeBuild::Project":
        project = _lower(given)
        codebuild_backends[ACCOUNT][REGION].create_project(
            name, project["description"], project["source"], project["artifacts"], project["environment"],
            project["serviceRole"], project["tags"], None, project["timeoutInMinutes"],
            project["queuedTimeoutInMinutes"], None, project["logsConfig"], None,
        )  # fmt: skip
    else:
        assert kind == "AWS::SQS::Queue", kind
        if name not in sqs_backends[ACCOUNT][REGION].queues:
            sqs_backends[ACCOUNT][REGION].create_queue(name, {each["Key"]: each["Value"] for each in given["Tags"]})


def _lifecycle_rule(rule: dict[str, Any]) -> dict[str, Any]:
    """CloudFormation's form of a rule in that of S3."""
    days = {"Expiration": {"Days": rule["ExpirationInDays"]}} if "ExpirationInDays" in rule else {}
    same = ("Status", "AbortIncompleteMultipartUpload", "NoncurrentVersionExpiration")
    return {"ID": rule["Id"], "Filter": {"Prefix": rule.get("Prefix", "")}, **days} | {
        key: rule[key] for key in same if key in rule
    }


def remove(script: Script, resource: dict[str, Any]) -> None:
    kind, name = resource["Type"], name_of(resource)
    if kind == "AWS::S3::Bucket":
        _s3().delete_bucket(name)
    elif kind == "AWS::S3::BucketPolicy":
        script.bucket_policies.pop(name, None)
    elif kind == "AWS::ECR::Repository":
        ecr_backends[ACCOUNT][REGION].delete_repository(name)
    elif kind == "AWS::IAM::Role":
        role = next(each for each in _iam().roles.values() if each.name == name)
        role.policies.clear()
        _iam().delete_role(name)
    elif kind == "AWS::Logs::LogGroup":
        logs_backends[ACCOUNT][REGION].delete_log_group(name)
    elif kind == "AWS::CodeBuild::Project":
        codebuild_backends[ACCOUNT][REGION].delete_project(name)
    else:
        sqs_backends[ACCOUNT][REGION].queues.pop(name)


def _s3() -> Any:
    return s3_backends[ACCOUNT]["aws"]


def _iam() -> Any:
    return iam_backends[ACCOUNT]["aws"]


def _lower(value: Any) -> Any:
    """CodeBuild's API spells its members with a small first letter, CloudFormation with a large one."""
    if isinstance(value, dict):
        names = {"BuildSpec": "buildspec", "S3Logs": "s3Logs"}
        return {names.get(name, name[0].lower() + name[1:]): _lower(each) for name, each in value.items()}
    return [_lower(each) for each in value] if isinstance(value, list) else value
