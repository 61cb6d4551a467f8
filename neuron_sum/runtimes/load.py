"""Load a generator for an artifact; the only module that maps artifacts to runtimes."""

from importlib import import_module

from neuron_sum.artifact import TOKENIZER, Artifact
from neuron_sum.errors import ArtifactError
from neuron_sum.models.fast_tokenizer import FastTokenizer
from neuron_sum.runtimes.base import CompiledGenerator
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.tokenizer import read_tokenizer
from neuron_sum.sections import SectionCoder, Sections

UPSTREAM = ("optimum",)
"""The runtimes of upstream artifacts, which have separate generation loops and cannot force headings."""


def load_generator(artifact: Artifact, sections: Sections | None = None) -> tuple[CompiledGenerator, FastTokenizer]:
    """Load the generator of an artifact and its tokenizer.

    Only the module of the artifact's runtime is imported.

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
    runtime = import_module(f"neuron_sum.runtimes.{manifest.runtime}")
    if sections and manifest.runtime in UPSTREAM:
        raise ArtifactError(
            f"output.sections: {runtime.NO_SECTIONS}",
            "use output.sections=[], or compile with --set compile.target=cpu",
        )
    tokenizer = read_tokenizer(artifact.path / TOKENIZER)
    generator: CompiledGenerator
    if manifest.runtime in UPSTREAM:
        generator = runtime.load(artifact)
    else:
        coder = SectionCoder.of(sections, tokenizer)
        if coder is not None:
            coder.check_length("generate.max_new_tokens", artifact.recipe.generate.max_new_tokens)
        generator = StepGenerator(runtime.load(artifact), manifest.default_adapter, sections=coder)
    return generator, tokenizer
