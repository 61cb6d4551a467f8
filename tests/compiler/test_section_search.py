"""Sections in the search: every answer has all headings, and the other tokens are those of the model."""

import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from section_models import (
    ENDS,
    SECTIONS,
    SOURCE_LEN,
    TARGET_LEN,
    WORDS,
    both_generators,
    byte_level,
    sentencepiece,
    word_tokenizer,
)
from transformers import PreTrainedTokenizerFast

from compile.graphs.selection import candidates, select
from neuron_sum.errors import RecipeError
from neuron_sum.recipes.schema import GenerateConfig, SectionConfig
from neuron_sum.runtimes.base import Candidates, until_end
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.runtimes.search import Counts, search
from neuron_sum.runtimes.sections import SectionRules, State
from neuron_sum.sections import SectionCoder, parse_sections

MADE = {"words": word_tokenizer, "sentencepiece": sentencepiece, "byte-level": byte_level}
STEPS = 40
SETTINGS: list[dict[str, Any]] = [
    {},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 25},
    {"length_penalty": 0.4, "early_stopping": True, "max_new_tokens": 20},
    {"max_new_tokens": 11},
]


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return MADE[name]()


@cache
def generators(family: str) -> tuple[TransformersGenerator, StepGenerator]:
    return both_generators(family, SECTIONS)


def prompts(count: int) -> list[list[int]]:
    numbers = random.Random(1)
    return [numbers.choices(range(3, len(WORDS)), k=numbers.randint(2, SOURCE_LEN)) for _ in range(count)]


class RandomSession:
    """Logits that depend on the example, the last token and the number of tokens, so that no search repeats itself.

    Args:
        table: (steps, vocabulary, vocabulary).
        examples: Number of examples.
        beams: Number of beams.
        count: Number of candidates.
    """

    greedy = None

    def __init__(self, table: torch.Tensor, examples: int, beams: int, count: int) -> None:
        self._table, self._count, self._at = table, count, 0
        self.start = np.arange(examples)[:, None].repeat(beams, axis=1) + 3

    def step(self, tokens: np.ndarray, rows: np.ndarray) -> Candidates:
        places = self.place(tokens, np.arange(len(tokens))[:, None])
        values, ids, log_sum, logits = select(self._table[self._at][torch.from_numpy(places)], self._count)
        self._at += 1
        return Candidates(values.numpy(), ids.numpy(), log_sum.numpy(), logits.shape[-1], logits.numpy)

    def place(self, tokens: Any, examples: Any) -> Any:
        return (tokens + 5 * examples) % self._table.shape[1]


def made_table(vocabulary: int, ends: list[int], favored: list[int]) -> torch.Tensor:
    """Random logits in which end tokens and the tokens of headings are frequent."""
    table = torch.randn(STEPS, vocabulary, vocabulary, generator=torch.Generator().manual_seed(5)) * 2
    table[..., ends] += 3
    table[..., favored] += 2
    return table


def assert_valid(coder: SectionCoder, tokens: list[int], settings: GenerateConfig, ends: list[int]) -> dict[str, str]:
    texts = coder.texts(tokens)
    parsed = parse_sections(coder.decode(tokens), coder.sections)
    assert parsed.texts == texts and not parsed.outside and parsed.found == tuple(texts)
    assert not parsed.missing(coder.sections)
    assert len(tokens) <= settings.max_new_tokens
    assert not set(tokens[:-1]) & set(ends)
    return texts


@pytest.mark.parametrize("asked", SETTINGS)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", MADE)
def test_every_answer_has_all_sections(name: str, beams: int, asked: dict[str, Any]) -> None:
    tokenizer = tokenizer_of(name)
    coder, ends = SectionCoder(SECTIONS, tokenizer), ENDS if name == "words" else [tokenizer.eos_token_id]
    most = max(asked.get("max_new_tokens", STEPS), coder.shortest)
    settings = GenerateConfig.model_validate({**asked, "max_new_tokens": most, "num_beams": beams})
    table = made_table(len(tokenizer), ends, [token for heading in coder.headings for token in heading])
    found = {}
    for count in (candidates(beams), len(tokenizer)):
        session = RandomSession(table, 8, beams, count)
        rules = SectionRules(coder, ends, settings)
        found[count] = search(session, session.start[:, :1], ends, settings, Counts(), rules)
    assert found[candidates(beams)] == found[len(tokenizer)], "the same with all logits"
    answers = [assert_valid(coder, tokens, settings, ends) for tokens in found[len(tokenizer)]]
    if most > coder.shortest + 10:
        assert len({texts["reason"] for texts in answers}) > 3


@pytest.mark.parametrize("name", MADE)
def test_where_nothing_is_forced_the_tokens_are_those_of_greedy_search_with_the_same_prefix(name: str) -> None:
    tokenizer = tokenizer_of(name)
    coder, ends = SectionCoder(SECTIONS, tokenizer), [tokenizer.eos_token_id]
    settings = GenerateConfig(max_new_tokens=STEPS)
    table = made_table(len(tokenizer), ends, [token for heading in coder.headings for token in heading])
    session = RandomSession(table, 8, 1, candidates(1))
    rules = SectionRules(coder, ends, settings)
    free = forced = ended = 0
    for example, row in enumerate(search(session, session.start, ends, settings, Counts(), rules)):
        state, last = State(), example + 3
        for at, token in enumerate(row):
            logits = table[at, session.place(last, example)]
            rule, best = rules.allowed(state, at), int(logits.argmax())
            if rule.forced is not None:
                assert token == rule.forced
                forced += 1
            elif best in ends and rule.end_as is not None:
                assert token == rule.end_as
                ended += 1
            elif best not in rule.banned:
                assert token == best
                free += 1
            replaces = rule.end_as is not None and bool(logits[ends].max() >= logits[rule.end_as])
            state, last = rules.after(state, token, replaces_end=replaces), token
    assert free > 40 and forced > 20 and ended >= 3


def test_an_optional_section_may_be_empty_and_a_required_one_may_not() -> None:
    tokenizer = tokenizer_of("words")
    coder = SectionCoder(SECTIONS, tokenizer)
    table = torch.zeros(STEPS, len(WORDS), len(WORDS))
    table[..., 1], table[..., WORDS.index("w5")] = 2.0, 1.0  # the end token is always the most probable
    for beams in (1, 3):
        settings = GenerateConfig(max_new_tokens=STEPS, num_beams=beams)
        session = RandomSession(table, 1, beams, candidates(beams))
        [row] = search(session, session.start[:, :1], [1], settings, Counts(), SectionRules(coder, [1], settings))
        assert coder.decode(row) == "Reason: w5\nFollow up:\nActions: w5"


def test_a_model_that_writes_the_next_heading_begins_that_section() -> None:
    tokenizer = tokenizer_of("words")
    coder, settings = SectionCoder(SECTIONS, tokenizer), GenerateConfig(max_new_tokens=STEPS)
    rules, written = SectionRules(coder, [1], settings), "w1 Follow w2 Follow Follow up : w3 Actions w4"
    state = State(heading=len(coder.headings[0]))
    for token in tokenizer(written, add_special_tokens=False)["input_ids"]:
        state = rules.after(state, token, replaces_end=False)
    assert (state.section, state.length, state.matched) == (1, 3, 0)
    tokens = [*coder.headings[0], *tokenizer(written, add_special_tokens=False)["input_ids"]]
    assert coder.texts(tokens) == {"reason": "w1 Follow w2 Follow", "follow_up": "w3 Actions w4", "actions": ""}


def test_too_few_tokens_for_the_headings_are_an_error() -> None:
    coder = SectionCoder(SECTIONS, tokenizer_of("words"))
    with pytest.raises(RecipeError, match=r"max_new_tokens = 8: .* take 9 tokens"):
        SectionRules(coder, [1], GenerateConfig(max_new_tokens=8))


@pytest.mark.parametrize("asked", SETTINGS)
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_graphs_and_transformers_generate_the_same_sections(family: str, num_beams: int, asked: dict[str, Any]) -> None:
    expected, actual = generators(family)
    settings = GenerateConfig.model_validate({"max_new_tokens": TARGET_LEN, "num_beams": num_beams, **asked})
    given = prompts(6)
    together = actual.generate(given, settings)
    assert together == [actual.generate([prompt], settings)[0] for prompt in given]
    # Padding is a part of the n-grams that transformers compares.
    step = 1 if settings.no_repeat_ngram_size else 3
    assert together == [row for at in range(0, 6, step) for row in expected.generate(given[at : at + step], settings)]
    assert actual.sections is not None
    for row in together:
        assert_valid(actual.sections, row, settings, ENDS)
    assert len({tuple(row) for row in together}) > 3


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_prompt_that_joins_a_running_batch_gets_the_same_sections(family: str, num_beams: int) -> None:
    _, generator = generators(family)
    settings, given = GenerateConfig(max_new_tokens=TARGET_LEN, num_beams=num_beams), prompts(9)
    alone = [generator.generate([prompt], settings)[0] for prompt in given]
    batch = generator.roll(settings)
    assert batch is not None
    tickets: dict[int, int] = {}
    results, joined = dict[int, list[int]](), 0
    while joined < len(given) or batch.running:
        if size := batch.room(len(given) - joined):
            size = min(size, 2)
            numbers = batch.join(given[joined : joined + size], [None] * size)
            tickets.update(zip(numbers, range(joined, joined + size), strict=True))
            joined += size
        results.update((tickets[number], tokens) for number, tokens in batch.step())
    assert [results[index] for index in range(len(given))] == alone


def test_without_sections_the_tokens_are_unchanged() -> None:
    for family in ("t5", "llama"):
        expected, actual = both_generators(family, ())
        settings, given = GenerateConfig(max_new_tokens=TARGET_LEN), prompts(4)
        rows = actual.generate(given, settings)
        assert rows == expected.generate(given, settings) == [until_end(row, ENDS) for row in rows]


def test_the_vocabulary_is_decoded_before_the_first_request() -> None:
    _, generator = both_generators("t5", SECTIONS)
    assert generator.sections is not None and "blank" not in vars(generator.sections)
    generator.warm_up()
    assert "blank" in vars(generator.sections)


def test_the_first_token_of_a_summary_is_scored_without_headings() -> None:
    expected, actual = generators("t5")
    given = prompts(3)
    np.testing.assert_allclose(expected.first_logits(given, [4, 9]), actual.first_logits(given, [4, 9]), atol=1e-4)


def test_max_tokens_limit_each_text() -> None:
    sections = [SectionConfig(name="reason", max_tokens=1), SectionConfig(name="actions", max_tokens=2)]
    coder = SectionCoder(sections, tokenizer_of("words"))
    table = torch.zeros(STEPS, len(WORDS), len(WORDS))
    table[..., WORDS.index("w5")] = 1.0
    settings = GenerateConfig(max_new_tokens=STEPS)
    session = RandomSession(table, 1, 1, candidates(1))
    [row] = search(session, session.start, [1], settings, Counts(), SectionRules(coder, [1], settings))
    assert coder.decode(row) == "Reason: w5\nActions: w5 w5" and row[-1] == 1
