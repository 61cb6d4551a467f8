"""Layers of the static-shape graphs: projections with adapter slots, norms and attention.

Shapes are fixed by a bucket, so every graph is compiled once and used for all steps. The residual stream, norms,
softmax and scores are float32; weights and the operands of matrix products have the graph's dtype; K/V has a separate
dtype. Letters in shapes: B examples, K beams, S source positions (soft prompt included), T target positions, H heads,
D width of a head, N adapter slots, r rank.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from compile.graphs.kv_cache import write_column
from neuron_sum.artifact import AdapterSpec

ATTEND_WIDTH = 32
"""`GraphOptions.attend` takes heads whose width is a multiple of this: the bfloat16 values of a register of AVX-512."""

Memory = tuple[Tensor, Tensor, Tensor]
"""Keys and values (B, H, length, D), and the bias of the scores (B or 1, H or 1, rows, length), float32. The number of
queries is a multiple of its rows, which repeat."""


class Linear(nn.Module):
    """One or several projections of the same input as one matrix product, with LoRA slots.

    LoRA weights (Hu et al. 2021, arXiv:2106.09685) are data: stacks of A (N, r, in) and B (N, out, r); the slot of each
    example in a batch selects one. Slot 0 is zeros. Subclasses store the weight in the form that their target needs.

    Args:
        parts: The output width of each projection by its module name in the transformers model, in the order of the
            fused output.
        in_features: The width of the input.
        options: Dtypes and adapter slots.
        bias: Whether the projections have biases, which stay in float32.
    """

    weight: nn.Parameter

    def __init__(
        self, parts: Mapping[str, int], in_features: int, options: "GraphOptions", *, bias: bool = False
    ) -> None:
        super().__init__()
        self.parts = dict(parts)
        self.in_features, self.out_features, self.dtype = in_features, sum(parts.values()), options.dtype
        self.adapted: dict[str, str] = {}
        self.make_weight()
        self.bias = frozen(torch.empty(self.out_features)) if bias else None
        spec = options.adapters
        for index, (name, width) in enumerate(parts.items()):
            if spec is not None and spec.rank and name.rpartition(".")[2] in spec.target_modules:
                self.adapted[name] = f"lora_{index}"
                # Parameters instead of buffers, because torch_neuronx keeps only parameters on the device.
                shapes = {"a": (spec.slots, spec.rank, in_features), "b": (spec.slots, width, spec.rank)}
                for half, shape in shapes.items():
                    stack = frozen(torch.empty(shape, dtype=self.dtype))
                    self.register_parameter(f"lora_{index}_{half}", stack)

    def make_weight(self) -> None:
        """Registers the uninitialized parameter or buffers that `weights` fills."""
        self.weight = frozen(torch.empty(self.out_features, self.in_features, dtype=self.dtype))

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of this layer, from the state dict of the transformers model."""
        biases = {} if self.bias is None else {"bias": self.fused(state, "bias").float()}
        return {**self.stored(self.fused(state, "weight")), **biases}

    def stored(self, weight: Tensor) -> dict[str, Tensor]:
        """The concatenated weight (out, in), in the form that this layer stores."""
        return {"weight": weight.to(self.dtype)}

    def fused(self, state: Mapping[str, Tensor], kind: str) -> Tensor:
        """The concatenated weights or biases of the projections: (out, in) or (out,)."""
        return torch.cat([state[f"{name}.{kind}"] for name in self.parts])

    def product(self, inputs: Tensor) -> Tensor:
        """The product of the inputs (..., in) and the weight, without adapters."""
        return functional.linear(inputs.to(self.weight.dtype), self.weight)

    def forward(self, inputs: Tensor, slot: Tensor) -> Tensor:
        """Projects the inputs, with the adapter of each example.

        Args:
            inputs: (B, rows, in), float32.
            slot: (B,) int64, the adapter slot of each example.

        Returns:
            (B, rows, out), float32.
        """
        outputs = self.product(inputs).float()
        if self.bias is not None:
            outputs = outputs + self.bias
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


@dataclass(frozen=True)
class GraphOptions:
    """The options of all graphs of an artifact.

    Attributes:
        dtype: The dtype of weights and of the operands of matrix products.
        kv_dtype: The dtype of keys and values.
        linear: The target's class of projections, which stores and multiplies the weights.
        write: The function that writes a step's column into the self-attention cache: (cache, column, position) ->
            cache. It writes in place, or returns a new tensor.
        attend: The target's attention of scaled queries (B, H, Q, D) over all memories -> (B, H, Q, D), float32; None
            for matrix products and a softmax.
        source_len: The source length of the longest bucket in tokens, without the soft prompt.
        target_len: The target length of the longest bucket in tokens.
        soft_prompt_tokens: The number of positions reserved for a soft prompt before the source.
        adapters: The adapter slots; None for graphs without them.
    """

    dtype: torch.dtype = torch.float32
    kv_dtype: torch.dtype = torch.float32
    linear: type[Linear] = field(default=Linear)
    write: Callable[[Tensor, Tensor, Tensor], Tensor] = field(default=write_column)
    attend: Callable[[Tensor, Sequence[Memory]], Tensor] | None = None
    source_len: int = 512
    target_len: int = 128
    soft_prompt_tokens: int = 0
    adapters: AdapterSpec | None = None


class RMSNorm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) in float32, as in T5 and Llama.

    Args:
        name: The module name in the transformers model.
        width: The width of the input.
        eps: The constant that is added to the mean square.
    """

    def __init__(self, name: str, width: int, eps: float) -> None:
        super().__init__()
        self.name, self.eps = name, eps
        self.weight = frozen(torch.empty(width))

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of this layer, from the state dict of the transformers model."""
        return {"weight": state[f"{self.name}.weight"].float()}

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalizes inputs (..., width), float32; the output has the same shape and dtype."""
        return inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + self.eps) * self.weight


class SoftPrompts(nn.Module):
    """Vectors before the embedded source (Lester et al. 2021, arXiv:2104.08691): one set compiled in, or one per slot.

    Args:
        width: The width of an embedding.
        options: The options with soft_prompt_tokens and the number of slots.
    """

    def __init__(self, width: int, options: GraphOptions) -> None:
        super().__init__()
        self.by_slot = options.adapters is not None
        slots = options.adapters.slots if options.adapters is not None else 1
        self.vectors = frozen(torch.empty(slots, options.soft_prompt_tokens, width, dtype=options.dtype))
        self.mask = frozen(torch.empty(slots, options.soft_prompt_tokens, dtype=torch.int64))

    def forward(self, words: Tensor, attention_mask: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Prepends the soft prompt to the embedded words (B, source, width) and to the mask (B, source)."""
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


def attend(query: Tensor, memories: Sequence[Memory], options: GraphOptions, scale: float = 1.0) -> Tensor:
    """Attention over one or several memories as if they were concatenated, without copying them.

    Args:
        query: (B, H, Q, D), float32.
        memories: Each has its own length.
        options: For the target's `attend`.
        scale: The factor of the scores; T5 has none.

    Returns:
        (B, H, Q, D), float32.
    """
    if scale != 1.0:
        query = query * scale
    if options.attend is not None and query.shape[3] % ATTEND_WIDTH == 0:
        return options.attend(query, memories)
    scores = [
        torch.matmul(query.to(keys.dtype), keys.transpose(-1, -2)).float()
        + (bias if bias.shape[2] == 1 else bias.repeat(1, 1, query.shape[2] // bias.shape[2], 1))
        for keys, _, bias in memories
    ]
    weights = torch.softmax(torch.cat(scores, dim=-1) if len(scores) > 1 else scores[0], dim=-1)
    parts = torch.split(weights, [keys.shape[2] for keys, _, _ in memories], dim=-1)
    mixed = [
        torch.matmul(part.to(values.dtype), values).float()
        for part, (_, values, _) in zip(parts, memories, strict=True)
    ]
    return sum(mixed[1:], mixed[0])


def named_layers(model: nn.Module) -> Iterator[tuple[str, Linear | RMSNorm]]:
    """The name and module of each layer that has a `weights` method."""
    for name, module in model.named_modules():
        if isinstance(module, Linear | RMSNorm):
            yield name, module
