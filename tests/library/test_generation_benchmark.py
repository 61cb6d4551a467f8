"""The targets of benchmarks/generation.py: the fastest peer, the ratio within a round, and the verdict."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from micro_models import ROOT


@pytest.fixture(scope="module")
def generation() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import generation

    yield generation
    sys.path.remove(str(ROOT / "benchmarks"))


def runs(generation: Any, **seconds: list[float]) -> Any:
    return {
        name.replace("_", "-"): [generation.Run([1, 2], each, 2 * each) for each in times]
        for name, times in seconds.items()
    }


def test_a_target_is_compared_with_the_fastest_peer_within_each_round(generation: Any) -> None:
    target = generation.Target("ours-int8", ("ctranslate2-int8", "openvino-int8"), {1: 1.3})
    times = runs(generation, ours_int8=[1.0, 2.0, 1.0], ctranslate2_int8=[1.4, 2.8, 1.4], openvino_int8=[9.0, 9.0, 9.0])
    (line,) = generation.verdict(target, 1, "prompt", times)
    assert line == "ours-int8 against ctranslate2-int8, prompt: target 1.3, ratio 1.40 (wall 1.40): held"
    (line,) = generation.verdict(target._replace(by_batch={1: 1.5}), 1, "", times)
    assert line == "ours-int8 against ctranslate2-int8: target 1.5, ratio 1.40 (wall 1.40): missed"


def test_a_target_without_its_systems_or_batch_has_no_verdict(generation: Any) -> None:
    target = generation.Target("ours-int8", ("openvino-int8",), {1: 1.3})
    times = runs(generation, ours_int8=[1.0], openvino_int8=[2.0])
    assert generation.verdict(target, 1, "", times)
    assert not generation.verdict(target, 4, "", times)
    assert not generation.verdict(target, 1, "", {"ours-int8": times["ours-int8"]})
    assert not generation.verdict(target, 1, "", {"openvino-int8": times["openvino-int8"]})


def test_the_time_of_later_tokens_excludes_that_of_the_first(generation: Any) -> None:
    first, all_tokens = runs(generation, ours_int8=[1.0]), runs(generation, ours_int8=[4.0])
    assert generation.later(first, all_tokens) == {"ours-int8": [generation.Run([2], 3.0, 6.0)]}


def test_the_targets_name_every_peer_of_a_dtype(generation: Any) -> None:
    t5, llama = (
        {target.system: target.peers for target in each} for each in (generation.T5_TARGETS, generation.LLAMA_TARGETS)
    )
    assert {"openvino-int8", "ctranslate2-int8", "onnxruntime-int8-blocks"} < set(t5["ours-int8"])
    assert set(t5["ours-bf16"]) == {"transformers-bf16", "openvino-bf16"}
    assert set(llama["ours-bf16"]) == {"transformers-bf16", "openvino-bf16", "llama.cpp-bf16"}


def test_the_first_answer_has_a_target_in_seconds_and_one_relative_to_ctranslate2(generation: Any) -> None:
    def starts(answer_s: list[float], cpu_s: float) -> Any:
        return [generation.ColdStart(1.0, 0.5, seconds, cpu_s) for seconds in answer_s]

    found = {"ours-int8": starts([1.5, 3.0, 1.9], 2.0), "ctranslate2-int8": starts([1.0, 3.0, 1.9], 1.0)}
    assert generation.cold_verdicts(found) == [
        "ours-int8, first answer: target 2.0 s, 1.90 s: held",
        "ours-int8 against ctranslate2-int8: target 1.1, ratio 1.00 (CPU 2.00): held",
    ]
    assert generation.cold_verdicts({"ours-bf16": starts([2.1], 2.0)}) == [
        "ours-bf16, first answer: target 2.0 s, 2.10 s: missed"
    ]
