"""For people who call the endpoint: a server at a URL, or a SageMaker endpoint.

The Client knows what is sent, how often, and what a reply means; a Transport sends one request and gives back one
reply (serving/transport.py).

    with Client("http://127.0.0.1:8080") as client:
        answers = client.summarize(dialogues, {"max_new_tokens": 40})
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http import HTTPStatus
from multiprocessing.pool import ThreadPool
from types import TracebackType
from typing import Any

from pydantic import TypeAdapter, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)
from tenacity.nap import sleep_using_event

from serving.schema import ErrorAnswer, ErrorBody, Summary
from serving.transport import FEWER, Reply, Unanswered, Unavailable, connect, without_credentials

LONGEST_BACKOFF_S = 20.0
LONGEST_RETRY_AFTER_S = 120.0
"""An endpoint that asks for more is not waited for."""

HINTS = {
    400: "is it a neuron-sum endpoint, and is its name right?",
    403: "the AWS credentials must allow sagemaker:InvokeEndpoint on it",
    404: "one model answers at URL/invocations, several at URL/models/NAME/invoke; `neuron-sum serve` prints them",
    413: FEWER,
    422: "change the parameters; the message says what is allowed",
    503: f"{FEWER}, or again later",
    504: FEWER,
}
ANSWERS = TypeAdapter(list[Summary | ErrorAnswer])


@dataclass(frozen=True)
class Answer:
    """What came back for one dialogue.

    Attributes:
        summary_text: The summary; empty where there is an error.
        truncated: Whether the dialogue was cut at its end to fit the longest bucket.
        input_tokens: Of the prompt as the model saw it.
        output_tokens: Of the summary.
        error: Why there is no summary. A field `inputs[7]` means the eighth dialogue.
        answered: Whether the endpoint summarized or refused this very dialogue. It did neither if it was busy (503) at
            every attempt, or if a whole request failed: this one's, or one after which this one was not sent any more.
    """

    summary_text: str = ""
    truncated: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    error: ErrorBody | None = None
    answered: bool = True

    def as_dict(self) -> dict[str, Any]:
        """As the endpoint writes it."""
        if self.error is not None:
            return {"error": self.error.model_dump()}
        return {
            "summary_text": self.summary_text,
            "truncated": self.truncated,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }


class Client:
    """Sends dialogues in batches, several requests at once, and tries again what is worth it.

    Tried again are 503 and connections that fail, after Retry-After and an exponential backoff with jitter; not what
    the endpoint refuses (4xx), and not an answer that does not come in time.

    Args:
        endpoint: A URL, to which /invocations is added unless it has a path; or `sagemaker:ENDPOINT[@REGION]`.
        target_model: On a SageMaker endpoint with several models: which.
        batch_size: Dialogues in one request.
        concurrency: Requests at once.
        timeout_s: How long one request may wait for its answer. To connect it may take CONNECT_TIMEOUT_S.
        attempts: At most, for one request.
        backoff_s: The first wait between two; each one after it is twice as long.
        on_retry: Told why there will be another attempt, and when; in the thread of the request.

    Raises:
        RequestError: If `endpoint` is none.
        MissingExtraError: If boto3 is needed and not installed.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        target_model: str | None = None,
        batch_size: int = 8,
        concurrency: int = 4,
        timeout_s: float = 60.0,
        attempts: int = 5,
        backoff_s: float = 0.5,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self.endpoint = without_credentials(endpoint)
        self._batch_size, self._concurrency, self._attempts = batch_size, concurrency, attempts
        self._backoff = wait_exponential(backoff_s, LONGEST_BACKOFF_S) + wait_random(0, backoff_s)
        self._on_retry = on_retry
        self._transport = connect(endpoint, target_model, timeout_s, concurrency)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def summarize(
        self,
        dialogues: Sequence[str],
        parameters: Mapping[str, Any] | None = None,
        on_answers: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """The answers, in the dialogues' order.

        Once a whole request is refused, or its last attempt fails, no more is sent. Its dialogues and those that were
        not sent have its error; what the endpoint has answered, and what it still answers of that under way, is kept.

        Args:
            dialogues: One turn a line.
            parameters: As in serving.schema.Parameters: max_new_tokens, num_beams, adapter…; None is left out.
            on_answers: Told how many more dialogues were answered, after each request.

        Raises:
            RequestError: If a request fails and no dialogue at all is answered.
        """
        if isinstance(dialogues, str):
            raise TypeError("dialogues is one text; it must be a list of them")
        if not dialogues:
            return []
        given = {name: value for name, value in (parameters or {}).items() if value is not None}
        places = range(len(dialogues))
        batches = [places[start : start + self._batch_size] for start in places[:: self._batch_size]]
        answers: dict[int, Answer] = {}
        failures: list[Unanswered] = []
        stopped = threading.Event()
        # Its threads are daemons: Ctrl-C does not wait for the requests that are on their way.
        with ThreadPool(min(self._concurrency, len(batches))) as pool:
            try:
                for made, failure in pool.imap_unordered(
                    lambda batch: self._answer({place: dialogues[place] for place in batch}, given, stopped), batches
                ):
                    answers.update(made)
                    if failure is not None:
                        failures.append(failure)
                    if on_answers is not None:
                        on_answers(sum(answer.answered for answer in made.values()))
            finally:
                stopped.set()
        if failures and not any(answer.answered for answer in answers.values()):
            raise failures[0]
        return [answers[place] if place in answers else _given_up(failures[0]) for place in places]

    def _answer(
        self, batch: Mapping[int, str], parameters: Mapping[str, Any], stopped: threading.Event
    ) -> tuple[dict[int, Answer], Unanswered | None]:
        """One batch, by place, and why it failed if it did.

        The attempts after the first send only what an earlier one left at 503. There is none once another batch has
        failed; then places can be missing.
        """
        answers: dict[int, Answer] = {}

        def open_places() -> list[int]:
            return [place for place in batch if place not in answers or not answers[place].answered]

        def attempt() -> list[str]:
            if stopped.is_set():
                return []
            answers.update(self._ask({place: batch[place] for place in open_places()}, parameters))
            return [error.message for place in open_places() if (error := answers[place].error) is not None]

        retrying = Retrying(
            retry=retry_if_exception_type(Unavailable) | retry_if_result(bool),
            stop=stop_after_attempt(self._attempts) | stop_when_event_set(stopped),
            wait=self._wait_s,
            sleep=sleep_using_event(stopped),
            before_sleep=self._tell,
            retry_error_callback=lambda state: _outcome(state).result(),  # raises what the last attempt raised
        )
        try:
            retrying(attempt)
        except Unanswered as failure:
            stopped.set()
            return answers | dict.fromkeys(open_places(), _given_up(failure)), failure
        return answers, None

    def _ask(self, batch: Mapping[int, str], parameters: Mapping[str, Any]) -> dict[int, Answer]:
        """One attempt at one request."""
        body = json.dumps({"inputs": list(batch.values()), "parameters": parameters}, ensure_ascii=False)
        # Half a surrogate pair has no UTF-8; its backslash form is JSON's, and the endpoint refuses that item alone.
        reply = self._transport.send(body.encode("utf-8", "backslashreplace"))
        if reply.status != 200:
            raise self._refusal(reply)
        try:
            found = ANSWERS.validate_json(reply.body)
        except ValidationError as error:
            raise Unanswered(f"{self.endpoint} answered no summaries: {_start(reply.body)}", HINTS[400], 502) from error
        if len(found) != len(batch):
            raise Unanswered(f"{self.endpoint} answered {len(found)} of {len(batch)} dialogues", HINTS[400], 502)
        return {
            place: _relocated(item.error, index, place)
            if isinstance(item, ErrorAnswer)
            else Answer(item.summary_text, item.truncated, item.input_tokens, item.output_tokens)
            for index, (place, item) in enumerate(zip(batch, found, strict=True))
        }

    def _refusal(self, reply: Reply) -> Unanswered:
        """A whole request that was refused, or 503."""
        try:
            error = ErrorAnswer.model_validate_json(reply.body).error
        except ValidationError:  # not from our service: a proxy, SageMaker itself, another server
            error = ErrorBody(code=reply.status, message=_start(reply.body) or _phrase(reply.status), field=None)
        place = f" (field {error.field})" if error.field and error.field not in error.message else ""
        message = f"{self.endpoint} answered {reply.status}: {error.message}{place}"
        hint = hint_for(reply.status)
        if reply.status != 503:
            return Unanswered(message, hint, reply.status)
        if reply.retry_after_s > LONGEST_RETRY_AFTER_S:
            return Unanswered(message, f"it asks for {reply.retry_after_s:.0f} s before another try", 503)
        return Unavailable(message, hint, reply.retry_after_s)

    def _wait_s(self, state: RetryCallState) -> float:
        error = _outcome(state).exception()
        asked = error.retry_after_s if isinstance(error, Unavailable) else 0.0
        return asked + self._backoff(state)

    def _tell(self, state: RetryCallState) -> None:
        if self._on_retry is not None and state.next_action is not None:
            outcome = _outcome(state)
            error = outcome.exception()
            message = error.message if isinstance(error, Unavailable) else outcome.result()[0]
            again = f"attempt {state.attempt_number + 1} of {self._attempts} in {state.next_action.sleep:.1f} s"
            self._on_retry(f"{message}; {again}")


def hint_for(code: int) -> str:
    """What to run or change after a status."""
    return HINTS.get(code, "the endpoint's log says why")


def _relocated(error: ErrorBody, index: int, place: int) -> Answer:
    """An item's refusal that names the item's place among all dialogues, not that in its request."""
    there, here = f"inputs[{index}]", f"inputs[{place}]"
    field = error.field and error.field.replace(there, here)
    told = ErrorBody(code=error.code, message=error.message.replace(there, here), field=field)
    return Answer(error=told, answered=error.code != 503)


def _given_up(failure: Unanswered) -> Answer:
    return Answer(error=ErrorBody(code=failure.code, message=failure.message, field=None), answered=False)


def _outcome(state: RetryCallState) -> "Future[Any]":
    assert state.outcome is not None  # set before tenacity asks any of us
    return state.outcome


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "no reason given"


def _start(text: str) -> str:
    return " ".join(text.split())[:300]
