"""What the endpoint takes and gives, in every content type, and the OpenAPI document made from the same models.

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
DEFECT = "a defect of neuron-sum; the log of the endpoint has it"
RETRY = "send the request again after the time that Retry-After gives"


class ServiceError(Exception):
    """A request, or one item of it, that is refused.

    Args:
        code: The HTTP status.
        message: What was given, what is allowed, what to do.
        field: Where in the request.
        retry_after_s: For 503: when it is worth another try.
    """

    def __init__(self, code: int, message: str, field: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.field, self.retry_after_s = code, message, field, retry_after_s

    def body(self) -> dict[str, Any]:
        """{"code", "message", "field"}."""
        return {"code": self.code, "message": self.message, "field": self.field}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Parameters(_Model):
    """What a request may change; the rest is as the model was compiled and its recipe says."""

    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """At most the target length that was compiled."""
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    num_beams: Annotated[int, Field(ge=1)] | None = None
    """One of the beam widths that were compiled."""
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=100)] | None = None
    early_stopping: bool | None = None
    adapter: Annotated[str, Field(pattern=f"^{ADAPTER_NAME.pattern}$")] | None = None
    """An adapter's name; null for the model's own default."""

    def settings(self, default: GenerateConfig) -> GenerateConfig:
        """The default, changed where the request says so."""
        given = self.model_dump(exclude_none=True, exclude={"adapter"})
        if "max_new_tokens" in given and "min_new_tokens" not in given:
            given["min_new_tokens"] = min(default.min_new_tokens, given["max_new_tokens"])
        return GenerateConfig.model_validate({**default.model_dump(), **given})


class Request(_Model):
    """The body of application/json; each line of application/jsonlines, there with one text."""

    inputs: str | list[str]
    """A dialogue, one turn a line; or several."""
    parameters: Parameters = Parameters()


class Summary(BaseModel):
    """One answer."""

    summary_text: str
    truncated: bool
    """Whether the dialogue was cut at its end to fit the longest bucket."""
    input_tokens: int
    """Of the prompt as the model saw it."""
    output_tokens: int


class ErrorBody(BaseModel):
    """What went wrong."""

    code: int
    message: str
    field: str | None


class ErrorAnswer(BaseModel):
    """An error: the body of a refused request, or an item's place in a list."""

    error: ErrorBody


@dataclass(frozen=True)
class Item:
    """One dialogue of a request.

    Attributes:
        text: The dialogue.
        parameters: What applies to it.
        field: Its place, for messages.
        error: Why it is refused already; its neighbours are not.
    """

    text: str
    parameters: Parameters
    field: str
    error: ServiceError | None = None


def media_type(header: str | None) -> str:
    """The content type of a request without its parameters; none is taken as JSON.

    Raises:
        ServiceError: 415, or 415 for a charset other than UTF-8.
    """
    kind, *options = [part.strip().lower() for part in (header or JSON).split(";")]
    kind = ALIASES.get(kind, kind)
    if kind not in CONTENT_TYPES:
        raise ServiceError(415, f"Content-Type {kind[:100]!r} is not one of {', '.join(CONTENT_TYPES)}", "Content-Type")
    for option in options:
        name, _, value = option.partition("=")
        if name == "charset" and value.strip("\"'") not in ("utf-8", "utf8", "us-ascii"):
            raise ServiceError(415, f"charset {value[:40]} is not utf-8", "Content-Type")
    return kind


def answer_type(accept: str | None, kind: str, items: int) -> str:
    """The first of the types in Accept that can be given, else that of the request; many items are never text."""
    wanted = [part.split(";")[0].strip().lower() for part in (accept or "").split(",")]
    for name in [*(ALIASES.get(name, name) for name in wanted), kind]:
        if name in CONTENT_TYPES and (name != TEXT or items == 1):
            return name
    return JSON


def parse(body: bytes, kind: str, limits: ServeConfig) -> list[Item]:
    """The items of a request.

    Args:
        body: As it came.
        kind: One of CONTENT_TYPES.
        limits: Items, characters and bytes.

    Raises:
        ServiceError: 400 for what cannot be read, 413 for too much, 422 for what does not hold; for JSON Lines and
            lists, what concerns one item alone stands in its `error` instead.
    """
    if len(body) > limits.max_body_bytes:
        raise ServiceError(413, f"a body of {len(body)} bytes; {limits.max_body_bytes} are allowed")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ServiceError(400, f"the body is not UTF-8: byte {error.start}") from error
    # Before JSON is read, which blocks all other requests: a character can be escaped in up to six bytes.
    characters = len(text) - 5 * text.count("\\u")
    if characters > limits.max_request_characters:
        raise ServiceError(
            413, f"a body of about {characters} characters; {limits.max_request_characters} are allowed", "inputs"
        )
    if not text.strip():
        raise ServiceError(400, "the body is empty", "inputs" if kind == JSON else None)
    if kind == TEXT:
        return [_checked(Item(text, Parameters(), "body"), limits)]
    if kind == JSON_LINES:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        _check_count(len(lines), limits)
        return [_line(number, line, limits) for number, line in lines]
    request = _request(text, "")
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
    """The body of an answer."""
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
        404: "There is no adapter of that name; the message has those there are.",
        413: f"More than {limits.max_body_bytes} bytes or {limits.max_items} items.",
        415: "A content type that is not offered.",
        422: "A value that does not hold; `field` says which.",
        500: "A defect of neuron-sum; the log has it.",
        503: "The queue is full, the deadline passed, or the worker starts again; Retry-After says when to try again.",
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
                            "description": "One answer an item, in order; an item that was refused alone has an error.",
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


def _line(number: int, line: str, limits: ServeConfig) -> Item:
    field = f"line {number}"
    try:
        request = _request(line, f"{field}: ")
        if not isinstance(request.inputs, str):
            raise ServiceError(422, f"{field}: inputs must be one text", f"{field}: inputs")
    except ServiceError as error:
        return Item("", Parameters(), field, error)
    return _checked(Item(request.inputs, request.parameters, f"{field}: inputs"), limits)


def _request(text: str, where: str) -> Request:
    try:
        # json, not pydantic's own reader: it says at which line and column a document breaks.
        content = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ServiceError(400, f"{where}not JSON: {error}") from error
    try:
        return Request.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # A union names the branch it tried, which is no place in the request.
        place = [str(part) for part in first["loc"] if part not in ("str", "list[str]")]
        field = ".".join(place) or "body"
        raise ServiceError(
            422, f"{where}{field}: {first['msg']}; allowed: {_allowed(place)}", f"{where}{field}"
        ) from error


def _allowed(place: Sequence[str]) -> str:
    if place[:1] == ["parameters"]:
        return "parameters with " + ", ".join(Parameters.model_fields)
    return '{"inputs": "text" or ["text", ...], "parameters": {...}}'


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_count(count: int, limits: ServeConfig) -> None:
    if count > limits.max_items:
        raise ServiceError(413, f"{count} items in one request; {limits.max_items} are allowed", "inputs")


def _checked(item: Item, limits: ServeConfig) -> Item:
    """The item, with an error if its text cannot be summarized."""
    if not item.text.strip():
        fault: ServiceError | None = ServiceError(422, f"{item.field} holds no text", item.field)
    elif len(item.text) > limits.max_characters:
        fault = ServiceError(
            422, f"{item.field} has {len(item.text)} characters; {limits.max_characters} are allowed", item.field
        )
    elif not _is_unicode(item.text):
        fault = ServiceError(422, f"{item.field} holds half a surrogate pair, which is no text", item.field)
    else:
        return item
    return Item(item.text, item.parameters, item.field, fault)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
