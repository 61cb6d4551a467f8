"""ROUGE in other scripts, with long texts, and compared with rouge-score word by word."""

import json
import random
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import tokenize
from rouge_score.rouge_scorer import RougeScorer, lcs_ind

from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError
from neuron_sum.evaluation.lcs import lcs_f1, lcs_indices, union_lcs_f1
from neuron_sum.evaluation.prediction_files import PredictionColumns
from neuron_sum.evaluation.rouge import ROUGE_TYPES, RougeProtocol, rouge
from neuron_sum.evaluation.session import Session
from neuron_sum.evaluation.systems import parse_systems
from neuron_sum.evaluation.tokenizers import MAX_WORDS, AsciiTokenizer, UnicodeTokenizer, lost_letters
from neuron_sum.recipes.schema import DataConfig, EvaluateConfig

UNICODE = RougeProtocol.of(EvaluateConfig(tokenizer="unicode"))

PERFECT = {
    "hindi": "बैठक शुक्रवार को दस बजे है। रिपोर्ट भेज दी गई है।",
    "german": "Müller grüßt Jörg. Die Ärztin erklärt die Übelkeit.",
    "chinese": "会议在星期五。安丢了包。",
    "japanese": "会議は金曜日です。カードをなくした。",
    "thai": "การประชุมวันศุกร์",
    "arabic": "الاجتماع يوم الجمعة؟",
    "russian": "Встреча в пятницу.",
    "greek": "Η συνάντηση είναι την Παρασκευή.",
    "korean": "회의는 금요일입니다.",
    "tamil": "கூட்டம் வெள்ளிக்கிழமை.",
    "hebrew": "הפגישה ביום שישי.",
}
words = st.lists(st.sampled_from("abcdefg"), max_size=12)


@pytest.mark.parametrize("text", PERFECT.values(), ids=PERFECT)
def test_a_perfect_summary_scores_100_in_every_script(text: str) -> None:
    scores = rouge([text, "x"], [[text], [text]], UNICODE)
    assert {name: values.tolist() for name, values in scores.items()} == {name: [100.0, 0.0] for name in scores}


@pytest.mark.parametrize("text", PERFECT.values(), ids=PERFECT)
def test_the_ascii_tokenizer_refuses_letters_that_it_drops(text: str) -> None:
    with pytest.raises(DataError, match=r"drops letters of the human summaries: .* words .*, such as '") as error:
        RougeProtocol().check([[text]])
    assert "evaluate.tokenizer=unicode" in str(error.value.hint)
    UNICODE.check([[text]])


def test_punctuation_and_symbols_are_not_letters() -> None:
    text = "“Tom’s” plan – it’s 20 € at 5 °C … ½ m² ❤️ 👍🏽 © «so» №5 50 %."
    assert lost_letters([text]).count == 0
    RougeProtocol().check([[text]])


def test_a_few_foreign_names_are_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    references = [["the cat sat on the mat " * 50 + "with José"]]
    RougeProtocol().check(references)
    RougeProtocol().warn(references[0], "human summaries")
    assert "human summaries: the ASCII tokenizer drops letters of 1 of 302 words" in capsys.readouterr().err
    RougeProtocol().warn(["the cat"], "a")
    UNICODE.warn(references[0], "b")
    assert capsys.readouterr().err == ""


def test_dialogsum_loses_no_letter(shared_data: Path) -> None:
    examples = load_dataset(DataConfig(source="dialogsum", path=str(shared_data / "dialogsum")))["test"]
    assert lost_letters(text for example in examples for text in example.references).count == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("को दस बजे", ["को", "दस", "बजे"]),  # vowel signs belong to the word
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("cafe\u0301 caf\xe9", ["café", "café"]),
        ("我买了 iPhone15 ｶｰﾄﾞ", ["我", "买", "了", "iphone15", "カ", "ー", "ド"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("می\u200cروم soft\u00adhyphen a\u200bb", ["میروم", "softhyphen", "a", "b"]),
        ("don't _x_ #Person1#", ["don", "t", "x", "person1"]),
        ("١٢٣ १२ ❤️", ["١٢٣", "१२"]),
        ("a\u0308 \u0308", ["ä"]),
        ("", []),
    ],
)
def test_words_of_any_script(text: str, expected: list[str]) -> None:
    assert UnicodeTokenizer().tokenize(text) == expected


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=40))
def test_ascii_words_are_those_of_rouge_score(text: str) -> None:
    ascii_text = text.encode("ascii", "ignore").decode()
    assert UnicodeTokenizer().tokenize(ascii_text) == tokenize.tokenize(ascii_text, None)
    assert UnicodeTokenizer().tokenize(ascii_text + " ä")[:-1] == tokenize.tokenize(ascii_text, None)
    assert AsciiTokenizer(False).tokenize(text) == tokenize.tokenize(text, None)


@given(words, words)
def test_a_subsequence_is_that_of_rouge_score(reference: list[str], candidate: list[str]) -> None:
    if reference and candidate:
        assert sorted(lcs_indices(reference, candidate)) == sorted(lcs_ind(reference, candidate))


@given(st.text("abcd .!\n", max_size=80), st.text("abcd .!\n", max_size=80))
def test_scores_are_exactly_those_of_rouge_score(reference: str, prediction: str) -> None:
    scores = rouge([prediction], [[reference]], RougeProtocol(sentence_splitting="newline"))
    expected = RougeScorer(list(ROUGE_TYPES), use_stemmer=True).score(reference, prediction)
    assert [values[0] for values in scores.values()] == [100 * expected[kind].fmeasure for kind in ROUGE_TYPES]


def test_long_texts_need_little_memory_and_time() -> None:
    generator = random.Random(0)
    texts = [[str(int(generator.paretovariate(0.6))) for _ in range(15_000)] for _ in range(2)]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert 0.4 < lcs_f1(*texts) < 0.6
    assert 0.4 < union_lcs_f1(*([text] for text in texts)) < 0.6
    sentences = [[text[start : start + 15] for start in range(0, len(text), 15)] for text in texts]
    assert 0.9 < union_lcs_f1(*sentences) < 1
    assert time.monotonic() - started < 20
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    )  # kB; a table of rouge-score has 1.8 GB


def test_longer_texts_are_refused() -> None:
    with pytest.raises(DataError, match=r"a summary has 60,001 words, ROUGE compares at most 60,000: 'x x x"):
        rouge(["x " * (MAX_WORDS + 1)], [["x"]], RougeProtocol())


def test_the_protocol_names_the_tokenizer() -> None:
    assert "ASCII tokenizer, Porter stemming" in str(RougeProtocol.of(EvaluateConfig()))
    assert "Unicode tokenizer, no stemming" in str(UNICODE)


def test_evaluate_refuses_and_names_the_other_tokenizer(tmp_path: Path) -> None:
    rows = [{"id": number, "reference": text, "prediction": text} for number, text in enumerate(PERFECT.values())]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    systems, columns = parse_systems([str(tmp_path / "p.jsonl")]), PredictionColumns(references=("reference",))
    with pytest.raises(DataError, match=r"evaluate\.tokenizer=ascii drops letters"):
        Session(systems, None, [], columns).run(tmp_path)
    metrics = Session(systems, None, ["evaluate.tokenizer=unicode"], columns).run(tmp_path).evaluations[0].metrics
    assert {score["value"] for score in metrics["scores"].values()} == {100.0}
    assert metrics["protocol"]["tokenizer"] == "unicode"
    assert "Unicode tokenizer" in metrics["protocol"]["text"]
