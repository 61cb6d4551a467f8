"""The choice of a recipe's target; the only module that knows all targets."""

from compile.targets.base import Target
from compile.targets.cpu import CpuTarget
from compile.targets.neuron import NeuronTarget
from neuron_sum.recipes.schema import CompileConfig


def choose_target(settings: CompileConfig) -> Target:
    """The target of a recipe's compile section."""
    return CpuTarget.of(settings) if settings.target == "cpu" else NeuronTarget(settings)
