"""A web page on this machine for the user of a command, and the requests of that page.

    GET /TOKEN/   the page; a subclass of `PageHandler` answers the other paths below /TOKEN

TOKEN is new at each start: other users of the machine must not send requests with the rights of this process.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from neuron_sum import console
from neuron_sum.errors import NeuronSumError, ServerError

JSON = "application/json"
HOSTS = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
CLIENT_TIMEOUT_S = 60
LARGEST_PORT = 65535


def content_policy(page: str) -> str:
    """The content security policy of a page: its inline script and style by their hashes, and only this server."""

    def hashes(tag: str) -> str:
        found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class PageServer(ThreadingHTTPServer):
    """The server of a page, on 127.0.0.1.

    Args:
        handler: The class that answers the requests of the page.
        page: The HTML.
        port: The port; 0 for any free port.
        command: The command that prints the URL, for error messages.

    Raises:
        ServerError: If the port is not usable.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, handler: "type[PageHandler]", page: str, port: int, command: str) -> None:
        hint = "use another --port, or --port 0 for any free port"
        if not 0 <= port <= LARGEST_PORT:
            raise ServerError(f"--port {port} is not between 0 and {LARGEST_PORT}", hint)
        try:
            super().__init__(("127.0.0.1", port), handler)
        except OSError as error:
            raise ServerError(f"port {port} of 127.0.0.1 cannot be used: {error.strerror}", hint) from error
        self.page, self.policy, self.command = page.encode(), content_policy(page), command
        self.root = f"/{secrets.token_urlsafe(24)}"

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve until the end of the block.

        Yields:
            The URL of the page without its last slash.
        """
        with self:
            threading.Thread(target=self.serve_forever, daemon=True).start()
            try:
                yield f"http://127.0.0.1:{self.server_address[1]}{self.root}"
            finally:
                self.shutdown()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a browser that has left."""


def wait_for_interrupt() -> None:
    """Wait until Ctrl-C or SIGTERM."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        console.note("stopped")


class PageHandler(BaseHTTPRequestHandler):
    """Answers the page, and refuses what the page did not send.

    Attributes:
        posts: The paths below the root that accept a JSON body.
        max_body_bytes: The maximum size of a body.
    """

    server: PageServer
    timeout = CLIENT_TIMEOUT_S
    posts: ClassVar[tuple[str, ...]] = ()
    max_body_bytes: ClassVar[int] = 1 << 16

    def get(self, place: str) -> Any:
        """The JSON value at a path below the root; None if it does not exist. The page receives a NeuronSumError."""
        return None

    def post(self, place: str, content: Any) -> None:
        """Answer a JSON value that the page sent to one of `posts`, by `send_json`, `refuse`, or `head`."""

    def do_GET(self) -> None:
        """Answer the page or a JSON value."""
        if not self._is_allowed():
            return
        if self._place == "":  # the page finds the other places from the folder of its URL
            self._send(308, JSON, b"", Location=f"{self.server.root}/")
        elif self._place == "/":
            policy = {"Content-Security-Policy": self.server.policy}
            self._send(200, "text/html; charset=utf-8", self.server.page, **policy)
        else:
            try:
                value = self.get(self._place)
            except NeuronSumError as error:
                self.refuse(500, error.message)
                return
            if value is None:
                self.refuse(404, f"{self._place[:80]} does not exist")
            else:
                self.send_json(200, value)

    def do_POST(self) -> None:
        """Read the body and answer it."""
        if not self._is_allowed():
            return
        length = self.headers.get("Content-Length", "")
        if self._place not in self.posts:
            self.refuse(404, f"{self._place[:80]} does not exist")
        elif self.headers.get_content_type() != JSON:
            self.refuse(415, f"send {JSON}")
        elif not (length.isascii() and length.isdigit()) or int(length) > self.max_body_bytes:
            self.refuse(413, f"send at most {self.max_body_bytes} bytes with a Content-Length")
        else:
            try:
                content = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                self.refuse(400, f"send {JSON}")
                return
            self.post(self._place, content)

    def send_json(self, status: int, value: Any) -> None:
        """Send a JSON value."""
        self._send(status, JSON, json.dumps(value).encode())

    def refuse(self, status: int, message: str) -> None:
        """Send an error in the form of the endpoint's errors."""
        self.send_json(status, {"error": {"code": status, "message": message, "field": None}})

    def head(self, status: int, kind: str) -> None:
        """Send the status line and the first headers."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, **HEADERS}.items():
            self.send_header(name, value)

    @property
    def _place(self) -> str:
        """The path after the token."""
        return self.path.removeprefix(self.server.root)

    def _is_allowed(self) -> bool:
        """Whether this page caused a request; another site's pages may not, also under a name that leads here."""
        root = self.server.root
        if not secrets.compare_digest(self.path[: len(root)].encode(), root.encode()):
            self.refuse(403, f"open the URL that `{self.server.command}` printed")
            return False
        hosts = self.headers.get_all("Host", [])
        host = hosts[0] if len(hosts) == 1 else ""
        known = host in HOSTS or host.rpartition(":")[0] in HOSTS
        origins = self.headers.get_all("Origin", [])
        sites = self.headers.get_all("Sec-Fetch-Site", [])
        if known and {*origins} <= {f"http://{host}"} and {*sites} <= {"same-origin", "none"}:
            return True
        self.refuse(403, "only this server's page may send requests")
        return False

    def _send(self, status: int, kind: str, content: bytes, **headers: str) -> None:
        self.head(status, kind)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""
