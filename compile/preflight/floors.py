"""Floors and projections of graphs and buckets on one NeuronCore.

A floor is the best value that the published rates of the chip allow: for every graph, the longer of bytes over
bandwidth and operations over rate. A projection is the floor, corrected by the ratio of calibration.py, plus the time
of the host. Neither was measured.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from compile.preflight.hlo import Account
from compile.preflight.lowering import Lowered
from neuron_sum.artifact import Bucket
from neuron_sum.platform.matrix import CORE_BANDWIDTH, CORE_FLOPS, INSTANCES
from neuron_sum.platform.prices import find_price

INSTANCE = "ml.inf2.xlarge"
RATES = {"f32": CORE_FLOPS["fp32"], "bf16": CORE_FLOPS["bf16"], "f16": CORE_FLOPS["bf16"]}
"""Operations per second by type of the product. With the compiler's auto-cast, f32 products run at the rate of bf16."""


@dataclass(frozen=True)
class GraphReport:
    """One graph on one NeuronCore.

    Attributes:
        lowered: The lowered graph with its account.
        rewriting: The same step with the cache rewritten, for a compiler that rejects the in-place write.
    """

    lowered: Lowered
    rewriting: Lowered | None = None

    @property
    def account(self) -> Account:
        """The account of the graph."""
        return self.lowered.account

    @property
    def compute_s(self) -> float:
        """The minimum time of the matrix products in seconds."""
        return math.fsum(flops / RATES[dtype] for dtype, flops in self.account.flops.items())

    @property
    def memory_s(self) -> float:
        """The minimum time of the memory accesses in seconds."""
        return self.account.moved / CORE_BANDWIDTH

    @property
    def floor_s(self) -> float:
        """The minimum time of a call in seconds."""
        return max(self.compute_s, self.memory_s)

    @property
    def bound(self) -> str:
        """The longer of the two: memory or compute."""
        return "memory" if self.memory_s >= self.compute_s else "compute"

    @property
    def name(self) -> str:
        """The name in tables."""
        graph = self.lowered.graph
        shape = f"{graph.kind} {graph.batch}x{graph.source_len}"
        if graph.kind == "encode":
            return shape
        steps = f", {graph.steps} steps" if graph.steps > 1 else ""
        return f"{shape}x{graph.target_len}, {_beams(graph.num_beams or 1)}{steps}"

    def as_dict(self) -> dict[str, Any]:
        """Bytes, operations and seconds of a call, for --json."""
        account = asdict(self.account)
        return {
            **self.lowered.graph.model_dump(exclude={"file"}),
            **account,
            "moved": self.account.moved,
            "moved_where": self.rewriting.account.moved if self.rewriting else None,
            "floor_compute_s": self.compute_s,
            "floor_memory_s": self.memory_s,
            "floor_s": self.floor_s,
            "bound": self.bound,
            "lowering_s": self.lowered.seconds,
        }


@dataclass(frozen=True)
class BucketReport:
    """Summaries of one bucket and beam width, one batch at a time, each of target_len tokens.

    Attributes:
        bucket: The bucket.
        num_beams: The beam width.
        encode: The graph of the source.
        step: The graph of each token.
        several: The graph of several greedy steps; None without one.
        ratio: The ratio of the calibration.
        host_s: The seconds that the host needs for each token of a batch (`calibration.host_s`).
    """

    bucket: Bucket
    num_beams: int
    encode: GraphReport
    step: GraphReport
    several: GraphReport | None
    ratio: float
    host_s: float

    @property
    def floor_s(self) -> float:
        """The minimum time of a batch on one core in seconds."""
        return self.encode.floor_s + self.bucket.target_len * self.step.floor_s

    @property
    def tokens_per_s(self) -> float:
        """The maximum number of tokens per second of one core, for the whole batch."""
        return self.bucket.batch / self.step.floor_s

    @property
    def projected_s(self) -> float:
        """The projected time of a batch on one core in seconds: that of the device, and that of the host."""
        return self.floor_s / self.ratio + self.bucket.target_len * self.host_s

    @property
    def projected_tokens_per_s(self) -> float:
        """The projected tokens per second of one core, for the whole batch."""
        return self.bucket.batch / (self.step.floor_s / self.ratio + self.host_s)

    @property
    def usd_per_1000(self) -> float:
        """The minimum cost of 1,000 summaries, with one worker on one core."""
        return self._usd(self.floor_s)

    def _usd(self, seconds: float) -> float:
        return 1000 / self.bucket.batch * seconds * find_price(INSTANCE).usd_per_hour / 3600

    @property
    def memory(self) -> float:
        """Bytes on one core: one copy of the weights, keys and values, and the upper bound of the activations."""
        graphs = [graph for graph in (self.encode, self.step, self.several) if graph is not None]
        activations = max(graph.account.activations for graph in graphs)
        return self.step.lowered.weights + self.step.lowered.state + activations

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.bucket}, {_beams(self.num_beams)}"

    def as_dict(self) -> dict[str, Any]:
        """The values for --json."""
        return {
            **self.bucket.model_dump(),
            "num_beams": self.num_beams,
            "floor_s": self.floor_s,
            "projected_s": self.projected_s,
            "host_s": self.bucket.target_len * self.host_s,
            "floor_tokens_per_s_per_core": self.tokens_per_s,
            "projected_tokens_per_s_per_core": self.projected_tokens_per_s,
            "floor_usd_per_1000": self.usd_per_1000,
            "projected_usd_per_1000": self._usd(self.projected_s),
            "workers": 1,
            "floor_usd_per_1000_all_cores": self.usd_per_1000 / INSTANCES[INSTANCE].neuron_cores,
            "memory": self.memory,
            "weights": self.step.lowered.weights,
            "keys_and_values": self.step.lowered.state,
        }


def _beams(count: int) -> str:
    return "greedy" if count == 1 else f"{count} beams"
