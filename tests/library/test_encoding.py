"""Prompts and labels: the model's actual inputs."""

import json
import random
import time
from pathlib import Path
from typing import Any

import in_process
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuron_sum.data.encoding import IGNORED, UnknownTokens, encode, unknown_tokens
from neuron_sum.data.examples import Dataset, Example
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import RecipeError
from neuron_sum.models.base import load_tokenizer
from neuron_sum.prompts import PRESETS, EncodedPrompt, Prompt
from neuron_sum.recipes.schema import DataConfig, ModelConfig, TrainedTokenizer

TEXTS = [example.dialogue for example in load_dataset(DataConfig())["validation"]]
T5 = load_tokenizer(ModelConfig(config={"model_type": "t5"}, tokenizer=TrainedTokenizer(vocab_size=400)), TEXTS)
LLAMA = load_tokenizer(ModelConfig(config={"model_type": "llama"}, tokenizer=TrainedTokenizer(vocab_size=400)), TEXTS)
COURSE = Prompt(PRESETS["course"])
EXAMPLE = Example("a", TEXTS[0], ("They meet on Friday.", "A second summary."))


def test_the_course_preset_has_the_course_text() -> None:
    assert COURSE.render("A: {x}") == "Summarize the following conversation.\n\nA: {x}\n\nSummary: "


def test_t5_gets_prompt_and_summary_separately() -> None:
    made = encode([EXAMPLE], T5, COURSE, DataConfig(), decoder_only=False)
    assert len(made) == 2
    assert T5.decode(made[0]["input_ids"], skip_special_tokens=True).startswith("Summarize the following")
    assert made[0]["input_ids"][-1] == made[0]["labels"][-1] == T5.eos_token_id
    assert T5.decode(made[1]["labels"], skip_special_tokens=True) == "A second summary."
    assert made.target_tokens == sum(len(feature["labels"]) for feature in made.features)


def test_llama_learns_the_answer_and_not_the_prompt() -> None:
    made = encode([EXAMPLE], LLAMA, COURSE, DataConfig(), decoder_only=True)
    row = {name: list(values) for name, values in made[0].items()}
    assert len(row["input_ids"]) == len(row["labels"])
    prompt_length = row["labels"].count(IGNORED)
    assert row["input_ids"][:prompt_length] == LLAMA(COURSE.render(EXAMPLE.dialogue))["input_ids"]
    assert row["input_ids"][0] == LLAMA.bos_token_id
    answer = row["labels"][prompt_length:]
    assert answer == row["input_ids"][prompt_length:]
    assert answer[-1] == LLAMA.eos_token_id
    assert LLAMA.decode(answer, skip_special_tokens=True).strip() == EXAMPLE.references[0]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dialogue=st.text(st.characters(exclude_categories=("Cs",)), max_size=400) | st.sampled_from(TEXTS),
    limit=st.integers(60, 140),
    tokenizer=st.sampled_from([T5, LLAMA]),
)
def test_a_long_dialogue_is_cut_and_the_template_is_kept(dialogue: str, limit: int, tokenizer: object) -> None:
    made = COURSE.encode(tokenizer, [dialogue], limit)[0]
    whole = tokenizer(COURSE.render(dialogue))["input_ids"]
    assert len(made.input_ids) <= limit
    assert made.truncated == (len(whole) > limit)
    if not made.truncated:
        assert made.input_ids == whole
    else:
        text = tokenizer.decode(made.input_ids, skip_special_tokens=True)
        assert text.strip().endswith("Summary:")
        assert text.startswith("Summarize the following conversation.")


def test_the_cut_keeps_as_much_as_fits() -> None:
    longest = max(TEXTS, key=len)
    whole = len(T5(COURSE.render(longest))["input_ids"])
    made = COURSE.encode(T5, [longest], whole - 5)[0]
    assert made.truncated
    assert whole - 8 <= len(made.input_ids) <= whole - 5


@pytest.mark.parametrize("tokenizer", [T5, LLAMA], ids=["t5", "llama"])
@pytest.mark.parametrize("word", ["the", "\ufdfa", "internationalization", "\u4f60\u597d", "a.b,c", "  \n"])
def test_tokenizing_only_the_start_of_a_dialogue_gives_the_same_cut(word: str, tokenizer: object) -> None:
    dialogue = " ".join(f"{word}{number % 7}" for number in range(3000))
    made = COURSE.encode(tokenizer, [dialogue, "short", dialogue[:-1]], 100)
    whole, short = COURSE._cut(tokenizer, dialogue, 100)[0], COURSE.encode(tokenizer, ["short"], 100)[0]
    assert [(each.input_ids, each.truncated) for each in made] == [
        (whole, True),
        (short.input_ids, False),
        (whole, True),
    ]


@pytest.mark.parametrize("tokenizer", [T5, LLAMA], ids=["t5", "llama"])
def test_the_time_of_a_cut_does_not_grow_with_the_dialogue(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    plain = type(tokenizer).__call__

    def counted(self: Any, text: Any, **options: Any) -> Any:
        seen.extend(map(len, [text] if isinstance(text, str) else text))
        return plain(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    for text in ("\ufdfa", "word ", "x", "\U0001f600"):
        COURSE.encode(tokenizer, [text * 1_000_000], 128)
    assert max(seen) < 5000


def test_spaces_without_tokens_do_not_cause_a_cut() -> None:
    dialogue = "#Person1#: Hello." + " " * 1500 + "#Person2#: Goodbye."
    [made] = COURSE.encode(T5, [dialogue], 64)
    assert made == EncodedPrompt(T5(COURSE.render(dialogue))["input_ids"], truncated=False)


def test_a_template_that_does_not_fit_is_rejected() -> None:
    with pytest.raises(RecipeError, match="max_source_length = 8"):
        COURSE.encode(T5, [TEXTS[0]], 8)


def test_cuts_are_counted() -> None:
    made = encode([EXAMPLE], T5, COURSE, DataConfig(max_source_length=60, max_target_length=5), decoder_only=False)
    assert (made.sources_cut, made.targets_cut) == (1, 2)
    assert all(len(feature["labels"]) == 5 and feature["labels"][-1] == T5.eos_token_id for feature in made.features)


def test_lengths_of_real_dialogsum(shared_data: Path) -> None:
    """The figures of docs/data.md, with T5's SentencePiece file."""
    tokenizer = load_tokenizer(
        ModelConfig(
            config=str(shared_data / "configs/flan-t5-small.json"),
            tokenizer=str(shared_data / "tokenizers/t5/spiece.model"),
        )
    )
    data = DataConfig(
        source="dialogsum", path=str(shared_data / "dialogsum"), max_source_length=4096, max_target_length=512
    )
    made = encode(load_dataset(data)["test"], tokenizer, COURSE, data, decoder_only=False)
    assert made.source_tokens / len(made) == pytest.approx(238.7, abs=0.05)
    assert made.target_tokens / len(made) == pytest.approx(33.1, abs=0.05)
    assert len(tokenizer("#Person1#:", add_special_tokens=False)["input_ids"]) == 6


CHINESE = Example("zh", "客服：您好，请问有什么可以帮您？\n客户：我想退货。", ("客户要求退货。",))


@pytest.mark.parametrize(("tokenizer", "decoder_only"), [(T5, False), (LLAMA, True)], ids=["t5", "llama"])
def test_unknown_tokens_are_counted_with_their_characters(tokenizer: Any, decoder_only: bool) -> None:
    def unknown(*examples: Example) -> UnknownTokens:
        made = encode(examples, tokenizer, COURSE, DataConfig(), decoder_only=decoder_only)
        return unknown_tokens(made, examples, tokenizer, decoder_only=decoder_only)

    assert unknown(EXAMPLE).count == 0
    assert unknown(EXAMPLE).warning("train") is None
    found = unknown(CHINESE)
    texts = [COURSE.render(CHINESE.dialogue), CHINESE.references[0]]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert found.count == sum(row.count(tokenizer.unk_token_id) for row in rows) > 5
    assert found.total >= sum(map(len, rows))
    assert set(found.characters) <= set(CHINESE.dialogue + CHINESE.references[0])
    assert "客" in found.characters
    assert f"tokens of test are unknown: the tokenizer lacks {' '.join(found.characters)}" in str(found.warning("test"))
    mixed = unknown(*[EXAMPLE] * 50, CHINESE)
    assert mixed.count == found.count
    assert mixed.warning("test") is None


def test_a_tokenizer_without_an_unknown_token_has_none_unknown() -> None:
    class WithoutUnknown:
        unk_token_id = None

    made = encode([CHINESE], T5, COURSE, DataConfig(), decoder_only=False)
    assert unknown_tokens(made, [CHINESE], WithoutUnknown(), decoder_only=False).count == 0


def test_the_command_data_shows_unknown_tokens_of_each_split(tmp_path: Path, micro: Path) -> None:
    row = {"dialogue": EXAMPLE.dialogue, "summary": EXAMPLE.references[0]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    other = {"dialogue": CHINESE.dialogue, "summary": CHINESE.references[0]}
    (tmp_path / "dev.jsonl").write_text(json.dumps(other, ensure_ascii=False) + "\n")
    (tmp_path / "notes.txt").touch()
    made = in_process.neuron_sum("data", str(micro), "data.source=jsonl", f"data.path={tmp_path}", "--json")
    assert made.exit_code == 0, made.stderr
    result = json.loads(made.stdout)
    assert result["unknown_tokens"]["train"]["count"] == 0
    assert result["unknown_tokens"]["validation"]["share"] > 0.05
    assert "客" in result["unknown_tokens"]["validation"]["characters"]
    assert "micro.yaml" in result["unused"] and "notes.txt" in result["unused"]
    assert "of the tokens of validation are unknown" in made.stderr


def test_a_long_summary_without_spaces_is_cut_before_it_is_tokenized() -> None:
    example = Example("a", "A: x", ("x" * 1_000_000,))
    made = encode([example], T5, COURSE, DataConfig(), decoder_only=False)
    assert made.targets_cut == 1
    assert len(made[0]["labels"]) == 128


def test_training_a_tokenizer_on_a_long_word_takes_linear_time() -> None:
    started = time.process_time()
    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=100_000))
    texts = list(Dataset({"train": (Example("a", word, ("s",)),)}, "a test", None).training_texts())
    assert max(len(word) for text in texts for word in text.split()) == 500
    tokenizer = load_tokenizer(
        ModelConfig(config={"model_type": "t5"}, tokenizer=TrainedTokenizer(vocab_size=400)), texts
    )
    assert len(tokenizer) == 400
    assert time.process_time() - started < 10
    short = Dataset({"train": (EXAMPLE,)}, "a test", None)
    assert list(short.training_texts()) == [EXAMPLE.dialogue, *EXAMPLE.references]
