"""The steps of a receipt: what a measurement decides, and that one which shows nothing does not pass."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compile.receipt import models, steps
from compile.receipt.cells import SIZES, STEPS
from compile.receipt.records import Finding, Records, Stopped
from neuron_sum.artifact import Bucket
from neuron_sum.platform.matrix import CORE_BANDWIDTH
from neuron_sum.recipes.schema import GenerateConfig


def test_the_memory_of_all_cores_is_counted_once(tmp_path: Path) -> None:
    assert models.device_bytes(tmp_path) is None
    for core, used in enumerate((100, 20)):
        counter = tmp_path / models.MEMORY / "neuron0" / f"neuron_core{core}" / "stats" / "memory_usage" / "device_mem"
        for part in (counter, counter / "tensors"):
            part.mkdir(parents=True)
            (part / "total").write_text(f"{used}\n")
    assert models.device_bytes(tmp_path) == 120


def measure(
    monkeypatch: pytest.MonkeyPatch, step: str, path: Path, load: Any = None, **replaced: Any
) -> dict[str, dict[str, Any]]:
    """The cells of a step whose functions are replaced; those that are not fail their cells."""
    artifact = SimpleNamespace(manifest=SimpleNamespace(graphs=[], source=SimpleNamespace(path="")))
    generator = SimpleNamespace(warm_up=lambda: None)
    always = {"models.compile_t5": lambda *_: artifact, "models.compare_tokens": lambda *_: None}
    for name, value in {**always, **replaced}.items():
        monkeypatch.setattr(f"compile.receipt.{name}", value)
    monkeypatch.setattr("neuron_sum.runtimes.load.load_generator", load or (lambda _: (generator, None)))
    records = Records(next(each for each in STEPS if each.name == step), path)
    with suppress(Stopped):
        steps.FUNCTIONS[step](steps.Context(records, SIZES["micro"], ()))
    return {result.name: result.model_dump() for result in records.results}


@pytest.mark.parametrize(
    ("reads", "rest", "state"),
    [(0.2, 0.0, "failed"), (1.0, 0.1, "passed"), (2.1, 0.1, "different"), (1.0, 1.0, "different")],
)
def test_buffers_count_as_not_copied_only_if_their_time_is_measurable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: float, rest: float, state: str
) -> None:
    """The times of a short source in short buffers and in long ones, and of a long source."""
    short, part = ({"step_ms": 1.0 + more} for more in (0.0, rest))
    both = iter(([(short, 0.0)], [(part, 0.0), ({"step_ms": 1.0 + reads}, CORE_BANDWIDTH / 1000)]))
    replaced = {"latency.step_times": lambda *_: next(both), "latency.bytes_read": lambda graph, **_: graph}
    found = measure(monkeypatch, "two_layers", tmp_path / "cells.json", **replaced)["buffers are not copied"]
    assert (found["state"], found["observed"].endswith(f"{reads} times one read")) == (state, True), found


@pytest.mark.parametrize(
    ("used", "loads", "state", "observed"),
    [
        (100, True, "passed", "100.0 MB; weights and buffers 100.0 MB"),
        (80, True, "different", "80.0 MB; weights and buffers 100.0 MB"),
        (160, True, "different", "160.0 MB; weights and buffers 100.0 MB"),
        (100, False, "failed", "not measured, because `weights are present` failed"),
    ],
)
def test_device_memory_has_two_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int, loads: bool, state: str, observed: str
) -> None:
    @contextmanager
    def device_tensors(_: Any) -> Iterator[None]:
        if not loads:
            raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr("neuron_sum.runtimes.neuronx.device_tensors", device_tensors)
    memory = iter((7, 7 + used * 10**6))
    replaced = {
        "models.device_bytes": lambda: next(memory),
        "models.expected_bytes": lambda _: 100 * 10**6,
        "models.missing_weights": lambda *_: (1, []),
    }
    found = measure(monkeypatch, "base", tmp_path / "cells.json", **replaced)
    assert found["weights are present"]["state"] == ("passed" if loads else "failed")
    found_memory = found["device memory"]
    assert (found_memory["state"], found_memory["observed"], found_memory["measured"]) == (state, observed, loads)


def test_graphs_that_do_not_load_fail_one_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Any) -> None:
        raise RuntimeError("out of memory")

    found = measure(monkeypatch, "base", tmp_path / "cells.json", load)
    assert [*found][-1] == "FLAN-T5-base runs"
    assert found["FLAN-T5-base runs"]["observed"] == "out of memory"


@pytest.mark.parametrize("greedy_steps", [1, 4])
@pytest.mark.parametrize(("distinct", "state"), [(2, "passed"), (1, "different")])
def test_equal_tokens_count_only_if_the_summaries_differ(
    monkeypatch: pytest.MonkeyPatch, distinct: int, state: str, greedy_steps: int
) -> None:
    """Counted for each beam width: different widths may have different summaries."""
    summaries = [[number % distinct] for number in range(4)]
    buckets = [Bucket(batch=1, source_len=length, target_len=8) for length in (64, 512)]
    monkeypatch.setattr(models, "load_dataset", lambda _: {"test": []})
    monkeypatch.setattr(models, "load_base", lambda *_: None)
    monkeypatch.setattr(models, "load_tokenizer", lambda *_: None)
    asked = list[GenerateConfig]()
    reference = SimpleNamespace(generate=lambda _, settings: asked.append(settings) or summaries)
    monkeypatch.setattr(models, "TransformersGenerator", lambda *_: reference)
    encoded = SimpleNamespace(encode=lambda *_: [SimpleNamespace(input_ids=[1])] * 4)
    recipe = SimpleNamespace(
        data=None, prompt=SimpleNamespace(resolve=lambda: encoded), generate=GenerateConfig(no_repeat_ngram_size=3)
    )
    manifest = SimpleNamespace(buckets=buckets, num_beams=[1, 4], greedy_steps=greedy_steps)
    artifact: Any = SimpleNamespace(recipe=recipe, manifest=manifest)
    monkeypatch.setattr(models, "_joined", lambda *_: summaries)
    generator: Any = SimpleNamespace(used={buckets[1]}, with_batch_size=lambda _: reference)
    cell = Finding()
    models.compare_tokens(cell, generator, artifact, Path("model"), 4)
    assert (cell.state, cell.observed) == (
        state,
        f"16 of 16 equal, distinct summaries: {distinct}; not used: 1x64x8",
    )
    # With a ban, the loop would not call the graph of several steps.
    assert {(each.num_beams, each.no_repeat_ngram_size) for each in asked} == {
        (1, 0 if greedy_steps > 1 else 3),
        (4, 3),
    }
