"""The playground for an endpoint with chat completions: a web page on this machine, which sends requests through it.

    GET /TOKEN/                   the page that `serve --playground` also shows
    GET /TOKEN/playground/models  the endpoint's name
    POST /TOKEN/playground/stream {"inputs": "dialogue"} -> one JSON object per line: {"text": …}, last the answer or an
                                  error

TOKEN is new at each start: other users of the machine must not send requests with the credentials of this process. A
browser cannot call a SageMaker endpoint, nor an endpoint on another host that does not allow it.
"""

import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.errors import RequestError, ServerError
from serving.chat import ChatClient
from serving.schema import JSON, JSON_LINES

PAGE = Path(__file__).with_name("playground.html")
KNOWN = '<script type="application/json" id="known">{}</script>'
HOSTS = ("127.0.0.1", "localhost", "[::1]")
MAX_BODY_BYTES = 6 << 20
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy, the same as in Page.java."""
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def page_with(known: Mapping[str, Any]) -> str:
    """The page with the models that it cannot ask the server for; no name can end the script element."""
    return PAGE.read_text(encoding="utf-8").replace(
        KNOWN.format("{}"), KNOWN.format(json.dumps(known).replace("<", "\\u003c"))
    )


def show(endpoint: str, port: int, *, chat: bool) -> None:
    """Serve the page until Ctrl-C.

    Args:
        endpoint: The endpoint, as for ChatClient.
        port: The port on 127.0.0.1; 0 for any free port.
        chat: Whether the endpoint has chat completions.

    Raises:
        RequestError: If `endpoint` is invalid or has no chat completions.
        ServerError: If the port is in use.
    """
    if not chat:
        hint = "use `neuron-sum serve ARTIFACT --playground` for an artifact"
        raise RequestError("--playground requires --chat", hint)
    with playground(endpoint, port) as url:
        console.emit({"url": url}, f"open {url}/ in a browser; press Ctrl-C to stop")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.note("stopped")


@contextmanager
def playground(endpoint: str, port: int) -> Iterator[str]:
    """Serve the page until the end of the block.

    Args:
        endpoint: The endpoint, as for ChatClient.
        port: The port on 127.0.0.1; 0 for any free port.

    Yields:
        The URL of the page.

    Raises:
        RequestError: If `endpoint` is invalid.
        ServerError: If the port is in use.
    """
    with ChatClient(endpoint) as client:
        name = client.endpoint
    try:
        server = _Server(endpoint, name, port)
    except OSError as error:
        hint = "use another --port, or --port 0 for any free port"
        raise ServerError(f"port {port} of 127.0.0.1 is in use: {error.strerror}", hint) from error
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{server.root}"
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, endpoint: str, name: str, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.endpoint, self.name, self.root = endpoint, name, f"/{secrets.token_urlsafe(24)}"
        self.page = page_with({name: {"default": None, "adapters": [], "streams": True}}).encode()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that has left."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if not self._is_allowed():
            return
        if self._place == "":  # the page finds the other places from the folder of its URL
            self._send(308, JSON, b"", Location=f"{self.server.root}/")
        elif self._place == "/":
            self._send(200, "text/html; charset=utf-8", self.server.page, **{"Content-Security-Policy": POLICY})
        elif self._place == "/playground/models":
            self._send(200, JSON, json.dumps({self.server.name: None}).encode())
        else:
            self._refuse(404, f"{self._place[:80]} does not exist")

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        length = self.headers.get("Content-Length", "")
        if self._place != "/playground/stream":
            self._refuse(404, f"{self._place[:80]} does not exist")
        elif self.headers.get_content_type() != JSON:
            self._refuse(415, f"send {JSON}")
        elif not length.isdigit() or int(length) > MAX_BODY_BYTES:
            self._refuse(413, f"send at most {MAX_BODY_BYTES} bytes with a Content-Length")
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        try:
            dialogue = json.loads(body)["inputs"]
            if not isinstance(dialogue, str):
                raise TypeError("inputs")
        except (ValueError, KeyError, TypeError, RecursionError):
            self._refuse(400, 'send {"inputs": "dialogue"}')
            return
        self._head(200, JSON_LINES)
        self.end_headers()
        try:
            with ChatClient(
                self.server.endpoint, attempts=2, on_text=lambda text: self._line({"text": text})
            ) as client:
                [answer] = client.summarize([dialogue])
            self._line(answer.as_dict())
        except RequestError as error:
            self._line({"error": {"code": getattr(error, "code", 500), "message": error.message, "field": None}})

    def _line(self, content: Mapping[str, Any]) -> None:
        self.wfile.write(json.dumps(content).encode() + b"\n")
        self.wfile.flush()

    @property
    def _place(self) -> str:
        """The path after the token."""
        return self.path.removeprefix(self.server.root)

    def _is_allowed(self) -> bool:
        """Whether this page caused a request; another site's pages may not, also under a name that leads here."""
        root = self.server.root
        if not secrets.compare_digest(self.path[: len(root)].encode(), root.encode()):
            self._refuse(403, "open the URL that `neuron-sum request` printed")
            return False
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin", f"http://{host}")
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        known = host in HOSTS or host.rpartition(":")[0] in HOSTS
        if known and origin == f"http://{host}" and site in ("same-origin", "none"):
            return True
        self._refuse(403, "only this server's page may send requests")
        return False

    def _refuse(self, status: int, message: str) -> None:
        error = {"error": {"code": status, "message": message, "field": None}}
        self._send(status, JSON, json.dumps(error).encode())

    def _send(self, status: int, kind: str, content: bytes, **headers: str) -> None:
        self._head(status, kind)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _head(self, status: int, kind: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **HEADERS}.items():
            self.send_header(name, value)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""
