"""Request and response formats of the endpoint in every content type, and the OpenAPI document from the same models.

{"inputs": "text" | ["text", ...], "parameters": {...}}  ->  [{"summary_text": ..., "truncated": false, ...}, ...]
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from neuron_sum import __version__
from neuron_sum.artifact import ADAPTER_NAME
from neuron_sum.evaluation.faithfulness import FindingKind
from neuron_sum.recipes.schema import GenerateConfig, ServeConfig

JSON, JSON_LINES, TEXT = "application/json", "application/jsonlines", "text/plain"
EVENTS = "text/event-stream"
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
    checks: bool | None = None
    """Whether the answer lists the facts of the summary that do not occur in the dialogue (English)."""

    def settings(self, default: GenerateConfig) -> GenerateConfig:
        """The default settings with the request's changes."""
        changes = self.model_dump(exclude_none=True, exclude={"adapter", "checks"})
        if "max_new_tokens" in changes and "min_new_tokens" not in changes:
            changes["min_new_tokens"] = min(default.min_new_tokens, changes["max_new_tokens"])
        return GenerateConfig.model_validate({**default.model_dump(), **changes})


class Request(_Model):
    """The body of application/json, or a line of application/jsonlines, which has a single text."""

    inputs: str | list[str]
    """A dialogue, one turn per line; or several dialogues."""
    parameters: Parameters = Parameters()


class Check(BaseModel):
    """A part of a summary that the dialogue does not support, found by rules."""

    kind: FindingKind
    text: str
    start: int
    """Position of the first character in summary_text, in Unicode code points."""
    end: int
    message: str


class Summary(BaseModel):
    """The answer to one dialogue."""

    summary_text: str
    sections: dict[str, str] | None = None
    """The text of each section by name, empty for an optional one without a text; only of models with sections."""
    truncated: bool
    """Whether the end of the dialogue was cut to fit the longest bucket."""
    coverage: float = Field(ge=0, le=1)
    """The share of the dialogue's turns that were encoded uncut; below 1 if it was cut."""
    input_tokens: int
    """Number of tokens in the prompt, after the cut; of a long dialogue, in the prompts of its pieces."""
    output_tokens: int
    checks: list[Check] | None = None
    """What the rules found; only if the request has parameters.checks."""


class Piece(BaseModel):
    """A server-sent event: the summary of a piece of a long dialogue, or of the summaries of several pieces."""

    input: int
    """The number of the dialogue in the request, from 0."""
    round: int
    """1 for the pieces of the dialogue, then 2, 3, … for merges of their summaries."""
    piece: int
    """The number of the piece in its round, from 1; pieces finish in any order."""
    pieces: int
    """The number of pieces of the round."""
    summary_text: str


class ErrorBody(BaseModel):
    """Description of an error."""

    code: int
    message: str
    field: str | None


class ErrorAnswer(BaseModel):
    """An error: the body of a refused request, or the entry of a refused item in a list."""

    error: ErrorBody


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
    for name in [*_accepted(accept), kind]:
        if name in CONTENT_TYPES and (name != TEXT or items == 1):
            return name
    return JSON


def _accepted(accept: str | None) -> list[str]:
    """The content types of an Accept header in its order."""
    names = (part.split(";")[0].strip().lower() for part in (accept or "").split(","))
    return [ALIASES.get(name, name) for name in names]


def wants_events(accept: str | None) -> bool:
    """Whether server-sent events are the first supported type in Accept."""
    supported = (name for name in _accepted(accept) if name in (*CONTENT_TYPES, EVENTS))
    return next(supported, None) == EVENTS


def render_event(name: str, data: str) -> str:
    """A server-sent event; `data` is JSON without line breaks."""
    return f"event: {name}\ndata: {data}\n\n"


def render(answers: Sequence[Summary | ServiceError], kind: str) -> str:
    """The body of a response."""
    bodies = [
        {"error": answer.body()} if isinstance(answer, ServiceError) else answer.model_dump(exclude_none=True)
        for answer in answers
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
    piece = Piece.model_json_schema()
    schemas = {**answers.pop("$defs"), **request.pop("$defs"), "Request": request, "Answers": answers, "Piece": piece}
    error = {"content": {JSON: {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}}
    meanings = {
        400: "The body cannot be read.",
        404: "The adapter does not exist; the message lists the existing ones.",
        413: f"More than {limits.max_body_bytes} bytes or {limits.max_items} items.",
        415: "The content type is not supported.",
        422: "A value is invalid, or a dialogue is too long; `field` names it.",
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
                            "description": "One answer per item, in order; a refused item has an error. As server-sent "
                            "events: `piece` (Piece) for each finished piece of a long dialogue, then `answer` "
                            "(Answers) or `error` (ErrorAnswer).",
                            "content": {
                                JSON: {"schema": {"$ref": "#/components/schemas/Answers"}},
                                JSON_LINES: {"schema": {"type": "string"}},
                                TEXT: {"schema": {"type": "string"}},
                                EVENTS: {"schema": {"type": "string"}},
                            },
                        },
                        **{str(code): {"description": meaning, **error} for code, meaning in meanings.items()},
                    },
                }
            }
        },
        "components": {"schemas": schemas},
    }
