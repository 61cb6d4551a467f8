"""A real HTTP server for client tests that imitates failing endpoints."""

import json
import sys
import threading
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUSY = {"error": {"code": 503, "message": "9 items wait", "field": None}}
MESSAGE = "max_new_tokens is 99; compiled for at most 40"
TOO_LONG = {"error": {"code": 422, "message": MESSAGE, "field": "parameters.max_new_tokens"}}


@dataclass
class Held:
    """A reply that waits for an event."""

    until: threading.Event
    reply: tuple[int, Any, dict[str, str]] | None = None


class FarEnd(ThreadingHTTPServer):
    """Answers in capitals, after it has completed its script.

    A step is (status, body, headers), or None for capitals, or one of both in Held, or "drop", "gone" or "late".
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.script: deque[Any] = deque()
        self.seen: list[tuple[str, dict[str, Any], dict[str, str]]] = []

    @property
    def sent(self) -> list[list[str]]:
        """The dialogues of every received request."""
        return [body["inputs"] for _, body, _ in self.seen]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores errors: a client that does not wait for its answer is part of the tests."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FarEnd

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, dict(self.headers)))
        step = self.server.script.popleft() if self.server.script else None
        if isinstance(step, Held):
            step.until.wait(60)
            step = step.reply
        if step == "gone":
            self.server.shutdown()
            self.server.socket.close()
        if step in ("drop", "gone"):
            self.close_connection = True
            return
        if step == "late":
            threading.Event().wait(0.15)
        status, answer, headers = step if isinstance(step, tuple) else (200, capitals(body["inputs"]), {})
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def capitals(dialogues: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "summary_text": text.upper(),
            "truncated": len(text) > 20,
            "coverage": 1.0,
            "input_tokens": len(text),
            "output_tokens": 3,
        }
        if text.strip()
        else {"error": {"code": 422, "message": f"inputs[{place}] holds no text", "field": f"inputs[{place}]"}}
        for place, text in enumerate(dialogues)
    ]
