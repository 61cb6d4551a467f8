"""Time and cost of an epoch on Trainium: at the chip's published rate, and projected with an assumed share of it.

The figure at the published rate is a floor if every row has one known shape. Otherwise every row counts as the longest
one, and the result is an estimate that may be above the floor.

Nothing here was measured. Operations are those that torch counts in one step of transformers' model with fake tensors,
eager attention and every position of the recipe's longest row; the Llama of NeuronTrainer may need fewer.
"""

import copy
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from neuron_sum.data.layouts import Shape
from neuron_sum.errors import NeuronSumError, RecipeError
from neuron_sum.models.dimensions import training_examples
from neuron_sum.platform.matrix import CORE_FLOPS, INSTANCES
from neuron_sum.platform.prices import find_price
from neuron_sum.recipes.schema import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INSTANCE = "ml.trn1.2xlarge"
ASSUMED_SHARE = 0.25
"""The share of the peak rate in the projection: an assumption. AWS publishes no figure for models of this size."""
ASK_FOR_PACKED = (
    "the number of rows for {examples:,} published examples is unknown without the data: set --examples-per-row to the "
    "value that `neuron-sum train` prints on a machine with the data ('rows of 2.20 examples')"
)


@dataclass(frozen=True)
class EpochProjection:
    """One epoch on one instance.

    Attributes:
        shape: The shape of a row.
        rows_per_step: Rows of one core's micro-batch.
        flops_per_row: Operations of a row, forward and backward.
        rows: Rows of an epoch; None if unknown.
        rows_are: The origin of that number.
        dtype: The type that determines the peak rate.
        instance: The instance type.
        is_floor: Whether every row is known to have this shape; otherwise this is an estimate with the longest row.
        peak_s: Seconds per epoch at the peak rate of all cores; None if the number of rows is unknown.
        peak_usd: The cost of that time in USD.
        projected_s: Seconds per epoch at ASSUMED_SHARE of that rate.
        projected_usd: The cost of that time in USD.
        peak_usd_per_1000_rows: The cost in USD of 1,000 rows of this shape at the peak rate: a floor for such rows.
    """

    shape: Shape
    rows_per_step: int
    flops_per_row: float
    rows: int | None
    rows_are: str
    dtype: str
    instance: str
    is_floor: bool
    peak_s: float | None
    peak_usd: float | None
    projected_s: float | None
    projected_usd: float | None
    peak_usd_per_1000_rows: float

    def as_dict(self) -> dict[str, Any]:
        """The values for --json."""
        return {**asdict(self), "shape": list(self.shape), "assumed_share_of_peak": ASSUMED_SHARE}


def project_epoch(recipe: Recipe, config: "PretrainedConfig", examples_per_row: float | None = None) -> EpochProjection:
    """Project time and cost of an epoch of a recipe.

    Args:
        recipe: The recipe, for method, shapes, batch size and data.
        config: The base model's configuration.
        examples_per_row: The mean number of examples in a packed row; counted from the data if they are on this
            machine. Without either, the duration of a packed epoch is unknown.

    Raises:
        RecipeError: For examples_per_row with a plan that does not pack.
    """
    from neuron_sum.data.shapes import longest_row
    from neuron_sum.models.base import is_decoder_only

    plan, sizes = recipe.train.shapes.plan, recipe.train.shapes.sizes
    if examples_per_row is not None and plan != "packed":
        raise RecipeError(
            f"--examples-per-row requires train.shapes.plan=packed; with {plan}, a row has one example",
            "omit it, or set train.shapes.plan=packed",
        )
    shape = longest_row(recipe, decoder_only=is_decoder_only(config))
    rows_per_step = recipe.train.per_device_train_batch_size
    flops = step_flops(recipe, config, shape) / rows_per_step
    counted = counted_rows(recipe, config)
    if counted is not None:
        rows, shape_of_data, rows_are = counted
        if shape_of_data != shape:  # packed, with a row length chosen from the data
            shape = shape_of_data
            flops = step_flops(recipe, config, shape) / rows_per_step
    elif (examples := training_examples(recipe.data)) is None:
        rows, rows_are = None, "data or tokenizer are not on this machine, and the number of examples is not published"
    elif plan != "packed":
        rows, rows_are = examples, f"{examples:,} published examples"
    elif examples_per_row is None:
        rows, rows_are = None, ASK_FOR_PACKED.format(examples=examples)
    else:
        rows = math.ceil(examples / examples_per_row)
        rows_are = f"{examples:,} published examples at {examples_per_row:g} per row"
    instance, dtype = INSTANCES[INSTANCE], "bf16" if recipe.train.bf16 else "fp32"
    row_s = flops / (CORE_FLOPS[dtype] * instance.neuron_cores)
    usd_per_s = find_price(INSTANCE).usd_per_hour / 3600
    peak_s = None if rows is None else rows * row_s
    projected_s = None if peak_s is None else peak_s / ASSUMED_SHARE
    return EpochProjection(
        shape=shape,
        rows_per_step=rows_per_step,
        flops_per_row=flops,
        rows=rows,
        rows_are=rows_are,
        dtype=dtype,
        instance=INSTANCE,
        is_floor=plan in ("fixed", "packed") and (counted is not None or sizes is not None),
        peak_s=peak_s,
        peak_usd=None if peak_s is None else peak_s * usd_per_s,
        projected_s=projected_s,
        projected_usd=None if projected_s is None else projected_s * usd_per_s,
        peak_usd_per_1000_rows=1000 * row_s * usd_per_s,
    )


def step_flops(recipe: Recipe, config: "PretrainedConfig", shape: Shape) -> int:
    """Operations of one micro-batch, forward and backward, including recomputation by gradient checkpointing.

    Args:
        recipe: The recipe, for method, batch size and gradient checkpointing.
        config: The base model's configuration.
        shape: The shape of a row.
    """
    import torch
    from torch._subclasses import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from neuron_sum.models import adapters
    from neuron_sum.models import base as models

    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    if not models.is_decoder_only(config) and config.decoder_start_token_id is None:
        config.decoder_start_token_id = 0  # any value: only shapes matter
    rows, train = recipe.train.per_device_train_batch_size, recipe.train
    with FakeTensorMode():  # not the meta device, on which Llama's rotary embedding cannot disable autocast
        base = models.model_class_of(config)(config)
        model = adapters.attach(base, recipe.method, train.seed).train()
        if train.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        inputs = {"input_ids": torch.ones(rows, shape.source_len, dtype=torch.long)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["labels"] = torch.ones(rows, shape.target_len or shape.source_len, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(**inputs, use_cache=False).loss.backward()
    return int(counter.get_total_flops())


def counted_rows(recipe: Recipe, config: "PretrainedConfig") -> tuple[int, Shape, str] | None:
    """Rows of an epoch and their shape in the shape plan, if data and tokenizer are on this machine."""
    from neuron_sum.data.encoding import encode
    from neuron_sum.data.long_rows import training_rows
    from neuron_sum.data.shapes import choose_plan, longest_row
    from neuron_sum.data.sources import load_dataset
    from neuron_sum.models import base as models
    from neuron_sum.models.chat import render_chat

    if recipe.data.source == "hub":
        return None
    decoder_only = models.is_decoder_only(config)
    try:
        dataset = load_dataset(recipe.data, recipe.output)
        tokenizer = models.load_tokenizer(recipe.model, dataset.training_texts())
    except NeuronSumError:  # not on this machine: the caller has alternatives
        return None
    recipe = render_chat(recipe, tokenizer)
    prompt, sections = recipe.prompt.resolve(), recipe.output.sections
    rows = training_rows(dataset["train"], tokenizer, prompt, recipe.data)
    encoded = encode(rows.examples, tokenizer, prompt, recipe.data, decoder_only=decoder_only, sections=sections)
    plan = choose_plan(recipe, encoded, None, decoder_only=decoder_only, devices=INSTANCES[INSTANCE].neuron_cores)
    longest = longest_row(recipe, decoder_only=decoder_only)
    shape = Shape(plan.source_len, plan.target_len) if plan.shapes else longest
    return plan.rows_per_epoch, shape, f"counted from {dataset.origin} ({recipe.train.shapes.plan})"
