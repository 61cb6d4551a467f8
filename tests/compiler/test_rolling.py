"""Continuous batching: a prompt that joins a running batch gets the tokens that it gets alone."""

import random
from collections.abc import Sequence
from dataclasses import replace
from heapq import heapify, heappush
from itertools import count
from threading import Lock
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from joining import rolled
from micro_models import LLAMA_CONFIG
from numpy.typing import NDArray
from transformers import AutoConfig, PretrainedConfig, T5Config

from compile.graphs.kv_cache import write_where
from compile.graphs.layers import GraphOptions
from compile.graphs.static import eager_runtime, static_model
from compile.receipt.models import _joined
from neuron_sum.artifact import AdapterSpec, Bucket, SpecialTokens
from neuron_sum.errors import ArtifactError, ModelError
from neuron_sum.evaluation import generate
from neuron_sum.models.base import is_decoder_only
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes import rolling, state
from neuron_sum.runtimes.base import Candidates
from neuron_sum.runtimes.generation import StepGenerator

VOCABULARY, TARGET_LEN, SOURCE_LENS = 48, 14, (12, 24)
T5 = T5Config(
    vocab_size=VOCABULARY,
    d_model=32,
    d_kv=8,
    d_ff=32,
    num_layers=1,
    num_decoder_layers=2,
    num_heads=2,
    decoder_start_token_id=0,
    pad_token_id=0,
    eos_token_id=1,
)
LLAMA = AutoConfig.for_model(**{**LLAMA_CONFIG, "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1})
ADAPTERS = (None, "a", "b")


def random_generator(
    config: PretrainedConfig, batches: Sequence[int] = (1, 3), greedy_steps: int = 1, **options: Any
) -> StepGenerator:
    """Random weights, large enough for different summaries, and two random adapters."""
    torch.manual_seed(0)
    spec = AdapterSpec(rank=2, slots=3, target_modules=("q", "v", "q_proj", "v_proj"))
    shapes = {"source_len": SOURCE_LENS[-1], "target_len": TARGET_LEN, "soft_prompt_tokens": 2}
    static = static_model(config, GraphOptions(adapters=spec, **shapes, **options))
    values = {
        name: torch.randn(tensor.shape) * (1.0 if "relative" in name else 0.1)
        for name, tensor in static.state_dict().items()
        if tensor.dtype.is_floating_point
    }
    tables = (
        static.tables()
        if hasattr(static, "tables")
        else static.weights(values | {"model.embed_tokens.weight": values["embedding"]})
    )
    tokens = SpecialTokens(pad=0, ends=(1, 2, 5, 9, 13), decoder_start=None if is_decoder_only(config) else 0)
    buckets = [Bucket(batch=b, source_len=s, target_len=TARGET_LEN) for b in batches for s in SOURCE_LENS]
    runtime = eager_runtime(static, {**values, **tables}, buckets, (1, 3), tokens, greedy_steps)
    assert runtime.adapters is not None
    for stack in runtime.adapters.stacks.values():
        stack[1:] = torch.randn(stack[1:].shape) if stack.dtype.is_floating_point else 1
    runtime.adapters._slots = {"a": 1, "b": 2}
    return StepGenerator(runtime)


@pytest.fixture(scope="module")
def generators() -> dict[str, StepGenerator]:
    return {"t5": random_generator(T5), "llama": random_generator(LLAMA)}


def prompts(count: int) -> list[list[int]]:
    numbers = random.Random(1)
    return [numbers.choices(range(3, VOCABULARY), k=numbers.randint(2, SOURCE_LENS[-1])) for _ in range(count)]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1, "min_new_tokens": 5},
    {"length_penalty": 0.4, "early_stopping": True, "max_new_tokens": 9},
]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("asked", SETTINGS)
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_prompt_that_joins_a_running_batch_gets_the_tokens_that_it_gets_alone(
    generators: dict[str, StepGenerator], family: str, num_beams: int, asked: dict[str, Any], every: int
) -> None:
    generator = generators[family]
    settings = GenerateConfig.model_validate({"max_new_tokens": TARGET_LEN, "num_beams": num_beams, **asked})
    given, names = prompts(11), [ADAPTERS[index % 3] for index in range(11)]
    alone = [generator.generate([prompt], settings, [name])[0] for prompt, name in zip(given, names, strict=True)]
    assert len({len(row) for row in alone}) > 1 and len(set(map(tuple, alone))) > 5
    batch = generator.roll(settings)
    assert batch is not None
    for _ in range(2):  # a batch that has become empty can be used again
        found, beside = rolled(batch, given, names, every)
        assert found == alone
        assert beside >= 2
    assert not any(generator.runtime.adapters._leases)  # type: ignore[union-attr]


def test_a_bucket_of_32_is_filled_and_shrinks() -> None:
    generator = random_generator(T5, (1, 8, 32))
    settings, given = GenerateConfig(max_new_tokens=TARGET_LEN, num_beams=1), prompts(70)
    alone = [generator.generate([prompt], settings)[0] for prompt in given]
    generator.used.clear()
    batch = generator.roll(settings)
    assert batch is not None and batch.room(70) == 32 and batch.room(9) == 8
    assert rolled(batch, given, [None] * 70, 1)[0] == alone
    assert {bucket.batch for bucket in generator.used} == {1, 8, 32}
    assert generator.generate(given, settings) == alone


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("least", [0, 6])
@pytest.mark.parametrize("config", [T5, LLAMA], ids=["t5", "llama"])
def test_several_greedy_steps_of_a_running_batch_have_equal_tokens(
    config: PretrainedConfig, least: int, every: int
) -> None:
    """Rows end within a call, and a call may not pass the last position of a row that has started earlier."""
    generator, given = random_generator(config, greedy_steps=4), prompts(11)
    names = [ADAPTERS[index % 3] for index in range(11)]
    settings, single = (
        GenerateConfig(max_new_tokens=TARGET_LEN, min_new_tokens=least),
        replace(generator, one_step=True),
    )
    alone = [single.generate([prompt], settings, [name])[0] for prompt, name in zip(given, names, strict=True)]
    calls = list[int]()
    for each, expected in ((generator, {1, 4}), (single, {1})):
        batch = each.roll(settings)
        assert batch is not None
        step, calls = batch._session._kept.step, []
        batch._session._kept.step = lambda bucket, step=step, calls=calls: (  # type: ignore[method-assign]
            lambda *given: (calls.append(given[-1]), step(bucket)(*given))[1]
        )
        found, beside = rolled(batch, given, names, every, 1)
        assert found == alone and beside >= 2 and set(calls) == expected


def test_a_cache_write_that_returns_a_new_tensor_is_kept() -> None:
    generator, settings = random_generator(T5, write=write_where), GenerateConfig(max_new_tokens=TARGET_LEN)
    given, batch = prompts(6), generator.roll(settings)
    assert batch is not None
    assert rolled(batch, given, [None] * 6, 2)[0] == [generator.generate([prompt], settings)[0] for prompt in given]


def test_a_prompt_that_cannot_join_does_not_affect_the_others(generators: dict[str, StepGenerator]) -> None:
    generator, settings = generators["t5"], GenerateConfig(max_new_tokens=TARGET_LEN)
    good, batch = prompts(2), generator.roll(settings)
    assert batch is not None
    batch.join(good[:1], ["a"])
    with pytest.raises(ModelError, match="'gone'"):
        batch.join(good[1:], ["gone"])
    with pytest.raises(ArtifactError, match="25 tokens, the longest bucket takes 24"):
        batch.join([[5] * 25], [None])
    assert batch.running == 1
    batch.join(good[1:], ["b"])
    found = {}
    while batch.running:
        found.update(dict(batch.step()))
    assert [found[number] for number in sorted(found)] == [
        generator.generate([prompt], settings, [name])[0] for prompt, name in zip(good, "ab", strict=True)
    ]
    batch.join(good, [None, "a"])
    batch.close()
    assert batch.running == 0 and not any(generator.runtime.adapters._leases)  # type: ignore[union-attr]


def test_a_batch_cannot_roll_without_every_combination_of_shapes(generators: dict[str, StepGenerator]) -> None:
    runtime, settings = generators["t5"].runtime, GenerateConfig(max_new_tokens=TARGET_LEN)
    assert StepGenerator(replace(runtime, buckets=runtime.buckets[1:])).roll(settings) is None  # type: ignore[type-var]
    with pytest.raises(ArtifactError, match="max_new_tokens = 15"):
        StepGenerator(runtime).roll(settings.model_copy(update={"max_new_tokens": 15}))


@pytest.mark.parametrize("copied", [0, 3])
def test_without_memory_for_a_longer_prompt_the_others_keep_their_rows(
    generators: dict[str, StepGenerator], monkeypatch: pytest.MonkeyPatch, copied: int
) -> None:
    """The rows in use are copied into the shape of the longer bucket; one of the copies fails."""
    generator, settings = generators["t5"], GenerateConfig(max_new_tokens=TARGET_LEN)
    short = [prompt for prompt in prompts(40) if len(prompt) <= SOURCE_LENS[0]][:2]
    expected = [generator.generate([prompt], settings, ["a"])[0] for prompt in short]
    batch = generator.roll(settings)
    assert batch is not None and expected[0] != expected[1]
    numbers = batch.join(short, ["a"] * 2)
    done, calls, copy = dict(batch.step()), count(), state._RowArray.copy

    def limited(*arguments: Any) -> NDArray[Any]:
        if next(calls) >= copied:
            raise MemoryError("Unable to allocate")
        return copy(*arguments)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(state._RowArray, "copy", limited)
        batch.join([[9] * SOURCE_LENS[-1]], [None])
    while batch.running:
        done.update(dict(batch.step()))
    assert [done[number] for number in numbers] == expected


@pytest.mark.parametrize("batches", [(1, 3), (3,)])
def test_evaluation_joins_prompts_if_one_can_be_encoded_alone(batches: tuple[int, ...]) -> None:
    """Each dialogue has one prompt, and some get another one when it is finished."""
    generator, settings = random_generator(T5, batches), GenerateConfig(max_new_tokens=TARGET_LEN)
    given = [[SimpleNamespace(input_ids=ids)] for ids in prompts(10)]
    rounds: Any = [SimpleNamespace(prompts=each) for each in given]
    waiting, later = [(-index, index, 0) for index in range(7)], [7, 8, 9]
    heapify(waiting)
    found: dict[int, list[int]] = {}
    sizes = []
    for finished in generate._finished(generator, settings, waiting, rounds, joins=True):
        sizes.append(len(finished))
        found |= {index: tokens for (index, _), tokens in finished}
        if later:
            heappush(waiting, (0, later.pop(), 0))
    if 1 in batches:
        assert generator.used == {generator.buckets[-1]}, "the rounding of a prompt depends on no other prompt"
    assert found == dict(enumerate(generator.generate([each[0].input_ids for each in given], settings)))
    assert (0 in sizes) == (1 in batches), "after most steps of a running batch, none is finished"


def test_a_failure_in_the_receipt_lets_other_batches_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device, a running batch holds a lock."""
    generator, lock, calls = random_generator(T5), Lock(), count()
    generator.runtime.turn = lambda: lock  # type: ignore[method-assign,assignment]
    step = rolling.RollingSession.step

    def failing(*arguments: Any) -> Candidates:
        if next(calls) == 2:
            raise RuntimeError("the device failed")
        return step(*arguments)

    monkeypatch.setattr(rolling.RollingSession, "step", failing)
    with pytest.raises(RuntimeError, match="the device failed"):
        _joined(generator, prompts(5), GenerateConfig(max_new_tokens=TARGET_LEN))
    assert not lock.locked()
