"""Shape plans: every example once, few shapes, little padding, and the same in every process and after every resume."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks import shapes
from neuron_sum import console
from neuron_sum.data.buckets import best_buckets
from neuron_sum.data.command import data
from neuron_sum.data.encoding import Encoded
from neuron_sum.data.layouts import Lengths, Row, Shape, group_by_length, permutation
from neuron_sum.data.packing import pack, spread
from neuron_sum.data.rows import Collator, RowSet
from neuron_sum.data.shapes import ShapePlan, choose_plan
from neuron_sum.errors import RecipeError
from neuron_sum.models.base import model_class_of
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import Recipe
from neuron_sum.training.torch.trainer import HFTrainer
from neuron_sum.training.train import prepare, train

PLANS = ("dynamic", "fixed", "buckets", "packed")
PAIRS = st.lists(st.tuples(st.integers(1, 64), st.integers(1, 24)), min_size=1, max_size=80)
SMALL = settings(max_examples=60)


def recipe(plan: str, *overrides: str) -> Recipe:
    return load_recipe("tiny", [f"train.shapes.plan={plan}", *overrides])


def encoded(pairs: list[tuple[int, int]]) -> Encoded:
    return Encoded(tuple({"input_ids": [5] * s, "labels": [6] * t} for s, t in pairs), sources_cut=2, targets_cut=1)


def plan_of(
    name: str, pairs: list[tuple[int, int]], batch_size: int = 4, devices: int = 1, *overrides: str
) -> ShapePlan:
    made = recipe(name, f"train.per_device_train_batch_size={batch_size}", *overrides)
    return choose_plan(made, encoded(pairs), None, decoder_only=False, devices=devices)


@SMALL
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=300),
    st.sampled_from((0, 7, 2**31, 2**32 - 1, 2**32 + 5)),
    st.integers(1, 40),
)
def test_the_order_is_that_of_torch_and_transformers(lengths: list[int], seed: int, size: int) -> None:
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    assert permutation(len(lengths), seed) == order
    grouped = get_length_grouped_indices(lengths, size, generator=torch.Generator().manual_seed(seed))
    assert group_by_length(order, lengths, size) == grouped


@SMALL
@given(pairs=PAIRS, source_len=st.integers(64, 130), target_len=st.integers(24, 50), extra=st.integers(0, 90))
def test_packing_keeps_every_example_and_overfills_no_row(
    pairs: list[tuple[int, int]], source_len: int, target_len: int, extra: int
) -> None:
    source, target = (np.array(side) for side in zip(*pairs, strict=True))
    rows = pack(source, target, source_len, target_len)
    assert sorted(itertools.chain(*rows)) == list(range(len(pairs)))
    assert all(source[row].sum() <= source_len and target[row].sum() <= target_len for row in rows)
    assert len(rows) <= len(pairs)
    spread_out = spread(rows, len(rows) + extra)
    assert len(spread_out) == len(rows) + extra
    assert sorted(itertools.chain(*spread_out)) == list(range(len(pairs)))
    empty = [len(row) == 0 for row in spread_out]
    assert sum(empty) == max(0, len(spread_out) - len(pairs))
    assert empty == sorted(empty)
    assert all(any(set(part) <= set(row) for row in rows) for part in spread_out)


def test_packing_rejects_an_example_longer_than_a_row() -> None:
    with pytest.raises(ValueError, match=r"9 \+ 2 tokens exceed rows of 8 \+ 8"):
        pack(np.array([9]), np.array([2]), 8, 8)


@settings(max_examples=25)
@given(pairs=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=12))
def test_buckets_have_the_fewest_positions(pairs: list[tuple[int, int]]) -> None:
    source, target = (np.array(side) for side in zip(*pairs, strict=True))
    cells = list(itertools.product(range(1, 6), range(1, 5)))

    def cost(shapes: tuple[tuple[int, int], ...]) -> int:
        return sum(sum(next(shape for shape in shapes if s <= shape[0] and t <= shape[1])) for s, t in pairs)

    def best(count: int) -> int:
        nested = (
            (*choice, (5, 4))
            for choice in itertools.combinations_with_replacement(cells, count - 1)
            if all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(choice))
        )
        return min(map(cost, nested))

    found = best_buckets(source, target, np.arange(1, 6), np.arange(1, 5), 3)
    costs = [cost(shapes) for shapes in found]
    assert costs == [best(count) for count in range(1, len(found) + 1)]
    assert [len(shapes) for shapes in found] == list(range(1, len(found) + 1))
    assert costs[-1] == best(3) or len(found) < 3


@SMALL
@given(
    name=st.sampled_from(PLANS),
    pairs=PAIRS,
    batch_size=st.integers(1, 5),
    devices=st.integers(1, 3),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_every_example_once_in_whole_batches_of_one_shape(
    name: str, pairs: list[tuple[int, int]], batch_size: int, devices: int, epoch: int
) -> None:
    plan = plan_of(name, pairs, batch_size, devices)
    torch.manual_seed(epoch)
    np.random.seed(epoch)  # the global random state has no influence
    rows = plan.rows(epoch)
    assert rows == plan_of(name, pairs, batch_size, devices).rows(epoch)
    assert sorted(example for row in rows for example in row.examples) == list(range(len(pairs)))
    assert len(rows) == plan.rows_per_epoch
    if name == "dynamic":
        return
    chunk = batch_size * devices
    assert len(rows) % chunk == 0
    for at in range(0, len(rows), chunk):
        together = rows[at : at + chunk]
        assert len({row.shape for row in together}) == 1, "processes must take the same shape at the same time"
        assert any(row.examples for row in together), "a step without a token has no loss"
    for examples, shape in rows:
        assert shape in plan.shapes
        assert sum(pairs[example][0] for example in examples) <= shape.source_len
        assert sum(pairs[example][1] for example in examples) <= shape.target_len
        assert len(examples) <= 1 or name == "packed"


@pytest.mark.parametrize("name", PLANS)
def test_epochs_differ_in_order_and_in_the_examples_that_share_a_row(name: str) -> None:
    draw = np.random.default_rng(0)
    pairs = [(int(s), int(t)) for s, t in zip(draw.integers(4, 60, 200), draw.integers(2, 20, 200), strict=True)]
    plan = plan_of(name, pairs)
    assert plan.rows(0) != plan.rows(1)
    if name == "packed":
        assert set(plan.rows(0)) != set(plan.rows(1))


def test_the_report_counts_the_computed_positions() -> None:
    pairs = [(30, 6), (10, 3), (10, 3), (10, 3)]
    fixed = plan_of("fixed", pairs, 3, 1, "train.shapes.sizes=[[32,8]]").report(encoded(pairs))
    assert (fixed.rows, fixed.padded_positions, fixed.real_tokens, fixed.graphs) == (6, 240, 75, 1)
    assert "one of 32 + 8; 6 rows of 0.67 examples per epoch; 240 positions for 75 tokens (3.200)" in str(fixed)
    assert "cut: 2 sources, 1 targets" in str(fixed)
    buckets = plan_of("buckets", pairs, 1, 1, "train.shapes.buckets=2").report(encoded(pairs))
    assert (buckets.shapes, buckets.padded_positions) == ((Shape(16, 8), Shape(32, 8)), 3 * 24 + 40)
    assert buckets.graphs == 2
    twice = plan_of("buckets", pairs, 1, 1, "train.shapes.buckets=2", "train.gradient_accumulation_steps=2")
    accumulated = twice.report(encoded(pairs))
    assert (accumulated.graphs, accumulated.shapes) == (4, buckets.shapes)
    assert "2 of 16 + 8, 32 + 8 (4 graphs because gradients are accumulated); 4 rows" in str(accumulated)
    packed = plan_of("packed", pairs, 1, 1, "train.shapes.sizes=[[32,12]]").report(encoded(pairs))
    assert (packed.rows, packed.padded_positions, packed.examples_per_row) == (2, 88, 2.0)
    dynamic = plan_of("dynamic", pairs, 2).report(encoded(pairs))
    assert (dynamic.rows, dynamic.padded_positions) == (4, 2 * (32 + 8) + 2 * (16 + 8))


def test_sizes_that_are_too_small_are_rejected() -> None:
    with pytest.raises(RecipeError, match=r"end with 32 \+ 8 tokens, but the longest examples have 40 \+ 3") as raised:
        plan_of("buckets", [(40, 3)], 1, 1, "train.shapes.sizes=[[16,8],[32,8]]")
    assert "data.max_source_length" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.shapes.sizes=[[16,8]]"], "dynamic has no sizes"),
        (["train.shapes.plan=packed", "train.shapes.sizes=[[16,8],[32,8]]"], "packed requires one shape"),
        (["train.shapes.plan=buckets", "train.shapes.sizes=[[32,8],[16,8]]"], "no smaller than the previous size"),
        (["train.shapes.plan=buckets", "train.shapes.sizes=[[16,8],[16,8]]"], "no smaller than the previous size"),
        (["train.shapes.plan=boxes"], "'dynamic', 'fixed', 'buckets' or 'packed'"),
    ],
)
def test_a_recipe_with_impossible_shapes_is_rejected(overrides: list[str], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        load_recipe("tiny", overrides)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("family", ["micro", "micro_llama"])
def test_the_trainer_gets_the_shapes_of_the_plan(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str, family: str
) -> None:
    seen: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()
    upstream = HFTrainer.training_step

    def spy(trainer: HFTrainer, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *more: object) -> torch.Tensor:
        seen.add(tuple(sorted((key, tuple(value.shape)) for key, value in inputs.items())))
        return upstream(trainer, model, inputs, *more)

    monkeypatch.setattr(HFTrainer, "training_step", spy)
    overrides = [
        f"train.shapes.plan={name}",
        "train.max_steps=null",
        "train.num_train_epochs=3",
        "train.per_device_train_batch_size=5",
        "train.shapes.buckets=3",
    ]
    made = load_recipe(str(request.getfixturevalue(family)), overrides)
    run = train(made, tmp_path / "run")
    results = run.read_results()
    promised = prepare(made, tmp_path / "other").estimate.steps
    assert results["global_step"] == promised
    if name == "dynamic":  # the negative control: other shapes appear as training continues
        assert len(seen) > 3
        assert results["shapes"]["shapes"] is None
    else:
        assert len(seen) == results["shapes"]["graphs"] == {"fixed": 1, "buckets": 3, "packed": 1}[name]
        assert {dict(shapes)["input_ids"][1] for shapes in seen} == {size[0] for size in results["shapes"]["shapes"]}
        assert all(dict(shapes)["input_ids"][0] == 5 for shapes in seen)


def test_the_validation_loss_does_not_depend_on_the_plan(tmp_path: Path, micro: Path) -> None:
    losses = []
    for name in PLANS:
        overrides = [f"train.shapes.plan={name}", "train.max_steps=1", "train.learning_rate=1e-12"]
        losses.append(train(load_recipe(str(micro), overrides), tmp_path / name).read_results()["eval_loss"])
    assert losses == pytest.approx([losses[0]] * len(PLANS), rel=1e-5)


def test_a_batch_with_an_empty_row_is_finite_under_autocast() -> None:
    from configs import LLAMA, T5

    pairs = [(9, 4), (5, 4)]
    for config in (T5, LLAMA):
        seq2seq = config.is_encoder_decoder
        data = encoded([(s, t if seq2seq else s) for s, t in pairs])
        for name in PLANS[1:]:
            shapes = (Shape(16, 8 * seq2seq),)
            lengths = Lengths(np.array([9, 5]), np.array([4, 4]) * seq2seq)
            plan = ShapePlan(name, shapes, lengths, not seq2seq, 0, 4, 1, seed=0)
            rows = RowSet(data, plan)
            batch = Collator(plan, config)([rows[row] for row in plan.rows(0)])
            assert Row((), shapes[0]) in plan.rows(0)
            model = model_class_of(config, packed=name == "packed")(config)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch).loss
            loss.backward()
            assert torch.isfinite(loss), (name, config.model_type)
            for parameter in model.parameters():
                assert parameter.grad is None or torch.isfinite(parameter.grad).all(), (name, config.model_type)


@pytest.mark.slow
def test_padding_of_dialogsum_is_as_documented(shared_data: Path) -> None:
    tokenizer = shared_data / "tokenizers" / "t5" / "spiece.model"
    config = shared_data / "configs" / "flan-t5-base.json"
    names = (shapes.COURSE, shapes.BUCKETS, shapes.PACKED)
    measured = shapes.measure(str(shared_data / "dialogsum"), str(tokenizer), config, names)
    course, buckets, packed = (measured[name] for name in names)
    assert course.report.ratio == pytest.approx(3.77, abs=0.01)
    assert (buckets.report.graphs, packed.report.graphs) == (4, 1)
    assert buckets.report.ratio <= 1.30
    assert packed.report.ratio <= 1.05
    assert packed.report.sources_cut <= 260
    assert packed.report.targets_cut <= 51
    assert packed.gflops <= 0.28 * course.gflops


def test_data_prints_the_cost_of_padding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data("tiny", ["train.shapes.plan=packed"])
    assert "shapes (packed): one of" in capsys.readouterr().out
    data("tiny", ["model.tokenizer=nowhere.model"])
    assert "shapes: not counted: " in capsys.readouterr().out
    monkeypatch.setattr(console.settings, "json", True)
    data("tiny", ["train.shapes.plan=buckets"])
    told = json.loads(capsys.readouterr().out)["shapes"]
    assert told["graphs"] == len(told["shapes"]) == 4
    assert 1 < told["ratio"] < 1.3
