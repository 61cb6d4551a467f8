"""Client for an endpoint with OpenAI's chat completions, such as Hugging Face's vLLM image, over its stream of events.

The only message of a request is a dialogue, because the chat template of `package --container hf-vllm` adds the prompt.

    with ChatClient("http://127.0.0.1:8000", on_text=print) as client:
        [answer] = client.summarize([dialogue], {"max_new_tokens": 40})
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from neuron_sum.errors import RequestError
from serving.client import MAX_MESSAGE, Answer, Client, start_of
from serving.schema import EVENTS, ErrorBody
from serving.transport import Reply, Unanswered, Unavailable

DONE = "[DONE]"
PARAMETERS = {"max_new_tokens": "max_tokens"}
"""Names of the supported parameters in a chat completion."""
COMPLETE = ("stop", "length")
"""Finish reasons of a complete text: an end token, and the most new tokens."""
REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""Statuses that reject one dialogue, such as one that is longer than the model's context; others can be answered."""
NOT_CHAT = "check the endpoint; without --chat, requests have neuron-sum's format"
AGAIN = "send the dialogue again"

HINTS = {
    400: "shorten the dialogue, or read the endpoint's log",
    401: "use an endpoint without an API key",
    403: "use AWS credentials that allow sagemaker:InvokeEndpointWithResponseStream on the endpoint",
    404: f"use a URL that ends in /v1, or in /v1/chat/completions; {NOT_CHAT}",
    503: "send fewer requests at once (--concurrency), or send them again later",
    504: "send fewer requests at once (--concurrency), or use a smaller --max-new-tokens",
}


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Chunk(BaseModel):
    """One event: the next part of the text, or after the last one only the usage."""

    choices: list[_Choice]
    usage: _Usage | None = None


class _EndedEarly(Unanswered):
    """A stream that ended before its text was complete; its message has the number of characters."""


@dataclass
class _Stream:
    """One answer, as far as it has arrived.

    Attributes:
        name: The endpoint, for errors.
        on_text: Called with each part of the text.
        text: The text.
        finish: The finish reason, None before the last part.
        usage: The numbers of tokens.
    """

    name: str
    on_text: Callable[[str], None]
    text: str = ""
    finish: str | None = None
    usage: _Usage = field(default_factory=lambda: _Usage(prompt_tokens=0, completion_tokens=0))

    def read(self, pieces: Iterator[bytes], kind: str) -> str:
        """Read the events of a reply; a transport calls it in the thread of the request.

        Raises:
            Unanswered: If an event is an error or not a part of a chat completion, or if the stream ends early.
        """
        from httpx_sse import EventSource

        response = httpx.Response(200, headers={"Content-Type": EVENTS}, content=pieces)
        for event in EventSource(response).iter_sse():
            if event.data == DONE:
                break
            if event.data:
                self._add(event.data)
        if self.finish not in COMPLETE:
            reason = "without a reason" if self.finish is None else f"with the finish reason {self.finish[:80]!r}"
            raise self.ended_early(f"the stream ended {reason}")
        return self.text

    def ended_early(self, reason: str, hint: str = AGAIN, code: int = HTTPStatus.BAD_GATEWAY) -> "_EndedEarly":
        """The error for a stream that ended before its text was complete."""
        message = f"{self.name} answered only {len(self.text)} characters of a summary: {reason}"
        return _EndedEarly(message, hint, code)

    def _add(self, data: str) -> None:
        try:
            chunk = _Chunk.model_validate_json(data)
        except ValidationError as error:
            if (message := error_message(data)) is not None:
                raise self.ended_early(message[:MAX_MESSAGE]) from error
            content = f"an event that is not a part of a chat completion: {start_of(data)}"
            raise Unanswered(f"{self.name} answered {content}", NOT_CHAT, 502) from error
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices[:1]:
            if choice.delta.content:
                self.text += choice.delta.content
                self.on_text(choice.delta.content)
            self.finish = self.finish or choice.finish_reason


class ChatClient(Client):
    """Sends one dialogue per request, and retries temporary failures until the first part of the answer has arrived.

    Args:
        endpoint: A URL, to which /v1/chat/completions is added unless it has a path; or `sagemaker:ENDPOINT[@REGION]`.
        on_text: Called with each part of an answer, in the request's thread.
        settings: `concurrency`, `timeout_s`, `attempts`, `backoff_s` and `on_retry` of Client.
    """

    streaming = True
    hints = HINTS
    busy = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

    def __init__(self, endpoint: str, *, on_text: Callable[[str], None] | None = None, **settings: Any) -> None:
        super().__init__(endpoint, batch_size=1, **settings)
        self._on_text = on_text or (lambda _: None)

    def summarize(
        self,
        dialogues: Sequence[str],
        parameters: Mapping[str, Any] | None = None,
        on_answers: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """See Client; the only parameter is max_new_tokens.

        Raises:
            RequestError: If a request fails and no dialogue is answered, or for another parameter.
        """
        given = {name for name, value in (parameters or {}).items() if value is not None}
        if unsupported := sorted(given - set(PARAMETERS)):
            raise RequestError(
                f"a chat completion has no {unsupported[0]}", f"use only {', '.join(PARAMETERS)} with --chat"
            )
        return super().summarize(dialogues, parameters, on_answers)

    def _send(self, batch: Mapping[int, str], parameters: Mapping[str, Any]) -> dict[int, Answer]:
        [(place, dialogue)] = batch.items()
        body = {
            "messages": [{"role": "user", "content": dialogue}],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **{PARAMETERS[name]: value for name, value in parameters.items()},
        }
        stream = _Stream(self.endpoint, self._on_text)
        try:
            reply = self._transport.send(json.dumps(body).encode(), stream.read)
            if stream.text and reply.status != HTTPStatus.OK:
                raise self._refusal(reply)
        except Unanswered as error:
            if not stream.text or isinstance(error, _EndedEarly):
                raise
            if isinstance(error, Unavailable):  # another attempt would repeat the text that on_text has received
                raise stream.ended_early(error.message) from error
            raise stream.ended_early(error.message, error.hint or AGAIN, error.code) from error
        if reply.status in REFUSALS and (message := error_message(reply.body)) is not None:
            return {place: Answer(error=ErrorBody(code=reply.status, message=message[:MAX_MESSAGE], field=None))}
        if reply.status != HTTPStatus.OK:
            raise self._refusal(reply)
        usage = stream.usage
        return {place: Answer(stream.text.strip(), False, usage.prompt_tokens, usage.completion_tokens)}

    def _explain(self, reply: Reply) -> ErrorBody:
        message = error_message(reply.body)
        return super()._explain(reply) if message is None else ErrorBody(code=reply.status, message=message, field=None)


def error_message(body: str) -> str | None:
    """The message of an error in a form of OpenAI, vLLM or FastAPI; None for anything else."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    for name in ("error", "message", "detail"):
        if not isinstance(content, dict):
            return None
        if isinstance(found := content.get(name), str):
            return found
        content = found if name == "error" and isinstance(found, dict) else content
    return None
