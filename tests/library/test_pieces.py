"""Pieces of long dialogues, and the rounds in which they are summarized."""

import json
import re
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuron_sum.data.encoding import encode
from neuron_sum.data.examples import Example
from neuron_sum.data.long_rows import match_sentences, training_rows
from neuron_sum.data.pieces import SPEAKER, Splitter, _boundaries
from neuron_sum.data.rounds import Rounds, open_rounds
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError, RecipeError
from neuron_sum.evaluation.generate import summarize_all
from neuron_sum.models.base import load_tokenizer
from neuron_sum.monitoring.watch import read_statistics
from neuron_sum.prompts import PRESETS, Prompt, coverage, turns_of
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import DataConfig, ModelConfig, TrainedTokenizer
from neuron_sum.training.train import train

TEXTS = [example.dialogue for example in load_dataset(DataConfig())["validation"]]
T5 = load_tokenizer(ModelConfig(config={"model_type": "t5"}, tokenizer=TrainedTokenizer(vocab_size=400)), TEXTS)
LLAMA = load_tokenizer(ModelConfig(config={"model_type": "llama"}, tokenizer=TrainedTokenizer(vocab_size=400)), TEXTS)
COURSE = Prompt(PRESETS["course"])
LENGTH = 120
MERGE = DataConfig(long="merge", max_source_length=LENGTH)
TOKENIZERS = pytest.mark.parametrize("tokenizer", [T5, LLAMA], ids=["t5", "llama"])


def characters(text: str) -> str:
    return "".join(text.split())


def without_speakers(lines: Sequence[str], turn: str) -> str:
    """The text of the parts of a turn, with its speaker once."""
    speaker = found[0] if (found := SPEAKER.match(turn)) else ""
    return "".join([lines[0], *(line.removeprefix(speaker) for line in lines[1:])])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    turns=st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=500) | st.sampled_from(TEXTS),
        min_size=1,
        max_size=6,
    ),
    tokenizer=st.sampled_from([T5, LLAMA]),
)
def test_pieces_fit_and_drop_nothing(turns: list[str], tokenizer: Any) -> None:
    dialogue = "\n".join(turns)
    pieces = Splitter(COURSE, tokenizer, LENGTH).split(dialogue)
    expected = turns_of(dialogue)
    assert all(len(piece.prompt.input_ids) <= LENGTH and not piece.prompt.truncated for piece in pieces)
    assert {number for piece in pieces for number in piece.turns} == set(range(max(len(expected), 1)))
    rest = characters("".join(expected))
    for line in "\n".join(piece.text for piece in pieces).split("\n"):
        text = characters(line)
        if not rest.startswith(text) and (speaker := SPEAKER.match(line)) is not None:
            text = text.removeprefix(characters(speaker[0]))
        assert rest.startswith(text)
        rest = rest[len(text) :]
    assert not rest


@TOKENIZERS
def test_a_split_is_between_turns_and_pieces_have_about_the_same_length(tokenizer: Any) -> None:
    turns = [f"#Person{number % 2 + 1}#: This is turn number {number}." for number in range(60)]
    pieces = Splitter(COURSE, tokenizer, LENGTH).split("\n".join(turns))
    assert [line for piece in pieces for line in piece.text.split("\n")] == turns
    assert len(pieces) > 3
    lengths = [len(piece.prompt.input_ids) for piece in pieces]
    assert min(lengths) > 0.6 * max(lengths)
    assert sorted(number for piece in pieces for number in piece.turns) == list(range(60))


@TOKENIZERS
@pytest.mark.parametrize(
    "speaker", ["#Person1#: ", "#Person1#:", "Anna Hill: ", "[doctor] ", "Dr. Lee: ", "Anna\uff1a"]
)
def test_parts_of_a_turn_carry_the_speaker_and_end_with_sentences(tokenizer: Any, speaker: str) -> None:
    sentences = [f"The {word} comes at {word}." for word in ("train", "letter", "doctor", "cake") * 10]
    turn = speaker + " ".join(sentences)
    parts = [piece.text for piece in Splitter(COURSE, tokenizer, LENGTH).split(turn)]
    assert len(parts) > 2 and all(part.startswith(speaker) and part.endswith(".") for part in parts)
    assert without_speakers(parts, turn).replace(".The", ". The") == turn


@TOKENIZERS
def test_a_sentence_and_a_word_that_are_too_long_are_split(tokenizer: Any) -> None:
    for text in ("word " * 400, "x" * 2000, "\ufdfa" * 300, "a " + "b" * 900 + " c"):
        pieces = Splitter(COURSE, tokenizer, LENGTH).split(f"#Person1#: {text}")
        assert all(piece.text.startswith("#Person1#: ") and not piece.prompt.truncated for piece in pieces)
        spoken = "".join(piece.text.replace("#Person1#: ", "") for piece in pieces)
        assert characters(spoken) == characters(text)


@TOKENIZERS
def test_time_and_tokens_grow_in_proportion(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = type(tokenizer).__call__

    def counted(self: Any, text: Any, **options: Any) -> Any:
        seen.extend(map(len, [text] if isinstance(text, str) else text))
        return plain(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    work = []
    for count in (200, 800):
        seen.clear()
        Splitter(COURSE, tokenizer, LENGTH).split("\n".join(f"#Person1#: Turn {n} is here." for n in range(count)))
        work.append(sum(seen))
    assert work[1] < 5 * work[0]


def test_the_time_of_a_split_does_not_depend_on_the_text() -> None:
    started = time.process_time()
    for text in ("A. " * 33_000, "</s>" * 24_000, "[a] " + "b" * 90_000, ". " * 40_000, "." + " " * 90_000 + "x"):
        pieces = Splitter(COURSE, T5, LENGTH).split(text)
        assert not any(piece.prompt.truncated for piece in pieces)
    assert time.process_time() - started < 60


def test_a_run_of_unknown_characters_is_a_few_pieces(shared_data: Path) -> None:
    source = str(shared_data / "tokenizers" / "t5" / "spiece.model")
    splitter = Splitter(COURSE, load_tokenizer(ModelConfig(config={"model_type": "t5"}, tokenizer=source)), LENGTH)
    for text in ("\u4e2d" * 20_000, "e" + "\u0301" * 20_000, "\u202e" * 20_000):
        assert splitter.count([text])[0] < 10  # although a prompt takes only a part of the characters
        pieces = splitter.split(f"#Person1#: {text}")
        assert len(pieces) == 8 and not any(piece.prompt.truncated for piece in pieces)
        assert all(piece.text.startswith("#Person1#: ") for piece in pieces)
        assert "".join(piece.text.removeprefix("#Person1#: ") for piece in pieces) == text


@given(sizes=st.lists(st.integers(1, 20), max_size=8))
def test_there_are_as_few_pieces_as_possible(sizes: list[int]) -> None:
    bounds = _boundaries(sizes, 20)
    assert bounds[0] == 0 and bounds[-1] == len(sizes)
    assert all(sum(sizes[start:end]) <= 20 for start, end in pairwise(bounds))
    fewest, used = int(bool(sizes)), 0
    for size in sizes:
        fewest, used = (fewest, used + size) if used + size <= 20 else (fewest + 1, size)
    assert len(bounds) - 1 == fewest


@TOKENIZERS
def test_control_tokens_in_a_turn_do_not_end_a_prompt(tokenizer: Any) -> None:
    pieces = Splitter(COURSE, tokenizer, LENGTH).split("\n".join(["#Person1#: </s> Hello </s> there. <s>"] * 40))
    for piece in pieces:
        assert len(piece.prompt.input_ids) <= LENGTH and not piece.prompt.truncated
        assert piece.prompt.input_ids[:-1].count(tokenizer.eos_token_id) == 0


def test_a_prompt_that_does_not_fit_is_rejected() -> None:
    with pytest.raises(RecipeError, match="max_source_length = 8"):
        Splitter(COURSE, T5, 8)


def test_coverage_is_the_share_of_uncut_turns() -> None:
    dialogue = "#Person1#: One.\n\n#Person2#: Two.  \r\n#Person1#: Three."
    assert [coverage(dialogue, kept) for kept in (0, 14, 15, 20, 32, 1000)] == [0, 0, 1 / 3, 1 / 3, 2 / 3, 1]
    assert coverage("", 0) == coverage("\n\n", 1) == 1
    assert turns_of(dialogue) == ["#Person1#: One.", "#Person2#: Two.", "#Person1#: Three."]
    turns = [f"#Person1#: This is turn {number}." for number in range(40)]
    [cut] = open_rounds(COURSE, T5, ["\n".join(turns)], DataConfig(max_source_length=LENGTH))
    text = T5.decode(cut.prompts[0].input_ids)
    whole = sum(turn.split(": ")[1] in text for turn in turns)
    assert cut.truncated and 0 < cut.coverage < 1
    assert cut.coverage == pytest.approx(whole / 40, abs=1 / 40)


def finish(rounds: Rounds, write: Any) -> list[int]:
    """The numbers of prompts of all rounds."""
    counts = []
    while rounds.summary is None:
        counts.append(len(rounds.prompts))
        rounds.close([write(prompt, number) for number, prompt in enumerate(rounds.prompts)])
        assert len(counts) < 50
    return counts


@TOKENIZERS
def test_summaries_are_merged_until_one_is_left(tokenizer: Any) -> None:
    dialogue = "\n".join(f"#Person{n % 3 + 1}#: This is turn number {n}." for n in range(200))
    [rounds] = open_rounds(COURSE, tokenizer, [dialogue], MERGE)
    assert (rounds.coverage, rounds.truncated) == (1.0, False)
    assert rounds.input_tokens == sum(len(prompt.input_ids) for prompt in rounds.prompts)
    first = len(rounds.prompts)
    counts = finish(rounds, lambda _, number: f"#Person1# says {number}.")
    assert counts[0] == first > counts[1] and counts[-1] == 1 and counts == sorted(counts, reverse=True)
    assert rounds.summary == "#Person1# says 0."
    assert rounds.number == len(counts)


@TOKENIZERS
def test_the_prompts_of_a_merge_contain_every_summary(tokenizer: Any) -> None:
    [rounds] = open_rounds(COURSE, tokenizer, ["\n".join(TEXTS)], MERGE)
    summaries = [f"They talk about thing {number}." for number in range(len(rounds.prompts))]
    rounds.close(summaries)
    text = re.sub(r"\s", "", "".join(tokenizer.decode(prompt.input_ids) for prompt in rounds.prompts))
    assert all(characters(summary) in text for summary in summaries)


@TOKENIZERS
@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda _, n: "", ""),
        (lambda _, n: "Only one." if n == 1 else " ", "Only one."),
        (lambda _, n: f"{n} " + "word " * 200, None),
        (lambda prompt, n: f"line {n}\nof two " * 9, None),
    ],
)
def test_merging_always_ends(tokenizer: Any, write: Any, expected: str | None) -> None:
    [rounds] = open_rounds(COURSE, tokenizer, ["\n".join(TEXTS)], MERGE)
    count = len(rounds.prompts)
    finish(rounds, write)
    if expected is not None:
        assert rounds.summary == expected
    else:  # summaries of which no two fit into a prompt are not dropped
        assert str(rounds.summary).count("\n") == count - 1


def test_short_enough_summaries_are_the_answer() -> None:
    [rounds] = open_rounds(COURSE, T5, ["\n".join(TEXTS[:4])], MERGE.model_copy(update={"merge_until": 500}))
    count = len(rounds.prompts)
    assert finish(rounds, lambda _, number: f"Summary {number}.") == [count]
    assert rounds.summary == "\n".join(f"Summary {number}." for number in range(count))


def test_short_dialogues_are_summarized_as_before() -> None:
    short = "#Person1#: Hello."
    prompt = COURSE.encode(T5, [short], LENGTH)
    for long in ("truncate", "refuse", "merge"):
        [rounds] = open_rounds(COURSE, T5, [short], DataConfig(long=long, max_source_length=LENGTH))
        assert rounds.prompts == prompt
        rounds.close(["A\nsummary. "])
        assert (rounds.summary, rounds.coverage) == ("A\nsummary. ", 1.0)


def test_refuse_names_the_dialogues_that_do_not_fit() -> None:
    refuse = DataConfig(long="refuse", max_source_length=LENGTH)
    long = "\n".join(TEXTS[:4])
    with pytest.raises(DataError, match=r"the dialogue has [\d,]+ tokens with the prompt; data.long=refuse allows 120"):
        open_rounds(COURSE, T5, [long], refuse)
    with pytest.raises(DataError, match=r"1 of 2 dialogues have more than 120 tokens .*: b \(the first has") as error:
        open_rounds(COURSE, T5, ["short", long], refuse, ["a", "b"])
    assert "data.long=merge" in error.value.hint
    with pytest.raises(DataError, match=r"has [\d,]{3,} tokens") as error:  # each is encoded as several tokens
        open_rounds(COURSE, T5, ["</s>" * 60], refuse)
    assert int(error.value.message.split()[3].replace(",", "")) > LENGTH


FACTS = ("The train to Leeds leaves at nine.", "A red car is parked outside.", "Lunch costs twelve euros.")


def test_a_sentence_of_the_reference_belongs_to_the_piece_that_contains_it() -> None:
    pieces = ["#Person1#: Lunch costs twelve euros today.", "#Person2#: The train leaves at nine.", "#Person1#: Bye."]
    assert match_sentences(pieces, FACTS) == [[1, 2], [0], []]  # what matches nothing belongs to the first


@TOKENIZERS
def test_a_long_row_becomes_pieces_and_merges(tokenizer: Any) -> None:
    filler = "\n".join(f"#Person1#: Turn {number} has no news." for number in range(12))
    dialogue = "\n".join(f"#Person2#: {fact}\n{filler}" for fact in FACTS)
    reference = " ".join(FACTS)
    examples = [Example("short", "#Person1#: Hello.", ("A greeting.",)), Example("long", dialogue, (reference,))]
    rows = training_rows(examples, tokenizer, COURSE, MERGE)
    assert rows.examples[0] is examples[0] and rows.long == 1
    parts, merges = rows.examples[1 : 1 + rows.pieces], rows.examples[1 + rows.pieces :]
    assert [example.references for example in parts] == [(fact,) for fact in FACTS]
    assert all(example.references[0] in example.dialogue for example in parts)
    assert len(merges) == rows.merges > 0
    assert merges[-1].references == (reference,)
    if rows.merges == 1:
        assert merges[0].dialogue == "\n".join(FACTS)
    assert len({example.id for example in rows.examples}) == len(rows.examples)
    made = encode(rows.examples, tokenizer, COURSE, MERGE, decoder_only=tokenizer is LLAMA)
    assert (len(made), made.sources_cut) == (len(rows.examples), 0)
    assert "1 long dialogues are 3 pieces and" in str(rows.note())


def test_other_line_breaks_in_a_reference_do_not_shift_its_sentences() -> None:
    filler = "\n".join(f"#Person1#: Turn {number} has no news." for number in range(12))
    dialogue = "\n".join(f"#Person2#: {fact}\n{filler}" for fact in FACTS)
    for mark in "\r\x0b\x0c\x85\u2028":
        reference = " ".join(fact.replace(" ", mark, 2) for fact in FACTS)
        rows = training_rows([Example("long", dialogue, (reference,))], T5, COURSE, MERGE)
        assert [example.references for example in rows.examples[:3]] == [(fact,) for fact in FACTS]
        assert rows.merges > 0 and rows.examples[-1].references == (reference,)


def test_a_model_is_trained_on_pieces_and_merges(tmp_path: Path) -> None:
    filler = "\n".join(f"#Person1#: Turn {number} has no news." for number in range(12))
    for split, count in (("train", 3), ("validation", 1)):
        rows = [
            {
                "dialogue": "\n".join(f"#Person2#: {split} {n}: {fact}\n{filler}" for fact in FACTS),
                "summary": " ".join(FACTS),
            }
            for n in range(count)
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["data.source=jsonl", f"data.path={tmp_path}", "data.long=merge", "train.max_steps=1"]
    run = train(load_recipe("tiny", settings), tmp_path / "run")
    results, statistics = run.read_results(), read_statistics(run)
    assert results["sources_cut"] == 0
    assert results["train_examples"] > 6 and results["examples"]["train"]["used"] == 3
    assert (statistics.dialogues, statistics.truncated) == (3, 3)


def test_other_settings_change_no_row() -> None:
    example = Example("long", "\n".join(TEXTS), ("A summary.",))
    truncated = training_rows([example], T5, COURSE, DataConfig(max_source_length=LENGTH))
    assert (truncated.examples, truncated.note()) == ((example,), None)
    with pytest.raises(DataError, match="the dialogue has"):
        training_rows([example], T5, COURSE, DataConfig(max_source_length=LENGTH, long="refuse"))


class Writer:
    """A generator that records its batches and writes the number of the batch."""

    ends, batch_size = (1,), 4

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def generate(self, prompts: Sequence[Sequence[int]], settings: Any) -> list[list[int]]:
        self.batches.append([len(prompt) for prompt in prompts])
        return [[*T5(f"Batch {len(self.batches)}.", add_special_tokens=False)["input_ids"], 1] for _ in prompts]


def test_dialogues_are_finished_one_after_another_and_kept(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", ["prompt.preset=course", "data.long=merge", f"data.max_source_length={LENGTH}"])
    dialogues = ["#Person1#: Hello.", "\n".join(TEXTS[:3]), "\n".join(TEXTS[3:6])]
    writer, partial = Writer(), tmp_path / "partial.jsonl"
    made = summarize_all(writer, T5, recipe, ["a", "b", "c"], dialogues, partial, quiet=True)  # type: ignore[arg-type]
    assert [each.coverage for each in made] == [1, 1, 1] and not any(each.truncated for each in made)
    assert sum(map(len, writer.batches)) > 8 and max(map(len, writer.batches)) == 4
    kept = [json.loads(line)["id"] for line in partial.read_text().splitlines()]
    assert kept[0] in ("b", "c") and set(kept) == {"a", "b", "c"}
    assert made[1].input_tokens is not None and made[1].input_tokens > 2 * LENGTH
    again = Writer()
    lines = partial.read_text().splitlines()
    partial.write_text("".join(f"{line}\n" for line in lines[:1]))
    repeated = summarize_all(again, T5, recipe, ["a", "b", "c"], dialogues, partial, quiet=True)  # type: ignore[arg-type]
    assert {each.id for each in repeated} == {"a", "b", "c"}
    assert sum(map(len, again.batches)) < sum(map(len, writer.batches))


@pytest.mark.parametrize("cut", ["piece", "merge", "short", "none"])
def test_a_summary_that_ends_at_the_limit_is_reported_in_every_round(cut: str) -> None:
    """What the summary of a piece lacks is also missing in the merged summary."""
    recipe = load_recipe("tiny", ["prompt.preset=course", "data.long=merge", f"data.max_source_length={LENGTH}"])

    class Cut(Writer):
        def generate(self, prompts: Sequence[Sequence[int]], settings: Any) -> list[list[int]]:
            texts = [T5.decode(prompt) for prompt in prompts]
            kinds = ["merge" if "Batch" in text else "short" if "Qqq" in text else "piece" for text in texts]
            rows = super().generate(prompts, settings)
            return [row[:-1] if kind == cut else row for row, kind in zip(rows, kinds, strict=True)]

    dialogues = ["#Person1#: Qqq.", "\n".join(TEXTS[:3])]
    made = summarize_all(Cut(), T5, recipe, ["a", "b"], dialogues, quiet=True)  # type: ignore[arg-type]
    assert [each.hit_limit for each in made] == [cut == "short", cut in ("piece", "merge")]
