"""The interface of a target, implemented by cpu.py and neuron.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import PretrainedConfig

from compile.graphs.static import StaticModel
from neuron_sum.artifact import GraphFile
from neuron_sum.recipes.schema import CompileConfig


class Target(Protocol):
    """A device to compile for: a small value that is sent to the compiling processes."""

    @property
    def settings(self) -> CompileConfig:
        """The recipe's compile section, after a fallback."""

    @property
    def suffix(self) -> str:
        """The suffix of a graph's file."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The files of this package, besides those of the graphs, that determine the compiled code."""

    @property
    def weights_inside(self) -> bool:
        """Whether graphs contain the weights, so that each checkpoint needs separate graphs."""

    @property
    def shares_process(self) -> bool:
        """Whether a process compiles several graphs: if imports take as long as a graph and no state remains."""

    def check(self, config: PretrainedConfig) -> None:
        """Verifies that the model can be compiled on this machine.

        Raises:
            NeuronSumError: If something is missing, or a setting is not supported.
        """

    def graph_options(self) -> dict[str, Any]:
        """The target's fields of `GraphOptions`: linear, write, attend."""

    def identity(self) -> dict[str, Any]:
        """The inputs of a compiled graph besides model and shape: versions, compiler, arguments, machine."""

    def manifest(self) -> dict[str, Any]:
        """The manifest's fields about target, runtime, versions and compiler."""

    def process_bytes(self, parameters: int) -> float:
        """The main memory in bytes that the compilation of one graph may take."""

    def seconds(self, layers: int, graphs: int) -> float | None:
        """The approximate seconds that one process takes for this many graphs; None without measurements."""

    def memory_advice(self) -> str:
        """The hint if a compilation was killed because memory ran out."""

    def first(self, graphs: Sequence[GraphFile]) -> GraphFile | None:
        """The graph that is compiled before the others, which take its layout of the weights; None without one."""

    def with_layout(self, first: GraphFile, path: Path) -> "Target":
        """The target with the file of the layout of the weights: the first graph writes it, the others read it."""

    def compile_graph(
        self, model: StaticModel, graph: GraphFile, weights: Mapping[str, Tensor] | None, path: Path
    ) -> None:
        """Compiles one graph, in a separate folder.

        Args:
            model: The static model with uninitialized tensors.
            graph: The graph to compile.
            weights: The weights if `weights_inside`, otherwise None.
            path: The file to write.

        Raises:
            CompileError: If the compiler fails.
        """
