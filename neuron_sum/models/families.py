"""The supported model families, as data: classes, and how an attention layer differs from that of a Llama.

The decoder-only families share the names of their parameters and modules; whatever else differs is read from here.
Importing this module imports neither torch nor transformers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuron_sum.errors import ModelError
from neuron_sum.models.checkpoint import shorten

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FULL, SLIDING = "full_attention", "sliding_attention"
"""The supported values of layer_types."""


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: The model_type in config.json.
        title: The published models that it includes, for messages.
        config_name: The configuration class of transformers.
        model_name: The class of transformers that computes the loss and generates.
        lora_targets: The modules that LoRA adapts by default. Decoder-only: all projections, because optimum-neuron
            0.4.5 cannot consolidate fewer. T5: Hu et al. 2021, section 7.1.
        decoder_only: Whether prompt and summary share one row.
        old_names: The names that old versions of transformers gave to the model class.
        qkv_bias: Whether query, key and value always have biases; in the other families attention_bias decides.
        qk_norm: Whether each head's query and key are normalized before the rotation.
        unread: Keys of published config.json files that nothing reads in this family.
    """

    name: str
    title: str
    config_name: str
    model_name: str
    lora_targets: tuple[str, ...] = PROJECTIONS
    decoder_only: bool = True
    old_names: tuple[str, ...] = ()
    qkv_bias: bool = False
    qk_norm: bool = False
    unread: tuple[str, ...] = ()

    @property
    def config_class(self) -> "type[PretrainedConfig]":
        """The configuration class."""
        import transformers

        found: type[PretrainedConfig] = getattr(transformers, self.config_name)
        return found

    @property
    def model_class(self) -> "type[PreTrainedModel]":
        """The model class."""
        import transformers

        found: type[PreTrainedModel] = getattr(transformers, self.model_name)
        return found

    @property
    def module(self) -> str:
        """The module of transformers that defines the model class."""
        return f"transformers.models.{self.name}.modeling_{self.name}"


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "t5", "T5, FLAN-T5", "T5Config", "T5ForConditionalGeneration", ("q", "v"),
            decoder_only=False, old_names=("T5WithLMHeadModel",),
        ),
        Family(
            "llama", "Llama, TinyLlama, SmolLM2", "LlamaConfig", "LlamaForCausalLM", old_names=("LLaMAForCausalLM",)
        ),
        Family("mistral", "Mistral", "MistralConfig", "MistralForCausalLM"),
        Family("qwen2", "Qwen2, Qwen2.5", "Qwen2Config", "Qwen2ForCausalLM", qkv_bias=True),
        Family("qwen3", "Qwen3", "Qwen3Config", "Qwen3ForCausalLM", qk_norm=True),
        Family(
            "smollm3", "SmolLM3", "SmolLM3Config", "SmolLM3ForCausalLM", unread=("max_window_layers", "pretraining_tp")
        ),
    )
}  # fmt: skip
"""The families that training on the torch backend, evaluation and compilation for the CPU support, by model_type.

What a Neuron device supports is in platform/support.py.
"""


def family_of(config: "PretrainedConfig") -> Family:
    """The family of a configuration."""
    return FAMILIES[config.model_type]


def check_family(values: Mapping[str, Any], source: str) -> Family:
    """The family of a configuration.

    Args:
        values: The content of config.json.
        source: The file or field, for error messages.

    Raises:
        ModelError: For a family that is not supported; names the valid ones.
    """
    found = values.get("model_type")
    if not isinstance(found, str) or found not in FAMILIES:
        raise ModelError(
            f"{source} has model_type {shorten(found)}, which is not supported; valid: {valid_families()}",
            "use a model of one of these families",
        )
    return FAMILIES[found]


def valid_families() -> str:
    """All families with their models, for messages."""
    return ", ".join(f"{family.name} ({family.title})" for family in FAMILIES.values())


def head_dim(config: "PretrainedConfig") -> int:
    """The width of an attention head of a decoder-only model."""
    given: int | None = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


@dataclass(frozen=True)
class Biases:
    """Which linear layers of a decoder-only model have biases.

    Attributes:
        qkv: Query, key and value.
        out: The output of attention.
        mlp: The feed-forward part.
    """

    qkv: bool
    out: bool
    mlp: bool

    def names(self) -> Iterator[str]:
        """The keys and facts that cause them, for messages."""
        if self.out:
            yield "attention_bias"
        elif self.qkv:
            yield "biases of query, key and value"
        if self.mlp:
            yield "mlp_bias"


def biases(config: "PretrainedConfig") -> Biases:
    """The biases of a decoder-only model."""
    everywhere = bool(getattr(config, "attention_bias", False))
    return Biases(
        qkv=everywhere or family_of(config).qkv_bias, out=everywhere, mlp=bool(getattr(config, "mlp_bias", False))
    )


def rotated_layers(config: "PretrainedConfig") -> list[bool]:
    """Whether each layer of a decoder-only model rotates query and key; SmolLM3 leaves out every fourth layer."""
    given: list[Any] | None = getattr(config, "no_rope_layers", None)  # 1 for a layer with rotation
    return [bool(given[index]) if given else True for index in range(config.num_hidden_layers)]


def sliding_window(config: "PretrainedConfig") -> int | None:
    """The number of tokens that a layer with a sliding window sees, its own included; None without such layers."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or SLIDING in kinds else None
