"""Transports to an endpoint: send one request and return one reply, over HTTP or through SageMaker."""

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any, Protocol

import httpx

from neuron_sum.errors import MissingExtraError, RequestError, redacted
from serving.schema import EVENTS, JSON

INVOCATIONS, COMPLETIONS = "/invocations", "/chat/completions"
CONNECT_TIMEOUT_S = 5.0
MAX_REPLY_BYTES = 16 << 20
"""The most bytes of a reply; a summary has a few hundred."""
PIECE_BYTES = 1 << 16
SAGEMAKER = "sagemaker:"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
URL_HINT = "use a URL such as http://127.0.0.1:8080"
BUSY_CODES = ("ModelNotReadyException", "ServiceUnavailable", "ServiceUnavailableException", "ThrottlingException")
"""Error codes with which SageMaker itself reports 503, partly with another status."""

FEWER = "send fewer dialogues in a request (--batch-size), or fewer requests at once (--concurrency)"


class Unanswered(RequestError):
    """A request that was not answered with summaries.

    Args:
        message: Description of the failure.
        hint: Command to run or setting to change.
        code: The received status, or the status that a proxy would send for the failure.
    """

    def __init__(self, message: str, hint: str, code: int) -> None:
        super().__init__(redacted(message), hint)
        self.code = code


class Unavailable(Unanswered):
    """An endpoint that cannot be reached or answers 503, so that a retry can succeed.

    Args:
        message: Description of the failure.
        hint: Command to run or setting to change.
        retry_after_s: Minimum seconds before a retry, as requested by the endpoint.
    """

    def __init__(self, message: str, hint: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message, hint, 503)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Reply:
    """A reply of an endpoint with any status.

    Attributes:
        status: The HTTP status; behind SageMaker, the status of the model's container.
        body: The body as text.
        retry_after_s: Seconds in the Retry-After header; 0 without one.
        location: The URL that a redirect names; redirects are not followed.
    """

    status: int
    body: str
    retry_after_s: float = 0.0
    location: str | None = None


Reader = Callable[[Iterator[bytes], str], str]
"""Reads the body of a reply with status 200, from its pieces and its content type, in the thread of the request."""


class Transport(Protocol):
    """A connection to an endpoint, used by several threads at once."""

    def send(self, body: bytes, read: Reader | None = None) -> Reply:
        """Send one JSON request and wait for its reply.

        Args:
            body: The request.
            read: The reader of a stream of events; None to read JSON as a whole.

        Raises:
            Unavailable: If the endpoint cannot be reached, or the connection ends before the reply.
            Unanswered: If there is no complete reply in time, the reply is too large or not of the expected type, or
                boto3 cannot make the call.
        """
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def connect(
    endpoint: str, target_model: str | None, timeout_s: float, connections: int, *, streaming: bool = False
) -> Transport:
    """The transport for an endpoint; sends nothing yet.

    Args:
        endpoint: A URL, or `sagemaker:ENDPOINT[@REGION]`.
        target_model: The model to use on a SageMaker endpoint with several models.
        timeout_s: Maximum seconds from a request to its reply.
        connections: Maximum number of simultaneous connections.
        streaming: Whether requests are chat completions, which are answered as a stream of events.

    Raises:
        RequestError: If `endpoint` is neither.
        MissingExtraError: If boto3 is needed and not installed.
    """
    if endpoint.startswith(SAGEMAKER):
        name, _, region = endpoint.removeprefix(SAGEMAKER).partition("@")
        if name:
            return SageMakerTransport(name, region or None, target_model, timeout_s, connections, streaming)
    elif endpoint.startswith(("http://", "https://")):
        if target_model is not None:
            raise RequestError(
                f"--target-model cannot be used with {without_credentials(endpoint)}; it is for SageMaker endpoints",
                "use URL/models/NAME/invoke to choose a model",
            )
        return HttpTransport(endpoint, timeout_s, connections, streaming)
    raise RequestError(
        f"{without_credentials(endpoint)!r} is not an endpoint",
        "use a URL such as http://127.0.0.1:8080, or sagemaker:ENDPOINT[@REGION]",
    )


def without_credentials(endpoint: str) -> str:
    """The endpoint in printable form: a URL without its user name, password and query, which can contain a token."""
    return re.sub(r"(?<=://)[^/?#]*@|\?[^#]*", "", endpoint)


class HttpTransport:
    """A server at a URL.

    Args:
        url: The URL; /invocations, or /v1/chat/completions for `streaming`, is added unless it has a path.
        timeout_s: Maximum seconds from a request to its reply.
        connections: Maximum number of simultaneous connections.
        streaming: Whether the replies are streams of events.
    """

    def __init__(self, url: str, timeout_s: float, connections: int, streaming: bool = False) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise RequestError(f"{without_credentials(url)} is not a URL: {error}", URL_HINT) from error
        if not parsed.host:
            raise RequestError(f"{without_credentials(url)} has no host name", URL_HINT)
        if parsed.port is not None and not 0 < parsed.port < 65536:
            raise RequestError(f"{without_credentials(url)} has an invalid port", URL_HINT)
        self._url, self._accept = _complete(parsed, streaming), EVENTS if streaming else JSON
        self._timeout_s = timeout_s
        try:
            self._http = httpx.Client(
                timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
                follow_redirects=False,
                limits=httpx.Limits(max_connections=connections),
                trust_env=parsed.host not in LOOPBACK,  # a configured proxy cannot reach this machine
            )
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            hint = "correct HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
            raise RequestError(f"the proxy in the environment cannot be used: {error}", hint) from error

    def send(self, body: bytes, read: Reader | None = None) -> Reply:
        """See Transport."""
        place = without_credentials(str(self._url))
        try:
            return _within(self._timeout_s, lambda: self._receive(body, place, read))
        except (httpx.ReadTimeout, httpx.WriteTimeout, Late) as error:
            raise _late(place, self._timeout_s) from error
        # UnicodeError: a part of the host name is too long.
        except (httpx.RequestError, httpx.StreamError, UnicodeError) as error:
            raise Unavailable(f"no answer from {place}: {error}", "run `neuron-sum serve ARTIFACT`") from error

    def _receive(self, body: bytes, place: str, read: Reader | None) -> Reply:
        # A compressed reply could unpack to any size.
        headers = {"Content-Type": JSON, "Accept": self._accept, "Accept-Encoding": "identity"}
        end = time.monotonic() + self._timeout_s
        with self._http.stream("POST", self._url, content=body, headers=headers) as answer:
            encoding = answer.headers.get("Content-Encoding", "identity")
            if encoding.strip().lower() not in ("", "identity"):
                raise unusable_reply(place, f"Content-Encoding {encoding[:80]!r}, which was not requested")
            pieces = _bounded(answer.iter_raw(), end, place)
            kind = answer.headers.get("Content-Type", self._accept)
            reply = Reply(
                answer.status_code,
                _read(pieces, kind, place, read) if answer.status_code == 200 else _text(pieces),
                parse_retry_after(answer.headers.get("Retry-After")),
                answer.headers.get("Location") if answer.is_redirect else None,
            )
        return reply

    def close(self) -> None:
        """See Transport."""
        self._http.close()


class SageMakerTransport:
    """A SageMaker endpoint, called with the credentials and the region that boto3 finds.

    Args:
        endpoint_name: The endpoint's name.
        region: The endpoint's region. Default: boto3's.
        target_model: The model to use on an endpoint with several models, such as NAME.tar.gz.
        timeout_s: Maximum seconds from a request to its reply; SageMaker's limit is 60 s.
        connections: Maximum number of simultaneous connections.
        streaming: Whether the replies are streams of events.

    Raises:
        MissingExtraError: If boto3 is not installed.
        RequestError: If boto3 finds no region.
    """

    def __init__(
        self,
        endpoint_name: str,
        region: str | None,
        target_model: str | None,
        timeout_s: float,
        connections: int,
        streaming: bool = False,
    ) -> None:
        try:
            boto3, botocore = import_module("boto3"), import_module("botocore")
        except ModuleNotFoundError as error:
            raise MissingExtraError("boto3", "aws") from error
        self._name, self._timeout_s, self._errors = endpoint_name, timeout_s, botocore.exceptions
        # An event stream passes on the errors of urllib3, unlike a body.
        self._broken = import_module("urllib3").exceptions.HTTPError
        self._streaming = streaming
        accept = EVENTS if streaming else JSON
        self._arguments = {"EndpointName": endpoint_name, "ContentType": JSON, "Accept": accept}
        if target_model is not None:
            self._arguments["TargetModel"] = target_model
        settings = botocore.config.Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=timeout_s,
            max_pool_connections=connections,
            # `max_attempts` would not count the first attempt.
            retries={"total_max_attempts": 1, "mode": "standard"},
        )
        try:
            self._client = boto3.client("sagemaker-runtime", region_name=region, config=settings)
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise self._unusable(error) from error

    def send(self, body: bytes, read: Reader | None = None) -> Reply:
        """See Transport."""
        try:
            return _within(self._timeout_s + CONNECT_TIMEOUT_S, lambda: self._receive(body, read))
        except self._errors.ClientError as error:
            return _sagemaker_reply(error.response)
        except (self._errors.ReadTimeoutError, Late) as error:
            raise _late(self._name, self._timeout_s) from error
        except (self._errors.ConnectionError, self._errors.HTTPClientError, self._broken) as error:
            hint = "check the endpoint's region and the network connection"
            raise Unavailable(f"no answer from {self._name}: {error}", hint) from error
        except self._errors.BotoCoreError as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """See Transport."""
        self._client.close()

    def _receive(self, body: bytes, read: Reader | None) -> Reply:
        end = time.monotonic() + self._timeout_s + CONNECT_TIMEOUT_S
        call = "invoke_endpoint_with_response_stream" if self._streaming else "invoke_endpoint"
        answer = getattr(self._client, call)(Body=body, **self._arguments)
        kind = answer.get("ContentType", self._arguments["Accept"])
        with closing(answer["Body"]) as content:
            parts = _payload(content) if self._streaming else content.iter_chunks(PIECE_BYTES)
            return Reply(200, _read(_bounded(parts, end, self._name), kind, self._name, read))

    def _unusable(self, error: Exception) -> Unanswered:
        hint = f"use {SAGEMAKER}{self._name}@REGION, and put credentials where boto3 looks for them"
        return Unanswered(f"boto3 cannot call {self._name}: {error}", hint, 500)


def parse_retry_after(retry_after: str | None) -> float:
    """The seconds in a Retry-After header, which is a number or a date; 0 if it is missing or invalid."""
    text = (retry_after or "").strip()[:100]
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    when = when if when.tzinfo is not None else when.replace(tzinfo=timezone.utc)
    return max((when - datetime.now(timezone.utc)).total_seconds(), 0.0)


def _sagemaker_reply(response: Mapping[str, Any]) -> Reply:
    """A ClientError as a reply of the model's container, or of SageMaker itself."""
    # An error in the middle of a stream has no metadata.
    code, metadata = response["Error"]["Code"], response.get("ResponseMetadata", {"HTTPStatusCode": 502})
    retry_after_s = parse_retry_after(metadata.get("HTTPHeaders", {}).get("retry-after"))
    if code == "ModelError" and "OriginalStatusCode" in response:
        return Reply(response["OriginalStatusCode"], response.get("OriginalMessage", ""), retry_after_s)
    status = 503 if code in BUSY_CODES else metadata["HTTPStatusCode"]
    return Reply(status, f"{code}: {response['Error'].get('Message', '')}", retry_after_s)


def _late(name: str, timeout_s: float) -> Unanswered:
    return Unanswered(f"{name} has not answered within {timeout_s:g} s", FEWER, 504)


def _within(seconds: float, call: Callable[[], Reply]) -> Reply:
    """The result of a call in a separate thread, which may end later.

    Timeouts of sockets apply to single reads, so that a reply of one byte at a time would never end.

    Raises:
        Late: If there is no result in time.
    """
    result: Future[Reply] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001  raised again where the result is read
            result.set_exception(error)

    threading.Thread(target=run, name="request", daemon=True).start()
    return result.result(seconds)


def _complete(url: httpx.URL, streaming: bool) -> httpx.URL:
    """The URL of requests: OpenAI's clients are given the URL that ends in /v1."""
    if streaming and url.path in ("/", "/v1", "/v1/"):
        return url.copy_with(path=f"/v1{COMPLETIONS}")
    return url.copy_with(path=INVOCATIONS) if url.path == "/" else url


def _payload(events: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """The bytes in the events of a SageMaker stream; botocore raises its errors."""
    for event in events:
        yield event.get("PayloadPart", {}).get("Bytes", b"")


def _bounded(pieces: Iterable[bytes], end: float, name: str) -> Iterator[bytes]:
    """The pieces of a reply's body, within the limit and the deadline."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise unusable_reply(name, f"more than {MAX_REPLY_BYTES} bytes, the most of a reply")
        if time.monotonic() > end:
            raise Late
        yield piece


def _read(pieces: Iterator[bytes], kind: str, name: str, read: Reader | None) -> str:
    """The body of a reply with status 200; summaries must be JSON in UTF-8, or a stream of events."""
    expected = JSON if read is None else EVENTS
    if kind.partition(";")[0].strip().lower() != expected:
        start = " ".join(_text(pieces)[:1000].split())[:300]
        raise unusable_reply(name, f"no summaries but Content-Type {kind[:80]!r}: {start}")
    if read is not None:
        return read(pieces, kind)
    try:
        return b"".join(pieces).decode()
    except UnicodeDecodeError as error:
        raise unusable_reply(name, f"bytes that are not UTF-8, from position {error.start}") from error


def _text(pieces: Iterable[bytes]) -> str:
    """The body of an error, which may come from any server."""
    return b"".join(pieces).decode("utf-8", "replace")


def unusable_reply(name: str, content: str) -> Unanswered:
    """The error for a reply that is not what the endpoint should answer.

    Args:
        name: The endpoint.
        content: Description of the reply.
    """
    return Unanswered(f"{name} answered {content}", "check the endpoint's name, and that neuron-sum serves it", 502)
