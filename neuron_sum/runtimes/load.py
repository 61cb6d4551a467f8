"""Load a generator for an artifact; the only module that maps artifacts to runtimes."""

from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from neuron_sum.artifact import TOKENIZER, Artifact
from neuron_sum.errors import ArtifactError
from neuron_sum.models.base import load_tokenizer
from neuron_sum.recipes.schema import ModelConfig
from neuron_sum.runtimes import aoti, neuronx, optimum
from neuron_sum.runtimes.base import CompiledGenerator, StepRuntime
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.sections import SectionCoder, Sections

RUNTIMES: dict[str, Callable[[Artifact], StepRuntime]] = {"aoti": aoti.load, "neuronx": neuronx.load}
"""Runtimes for graphs of neuron-sum, used by its generation loop."""
GENERATORS: dict[str, Callable[[Artifact], CompiledGenerator]] = {"optimum": optimum.load}
"""Loaders of upstream artifacts, which have separate generation loops."""


def load_generator(
    artifact: Artifact, sections: Sections | None = None
) -> tuple[CompiledGenerator, PreTrainedTokenizerFast]:
    """Load the generator of an artifact and its tokenizer.

    Args:
        artifact: The artifact.
        sections: The sections whose headings are forced. Default: those of the artifact's recipe.

    Raises:
        ArtifactError: If the artifact was compiled for another machine or other versions, or its runtime cannot force
            headings.
        PlatformError: If this machine lacks the packages or the device that the artifact requires.
    """
    manifest = artifact.manifest
    sections = artifact.recipe.output.sections if sections is None else sections
    if sections and manifest.runtime in GENERATORS:
        raise ArtifactError(
            f"output.sections: {optimum.NO_SECTIONS}",
            "use output.sections=[], or compile with --set compile.target=cpu",
        )
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(artifact.path / TOKENIZER)))
    generator: CompiledGenerator
    if manifest.runtime in GENERATORS:
        generator = GENERATORS[manifest.runtime](artifact)
    else:
        coder = SectionCoder.of(sections, tokenizer)
        if coder is not None:
            coder.check_length("generate.max_new_tokens", artifact.recipe.generate.max_new_tokens)
        generator = StepGenerator(RUNTIMES[manifest.runtime](artifact), manifest.default_adapter, sections=coder)
    return generator, tokenizer
