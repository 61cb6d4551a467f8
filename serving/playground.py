"""The playground for an endpoint with chat completions: a web page on this machine, which sends requests through it.

    GET /TOKEN/                   the page that `serve --playground` also shows
    GET /TOKEN/playground/models  the endpoint's name
    POST /TOKEN/playground/stream {"inputs": "dialogue"} -> one JSON object per line: {"text": …}, last the answer or an
                                  error

A browser cannot call a SageMaker endpoint, nor an endpoint on another host that does not allow it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuron_sum import console
from neuron_sum.errors import RequestError
from neuron_sum.local_page import PageHandler, PageServer, wait_for_interrupt
from serving.chat import ChatClient
from serving.schema import JSON_LINES

PAGE = Path(__file__).with_name("playground.html")
KNOWN = '<script type="application/json" id="known">{}</script>'


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
        wait_for_interrupt()


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
    with _Server(endpoint, name, port).running() as url:
        yield url


class _Server(PageServer):
    def __init__(self, endpoint: str, name: str, port: int) -> None:
        page = page_with({name: {"default": None, "adapters": [], "streams": True}})
        super().__init__(_Handler, page, port, "neuron-sum request")
        self.endpoint, self.name = endpoint, name


class _Handler(PageHandler):
    server: _Server
    posts = ("/playground/stream",)
    max_body_bytes = 6 << 20

    def get(self, place: str) -> Any:
        return {self.server.name: None} if place == "/playground/models" else None

    def post(self, place: str, content: Any) -> None:
        dialogue = content.get("inputs") if isinstance(content, dict) else None
        if not isinstance(dialogue, str):
            self.refuse(400, 'send {"inputs": "dialogue"}')
            return
        self.head(200, JSON_LINES)
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
