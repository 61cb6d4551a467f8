"""Slices of a batch have its loss and gradients, and frozen weights in bf16 those of weights in fp32."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from configs import LLAMA, T5
from tiny_families import KINDS, values_of
from training_rows import METHODS, VIRTUAL, examples, loss_and_gradients, made, packed_rows, worst_difference
from training_runs import TORCHRUN, assert_a_kill_changes_nothing, log, weights
from transformers import AttentionInterface, LlamaConfig

from neuron_sum.data.layouts import Shape
from neuron_sum.data.rows import Batch, Collator, FilledRow, RowSet, count_tokens
from neuron_sum.models.configs import make_config
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import TrainConfig
from neuron_sum.runs.folder import RunFolder
from neuron_sum.training import slices as module
from neuron_sum.training.loss import TokenLoss, split_labels
from neuron_sum.training.slices import largest_slice, slices
from neuron_sum.training.torch import trainer
from neuron_sum.training.torch.attention import NAME, recompute_attention
from neuron_sum.training.torch.bf16 import convert_frozen
from neuron_sum.training.train import train

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
TRAIN = TrainConfig(per_device_train_batch_size=8)
CONFIGS = {"t5": T5, "llama": LLAMA}


def limit(monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    """Sets the largest number of positions of a slice for models of the tests' width."""
    assert T5.hidden_size == LLAMA.hidden_size == 32
    monkeypatch.setattr(module, "VALUES", positions * 32)
    monkeypatch.setattr(module, "LEAST", 1)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("method", ["full", "prompt_tuning"])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_slices_have_the_loss_and_gradients_of_their_batch(
    family: str, method: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 3 to 80 tokens, some of which only fill the batch."""
    if packed and (family, method) == ("llama", "prompt_tuning"):
        pytest.skip("a soft prompt of a decoder-only model is not packed")
    config, decoder_only = CONFIGS[family], family == "llama"
    limit(monkeypatch, 200)
    data = examples(config)
    rows = packed_rows(data, config, VIRTUAL if packed and method == "prompt_tuning" else 0)
    if not packed:
        rows = RowSet(data, dataclasses.replace(rows.plan, name="dynamic", shapes=(), batch_size=8))
    collator = Collator(rows.plan, config)
    batches = [collator([rows[row] for row in batch]) for batch in rows.plan.batches(0)]
    filling = FilledRow([], Shape(120, 0 if decoder_only else 40))
    batches.append(collator([FilledRow(rows[rows.plan.rows(0)[0]].examples, filling.shape), filling, filling]))
    parts = [part for batch in batches for part in slices(batch, TRAIN, config)]
    assert len(parts) > len(batches)
    assert sum(part["input_ids"].numel() for part in parts) <= sum(batch["input_ids"].numel() for batch in batches)
    assert sum(map(int, map(count_tokens, parts))) == sum(map(int, map(count_tokens, batches)))
    results = []
    for each in (batches, parts):
        model, total = made(config, METHODS[method], packed=packed), torch.zeros(())
        for part in each:
            inputs, labels = split_labels(part, decoder_only=decoder_only)
            total = total + TokenLoss(shifted=False, label_smoothing=0.1)(model(**inputs), labels, data.target_tokens)
        total.backward()
        results.append((total.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (whole, gradients), (sliced, others) = results
    assert sliced == pytest.approx(whole, rel=1e-5)
    assert worst_difference(gradients, others) < 1e-4


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_slice_has_at_most_the_positions_and_no_needless_padding(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, decoder_only = CONFIGS[family], family == "llama"
    limit(monkeypatch, 800)
    data = examples(config, count=200)
    plan = dataclasses.replace(packed_rows(data, config).plan, name="dynamic", shapes=(), batch_size=100)
    rows = RowSet(data, plan)
    batch = Collator(plan, config)([rows[row] for row in plan.batches(0)[0]])
    parts = list(slices(batch, TrainConfig(per_device_train_batch_size=100), config))
    assert len(parts) > 5
    for part in parts:
        names = ("input_ids",) if decoder_only else ("input_ids", "labels")
        assert sum(part[name].numel() for name in names) <= 800
        assert part["attention_mask"][:, -8:].any()
    assert max(len(part["labels"]) for part in parts) - min(len(part["labels"]) for part in parts) <= 1


def test_wide_models_have_slices_of_at_least_400_positions() -> None:
    assert largest_slice(8, Shape(100, 0), LlamaConfig(hidden_size=4096)) == (4, 1)
    assert largest_slice(8, Shape(100, 0), LlamaConfig(hidden_size=576)) == (8, 1)


def test_small_batches_sharded_models_and_gpus_have_no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 1000)
    long = Shape(500, 100)
    assert largest_slice(4, Shape(100, 100), T5) == (4, 1)
    assert largest_slice(4, long, LLAMA) == (2, 1)
    assert largest_slice(4, long, T5) == (1, pytest.approx(1000 / 600)), "three rows of 333 positions"
    assert largest_slice(1, long, T5) == (1, 1)
    assert largest_slice(4, Shape(5000, 0), LLAMA) == (1, 1)
    ones = torch.ones(8, 300, dtype=torch.long)
    batch = {"input_ids": ones, "attention_mask": ones, "labels": ones}
    train_config = TrainConfig(per_device_train_batch_size=4)
    assert len(list(slices(batch, train_config, LLAMA))) == 3
    for other in ({"fsdp": True}, {"deepspeed": "zero.json"}):
        assert len(list(slices(batch, train_config.model_copy(update=other), LLAMA))) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert len(list(slices(batch, train_config, LLAMA))) == 1


@pytest.mark.parametrize("recipe", ["micro", "micro_llama"])
def test_a_run_in_slices_is_the_same_run(
    recipe: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accumulation, label smoothing and clipping, which all act on the whole step."""
    options = ["train.gradient_accumulation_steps=2", "train.label_smoothing_factor=0.1", "train.max_grad_norm=0.5"]
    dropout = ["model.config.dropout_rate=0.0"] if recipe == "micro" else []
    loaded = load_recipe(str(request.getfixturevalue(recipe)), [*options, *dropout])
    calls, counts = [], []

    def counted(*arguments: Any, **options: Any) -> list[Batch]:
        parts = list(slices(*arguments, **options))
        counts.append(len(parts))
        return parts

    monkeypatch.setattr(trainer, "slices", counted)
    for name, positions in (("whole", 10_000), ("slices", 300)):
        limit(monkeypatch, positions)
        counts.clear()
        train(loaded, tmp_path / name)
        assert (max(counts) > 2) == (name == "slices")
        calls.append(log(tmp_path / name, "loss", "grad_norm", "num_input_tokens_seen"))
        entries = RunFolder(tmp_path / name, loaded).read_log()
        calls[-1].append([entry["eval_loss"] for entry in entries if "eval_loss" in entry])
    for whole, sliced in zip(*calls, strict=True):
        assert sliced == pytest.approx(whole, rel=1e-4)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.allclose(value, weights(tmp_path / "slices")[name], atol=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "width"), [("micro", "d_model"), ("micro_llama", "hidden_size")])
def test_processes_with_different_numbers_of_slices_have_the_loss_of_one(
    recipe: str, width: str, tmp_path: Path, request: pytest.FixtureRequest, neuron_sum: CommandLine
) -> None:
    """Of the 12 rows of validation, one process computes 8 at once, and the other one 4."""
    dropout = ["model.config.dropout_rate=0.0"] if recipe == "micro" else []
    common = (*dropout, f"model.config.{width}=512", "train.max_steps=4", "train.group_by_length=false")
    micro = request.getfixturevalue(recipe)
    one = neuron_sum("train", str(micro), *common, "train.per_device_train_batch_size=32", "--output", "one")
    assert one.returncode == 0, one.stderr
    halves = (*common, "train.per_device_train_batch_size=16", "--output", "two")
    two = neuron_sum("train", str(micro), *halves, launcher=TORCHRUN)
    assert two.returncode == 0, two.stderr
    runs = [RunFolder(tmp_path / name, load_recipe(str(micro))) for name in ("one", "two")]
    losses = [
        [*(entry["loss"] for entry in run.read_log() if "loss" in entry), run.read_results()["eval_loss"]]
        for run in runs
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "full"])
@pytest.mark.parametrize("family", ["t5", "llama", "tied"])
def test_frozen_weights_in_bf16_change_no_result(family: str, method: str) -> None:
    config = CONFIGS.get(family, LLAMA)
    if family == "tied":
        config = LLAMA.__class__(**{**LLAMA.to_dict(), "tie_word_embeddings": True})
    data = examples(config)
    rows = packed_rows(data, config)
    rows = RowSet(data, dataclasses.replace(rows.plan, name="dynamic", shapes=()))
    batch = Collator(rows.plan, config)([rows[row] for row in rows.plan.batches(0)[0]])
    results, types = [], []
    for converted in (False, True):
        model = made(config, METHODS[method], packed=False)
        if converted:
            convert_frozen(model)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
        types.append({name: parameter.dtype for name, parameter in model.named_parameters()})
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(gradient, results[1][1][name]) for name, gradient in results[0][1].items())
    trained = results[0][1].keys()
    assert set(types[0].values()) == {torch.float32}
    assert all(types[1][name] == torch.float32 for name in trained)
    halved = {name for name, dtype in types[1].items() if dtype == torch.bfloat16}
    assert bool(halved) == (method != "full")
    assert not [name for name in halved if "embed" in name or "shared" in name or "norm" in name]
    if method != "full":
        assert any("lm_head" in name for name in halved) == (family == "llama")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("family", ["llama", *KINDS])
def test_recomputed_attention_has_the_loss_and_gradients_of_eager(family: str, packed: bool) -> None:
    config = LLAMA if family == "llama" else make_config(values_of(family), family)
    data = examples(config)
    rows = packed_rows(data, config)
    if not packed:
        rows = RowSet(data, dataclasses.replace(rows.plan, name="dynamic", shapes=()))
    collator = Collator(rows.plan, config)
    batches = [collator([rows[row] for row in batch]) for batch in rows.plan.batches(0)]
    results = []
    for recomputed in (False, True):
        model = made(config, METHODS["lora"], packed=packed)
        model.get_base_model().set_attn_implementation("eager")
        if recomputed:
            recompute_attention(model.get_base_model())
            assert NAME not in json.dumps(model.config.to_dict())
        results.append(loss_and_gradients(model.float(), batches))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert worst_difference(results[0][1], results[1][1]) < 1e-4


def test_a_position_that_attends_to_nothing_is_finite_in_bf16() -> None:
    layer = SimpleNamespace(num_key_value_groups=2)
    query = torch.randn(1, 4, 8, 16).bfloat16().requires_grad_()
    key, value = (torch.randn(1, 2, 8, 16).bfloat16() for _ in range(2))
    hidden = torch.full((1, 1, 8, 8), torch.finfo(torch.float32).min)
    result, _ = AttentionInterface()[NAME](layer, query, key, value, hidden, scaling=0.25)
    result.sum().backward()
    assert result.shape == (1, 8, 4, 16)
    assert result.isfinite().all()
    assert query.grad.isfinite().all()


@pytest.mark.slow
def test_a_killed_bf16_adapter_run_ends_with_the_same_weights(tmp_path: Path, micro_llama: Path) -> None:
    assert_a_kill_changes_nothing(tmp_path, str(micro_llama), "method=lora", "train.bf16=true")
