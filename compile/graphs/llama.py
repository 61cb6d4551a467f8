"""Llama and its relatives (models/families.py) as two static-shape graphs: the prefill of a prompt, and one step.

The last token of a prompt is not prefilled: it is the first input of `step`, so that the generation loop is the same as
for encoder-decoder models, and the K/V of the prompt, as in cross-attention, is stored once per example for all beams.
The tokens equal those of transformers 4.57. Llama: Touvron et al. 2023 (arXiv:2302.13971).
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from compile.graphs.kv_cache import MASKED, ancestry_bias
from compile.graphs.layers import (
    GraphOptions,
    Memory,
    RMSNorm,
    SoftPrompts,
    attend,
    frozen,
    join_heads,
    split_heads,
)
from neuron_sum.errors import ModelError
from neuron_sum.models.families import biases, family_of, head_dim, rotated_layers
from neuron_sum.models.rotary import LENGTH_DEPENDENT


class StaticLlama(nn.Module):
    """A decoder-only model with one set of weights for both graphs.

    Args:
        config: The model's configuration: grouped K/V heads, biases, normalized queries and keys, layers without
            rotation, tied or untied head, and any rotary scaling that does not depend on the length. A sliding window
            must be as long as all positions.
        options: Dtypes, longest lengths and adapter slots.

    Raises:
        ModelError: For rotary positions that change with the length.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: PretrainedConfig, options: GraphOptions) -> None:
        super().__init__()
        _check(config)
        self.config, self.options, self.layers = config, options, config.num_hidden_layers
        self.state_heads, self.head_dim = config.num_key_value_heads, head_dim(config)
        self.embedding = frozen(torch.empty(config.vocab_size, config.hidden_size, dtype=options.dtype))
        self.soft_prompts = SoftPrompts(config.hidden_size, options) if options.soft_prompt_tokens else None
        self.blocks = nn.ModuleList(
            _Layer(config, f"model.layers.{index}", options, rotated=rotated)
            for index, rotated in enumerate(rotated_layers(config))
        )
        self.norm = RMSNorm("model.norm", config.hidden_size, config.rms_norm_eps)
        self.head = options.linear({"lm_head": config.vocab_size}, config.hidden_size, options)
        positions = options.source_len + options.soft_prompt_tokens + options.target_len
        self.register_buffer("cos", torch.empty(positions, self.head_dim))
        self.register_buffer("sin", torch.empty(positions, self.head_dim))

    def weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors outside the layers, from the state dict of the transformers model."""
        positions = torch.arange(len(self.cos))[None]
        cos, sin = LlamaRotaryEmbedding(self.config)(torch.zeros(1), positions)
        return {
            "embedding": state["model.embed_tokens.weight"].to(self.options.dtype),
            "cos": cos[0].float().clone(),
            "sin": sin[0].float().clone(),
        }

    def encode(self, input_ids: Tensor, attention_mask: Tensor, slot: Tensor) -> list[Tensor]:
        """The constants of a batch, which every step reads and none writes.

        Args:
            input_ids: (B, source_len) int64, prompts without their last token, padded on the right.
            attention_mask: (B, source_len) int64.
            slot: (B,) int64.

        Returns:
            The source bias (B, 1, 1, S), the number of prefilled tokens (B,), then for each layer keys and values
            (B, H, S, D).
        """
        hidden = nn.functional.embedding(input_ids, self.embedding).float()
        if self.soft_prompts is not None:
            hidden, attention_mask = self.soft_prompts(hidden, attention_mask, slot)
        length = hidden.shape[1]
        source_bias = (1.0 - attention_mask.float())[:, None, None, :] * MASKED
        rows = torch.arange(length, device=hidden.device)
        bias = torch.where(rows[None, :] <= rows[:, None], source_bias, MASKED)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        constants = [source_bias, attention_mask.sum(1)]
        for block in self._layers():
            query, keys, values = block.project(hidden, cos, sin, slot)
            keys, values = (part.to(self.options.kv_dtype).contiguous() for part in (keys, values))
            constants += [keys, values]
            hidden = block.finish(hidden, query, [(keys, values, bias)], slot)
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
            position: (B,) int64, the step of every example, 0 for the last token of its prompt.
            ancestors: (B, K, T) int64; see `ancestry_bias`.
            slot: (B,) int64.
            constants: The result of `encode`.
            state: For each layer keys and values (B, H, T * K, D); one column is written in place, or a new tensor
                replaces the old one in the list (`GraphOptions.write`).

        Returns:
            Logits (B, K, vocab), float32.
        """
        batch, beams, target_len = ancestors.shape
        source_bias, prefilled, memory = constants[0], constants[1], constants[2:]
        steps = torch.arange(target_len, device=tokens.device)
        past = torch.where(steps <= position[:, None], 0.0, MASKED)[:, None, None, :]
        bias = ancestry_bias(past, ancestors)
        positions = (prefilled + position)[:, None].expand(batch, beams)
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        hidden = nn.functional.embedding(tokens, self.embedding).float()
        for index, block in enumerate(self._layers()):
            query, key, value = block.project(hidden, cos, sin, slot)
            keys = state[2 * index] = self.options.write(state[2 * index], key, position)
            values = state[2 * index + 1] = self.options.write(state[2 * index + 1], value, position)
            prompt = (memory[2 * index], memory[2 * index + 1], source_bias)
            hidden = block.finish(hidden, query, [prompt, (keys, values, bias)], slot)
        logits: Tensor = self.head(self.norm(hidden), slot)
        return logits

    def _layers(self) -> Iterator["_Layer"]:
        return (block for block in self.blocks if isinstance(block, _Layer))


class _Layer(nn.Module):
    def __init__(self, config: PretrainedConfig, name: str, options: GraphOptions, *, rotated: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            head_dim(config),
        )
        self.options, self.rotated, biased = options, rotated, biases(config)
        self.widths = [count * self.head_dim for count in (self.heads, self.kv_heads, self.kv_heads)]
        width, attention, mlp = config.hidden_size, f"{name}.self_attn", f"{name}.mlp"
        projections = dict(zip((f"{attention}.{part}_proj" for part in "qkv"), self.widths, strict=True))
        self.norm = RMSNorm(f"{name}.input_layernorm", width, config.rms_norm_eps)
        self.qkv = options.linear(projections, width, options, bias=biased.qkv)
        self.query_norm = self.key_norm = None
        if family_of(config).qk_norm:
            self.query_norm = RMSNorm(f"{attention}.q_norm", self.head_dim, config.rms_norm_eps)
            self.key_norm = RMSNorm(f"{attention}.k_norm", self.head_dim, config.rms_norm_eps)
        self.out = options.linear({f"{attention}.o_proj": width}, self.widths[0], options, bias=biased.out)
        self.mlp_norm = RMSNorm(f"{name}.post_attention_layernorm", width, config.rms_norm_eps)
        gates = {f"{mlp}.{part}_proj": config.intermediate_size for part in ("gate", "up")}
        self.up = options.linear(gates, width, options, bias=biased.mlp)
        self.down = options.linear({f"{mlp}.down_proj": width}, config.intermediate_size, options, bias=biased.mlp)
        self.activation = ACT2FN[config.hidden_act]

    def project(self, hidden: Tensor, cos: Tensor, sin: Tensor, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, heads, rows, D), keys and values (B, kv_heads, rows, D); cos and sin are (B, 1, rows, D)."""
        parts = torch.split(self.qkv(self.norm(hidden), slot), self.widths, dim=-1)
        query, keys, values = (
            split_heads(part, count)
            for part, count in zip(parts, (self.heads, self.kv_heads, self.kv_heads), strict=True)
        )
        if self.query_norm is not None and self.key_norm is not None:
            query, keys = self.query_norm(query), self.key_norm(keys)
        if self.rotated:
            query, keys = _rotate(query, cos, sin), _rotate(keys, cos, sin)
        return query, keys, values

    def finish(self, hidden: Tensor, query: Tensor, memories: list[Memory], slot: Tensor) -> Tensor:
        """Grouped attention (Ainslie et al. 2023, arXiv:2305.13245), then the feed-forward part."""
        batch, _, rows, width = query.shape
        group = self.heads // self.kv_heads
        # The query heads that share a K/V head become additional queries of that head.
        grouped = query.reshape(batch, self.kv_heads, group * rows, width)
        mixed = attend(grouped, memories, self.options, self.head_dim**-0.5)
        hidden = hidden + self.out(join_heads(mixed.view(batch, self.heads, rows, width)), slot)
        gate, up = self.up(self.mlp_norm(hidden), slot).chunk(2, dim=-1)
        result: Tensor = hidden + self.down(self.activation(gate) * up, slot)
        return result


def _rotate(inputs: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), with halves paired as in transformers."""
    first, second = inputs.chunk(2, dim=-1)
    return inputs * cos + torch.cat([-second, first], dim=-1) * sin


def _check(config: PretrainedConfig) -> None:
    scaling = (getattr(config, "rope_scaling", None) or {}).get("rope_type", "default")
    if scaling in LENGTH_DEPENDENT:
        raise ModelError(
            f"rope_scaling {scaling!r} changes with the length of the prompt, but static graphs have one table",
            "use a model with rope_scaling none, linear, llama3 or yarn",
        )
