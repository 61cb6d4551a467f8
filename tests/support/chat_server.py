"""A small server with OpenAI's chat completions, which streams what a test wants, whole or broken."""

import json
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EVENTS = "text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class Step:
    """An answer.

    Attributes:
        body: The pieces of the body, each sent as a chunk.
        status: The HTTP status.
        kind: The content type.
        cut: Whether the connection ends without the end of the body.
        headers: Further headers.
    """

    body: tuple[bytes, ...]
    status: int = 200
    kind: str = EVENTS
    cut: bool = False
    headers: tuple[tuple[str, str], ...] = ()


def event(content: Any) -> bytes:
    """One event with JSON."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()


def part(text: str | None, finish: str | None = None) -> bytes:
    """The event of one part of a text, in the form of vLLM 0.11."""
    delta = {"role": "assistant", "content": ""} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return event({"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})


USAGE = event({"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})
DONE = b"data: [DONE]\n\n"


def answer(*parts: str) -> Step:
    """A complete answer."""
    return Step((part(None), *map(part, parts), part("", "stop"), USAGE, DONE))


def error(status: int, message: str, **headers: str) -> Step:
    """An error of vLLM."""
    content = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
    return Step((json.dumps(content).encode(),), status, "application/json", headers=tuple(headers.items()))


class ChatServer(ThreadingHTTPServer):
    """Answers with its script, then with the dialogue in capitals, word by word."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.script: deque[Step] = deque()
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that have left."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body))
        if self.server.script:
            step = self.server.script.popleft()
        else:
            step = answer(*(f" {word}" for word in body["messages"][0]["content"].upper().split()))
        self.send_response(step.status)
        for name, value in [("Content-Type", step.kind), ("Transfer-Encoding", "chunked"), *step.headers]:
            self.send_header(name, value)
        self.end_headers()
        for piece in step.body:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        if step.cut:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running() -> Iterator[ChatServer]:
    """A server in a thread of this process."""
    with ChatServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()
