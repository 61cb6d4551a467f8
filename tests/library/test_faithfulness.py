"""The rules that compare a summary with its dialogue."""

import time

import pytest

from neuron_sum.data.facts import find_facts, number_groups, speakers
from neuron_sum.data.sentences import split_claims
from neuron_sum.evaluation.faithfulness import check_summary, rule_scores

DIALOGUE = """#Person1#: Hello, Tom Miller. Are you free on Thursday at half past ten?
#Person2#: Only until 11 o'clock. How much is the twenty-five dollar ticket in New York for three people?
#Person1#: Seventy-five dollars, or 1,200 yuan. My number is six one seven 55. China is far; Catherine said so.
#Person2#: I will bring my guitar, the violin, two drums and a trumpet tomorrow evening."""


def found(summary: str, dialogue: str = DIALOGUE) -> list[tuple[str, str]]:
    checked = check_summary(summary, dialogue)
    assert checked is not None
    for finding in checked.findings:
        assert summary[finding.start : finding.end] == finding.text
    return [(finding.kind, finding.text) for finding in checked.findings]


@pytest.mark.parametrize(
    "summary",
    [
        "#Person1# asks #Person 2# and #person_1# about Thursday.",
        "They meet at 10:30, 10.30 a.m. or 10:30 am, until 11 a.m. and eleven o'clock.",
        "The ticket costs $25, 25 dollars or twenty-five dollars; three cost $75.",
        "The number is 617, it costs 1200 yuan.",
        "Tom's friend, Mr. Miller's ticket, NY, the Chinese, and Cathrine.",
        "On Thursdays or tomorrow night two of them give one reason.",
        "However, Someone says that He is here. Customers complain.",
        "He may come in the end.",
        "President Miller and Captain Miller come. Using a guitar is fine. Refreshments, however.",
        "They posted #music #guitar.",
    ],
)
def test_facts_in_other_words_are_supported(summary: str) -> None:
    assert found(summary) == []


@pytest.mark.parametrize(
    ("summary", "kind", "text"),
    [
        ("#Person3# asks.", "tag", "#Person3#"),
        ("#Pork1# asks.", "tag", "#Pork1#"),
        ("They meet at quarter to nine.", "time", "quarter to nine"),
        ("They meet at 8:15.", "time", "8:15"),
        ("They meet on Friday.", "date", "Friday"),
        ("They meet in May.", "date", "May"),
        ("They met yesterday.", "date", "yesterday"),
        ("It costs $26.", "number", "26"),
        ("It costs forty dollars.", "number", "forty"),
        ("It costs 3 million.", "number", "3 million"),
        ("Anna's brother comes.", "name", "Anna"),
        ("They fly to Paris.", "name", "Paris"),
    ],
)
def test_unsupported_facts_are_found(summary: str, kind: str, text: str) -> None:
    assert found(summary) == [(kind, text)]


@pytest.mark.parametrize(
    ("dialogue", "summary"),
    [
        ("I work from nine to five.", "He works from 9 to 5."),
        ("I work from 9 am to 5 pm.", "He works between 9 to 5."),
        ("I work from 9 to 5.", "He works from 9 a.m. to 5 p.m."),
        ("It takes ten or twelve days.", "It takes 10 to 12 days."),
        ("It's ten to five.", "It is 4:50."),
        ("Call 555-1234.", "The number is 5551234."),
        ("Call 5551234.", "The number is 555-1234."),
        ("OK,20 dollars.", "It costs $20."),
        ("Lines 1,2,3.", "It is 2."),
        ("It's 10km away.", "It is 10 km away."),
        ("It's 10 km away.", "It is 10km away."),
        ("Music of the nineties.", "He likes the 90s and the 1990s."),
        ("Music of the 80s.", "He likes the 1980s."),
        ("On May thirtieth, my twentieth birthday.", "On May 30, it is his 20th birthday."),
        ("Half of them, and two and a half hours.", "50% and 2.5 hours."),
        ("Five grand.", "It costs $5,000."),
        ("It costs $0.50.", "It costs 50 cents."),
        ("At 12 o'clock.", "They meet at noon."),
        ("At noon.", "They meet at 12 p.m. or 12:00."),
        ("At midnight.", "They meet at 12 a.m."),
        ("At 7 pm.", "They meet at 7 in the evening."),
        ("At 9 a.m.", "They meet in the morning."),
        ("At 14:00.", "They meet in the afternoon."),
        ("The sun is hot. I sat there.", "The Sun is hot. Sat there, he waits."),
        ("État critique.", "An élan vital is über alles."),
        ("我们星期五去北京。", "张伟星期五去北京。"),
        ("Işıl and ſeven friends.", "Işıl and seven friends."),
    ],
)
def test_true_statements_have_no_findings(dialogue: str, summary: str) -> None:
    assert found(summary, f"A: {dialogue}") == []


@pytest.mark.parametrize(
    ("dialogue", "summary", "kind", "text"),
    [
        ("It costs five dollars.", "It costs $500.", "number", "500"),
        ("It costs five dollars.", "It costs $60.", "number", "60"),
        ("It costs $5.", "It costs 5,000 dollars.", "number", "5,000"),
        ("Pay $35. Then 20 people came.", "It costs 352 dollars.", "number", "352"),
        ("It's 10km away.", "It is 12km away.", "number", "12km"),
        ("I wanted bananas.", "Ted pays.", "name", "Ted"),
        ("I wanted bananas.", "Ana pays.", "name", "Ana"),
        ("It's the same price.", "Sam pays.", "name", "Sam"),
        ("It's time to go to the market.", "Tim pays.", "name", "Tim"),
        ("Then they left.", "Theo pays.", "name", "Theo"),
        ("Hello! Who is it?", "Helen pays.", "name", "Helen"),
        ("I go to our meeting.", "Tom pays.", "name", "Tom"),
        ("You may come.", "In May, they come.", "date", "May"),
        ("Hello.", "They meet on frıday.", "date", "frıday"),
        ("Hello.", "ſix people come.", "number", "ſix"),
        ("Иван идёт в кино.", "Мария идёт в кино.", "name", "Мария"),
    ],
)
def test_false_statements_are_found(dialogue: str, summary: str, kind: str, text: str) -> None:
    assert found(summary, f"A: {dialogue}") == [(kind, text)]


def test_an_article_is_not_a_speaker() -> None:
    dialogue = "A: Hello.\nB: I will bring my guitar, the violin, two drums and a trumpet."
    assert found("A guitar, a violin, drums and a trumpet are brought.", dialogue) == []
    assert found("B will bring a guitar, a violin, drums and a trumpet.", dialogue) == []


def test_words_of_another_speaker_are_found() -> None:
    right = "#Person2# will bring a guitar, a violin, drums and a trumpet."
    assert found(right) == []
    assert found(right.replace("2", "1")) == [("speaker", "#Person1#")]
    assert found("#Person1# and #Person2# will bring a guitar, a violin, drums and a trumpet.") == []
    assert found("#Person1# hears that #Person2# will bring a guitar, a violin, drums and a trumpet.") == []
    many = "\n".join(f"S{number}: guitar violin drums trumpet" for number in range(2000))
    assert found("S1 will bring a guitar.", many) == [], "too many speakers to compare"


def test_scores_of_summaries() -> None:
    right, wrong = check_summary("Tom brings a guitar.", DIALOGUE), check_summary("Anna brings a guitar.", DIALOGUE)
    vague = check_summary("Tom repairs a bicycle.", DIALOGUE)
    scores = rule_scores([right, wrong, vague])
    assert scores["facts"].tolist() == [100, 0, 100]
    assert scores["support"][0] == 100
    assert scores["support"][1] == 0
    assert 0 < scores["support"][2] < 100
    assert check_summary("Anna.", " ") is None
    empty = check_summary(" ", DIALOGUE)
    assert {name: values.tolist() for name, values in rule_scores([empty]).items()} == {"facts": [0], "support": [0]}
    assert rule_scores([right, None]) == {}


def test_number_words() -> None:
    assert number_groups("twenty-five") == [25]
    assert number_groups("ten thirty") == [10, 30]
    assert number_groups("two hundred and fifty thousand") == [250_000]
    assert number_groups("six one seven") == [6, 1, 7]
    assert number_groups("hundred") == [100]
    facts = find_facts("A dozen eggs cost 2.5k, not 1,000.")
    assert [fact.value for fact in facts if fact.kind == "number"] == [12, 2500, 1000]


def test_claims_are_sentences() -> None:
    summary = 'Mr. Li meets Dr. J. Smith at 5 p.m. on Monday.  "He is late." #Person1# waits! He eats e.g. rice\nDone'
    assert split_claims(summary) == [
        "Mr. Li meets Dr. J. Smith at 5 p.m. on Monday.",
        '"He is late."',
        "#Person1# waits!",
        "He eats e.g. rice",
        "Done",
    ]
    assert split_claims(" \n ") == []


def test_speakers_are_before_a_colon() -> None:
    assert speakers("Ann Lee: at 10:30?\n Bob: yes\nAnn Lee: no\nhttp://x") == ["Ann Lee", "Bob"]


@pytest.mark.parametrize(
    "text",
    [
        "\n" * 50_000,
        "a " * 50_000,
        "one " * 25_000,
        "#a" * 50_000,
        "9:" * 50_000,
        "ten " + " " * 100_000,
        "Q" * 100_000,
        "May " * 25_000,
        "Mr. A. " * 14_000,
        "5 to " * 20_000,
        " ".join(f"Q{number:b}".replace("0", "a").replace("1", "b") for number in range(8000)),
    ],
)
def test_the_time_is_linear(text: str) -> None:
    """A quadratic rule takes at least ten seconds for one of these texts."""
    started = time.process_time()
    check_summary("Anna meets #Person3# at ten. Qabababababb pays.", f"A: {text}")
    check_summary(text[:20_000], "A: Hello.")
    assert time.process_time() - started < 8
