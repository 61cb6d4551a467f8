"""The dialogues of a request, read from its body in every content type."""

import contextlib
import json
from typing import Any

from pydantic import ValidationError

from neuron_sum.recipes.schema import ServeConfig
from serving.limits import Item, check_count, check_text, decode_body
from serving.other_formats import correct_request, first_of_csv, is_other_format
from serving.schema import JSON, JSON_LINES, TEXT, Parameters, Request, ServiceError, media_type

MAX_FIELDS = 32
"""The most fields of an object whose fields are checked one by one."""
MAX_FIELD = 200
"""Characters of a field's name in an error."""


def check_media_type(header: str | None, body: bytes, limits: ServeConfig) -> str:
    """The content type of a request, as `media_type` returns it.

    Raises:
        ServiceError: 415 for an unsupported content type; the message has the correct request for the body.
    """
    try:
        return media_type(header)
    except ServiceError as error:
        if len(body) > limits.max_request_characters or "charset" in error.message:
            raise
        text = body.decode("utf-8", "replace")
        sent = (header or "").lower()
        try:
            remedy = correct_request(_parse_json(text), JSON)
        except (ValueError, RecursionError):
            if "csv" in sent:
                remedy = correct_request(first_of_csv(text), JSON_LINES)
            else:  # bytes that are not text are not shown
                remedy = correct_request(text if not {"\ufffd", "\0"} & set(text) else None, JSON)
        raise ServiceError(error.code, f"{error.message}. {remedy}", error.field) from error


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
        _check_is_text(text)
        return [check_text(Item(text, Parameters(), "body"), limits)]
    if kind == JSON_LINES:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        check_count(len(lines), limits)
        return [_parse_line(number, line, limits) for number, line in lines]
    request = _parse_request(text, "", JSON, limits)
    many = isinstance(request.inputs, list)
    texts = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    if not texts:
        raise ServiceError(422, "inputs is an empty list", "inputs")
    check_count(len(texts), limits)
    return [
        check_text(Item(text, request.parameters, f"inputs[{index}]" if many else "inputs"), limits)
        for index, text in enumerate(texts)
    ]


def _check_is_text(text: str) -> None:
    """Raises a ServiceError with 415 for JSON that was sent as text, which would be summarized with its keys."""
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            if is_other_format(content := _parse_json(text)):
                raise ServiceError(
                    415,
                    f"Content-Type is {TEXT}, but the body is JSON. {correct_request(content, JSON)}",
                    "Content-Type",
                )


def _parse_line(number: int, line: str, limits: ServeConfig) -> Item:
    field = f"line {number}"
    try:
        request = _parse_request(line, f"{field}: ", JSON_LINES, limits)
        if not isinstance(request.inputs, str):
            raise ServiceError(422, f"{field}: inputs must be a single text", f"{field}: inputs")
    except ServiceError as error:
        return Item("", Parameters(), field, error)
    return check_text(Item(request.inputs, request.parameters, f"{field}: inputs"), limits)


def _parse_request(text: str, prefix: str, kind: str, limits: ServeConfig) -> Request:
    try:
        content = _parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ServiceError(400, f"{prefix}not JSON: {error}. {_correct_text(text, kind)}") from error
    _check_size(content, prefix, kind, limits)
    try:
        return Request.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # The location includes the branch of a union, which is not part of the request.
        location = [str(part) for part in first["loc"] if part not in ("str", "list[str]")]
        field = ".".join(location)[:MAX_FIELD] or "body"
        remedy = correct_request(content, kind)
        raise ServiceError(422, f"{prefix}{field}: {first['msg']}. {remedy}", f"{prefix}{field}") from error


def _parse_json(text: str) -> Any:
    # json instead of pydantic's parser, because its errors have the line and column.
    return json.loads(text, parse_constant=_reject_constant)


def _correct_text(text: str, kind: str) -> str:
    """The correct request for a body, or a line, that is not JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        first, _, rest = text.strip().partition("\n")
        if kind == JSON and rest and isinstance(content := _parse_json(first), dict):  # another content type
            return correct_request(content, JSON_LINES)
    return correct_request(None if text.lstrip()[:1] in ("{", "[", '"') else text, kind)


def _check_size(content: object, prefix: str, kind: str, limits: ServeConfig) -> None:
    """Raises a ServiceError for content with more parts than a valid request: validating each blocks other requests."""
    if isinstance(content, dict):
        if isinstance(inputs := content.get("inputs"), list):
            check_count(len(inputs), limits)
        for part in (content, content.get("parameters")):
            if isinstance(part, dict) and len(part) > MAX_FIELDS:
                raise ServiceError(
                    422, f"{prefix}{len(part)} fields. {correct_request(content, kind)}", f"{prefix}body"
                )


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
