"""Which target a recipe asks for; the only place that knows them all."""

from compile.cpu import CpuTarget
from compile.neuron import NeuronTarget
from compile.target import Target
from neuron_sum.recipe import CompileConfig


def choose_target(settings: CompileConfig) -> Target:
    """The target of a recipe's compile section."""
    return CpuTarget.of(settings) if settings.target == "cpu" else NeuronTarget(settings)
