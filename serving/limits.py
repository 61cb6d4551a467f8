"""Limits on the size of requests and texts, and the answers to requests that exceed them.

What happens to a text within the limits that has more tokens than the longest bucket is set by the recipe's data.long
(neuron_sum/data/rounds.py).
"""

from dataclasses import dataclass

from neuron_sum.recipes.schema import ServeConfig
from serving.schema import TEXT, Parameters, ServiceError


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


def decode_body(body: bytes, kind: str, limits: ServeConfig) -> str:
    """The text of a body.

    Raises:
        ServiceError: 413 for a body that is too large, 400 for one that is not UTF-8.
    """
    if len(body) > limits.max_body_bytes:
        raise ServiceError(413, f"the body has {len(body)} bytes; at most {limits.max_body_bytes} are allowed")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ServiceError(400, f"the body is not UTF-8: invalid byte at position {error.start}") from error
    # Checked before the JSON is parsed, which blocks all other requests. An escaped character has up to six bytes.
    escapes = 0 if kind == TEXT else text.replace("\\\\", "").count("\\u")
    characters = max(len(text) - 5 * escapes, len(text) // 6)
    if characters > limits.max_request_characters:
        raise ServiceError(
            413,
            f"the body has about {characters} characters; at most {limits.max_request_characters} are allowed",
            "inputs",
        )
    return text


def check_count(count: int, limits: ServeConfig) -> None:
    """Raises a ServiceError with 413 for more dialogues than a request may have."""
    if count > limits.max_items:
        raise ServiceError(413, f"the request has {count} items; at most {limits.max_items} are allowed", "inputs")


def check_text(item: Item, limits: ServeConfig) -> Item:
    """The item, with an error if its text is empty, too long or invalid."""
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
