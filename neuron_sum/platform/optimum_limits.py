"""What the decoder-only inference classes of optimum-neuron 0.4.5 compute differently from transformers.

Read in optimum/neuron/models/inference (llama, qwen2, qwen3, smollm3). The exporter of neuron-sum and Hugging Face's
vLLM image use the same classes.
"""

from collections.abc import Iterator

from transformers import PretrainedConfig

from neuron_sum.models.families import FAMILIES, head_dim
from neuron_sum.models.rotary import LENGTH_DEPENDENT
from neuron_sum.platform.support import find_cell, remedy

SUPPORTED = tuple(
    name for name, family in FAMILIES.items() if family.decoder_only and find_cell(name, "full", "compile").works
)
"""The decoder-only families that upstream has a class for, among those of neuron-sum."""
SMALLEST_VOCABULARY = 256
"""Upstream's sampler sorts the 256 best tokens on the device, also for greedy search."""
OWN_HEAD_WIDTH = ("qwen3",)
"""The families whose class upstream rotates with head_dim; the others have hidden_size / num_attention_heads."""
PLAIN_POSITIONS = ("smollm3",)
"""The families whose class upstream rejects a scaling of the rotary positions and a sliding window."""


def family_faults(config: PretrainedConfig) -> Iterator[str]:
    """Whether upstream lacks the family of a decoder-only model."""
    cell = find_cell(config.model_type, "full", "compile")
    if cell.works is False:
        yield f"model_type {config.model_type}: {cell.note} ({remedy(cell)})"


def model_faults(config: PretrainedConfig, cores: int) -> Iterator[str]:
    """The features of a decoder-only model that upstream lacks, or gets wrong without an error.

    Args:
        config: The configuration of the model.
        cores: The number of NeuronCores that share it.
    """
    family = config.model_type
    if getattr(config, "attention_bias", False):
        yield f"attention_bias: upstream's {family} omits the biases of its projections"
    width = head_dim(config)
    if width * config.num_attention_heads != config.hidden_size and family not in OWN_HEAD_WIDTH:
        yield f"head_dim = {width}: upstream's rotary positions are for hidden_size / num_attention_heads"
    rope = getattr(config, "rope_scaling", None) or {}
    if family in PLAIN_POSITIONS and rope:
        yield f"rope_scaling: upstream's {family} has none"
    if family in PLAIN_POSITIONS and config.use_sliding_window:
        yield f"use_sliding_window: upstream's {family} has no sliding window"
    if (kind := rope.get("rope_type", rope.get("type"))) in LENGTH_DEPENDENT:
        yield f"rope_scaling {kind}: it changes with the prompt's length, a static graph has one table"
    if -(-config.vocab_size // cores) < SMALLEST_VOCABULARY:
        share = f" on each of {cores} cores" if cores > 1 else ""
        yield f"a vocabulary of {config.vocab_size}: upstream's sampler needs at least {SMALLEST_VOCABULARY}{share}"
