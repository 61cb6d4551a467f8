"""The shape plan: the shapes for training, and their cost in padding, which is printed before training.

Both training backends take their batches from a `ShapePlan`: `RowSet` (rows.py) is its data set, `Collator` builds the
tensors, and `EpochOrder` (training/torch/order.py) is the order of the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from neuron_sum.data.buckets import best_buckets
from neuron_sum.data.encoding import Encoded
from neuron_sum.data.layouts import (
    STEP,
    BucketLayout,
    DynamicLayout,
    Layout,
    Lengths,
    PackedLayout,
    Row,
    Shape,
    rounded_up,
)
from neuron_sum.data.packing import Integers, pack
from neuron_sum.errors import RecipeError
from neuron_sum.recipes.schema import PromptTuningMethod, Recipe

PACKED_GROWTH = 2
"""Maximum length of a packed row, as a multiple of the longest source, so that examples fill both sides evenly."""
PACKED_CANDIDATES = 16
"""Number of source lengths to try, from one to PACKED_GROWTH times the longest source."""
PACKED_SAMPLE = 2048
"""Number of examples to pack for each candidate."""
PACKED_TOLERANCE = 1.01
"""The shortest row within this factor of the fewest positions is chosen, because attention grows with the square."""


@dataclass(frozen=True)
class ShapeReport:
    """The cost of a plan in one epoch, counted from its rows.

    Attributes:
        plan: The name of the plan.
        shapes: The shapes of the batches, ascending; for `dynamic`, those of the first epoch.
        accumulates: Whether an optimizer step has several micro-batches.
        examples: Number of training examples.
        rows: Number of rows per epoch.
        real_tokens: Tokens of the examples after cutting, including the virtual tokens of a soft prompt in packed rows.
        padded_positions: Number of computed positions.
        sources_cut: Number of dialogues cut to data.max_source_length.
        targets_cut: Number of summaries cut to data.max_target_length.
    """

    plan: str
    shapes: tuple[Shape, ...]
    accumulates: bool
    examples: int
    rows: int
    real_tokens: int
    padded_positions: int
    sources_cut: int
    targets_cut: int

    @property
    def ratio(self) -> float:
        """Computed positions per real token."""
        return self.padded_positions / self.real_tokens

    @property
    def examples_per_row(self) -> float:
        """Average number of examples per row."""
        return self.examples / self.rows

    @property
    def graphs(self) -> int:
        """Number of graphs of forward and backward passes that an ahead-of-time compiler compiles for these shapes.

        One per shape; two if gradients are accumulated, because the first micro-batch of a step creates gradients and
        the others add to them. The optimizer and logging need some more, the same number for every plan.
        """
        return len(self.shapes) * (2 if self.accumulates else 1)

    def __str__(self) -> str:
        if self.plan == "dynamic":
            shapes = f"{len(self.shapes)} different ones in the first epoch"
        else:
            sizes = ", ".join(str(shape) for shape in self.shapes)
            shapes = f"{len(self.shapes) if len(self.shapes) > 1 else 'one'} of {sizes}"
            if self.accumulates:
                shapes += f" ({self.graphs} graphs because gradients are accumulated)"
        return (
            f"shapes ({self.plan}): {shapes}; {self.rows:,} rows of {self.examples_per_row:.2f} examples per epoch; "
            f"{self.padded_positions:,} positions for {self.real_tokens:,} tokens ({self.ratio:.3f}); "
            f"cut: {self.sources_cut} sources, {self.targets_cut} targets"
        )

    def as_dict(self) -> dict[str, Any]:
        """The report for --json and all_results.json."""
        return {
            "plan": self.plan,
            "graphs": self.graphs,
            "shapes": [list(shape) for shape in self.shapes] if self.plan != "dynamic" else None,
            "examples": self.examples,
            "rows": self.rows,
            "examples_per_row": round(self.examples_per_row, 4),
            "real_tokens": self.real_tokens,
            "padded_positions": self.padded_positions,
            "ratio": round(self.ratio, 4),
            "sources_cut": self.sources_cut,
            "targets_cut": self.targets_cut,
        }


@dataclass(frozen=True)
class ShapePlan:
    """The arrangement of the examples of one split in rows of tensors.

    Attributes:
        name: dynamic, fixed, buckets or packed.
        shapes: The shapes, ascending; () for dynamic.
        lengths: The lengths of the examples; if packed, including the virtual tokens of a soft prompt.
        decoder_only: Whether prompt and summary share a row.
        virtual_tokens: Positions of a soft prompt before each example of a packed row; 0 if rows are not packed.
        batch_size: Rows per process and micro-batch.
        devices: Number of processes that train together.
        seed: The seed of the order.
        accumulation: Micro-batches per optimizer step.
        group: See DynamicLayout.
        fill: Whether empty rows fill the last batches; always true with fixed shapes.
    """

    name: str
    shapes: tuple[Shape, ...]
    lengths: Lengths
    decoder_only: bool
    virtual_tokens: int
    batch_size: int
    devices: int
    seed: int
    accumulation: int = 1
    group: int | None = None
    fill: bool = True

    @property
    def packed(self) -> bool:
        """Whether a row contains several examples."""
        return self.name == "packed"

    @property
    def source_len(self) -> int:
        """The maximum length of input_ids."""
        return self.shapes[-1].source_len if self.shapes else int(self.lengths.source.max())

    @property
    def target_len(self) -> int:
        """The maximum length of the labels; 0 for a decoder-only model."""
        return self.shapes[-1].target_len if self.shapes else int(self.lengths.target.max())

    @property
    def rows_per_epoch(self) -> int:
        """Number of rows, which is the same in every epoch."""
        return len(self._first_epoch)

    def rows(self, epoch: int) -> list[Row]:
        """The rows of an epoch, in order.

        They are grouped in chunks of batch_size x devices rows of one shape, of which the first process takes the first
        batch_size. So all processes have the same shape at each step, and every batch is full.
        """
        return self._first_epoch if epoch == 0 else self._layout.rows(epoch)

    def batches(self, epoch: int) -> list[list[Row]]:
        """The micro-batches of an epoch, of all processes."""
        rows = self.rows(epoch)
        return [rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size)]

    def shape_of(self, batch: Sequence[Row]) -> Shape:
        """The padded shape of a batch: its fixed shape, or its longest example rounded up to multiples of STEP."""
        if batch[0].shape is not None:
            return batch[0].shape
        examples = [example for row in batch for example in row.examples]
        return rounded_up(*(int(side[examples].max(initial=0)) for side in _sides(self.lengths)))

    def report(self, data: Encoded) -> ShapeReport:
        """The cost of the plan.

        Args:
            data: The split of the plan.
        """
        batches = self.batches(0)
        padded = [(len(batch), self.shape_of(batch)) for batch in batches]
        different = sorted({(shape, rows) for rows, shape in padded})
        return ShapeReport(
            plan=self.name,
            shapes=tuple(shape for shape, _ in different),
            accumulates=self.accumulation > 1,
            examples=len(data),
            rows=self.rows_per_epoch,
            real_tokens=self.lengths.tokens,
            padded_positions=sum(rows * sum(shape) for rows, shape in padded),
            sources_cut=data.sources_cut,
            targets_cut=data.targets_cut,
        )

    def for_validation(self, data: Encoded, batch_size: int) -> "ShapePlan":
        """A plan with the same shapes for another split.

        Args:
            data: The validation split.
            batch_size: per_device_eval_batch_size.
        """
        return replace(
            self,
            lengths=_lengths(data, self.decoder_only, self.virtual_tokens),
            batch_size=batch_size,
            accumulation=1,
            group=batch_size,
            fill=True,
        )

    @cached_property
    def _first_epoch(self) -> list[Row]:
        return self._layout.rows(0)

    @cached_property
    def _layout(self) -> Layout:
        chunk = self.batch_size * self.devices
        if not self.shapes:
            return DynamicLayout(self.lengths, self.seed, self.group, chunk if self.fill else 1)
        if self.packed:
            return PackedLayout(self.lengths, self.seed, self.shapes[0], chunk)
        return BucketLayout(self.lengths, self.seed, self.shapes, chunk)


def choose_plan(
    recipe: Recipe, training: Encoded, validation: Encoded | None, *, decoder_only: bool, devices: int = 1
) -> ShapePlan:
    """Chooses the plan of a recipe for its data.

    Args:
        recipe: The recipe with train.shapes and the batch settings.
        training: The training split.
        validation: The validation split, whose examples must also fit.
        decoder_only: Whether prompt and summary share a row.
        devices: Number of processes that train together.

    Raises:
        RecipeError: If train.shapes.sizes are too small for an example.
    """
    train, method = recipe.train, recipe.method
    config = train.shapes
    virtual_tokens = 0  # if rows are not packed, PEFT puts a soft prompt before them
    if config.plan == "packed" and isinstance(method, PromptTuningMethod):
        virtual_tokens = method.num_virtual_tokens
    lengths = _lengths(training, decoder_only, virtual_tokens)
    splits = [lengths] if validation is None else [lengths, _lengths(validation, decoder_only, virtual_tokens)]
    longest = Shape(*(max(int(split[side].max()) for split in map(_sides, splits)) for side in (0, 1)))
    shapes: tuple[Shape, ...]
    if config.sizes is not None:
        shapes = tuple(_shape_of_sides(*sides, decoder_only) for sides in config.sizes)
        if shapes[-1].source_len < longest.source_len or shapes[-1].target_len < longest.target_len:
            raise RecipeError(
                f"train.shapes.sizes end with {shapes[-1]} tokens, but the longest examples have {longest}",
                "increase the last size, or lower data.max_source_length and data.max_target_length",
            )
    elif config.plan == "dynamic":
        shapes = ()
    elif config.plan == "fixed":
        shapes = (longest_row(recipe, decoder_only=decoder_only),)
    elif config.plan == "buckets":
        grids = [np.arange(STEP, side + 1, STEP) if side else np.zeros(1, np.int64) for side in rounded_up(*longest)]
        choices = best_buckets(lengths.source, lengths.target, grids[0], grids[1], config.buckets)
        shapes = tuple(Shape(*shape) for shape in choices[-1])
    else:
        shapes = (packed_shape(lengths, longest),)
    return ShapePlan(
        name=config.plan,
        shapes=shapes,
        lengths=lengths,
        decoder_only=decoder_only,
        virtual_tokens=virtual_tokens,
        batch_size=train.per_device_train_batch_size,
        devices=devices,
        seed=train.seed,
        accumulation=train.gradient_accumulation_steps,
        group=train.per_device_train_batch_size * train.gradient_accumulation_steps * devices
        if train.group_by_length
        else None,
        fill=config.plan != "dynamic",
    )


def longest_row(recipe: Recipe, *, decoder_only: bool) -> Shape:
    """The longest row of a recipe: the last of train.shapes.sizes, or one example of the maximum length.

    If `packed` chooses its row from the data, that row may be up to PACKED_GROWTH times as long.

    Args:
        recipe: The recipe with train.shapes and the maximum lengths.
        decoder_only: Whether prompt and summary share a row.
    """
    sizes = recipe.train.shapes.sizes or ((recipe.data.max_source_length, recipe.data.max_target_length),)
    return _shape_of_sides(*sizes[-1], decoder_only)


def check_packing(recipe: Recipe, *, decoder_only: bool) -> None:
    """Checks that examples can be packed, before a model is loaded.

    Raises:
        RecipeError: For packed rows, or rows of several claims, of a decoder-only model with a soft prompt.
    """
    packed = recipe.train.shapes.plan == "packed"
    if not decoder_only or not isinstance(recipe.method, PromptTuningMethod):
        return
    if recipe.data.claims is not None:
        raise RecipeError(
            "data.claims with prompt_tuning: PEFT drops the position_ids of the rows of a decoder-only model",
            "use method=lora",
        )
    if packed:
        # PEFT joins its mask to a two-dimensional one, and drops the position_ids that packed rows need.
        raise RecipeError(
            "train.shapes.plan = 'packed' with prompt_tuning: PEFT cannot put a soft prompt before each example of a "
            "decoder-only model's row",
            "use train.shapes.plan=buckets or method=lora",
        )


def packed_shape(lengths: Lengths, longest: Shape) -> Shape:
    """The shortest packed row with little padding.

    It has room for the longest example on either side, and both sides fill evenly; its length is determined by packing
    a sample. The same data always results in the same shape.

    Args:
        lengths: The lengths of the examples.
        longest: The smallest permitted shape.
    """
    smallest = rounded_up(*longest)
    step, _ = rounded_up(-(-smallest.source_len * (PACKED_GROWTH - 1) // PACKED_CANDIDATES), 0)
    targets_per_source = lengths.target.sum() / lengths.source.sum()
    candidates = {smallest}
    for source_len in range(smallest.source_len, smallest.source_len * PACKED_GROWTH + 1, step):
        even = rounded_up(source_len, int(source_len * targets_per_source)).target_len
        candidates |= {
            Shape(source_len, max(target_len, smallest.target_len) if smallest.target_len else 0)
            for target_len in (even, even + STEP, even + 2 * STEP)
        }
    sample = np.linspace(0, len(lengths) - 1, min(PACKED_SAMPLE, len(lengths))).astype(int)
    source, target = lengths.source[sample], lengths.target[sample]
    shortest_first = sorted(candidates, key=sum)
    positions = [len(pack(source, target, *shape)) * sum(shape) for shape in shortest_first]
    return next(
        shape
        for shape, count in zip(shortest_first, positions, strict=True)
        if count <= PACKED_TOLERANCE * min(positions)
    )


def _shape_of_sides(source_len: int, target_len: int, decoder_only: bool) -> Shape:
    return Shape(source_len + target_len, 0) if decoder_only else Shape(source_len, target_len)


def _lengths(data: Encoded, decoder_only: bool, virtual_tokens: int) -> Lengths:
    source = np.array([len(feature["input_ids"]) + virtual_tokens for feature in data.features], dtype=np.int64)
    if decoder_only:
        return Lengths(source, np.zeros_like(source))
    return Lengths(source, np.array([len(feature["labels"]) for feature in data.features], dtype=np.int64))


def _sides(lengths: Lengths) -> tuple[Integers, Integers]:
    return lengths.source, lengths.target
