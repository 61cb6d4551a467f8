"""Client for an endpoint: a server at a URL, or a SageMaker endpoint.

The Client builds the requests, retries them and interprets the replies; a Transport sends one request and returns one
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

from serving.schema import Check, ErrorAnswer, ErrorBody, Summary
from serving.transport import FEWER, Reply, Unanswered, Unavailable, connect, without_credentials

MAX_MESSAGE = 2000
"""Characters of an endpoint's message in an error."""
LONGEST_BACKOFF_S = 20.0
LONGEST_RETRY_AFTER_S = 120.0
"""The client does not wait if the endpoint requests a longer time."""

HINTS = {
    400: "check the endpoint's name, and that neuron-sum serves it",
    403: "use AWS credentials that allow sagemaker:InvokeEndpoint on the endpoint",
    404: "use URL/invocations for one model, URL/models/NAME/invoke for several; `neuron-sum serve` prints them",
    413: FEWER,
    422: "change the parameters to the allowed values in the message",
    503: f"{FEWER}, or send the request again later",
    504: FEWER,
}
ANSWERS = TypeAdapter(list[Summary | ErrorAnswer])


@dataclass(frozen=True)
class Answer:
    """The answer to one dialogue.

    Attributes:
        summary_text: The summary; empty if there is an error.
        truncated: Whether the end of the dialogue was cut to fit the longest bucket.
        input_tokens: Number of tokens in the prompt, after the cut; of a long dialogue, in the prompts of its pieces.
        output_tokens: Number of tokens in the summary.
        coverage: The share of the dialogue's turns that were encoded uncut; None from a server that does not report it.
        checks: The parts of the summary that the dialogue does not support, if the request asked for them.
        sections: The text of each section, if the model has sections.
        error: The reason for a missing summary. A field `inputs[7]` means the eighth dialogue.
        answered: Whether the endpoint summarized or refused this dialogue. False if it was busy (503) at every
            attempt, if the whole request failed, or if the dialogue was not sent because an earlier request failed.
    """

    summary_text: str = ""
    truncated: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    coverage: float | None = None
    checks: tuple[Check, ...] | None = None
    sections: dict[str, str] | None = None
    error: ErrorBody | None = None
    answered: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The answer in the endpoint's JSON form."""
        if self.error is not None:
            return {"error": self.error.model_dump()}
        return {
            "summary_text": self.summary_text,
            **({} if self.sections is None else {"sections": self.sections}),
            "truncated": self.truncated,
            **({} if self.coverage is None else {"coverage": self.coverage}),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            **({} if self.checks is None else {"checks": [check.model_dump() for check in self.checks]}),
        }


class Client:
    """Sends dialogues in batches, several requests at once, and retries temporary failures.

    503 and failed connections are retried, after Retry-After and an exponential backoff with jitter. Requests that the
    endpoint refuses (4xx) and requests that time out are not retried.

    Args:
        endpoint: A URL, to which /invocations is added unless it has a path; or `sagemaker:ENDPOINT[@REGION]`.
        target_model: The model to use on a SageMaker endpoint with several models.
        batch_size: Number of dialogues per request.
        concurrency: Number of simultaneous requests.
        timeout_s: Maximum seconds from a request to its complete answer, CONNECT_TIMEOUT_S of them for connecting.
        attempts: Maximum number of attempts per request.
        backoff_s: Seconds before the second attempt; doubled before each further attempt.
        on_retry: Called before each retry with its reason and time, in the request's thread.

    Raises:
        RequestError: If `endpoint` is invalid.
        MissingExtraError: If boto3 is needed and not installed.
    """

    streaming = False
    """Whether requests are chat completions (chat.py)."""
    hints = HINTS
    busy: tuple[int, ...] = (503,)
    """The statuses after which a request is sent again."""

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
        self._transport = connect(endpoint, target_model, timeout_s, concurrency, streaming=self.streaming)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def summarize(
        self,
        dialogues: Sequence[str],
        parameters: Mapping[str, Any] | None = None,
        on_answers: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """The answers, in the order of the dialogues.

        After a whole request is refused or its last attempt fails, no further request is sent. Its dialogues and the
        unsent ones get its error; earlier answers, and answers to requests already in progress, are returned.

        Args:
            dialogues: The dialogues, one turn per line.
            parameters: Fields of serving.schema.Parameters: max_new_tokens, num_beams, checks…; None is left out.
            on_answers: Called after each request with the number of dialogues that it answered.

        Raises:
            RequestError: If a request fails and no dialogue is answered.
        """
        if isinstance(dialogues, str):
            raise TypeError("dialogues is a single text; it must be a list of texts")
        if not dialogues:
            return []
        settings = {name: value for name, value in (parameters or {}).items() if value is not None}
        places = range(len(dialogues))
        batches = [places[start : start + self._batch_size] for start in places[:: self._batch_size]]
        answers: dict[int, Answer] = {}
        failures: list[Unanswered] = []
        stopped = threading.Event()
        # The pool's threads are daemons, so that Ctrl-C does not wait for requests in progress.
        with ThreadPool(min(self._concurrency, len(batches))) as pool:
            try:
                for results, failure in pool.imap_unordered(
                    lambda batch: self._answer({place: dialogues[place] for place in batch}, settings, stopped), batches
                ):
                    answers.update(results)
                    if failure is not None:
                        failures.append(failure)
                    if on_answers is not None:
                        on_answers(sum(answer.answered for answer in results.values()))
            finally:
                stopped.set()
        if failures and not any(answer.answered for answer in answers.values()):
            raise failures[0]
        return [answers[place] if place in answers else _unanswered(failures[0]) for place in places]

    def _answer(
        self, batch: Mapping[int, str], parameters: Mapping[str, Any], stopped: threading.Event
    ) -> tuple[dict[int, Answer], Unanswered | None]:
        """The answers of one batch by place, and its error if it failed.

        Retries send only the items that got 503. After another batch has failed there are no retries, and places can
        be missing.
        """
        answers: dict[int, Answer] = {}

        def open_places() -> list[int]:
            return [place for place in batch if place not in answers or not answers[place].answered]

        def attempt() -> list[str]:
            if stopped.is_set():
                return []
            answers.update(self._send({place: batch[place] for place in open_places()}, parameters))
            return [error.message for place in open_places() if (error := answers[place].error) is not None]

        retrying = Retrying(
            retry=retry_if_exception_type(Unavailable) | retry_if_result(bool),
            stop=stop_after_attempt(self._attempts) | stop_when_event_set(stopped),
            wait=self._wait_s,
            sleep=sleep_using_event(stopped),
            before_sleep=self._report_retry,
            retry_error_callback=lambda state: _outcome(state).result(),  # raises the error of the last attempt
        )
        try:
            retrying(attempt)
        except Unanswered as failure:
            stopped.set()
            return answers | dict.fromkeys(open_places(), _unanswered(failure)), failure
        return answers, None

    def _send(self, batch: Mapping[int, str], parameters: Mapping[str, Any]) -> dict[int, Answer]:
        """One attempt at one request."""
        body = json.dumps({"inputs": list(batch.values()), "parameters": parameters}, ensure_ascii=False)
        # Half a surrogate pair has no UTF-8 form. It is sent as a JSON escape, and the endpoint refuses only that item.
        reply = self._transport.send(body.encode("utf-8", "backslashreplace"))
        if reply.status != 200:
            raise self._refusal(reply)
        try:
            items = ANSWERS.validate_json(reply.body)
        except ValidationError as error:
            raise Unanswered(
                f"{self.endpoint} answered no summaries: {start_of(reply.body)}", HINTS[400], 502
            ) from error
        if len(items) != len(batch):
            raise Unanswered(f"{self.endpoint} answered {len(items)} of {len(batch)} dialogues", HINTS[400], 502)
        return {
            place: _relocated(item.error, index, place)
            if isinstance(item, ErrorAnswer)
            else Answer(
                item.summary_text,
                item.truncated,
                item.input_tokens,
                item.output_tokens,
                item.coverage,
                tuple(item.checks) if item.checks is not None else None,
                item.sections,
            )
            for index, (place, item) in enumerate(zip(batch, items, strict=True))
        }

    def _refusal(self, reply: Reply) -> Unanswered:
        """The error for a request that was refused as a whole, or answered with 503."""
        error = self._explain(reply)
        place = f" (field {error.field})" if error.field and error.field not in error.message else ""
        message = f"{self.endpoint} answered {reply.status}: {error.message[:MAX_MESSAGE]}{place[:MAX_MESSAGE]}"
        hint = self.hint_for(reply.status)
        if reply.location is not None:
            message += f", a redirect to {without_credentials(reply.location)[:MAX_MESSAGE]}, which is not followed"
            hint = "use the other URL if you trust it"
        if reply.status not in self.busy:
            return Unanswered(message, hint, reply.status)
        if reply.retry_after_s > LONGEST_RETRY_AFTER_S:
            return Unanswered(message, f"send the request again after {reply.retry_after_s:.0f} s", 503)
        return Unavailable(message, hint, reply.retry_after_s)

    def _explain(self, reply: Reply) -> ErrorBody:
        """The error in a reply."""
        try:
            return ErrorAnswer.model_validate_json(reply.body).error
        except ValidationError:  # the reply comes from a proxy, from SageMaker itself, or from another server
            return ErrorBody(code=reply.status, message=start_of(reply.body) or _phrase(reply.status), field=None)

    def hint_for(self, code: int) -> str:
        """The hint for an HTTP status."""
        return self.hints.get(code, "read the endpoint's log for the reason")

    def _wait_s(self, state: RetryCallState) -> float:
        error = _outcome(state).exception()
        retry_after_s = error.retry_after_s if isinstance(error, Unavailable) else 0.0
        return retry_after_s + self._backoff(state)

    def _report_retry(self, state: RetryCallState) -> None:
        if self._on_retry is not None and state.next_action is not None:
            outcome = _outcome(state)
            error = outcome.exception()
            message = error.message if isinstance(error, Unavailable) else outcome.result()[0]
            next_attempt = f"attempt {state.attempt_number + 1} of {self._attempts} in {state.next_action.sleep:.1f} s"
            self._on_retry(f"{message}; {next_attempt}")


def _relocated(error: ErrorBody, index: int, place: int) -> Answer:
    """An item's error with the item's place among all dialogues instead of its place in the request."""
    sent, original = f"inputs[{index}]", f"inputs[{place}]"
    field = error.field and error.field.replace(sent, original)
    message = error.message[:MAX_MESSAGE].replace(sent, original)
    relocated = ErrorBody(code=error.code, message=message, field=field and field[:MAX_MESSAGE])
    return Answer(error=relocated, answered=error.code != 503)


def _unanswered(failure: Unanswered) -> Answer:
    return Answer(error=ErrorBody(code=failure.code, message=failure.message, field=None), answered=False)


def _outcome(state: RetryCallState) -> "Future[Any]":
    assert state.outcome is not None  # tenacity sets it before it calls the callbacks
    return state.outcome


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "no reason stated"


def start_of(text: str) -> str:
    """The start of a reply in one line, for an error."""
    return " ".join(text.split())[:300]
