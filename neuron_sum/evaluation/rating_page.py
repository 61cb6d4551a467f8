"""The page on which people rate: `neuron-sum rate COMPARISON`.

    GET /TOKEN/         rate.html
    GET /TOKEN/raters   the names of the raters so far
    POST /TOKEN/next    {"rater": NAME} -> the first pair that is not rated, and the progress
    POST /TOKEN/choose  {"rater", "number", "choice", "reason"} -> the same, after the choice is saved
    POST /TOKEN/undo    {"rater": NAME} -> the same, with the pair of the last choice

No answer names a system.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuron_sum.errors import DataError, NeuronSumError
from neuron_sum.evaluation.ratings import RatingSession
from neuron_sum.local_page import PageHandler, PageServer

PAGE = Path(__file__).with_name("rate.html")


@contextmanager
def rating_page(session: RatingSession, port: int) -> Iterator[str]:
    """Serve the page until the end of the block.

    Args:
        session: The pairs and their ratings.
        port: The port on 127.0.0.1; 0 for any free port.

    Yields:
        The URL of the page without its last slash.

    Raises:
        ServerError: If the port is not usable.
    """
    with _Server(session, port).running() as url:
        yield url


class _Server(PageServer):
    def __init__(self, session: RatingSession, port: int) -> None:
        super().__init__(_Handler, PAGE.read_text(encoding="utf-8"), port, "neuron-sum rate")
        self.session = session


class _Handler(PageHandler):
    server: _Server
    posts = ("/next", "/choose", "/undo")

    def get(self, place: str) -> Any:
        return self.server.session.raters() if place == "/raters" else None

    def post(self, place: str, content: Any) -> None:
        if not isinstance(content, dict):
            self.refuse(400, 'send {"rater": "name"}')
            return
        session, rater = self.server.session, content.get("rater")
        try:
            if place == "/choose":
                view = session.choose(rater, *(content.get(name) for name in ("number", "choice", "reason")))
            else:
                view = session.next(rater) if place == "/next" else session.undo(rater)
        except NeuronSumError as error:
            message = f"{error.message}; {error.hint}" if error.hint else error.message
            self.refuse(400 if isinstance(error, DataError) else 500, message)
        else:
            self.send_json(200, view)
