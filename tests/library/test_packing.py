"""Packed rows: the loss and gradients of one example at a time, and a run that writes an ordinary checkpoint."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import LLAMA, T5
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from tiny_families import KINDS, values_of
from training_rows import METHODS, VIRTUAL, alone, examples, loss_and_gradients, made, packed_rows, worst_difference
from training_runs import TORCHRUN, assert_a_kill_changes_nothing
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from neuron_sum import files
from neuron_sum.data.encoding import IGNORED, Encoded
from neuron_sum.data.layouts import Lengths, Row, Shape
from neuron_sum.data.rows import Batch, Collator, FilledRow, RowSet, count_tokens
from neuron_sum.data.shapes import ShapePlan
from neuron_sum.errors import RecipeError
from neuron_sum.models.configs import make_config
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import FullMethod
from neuron_sum.training.loss import TokenLoss, split_labels
from neuron_sum.training.train import train

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
JOINED = Encoded(({"input_ids": [5, 7, 1], "labels": [IGNORED, 7, 1]}, {"input_ids": [8, 1], "labels": [8, 1]}), 0, 0)
"""Two examples of a decoder-only model; the second has a label for its first token, which must be removed."""


CASES = [("t5", "full"), ("t5", "lora"), ("t5", "prompt_tuning"), ("llama", "full"), ("llama", "lora")]
CASES += [(kind, "full") for kind in KINDS] + [("qwen3", "lora")]


@pytest.mark.parametrize(("family", "method"), CASES, ids=lambda value: value)
def test_packed_rows_have_the_loss_and_gradients_of_single_examples(family: str, method: str) -> None:
    """Rows are longer than the sliding window of some, their examples are not."""
    config = {"t5": T5, "llama": LLAMA}.get(family) or make_config(values_of(family), family)
    data = examples(config)
    rows = packed_rows(data, config, VIRTUAL if method == "prompt_tuning" else 0)
    collator = Collator(rows.plan, config)
    batches = [collator([rows[row] for row in batch]) for batch in rows.plan.batches(0)]
    assert sum(len(row.examples) > 1 for row in rows.plan.rows(0)) >= 4
    expected = loss_and_gradients(made(config, METHODS[method], packed=False), alone(data))
    packed = loss_and_gradients(made(config, METHODS[method], packed=True), batches)
    assert packed[0] == pytest.approx(expected[0], rel=1e-6)
    assert worst_difference(expected[1], packed[1]) < 1e-6


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_plain_masks_change_the_loss_or_gradients(family: str) -> None:
    """The negative control: zeros and ones instead of segments, on the plain classes."""
    config = {"t5": T5, "llama": LLAMA}[family]
    data = examples(config)
    rows = packed_rows(data, config)
    collator = Collator(rows.plan, config)
    plain = made(config, FullMethod(), packed=False)
    expected = loss_and_gradients(plain, alone(data))
    batches = []
    for batch in rows.plan.batches(0):
        packed = collator([rows[row] for row in batch])
        if family == "t5":
            masks = {name: packed[name].clamp(max=1) for name in ("attention_mask", "decoder_attention_mask")}
            batches.append({**packed, **masks})
        else:
            batches.append({name: packed[name] for name in ("input_ids", "labels", "position_ids")})
    plain.zero_grad()
    wrong = loss_and_gradients(plain, batches)
    assert worst_difference(expected[1], wrong[1]) > 1e-2


def test_gradient_checkpointing_changes_nothing() -> None:
    data = examples(T5)
    rows = packed_rows(data, T5)
    collator = Collator(rows.plan, T5)
    batches = [collator([rows[row] for row in batch]) for batch in rows.plan.batches(0)]
    plain, checkpointed = (made(T5, FullMethod(), packed=True) for _ in range(2))
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    one, other = (loss_and_gradients(model, batches) for model in (plain, checkpointed))
    assert worst_difference(one[1], other[1]) < 1e-6


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_step_of_packed_rows_has_the_loss_of_its_examples(family: str) -> None:
    """As in Trainer: summed in each micro-batch, divided by the label tokens of the step."""
    config = {"t5": T5, "llama": LLAMA}[family]
    data = examples(config)
    rows = packed_rows(data, config)
    collator = Collator(rows.plan, config)
    batches = [collator([rows[row] for row in batch]) for batch in rows.plan.batches(0)]
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in batches) == data.target_tokens

    def step_loss(model: torch.nn.Module, step: list[Batch]) -> float:
        loss = TokenLoss(shifted=family == "llama", label_smoothing=0.1)
        with torch.no_grad():
            return sum(float(loss(model(**batch), batch["labels"], data.target_tokens)) for batch in step)

    expected = step_loss(made(config, FullMethod(), packed=False), alone(data))
    assert step_loss(made(config, FullMethod(), packed=True), batches) == pytest.approx(expected, rel=1e-6)


LOGIT_CASES = [("full", False), ("lora", False), ("prompt_tuning", False), ("full", True), ("lora", True)]


@pytest.mark.parametrize(("method", "packed"), LOGIT_CASES, ids=lambda value: str(value))
def test_logits_only_at_labels_have_the_loss_and_gradients_of_all_logits(method: str, packed: bool) -> None:
    data = examples(LLAMA)
    plan = packed_rows(data, LLAMA).plan
    if not packed:
        plan = dataclasses.replace(plan, name="dynamic", shapes=())
    rows = RowSet(data, plan)
    collator = Collator(plan, LLAMA)
    batches = [collator([rows[row] for row in batch]) for batch in plan.batches(0)]
    batches.append(collator([FilledRow([], Shape(120, 0))] * 2))  # rows that only fill a batch
    results, widths = [], []
    for loss, select in (
        (TokenLoss(shifted=True, label_smoothing=0.1), False),
        (TokenLoss(shifted=False, label_smoothing=0.1), True),
    ):
        model = made(LLAMA, METHODS[method], packed=packed)
        total = torch.zeros(())
        for batch in batches:
            features, labels = {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]
            if select:
                features, labels = split_labels(batch, decoder_only=True)
            outputs = model(**features)
            widths.append(outputs.logits.shape[1])
            total = total + loss(outputs, labels, data.target_tokens)
        total.backward()
        results.append((total.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (expected, gradients), (actual, others) = results
    assert actual == pytest.approx(expected, rel=1e-6)
    assert worst_difference(gradients, others) < 1e-5
    assert sum(widths[len(batches) :]) < 0.8 * sum(widths[: len(batches)])


@pytest.mark.parametrize("decoder_only", [False, True])
def test_all_logits_stay_where_a_batch_is_divided_among_gpus(decoder_only: bool) -> None:
    batch = {
        "input_ids": torch.ones(2, 4),
        "labels": torch.tensor([[IGNORED, 5, 6, 7], [IGNORED, IGNORED, 8, IGNORED]]),
    }
    inputs, labels = split_labels(batch, decoder_only=decoder_only, all_logits=True)
    assert inputs.keys() == {"input_ids"}
    shifted = [[5, 6, 7, IGNORED], [IGNORED, 8, IGNORED, IGNORED]]
    assert labels.tolist() == (shifted if decoder_only else batch["labels"].tolist())


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_tokens_of_packed_rows_are_counted_once(family: str) -> None:
    config = {"t5": T5, "llama": LLAMA}[family]
    data = examples(config)
    rows = packed_rows(data, config)
    collator = Collator(rows.plan, config)
    counted = sum(int(count_tokens(collator([rows[row] for row in batch]))) for batch in rows.plan.batches(0))
    assert counted == data.source_tokens


def test_every_segment_starts_like_a_separate_example() -> None:
    data = Encoded(({"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [8, 1], "labels": [9, 10, 1]}), 0, 0)
    for virtual, config in ((0, T5), (2, T5), (0, LLAMA)):
        seq2seq = config.is_encoder_decoder
        lengths = Lengths(np.array([3 + virtual, 2 + virtual]), np.array([2, 3]) * seq2seq)
        shape = Shape(10, 6 * seq2seq)
        plan = ShapePlan("packed", (shape,), lengths, not seq2seq, virtual, 1, 1, seed=0)
        batch = Collator(plan, config)([RowSet(data if seq2seq else JOINED, plan)[Row((0, 1), shape)]])
        if not seq2seq:
            assert batch["labels"].tolist() == [[IGNORED, 7, 1, IGNORED, 1, *[IGNORED] * 5]]
            assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, *[0] * 5]]
            assert (batch["attention_mask"][0, 0] == 0)[4].tolist() == [False] * 3 + [True] * 2 + [False] * 5
            continue
        assert batch["decoder_input_ids"].tolist() == [[0, 7, 0, 9, 10, 0]]
        assert batch["labels"].tolist() == [[7, 1, 9, 10, 1, IGNORED]]
        assert batch["decoder_attention_mask"].tolist() == [[1, 1, 2, 2, 2, 0]]
        if virtual:
            assert batch["prompt_slots"].tolist() == [[0, 1, -1, -1, -1, 0, 1, -1, -1, -1]]
            assert batch["input_ids"].tolist() == [[0, 0, 5, 6, 1, 0, 0, 8, 1, 0]]
            assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 2, 0]]
        else:
            assert batch["attention_mask"].tolist() == [[1, 1, 1, 2, 2, 0, 0, 0, 0, 0]]


def test_generation_and_plain_batches_use_upstream_code() -> None:
    packed, plain = (made(T5, FullMethod(), packed=packed).eval() for packed in (True, False))
    input_ids = torch.randint(2, 96, (3, 20), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 12:] = 0
    for beams in (1, 4):
        texts = [
            model.generate(input_ids=input_ids, attention_mask=attention_mask, max_new_tokens=12, num_beams=beams)
            for model in (packed, plain)
        ]
        assert torch.equal(*texts)
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": input_ids[:, :9].contiguous()}
    assert torch.equal(packed(**batch).logits, plain(**batch).logits)
    with pytest.raises(ValueError, match="shifted labels mix segments"):
        packed(**batch, decoder_attention_mask=torch.ones(3, 9))


def test_a_soft_prompt_for_a_packed_llama_is_rejected_first(tmp_path: Path, micro_llama: Path) -> None:
    recipe = load_recipe(str(micro_llama), ["train.shapes.plan=packed", "method=prompt_tuning"])
    with pytest.raises(RecipeError, match="PEFT cannot put a soft prompt before each example") as raised:
        train(recipe, tmp_path / "run")
    assert "train.shapes.plan=buckets" in str(raised.value.hint)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("family", "method"),
    [("micro", "full"), ("micro", "prompt_tuning"), ("micro_llama", "full"), ("micro_llama", "lora")],
)
def test_plain_transformers_loads_the_result_of_a_packed_run(
    tmp_path: Path, request: pytest.FixtureRequest, neuron_sum: CommandLine, family: str, method: str
) -> None:
    recipe = str(request.getfixturevalue(family))
    trained = neuron_sum("train", recipe, "train.shapes.plan=packed", f"method={method}", "--output", "run")
    assert trained.returncode == 0, trained.stderr
    assert "shapes (packed): one of" in trained.stderr
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert results["shapes"]["examples_per_row"] > 1.2
    loader = AutoModelForSeq2SeqLM if family == "micro" else AutoModelForCausalLM
    folder = tmp_path / "run" / ("checkpoint" if method == "full" else "base")
    model, found = loader.from_pretrained(folder, output_loading_info=True)
    assert type(model).__module__.startswith("transformers.")
    assert model.config.architectures == [type(model).__name__]
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]
    if method != "full":
        adapted = PeftModel.from_pretrained(model, tmp_path / "run" / "adapter")
        saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
        assert get_peft_model_state_dict(adapted).keys() == saved.keys()
    evaluated = neuron_sum("evaluate", "run", "--set", "data.max_test_examples=2")
    assert evaluated.returncode == 0, evaluated.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param("micro", "full", marks=pytest.mark.thorough),
        pytest.param("micro", "prompt_tuning", marks=pytest.mark.thorough),
        ("micro_llama", "lora"),
    ],
)
def test_a_killed_packed_run_resumes_to_the_same_weights_bit_for_bit(
    tmp_path: Path, request: pytest.FixtureRequest, family: str, method: str
) -> None:
    assert_a_kill_changes_nothing(
        tmp_path,
        str(request.getfixturevalue(family)),
        f"method={method}",
        "train.shapes.plan=packed",
        "train.gradient_accumulation_steps=2",
        "train.per_device_train_batch_size=4",
    )


@pytest.mark.slow
@pytest.mark.parametrize("plan", [pytest.param("buckets", marks=pytest.mark.thorough), "packed"])
def test_two_processes_share_the_rows_of_one(tmp_path: Path, micro: Path, neuron_sum: CommandLine, plan: str) -> None:
    common = (
        f"train.shapes.plan={plan}",
        "model.config.dropout_rate=0.0",
        "train.max_steps=24",
        "data.max_examples=50",
        "train.learning_rate=1e-3",
    )
    one = neuron_sum("train", str(micro), *common, "train.per_device_train_batch_size=8", "--output", "one")
    assert one.returncode == 0, one.stderr
    halves = (*common, "train.per_device_train_batch_size=4", "--output", "two")
    two = neuron_sum("train", str(micro), *halves, launcher=TORCHRUN)
    assert two.returncode == 0, two.stderr
    for key in ("loss", "eval_loss", "num_input_tokens_seen"):
        logged = [
            [entry[key] for entry in files.read_jsonl(tmp_path / run / "log.jsonl") if key in entry]
            for run in ("one", "two")
        ]
        assert logged[0] == pytest.approx(logged[1], abs=2e-4), key
