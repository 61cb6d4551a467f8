"""Requests written for other servers: the text in them, and the request that this endpoint accepts instead.

Known forms: Hugging Face, TGI, JumpStart, OpenAI (chat, completions, responses), vLLM, Bedrock, Anthropic, Gemini,
Ollama, KServe and TensorFlow Serving, CSV of SageMaker's batch transform. In any other JSON the longest text counts.
"""

import csv
import io
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pydantic import ValidationError

from serving.schema import JSON_LINES, Parameters

TEXT_KEYS = (
    "inputs",
    "messages",
    "text_inputs",
    "prompt",
    "input",
    "instances",
    "contents",
    "inputText",
    "text_input",
    "dialogue",
    "text",
    "content",
    "parts",
    "data",
    "article",
    "document",
    "message",
    "question",
    "sentence",
)
"""The keys that contain the text in other formats, the most specific first."""
TOKEN_KEYS = (
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "maxTokens",
    "maxTokenCount",
    "max_gen_len",
    "maxOutputTokens",
    "num_predict",
    "max_length",
    "max_tokens_to_sample",
)
"""Names of the maximum number of new tokens, the exact one first."""
SETTING_KEYS = (
    "parameters",
    "inferenceConfig",
    "textGenerationConfig",
    "generationConfig",
    "options",
    "sampling_params",
)
"""Objects of other formats that contain parameters."""

MAX_PARTS = 1000
"""The most values of a body that are searched for a text."""
MAX_SHOWN = 80
"""Characters of a text in the suggested request."""
MAX_NAMES, MAX_DEPTH = 8, 8


def correct_request(content: Any, kind: str) -> str:
    """A sentence with the correct request for a body that is not one.

    Args:
        content: The body: parsed JSON, or a text that is not JSON; None if it cannot be shown.
        kind: The content type that the sender should use: JSON or JSON_LINES.
    """
    texts = [_shortened(text) for text in islice(_texts(content), 2)]
    shown: Any = texts[0] if len(texts) == 1 else [*texts, "…"] if texts else "text"
    if kind == JSON_LINES and isinstance(shown, list):
        shown = shown[0]
    body: dict[str, Any] = {"inputs": shown}
    found = dict(islice(_parameters(content), MAX_PARTS))
    usable = {
        name: value for name, value in found.items() if name in Parameters.model_fields and _is_valid(name, value)
    }
    if tokens := [found[name] for name in TOKEN_KEYS if _is_valid("max_new_tokens", found.get(name))]:
        usable["max_new_tokens"] = tokens[0]
    if usable:
        body["parameters"] = usable
    lines = " (one object per line)" if kind == JSON_LINES else ""
    unknown = [_shortened(name) for name in found if name not in Parameters.model_fields and name not in TOKEN_KEYS]
    without = f"; without a counterpart: {', '.join(unknown[:MAX_NAMES])}" if unknown else ""
    return (
        f"Send {json.dumps(body, ensure_ascii=False)} with Content-Type {kind}{lines}. "
        f"Parameters are {', '.join(Parameters.model_fields)}{without}"
    )


def first_of_csv(text: str) -> str:
    """The longest cell of the first row of a CSV, which is the dialogue in a batch transform's input."""
    try:
        return max(next(csv.reader(io.StringIO(text[:10_000], newline=""))), key=len)
    except (csv.Error, StopIteration, ValueError):
        return text


def is_other_format(content: Any) -> bool:
    """Whether parsed JSON is a request for this or another server, and not a text that happens to be JSON."""
    return isinstance(content, dict) and any(name in content for name in TEXT_KEYS)


def _texts(content: Any, depth: int = 0) -> Iterator[str]:
    """The texts of a body: those under the known keys, otherwise the longest one."""
    if isinstance(content, str):
        if content.strip():
            yield content
    elif depth > MAX_DEPTH:
        return
    elif isinstance(content, list):
        if content and all(isinstance(each, dict) and "role" in each for each in content[:MAX_PARTS]):
            yield from _conversation(content, depth)
        else:
            for each in content[:MAX_PARTS]:
                yield from _texts(each, depth + 1)
    elif isinstance(content, dict):
        known = [content[name] for name in TEXT_KEYS if name in content]
        found = next(filter(None, ([*islice(_texts(each, depth + 1), 2)] for each in known)), None)
        yield from (
            found or sorted((each for each in content.values() if isinstance(each, str) and each.strip()), key=len)[-1:]
        )


def _conversation(messages: list[dict[str, Any]], depth: int) -> Iterator[str]:
    """A chat as one dialogue, with a turn per line; a single message (besides the system's) without its role."""
    turns = [
        (message["role"], "\n".join(islice(_texts(message.get("content", message.get("parts")), depth + 1), 2)))
        for message in messages[:MAX_PARTS]
        if message["role"] not in ("system", "developer", "tool")
    ]
    if len(turns) == 1:
        yield from filter(None, [turns[0][1]])
    elif turns:
        yield "\n".join(f"{_shortened(role)}: {text}" for role, text in turns[:MAX_NAMES])


def _parameters(content: Any) -> Iterator[tuple[str, Any]]:
    """The parameters of a body: other keys next to the text, and in the objects that contain parameters."""
    if isinstance(content, list) and content:
        content = content[0]
    if not isinstance(content, dict):
        return
    for name, value in content.items():
        if name in SETTING_KEYS and isinstance(value, dict):
            yield from value.items()
        elif name not in TEXT_KEYS and name not in SETTING_KEYS:
            yield name, value


def _is_valid(name: str, value: Any) -> bool:
    try:
        Parameters.model_validate({name: value})
    except ValidationError:
        return False
    return value is not None


def _shortened(text: Any) -> str:
    whole: str = text if isinstance(text, str) else "…"
    start = whole if len(whole) <= MAX_SHOWN else f"{whole[: MAX_SHOWN - 1]}…"
    return start.encode("utf-8", "replace").decode()  # half a surrogate pair has no UTF-8 form
