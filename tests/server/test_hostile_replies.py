"""Replies of servers that are broken or hostile: the client ends with one error, in time and with little memory."""

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

import pytest
from far_end import capitals
from in_process import neuron_sum

from neuron_sum.errors import RequestError
from serving import transport
from serving.client import Client
from serving.transport import parse_retry_after

Pieces = Callable[[], Iterator[bytes]]
ANSWER = json.dumps(capitals(["Hello."])).encode()


@pytest.fixture
def hostile() -> Iterator[Callable[..., str]]:
    """Starts a server that sends these pieces, with a pause before each, whatever is requested."""
    listeners: list[socket.socket] = []

    def start(pieces: Pieces, pause_s: float = 0.0) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.recv(1 << 16)
                    for piece in pieces():
                        time.sleep(pause_s)
                        connection.sendall(piece)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):  # closed with unread data, the connection would be reset
                        pass
                except OSError:  # the client has left
                    return

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def reply(content: bytes, *headers: str, status: str = "200 OK") -> Pieces:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *(headers or ["Content-Type: application/json"])]
    return lambda: iter(["\r\n".join([*lines, "", ""]).encode() + content])


def endless(head: str, piece: bytes) -> Pieces:
    return lambda: iter([head.encode(), *repeat(piece, 2000)])


HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
MEGABYTE = b"100000\r\n" + b"[" * (1 << 20) + b"\r\n"
REPLIES: list[tuple[str, Pieces, str]] = [
    ("endless", endless(f"{HEAD}\r\n", b"[" * (1 << 20)), "more than 16777216 bytes"),
    ("endless chunks", endless(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n", MEGABYTE), "more than 16777216 bytes"),
    ("endless headers", endless("HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 10_000), "no answer from"),
    ("endless interim replies", endless("", b"HTTP/1.1 100 Continue\r\n\r\n"), "no answer from|not answered"),
    ("endless error", endless("HTTP/1.1 500 Oops\r\n\r\n", b"x" * (1 << 20)), "more than 16777216 bytes"),
    ("announced", lambda: iter([f"{HEAD}Content-Length: 99999999999999\r\n\r\n[".encode()]), "no answer from"),
    ("compressed", reply(gzip.compress(ANSWER), "Content-Type: application/json", "Content-Encoding: gzip"), "'gzip'"),
    ("twice compressed", reply(ANSWER, "Content-Encoding: gzip, br"), "which was not requested"),
    ("web page", reply(b"<html>", "Content-Type: text/html"), "no summaries but Content-Type 'text/html': <html>"),
    ("text", reply(ANSWER, "Content-Type: text/plain"), "no summaries but Content-Type 'text/plain'"),
    ("no UTF-8", reply(ANSWER.replace(b"HELLO", b"H\xe9LLO")), "bytes that are not UTF-8"),
    ("UTF-16", reply(ANSWER.decode().encode("utf-16")), "bytes that are not UTF-8"),
    ("no JSON", reply(b"{"), "answered no summaries"),
    ("empty", reply(b""), "answered no summaries"),
    ("an object", reply(b'{"summary_text": "x"}'), "answered no summaries"),
    ("NaN", reply(ANSWER.replace(b": 6", b": NaN")), "answered no summaries"),
    ("nested", reply(b"[" * 100_000), "answered no summaries"),
    ("digits", reply(ANSWER.replace(b": 6", b": " + b"9" * 5000)), "answered no summaries"),
    ("half a pair", reply(b'[{"summary_text": "\\ud800", "truncated": 0}]'), "answered no summaries"),
    ("no content", reply(b"", status="204 No Content"), "answered 204"),
    ("redirect", reply(b"", "Location: http://user:pw@127.0.0.1:1/", status="307 Temporary Redirect"),
     "a redirect to http://127.0.0.1:1/, which is not followed"),
    ("redirect elsewhere", reply(b"", "Location: file:///etc/passwd", status="302 Found"), "which is not followed"),
    ("no HTTP", lambda: iter([b"SSH-2.0-OpenSSH_9.6\r\n"]), "no answer from"),
    ("no status", lambda: iter([b"HTTP/1.1 9999 X\r\n\r\n"]), "no answer from"),
    ("nothing", lambda: iter([]), "no answer from"),
    ("long message",
     reply(json.dumps({"error": {"code": 1, "message": "x" * 99999, "field": "y" * 99999}}).encode(), status="422 No"),
     "answered 422: x+"),
]  # fmt: skip


@pytest.mark.parametrize(("pieces", "message"), [pytest.param(*case[1:], id=case[0]) for case in REPLIES])
def test_a_hostile_reply_is_one_error(hostile: Callable[..., str], pieces: Pieces, message: str) -> None:
    with (
        Client(hostile(pieces), attempts=1, timeout_s=20) as client,
        pytest.raises(RequestError, match=message) as caught,
    ):
        client.summarize(["Hello."])
    assert caught.value.hint and len(caught.value.message) < 6000


@pytest.mark.parametrize("place", ["status", "headers", "body", "interim"])
def test_a_slow_reply_ends_at_the_deadline(hostile: Callable[..., str], place: str) -> None:
    heads = {
        "status": b"HTTP/1.1 200 O",
        "headers": b"HTTP/1.1 200 OK\r\nX: ",
        "body": f"{HEAD}\r\n[".encode(),
        "interim": b"",
    }
    drop = b"HTTP/1.1 100 Continue\r\n\r\n" if place == "interim" else b"x"
    url = hostile(lambda: iter([heads[place], *repeat(drop, 400)]), pause_s=0.02)
    started = time.monotonic()
    with Client(url, attempts=1, timeout_s=0.4) as client, pytest.raises(RequestError, match=r"within 0\.4 s"):
        client.summarize(["Hello."])
    assert time.monotonic() - started < 4


def test_request_ends_with_12(hostile: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("Hello.")
    done = neuron_sum("request", hostile(endless(f"{HEAD}\r\n", b"[" * (1 << 20))), str(tmp_path / "one.txt"))
    assert (done.exit_code, done.stdout) == (12, "")
    assert "more than 16777216 bytes" in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        f"http://{'a' * 70}.example",
        "http://a..b",
        "http://[::1",
        "http://\0",
    ],
)
def test_an_impossible_url_is_an_error(url: str) -> None:
    with pytest.raises(RequestError), Client(url, attempts=1) as client:
        client.summarize(["Hello."])


def test_an_impossible_proxy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://x")
    with pytest.raises(RequestError, match="the proxy in the environment"):
        Client("http://endpoint.example")


@pytest.mark.parametrize(
    "text", ["9" * 5000, "Mon, 99 Abc 99999 99:99:99 +99999999999", ", ,", "\u0667", "1e9", "inf", "nan", "-1"]
)
def test_an_odd_retry_after_is_a_number(text: str) -> None:
    assert parse_retry_after(text) >= 0


def test_the_reply_of_a_sagemaker_endpoint_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="more than 16777216 bytes"):
        list(transport._bounded(repeat(bytes(1 << 20)), time.monotonic() + 60, "micro"))
