"""The playground for an endpoint with chat completions: over HTTP, in a browser, and what other pages may not do."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from chat_server import ChatServer, Step, answer, error, part, running
from in_process import neuron_sum
from local_pages import wrong_tokens
from playwright.sync_api import Browser, expect

from serving.playground import playground

DIALOGUE = "#Person1#: Hello.\n#Person2#: Hi."


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def url(server: ChatServer) -> Iterator[str]:
    with playground(server.url, 0) as started:
        yield started


def lines(url: str, content: object = DIALOGUE) -> list[dict[str, object]]:
    replied = httpx.post(f"{url}/playground/stream", json={"inputs": content}, timeout=30)
    assert replied.headers["Content-Type"] == "application/jsonlines"
    return [json.loads(line) for line in replied.text.splitlines()]


def test_the_text_arrives_in_parts_and_the_answer_at_the_end(server: ChatServer, url: str) -> None:
    server.script.append(answer("One", " two\u2028\n", "<b>"))
    assert lines(url) == [
        {"text": "One"},
        {"text": " two\u2028\n"},
        {"text": "<b>"},
        {"summary_text": "One two\u2028\n<b>", "truncated": False, "input_tokens": 9, "output_tokens": 3},
    ]
    assert server.seen[-1][1]["messages"] == [{"role": "user", "content": DIALOGUE}]


@pytest.mark.parametrize(
    ("step", "code", "message"),
    [
        (Step((part("One"),), cut=True), 502, "answered only 3 characters of a summary"),
        (error(400, "maximum context length is 768 tokens"), 400, "maximum context length is 768 tokens"),
        (Step((b"<html>",), kind="text/html"), 502, "no summaries but Content-Type 'text/html'"),
    ],
)
def test_an_error_is_the_last_line(server: ChatServer, url: str, step: Step, code: int, message: str) -> None:
    server.script.append(step)
    found = lines(url)[-1]["error"]
    assert isinstance(found, dict) and found["code"] == code and message in found["message"]


def test_only_the_page_may_send_requests(server: ChatServer, url: str) -> None:
    body = json.dumps({"inputs": DIALOGUE})
    count = len(server.seen)
    for headers, status in (
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
    ):
        sent = {"Content-Type": "application/json", **headers}
        assert httpx.post(f"{url}/playground/stream", content=body, headers=sent).status_code == status
    for content in (b"{", b"[]", b'{"inputs": 3}', b"[" * 100_000):
        sent = {"Content-Type": "application/json"}
        assert httpx.post(f"{url}/playground/stream", content=content, headers=sent).status_code == 400
    assert httpx.post(f"{url}/v1/chat/completions", json={}).status_code == 404
    assert httpx.get(f"{url}/etc/passwd").status_code == 404
    assert len(server.seen) == count
    root = url.rpartition("/")[0]
    for wrong in (*wrong_tokens(url), "/é"):
        for place in ("/", "/playground/models"):
            assert httpx.get(f"{root}{wrong}{place}").status_code == 403, wrong
        assert httpx.post(f"{root}{wrong}/playground/stream", json={"inputs": DIALOGUE}).status_code == 403, wrong
    assert len(server.seen) == count
    assert httpx.get(url).headers["Location"] == f"{url[len(root) :]}/"
    page = httpx.get(f"{url}/")
    assert page.status_code == 200 and "connect-src 'self'" in page.headers["Content-Security-Policy"]
    assert httpx.get(f"{url}/playground/models").json() == {server.url: None}


def test_the_command_serves_the_page_until_ctrl_c(server: ChatServer) -> None:
    assert "requires --chat" in neuron_sum("request", server.url, "--playground").stderr
    values = {"--max-new-tokens": "9", "--output": "a.jsonl", "--adapter": "a", "--num-beams": "2"}
    for name, value in {**values, "--target-model": "m", "--concurrency": "2", "--batch-size": "2"}.items():
        refused = neuron_sum("request", server.url, name, value, "--chat", "--playground")
        assert refused.exit_code == 12 and f"does not use {name}" in refused.stderr
    assert "does not use FILE" in neuron_sum("request", server.url, "d.txt", "--chat", "--playground").stderr
    taken = neuron_sum("request", server.url, "--chat", "--playground", "--port", server.url.rpartition(":")[2])
    assert "already in use" in taken.stderr
    command = [sys.executable, "-m", "neuron_sum", "request", server.url, "--chat", "--playground", "--port", "0"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = json.loads("".join(process.stdout.readline() for _ in range(3)))
        assert httpx.get(f"{started['url']}/playground/models").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.slow
def test_a_browser_shows_the_summary_and_the_error(server: ChatServer, url: str, browser: Browser) -> None:
    faults: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.goto(url)
    for step, text in (
        (answer("One", " <b>two</b>"), "One <b>two</b>"),
        (error(400, "maximum context length"), "maximum context length"),
    ):
        server.script.append(step)
        page.get_by_label("Dialogue").fill(DIALOGUE)
        page.get_by_role("button", name="Summarize").click()
        expect(page.locator(".card .text")).to_have_text(text)
        expect(page.get_by_role("button", name="Summarize")).to_be_visible()
    assert faults == []
    page.close()
