"""T5 as two static-shape graphs: the encoder with all cross-attention K/V, and one decoder step.

The tokens equal those of transformers 4.57's modeling_t5.py. T5: Raffel et al. 2020 (arXiv:1910.10683).
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import T5Config
from transformers.activations import ACT2FN
from transformers.models.t5.modeling_t5 import T5Attention

from compile.graphs.kv_cache import MASKED, ancestry_bias, first_rows
from compile.graphs.layers import (
    GraphOptions,
    RMSNorm,
    SoftPrompts,
    attend,
    frozen,
    join_heads,
    split_heads,
)


class StaticT5(nn.Module):
    """A T5 with one set of weights for both graphs.

    Args:
        config: The model's configuration: gated or plain feed-forward, tied or untied head.
        options: Dtypes, longest lengths and adapter slots.
    """

    ENCODE_NAMES: ClassVar[tuple[str, ...]] = ("soft_prompts.", "encoder.", "cross.")
    """Name prefixes of the modules that only `encode` uses."""

    encoder_buckets: Tensor
    decoder_buckets: Tensor

    def __init__(self, config: T5Config, options: GraphOptions) -> None:
        super().__init__()
        self.config, self.options = config, options
        self.heads, self.layers = config.num_heads, config.num_decoder_layers
        self.state_heads, self.head_dim = config.num_heads, config.d_kv
        self.embedding = frozen(torch.empty(config.vocab_size, config.d_model, dtype=options.dtype))
        self.soft_prompts = SoftPrompts(config.d_model, options) if options.soft_prompt_tokens else None
        self.encoder = nn.ModuleList(
            _EncoderLayer(config, f"encoder.block.{i}", options) for i in range(config.num_layers)
        )
        self.encoder_norm = _norm("encoder.final_layer_norm", config)
        inner = config.num_heads * config.d_kv
        self.cross = nn.ModuleList(
            options.linear(
                {f"decoder.block.{i}.layer.1.EncDecAttention.{part}": inner for part in "kv"}, config.d_model, options
            )
            for i in range(self.layers)
        )
        self.decoder = nn.ModuleList(_DecoderLayer(config, f"decoder.block.{i}", options) for i in range(self.layers))
        self.decoder_norm = _norm("decoder.final_layer_norm", config)
        self.head = options.linear({"lm_head": config.vocab_size}, config.d_model, options)
        # Relative positions (Shaw et al. 2018; T5's buckets): the learned tables, and the bucket of every distance.
        buckets = config.relative_attention_num_buckets
        self.encoder_relative = frozen(torch.empty(buckets, config.num_heads))
        self.decoder_relative = frozen(torch.empty(buckets, config.num_heads))
        self.longest = options.source_len + options.soft_prompt_tokens
        self.register_buffer("encoder_buckets", torch.empty(2 * self.longest - 1, dtype=torch.int64))
        self.register_buffer("decoder_buckets", torch.empty(options.target_len, dtype=torch.int64))

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors outside the layers, from the state dict of the transformers model."""
        table = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        return {
            "embedding": state["shared.weight"].to(self.options.dtype),
            "encoder_relative": state[f"encoder.{table}"].float(),
            "decoder_relative": state[f"decoder.{table}"].float(),
            **self.tables(),
        }

    def tables(self) -> dict[str, Tensor]:
        """The tensors that depend only on dimensions."""

        def buckets(distances: Tensor, bidirectional: bool) -> Tensor:
            indices: Tensor = T5Attention._relative_position_bucket(
                distances,
                bidirectional,
                self.config.relative_attention_num_buckets,
                self.config.relative_attention_max_distance,
            )
            return indices

        return {
            "encoder_buckets": buckets(torch.arange(1 - self.longest, self.longest), True),
            "decoder_buckets": buckets(-torch.arange(self.options.target_len), False),
        }

    def encode(self, input_ids: Tensor, attention_mask: Tensor, slot: Tensor) -> list[Tensor]:
        """The constants of a batch, which every step reads and none writes.

        Args:
            input_ids: (B, source_len) int64, padded on the right.
            attention_mask: (B, source_len) int64.
            slot: (B,) int64.

        Returns:
            The source bias (B, 1, 1, S), then for each layer cross-attention keys and values (B, H, S, D): once per
            example, however many beams query them.
        """
        hidden = nn.functional.embedding(input_ids, self.embedding).float()
        if self.soft_prompts is not None:
            hidden, attention_mask = self.soft_prompts(hidden, attention_mask, slot)
        length = hidden.shape[1]
        source_bias = (1.0 - attention_mask.float())[:, None, None, :] * MASKED
        bias = self._encoder_bias(length) + source_bias
        for layer in self.encoder:
            hidden = layer(hidden, bias, slot)
        hidden = self.encoder_norm(hidden)
        constants = [source_bias]
        for projection in self.cross:
            for part in projection(hidden, slot).chunk(2, dim=-1):
                constants.append(split_heads(part, self.heads).to(self.options.kv_dtype).contiguous())
        return constants

    def step(
        self,
        tokens: Tensor,
        position: Tensor,
        ancestors: Tensor,
        slot: Tensor,
        constants: list[Tensor],
        state: list[Tensor],
    ) -> Tensor:
        """One token for every beam.

        Args:
            tokens: (B, K) int64.
            position: (B,) int64, the step of every example, 0 for its start token.
            ancestors: (B, K, T) int64; see `ancestry_bias`.
            slot: (B,) int64.
            constants: The result of `encode`.
            state: For each layer self-attention keys and values (B or more, H, T * K, D), of which the first B rows
                are used; one column is written in place, or a new tensor replaces the old one in the list
                (`GraphOptions.write`).

        Returns:
            Logits (B, K, vocab), float32.
        """
        batch, beams = tokens.shape
        source_bias, cross = constants[0], constants[1:]
        bias = ancestry_bias(self._decoder_bias(position, ancestors.shape[2]), ancestors)
        hidden = nn.functional.embedding(tokens, self.embedding).float()
        for index, layer in enumerate(self.decoder):
            past, memory = state[2 * index : 2 * index + 2], cross[2 * index : 2 * index + 2]
            hidden, *state[2 * index : 2 * index + 2] = layer(
                hidden, position, slot, (*past, bias), (*memory, source_bias)
            )
        hidden = self.decoder_norm(hidden)
        if self.config.tie_word_embeddings:
            hidden = hidden * self.config.d_model**-0.5
        logits: Tensor = self.head(hidden, slot)
        return logits.view(batch, beams, -1)

    def _encoder_bias(self, length: int) -> Tensor:
        """(1, H, S, S). Row i, column j depends only on j - i, so there are 2 S - 1 different values.

        They are stored in a ring of 2 S, with distance 0 first and the negative ones last (one position between them is
        never read); read repeatedly in rows of 2 S - 1, each row starts one position earlier. Tensor.unfold is not
        used, because torch_xla has no lowering for it and would leave the graph.
        """
        first = self.longest - length
        values = self.encoder_relative[self.encoder_buckets[first : first + 2 * length - 1]].t()
        ring = torch.cat([values[:, length - 1 :], values[:, :1], values[:, : length - 1]], dim=1)
        rows = ring.unsqueeze(1).expand(-1, length, -1).reshape(-1, 2 * length * length)
        square = rows[:, : length * (2 * length - 1)].reshape(-1, length, 2 * length - 1)[:, :, :length]
        return square.unsqueeze(0)

    def _decoder_bias(self, position: Tensor, target_len: int) -> Tensor:
        """(B, H, 1, T) for the query at `position`; future steps are masked."""
        steps, at = torch.arange(target_len, device=position.device), position[:, None]
        distance = torch.maximum(at - steps, torch.zeros_like(steps))
        values = self.decoder_relative[self.decoder_buckets[distance]].transpose(1, 2)
        return torch.where((steps <= at)[:, None], values, MASKED).unsqueeze(2)


class _EncoderLayer(nn.Module):
    def __init__(self, config: T5Config, name: str, options: GraphOptions) -> None:
        super().__init__()
        self.heads, self.options = config.num_heads, options
        inner, attention = config.num_heads * config.d_kv, f"{name}.layer.0.SelfAttention"
        self.norm = _norm(f"{name}.layer.0.layer_norm", config)
        self.qkv = options.linear({f"{attention}.{part}": inner for part in "qkv"}, config.d_model, options)
        self.out = options.linear({f"{attention}.o": config.d_model}, inner, options)
        self.feed_forward = _FeedForward(config, f"{name}.layer.1", options)

    def forward(self, hidden: Tensor, bias: Tensor, slot: Tensor) -> Tensor:
        """Hidden (B, S, d_model), bias (B, H, S, S)."""
        query, *both = (split_heads(part, self.heads) for part in self.qkv(self.norm(hidden), slot).chunk(3, dim=-1))
        keys, values = (part.to(self.options.dtype).contiguous() for part in both)
        mixed = attend(query, [(keys, values, bias)], self.options)
        hidden = hidden + self.out(join_heads(mixed), slot)
        result: Tensor = self.feed_forward(hidden, slot)
        return result


class _DecoderLayer(nn.Module):
    def __init__(self, config: T5Config, name: str, options: GraphOptions) -> None:
        super().__init__()
        self.heads, inner = config.num_heads, config.num_heads * config.d_kv
        self.options = options
        attention, cross = f"{name}.layer.0.SelfAttention", f"{name}.layer.1.EncDecAttention"
        self.norm = _norm(f"{name}.layer.0.layer_norm", config)
        self.qkv = options.linear({f"{attention}.{part}": inner for part in "qkv"}, config.d_model, options)
        self.out = options.linear({f"{attention}.o": config.d_model}, inner, options)
        self.cross_norm = _norm(f"{name}.layer.1.layer_norm", config)
        self.cross_query = options.linear({f"{cross}.q": inner}, config.d_model, options)
        self.cross_out = options.linear({f"{cross}.o": config.d_model}, inner, options)
        self.feed_forward = _FeedForward(config, f"{name}.layer.2", options)

    def forward(
        self,
        hidden: Tensor,
        position: Tensor,
        slot: Tensor,
        past: tuple[Tensor, Tensor, Tensor],
        memory: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden (B, K, d_model); past and memory are keys, values and bias of self- and cross-attention.

        Returns:
            Hidden, and the keys and values of self-attention with the new column.
        """
        query, key, value = (
            split_heads(part, self.heads) for part in self.qkv(self.norm(hidden), slot).chunk(3, dim=-1)
        )
        keys, values = self.options.write(past[0], key, position), self.options.write(past[1], value, position)
        newest = first_rows(keys, len(hidden)), first_rows(values, len(hidden))
        mixed = attend(query, [(*newest, past[2])], self.options)
        hidden = hidden + self.out(join_heads(mixed), slot)
        query = split_heads(self.cross_query(self.cross_norm(hidden), slot), self.heads)
        mixed = attend(query, [memory], self.options)
        hidden = hidden + self.cross_out(join_heads(mixed), slot)
        return self.feed_forward(hidden, slot), keys, values


class _FeedForward(nn.Module):
    def __init__(self, config: T5Config, name: str, options: GraphOptions) -> None:
        super().__init__()
        self.gated, self.activation = config.is_gated_act, ACT2FN[config.dense_act_fn]
        inputs = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
        self.norm = _norm(f"{name}.layer_norm", config)
        self.up = options.linear(
            {f"{name}.DenseReluDense.{part}": config.d_ff for part in inputs}, config.d_model, options
        )
        self.down = options.linear({f"{name}.DenseReluDense.wo": config.d_model}, config.d_ff, options)

    def forward(self, hidden: Tensor, slot: Tensor) -> Tensor:
        """Hidden (B, rows, d_model), including the residual."""
        inner = self.up(self.norm(hidden), slot)
        if self.gated:
            gate, linear = inner.chunk(2, dim=-1)
            inner = self.activation(gate) * linear
        else:
            inner = self.activation(inner)
        result: Tensor = hidden + self.down(inner, slot)
        return result


def _norm(name: str, config: T5Config) -> RMSNorm:
    return RMSNorm(name, config.d_model, config.layer_norm_epsilon)
