"""Requests checked against the AWS description of the service, and strategies that draw them."""

from dataclasses import replace
from functools import cache
from typing import Any

import botocore.session
import regex
from botocore.validate import ParamValidator
from hypothesis import strategies as st

from sagemaker_jobs.aws.names import AwsContext, new_run
from sagemaker_jobs.stack.stack import planned_stack

STACK = planned_stack(AwsContext("123456789012", "us-east-1"))
KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
stacks = st.sampled_from(
    [STACK, replace(STACK, kms_key=KEY), replace(STACK, subnets=("subnet-0a1b2c3d",), security_groups=("sg-0a1b2c3d",))]
)
runs = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,80}", fullmatch=True).map(new_run)


@cache
def model(service: str) -> Any:
    return botocore.session.get_session().get_service_model(service)


def faults(shape: Any, value: Any, path: str = "") -> list[str]:
    """Checks what botocore's validator leaves to the service: enumerations, patterns and maximum lengths."""
    found = []
    if shape.type_name == "structure":
        for name, inner in value.items():
            found += faults(shape.members[name], inner, f"{path}.{name}")
    elif shape.type_name == "map":
        for name, inner in value.items():
            found += faults(shape.key, name, f"{path}.{name}") + faults(shape.value, inner, f"{path}.{name}")
    elif shape.type_name == "list":
        for inner in value:
            found += faults(shape.member, inner, f"{path}[]")
    elif shape.type_name == "string":
        limit, pattern = shape.metadata.get("max"), shape.metadata.get("pattern", "")
        # Java writes characters above U+FFFF as two surrogates.
        pattern = pattern.replace(r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF")
        if limit and len(value) > limit:
            found.append(f"{path}: longer than {limit}: {value}")
        if pattern and not regex.fullmatch(pattern, value):
            found.append(f"{path}: {value} is not {pattern}")
        if shape.enum and value not in shape.enum:
            found.append(f"{path}: {value} is not a value of the service")
    return found


def check(service: str, operation: str, request: dict[str, Any]) -> None:
    shape = model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    assert not (found := faults(shape, request)), found
