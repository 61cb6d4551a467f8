"""An artifact on disk to a generator: the one place that knows which runtime runs which artifact."""

from transformers import PreTrainedTokenizerFast

from neuron_sum.artifact import TOKENIZER, Artifact
from neuron_sum.generation import StepGenerator
from neuron_sum.models import load_tokenizer
from neuron_sum.recipe import ModelConfig
from neuron_sum.runtimes import aoti, neuronx

RUNTIMES = {"aoti": aoti.load, "neuronx": neuronx.load}


def load_generator(artifact: Artifact) -> tuple[StepGenerator, PreTrainedTokenizerFast]:
    """What generates from it, and its tokenizer.

    Raises:
        ArtifactError: If this machine is not what it was compiled for.
    """
    runtime = RUNTIMES[artifact.manifest.runtime](artifact)
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(artifact.path / TOKENIZER)))
    return StepGenerator(runtime, artifact.manifest.default_adapter), tokenizer
