"""An artifact on disk to a generator: the one place that knows which runtime runs which artifact."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from neuron_sum.artifact import TOKENIZER, Artifact
from neuron_sum.models.base import load_tokenizer
from neuron_sum.recipes.schema import ModelConfig
from neuron_sum.runtimes import aoti, neuronx, optimum
from neuron_sum.runtimes.base import CompiledGenerator, StepRuntime
from neuron_sum.runtimes.generation import StepGenerator

RUNTIMES: dict[str, Callable[[Artifact], StepRuntime]] = {"aoti": aoti.load, "neuronx": neuronx.load}
"""Graphs of ours, stepped by our loop."""
GENERATORS: dict[str, Callable[[Artifact], CompiledGenerator]] = {"optimum": optimum.load}
"""Upstream's, with loops of their own."""


def load_generator(artifact: Artifact) -> tuple[CompiledGenerator, PreTrainedTokenizerFast]:
    """What generates from it, and its tokenizer.

    Raises:
        ArtifactError: If this machine is not what it was compiled for.
        PlatformError: If it lacks what runs such an artifact.
    """
    manifest = artifact.manifest
    generator: CompiledGenerator
    if manifest.runtime in GENERATORS:
        generator = GENERATORS[manifest.runtime](artifact)
    else:
        generator = StepGenerator(RUNTIMES[manifest.runtime](artifact), manifest.default_adapter)
    return generator, load_tokenizer(ModelConfig(name_or_path=str(artifact.path / TOKENIZER)))
