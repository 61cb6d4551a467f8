"""A StepRuntime over a pair of graphs per bucket: loaded from an artifact, or plain torch modules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from neuron_sum.artifact import Bucket, SpecialTokens, StateSpec
from neuron_sum.runtimes.adapters import AdapterSlots

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Encode = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]
"""(input_ids, attention_mask, slot) -> constants; shapes as in compile/t5.py."""
Step = Callable[..., Any]
"""(tokens, position, ancestors, slot, constants, state) -> logits; writes a column of state in place."""


@dataclass
class GraphRuntime:
    """Pads a batch to its bucket, keeps its state, and reorders beams by a table of ancestors.

    Attributes:
        buckets: The shapes there are.
        num_beams: The beam widths there are.
        tokens: The model's special ids.
        state: Shape of the self-attention cache.
        encode: The encode graph of a bucket.
        step: The step graph of a bucket and beam width.
        adapters: What fills the adapter slots.
    """

    buckets: Sequence[Bucket]
    num_beams: Sequence[int]
    tokens: SpecialTokens
    state: StateSpec
    encode: Callable[[Bucket], Encode]
    step: Callable[[Bucket, int], Step]
    adapters: AdapterSlots | None = field(default=None)

    def begin(
        self, bucket: Bucket, num_beams: int, prompts: Sequence[Sequence[int]], slots: Sequence[int]
    ) -> "GraphSession":
        """See `StepRuntime.begin`."""
        start_id = self.tokens.decoder_start
        input_ids = torch.full((bucket.batch, bucket.source_len), self.tokens.pad)
        mask = torch.zeros_like(input_ids)
        start = torch.full((bucket.batch, num_beams), self.tokens.pad)
        for row, prompt in enumerate(prompts):
            # A decoder-only model prefills all but its prompt's last token, which the first step takes.
            source = prompt if start_id is not None else prompt[:-1]
            input_ids[row, : len(source)] = torch.tensor(source, dtype=torch.int64)
            mask[row, : len(source)] = 1
            start[row] = start_id if start_id is not None else prompt[-1]
        slot = torch.tensor([*slots, *[0] * (bucket.batch - len(slots))])
        constants = list(self.encode(bucket)(input_ids, mask, slot))
        shape = (bucket.batch, self.state.heads, bucket.target_len * num_beams, self.state.head_dim)
        state = [torch.zeros(shape, dtype=TORCH_DTYPES[self.state.dtype]) for _ in range(self.state.tensors)]
        return GraphSession(self.step(bucket, num_beams), bucket, len(prompts), start, slot, constants, state)


class GraphSession:
    """A batch padded to its bucket; only the rows of real examples are seen from outside.

    Args:
        step: The graph.
        bucket: Its shape.
        examples: How many of the bucket's rows are real.
        start: (B, K) int64.
        slot: (B,) int64.
        constants: From the encode graph.
        state: Zeros.
    """

    def __init__(
        self, step: Step, bucket: Bucket, examples: int, start: Tensor, slot: Tensor, constants: list[Tensor],
        state: list[Tensor],
    ) -> None:  # fmt: skip
        self._step, self._examples, self._slot, self._constants, self._state = step, examples, slot, constants, state
        self._tokens, self.start = start.clone(), start[:examples]
        self._position = 0
        # ancestors[b, k, t]: the row that wrote, at step t, the past of beam k.
        self._own = torch.arange(start.shape[1]).expand_as(start)
        self._ancestors = torch.zeros(*start.shape, bucket.target_len, dtype=torch.int64)

    def step(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """See `Session.step`."""
        self._tokens[: self._examples] = tokens
        if tokens.shape[1] > 1:
            past = self._ancestors[: self._examples]
            self._ancestors[: self._examples] = past.gather(1, rows.unsqueeze(-1).expand_as(past))
            self._ancestors[:, :, self._position] = self._own
        position = torch.tensor([self._position])
        logits: Tensor = self._step(self._tokens, position, self._ancestors, self._slot, self._constants, self._state)
        self._position += 1
        return logits[: self._examples]
