"""The server that benchmarks/attack.py attacks: its state, its routes, raw requests to it, and a foreign web server."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Target:
    """The attacked server.

    Attributes:
        url: The server's address on 127.0.0.1.
        token: The token of the server's owner.
        model: The name of a model that the server serves.
    """

    url: str
    token: str
    model: str

    @classmethod
    def find(cls, url: str, token_file: Path) -> "Target":
        """The server at an address, with its first model."""
        token = token_file.read_text(encoding="utf-8")
        headers = {"Authorization": f"Bearer {token}"}
        answer = httpx.get(f"{url}/models", headers=headers, timeout=TIMEOUT_S, trust_env=False)
        return cls(url, token, answer.raise_for_status().json()["models"][0]["modelName"])

    @property
    def port(self) -> int:
        """The port of `url`."""
        return int(self.url.rpartition(":")[2])

    @property
    def owner(self) -> dict[str, str]:
        """The headers that the server's owner sends."""
        return {"Authorization": f"Bearer {self.token}"}

    def state(self) -> dict[str, Any]:
        """The models, their workers and adapters, which a successful attack would change."""
        with httpx.Client(base_url=self.url, headers=self.owner, timeout=TIMEOUT_S) as http:
            models = http.get("/models").raise_for_status().json()["models"]
            adapters = http.get(f"/models/{self.model}/adapters")  # 400 for a model without slots
            if adapters.is_server_error:
                adapters.raise_for_status()
            [described] = http.get(f"/models/{self.model}").raise_for_status().json()
        workers = [group["device"]["deviceType"] for each in described["models"] for group in each["workerGroups"]]
        return {"models": models, "adapters": adapters.text, "workers": workers}

    def summarize(self, text: str) -> dict[str, Any]:
        """The answer to one dialogue."""
        url = f"{self.url}/invocations"
        answer = httpx.post(url, json={"inputs": text}, timeout=TIMEOUT_S, trust_env=False)
        return dict(answer.raise_for_status().json()[0])

    def invocation(self, text: str) -> bytes:
        """A request for the summary of one dialogue, as bytes."""
        body = json.dumps({"inputs": text}).encode()
        head = f"POST /invocations HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def bodies(self, raw: bytes, count: int) -> list[str]:
        """Sends raw bytes, and returns the bodies of up to `count` answers on the connection."""
        bodies = []
        with socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S) as connection:
            connection.sendall(raw)
            with connection.makefile("rb") as stream:
                while len(bodies) < count and stream.readline():
                    length = 0
                    while line := stream.readline().strip():
                        name, _, value = line.partition(b":")
                        length = int(value) if name.lower() == b"content-length" else length
                    bodies.append(stream.read(length).decode())
        return bodies

    def statuses(self, raw: bytes, silence_s: float = 0.3) -> list[int]:
        """Sends raw bytes, and returns the statuses of all answers until the connection is closed or silent."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S) as connection:
            try:
                connection.sendall(raw)
                connection.settimeout(TIMEOUT_S)
                while piece := connection.recv(1 << 16):
                    received += piece
                    connection.settimeout(silence_s)
            except (TimeoutError, ConnectionError):
                pass
        return [int(line.split()[1]) for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.")]


def routes(model: str) -> list[tuple[str, str]]:
    """Every route of every request handler of DJL Serving 0.36.0 and of neuron-sum's plugin."""
    return management_routes(model) + _pairs(f"""
        GET /
        OPTIONS /
        GET /playground
        GET /playground/models
        GET /ping
        GET /server/metrics
        POST /invocations
        POST /predictions/{model}
        POST /v1/chat/completions
        POST /models/{model}/invoke
    """)


def management_routes(model: str) -> list[tuple[str, str]]:
    """The routes of DJL's handlers for management, adapters and clusters, which list or change models and adapters."""
    source = "http://127.0.0.1:9/x.tar.gz"
    return _pairs(f"""
        GET /models
        GET /models/{model}
        POST /models?url={source}&model_name=x&engine=Python
        PUT /models/{model}?min_worker=3&max_worker=3
        DELETE /models/{model}
        DELETE /models/{model}/invoke?x
        PUT /models/{model}/invoke?min_worker=3
        GET /workflows
        POST /workflows?url={source}
        POST /workflows?template=adapter&adapter=x
        GET /workflows/{model}
        PUT /workflows/{model}?min_worker=3
        DELETE /workflows/{model}
        GET /server/logging?level=debug
        POST /server/logging
        PUT /server/metrics
        GET /adapters
        POST /adapters?name=x&src=/
        DELETE /adapters/x
        GET /models/{model}/adapters
        GET /models/{model}/adapters/default
        POST /models/{model}/adapters?name=x&src=/
        POST /models/{model}/adapters/x/update?src=/
        DELETE /models/{model}/adapters/default
        GET /cluster/sshpublickey
        GET /cluster/models
        GET /cluster/status?message=x
    """)


def _pairs(lines: str) -> list[tuple[str, str]]:
    return [(method, path) for method, path in (line.split() for line in lines.strip().splitlines())]


@contextmanager
def listener(page: str = "") -> Iterator[tuple[str, list[str]]]:
    """A foreign web server on 127.0.0.1 with a page at /: its URL, and the list of the other requested paths."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if page and self.path == "/":
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page.encode())
                return
            requested.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requested
        finally:
            server.shutdown()
            thread.join()
