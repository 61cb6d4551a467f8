"""Human ratings: what raters see and what is saved, the results, the command, and its server."""

import errno
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas
import pytest
from in_process import neuron_sum
from local_pages import wrong_tokens
from rated_comparisons import RESULTS, SYSTEMS, comparison, rate_all, session_of, write_comparison

from neuron_sum import files
from neuron_sum.errors import DataError, ResourceError, RunError
from neuron_sum.evaluation.preferences import _agreement, _Rated, preferences_of
from neuron_sum.evaluation.rating_page import rating_page
from neuron_sum.evaluation.ratings import RATINGS, choose_pairs, pairs_of, read_ratings, read_texts
from neuron_sum.evaluation.statistics import rank_correlation
from neuron_sum.recipes.schema import EvaluateConfig

CONFIG = EvaluateConfig()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return comparison(tmp_path / "comparison")


def results(folder: Path) -> dict[str, Any]:
    found = preferences_of(folder, read_texts(folder), CONFIG)
    assert found is not None
    return found.as_dict()


def shown(folder: Path, rater: str, seed: int = 42) -> list[tuple[str, str]]:
    """The dialogues that a rater sees, with the left summary, in order."""
    return [(pair.dialogue, pair.texts[int(swapped)]) for pair, swapped in session_of(folder, seed)._order(rater)]


def test_each_rater_has_an_order_and_sides_that_the_seed_determines(folder: Path) -> None:
    ann, bob = shown(folder, "Ann"), shown(folder, "Bob")
    assert ann == shown(folder, "Ann") != shown(folder, "Ann", seed=7)
    assert sorted(dialogue for dialogue, _ in ann) == sorted(dialogue for dialogue, _ in bob)
    assert [dialogue for dialogue, _ in ann] != [dialogue for dialogue, _ in bob]
    many = comparison(folder.parent / "many", 400)
    left = sum(text.count("word") == 1 for _, text in shown_all(many))
    assert 160 < left < 240, "a system is on one side more often"


def shown_all(folder: Path) -> list[tuple[str, str]]:
    session = session_of(folder, dialogues=1000)
    return [(pair.dialogue, pair.texts[int(swapped)]) for pair, swapped in session._order("Ann")]


def test_the_pairs_of_a_dialogue_follow_each_other(tmp_path: Path) -> None:
    seen = [dialogue for dialogue, _ in shown(comparison(tmp_path / "three", 8, ("a1", "b2", "c3")), "Ann")]
    assert len(seen) == 24 and sum(first != second for first, second in pairwise(seen)) == 7


def test_more_dialogues_include_the_fewer_ones(folder: Path) -> None:
    pairs = pairs_of(read_texts(folder))
    three, five = ({pair.dialogue for pair in choose_pairs(pairs, (), count, 42)} for count in (3, 5))
    assert len(three) == 3 and len(five) == 5 and three < five


def test_equal_summaries_and_missing_dialogues_are_left_out(tmp_path: Path) -> None:
    same = {"a": {"text": "One two."}, "b": {"text": " One  two. "}}
    different = {"a": {"text": "One."}, "b": {"text": "Two."}}
    folder = write_comparison(tmp_path / "c", [("A: Hi.", same), ("", different), ("A: Ho.", different)])
    assert [pair.example for pair in pairs_of(read_texts(folder))] == ["test_2"]


def test_a_choice_is_saved_with_its_systems_and_its_reason(folder: Path) -> None:
    session = session_of(folder)
    first = session.next("  Ann   Lee ")
    assert (first["rater"], first["done"], first["total"], first["reason"]) == ("Ann Lee", 0, 12, "")
    second = session.choose("Ann Lee", first["pair"]["number"], "left", " clearer\u2028 ")
    assert (second["done"], second["pair"]["number"]) == (1, 1)
    line = json.loads((folder / RATINGS).read_text().split("\n")[0])
    words = first["pair"]["left"].count("word")
    assert (line["left"], line["right"]) == (SYSTEMS if words == 1 else SYSTEMS[::-1])
    assert (line["choice"], line["reason"], line["rater"]) == ("left", "clearer", "Ann Lee")
    with pytest.raises(DataError, match="already rated"):
        session.choose("Ann Lee", first["pair"]["number"], "right", "")
    assert session_of(folder).next("ann lee") == {**second, "rater": "Ann Lee"}, "a second run continues"


def test_choices_are_undone_one_after_another(folder: Path) -> None:
    session = session_of(folder)
    with pytest.raises(DataError, match="no choice to undo"):
        session.undo("Ann")
    session.choose("Ann", 0, "left", "why")
    session.choose("Ann", 1, "equal", "")
    session.choose("Bob", 0, "both bad", "")
    assert session.undo("Ann")["pair"]["number"] == 1
    again = session.undo("Ann")
    assert (again["pair"]["number"], again["reason"], again["done"]) == (0, "why", 0)
    assert [rating.rater for rating in read_ratings(folder).values()] == ["Bob"]
    session.choose("Ann", 0, "right", "")
    assert {rating.choice for rating in read_ratings(folder).values()} == {"both bad", "right"}


def test_after_the_last_pair_there_is_none_and_the_last_choice_can_be_undone(folder: Path) -> None:
    session = session_of(folder)
    rate_all(session, "Ann", "equal")
    end = session.next("Ann")
    assert (end["done"], end["pair"]) == (12, None)
    assert session.undo("Ann")["pair"]["number"] == 11


@pytest.mark.parametrize(
    "wrong",
    [
        ("", 0, "left", ""),
        ("x" * 41, 0, "left", ""),
        ("a\u202eb", 0, "left", ""),
        (3, 0, "left", ""),
        ("Ann", 12, "left", ""),
        ("Ann", -1, "left", ""),
        ("Ann", "0", "left", ""),
        ("Ann", 0, "Left", ""),
        ("Ann", 0, None, ""),
        ("Ann", 0, ["left"], ""),
        ("Ann", 0, "left", None),
        ("Ann", 0, "left", "\ud800"),
        ("Ann", 0, "left", "x" * 2001),
    ],
)
def test_a_wrong_value_saves_nothing(folder: Path, wrong: tuple[Any, Any, Any, Any]) -> None:
    with pytest.raises(DataError):
        session_of(folder).choose(*wrong)
    assert not (folder / RATINGS).read_text()


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def append_line(path: Path, line: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "append_line", append_line)


def test_a_choice_that_cannot_be_saved_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of(folder)
    fill_the_disk(monkeypatch)
    with pytest.raises(ResourceError, match="cannot be written"):
        session.choose("Ann", 0, "left", "")


def test_ratings_of_changed_summaries_do_not_count(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rate_all(session_of(folder), "Ann", "longer")
    assert results(folder)["ratings"] == 12
    path = folder / "summaries.jsonl"
    path.write_text(path.read_text().replace("Text 3 word word ", "Text 3 changed ").replace("Question 4", "Query 4"))
    found = results(folder)
    assert (found["ratings"], found["other_texts"]) == (10, 2)
    assert f"2 of 12 ratings in {folder / RATINGS} are of other summaries" in capsys.readouterr().err
    assert session_of(folder).next("Ann")["done"] == 10, "the changed pairs are rated again"


@pytest.mark.parametrize(
    ("line", "message"),
    [("{}", "rater: Field required"), ('{"choice"', "cannot be read"), ("[]", "instead of an object")],
)
def test_a_damaged_line_is_named(folder: Path, line: str, message: str) -> None:
    (folder / RATINGS).write_text(line + "\n")
    made = neuron_sum("rate", str(folder), "--results")
    assert made.exit_code == 4 and f"{RATINGS}:1" in made.stderr and message in made.stderr


def test_win_rates_average_the_raters_of_a_dialogue(folder: Path) -> None:
    session = session_of(folder)
    rate_all(session, "Ann", "longer")
    rate_all(session, "Bob", "equal", count=6)
    rate_all(session, "Cy", "both bad", count=3)
    [rate] = results(folder)["win_rates"]
    assert rate["systems"] == list(SYSTEMS) and (rate["dialogues"], rate["ratings"]) == (12, 21)
    assert rate["preferred"][SYSTEMS[0]] == {"value": 0.0, "low": 0.0, "high": 0.0}
    preferred = rate["preferred"][SYSTEMS[1]]
    assert preferred["value"] + rate["equal"] + rate["both_bad"] == pytest.approx(100, abs=1e-3)
    assert preferred["low"] < preferred["value"] < preferred["high"] <= 100
    assert rate["difference"]["value"] == -preferred["value"]
    assert rate["difference"]["high"] < 0 and rate["difference"]["p_value"] == 0.001


def test_few_dialogues_have_no_interval(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "few", 3)
    rate_all(session_of(folder), "Ann", "longer")
    found = results(folder)
    [rate] = found["win_rates"]
    assert np.isnan(rate["preferred"][SYSTEMS[1]]["low"]) and rate["difference"] is None
    assert found["correlations"] == {}
    printed = neuron_sum("rate", str(folder), "--results")
    assert printed.exit_code == 0 and "100.0 " in printed.stdout
    assert not re.search("nan|correlation", printed.stdout)
    assert json.loads(neuron_sum("rate", str(folder), "--results", "--json").stdout)["ratings"]["win_rates"]


def test_scores_correlate_with_the_ratings(folder: Path) -> None:
    rate_all(session_of(folder), "Ann", "longer")
    found = results(folder)["correlations"]
    assert found["ROUGE-1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert np.isnan(found["facts"]["value"]), "all summaries have the same"
    assert "claims" not in found


def test_the_rank_correlation_is_spearmans_of_both_directions() -> None:
    generator = np.random.default_rng(3)
    values, preferences = generator.integers(-3, 4, 50).astype(float), generator.integers(-1, 2, 50).astype(float)
    both = pandas.DataFrame({"a": [*values, *-values], "b": [*preferences, *-preferences]})
    expected = both.corr(method="spearman").loc["a", "b"]
    assert rank_correlation(values, preferences) == pytest.approx(expected)
    assert rank_correlation(-values, -preferences) == pytest.approx(expected)
    assert rank_correlation(values, values) == pytest.approx(1)
    assert np.isnan(rank_correlation(values, np.zeros(50)))


def test_alpha_is_that_of_krippendorffs_example(folder: Path) -> None:
    """Four observers, twelve units, missing values: Krippendorff (2011), section C, nominal data."""
    observers = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    pair = pairs_of(read_texts(folder))[0]
    pairs = [pair.__class__(**{**vars(pair), "key": str(unit)}) for unit in range(12)]
    rated = [
        _Rated(each, {str(name): row[unit] for name, row in enumerate(observers) if row[unit] != "."})
        for unit, each in enumerate(pairs)
    ]
    found = _agreement(rated)
    assert found.pairs == 11 and found.alpha == pytest.approx(0.743, abs=5e-4)


def test_agreement_needs_two_raters(folder: Path) -> None:
    session = session_of(folder)
    rate_all(session, "Ann", "longer")
    assert results(folder)["agreement"] == {"pairs": 0, "same": None, "alpha": None}
    rate_all(session, "Bob", "longer", count=5)
    assert results(folder)["agreement"] == {"pairs": 5, "same": 100.0, "alpha": 1.0}
    rate_all(session, "Bob", "equal", count=5)
    # Of 20 values, 15 prefer the second system, by chance 7.5 either, and 5 are equal.
    alpha = 1 - (10 / 20) / ((20**2 - 2 * 7.5**2 - 5**2) / (20 * 19))
    assert results(folder)["agreement"] == {"pairs": 10, "same": 50.0, "alpha": pytest.approx(alpha)}


def test_agreement_has_no_alpha_if_all_pairs_are_equal(folder: Path) -> None:
    for rater in ("Ann", "Bob"):
        rate_all(session_of(folder), rater, "equal")
    assert results(folder)["agreement"] == {"pairs": 12, "same": 100.0, "alpha": None}


def test_alpha_of_random_choices_is_about_zero(tmp_path: Path) -> None:
    pairs = pairs_of(read_texts(comparison(tmp_path / "many", 1000)))
    choices = np.random.default_rng(1).choice(
        ("first", "second", "equal", "both bad"), (1000, 3), p=(0.4, 0.4, 0.1, 0.1)
    )
    rated = [
        _Rated(pair, dict(zip("abc", map(str, row), strict=True))) for pair, row in zip(pairs, choices, strict=True)
    ]
    assert _agreement(rated).alpha == pytest.approx(0, abs=0.05)


def test_the_order_of_the_systems_does_not_matter(tmp_path: Path) -> None:
    names = ("a1", "b2", "c3")
    folder = comparison(tmp_path / "three", 12, names)
    session = session_of(folder)
    rate_all(session, "Ann", "longer")
    rate_all(session, "Bob", "longer", count=20)
    rate_all(session, "Bob", "equal", count=10)
    rate_all(session, "Bob", "shorter")
    first = results(folder)
    path = folder / "summaries.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        entry["summaries"] = {name: entry["summaries"][name] for name in ("b2", "a1", "c3")}
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    second = results(folder)
    assert second["ratings"] == first["ratings"] == 72
    assert second["agreement"]["alpha"] == pytest.approx(first["agreement"]["alpha"])
    assert second["correlations"]["ROUGE-1"]["value"] == first["correlations"]["ROUGE-1"]["value"]
    [before], [after] = (
        [rate for rate in found["win_rates"] if "c3" not in rate["systems"]] for found in (first, second)
    )
    assert before["systems"] == after["systems"][::-1] and before["preferred"] == after["preferred"]


def test_compare_shows_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.csv").write_text(RESULTS)
    command = ("compare", "results.csv#old", "results.csv#new", "--reference-column", "human")
    assert json.loads(neuron_sum(*command, "--json").stdout)["ratings"] is None
    folder = tmp_path / "comparison"
    assert "Human ratings" not in (folder / "report.html").read_text()
    session = session_of(folder)
    rate_all(session, "Ann", "shorter")
    view = session.next("Bob")
    preferred = "left" if view["pair"]["left"].startswith("A cat") else "right"
    session.choose("Bob", 0, preferred, "<b>It names</b>\nthe animal.")
    rate_all(session, "Bob", "equal")
    made = neuron_sum(*command)
    assert made.exit_code == 0, made.stderr
    for expected in (
        "old : new",
        "2 raters, 12 pairs with several ratings",
        "Krippendorff's alpha",
        "rank correlation",
    ):
        assert expected in made.stdout
        assert expected in (folder / "report.html").read_text().replace("&#39;", "'")
    found = json.loads((folder / "comparison.json").read_text())["ratings"]
    assert (found["ratings"], found["win_rates"][0]["systems"]) == (24, ["old", "new"])
    assert {"ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum", "facts", "support"} == set(found["correlations"])
    assert json.loads(neuron_sum("rate", "--results", "--json").stdout)["ratings"] == found
    [reason] = found["reasons"]
    assert (reason["systems"], reason["choice"], reason["text"]) == (
        ["old", "new"],
        "new",
        "<b>It names</b>\nthe animal.",
    )
    page = (folder / "report.html").read_text()
    assert "&lt;b&gt;It names&lt;/b&gt;\nthe animal." in page and "Bob" not in page

    (tmp_path / "results.csv").write_text(RESULTS.replace("A dog", "The dog"))
    made = neuron_sum(*command)
    assert "24 of 24 ratings" in made.stderr and "old : new" not in made.stdout
    (folder / RATINGS).write_text("x\n")
    assert neuron_sum(*command).exit_code == 4
    alone = neuron_sum("evaluate", *command[1:2], *command[3:], "--output", str(folder))
    assert alone.exit_code == 0, "only a comparison reads ratings"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere",), 8, "nowhere has no summaries.jsonl"),
        (("one",), 8, "has only alone; two systems are needed"),
        (("silent",), 8, "has no dialogues"),
        (("same",), 8, "no dialogue has two different summaries"),
        (("damaged",), 4, "summaries.jsonl:1 has no id, dialogue and summaries"),
        (("comparison", "--system", "x"), 8, "--system x: not one of zebra-one, quokka-two"),
        (("comparison", "--system", "zebra-one"), 8, "one system"),
        (("comparison", "--port", "65536"), 11, "--port 65536 is not between 0 and 65535"),
        (("comparison", "--dialogues", "0"), 2, "--dialogues"),
        (
            ("comparison", "--results", "--system", "x", "--dialogues", "3", "--seed", "1"),
            8,
            "--results does not use --system, --dialogues, --seed",
        ),
    ],
)
def test_a_wrong_command_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    comparison(tmp_path / "comparison")
    comparison(tmp_path / "one", 2, ("alone",))
    write_comparison(tmp_path / "silent", [(" ", {"a": {"text": "x"}, "b": {"text": "y"}})])
    same = {"text": "x"}
    write_comparison(tmp_path / "same", [("A: x", {"a": same, "b": same})])
    write_comparison(tmp_path / "damaged", [("A: x", {"a": {"words": 3}})])
    made = neuron_sum("rate", *words)
    assert made.exit_code == code and message in made.stderr and "hint: " in made.stderr


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The URL of the command, and its process."""
    command = [sys.executable, "-m", "neuron_sum", "rate", str(folder), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        for line in iter(process.stdout.readline, ""):
            said += line
            if line == "}\n":
                break
        yield json.loads(said)["url"], process
        process.kill()


def test_a_killed_command_keeps_what_was_saved(folder: Path) -> None:
    with served(folder) as (url, process):
        for number in range(3):
            content = {"rater": "Ann", "number": number, "choice": "left", "reason": ""}
            assert httpx.post(f"{url}/choose", json=content).json()["done"] == number + 1
        process.send_signal(signal.SIGKILL)
    with (folder / RATINGS).open("a") as file:
        file.write('{"rater": "Ann", "cut')
    with served(folder) as (url, process):
        assert httpx.post(f"{url}/next", json={"rater": "Ann"}).json()["done"] == 3
        content = {"rater": "Ann", "number": 3, "choice": "equal", "reason": ""}
        assert httpx.post(f"{url}/choose", json=content).json()["done"] == 4
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None and "--results" in process.stderr.read()
    assert len((folder / RATINGS).read_text().splitlines()) == 4


def test_a_comparison_that_changes_while_it_is_rated_is_refused(folder: Path) -> None:
    session = session_of(folder)
    session.choose("Ann", 0, "left", "")
    path = folder / "summaries.jsonl"
    before = path.read_text()
    files.write_text(path, before)  # the same comparison again
    assert session.next("Ann")["done"] == 1
    files.write_text(path, before.replace("word", "term"))
    for request in (lambda: session.next("Ann"), lambda: session.choose("Ann", 1, "left", "")):
        with pytest.raises(RunError, match="has other texts now"):
            request()
    path.unlink()
    with pytest.raises(RunError, match="has no summaries"):
        session.undo("Ann")
    assert len((folder / RATINGS).read_text().splitlines()) == 1


def test_spellings_of_a_name_are_one_rater(folder: Path) -> None:
    session = session_of(folder)
    first, second = session.next("Ann"), session.next("ANN")
    assert first["pair"] == second["pair"], "a page names a pair by its number in the order of its rater"
    session.choose("Ann", 0, "left", "")
    with pytest.raises(DataError, match="already rated"):
        session.choose("ANN", 0, "right", "")
    line = (folder / RATINGS).read_text()
    (folder / RATINGS).write_text(line + line.replace("Ann", "ANN").replace('"choice":"left"', '"choice":"right"'))
    assert [rating.choice for rating in read_ratings(folder).values()] == ["right"]
    assert session.raters() == ["ANN"] and session.next("ann")["done"] == 1


def test_an_edited_line_with_other_systems_does_not_count(folder: Path) -> None:
    rate_all(session_of(folder), "Ann", "longer")
    path = folder / RATINGS
    first, *others = path.read_text().splitlines(keepends=True)
    path.write_text(first.replace(SYSTEMS[0], "other") + "".join(others).removesuffix("\n"))
    found = results(folder)
    assert (found["ratings"], found["other_texts"]) == (11, 1)


def test_two_commands_share_a_comparison(folder: Path) -> None:
    first, second = session_of(folder), session_of(folder)
    first.choose("Ann", 0, "left", "")
    second.choose("Bob", 0, "left", "")
    assert second.next("Ann")["done"] == 1
    assert first.raters() == ["Ann", "Bob"]


def test_only_the_page_may_send_requests_and_no_answer_names_a_system(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(folder)
    content = {"rater": "Ann", "number": 0, "choice": "left", "reason": ""}
    with rating_page(session, 0) as url:
        root = url.rpartition("/")[0]
        for headers in (
            {"Host": "evil.example"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ):
            assert httpx.post(f"{url}/choose", json=content, headers=headers).status_code == 403
        for wrong in wrong_tokens(url):
            assert httpx.post(f"{root}{wrong}/choose", json=content).status_code == 403, wrong
            assert httpx.get(f"{root}{wrong}/").status_code == 403, wrong
        assert httpx.post(f"{url}/choose", data=content).status_code == 415
        assert httpx.post(f"{url}/choose", json={**content, "reason": "x" * 70_000}).status_code == 413
        for wrong in ([], {}, {"rater": "Ann"}, {**content, "number": 20}, {**content, "choice": "middle"}):
            assert httpx.post(f"{url}/choose", json=wrong).status_code == 400
        assert httpx.get(f"{url}/choose").status_code == httpx.get(f"{url}/ratings.jsonl").status_code == 404
        assert not (folder / RATINGS).read_text()
        page = httpx.get(f"{url}/")
        policy = page.headers["Content-Security-Policy"]
        assert "unsafe" not in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
        answers = [
            page,
            httpx.post(f"{url}/next", json={"rater": "Ann"}),
            httpx.post(f"{url}/choose", json=content),
            httpx.post(f"{url}/choose", json=content),
            httpx.post(f"{url}/undo", json={"rater": "Ann"}),
            httpx.get(f"{url}/raters"),
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 400, 200, 200]
        for answer in answers:
            assert not [name for name in SYSTEMS if name in f"{answer.text}{answer.headers}"]
            assert "Access-Control-Allow-Origin" not in answer.headers
        fill_the_disk(monkeypatch)
        failed = httpx.post(f"{url}/choose", json=content)
        assert failed.status_code == 500 and "; free some space" in failed.json()["error"]["message"]
        (folder / RATINGS).write_text("x\n")
        failed = httpx.get(f"{url}/raters")
        assert failed.status_code == 500 and f"{RATINGS}:1" in failed.json()["error"]["message"]
