"""The ways to an endpoint: one request, one reply, over HTTP or through SageMaker."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any, Protocol

import httpx

from neuron_sum.errors import MissingExtraError, RequestError
from serving.schema import JSON

CONNECT_TIMEOUT_S = 5.0
SAGEMAKER = "sagemaker:"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
BUSY_CODES = ("ModelNotReadyException", "ServiceUnavailable", "ServiceUnavailableException", "ThrottlingException")
"""How SageMaker itself says 503, partly with another status."""

FEWER = "send fewer dialogues in a request (--batch-size), or fewer requests at once (--concurrency)"


class Unanswered(RequestError):
    """A request that brought no answers.

    Args:
        message: What happened.
        hint: What to run or change next.
        code: The status that came, or the one that a proxy would give for it.
    """

    def __init__(self, message: str, hint: str, code: int) -> None:
        super().__init__(message, hint)
        self.code = code


class Unavailable(Unanswered):
    """An endpoint that cannot be reached, or says 503: worth another try.

    Args:
        message: What happened.
        hint: What to run or change next.
        retry_after_s: The least time that the endpoint asks for.
    """

    def __init__(self, message: str, hint: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message, hint, 503)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Reply:
    """What an endpoint answered, whatever it was.

    Attributes:
        status: Of HTTP; behind SageMaker, that of the model's container.
        body: Text.
        retry_after_s: What its header asks for.
    """

    status: int
    body: str
    retry_after_s: float = 0.0


class Transport(Protocol):
    """One way to an endpoint; used by several threads at once."""

    def send(self, body: bytes) -> Reply:
        """Sends one request of JSON and waits for its reply.

        Raises:
            Unavailable: If the endpoint cannot be reached, or the connection ends before the reply.
            Unanswered: If there is no reply in time, or boto3 cannot make the call.
        """
        ...

    def close(self) -> None:
        """Closes the connections."""
        ...


def connect(endpoint: str, target_model: str | None, timeout_s: float, connections: int) -> Transport:
    """The way to an endpoint; nothing is sent yet.

    Args:
        endpoint: A URL, or `sagemaker:ENDPOINT[@REGION]`.
        target_model: For SageMaker.
        timeout_s: From a request to its reply.
        connections: At once.

    Raises:
        RequestError: If it is neither.
        MissingExtraError: If boto3 is needed and not installed.
    """
    if endpoint.startswith(SAGEMAKER):
        name, _, region = endpoint.removeprefix(SAGEMAKER).partition("@")
        if name:
            return SageMakerTransport(name, region or None, target_model, timeout_s, connections)
    elif endpoint.startswith(("http://", "https://")):
        if target_model is not None:
            raise RequestError(
                f"{without_credentials(endpoint)} takes no target model; that is for SageMaker",
                "URL/models/NAME/invoke picks a model",
            )
        return HttpTransport(endpoint, timeout_s, connections)
    raise RequestError(
        f"{without_credentials(endpoint)!r} is no endpoint", "http://127.0.0.1:8080, or sagemaker:ENDPOINT[@REGION]"
    )


def without_credentials(endpoint: str) -> str:
    """An endpoint as it may be printed: a URL without its user name and password."""
    return re.sub(r"(?<=://)[^/?#]*@", "", endpoint)


class HttpTransport:
    """A server at a URL.

    Args:
        url: /invocations is added unless it has a path.
        timeout_s: From a request to its reply.
        connections: At once.
    """

    def __init__(self, url: str, timeout_s: float, connections: int) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise RequestError(f"{without_credentials(url)} is no URL: {error}", "http://127.0.0.1:8080") from error
        if not parsed.host:
            raise RequestError(f"{without_credentials(url)} names no host", "http://127.0.0.1:8080")
        self._url = parsed.copy_with(path="/invocations") if parsed.path == "/" else parsed
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=connections),
            trust_env=parsed.host not in LOOPBACK,  # a proxy of the environment cannot reach this machine
        )

    def send(self, body: bytes) -> Reply:
        """See Transport."""
        headers = {"Content-Type": JSON, "Accept": JSON}
        try:
            answer = self._http.post(self._url, content=body, headers=headers)
        except (httpx.ReadTimeout, httpx.WriteTimeout) as error:
            raise _late(without_credentials(str(self._url)), self._timeout_s) from error
        except httpx.RequestError as error:
            place = without_credentials(str(self._url))
            raise Unavailable(f"no answer from {place}: {error}", "neuron-sum serve ARTIFACT starts one") from error
        return Reply(answer.status_code, answer.text, seconds(answer.headers.get("Retry-After")))

    def close(self) -> None:
        """See Transport."""
        self._http.close()


class SageMakerTransport:
    """A SageMaker endpoint, with the credentials and the region that boto3 finds.

    Args:
        endpoint_name: In its account.
        region: Default: boto3's.
        target_model: On an endpoint with several models: which, such as NAME.tar.gz.
        timeout_s: From a request to its reply; SageMaker itself gives up after 60 s.
        connections: At once.

    Raises:
        MissingExtraError: If boto3 is not installed.
        RequestError: If boto3 finds no region.
    """

    def __init__(
        self, endpoint_name: str, region: str | None, target_model: str | None, timeout_s: float, connections: int
    ) -> None:
        try:
            boto3, botocore = import_module("boto3"), import_module("botocore")
        except ModuleNotFoundError as error:
            raise MissingExtraError("boto3", "aws") from error
        self._name, self._timeout_s, self._errors = endpoint_name, timeout_s, botocore.exceptions
        self._arguments = {"EndpointName": endpoint_name, "ContentType": JSON, "Accept": JSON}
        if target_model is not None:
            self._arguments["TargetModel"] = target_model
        settings = botocore.config.Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=timeout_s,
            max_pool_connections=connections,
            # `max_attempts` would count the attempts after the first.
            retries={"total_max_attempts": 1, "mode": "standard"},
        )
        try:
            self._client = boto3.client("sagemaker-runtime", region_name=region, config=settings)
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise self._unusable(error) from error

    def send(self, body: bytes) -> Reply:
        """See Transport."""
        try:
            answer = self._client.invoke_endpoint(Body=body, **self._arguments)
            return Reply(200, answer["Body"].read().decode("utf-8", "replace"))
        except self._errors.ClientError as error:
            return _sagemaker_reply(error.response)
        except self._errors.ReadTimeoutError as error:
            raise _late(self._name, self._timeout_s) from error
        except (self._errors.ConnectionError, self._errors.HTTPClientError) as error:
            hint = "is its region right, and does the network reach it?"
            raise Unavailable(f"no answer from {self._name}: {error}", hint) from error
        except self._errors.BotoCoreError as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """See Transport."""
        self._client.close()

    def _unusable(self, error: Exception) -> Unanswered:
        hint = f"{SAGEMAKER}{self._name}@REGION, with credentials where boto3 looks for them"
        return Unanswered(f"boto3 cannot call {self._name}: {error}", hint, 500)


def seconds(retry_after: str | None) -> float:
    """What a Retry-After header asks for, be it a number or a date; 0 for none, and for one that cannot be read."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    when = when if when.tzinfo is not None else when.replace(tzinfo=timezone.utc)
    return max((when - datetime.now(timezone.utc)).total_seconds(), 0.0)


def _sagemaker_reply(response: Mapping[str, Any]) -> Reply:
    """A ClientError as a reply: what the model's container said, or SageMaker itself."""
    code, metadata = response["Error"]["Code"], response["ResponseMetadata"]
    retry_after_s = seconds(metadata.get("HTTPHeaders", {}).get("retry-after"))
    if code == "ModelError" and "OriginalStatusCode" in response:
        return Reply(response["OriginalStatusCode"], response.get("OriginalMessage", ""), retry_after_s)
    status = 503 if code in BUSY_CODES else metadata["HTTPStatusCode"]
    return Reply(status, f"{code}: {response['Error'].get('Message', '')}", retry_after_s)


def _late(name: str, timeout_s: float) -> Unanswered:
    return Unanswered(f"{name} has not answered within {timeout_s:g} s", FEWER, 504)
