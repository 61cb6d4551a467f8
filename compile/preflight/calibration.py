"""Published T5 measurements of AWS, for comparison with the roofline of the same dimensions."""

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
    """A measurement published by AWS.

    Attributes:
        model: The name of the model on the Hugging Face Hub.
        dims: Its dimensions, with the names of config.json.
        tokens_per_s: The published tokens per second.
        instance: The instance type of the measurement.
        cores: The number of NeuronCores that every layer was split over (tensor parallelism).
    """

    model: str
    dims: dict[str, Any]
    tokens_per_s: float
    instance: str
    cores: int

    def job(self) -> LoweringJob:
        """The static step graph of these dimensions in bf16; the weights of the published run are not documented."""
        options = LoweringOptions("bf16", "bf16", _SHAPE["source_len"], _SHAPE["target_len"])
        graph = GraphFile(kind="step", file=f"calibration-{self.model.replace('/', '-')}", **_SHAPE)
        return LoweringJob(self.config(), options, (graph,))

    def config(self) -> "PretrainedConfig":
        """The transformers configuration."""
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
