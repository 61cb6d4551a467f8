"""Request and response formats of the endpoint in every content type, and the OpenAPI document from the same models.

{"inputs": "text" | ["text", ...], "parameters": {...}}  ->  [{"summary_text": ..., "truncated": false, ...}, ...]
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from neuron_sum import __version__
from neuron_sum.artifact import ADAPTER_NAME
from neuron_sum.recipes.schema import GenerateConfig, ServeConfig

JSON, JSON_LINES, TEXT = "application/json", "application/jsonlines", "text/plain"
ALIASES = {"application/jsonl": JSON_LINES, "application/x-jsonlines": JSON_LINES, "application/x-ndjson": JSON_LINES}
CONTENT_TYPES = (JSON, JSON_LINES, TEXT)
DEFECT = "internal error of neuron-sum; the endpoint's log has the details"
RETRY = "send the request again after the seconds in Retry-After"


class ServiceError(Exception):
    """The refusal of a request or of one item.

    Args:
        code: The HTTP status.
        message: The value, the allowed values, and the remedy.
        field: Path of the field in the request.
        retry_after_s: Seconds after which to retry, for 503.
    """

    def __init__(self, code: int, message: str, field: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.field, self.retry_after_s = code, message, field, retry_after_s

    def body(self) -> dict[str, Any]:
        """The error as an object with code, message and field."""
        return {"code": self.code, "message": self.message, "field": self.field}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Parameters(_Model):
    """The settings that a request may change; the others come from the compiled model and its recipe."""

    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """At most the compiled target length."""
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    num_beams: Annotated[int, Field(ge=1)] | None = None
    """One of the compiled beam widths."""
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)] | None = None
    early_stopping: bool | None = None
    adapter: Annotated[str, Field(pattern=f"^{ADAPTER_NAME.pattern}$")] | None = None
    """An adapter's name; null for the model's default."""

    def settings(self, default: GenerateConfig) -> GenerateConfig:
        """The default settings with the request's changes."""
        changes = self.model_dump(exclude_none=True, exclude={"adapter"})
        if "max_new_tokens" in changes and "min_new_tokens" not in changes:
            changes["min_new_tokens"] = min(default.min_new_tokens, changes["max_new_tokens"])
        return GenerateConfig.model_validate({**default.model_dump(), **changes})


class Request(_Model):
    """The body of application/json, or a line of application/jsonlines, which has a single text."""

    inputs: str | list[str]
    """A dialogue, one turn per line; or several dialogues."""
    parameters: Parameters = Parameters()


class Summary(BaseModel):
    """The answer to one dialogue."""

    summary_text: str
    truncated: bool
    """Whether the end of the dialogue was cut to fit the longest bucket."""
    input_tokens: int
    """Number of tokens in the prompt, after the cut."""
    output_tokens: int


class ErrorBody(BaseModel):
    """Description of an error."""

    code: int
    message: str
    field: str | None


class ErrorAnswer(BaseModel):
    """An error: the body of a refused request, or the entry of a refused item in a list."""

    error: ErrorBody


@dataclass(frozen=True)
class Item:
    """One dialogue of a request.

    Attributes:
        text: The dialogue.
        parameters: The parameters that apply to the dialogue.
        field: Path of the dialogue in the request, for messages.
        error: The error of an item that was refused while parsing; the other items are not affected.
    """

    text: str
    parameters: Parameters
    field: str
    error: ServiceError | None = None


def media_type(header: str | None) -> str:
    """The content type of a request without its parameters; JSON without a header.

    Raises:
        ServiceError: 415 for an unsupported content type, or for a charset other than UTF-8.
    """
    kind, *options = [part.strip().lower() for part in (header or JSON).split(";")]
    kind = ALIASES.get(kind, kind)
    if kind not in CONTENT_TYPES:
        raise ServiceError(415, f"Content-Type {kind[:100]!r} is not one of {', '.join(CONTENT_TYPES)}", "Content-Type")
    for option in options:
        name, _, value = option.partition("=")
        if name == "charset" and value.strip("\"'") not in ("utf-8", "utf8", "us-ascii"):
            raise ServiceError(415, f"charset {value[:40]} is not supported; use utf-8", "Content-Type")
    return kind


def answer_type(accept: str | None, kind: str, items: int) -> str:
    """The first supported type in Accept, otherwise the request's type; text only for a single item."""
    accepted = [part.split(";")[0].strip().lower() for part in (accept or "").split(",")]
    for name in [*(ALIASES.get(name, name) for name in accepted), kind]:
        if name in CONTENT_TYPES and (name != TEXT or items == 1):
            return name
    return JSON


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
    if len(body) > limits.max_body_bytes:
        raise ServiceError(413, f"the body has {len(body)} bytes; at most {limits.max_body_bytes} are allowed")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ServiceError(400, f"the body is not UTF-8: invalid byte at position {error.start}") from error
    # Checked before the JSON is parsed, which blocks all other requests. An escaped character has up to six bytes.
    characters = len(text) - 5 * text.count("\\u")
    if characters > limits.max_request_characters:
        raise ServiceError(
            413,
            f"the body has about {characters} characters; at most {limits.max_request_characters} are allowed",
            "inputs",
        )
    if not text.strip():
        raise ServiceError(400, "the body is empty", "inputs" if kind == JSON else None)
    if kind == TEXT:
        return [_checked(Item(text, Parameters(), "body"), limits)]
    if kind == JSON_LINES:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        _check_count(len(lines), limits)
        return [_parse_line(number, line, limits) for number, line in lines]
    request = _parse_request(text, "")
    many = isinstance(request.inputs, list)
    texts = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    if not texts:
        raise ServiceError(422, "inputs is an empty list", "inputs")
    _check_count(len(texts), limits)
    return [
        _checked(Item(text, request.parameters, f"inputs[{index}]" if many else "inputs"), limits)
        for index, text in enumerate(texts)
    ]


def render(answers: Sequence[Summary | ServiceError], kind: str) -> str:
    """The body of a response."""
    bodies = [
        {"error": answer.body()} if isinstance(answer, ServiceError) else answer.model_dump() for answer in answers
    ]
    if kind == JSON_LINES:
        return "".join(json.dumps(body, ensure_ascii=False) + "\n" for body in bodies)
    if kind == TEXT:
        return "".join(str(body.get("summary_text", "")) for body in bodies)
    return json.dumps(bodies, ensure_ascii=False)


def openapi(limits: ServeConfig | None = None) -> dict[str, Any]:
    """The OpenAPI 3.1 document of /invocations, from the models above."""
    limits = limits or ServeConfig()
    answers = TypeAdapter(list[Summary | ErrorAnswer]).json_schema(ref_template="#/components/schemas/{model}")
    request = Request.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = {**answers.pop("$defs"), **request.pop("$defs"), "Request": request, "Answers": answers}
    error = {"content": {JSON: {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}}
    meanings = {
        400: "The body cannot be read.",
        404: "The adapter does not exist; the message lists the existing ones.",
        413: f"More than {limits.max_body_bytes} bytes or {limits.max_items} items.",
        415: "The content type is not supported.",
        422: "A value is invalid; `field` names it.",
        500: "An internal error of neuron-sum; the log has the details.",
        503: "The queue is full, the deadline passed, or the worker is restarting; Retry-After has the waiting time.",
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "neuron-sum", "version": __version__},
        "paths": {
            "/invocations": {
                "post": {
                    "operationId": "summarize",
                    "requestBody": {
                        "required": True,
                        "content": {
                            JSON: {"schema": {"$ref": "#/components/schemas/Request"}},
                            JSON_LINES: {"schema": {"type": "string"}},
                            TEXT: {"schema": {"type": "string"}},
                        },
                    },
                    "responses": {
                        "200": {
                            "description": "One answer per item, in order; a refused item has an error.",
                            "content": {
                                JSON: {"schema": {"$ref": "#/components/schemas/Answers"}},
                                JSON_LINES: {"schema": {"type": "string"}},
                                TEXT: {"schema": {"type": "string"}},
                            },
                        },
                        **{str(code): {"description": meaning, **error} for code, meaning in meanings.items()},
                    },
                }
            }
        },
        "components": {"schemas": schemas},
    }


def _parse_line(number: int, line: str, limits: ServeConfig) -> Item:
    field = f"line {number}"
    try:
        request = _parse_request(line, f"{field}: ")
        if not isinstance(request.inputs, str):
            raise ServiceError(422, f"{field}: inputs must be a single text", f"{field}: inputs")
    except ServiceError as error:
        return Item("", Parameters(), field, error)
    return _checked(Item(request.inputs, request.parameters, f"{field}: inputs"), limits)


def _parse_request(text: str, prefix: str) -> Request:
    try:
        # json instead of pydantic's parser, because its errors have the line and column.
        content = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise ServiceError(400, f"{prefix}not JSON: {error}") from error
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


def _allowed(location: Sequence[str]) -> str:
    if location[:1] == ["parameters"]:
        return "parameters with " + ", ".join(Parameters.model_fields)
    return '{"inputs": "text" or ["text", ...], "parameters": {...}}'


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_count(count: int, limits: ServeConfig) -> None:
    if count > limits.max_items:
        raise ServiceError(413, f"the request has {count} items; at most {limits.max_items} are allowed", "inputs")


def _checked(item: Item, limits: ServeConfig) -> Item:
    """The item, with an error if its text cannot be summarized."""
    if not item.text.strip():
        fault: ServiceError | None = ServiceError(422, f"{item.field} holds no text", item.field)
    elif len(item.text) > limits.max_characters:
        fault = ServiceError(
            422,
            f"{item.field} has {len(item.text)} characters; at most {limits.max_characters} are allowed",
            item.field,
        )
    elif not _is_unicode(item.text):
        fault = ServiceError(422, f"{item.field} holds half a surrogate pair, which is not valid text", item.field)
    else:
        return item
    return Item(item.text, item.parameters, item.field, fault)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
