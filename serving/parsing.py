"""The dialogues of a request, read from its body in every content type."""

import json
from collections.abc import Sequence

from pydantic import ValidationError

from neuron_sum.recipes.schema import ServeConfig
from serving.limits import Item, check_count, check_text, decode_body
from serving.schema import JSON, JSON_LINES, TEXT, Parameters, Request, ServiceError

MAX_FIELDS = 32
"""The most fields of an object whose fields are checked one by one."""


def parse(body: bytes, kind: str, limits: ServeConfig) -> list[Item]:
    """The items of a request.

    Args:
        body: The body as received.
        kind: One of CONTENT_TYPES.
        limits: The limits on items, characters and bytes.

    Raises:
        ServiceError: 400 for an unreadable body, 413 for a body that is too large, 422 for an invalid value. In JSON
            Lines and lists, an error that concerns a single item is in its `error` instead.
    """
    text = decode_body(body, kind, limits)
    if not text.strip():
        raise ServiceError(400, "the body is empty", "inputs" if kind == JSON else None)
    if kind == TEXT:
        return [check_text(Item(text, Parameters(), "body"), limits)]
    if kind == JSON_LINES:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        check_count(len(lines), limits)
        return [_parse_line(number, line, limits) for number, line in lines]
    request = _parse_request(text, "", limits)
    many = isinstance(request.inputs, list)
    texts = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    if not texts:
        raise ServiceError(422, "inputs is an empty list", "inputs")
    check_count(len(texts), limits)
    return [
        check_text(Item(text, request.parameters, f"inputs[{index}]" if many else "inputs"), limits)
        for index, text in enumerate(texts)
    ]


def _parse_line(number: int, line: str, limits: ServeConfig) -> Item:
    field = f"line {number}"
    try:
        request = _parse_request(line, f"{field}: ", limits)
        if not isinstance(request.inputs, str):
            raise ServiceError(422, f"{field}: inputs must be a single text", f"{field}: inputs")
    except ServiceError as error:
        return Item("", Parameters(), field, error)
    return check_text(Item(request.inputs, request.parameters, f"{field}: inputs"), limits)


def _parse_request(text: str, prefix: str, limits: ServeConfig) -> Request:
    try:
        # json instead of pydantic's parser, because its errors have the line and column.
        content = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise ServiceError(400, f"{prefix}not JSON: {error}") from error
    _check_size(content, prefix, limits)
    try:
        return Request.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # The location includes the branch of a union, which is not part of the request.
        location = [str(part) for part in first["loc"] if part not in ("str", "list[str]")]
        field = ".".join(location) or "body"
        raise ServiceError(
            422, f"{prefix}{field}: {first['msg']}; allowed: {_allowed(location)}", f"{prefix}{field}"
        ) from error


def _check_size(content: object, prefix: str, limits: ServeConfig) -> None:
    """Raises a ServiceError for content with more parts than a valid request: validating each blocks other requests."""
    if isinstance(content, dict):
        if isinstance(inputs := content.get("inputs"), list):
            check_count(len(inputs), limits)
        for part in (content, content.get("parameters")):
            if isinstance(part, dict) and len(part) > MAX_FIELDS:
                raise ServiceError(422, f"{prefix}{len(part)} fields; allowed: {_allowed([])}", f"{prefix}body")


def _allowed(location: Sequence[str]) -> str:
    if location[:1] == ["parameters"]:
        return "parameters with " + ", ".join(Parameters.model_fields)
    return '{"inputs": "text" or ["text", ...], "parameters": {...}}'


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
