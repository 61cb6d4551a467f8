"""A StepRuntime over a pair of graphs per bucket, loaded from an artifact or made of torch modules."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neuron_sum.artifact import Bucket, SpecialTokens
from neuron_sum.runtimes.base import Candidates, Greedy
from neuron_sum.runtimes.state import Array, BatchState, Result, Step

if TYPE_CHECKING:
    from neuron_sum.runtimes.slots import AdapterSlots

Encode = Callable[[Array, Array, Array, Array], Sequence[Result]]
"""(input_ids, attention_mask, slot, rows) -> constants; shapes as in compile/graphs/t5.py. On a device, it writes them
into these rows of the tensors that all graphs share, and returns none."""


@dataclass
class GraphRuntime:
    """A runtime that pads a batch to its bucket and reorders beams with a table of ancestors.

    Attributes:
        buckets: The compiled shapes.
        num_beams: The compiled beam widths.
        tokens: The special token ids of the model.
        encode: A function that returns the encode graph of a bucket.
        open: A function that starts a batch with the step graph of a bucket and beam width.
        adapters: The adapter slots; None for graphs without slots.
        turn: See `StepRuntime.turn`.
        greedy_steps: The number of steps of the graphs of several greedy steps; 1 without such graphs.
    """

    buckets: Sequence[Bucket]
    num_beams: Sequence[int]
    tokens: SpecialTokens
    encode: Callable[[Bucket], Encode]
    open: BatchState
    adapters: "AdapterSlots | None" = None
    turn: Callable[[], AbstractContextManager[Any]] = nullcontext
    greedy_steps: int = 1

    def begin(
        self, bucket: Bucket, num_beams: int, prompts: Sequence[Sequence[int]], slots: Sequence[int]
    ) -> "GraphSession":
        """See `StepRuntime.begin`."""
        constants, first, slot = self.encoded(bucket, prompts, slots)
        start = first[:, None].repeat(num_beams, axis=1)
        step, several = self.open(bucket, num_beams, constants), self.greedy_steps if num_beams == 1 else 1
        return GraphSession(step, bucket, len(prompts), start, slot, several)

    def encoded(
        self,
        bucket: Bucket,
        prompts: Sequence[Sequence[int]],
        slots: Sequence[int],
        rows: Sequence[int] | None = None,
    ) -> tuple[list[Result], Array, Array]:
        """Encode prompts that fit into a bucket; the last prompt also fills the unused rows of the graph.

        Args:
            bucket: The bucket.
            prompts: At most bucket.batch rows of token ids.
            slots: The adapter slot of each prompt.
            rows: The row of the batch for each prompt. Default: the first rows.

        Returns:
            The constants of the bucket's rows, the input token of each row's first step, and each row's adapter slot.
        """
        start_id = self.tokens.decoder_start
        input_ids = np.full((bucket.batch, bucket.source_len), self.tokens.pad)
        mask = np.zeros_like(input_ids)
        filled = [min(row, len(prompts) - 1) for row in range(bucket.batch)]
        start, slot, at = (
            np.array([values[index] for index in filled])
            for values in (
                [start_id if start_id is not None else prompt[-1] for prompt in prompts],
                slots,
                range(len(prompts)) if rows is None else rows,
            )
        )
        for row, index in enumerate(filled):
            # A decoder-only model prefills all but the last token of the prompt, which is the input of the first step.
            source = prompts[index] if start_id is not None else prompts[index][:-1]
            input_ids[row, : len(source)] = source
            mask[row, : len(source)] = 1
        return list(self.encode(bucket)(input_ids, mask, slot, at)), start, slot


class GraphSession:
    """A batch padded to its bucket; only the rows of real examples are visible to callers.

    Args:
        step: The step graph of this batch.
        bucket: The shape of the batch.
        examples: The number of rows with real examples.
        start: The input tokens of the first step, (B, K) int64.
        slot: The adapter slot of each row, (B,) int64.
        greedy_steps: The number of steps of the graph of several greedy steps; 1 without one.
    """

    def __init__(
        self, step: Step, bucket: Bucket, examples: int, start: Array, slot: Array, greedy_steps: int = 1
    ) -> None:
        self._step, self._examples, self._slot = step, examples, slot
        self._tokens, self.start = start.copy(), start[:examples]
        self._position = 0
        self.greedy = Greedy(greedy_steps, partial(self._several, greedy_steps)) if greedy_steps > 1 else None
        # ancestors[b, k, t]: the row that wrote the past of beam k at step t.
        self._rows = np.arange(start.shape[1])
        self._ancestors = np.zeros((*start.shape, bucket.target_len), dtype=np.int64)

    def step(self, tokens: NDArray[np.int64], rows: NDArray[np.int64]) -> Candidates:
        """See `Session.step`."""
        if tokens.shape[1] > 1:
            past = self._ancestors[: self._examples]
            self._ancestors[: self._examples] = np.take_along_axis(past, rows[..., None], axis=1)
            self._ancestors[:, :, self._position] = self._rows
        values, ids, log_sum, logits = self._call(tokens, 1)
        selected = [np.asarray(part)[: self._examples] for part in (values, ids, log_sum)]
        return Candidates(
            selected[0], selected[1], selected[2], logits.shape[-1], lambda: np.asarray(logits)[: self._examples]
        )

    def _several(self, steps: int, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Greedy.call`."""
        chosen, logits = (np.asarray(part)[: self._examples] for part in self._call(tokens, steps))
        return chosen, logits

    def _call(self, tokens: NDArray[np.int64], steps: int) -> Sequence[Result]:
        self._tokens[: self._examples] = tokens
        position = np.full(len(self._tokens), self._position)
        self._position += steps
        return self._step(self._tokens, position, self._ancestors, self._slot, steps)
