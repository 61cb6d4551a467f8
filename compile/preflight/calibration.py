"""Published T5 measurements of AWS, for comparison with the floors of the same dimensions, and the time of the host.

The published run (SOURCE) is the whole inference that the notebook's last cell times: its weights are fp32, its
products bf16, and it searches with four beams. It divides by the tokens of the longest returned sequence, including the
start token. Only the decoder's layers are split over the cores, so the encoder and the output layer count in full. The
number of steps is the least possible: a search may continue after the sequences that it returns.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compile.graphs.buckets import bucket_graphs
from compile.preflight.floors import GraphReport
from compile.preflight.lowering import LoweringJob, LoweringOptions
from neuron_sum.artifact import Bucket
from neuron_sum.platform.matrix import CORE_BANDWIDTH, CORE_FLOPS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SOURCE = (
    "AWS Neuron documentation (aws-neuron/aws-neuron-sdk 81ce03ae), about-neuron/benchmarks/inf2/"
    "latency_data_encoder_decoder.csv, SDK 2.18, and the notebook that it names, t5-inference-tutorial.ipynb: fp32 "
    "with bf16 products, batch 1, 4 beams, 128 tokens in, 84 out, whole inference; read 2026-11-29"
)
BUCKET = Bucket(batch=1, source_len=128, target_len=128)
"""The notebook's max_length for both sides."""
BEAMS = 4
TOKENS = 84
STEPS = TOKENS - 1

HOST_MS = {
    (1, 1): (0.03, 0.06),
    (1, 4): (0.11, 0.13),
    (8, 1): (0.04, 0.06),
    (8, 4): (0.09, 0.13),
    (32, 1): (0.04, 0.07),
}
"""CPU milliseconds of the search per step by batch and beams, without and with an n-gram ban: benchmarks/host_loop.py
on the machine of docs/performance.md, whose CPU is not that of an inf2 instance."""


def host_s(batch: int, beams: int, no_repeat_ngram_size: int = 0) -> float:
    """The seconds of the host per step: the measured ones, or the largest, in proportion to the rows beyond theirs.

    Args:
        batch: The number of examples.
        beams: The beam width.
        no_repeat_ngram_size: The size of the n-grams that may not repeat; 0 for none.
    """
    banned = int(no_repeat_ngram_size > 0)
    if (batch, beams) in HOST_MS:
        return HOST_MS[batch, beams][banned] / 1000
    rows = max(many * wide for many, wide in HOST_MS)
    return max(each[banned] for each in HOST_MS.values()) * max(1.0, batch * beams / rows) / 1000


@dataclass(frozen=True)
class Measured:
    """A measurement published by AWS.

    Attributes:
        model: The name of the model on the Hugging Face Hub.
        dims: Its dimensions, with the names of config.json.
        tokens_per_s: The published tokens per second.
        instance: The instance type of the measurement.
        cores: The number of NeuronCores that the decoder's layers were split over (tensor parallelism).
    """

    model: str
    dims: dict[str, Any]
    tokens_per_s: float
    instance: str
    cores: int

    @property
    def total_s(self) -> float:
        """The published time of one inference in seconds."""
        return TOKENS / self.tokens_per_s

    def job(self) -> LoweringJob:
        """The static graphs of these dimensions, encode and step, in fp32."""
        options = LoweringOptions("fp32", "fp32", BUCKET.source_len, BUCKET.target_len)
        name = self.model.replace("/", "-")
        graphs = tuple(
            graph.model_copy(update={"file": f"calibration-{name}-{graph.kind}"})
            for graph in bucket_graphs(BUCKET, (BEAMS,))
        )
        return LoweringJob(self.config(), options, graphs)

    def config(self) -> "PretrainedConfig":
        """The transformers configuration."""
        from transformers import T5Config

        return T5Config(**self.dims)


@dataclass(frozen=True)
class Calibration:
    """A published measurement with its floor.

    Attributes:
        published: The measurement of AWS.
        encode: The encoder's graph.
        step: The graph of a step.
    """

    published: Measured
    encode: GraphReport
    step: GraphReport

    @property
    def step_floor_s(self) -> float:
        """The minimum time of a step: a core reads its share of the layers, and the whole output layer."""
        head: int = 4 * self.published.dims["vocab_size"] * self.published.dims["d_model"]
        moved = head + (self.step.account.moved - head) / self.published.cores
        return moved / CORE_BANDWIDTH

    @property
    def encode_floor_s(self) -> float:
        """The minimum time of the encoder, which every core computes in full; products at the rate of bf16."""
        return max(self.encode.memory_s, self.encode.account.total_flops / CORE_FLOPS["bf16"])

    @property
    def floor_s(self) -> float:
        """The minimum time of the device for one inference in seconds."""
        return self.encode_floor_s + STEPS * self.step_floor_s

    @property
    def host_s(self) -> float:
        """The seconds of the host that are not counted as the device's: those of neuron-sum's search, as a minimum."""
        return STEPS * host_s(BUCKET.batch, BEAMS)

    @property
    def ratio(self) -> float:
        """The minimum time of the device divided by its published time."""
        return self.floor_s / (self.published.total_s - self.host_s)

    def as_dict(self) -> dict[str, Any]:
        """The values for --json."""
        return {
            "model": self.published.model,
            "instance": self.published.instance,
            "cores": self.published.cores,
            "published_tokens_per_s": self.published.tokens_per_s,
            "published_s": self.published.total_s,
            "host_s": self.host_s,
            "floor_s": self.floor_s,
            "step_floor_s": self.step_floor_s,
            "floor_over_published": self.ratio,
            "source": SOURCE,
        }


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
        108.18,
        "ml.inf2.24xlarge",
        8,
    ),
)
