"""Load a generator for an artifact; the only module that maps artifacts to runtimes."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from neuron_sum.artifact import TOKENIZER, Artifact
from neuron_sum.models.base import load_tokenizer
from neuron_sum.recipes.schema import ModelConfig
from neuron_sum.runtimes import aoti, neuronx, optimum
from neuron_sum.runtimes.base import CompiledGenerator, StepRuntime
from neuron_sum.runtimes.generation import StepGenerator

RUNTIMES: dict[str, Callable[[Artifact], StepRuntime]] = {"aoti": aoti.load, "neuronx": neuronx.load}
"""Runtimes for graphs of neuron-sum, used by its generation loop."""
GENERATORS: dict[str, Callable[[Artifact], CompiledGenerator]] = {"optimum": optimum.load}
"""Loaders of upstream artifacts, which have separate generation loops."""


def load_generator(artifact: Artifact) -> tuple[CompiledGenerator, PreTrainedTokenizerFast]:
    """Load the generator of an artifact and its tokenizer.

    Raises:
        ArtifactError: If the artifact was compiled for another machine or other versions.
        PlatformError: If this machine lacks the packages or the device that the artifact requires.
    """
    manifest = artifact.manifest
    generator: CompiledGenerator
    if manifest.runtime in GENERATORS:
        generator = GENERATORS[manifest.runtime](artifact)
    else:
        generator = StepGenerator(RUNTIMES[manifest.runtime](artifact), manifest.default_adapter)
    return generator, load_tokenizer(ModelConfig(name_or_path=str(artifact.path / TOKENIZER)))
