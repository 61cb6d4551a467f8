"""AWS's published T5 figures beside the roofline of the same dimensions: how far from its floor a real device was."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compile.preflight.lowering import LoweringJob, LoweringOptions
from neuron_sum.artifact import GraphFile

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SOURCE = "AWS Neuron documentation, inference benchmarks for Inf2, SDK 2.18: batch 1, 128 tokens in, 84 out"
_SHAPE: dict[str, Any] = {"batch": 1, "source_len": 128, "target_len": 84, "num_beams": 1}


@dataclass(frozen=True)
class Measured:
    """A figure of AWS's.

    Attributes:
        model: Which.
        dims: Its dimensions, as its config.json has them.
        tokens_per_s: Published.
        instance: Where it was measured.
        cores: Over how many NeuronCores every layer was spread (tensor parallel).
    """

    model: str
    dims: dict[str, Any]
    tokens_per_s: float
    instance: str
    cores: int

    def job(self) -> LoweringJob:
        """Our own step graph of these dimensions, bf16: which weights AWS's run had is not published."""
        options = LoweringOptions("bf16", "bf16", _SHAPE["source_len"], _SHAPE["target_len"])
        graph = GraphFile(kind="step", file=f"calibration-{self.model.replace('/', '-')}", **_SHAPE)
        return LoweringJob(self.config(), options, (graph,))

    def config(self) -> "PretrainedConfig":
        """Of transformers."""
        from transformers import T5Config

        return T5Config(**self.dims)


MEASURED = (
    Measured(
        "google/flan-t5-xl",
        {
            "d_model": 2048,
            "d_kv": 64,
            "d_ff": 5120,
            "num_layers": 24,
            "num_decoder_layers": 24,
            "num_heads": 32,
            "vocab_size": 32128,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
        117.6,
        "ml.inf2.24xlarge",
        8,
    ),
    Measured(
        "google-t5/t5-3b",
        {
            "d_model": 1024,
            "d_kv": 128,
            "d_ff": 16384,
            "num_layers": 24,
            "num_decoder_layers": 24,
            "num_heads": 32,
            "vocab_size": 32128,
            "feed_forward_proj": "relu",
            "tie_word_embeddings": True,
        },
        108.2,
        "ml.inf2.24xlarge",
        8,
    ),
)
