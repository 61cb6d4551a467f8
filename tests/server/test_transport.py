"""Connections to an endpoint: plain HTTP and SageMaker, which a local server replaces, and invalid endpoints."""

import json
import sys
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import pytest
from far_end import BUSY, TOO_LONG, FarEnd

from neuron_sum.errors import MissingExtraError, RequestError
from serving.client import Client
from serving.transport import HttpTransport, parse_retry_after


def test_a_path_is_kept_and_a_bare_url_is_completed(far_end: FarEnd) -> None:
    for given in ("", "/", "/models/micro/invoke"):
        with Client(far_end.url + given) as client:
            client.summarize(["Hello."])
    assert [path for path, _, _ in far_end.seen] == ["/invocations", "/invocations", "/models/micro/invoke"]


def test_a_retry_after_is_seconds_or_a_date() -> None:
    now = datetime.now(timezone.utc)
    assert [
        parse_retry_after(text) for text in ("7", " 2 ", None, "soon", "-3", format_datetime(now - timedelta(hours=1)))
    ] == [
        7,
        2,
        0,
        0,
        0,
        0,
    ]
    assert 3500 < parse_retry_after(format_datetime(now + timedelta(hours=1))) <= 3600


def test_no_message_contains_the_password_of_a_url(nowhere: str, far_end: FarEnd) -> None:
    secret = nowhere.replace("http://", "http://user:secret@")
    messages = []
    for endpoint in (secret, "http://user:secret@", "http://user:secret@a:b", "ftp://user:secret@a"):
        with pytest.raises(RequestError) as caught, Client(endpoint, attempts=1) as client:
            client.summarize(["Hello."])
        messages.append(f"{caught.value.message} {caught.value.hint}")
    with Client(far_end.url.replace("http://", "http://user:secret@")) as client:
        assert client.endpoint == far_end.url
        client.summarize(["Hello."])
    assert not any("secret" in message for message in messages)


def test_an_unreachable_endpoint_is_an_error(nowhere: str) -> None:
    with Client(nowhere, attempts=2, backoff_s=0) as client, pytest.raises(RequestError, match="refused") as caught:
        client.summarize(["Hello."])
    assert caught.value.hint == "run `neuron-sum serve ARTIFACT`"


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:8080", "sagemaker:", "sagemaker:@eu-west-1", "ftp://a", "http://", "http://a:b"]
)
def test_an_invalid_endpoint_is_rejected_with_the_valid_forms(endpoint: str) -> None:
    with pytest.raises(RequestError) as caught:
        Client(endpoint)
    assert "http://127.0.0.1:8080" in (caught.value.hint or "")


def test_a_target_model_requires_sagemaker(nowhere: str) -> None:
    with pytest.raises(RequestError, match="for SageMaker"):
        Client(nowhere, target_model="micro")


def test_a_proxy_is_not_used_for_this_machine(far_end: FarEnd, nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", nowhere)
    transport = HttpTransport(far_end.url, 5, 1)
    assert transport.send(b'{"inputs": []}').status == 200
    transport.close()


def test_without_boto3_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)  # makes the import of boto3 fail
    with pytest.raises(MissingExtraError) as caught:
        Client("sagemaker:micro@eu-west-1")
    assert caught.value.hint == "run `pip install 'neuron-sum[aws]'`"


@pytest.fixture
def sagemaker(far_end: FarEnd, monkeypatch: pytest.MonkeyPatch) -> FarEnd:
    """The test server in place of AWS; boto3 reaches it in the same way."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", far_end.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return far_end


def model_error(status: int, message: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The form in which SageMaker passes on a container's answer."""
    body = {"Message": f"Received client error ({status})", "OriginalStatusCode": status, "OriginalMessage": message}
    return 424, body, {"x-amzn-ErrorType": "ModelError"}


def test_a_sagemaker_endpoint_answers_like_any_other(sagemaker: FarEnd) -> None:
    busy = (429, {"Message": "loading"}, {"x-amzn-ErrorType": "ModelNotReadyException"})
    sagemaker.script += ["drop", model_error(503, json.dumps(BUSY)), busy]
    with Client("sagemaker:micro@eu-west-1", target_model="a.tar.gz", backoff_s=0) as client:
        assert client.summarize(["Hello."], {"adapter": "b"})[0].summary_text == "HELLO."
    assert len(sagemaker.seen) == 4
    path, body, headers = sagemaker.seen[-1]
    assert path == "/endpoints/micro/invocations"
    assert body == {"inputs": ["Hello."], "parameters": {"adapter": "b"}}
    assert headers["X-Amzn-SageMaker-Target-Model"] == "a.tar.gz"
    assert "eu-west-1" in headers["Authorization"]


def test_rejections_of_a_container_are_passed_on_by_sagemaker(sagemaker: FarEnd) -> None:
    sagemaker.script += [model_error(422, json.dumps(TOO_LONG))]
    with Client("sagemaker:micro@eu-west-1") as client, pytest.raises(RequestError, match="compiled for at most 40"):
        client.summarize(["Hello."])
    assert len(sagemaker.seen) == 1


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "User: arn:aws:sts::123456789012:assumed-role/Admin/ann@example.com is not authorized to perform: "
            "sagemaker:InvokeEndpoint",
            "assumed-role/Admin/NAME is not authorized",
        ),
        ('{"X-Amz-Security-Token":"IQoJb3JpZ2lu+/="}', '{"X-Amz-Security-Token":"TOKEN"}'),
        ("{'x-amz-security-token': 'IQoJb3JpZ2lu+/='}", "{'x-amz-security-token': 'TOKEN'}"),
        ("should have been 'POST /endpoints x-amz-security-token:IQoJb3JpZ2lu+/= host:a'", "token:TOKEN host:a"),
        ("the key AKIAIOSFODNN7EXAMPLE is unknown", "the key KEY is unknown"),
    ],
)
def test_no_message_contains_the_name_of_a_session_a_token_or_a_key(
    sagemaker: FarEnd, message: str, expected: str
) -> None:
    sagemaker.script += [(403, {"Message": message}, {"x-amzn-ErrorType": "AccessDeniedException"})]
    with Client("sagemaker:micro@eu-west-1") as client, pytest.raises(RequestError) as caught:
        client.summarize(["hello"])
    assert expected in caught.value.message
    assert not [secret for secret in ("ann@", "IQoJ", "AKIA") if secret in f"{caught.value.message}{caught.value.hint}"]


def test_rejections_by_sagemaker_are_reported(sagemaker: FarEnd) -> None:
    sagemaker.script += [
        (400, {"Message": "Endpoint micro not found."}, {"x-amzn-ErrorType": "ValidationError"}),
        "late",
    ]
    with Client("sagemaker:micro@eu-west-1", timeout_s=0.05) as client:
        with pytest.raises(RequestError, match="answered 400: ValidationError: Endpoint micro not found"):
            client.summarize(["Hello."])
        with pytest.raises(RequestError, match="not answered within"):
            client.summarize(["Hello."])
    assert len(sagemaker.seen) == 2


def test_sagemaker_without_region_credentials_or_network(
    sagemaker: FarEnd, nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="region"):
        Client("sagemaker:micro")
    with pytest.raises(RequestError, match="eu west"):
        Client("sagemaker:micro@eu west")
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", nowhere)
    with (
        Client("sagemaker:micro@eu-west-1", attempts=2, backoff_s=0) as client,
        pytest.raises(RequestError, match="no answer from micro"),
    ):
        client.summarize(["Hello."])
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    with Client("sagemaker:micro@eu-west-1") as client, pytest.raises(RequestError, match="credentials"):
        client.summarize(["Hello."])
