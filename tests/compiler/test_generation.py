"""Static graphs and the loop over them generate the tokens of transformers; broken graphs do not."""

import copy
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from micro_models import LLAMA_CONFIG, MICRO
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from compile.graphs import kv_cache, llama, t5
from compile.graphs.buckets import bucket_graphs
from compile.graphs.layers import GraphOptions
from compile.graphs.static import StepGraph, eager_runtime, graph_module, static_model, weights
from compile.targets import attention
from neuron_sum.artifact import Bucket, SpecialTokens
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ArtifactError
from neuron_sum.models.base import is_decoder_only
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.trained import load_trained
from neuron_sum.runtimes.base import Generator
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.graphs import GraphRuntime
from neuron_sum.runtimes.hugging_face import TransformersGenerator
from neuron_sum.training.train import train

SOURCE_LEN, TARGET_LEN = 160, 24
NEAR_TIE = 1e-4
FAMILIES = ("t5-tied-relu", "t5-untied-gated", "llama")


@dataclass(frozen=True)
class Case:
    """A trained tiny model, in both forms, and real prompts."""

    model: PreTrainedModel
    runtime: GraphRuntime
    expected: TransformersGenerator
    prompts: list[list[int]]

    @property
    def actual(self) -> StepGenerator:
        return StepGenerator(self.runtime)


def eager(
    model: PreTrainedModel, source_len: int, target_len: int, batches: Sequence[int] = (1, 3, 8), **options: Any
) -> GraphRuntime:
    config = model.config
    static = static_model(config, GraphOptions(source_len=source_len, target_len=target_len, **options))
    tokens = SpecialTokens(
        pad=config.pad_token_id,
        ends=(config.eos_token_id,),
        decoder_start=None if is_decoder_only(config) else config.decoder_start_token_id,
    )
    buckets = [
        Bucket(batch=batch, source_len=length, target_len=target_len)
        for batch in batches
        for length in (source_len // 2, source_len)
    ]
    return eager_runtime(static, weights(static, model.state_dict()), buckets, (1, 2, 4), tokens)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """One of each family, trained until its summaries end with the end token."""
    recipe_file = tmp_path_factory.mktemp("families") / "micro.yaml"
    recipe_file.write_text(MICRO)
    config = {"num_layers": 2, "num_decoder_layers": 2}
    two_layers = [f"model.config.{key}={value}" for key, value in config.items()]
    overrides = {
        "t5-tied-relu": [*two_layers, "model.config.tie_word_embeddings=true", "model.config.feed_forward_proj=relu"],
        "t5-untied-gated": [*two_layers, "model.config.tie_word_embeddings=false"],
        "llama": [f"model.config={LLAMA_CONFIG}", "prompt.preset=tinyllama-chat"],
    }
    made = {}
    for name, changes in overrides.items():
        recipe = load_recipe(
            str(recipe_file), [*changes, "train.max_steps=80", "train.learning_rate=5e-3", "train.logging_steps=40"]
        )
        train(recipe, recipe_file.parent / name)
        model, tokenizer = load_trained(open_run(recipe_file.parent / name))
        made[name] = Case(
            model,
            eager(model, SOURCE_LEN, TARGET_LEN),
            TransformersGenerator(model, tokenizer, 8),
            real_prompts(recipe.prompt.resolve(), tokenizer),
        )
    return made


def real_prompts(prompt: Any, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """The sample's test dialogues, cut at many lengths."""
    dialogues = [example.dialogue for example in load_dataset(load_recipe("tiny").data)["test"]]
    cut = [dialogue[: 40 + 17 * index] for index, dialogue in enumerate(dialogues)]
    return [entry.input_ids for entry in prompt.encode(tokenizer, cut, SOURCE_LEN)]


def near_tie(case: Case, prompt: list[int], asked: GenerateConfig, one: list[int], other: list[int]) -> bool:
    """Whether transformers scores both nearly equally, so that rounding decides; greedy: the first differing token."""
    if asked.num_beams == 1:
        end = next(i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]) + 1
        one, other = one[:end], other[:end]
    return abs(_score(case.model, prompt, one) - _score(case.model, prompt, other)) < NEAR_TIE


def _score(model: PreTrainedModel, prompt: list[int], row: list[int]) -> float:
    """Sum of log-probabilities."""
    with torch.inference_mode():
        if is_decoder_only(model.config):
            logits = model(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1]
        else:
            logits = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([row])).logits[0]
    return float(torch.log_softmax(logits, -1).gather(1, torch.tensor(row)[:, None]).sum())


def compared(
    case: Case, prompts: list[list[int]], asked: GenerateConfig, generator: Generator | None = None
) -> Counter[str]:
    """The number of rows that match transformers, that are near ties, and that differ."""
    expected, actual = case.expected.generate(prompts, asked), (generator or case.actual).generate(prompts, asked)
    return Counter(
        "equal" if one == other else "near tie" if near_tie(case, prompt, asked, one, other) else "different"
        for prompt, one, other in zip(prompts, expected, actual, strict=True)
    )


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_those_of_transformers(cases: dict[str, Case], family: str, num_beams: int, batch: int) -> None:
    case = cases[family]
    asked = GenerateConfig(num_beams=num_beams, max_new_tokens=TARGET_LEN)
    prompts = case.prompts[:24]
    assert {len(row) for row in case.expected.generate(prompts, asked)} != {TARGET_LEN}, "no summary ends by itself"
    seen = sum(
        (compared(case, prompts[start : start + batch], asked) for start in range(0, len(prompts), batch)), Counter()
    )
    assert seen["different"] == 0
    assert seen["near tie"] <= 1, seen


@pytest.mark.parametrize("num_beams", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_of_several_end_tokens_ends_a_summary(
    cases: dict[str, Case], family: str, num_beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, asked = cases[family], GenerateConfig(num_beams=num_beams, max_new_tokens=TARGET_LEN)
    eos = case.model.config.eos_token_id
    before = case.expected.generate(case.prompts[:8], asked)
    frequent = [token for token, _ in Counter(token for row in before for token in row[2:]).most_common(4)]
    monkeypatch.setattr(case.model.config, "eos_token_id", [eos, *(token for token in frequent if token != eos)][:3])
    ends = tuple(case.expected.ends)
    runtime = replace(case.runtime, tokens=case.runtime.tokens.model_copy(update={"ends": ends}))
    seen = compared(case, case.prompts[:8], asked, StepGenerator(runtime))
    assert seen["different"] == 0
    assert seen["near tie"] <= 1, seen
    rows = StepGenerator(runtime).generate(case.prompts[:8], asked)
    assert {row[-1] for row in rows} & set(ends[1:]), "no summary ends with another end token"
    assert all(token not in ends for row in rows for token in row[:-1])


@pytest.mark.parametrize("write", [kv_cache.write_where, kv_cache.write_scatter])
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_cache_writes_and_products_generate_the_same_tokens(
    cases: dict[str, Case], family: str, num_beams: int, write: Callable[..., torch.Tensor]
) -> None:
    case = cases[family]
    other = eager(case.model, SOURCE_LEN, TARGET_LEN, (3,), write=write, attend=attention.attend)
    asked = GenerateConfig(num_beams=num_beams, max_new_tokens=TARGET_LEN)
    seen = compared(case, case.prompts[:12], asked, StepGenerator(other))
    assert seen["different"] == 0
    assert seen["near tie"] <= 1, seen


@pytest.mark.parametrize("family", FAMILIES)
def test_several_greedy_steps_per_call_generate_the_same_tokens(cases: dict[str, Case], family: str) -> None:
    case = cases[family]
    calls = Counter[int]()

    def opened(*batch: Any) -> Any:
        step = case.runtime.open(*batch)
        return lambda *inputs: (calls.update([inputs[-1]]), step(*inputs))[1]

    for steps, most, least in (
        (4, TARGET_LEN, 0),
        (5, TARGET_LEN, 3),
        (TARGET_LEN, TARGET_LEN, 0),
        (2, 7, 7),
        (3, 2, 0),
    ):
        several = StepGenerator(replace(case.runtime, open=opened, greedy_steps=steps))
        asked = GenerateConfig(max_new_tokens=most, min_new_tokens=least)
        calls.clear()
        seen = compared(case, case.prompts[:8], asked, several)
        assert seen["different"] == 0
        assert seen["near tie"] <= 1, seen
        assert several.generate(case.prompts[:8], asked) == case.actual.generate(case.prompts[:8], asked)
        assert calls.keys() == ({1} if most - least < steps else {1, steps} if least or most % steps else {steps})
    for banned in (
        GenerateConfig(max_new_tokens=6, no_repeat_ngram_size=2),
        GenerateConfig(max_new_tokens=6, num_beams=2),
    ):
        calls.clear()
        assert compared(case, case.prompts[:3], banned, several)["different"] == 0
        assert calls.keys() == {1}, "bans and beams need candidates"


@pytest.mark.parametrize("write", [kv_cache.write_column, kv_cache.write_where, kv_cache.write_scatter])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_of_several_steps_has_its_own_position(
    cases: dict[str, Case], family: str, write: Callable[..., torch.Tensor]
) -> None:
    """Rows at the start, in the middle and at the end of the cache, which they do not leave."""
    model = cases[family].model
    static = static_model(model.config, GraphOptions(source_len=8, target_len=6, write=write))
    static.load_state_dict(weights(static, model.state_dict()), assign=True)
    graph = bucket_graphs(Bucket(batch=4, source_len=8, target_len=6), (), greedy_steps=3)[1]
    module = graph_module(static, graph)
    _, _, ancestors, slot, _, empty = module.example_inputs(graph)
    with torch.inference_mode():
        constants = static.encode(torch.arange(32).view(4, 8) + 5, torch.ones(4, 8, dtype=torch.int64), slot)
        before = [torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) for tensor in empty]
        several, single = ([tensor.clone() for tensor in before] for _ in range(2))
        first, position = torch.tensor([[7], [8], [9], [10]]), torch.tensor([0, 2, 4, 5])
        chosen, largest = module(first, position, ancestors, slot, constants, several)
        tokens = first
        for step in range(3):
            at = position + step
            values, ids, _, _ = StepGraph(static)(tokens, at.clamp(max=5), ancestors, slot, constants, single)
            tokens = ids[..., 0]
            inside = at < 6
            assert torch.equal(chosen[inside, step], tokens[inside, 0])
            torch.testing.assert_close(largest[inside, step], values[inside, 0, 0])
    for old, new in zip(before, several, strict=True):
        changed = (old != new).any(1).any(-1)
        assert [row.nonzero().flatten().tolist() for row in changed] == [[0, 1, 2], [2, 3, 4], [4, 5], [5]]


OPTIONS = st.builds(
    lambda least, **asked: GenerateConfig(min_new_tokens=min(least, asked["max_new_tokens"]), **asked),
    max_new_tokens=st.integers(1, TARGET_LEN),
    least=st.integers(0, 6),
    num_beams=st.sampled_from([1, 2, 4]),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    no_repeat_ngram_size=st.sampled_from([0, 1, 2, 3]),
    early_stopping=st.booleans(),
)


@given(
    family=st.sampled_from(FAMILIES),
    asked=OPTIONS,
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 8),
    steps=st.integers(1, 5),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lengths_and_options_generate_the_tokens_of_transformers(
    cases: dict[str, Case], family: str, asked: GenerateConfig, seed: int, rows: int, steps: int
) -> None:
    case = cases[family]
    chosen = random.Random(seed).sample(case.prompts, rows)
    seen = compared(case, chosen, asked, StepGenerator(replace(case.runtime, greedy_steps=steps)))
    event(f"near ties: {seen['near tie']}")
    assert seen["different"] == 0


@pytest.fixture(scope="session")
def flan_t5_small() -> Case:
    """FLAN-T5-small's dimensions, random weights."""
    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(1)
    lengths = (64, 33, 7, 50, 12, 64, 28, 41)
    prompts = [torch.randint(3, 32000, (length,), generator=generator).tolist() for length in lengths]
    padding = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, "<pad>")), pad_token="<pad>")
    return Case(model, eager(model, 64, 8), TransformersGenerator(model, padding, 8), prompts)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("num_beams", [1, 2, 4])
def test_flan_t5_small_dimensions(flan_t5_small: Case, num_beams: int, batch: int) -> None:
    asked = GenerateConfig(num_beams=num_beams, max_new_tokens=8)
    assert compared(flan_t5_small, flan_t5_small.prompts[:batch], asked) == {"equal": batch}


def test_generation_defaults_in_a_checkpoint_are_ignored(cases: dict[str, Case]) -> None:
    """transformers would let them override the recipe's settings, including sampling."""
    case, asked = cases["llama"], GenerateConfig(max_new_tokens=TARGET_LEN)
    expected = case.expected.generate(case.prompts[:8], asked)
    own = case.model.generation_config
    case.model.generation_config = copy.deepcopy(own)
    case.model.generation_config.update(do_sample=True, temperature=1.5, repetition_penalty=3.0, num_beams=2)
    try:
        assert case.expected.generate(case.prompts[:8], asked) == expected
    finally:
        case.model.generation_config = own


# Negative controls: errors that the tests above must detect.


def broken_write(cache: torch.Tensor, column: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return WRITE(cache, column, torch.zeros_like(position))


def no_ancestry(bias: torch.Tensor, ancestors: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(ancestors.shape[1])[None, :, None].expand_as(ancestors)
    return ANCESTRY(bias, rows)


WRITE, ANCESTRY = kv_cache.write_column, kv_cache.ancestry_bias


@pytest.mark.parametrize("family", ["t5-untied-gated", "llama"])
def test_an_overwritten_cache_column_is_detected(cases: dict[str, Case], family: str) -> None:
    case = cases[family]
    broken = StepGenerator(eager(case.model, SOURCE_LEN, TARGET_LEN, write=broken_write))
    asked = GenerateConfig(max_new_tokens=TARGET_LEN)
    assert compared(case, case.prompts[:24], asked, broken)["different"] > 0


@pytest.mark.parametrize("family", ["t5-untied-gated", "llama"])
def test_a_missing_ancestry_is_detected(cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(llama if family == "llama" else t5, "ancestry_bias", no_ancestry)
    asked = GenerateConfig(num_beams=4, max_new_tokens=TARGET_LEN)
    case = cases[family]
    assert compared(case, case.prompts[:24], asked)["different"] > 0


def test_keys_and_values_of_another_example_are_detected(cases: dict[str, Case]) -> None:
    case = cases["t5-untied-gated"]

    def encode(bucket: Bucket) -> Any:
        return lambda *inputs: [np.roll(part, 1, 0) for part in case.runtime.encode(bucket)(*inputs)]

    swapped = GraphRuntime(case.runtime.buckets, case.runtime.num_beams, case.runtime.tokens, encode, case.runtime.open)
    asked = GenerateConfig(max_new_tokens=TARGET_LEN)
    assert compared(case, case.prompts[:24], asked, StepGenerator(swapped))["different"] > 0


def test_a_summary_does_not_depend_on_the_rest_of_its_batch(cases: dict[str, Case]) -> None:
    """Padding rows and padding positions of a bucket change nothing."""
    for case in cases.values():
        asked = GenerateConfig(num_beams=2, max_new_tokens=TARGET_LEN)
        together = case.actual.generate(case.prompts[:5], asked)
        alone = [case.actual.generate([prompt], asked)[0] for prompt in case.prompts[:5]]
        assert together == alone


def test_the_smallest_fitting_bucket_is_used_and_a_missing_one_is_an_error(cases: dict[str, Case]) -> None:
    from neuron_sum.runtimes.generation import choose_bucket

    runtime, asked = cases["llama"].runtime, GenerateConfig(max_new_tokens=TARGET_LEN)
    assert str(choose_bucket(runtime, 1, 80, asked)) == f"1x80x{TARGET_LEN}"
    assert str(choose_bucket(runtime, 2, 81, asked)) == f"3x160x{TARGET_LEN}"
    with pytest.raises(ArtifactError, match="a prompt has 161 tokens") as error:
        choose_bucket(runtime, 1, 161, asked)
    assert "data.max_source_length=160" in str(error.value.hint)
    with pytest.raises(ArtifactError, match="max_new_tokens = 25"):
        choose_bucket(runtime, 1, 10, asked.model_copy(update={"max_new_tokens": 25}))
    with pytest.raises(ArtifactError, match=r"num_beams = 3: compiled for 1, 2, 4"):
        choose_bucket(runtime, 1, 10, asked.model_copy(update={"num_beams": 3}))
