"""What the static-shape graphs are made of: projections with adapter slots, norms, attention, the K/V column write.

Shapes are fixed by a bucket, so every graph is compiled once and serves all steps. The residual stream, norms, softmax
and scores are float32; weights and the operands of matrix products have the graph's dtype; K/V has its own.
Letters in shapes: B examples, K beams, S source positions (soft prompt included), T target positions, H heads, D width
of a head, N adapter slots, r rank.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuron_sum.artifact import AdapterSpec

MASKED = -1e9
"""Added to a score that must not count; after float32's softmax exactly 0."""


class Linear(nn.Module):
    """One or several projections of the same input as one matrix product, with room for LoRA.

    LoRA weights (Hu et al. 2021, arXiv:2106.09685) are data: stacks of A (N, r, in) and B (N, out, r), of which every
    example of a batch picks one by its slot. Slot 0 is zeros. Sub-classes store the weight as their target wants it.

    Args:
        parts: Output width of each projection by its module's name in transformers' model; the fused output has them
            in this order.
        in_features: Width of the input.
        options: Dtypes and adapters.
    """

    weight: nn.Parameter

    def __init__(self, parts: Mapping[str, int], in_features: int, options: "GraphOptions") -> None:
        super().__init__()
        self.parts = dict(parts)
        self.in_features, self.out_features, self.dtype = in_features, sum(parts.values()), options.dtype
        self.adapted: dict[str, str] = {}
        self.make_weight()
        spec = options.adapters
        for index, (name, width) in enumerate(parts.items()):
            if spec is not None and spec.rank and name.rpartition(".")[2] in spec.target_modules:
                self.adapted[name] = f"lora_{index}"
                # Parameters and no buffers, for torch_neuronx takes what shall stay on the device by its parameter.
                shapes = {"a": (spec.slots, spec.rank, in_features), "b": (spec.slots, width, spec.rank)}
                for half, shape in shapes.items():
                    stack = frozen(torch.empty(shape, dtype=self.dtype))
                    self.register_parameter(f"lora_{index}_{half}", stack)

    def make_weight(self) -> None:
        """Registers the (empty) parameter or buffers that `weights` fills."""
        self.weight = frozen(torch.empty(self.out_features, self.in_features, dtype=self.dtype))

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This layer's own tensors, made from transformers' state dict."""
        return {"weight": self.fused(state).to(self.dtype)}

    def fused(self, state: Mapping[str, Tensor]) -> Tensor:
        """The projections' weights on top of each other: (out, in)."""
        return torch.cat([state[f"{name}.weight"] for name in self.parts])

    def product(self, inputs: Tensor) -> Tensor:
        """Inputs (..., in) times the weight, without adapters."""
        return functional.linear(inputs.to(self.weight.dtype), self.weight)

    def forward(self, inputs: Tensor, slot: Tensor) -> Tensor:
        """Projects.

        Args:
            inputs: (B, rows, in), float32.
            slot: (B,) int64, each example's adapter.

        Returns:
            (B, rows, out), float32.
        """
        outputs = self.product(inputs).float()
        if not self.adapted:
            return outputs
        pieces = list(torch.split(outputs, list(self.parts.values()), dim=-1))
        for index, name in enumerate(self.parts):
            if prefix := self.adapted.get(name):
                down = getattr(self, f"{prefix}_a").index_select(0, slot)
                up = getattr(self, f"{prefix}_b").index_select(0, slot)
                low = torch.bmm(inputs.to(down.dtype), down.transpose(1, 2))
                pieces[index] = pieces[index] + torch.bmm(low, up.transpose(1, 2)).float()
        return torch.cat(pieces, dim=-1)


def write_column(cache: Tensor, column: Tensor, position: Tensor) -> Tensor:
    """Writes the K beams' newest key or value in place.

    Args:
        cache: (B, H, T * K, D); slot t * K + k holds what beam row k wrote at step t.
        column: (B, H, K, D).
        position: (1,) int64, the step.

    Returns:
        The cache.
    """
    beams = column.shape[2]
    rows = position * beams + torch.arange(beams, device=cache.device)
    return cache.index_copy_(2, rows, column.to(cache.dtype))


def write_where(cache: Tensor, column: Tensor, position: Tensor) -> Tensor:
    """The same as a choice between old and new for every slot: a new cache, for a compiler without in-place writes."""
    batch, heads, slots, width = cache.shape
    beams = column.shape[2]
    written = torch.arange(slots // beams, device=cache.device) == position
    by_step = cache.view(batch, heads, -1, beams, width)
    chosen = torch.where(written[:, None, None], column.unsqueeze(2).to(cache.dtype), by_step)
    return chosen.view(batch, heads, slots, width)


@dataclass(frozen=True)
class GraphOptions:
    """What the graphs of one artifact share.

    Attributes:
        dtype: Of weights and of the operands of matrix products.
        kv_dtype: Of keys and values.
        linear: How the target stores and multiplies a weight.
        write: How a step writes its column into the self-attention cache: (cache, column, position) -> cache. It
            writes in place, or returns a new tensor.
        row_sums: Whether a single query is multiplied as a sum, which fuses on a CPU, or as the matrix product that a
            device has an engine for.
        source_len: The longest bucket's, soft prompt not counted.
        target_len: The longest bucket's.
        soft_prompt_tokens: Positions kept before the source for a soft prompt.
        adapters: Adapter slots; None for a graph without.
    """

    dtype: torch.dtype = torch.float32
    kv_dtype: torch.dtype = torch.float32
    linear: type[Linear] = field(default=Linear)
    write: Callable[[Tensor, Tensor, Tensor], Tensor] = field(default=write_column)
    row_sums: bool = True
    source_len: int = 512
    target_len: int = 128
    soft_prompt_tokens: int = 0
    adapters: AdapterSpec | None = None


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019 (arXiv:1910.07467), in float32, as T5 and Llama have it.

    Args:
        name: Its module's name in transformers' model.
        width: Of the input.
        eps: Added to the mean square.
    """

    def __init__(self, name: str, width: int, eps: float) -> None:
        super().__init__()
        self.name, self.eps = name, eps
        self.weight = frozen(torch.empty(width))

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This layer's own tensors, made from transformers' state dict."""
        return {"weight": state[f"{self.name}.weight"].float()}

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (..., width) float32, the same out."""
        return inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + self.eps) * self.weight


class SoftPrompts(nn.Module):
    """Vectors before the embedded source (Lester et al. 2021, arXiv:2104.08691): one compiled in, or one per slot.

    Args:
        width: Of an embedding.
        options: soft_prompt_tokens, and the number of slots.
    """

    def __init__(self, width: int, options: GraphOptions) -> None:
        super().__init__()
        self.by_slot = options.adapters is not None
        slots = options.adapters.slots if options.adapters is not None else 1
        self.vectors = frozen(torch.empty(slots, options.soft_prompt_tokens, width, dtype=options.dtype))
        self.mask = frozen(torch.empty(slots, options.soft_prompt_tokens, dtype=torch.int64))

    def forward(self, words: Tensor, attention_mask: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Embedded words (B, source, width) and mask (B, source), both with the soft prompt before them."""
        index = slot if self.by_slot else torch.zeros_like(slot)
        vectors = self.vectors.index_select(0, index).to(words.dtype)
        mask = self.mask.index_select(0, index)
        return torch.cat([vectors, words], dim=1), torch.cat([mask, attention_mask], dim=1)


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter that is never trained."""
    return nn.Parameter(tensor, requires_grad=False)


def split_heads(inputs: Tensor, heads: int) -> Tensor:
    """(B, rows, heads * D) -> (B, heads, rows, D)."""
    batch, rows, width = inputs.shape
    return inputs.view(batch, rows, heads, width // heads).transpose(1, 2)


def join_heads(inputs: Tensor) -> Tensor:
    """(B, heads, rows, D) -> (B, rows, heads * D)."""
    batch, heads, rows, width = inputs.shape
    return inputs.transpose(1, 2).reshape(batch, rows, heads * width)


def attend(
    query: Tensor, memories: Sequence[tuple[Tensor, Tensor, Tensor]], scale: float = 1.0, *, row_sums: bool = True
) -> Tensor:
    """Attention over one or several memories as if they were one, without joining them in memory.

    Args:
        query: (B, H, Q, D), float32.
        memories: For each, keys and values (B, H, length, D) and what is added to the scores, broadcastable to
            (B, H, Q, length), float32.
        scale: Of the scores; T5 has none.
        row_sums: See `GraphOptions`.

    Returns:
        (B, H, Q, D), float32.
    """
    row_sums = row_sums and query.shape[2] == 1
    if scale != 1.0:
        query = query * scale
    scores = [_scores(query, keys, row_sums) + bias for keys, _, bias in memories]
    weights = torch.softmax(torch.cat(scores, dim=-1) if len(scores) > 1 else scores[0], dim=-1)
    parts = torch.split(weights, [keys.shape[2] for keys, _, _ in memories], dim=-1)
    mixed = [_mix(part, values, row_sums) for part, (_, values, _) in zip(parts, memories, strict=True)]
    return sum(mixed[1:], mixed[0])


def _scores(query: Tensor, keys: Tensor, row_sums: bool) -> Tensor:
    """Query (B, H, Q, D), keys (B, H, length, D) -> (B, H, Q, length), float32."""
    query = query.to(keys.dtype)
    if row_sums:  # a matrix product has nothing to reuse, and a sum fuses with its neighbours
        return (query * keys).sum(-1, dtype=torch.float32).unsqueeze(2)
    return torch.matmul(query, keys.transpose(-1, -2)).float()


def _mix(weights: Tensor, values: Tensor, row_sums: bool) -> Tensor:
    """Weights (B, H, Q, length) float32, values (B, H, length, D) -> (B, H, Q, D), float32."""
    if row_sums:
        return (weights.transpose(2, 3) * values).sum(2, keepdim=True)
    return torch.matmul(weights.to(values.dtype), values).float()


def ancestry_bias(bias: Tensor, ancestors: Tensor) -> Tensor:
    """Masks the slots of the self-attention cache that are not a beam's own past.

    A beam reorder moves no keys and values: the table names, for every beam and step, the row that wrote its past.

    Args:
        bias: (B or 1, H or 1, 1, T), float32, steps to come masked.
        ancestors: (B, K, T) int64.

    Returns:
        (B, H or 1, K, T * K), or the bias itself for one beam.
    """
    batch, beams, target_len = ancestors.shape
    if beams == 1:
        return bias
    own = ancestors.unsqueeze(-1) == torch.arange(beams, device=bias.device)
    every = bias.unsqueeze(-1).expand(batch, bias.shape[1], beams, target_len, beams)
    return torch.where(own.unsqueeze(1), every, MASKED).reshape(batch, bias.shape[1], beams, target_len * beams)


def own_layers(model: nn.Module) -> Iterator[tuple[str, Linear | RMSNorm]]:
    """Every layer that makes its tensors from transformers' by itself, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, Linear | RMSNorm):
            yield name, module
