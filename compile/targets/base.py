"""What differs from target to target, behind one Protocol; cpu.py and neuron.py are the ones there are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import PretrainedConfig

from compile.graphs.static import StaticModel
from neuron_sum.artifact import GraphFile, KeptTensor
from neuron_sum.recipes.schema import CompileConfig


class Target(Protocol):
    """Where graphs will run: a small value that is sent to the processes that compile."""

    @property
    def settings(self) -> CompileConfig:
        """The recipe's compile section as it will be followed."""

    @property
    def suffix(self) -> str:
        """Of a graph's file."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The files of this package that decide what is compiled, the graphs' own left out."""

    @property
    def weights_inside(self) -> bool:
        """Whether graphs hold the weights, so that another checkpoint has other graphs."""

    @property
    def shares_process(self) -> bool:
        """Whether one process compiles graph after graph: where imports take as long as a graph, and nothing stays."""

    def check(self, config: PretrainedConfig) -> None:
        """Whether such a model can be compiled, and here.

        Raises:
            NeuronSumError: With what is missing, or which setting cannot be.
        """

    def graph_options(self) -> dict[str, Any]:
        """The fields of `GraphOptions` that are the target's: linear, write, row_sums."""

    def kept(self, model: StaticModel, graph: GraphFile) -> tuple[KeptTensor, ...]:
        """What a graph keeps on its device, in its order; nothing where it is given all that at every call."""

    def identity(self) -> dict[str, Any]:
        """What a compiled graph depends on besides model and shape: versions, compiler, arguments, machine."""

    def manifest(self) -> dict[str, Any]:
        """The manifest's fields about target, runtime, versions and compiler."""

    def process_bytes(self, parameters: int) -> float:
        """Main memory that the compile of one graph may take."""

    def seconds(self, layers: int, graphs: int) -> float | None:
        """About how long one process takes for so many graphs; None where nobody has measured."""

    def memory_advice(self) -> str:
        """What to do where a compile was killed for want of memory."""

    def compile_graph(
        self, model: StaticModel, graph: GraphFile, weights: Mapping[str, Tensor] | None, path: Path
    ) -> None:
        """Compiles one graph, in a folder of its own.

        Args:
            model: Its tensors not filled.
            graph: Which.
            weights: Where `weights_inside`.
            path: Of the file to write.

        Raises:
            CompileError: If the compiler fails.
        """
