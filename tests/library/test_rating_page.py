"""The page of `neuron-sum rate` in a real browser: desktop and phone, keyboard only, dark, hostile texts."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from in_process import neuron_sum
from playwright.sync_api import Browser, Page, expect
from rated_comparisons import RESULTS, SYSTEMS, comparison, rate_all, session_of, write_comparison

from neuron_sum.evaluation.rating_page import rating_page
from neuron_sum.evaluation.ratings import RATINGS, read_ratings

pytestmark = pytest.mark.slow

OpenPage = Callable[..., Page]
SIZES = {"phone": (375, 667), "landscape": (667, 375), "desktop": (1280, 800)}
HOSTILE = "<img src=x onerror=\"document.title='taken'\"></script><script>document.title='taken'</script>\u2028&amp;"


@pytest.fixture
def faults() -> list[str]:
    """The errors that the browser reports, and the requests to other servers."""
    return []


@pytest.fixture
def open_page(browser: Browser, faults: list[str]) -> Iterator[OpenPage]:
    pages: list[Page] = []

    def opened(url: str, size: str = "desktop", **options: object) -> Page:
        width, height = SIZES[size]
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        pages.append(page)
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        own = (f"{url}/", "data:")
        page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
        page.goto(f"{url}/")
        return page

    yield opened
    for page in pages:
        page.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return comparison(tmp_path / "comparison", 3)


def start(page: Page, name: str) -> None:
    expect(page.get_by_label("Your name")).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Dialogue")).to_be_focused()


def choices(folder: Path) -> list[tuple[str, str | None, str]]:
    return [(each.rater, each.choice, each.reason) for each in read_ratings(folder).values()]


def test_a_rater_needs_only_the_keyboard(folder: Path, open_page: OpenPage, faults: list[str]) -> None:
    with rating_page(session_of(folder), 0) as url:
        page = open_page(url)
        start(page, "1u Ann")  # keys of the rating are letters in a name
        progress, reason = page.locator("#count"), page.get_by_label("Reason")
        expect(progress).to_have_text("0 of 3")
        page.keyboard.press("r")
        expect(reason).to_be_focused()
        page.keyboard.type("4 u →")
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowRight")
        expect(progress).to_have_text("1 of 3")
        expect(page.get_by_role("status")).to_have_text("Saved: B is better")
        expect(reason).to_have_value("")
        page.keyboard.press("3")
        expect(progress).to_have_text("2 of 3")
        page.keyboard.press("4")
        expect(page.get_by_text("All pairs are rated")).to_be_visible()
        expect(page.locator("#end")).to_be_focused()
        assert choices(folder) == [("1u Ann", "right", "4 u →"), ("1u Ann", "equal", ""), ("1u Ann", "both bad", "")]
        for count in (2, 1, 0):
            page.keyboard.press("u")
            expect(progress).to_have_text(f"{count} of 3")
        expect(reason).to_have_value("4 u →")
        expect(page.get_by_role("button", name="Undo")).to_be_disabled()
        page.keyboard.press("Control+1")
        page.keyboard.press("1")
        expect(progress).to_have_text("1 of 3")
        assert choices(folder) == [("1u Ann", "left", "4 u →")]
        page.reload()
        expect(progress).to_have_text("1 of 3")
    assert faults == []


@pytest.mark.parametrize("size", SIZES)
def test_everything_is_reachable_at_every_size(folder: Path, open_page: OpenPage, faults: list[str], size: str) -> None:
    turn = "many words in a turn " * 8
    long = "\n".join(f"#Person{number % 2 + 1}#: {turn}" for number in range(50)) + "\n" + "x" * 400
    write_comparison(folder, [(long, {"a": {"text": "word " * 400}, "b": {"text": "y" * 300}})] * 2)
    assert len(long.split()) > 2000
    width, height = SIZES[size]
    with rating_page(session_of(folder), 0) as url:
        page = open_page(url, size)
        start(page, "Ann")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
        for button in page.locator("#choices button").all():
            box = button.bounding_box()
            assert box is not None and box["height"] >= 44 and box["y"] + box["height"] <= height
        dialogue = page.get_by_role("region", name="Dialogue")
        assert dialogue.evaluate("box => box.scrollHeight > 2 * box.clientHeight && box.scrollWidth <= box.clientWidth")
        page.keyboard.press("End")
        expect(dialogue.locator("p").last).to_be_in_viewport()
        assert page.evaluate("scrollY") == 0 and dialogue.evaluate("box => box.scrollTop") > 500
        page.get_by_role("button", name="Both bad").click()
        expect(page.get_by_text("All pairs are rated")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert faults == []


def test_texts_are_never_markup_and_systems_never_named(tmp_path: Path, open_page: OpenPage, faults: list[str]) -> None:
    texts = {SYSTEMS[0]: {"text": HOSTILE}, SYSTEMS[1]: {"text": ""}}
    folder = write_comparison(tmp_path / "comparison", [(f"<b>A</b>: {HOSTILE}", texts)])
    with rating_page(session_of(folder), 0) as url:
        page = open_page(url)
        answers: list[str] = []
        page.on("response", lambda response: answers.append(response.text()))
        start(page, HOSTILE[:20])
        expect(page.locator("#dialogue b")).to_have_text("<b>A</b>:")
        shown = {page.locator(f"#{side}").text_content() for side in ("left", "right")}
        assert shown == {HOSTILE, "(an empty summary)"}
        expect(page.locator("#who")).to_have_text(HOSTILE[:20])
        assert (page.locator("img").count(), page.title()) == (0, "neuron-sum ratings")
        page.keyboard.press("1")
        expect(page.get_by_text("All pairs are rated")).to_be_visible()
        for text in (page.content(), *answers):
            assert not re.search("|".join(SYSTEMS), text)
        assert len(answers) >= 2
    assert choices(folder)[0][0] == HOSTILE[:20]
    assert faults == []


def test_two_raters_in_two_windows(folder: Path, open_page: OpenPage, faults: list[str]) -> None:
    with rating_page(session_of(folder), 0) as url:
        pages = {name: open_page(url) for name in ("Ann", "Bob")}
        for name, page in pages.items():
            start(page, name)
        for key in "134":
            for page in pages.values():
                page.keyboard.press(key)
                expect(page.get_by_role("status")).to_contain_text("Saved")
                expect(page.locator("#count")).to_have_text(f"{'134'.index(key) + 1} of 3")
        assert len(choices(folder)) == 6
        pages["Ann"].get_by_role("button", name="Change rater").click()
        expect(pages["Ann"].locator("#names option")).to_have_count(2)
        start_again = pages["Ann"].get_by_label("Your name")
        start_again.fill("bob")
        start_again.press("Enter")
        expect(pages["Ann"].locator("#who")).to_have_text("Bob")
        expect(pages["Ann"].get_by_text("All pairs are rated")).to_be_visible()
    assert faults == []


def test_the_same_rater_in_two_windows_rates_a_pair_once(folder: Path, open_page: OpenPage) -> None:
    with rating_page(session_of(folder), 0) as url:
        first, second = open_page(url), open_page(url)
        for page in (first, second):
            start(page, "Ann")
        first.keyboard.press("1")
        expect(first.locator("#count")).to_have_text("1 of 3")
        second.keyboard.press("2")
        expect(second.get_by_role("alert")).to_contain_text("already rated, in another window")
        expect(second.locator("#count")).to_have_text("1 of 3")
        assert [choice for _, choice, _ in choices(folder)] == ["left"]


def test_a_double_click_is_one_choice(folder: Path, open_page: OpenPage) -> None:
    with rating_page(session_of(folder), 0) as url:
        page = open_page(url)
        start(page, "Ann")
        page.get_by_role("button", name="A is better").click()
        expect(page.locator("#count")).to_have_text("1 of 3")
        page.mouse.down(click_count=2)
        page.mouse.up(click_count=2)
        page.keyboard.press("3")
        expect(page.locator("#count")).to_have_text("2 of 3")
        assert [choice for _, choice, _ in choices(folder)] == ["left", "equal"]


def test_a_stopped_server_is_reported_and_the_reason_kept(folder: Path, open_page: OpenPage) -> None:
    with rating_page(session_of(folder), 0) as url:
        page = open_page(url)
        start(page, "Ann")
        page.get_by_label("Reason").fill("why")
    page.get_by_role("button", name="Equal").click()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    expect(page.get_by_role("button", name="Equal")).to_be_focused()
    expect(page.get_by_label("Reason")).to_have_value("why")
    assert not (folder / RATINGS).read_text()


def test_colors_are_readable_in_light_and_dark(folder: Path, open_page: OpenPage, faults: list[str]) -> None:
    """A contrast of at least 4.5 (WCAG 2.2, 1.4.3) between the ink and the ground of texts and buttons."""
    code = """() => [...document.querySelectorAll('#dialogue p, .summary p, #choices button, #count')].map((node) => {
      let ground = node;
      while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
      return [getComputedStyle(node).color, getComputedStyle(ground).backgroundColor];
    })"""
    with rating_page(session_of(folder), 0) as url:
        grounds = set()
        for scheme in ("light", "dark"):
            page = open_page(url, color_scheme=scheme)
            start(page, scheme)
            for pair in page.evaluate(code):
                ink, ground = (luminance(color) for color in pair)
                assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5, (scheme, pair)
                grounds.add((scheme, ground > 0.5))
    assert {("light", True), ("dark", False)} == grounds
    assert faults == []


def test_the_report_shows_the_results_on_a_phone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Browser
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.csv").write_text(RESULTS)
    command = ("compare", "results.csv#old", "results.csv#new", "--reference-column", "human")
    assert neuron_sum(*command).exit_code == 0
    rate_all(session_of(tmp_path / "comparison"), "Ann", "shorter")
    rate_all(session_of(tmp_path / "comparison"), "Bob", "equal")
    assert neuron_sum(*command).exit_code == 0
    page = browser.new_page(viewport={"width": 375, "height": 667})
    page.goto((tmp_path / "comparison" / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    expect(page.locator("#ratings tbody tr")).to_have_count(1)
    expect(page.locator("#ratings tbody td").first).to_have_text("old : new")
    expect(page.locator("#correlations thead th")).to_have_text(
        ["rank correlation", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum", "facts", "support"]
    )
    page.close()


def luminance(color: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
