"""The playground: `serve --playground` with a real DJL Serving and a real browser."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from artifacts import with_data
from playwright.sync_api import Browser, Page, Route, expect

from neuron_sum.artifact import Artifact
from neuron_sum.recipes.schema import ServeConfig
from neuron_sum.runs.folder import open_run
from serving.service import BASE

pytestmark = pytest.mark.slow

DIALOGUE = "#Person1#: Are you coming tonight?\n#Person2#: Yes, at eight. <b>Really</b> & truly."
NEW_NAME = "_new.1"
OpenPage = Callable[..., Page]


@contextmanager
def started(*targets: Path, options: Sequence[str] = ("--playground",)) -> Iterator[dict[str, Any]]:
    """The output of the command."""
    command = [sys.executable, "-m", "neuron_sum", "serve", *map(str, targets), *options, "--port", "0", "--quiet"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            said = ""
            for line in lines:
                said += line
                if line == "}\n":
                    break
            assert said, "the server did not start"
            yield json.loads(said)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@contextmanager
def served(*targets: Path, options: Sequence[str] = ("--playground",)) -> Iterator[str]:
    """The server's URL."""
    with started(*targets, options=options) as said:
        yield str(said["url"])


@pytest.fixture(scope="module")
def server(lora_artifact: Artifact, djl_serving: Path) -> Iterator[dict[str, Any]]:
    with started(lora_artifact.path) as said:
        yield said


@pytest.fixture
def url(server: dict[str, Any]) -> str:
    return str(server["url"])


@pytest.fixture
def token(server: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {Path(server['token_file']).read_text()}"}


@pytest.fixture
def faults() -> list[str]:
    """The errors that the browser reports."""
    return []


@pytest.fixture
def open_page(browser: Browser, faults: list[str]) -> Iterator[OpenPage]:
    pages: list[Page] = []

    def opened(url: str, path: str = "/", width: int = 1280) -> Page:
        own = (f"{url}/", "data:")
        page = browser.new_page(viewport={"width": width, "height": 800})
        pages.append(page)
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
        page.goto(url + path)
        expect(page.locator(".choice").first).to_be_visible()
        return page

    yield opened
    for page in pages:
        page.close()


def choose(page: Page, *names: str) -> None:
    for label in page.locator(".choice").all():
        label.locator("input").set_checked(label.locator("span").inner_text() in names)


def summarize(page: Page, dialogue: str) -> None:
    page.get_by_label("Dialogue").fill(dialogue)
    page.get_by_role("button", name="Summarize").click()
    expect(page.get_by_role("status")).to_contain_text("ms")


def invoke(url: str, adapter: str) -> dict[str, Any]:
    answer = httpx.post(f"{url}/invocations", json={"inputs": DIALOGUE, "parameters": {"adapter": adapter}})
    return dict(answer.raise_for_status().json()[0])


@pytest.mark.parametrize("width", [375, 1280], ids=["phone", "desktop"])
def test_two_adapters_side_by_side(url: str, open_page: OpenPage, faults: list[str], width: int) -> None:
    page = open_page(url, width=width)
    assert page.locator(".choice span").all_inner_texts() == [BASE, "default"]
    assert "#Person1#" in page.get_by_label("Dialogue").input_value(), "no sample to start from"
    expect(page.get_by_label("Model")).to_be_hidden()
    choose(page, BASE, "default")
    summarize(page, DIALOGUE)
    cards = page.locator(".card")
    expect(cards).to_have_count(2)
    for card, name in zip(cards.all(), (BASE, "default"), strict=True):
        answer = invoke(url, name)
        expect(card.get_by_role("heading")).to_contain_text(name)
        expect(card.locator(".text")).to_have_text(answer["summary_text"] or "(an empty summary)")
        figures = card.locator(".figures").inner_text()
        assert re.match(r"[\d,]+ ms\s", figures)
        assert f"{answer['input_tokens']} tokens in" in figures
        assert f"{answer['output_tokens']} out" in figures
        expect(card.get_by_text("truncated")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert faults == []


def test_invalid_input_is_reported_next_to_it(url: str, open_page: OpenPage, faults: list[str]) -> None:
    page = open_page(url, "/playground")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Summarize").click()
    expect(page.get_by_role("alert")).to_have_text("Write or paste a dialogue first.")
    expect(page.get_by_label("Dialogue")).to_be_focused()
    page.get_by_role("button", name="Sample").click()
    expect(page.get_by_role("alert")).to_have_text("")
    choose(page)
    page.get_by_role("button", name="Summarize").click()
    expect(page.get_by_role("alert")).to_have_text("Choose at least one adapter.")
    expect(page.locator(".card")).to_have_count(0)
    assert faults == []


def test_a_cut_dialogue_is_marked(url: str, open_page: OpenPage, faults: list[str]) -> None:
    page = open_page(url)
    choose(page, BASE)
    page.get_by_label("Dialogue").fill(DIALOGUE * 50)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".card").get_by_text("truncated")).to_be_visible()
    assert faults == []


def test_pieces_of_a_long_dialogue_are_shown_as_they_finish(
    lora_artifact: Artifact, djl_serving: Path, open_page: OpenPage, faults: list[str], tmp_path: Path
) -> None:
    artifact = with_data(lora_artifact, tmp_path / "merging", long="merge")
    long = "\n".join([DIALOGUE] * 40)
    with served(artifact.path) as url:
        request = {"inputs": long, "parameters": {"adapter": BASE}}
        [expected] = httpx.post(f"{url}/invocations", json=request, timeout=60).json()
        assert (expected["coverage"], expected["truncated"]) == (1, False)
        headers = {"Accept": "text/event-stream"}
        with httpx.stream("POST", f"{url}/invocations", json=request, headers=headers, timeout=60) as response:
            assert response.headers["content-type"] == "text/event-stream"
            events = "".join(response.iter_text()).split("\n\n")[:-1]
        names = [event.partition("\n")[0] for event in events]
        assert names == ["event: piece"] * (len(names) - 1) + ["event: answer"] and len(names) > 4
        assert json.loads(events[-1].partition("data: ")[2]) == [expected]
        pieces = [json.loads(event.partition("data: ")[2]) for event in events[:-1]]
        first = {piece["piece"]: piece["summary_text"] for piece in pieces if piece["round"] == 1}
        refused = httpx.post(f"{url}/invocations", json={"inputs": " "}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "inputs")

        page = open_page(url)
        choose(page, BASE)
        page.evaluate(
            """() => {
                 const plain = window.showPiece;
                 window.shown = [];
                 window.showPiece = (card, piece) => {
                   plain(card, piece);
                   window.shown.push(`${card.querySelector(".pieces summary").textContent} ${card.ariaBusy}`);
                 };
               }"""
        )
        summarize(page, long)
        card = page.locator(".card")
        expect(card.locator(".text")).to_have_text(expected["summary_text"] or "(an empty summary)")
        expect(card.locator(".pieces summary")).to_have_text(f"{len(first)} pieces")
        shown = page.evaluate("window.shown")
        assert shown[: len(first)] == [f"{done} of {len(first)} pieces true" for done in range(1, len(first) + 1)]
        assert shown[-1] == f"1 of 1 summary of round {pieces[-1]['round']} true"
        card.locator(".pieces summary").click()
        expect(card.locator(".pieces li")).to_have_text(
            [first[number] or "(an empty summary)" for number in sorted(first)]
        )
    assert [fault for fault in faults if "status of 422" not in fault] == []


def test_adapters_change_while_the_page_is_open(
    url: str, token: dict[str, str], open_page: OpenPage, faults: list[str], micro_lora_run: Path
) -> None:
    page = open_page(url)
    choose(page, "default")
    source = {"name": NEW_NAME, "src": str(open_run(micro_lora_run).weights)}
    httpx.post(f"{url}/models/lora/adapters", params=source, headers=token).raise_for_status()
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(page.locator(".choice span")).to_have_text([BASE, NEW_NAME, "default"])
    assert [box.is_checked() for box in page.locator(".choice input").all()] == [False, False, True]
    choose(page, NEW_NAME, "default")
    summarize(page, DIALOGUE)
    expect(page.locator(".card").nth(1)).to_contain_text(f"the same text as {NEW_NAME}")
    assert faults == []

    httpx.delete(f"{url}/models/lora/adapters/{NEW_NAME}", headers=token).raise_for_status()
    summarize(page, DIALOGUE)
    refused = page.locator(".card").first
    expect(refused.locator(".text")).to_have_text(f"no adapter '{NEW_NAME}'; existing: default")
    expect(refused).to_contain_text("HTTP 404")
    expect(page.locator(".card").nth(1)).to_contain_text("tokens in")
    expect(page.get_by_role("status")).to_contain_text("1 of 2 summaries")
    assert [fault for fault in faults if "status of 404" not in fault] == []


def test_rejections_show_the_message_of_the_server(url: str, open_page: OpenPage) -> None:
    page = open_page(url)
    choose(page, BASE)
    limit = ServeConfig().max_characters
    summarize(page, "a" * (limit + 1))
    expect(page.locator(".card .text")).to_have_text(f"inputs has {limit + 1} characters; at most {limit} are allowed")


def test_a_summary_is_never_rendered_as_markup(url: str, open_page: OpenPage, faults: list[str]) -> None:
    said = "<img src=x onerror=\"document.title='taken'\"> & <script>document.title='taken'</script>"
    answer = [{"summary_text": said, "truncated": False, "coverage": 1.0, "input_tokens": 3, "output_tokens": 4}]
    page = open_page(url)
    page.route("**/invoke", lambda route: route.fulfill(json=answer))
    summarize(page, DIALOGUE)
    expect(page.locator(".card .text").first).to_have_text(said)
    assert (page.locator("img").count(), page.title()) == (0, "neuron-sum playground")
    assert faults == []


def test_findings_are_marked_in_the_summary(url: str, open_page: OpenPage, faults: list[str]) -> None:
    check = {"kind": "name", "text": "<b>Zoe</b>", "start": 2, "end": 12, "message": "the name does not occur"}
    answer = {
        "summary_text": "🙂 <b>Zoe</b> comes.",
        "truncated": False,
        "coverage": 1.0,
        "input_tokens": 3,
        "output_tokens": 4,
    }
    page = open_page(url)
    bodies: list[dict[str, Any]] = []

    def fulfill(route: Route) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(json=[{**answer, "checks": [check]}])

    page.route("**/invoke", fulfill)
    choose(page, BASE)
    summarize(page, DIALOGUE)
    assert bodies[0]["parameters"]["checks"] is True
    expect(page.locator(".card .text")).to_have_text(str(answer["summary_text"]))
    expect(page.locator(".card mark")).to_have_text("<b>Zoe</b>")
    expect(page.locator(".card .cut")).to_have_text("<b>Zoe</b>: the name does not occur")
    assert faults == []


def test_a_pending_request_can_be_stopped(url: str, open_page: OpenPage, faults: list[str]) -> None:
    page = open_page(url)
    page.route("**/invoke", lambda route: None)
    page.get_by_role("button", name="Summarize").click()
    expect(page.locator(".card[aria-busy]")).to_have_count(2)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.get_by_text("Side by side")).to_be_visible()
    page.unroute("**/invoke")
    summarize(page, DIALOGUE)
    expect(page.locator(".card .figures")).to_have_count(2)
    assert faults == []


def test_the_content_security_policy_allows_only_this_server(url: str) -> None:
    answer = httpx.get(f"{url}/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} <= set(policy)
    assert "access-control-allow-origin" not in answer.headers
    assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|https?://(?!www\.w3\.org/)", answer.text)


def test_several_models_and_one_without_slots(
    lora_artifact: Artifact, djl_serving: Path, open_page: OpenPage, faults: list[str], tmp_path: Path
) -> None:
    another = shutil.copytree(lora_artifact.path, tmp_path / "another")
    with served(lora_artifact.path, another) as url:
        page = open_page(url)
        assert page.get_by_label("Model").locator("option").all_inner_texts() == ["lora", "another"]
        summarize(page, DIALOGUE)
        expect(page.locator(".card")).to_have_count(2)
        expect(page.get_by_role("status")).to_contain_text("lora: 2 summaries")

        def without_slots(route: Route) -> None:
            given = route.fetch()
            route.fulfill(response=given, json={**given.json(), "another": None})

        page.route(f"{url}/playground/models", without_slots)
        page.reload()
        page.get_by_label("Model").select_option("another")
        expect(page.get_by_role("group", name="Adapters")).to_be_hidden()
        summarize(page, DIALOGUE)
        expect(page.locator(".card h3")).to_have_text(["another"])
        page.get_by_label("Model").select_option("lora")
        expect(page.locator(".choice span")).to_have_text([BASE, "default"])
    assert faults == []


def test_without_the_option_there_is_no_page(lora_artifact: Artifact, djl_serving: Path) -> None:
    with served(lora_artifact.path, options=()) as url:
        for path in ("/", "/playground"):
            answer = httpx.get(url + path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, 404)
