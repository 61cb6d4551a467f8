"""Chat completions: whole, broken and foreign streams, over HTTP and in SageMaker's form."""

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import DONE, USAGE, ChatServer, Step, answer, error, event, part, running
from in_process import neuron_sum

from neuron_sum.errors import RequestError
from serving.chat import ChatClient

DIALOGUE = "#Person1#: Hello.\n#Person2#: Hi."


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with running() as started:
        yield started


def ask(server: ChatServer, **settings: Any) -> tuple[str, list[str]]:
    parts: list[str] = []
    with ChatClient(server.url, on_text=parts.append, **{"backoff_s": 0, "timeout_s": 20, **settings}) as client:
        [found] = client.summarize([DIALOGUE], {"max_new_tokens": 7})
    assert found.error is None
    return found.summary_text, parts


def test_a_request_is_a_streamed_greedy_chat_completion(server: ChatServer) -> None:
    with ChatClient(server.url) as client:
        [found] = client.summarize([DIALOGUE], {"max_new_tokens": 7, "adapter": None})
    assert (found.summary_text, found.input_tokens, found.output_tokens) == ("#PERSON1#: HELLO. #PERSON2#: HI.", 9, 3)
    assert server.seen == [
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": DIALOGUE}],
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": 7,
            },
        )
    ]


def test_a_path_is_kept_and_a_base_url_is_completed(server: ChatServer) -> None:
    for given in ("", "/", "/v1", "/v1/", "/v1/chat/completions", "/invocations"):
        with ChatClient(server.url + given) as client:
            client.summarize([DIALOGUE])
    assert [path for path, _ in server.seen] == ["/v1/chat/completions"] * 5 + ["/invocations"]


WHOLE = b"".join(answer("Grüße 🙂", " line\u2028separator").body)
STREAMS = {
    "byte by byte": Step(tuple(WHOLE[index : index + 1] for index in range(len(WHOLE)))),
    "carriage returns": Step((WHOLE.replace(b"\n", b"\r\n"),)),
    "comments and other fields": Step((b": keep-alive\n\nevent: message\nid: 7\nretry: 9\n" + WHOLE,)),
    "no space after the colon": Step((WHOLE.replace(b"data: ", b"data:"),)),
    "no usage": Step((WHOLE.replace(USAGE, b""),)),
    "no end marker": Step((WHOLE.replace(DONE, b""),)),
    "text after the end marker": Step((WHOLE + b"data: nonsense\n\n",)),
    "cut after the end marker": Step((WHOLE,), cut=True),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_may_have_any_valid_form(server: ChatServer, name: str) -> None:
    server.script.append(STREAMS[name])
    assert ask(server, attempts=1) == ("Grüße 🙂 line\u2028separator", ["Grüße 🙂", " line\u2028separator"])


START = (part(None), part("One"))
BROKEN: dict[str, tuple[Step, str]] = {
    "an error": (
        Step((*START, event({"error": {"message": "the engine died", "code": 500}}), DONE)),
        "answered only 3 characters of a summary: the engine died",
    ),
    "an error as text": (Step((*START, event({"error": "out of memory"}))), "only 3 characters of a summary: out of"),
    "vLLM's older error": (
        Step((*START, event({"object": "error", "message": "aborted"}))), "only 3 characters of a summary: aborted",
    ),
    "an error first": (Step((event({"error": {"message": "no"}}),)), "only 0 characters of a summary: no"),
    "cut": (Step(START, cut=True), "only 3 characters of a summary: no answer from .*incomplete chunked read"),
    "cut in an event": (Step((*START, b'data: {"choi'), cut=True), "only 3 characters .*incomplete chunked read"),
    "ended": (Step(START), "only 3 characters of a summary: the stream ended without a reason"),
    "done without a reason": (Step((*START, DONE)), "only 3 characters of a summary: the stream ended without"),
    "a content filter": (
        Step((*START, part("", "content_filter"), DONE)),
        "only 3 characters of a summary: the stream ended with the finish reason 'content_filter'",
    ),
    "aborted": (Step((*START, part("", "abort"), DONE)), "only 3 characters .* with the finish reason 'abort'"),
    "empty": (Step(()), "only 0 characters of a summary: the stream ended without a reason"),
    "no JSON": (Step((*START, b"data: Hello\n\n")), "only 3 characters .* not a part of a chat completion: Hello"),
    "another event": (Step((event({"token": {"text": "Hi"}}),)), "not a part of a chat completion: {\"token\""),
    "a completion": (Step((event({"choices": [{"text": "Hi"}]}),)), "not a part of a chat completion"),
    "a list": (Step((event([1]),)), "not a part of a chat completion: \\[1\\]"),
    "nested": (Step((b"data: " + b"[" * 100_000 + b"\n\n",)), "not a part of a chat completion"),
    "endless line": (Step((b"data: ", *[b"x" * (1 << 20)] * 17)), "more than 16777216 bytes"),
    "not streamed": (
        Step((json.dumps({"choices": [{"message": {"content": "Hi"}}]}).encode(),), kind="application/json"),
        "no summaries but Content-Type 'application/json': {\"choices\"",
    ),
    "neuron-sum's": (Step((b'[{"summary_text": "Hi"}]',), kind="application/json"), "no summaries but Content-Type"),
    "a web page": (Step((b"<html>",), kind="text/html"), "no summaries but Content-Type 'text/html': <html>"),
    "no key": (error(401, "Unauthorized"), "answered 401: Unauthorized"),
    "no route": (Step((b'{"detail":"Not Found"}',), 404, "application/json"), "answered 404: Not Found"),
    "no such route of another server": (Step((b"<h1>Nope</h1>",), 404, "text/html"), "answered 404: <h1>Nope</h1>"),
    "a proxy": (Step((), 502, "text/html"), "answered 502: Bad Gateway"),
    "the engine": (error(500, "EngineCore encountered an issue."), "answered 500: EngineCore"),
    "a redirect": (
        Step((), 307, "text/html", headers=(("Location", "http://127.0.0.1:1/"),)), "a redirect to .* not followed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_or_foreign_answer_is_one_error(server: ChatServer, name: str) -> None:
    step, message = BROKEN[name]
    server.script.append(step)
    with pytest.raises(RequestError, match=message) as caught:
        ask(server)
    assert caught.value.hint and len(caught.value.message) < 3000
    assert len(server.seen) == 1, "it was sent again"


def test_a_busy_endpoint_and_a_connection_without_text_are_retried(server: ChatServer) -> None:
    notes: list[str] = []
    server.script += [error(429, "busy"), error(503, "starting"), Step((part(None),), cut=True)]
    assert ask(server, on_retry=notes.append)[0] == "#PERSON1#: HELLO. #PERSON2#: HI."
    assert len(server.seen) == 4 and len(notes) == 3 and "answered 429: busy" in notes[0]


def test_a_late_answer_ends_at_the_deadline(server: ChatServer) -> None:
    server.script.append(Step(tuple(b": wait\n" for _ in range(2_000_000))))
    with pytest.raises(RequestError, match=r"within 0\.3 s"):
        ask(server, timeout_s=0.3)
    server.script.append(Step((*START, *(b": wait\n" for _ in range(2_000_000)))))
    with pytest.raises(RequestError, match=r"answered only 3 characters of a summary: .* within 1 s"):
        ask(server, timeout_s=1)


def test_a_dialogue_that_is_too_long_does_not_stop_the_others(server: ChatServer) -> None:
    server.script += [answer("a"), error(400, "maximum context length is 768 tokens")]
    with ChatClient(server.url, concurrency=1) as client:
        found = client.summarize(["one", "two", "three"])
    assert [each.summary_text for each in found] == ["a", "", "THREE"]
    assert found[1].error is not None and "768" in found[1].error.message and found[1].answered


@pytest.mark.parametrize("name", ["adapter", "num_beams"])
def test_a_parameter_without_a_counterpart_is_rejected(server: ChatServer, name: str) -> None:
    with ChatClient(server.url) as client, pytest.raises(RequestError, match=f"has no {name}") as caught:
        client.summarize([DIALOGUE], {name: 4})
    assert "max_new_tokens" in str(caught.value.hint) and not server.seen


def test_the_command_prints_the_text_as_it_arrives(server: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text(DIALOGUE)
    words = ("request", server.url, str(tmp_path / "d.txt"), "--chat")
    made = neuron_sum(*words)
    assert (made.exit_code, made.stdout.strip()) == (0, "#PERSON1#: HELLO. #PERSON2#: HI."), made.stderr
    server.script.append(answer("\x1b[31m", "red"))
    assert neuron_sum(*words).stdout == "\\x1b[31mred\n"
    assert json.loads(neuron_sum(*words, "--json").stdout)["output_tokens"] == 3
    server.script.append(error(400, "maximum context length is 768 tokens"))
    refused = neuron_sum(*words)
    assert refused.exit_code == 12 and "refused the dialogue: maximum context length" in refused.stderr
    server.script.append(Step(START, cut=True))
    cut = neuron_sum(*words)
    assert cut.exit_code == 12 and "answered only 3 characters" in cut.stderr
    rejected = neuron_sum(*words, "--target-model", "a")
    assert rejected.exit_code == 12 and "cannot be combined" in rejected.stderr


def test_many_dialogues_from_a_file(server: ChatServer, tmp_path: Path) -> None:
    lines = [json.dumps({"inputs": f"number {index}"}) for index in range(9)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    made = neuron_sum("request", server.url, str(tmp_path / "d.jsonl"), "--chat", "--json")
    assert made.exit_code == 0, made.stderr
    assert [each["summary_text"] for each in json.loads(made.stdout)["answers"]] == [f"NUMBER {i}" for i in range(9)]
    assert len(server.seen) == 9


def framed(kind: str, payload: bytes, **names: str) -> bytes:
    """One message of the AWS event stream encoding: lengths, headers, payload and checksums."""
    headers = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in {
            ":message-type": kind,
            **{f":{key.replace('_', '-')}": v for key, v in names.items()},
        }.items()
    )
    head = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = head + struct.pack("!I", zlib.crc32(head)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))


def payload_part(content: bytes) -> bytes:
    return framed("event", content, event_type="PayloadPart", content_type="application/octet-stream")


@pytest.fixture
def sagemaker(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Step]:
    """The test server in place of AWS, and answers in the form of SageMaker."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    kinds = (("X-Amzn-SageMaker-Content-Type", "text/event-stream; charset=utf-8"),)

    def streamed(*messages: bytes, cut: bool = False) -> Step:
        return Step(messages, kind="application/vnd.amazon.eventstream", cut=cut, headers=kinds)

    return streamed


def test_a_sagemaker_endpoint_streams_in_parts(server: ChatServer, sagemaker: Callable[..., Step]) -> None:
    middle = len(WHOLE) // 2
    server.script.append(sagemaker(payload_part(WHOLE[:middle]), payload_part(WHOLE[middle:])))
    parts: list[str] = []
    with ChatClient("sagemaker:llama@eu-west-1", on_text=parts.append) as client:
        assert client.summarize([DIALOGUE])[0].summary_text == "Grüße 🙂 line\u2028separator"
    assert len(parts) == 2
    path, body = server.seen[0]
    assert path == "/endpoints/llama/invocations-response-stream"
    assert body["stream"] is True and body["messages"][0]["content"] == DIALOGUE


def test_errors_of_a_sagemaker_stream_are_one_error(server: ChatServer, sagemaker: Callable[..., Step]) -> None:
    first = payload_part(b"".join(START))
    failure = json.dumps({"Message": "the model failed", "ErrorCode": "ModelInvocationTimeExceeded"}).encode()
    modeled = framed("exception", failure, exception_type="ModelStreamError", content_type="application/json")
    coded = [
        (code, framed("error", b"", error_code=code, error_message="no room"))
        for code in ("ServiceUnavailable", "ThrottlingException", "InternalStreamFailure")
    ]
    cases = [
        (sagemaker(first, modeled), "only 3 characters .* answered 502: ModelStreamError: the model failed"),
        *((sagemaker(first, failed), f"answered only 3 characters .* {code}: no room") for code, failed in coded),
        (sagemaker(first), "answered only 3 characters of a summary"),
        (sagemaker(first, first[:20], cut=True), "answered only 3 characters of a summary"),
    ]
    for step, message in cases:
        server.script.append(step)
        with ChatClient("sagemaker:llama@eu-west-1") as client, pytest.raises(RequestError, match=message):
            client.summarize([DIALOGUE])
    assert len(server.seen) == len(cases), "it was sent again"
    too_long = json.dumps({"error": {"message": "maximum context length", "code": 400}})
    refused = {"Message": "Received client error", "OriginalStatusCode": 400, "OriginalMessage": too_long}
    headers = (("x-amzn-ErrorType", "ModelError"),)
    server.script.append(Step((json.dumps(refused).encode(),), 424, "application/json", headers=headers))
    missing = {"Message": "Endpoint llama not found."}
    server.script.append(
        Step(
            (json.dumps(missing).encode(),), 400, "application/json", headers=(("x-amzn-ErrorType", "ValidationError"),)
        )
    )
    with ChatClient("sagemaker:llama@eu-west-1") as client:
        [found] = client.summarize([DIALOGUE])
        assert found.error is not None and found.error.message == "maximum context length"
        with pytest.raises(RequestError, match="answered 400: ValidationError: Endpoint llama not found"):
            client.summarize([DIALOGUE])
