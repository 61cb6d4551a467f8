"""Summaries with sections: the text, the rows of data, the tokens, and the scores."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from section_models import SECTIONS, byte_level, sentencepiece

from compile.bucket_choice import measure
from neuron_sum.data.encoding import IGNORED, encode
from neuron_sum.data.examples import Example
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError, RecipeError
from neuron_sum.evaluation.claims import Claim
from neuron_sum.evaluation.sections import section_metrics
from neuron_sum.models.base import load_tokenizer
from neuron_sum.prompts import Prompt
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import DataConfig, EvaluateConfig, ModelConfig, OutputConfig, SectionConfig, SplitFiles
from neuron_sum.sections import SectionCoder, parse_sections, unknown_headings, without_headings, write_sections

OUTPUT = OutputConfig(sections=SECTIONS)
WHOLE = "Reason: The line is cut.\nFollow up:\nActions: A visit on Friday."
TEXTS = {"reason": "The line is cut.", "follow_up": "", "actions": "A visit on Friday."}


def made(folder: Path, rows: list[dict[str, Any]], **options: Any) -> DataConfig:
    lines = [json.dumps({"dialogue": f"#Person1#: {number}", **row}) + "\n" for number, row in enumerate(rows)]
    (folder / "train.jsonl").write_text("".join(lines))
    return DataConfig.model_validate({"source": "jsonl", "path": str(folder), **options})


@given(st.lists(st.text(max_size=40), min_size=3, max_size=3))
def test_what_is_written_is_read(values: list[str]) -> None:
    texts = {section.name: value for section, value in zip(SECTIONS, values, strict=True)}
    written = write_sections(texts, SECTIONS)
    parsed = parse_sections(written, SECTIONS)
    assert parsed.texts == {name: " ".join(value.split()) for name, value in texts.items()}
    assert parsed.found == tuple(texts) and not parsed.outside
    assert write_sections(parsed.texts, SECTIONS) == written
    blank = without_headings(written, SECTIONS)
    assert len(blank) == len(written) and blank.split() == " ".join(parsed.texts.values()).split()


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        "## Reason\nThe line\nis cut.\n\n## ACTIONS\nA visit on Friday.",
        "**Reason:** The line is cut.\n**Actions**: A visit on Friday.",
        "actions:A visit on Friday.\nREASON\n  The line is cut.\nfollow_up:",
        "REASON\r\nThe line is cut.\r\n\r\nFOLLOW UP\r\n\r\nACTIONS\r\nA visit on Friday.",
        "Reason : The line is cut.\rFollow  up : \r**Actions** : A visit on Friday.",
        "1. Reason: The line\nis cut.\n2) Follow up\n3. **Actions**\nA visit on Friday.",
        "Reason\uff1aThe line is cut.\nActions\uff1aA visit on Friday.",
    ],
)
def test_texts_of_people_are_read(text: str) -> None:
    parsed = parse_sections(text, SECTIONS)
    assert parsed.texts == TEXTS and not parsed.outside and not unknown_headings(text, SECTIONS)


def test_names_with_unusual_letters_and_spaces_are_read() -> None:
    sections = [SectionConfig(name=name) for name in ("i\u015flem", "a  b", "a__b c", "History", "Plan", "Plan B")]
    texts = {section.name: f"text of {number}" for number, section in enumerate(sections)}
    written = write_sections(texts, sections)
    assert "\nA b: text of 1\nA b c: text of 2\n" in written
    # The regular expression ignores the case of dotted and dotless i, which str.casefold distinguishes.
    for text in (written, written.upper(), written.replace("I", "\u0130"), written.replace("i", "\u0131")):
        parsed = parse_sections(text, sections)
        assert parsed.found == tuple(texts) and not parsed.outside
    assert parse_sections("Plan: Plan B: no.\nPlan B is next.", sections).texts["Plan"] == "Plan B: no. Plan B is next."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Plan: b", ["Plan"]),
        ("Plan : b", ["Plan"]),
        ("**Plan**: b", ["Plan"]),
        ("**Plan:** b", ["Plan"]),
        ("## Plan\nb", ["Plan"]),
        ("**Plan**\nb", ["Plan"]),
        ("PHYSICAL EXAM\r\nb", ["PHYSICAL EXAM"]),
        ("Reasons and plans of both: b", []),
        ("OK\n- Plan: b\nat 10:30 b\nThe plan\n**Plan** of today\nPLAN of today\n10:30 Plan: b", []),
    ],
)
def test_other_headings_are_found(text: str, found: list[str]) -> None:
    assert unknown_headings(f"Reason: a\n{text}\nActions: c", SECTIONS) == found


@pytest.mark.parametrize(
    "text", ["a" * 100_000 + "!", "a " * 50_000, " " * 100_000 + "a", "reason" + " " * 100_000 + "a"]
)
def test_long_lines_are_read_in_linear_time(text: str) -> None:
    started = time.process_time()
    unknown_headings(text, SECTIONS)
    assert time.process_time() - started < 5


def test_a_text_without_headings_is_outside() -> None:
    parsed = parse_sections("The reason: none.\nReasons: two.", SECTIONS)
    assert parsed.outside == "The reason: none. Reasons: two." and not parsed.found
    assert parsed.missing(SECTIONS) == ["reason", "actions"]


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([{"summary": WHOLE}], {}),
        ([{"summary": TEXTS}], {}),
        ([{"summary": json.dumps({"actions": TEXTS["actions"], "reason": TEXTS["reason"]})}], {}),
        (
            [{"why": TEXTS["reason"], "next": None, "todo": f"{TEXTS['actions']}\r\n"}],
            {"columns": {"sections": {"reason": "why", "follow_up": "next", "actions": "todo"}}},
        ),
    ],
)
def test_rows_have_columns_json_or_headings(
    tmp_path: Path, rows: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    [example] = load_dataset(made(tmp_path, rows, **options), OUTPUT)["train"]
    assert example.references == (WHOLE,)


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        (
            "No headings.",
            "'summary' has text before the first heading: 'No headings.'; the sections are reason, follow_up",
        ),
        (
            {"reason": "a", "plan": "b"},
            "'summary' has the unknown section 'plan'; the sections are reason, follow_up, act",
        ),
        (
            "Reason: a\nPlan: b\nActions: c",
            "'summary' has the unknown section 'Plan'; the sections are reason, follow_up",
        ),
        ("Reason: a\nReason: b\nActions: c", "'summary' has the section 'reason' twice"),
        ("Reason: a", "'summary' has no text in the section 'actions'; fill it in, or make it optional"),
        ({"reason": "a", "actions": 3}, "'summary' has 3 in the section 'actions'; use a string"),
        ("{bad", "'summary' is not JSON: "),
        (["a"], "'summary' is ['a']; write an object or a text with the sections reason, follow_up, actions"),
    ],
)
def test_bad_rows_name_the_row_and_the_sections(tmp_path: Path, summary: Any, message: str) -> None:
    config = made(tmp_path, [{"summary": WHOLE}, {"summary": summary}])
    with pytest.raises(DataError) as raised:
        load_dataset(config, OUTPUT)
    assert "train.jsonl:2: " in raised.value.message and message in raised.value.message
    skipped = load_dataset(config.model_copy(update={"skip_bad": True}), OUTPUT)
    assert len(skipped["train"]) == 1 and sum(skipped.skipped.values()) == 1


def test_numbered_columns_are_several_references(tmp_path: Path) -> None:
    row = {"topic": "A cut line", "summary1": "One.", "summary2": "Two."}
    config = made(tmp_path, [row], columns={"sections": {"title": "topic", "text": "summary"}})
    sections = (SectionConfig(name="title"), SectionConfig(name="text"))
    [example] = load_dataset(config, OutputConfig(sections=sections))["train"]
    assert example.references == ("Title: A cut line\nText: One.", "Title: A cut line\nText: Two.")


@pytest.mark.parametrize("decoder_only", [False, True])
@pytest.mark.parametrize("make", [sentencepiece, byte_level])
def test_headings_have_the_same_tokens_in_training_and_generation(make: Any, decoder_only: bool) -> None:
    tokenizer = make()
    coder, long = SectionCoder(SECTIONS, tokenizer), WHOLE.replace("A visit", "A visit of the technician in the house")
    examples = [Example("a", "#Person1#: Hi.", (WHOLE,)), Example("b", "#Person1#: Ho.", (long,))]
    data = DataConfig(max_target_length=100)
    encoded = encode(examples, tokenizer, Prompt("{dialogue}"), data, decoder_only=decoder_only, sections=SECTIONS)
    assert encoded.targets_cut >= 1
    for feature in encoded.features:
        target = [label for label in feature["labels"] if label != IGNORED]
        assert target[-1] == tokenizer.eos_token_id
        assert coder.texts(target)["reason"] == TEXTS["reason"]
        assert target[: len(coder.headings[0])] == coder.headings[0]
    free = SectionCoder([section.model_copy(update={"max_tokens": None}) for section in SECTIONS], tokenizer)
    assert free.decode(free.encode(WHOLE)[0]) == WHOLE


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_the_tokenizers_of_t5_and_llama_keep_the_texts(shared_data: Path, family: str) -> None:
    [file] = (shared_data / "tokenizers" / family).iterdir()
    tokenizer = load_tokenizer(ModelConfig(config={"model_type": family}, tokenizer=str(file)))
    sections = [section.model_copy(update={"max_tokens": None}) for section in SECTIONS]
    coder, alone = SectionCoder(sections, tokenizer), tokenizer("Follow up:", add_special_tokens=False)["input_ids"]
    assert (coder.headings[1] == alone) == (family == "t5"), "only Llama has a token for a line break"
    for text in (WHOLE, 'Reason: -x, "é" 3.5\nFollow up: .\nActions: ;'):
        tokens, is_cut = coder.encode(text)
        assert coder.decode([*tokens, tokenizer.eos_token_id]) == text and not is_cut


def test_lengths_that_do_not_fit_all_headings_are_errors() -> None:
    tokenizer, example = byte_level(), Example("a", "#Person1#: Hi.", (WHOLE,))

    def encoded(longest: int) -> list[int]:
        data = DataConfig(max_target_length=longest)
        made = encode([example], tokenizer, Prompt("{dialogue}"), data, decoder_only=False, sections=SECTIONS)
        return made[0]["labels"]

    needed = SectionCoder(SECTIONS, tokenizer).shortest + 1
    message = rf"data\.max_target_length = {needed - 1}: .* and the end token take {needed} tokens"
    with pytest.raises(RecipeError, match=message) as raised:
        encoded(needed - 1)
    assert f"data.max_target_length={needed};" in str(raised.value.hint)
    assert len(encoded(needed)) == needed


def test_planned_lengths_count_the_tokens_of_training(tmp_path: Path) -> None:
    texts = ["Reason: It is cold.\nActions: Close the window.", "ACTIONS\nNone.\nREASON\nA  long   text."]
    lines = [json.dumps({"dialogue": f"A: {text}", "summary": text}) + "\n" for text in texts]
    (tmp_path / "data.jsonl").write_text("".join(lines))
    recipe = load_recipe("tiny", ["output.sections=[reason, {name: follow_up, required: false}, actions]"])
    for make in (sentencepiece, byte_level):
        tokenizer = make()
        lengths = measure(str(tmp_path / "data.jsonl"), recipe, tokenizer)
        dataset = load_dataset(
            DataConfig(source="jsonl", path=str(tmp_path), files=SplitFiles(train="data.jsonl")), recipe.output
        )
        data = recipe.data.model_copy(update={"max_target_length": 200})
        rows = encode(
            dataset["train"], tokenizer, Prompt("{dialogue}"), data, decoder_only=False, sections=recipe.output.sections
        )
        assert lengths.target == [len(row["labels"]) for row in rows.features]


def test_missing_and_unexpected_sections_are_counted_also_in_texts_without_headings() -> None:
    dialogue = "#Person1#: The line is cut.\n#Person2#: A visit on Friday."
    examples = [Example(name, dialogue, (WHOLE,)) for name in "abc"]
    references = [example.references for example in examples]
    summaries = [WHOLE, "The line is cut. A visit on Friday.", "Reason: The line is cut.\nFollow up: On Monday."]
    claims = [
        [Claim(sentence, at := summary.index(sentence), at + len(sentence), probability)]
        for summary, sentence, probability in zip(
            (WHOLE, *summaries[1:]), ("A visit", "A visit", "On Monday"), (0.5, 1.0, 0.25), strict=True
        )
    ]
    claims[2].append(Claim("The line is cut.", summaries[2].index("The line"), 24, 0.75))
    found = section_metrics(summaries, references, examples, SECTIONS, EvaluateConfig(), claims)
    assert found["outside"] == 1
    counts = {
        name: (each["references"], each["missing"], each["unexpected"]) for name, each in found["by_section"].items()
    }
    assert counts == {"reason": (3, 1, 0), "follow_up": (0, 0, 1), "actions": (3, 2, 0)}
    reason, follow_up = found["by_section"]["reason"]["scores"], found["by_section"]["follow_up"]["scores"]
    assert reason["ROUGE-1"]["value"] == pytest.approx(200 / 3, abs=1e-3) and reason["facts"]["value"] == 100
    assert follow_up["facts"]["value"] == 0, "Monday does not occur in the dialogue"
    assert reason["claims"]["value"] == 37.5, "the first summary has no claim in it"
    assert follow_up["claims"]["value"] == 25
    assert found["by_section"]["actions"]["scores"]["claims"]["value"] == 50, "claims outside the sections do not count"
    without = section_metrics(summaries, references, examples, SECTIONS, EvaluateConfig())
    assert not any("claims" in each["scores"] for each in without["by_section"].values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["output.sections=[a, A]"], "two sections have the heading 'A'"),
        (["output.sections=[{name: a, most: 3}]"], "output.sections.0.most: unknown key"),
        (["output.sections=['a:b']"], "output.sections.0.name = 'a:b'"),
        (["output.sections=[a]", "data.long=merge"], "output.sections and data.long: merge cannot be combined"),
        (["output.sections=[a]", "compile.greedy_steps=4"], "compile.greedy_steps = 4: such graphs choose the tokens"),
        (["data.columns.sections={b: c}", "output.sections=[a]"], "it must have the names of output.sections: a"),
    ],
)
def test_invalid_sections_are_errors_of_the_recipe(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe("tiny", changes)
    assert message in raised.value.message
