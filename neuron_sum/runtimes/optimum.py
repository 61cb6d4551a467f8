"""Artifacts that optimum-neuron exported, run by its own generate() on NeuronCores.

Importing this imports nothing of optimum-neuron, so that a machine without it can say what is missing. Read in
optimum-neuron 0.4.5: optimum/neuron/models/inference/backend (Llama) and optimum/neuron/modeling_seq2seq.py (T5).
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from transformers import GenerationConfig

from neuron_sum.artifact import Artifact, Bucket, Manifest, SpecialTokens
from neuron_sum.errors import ArtifactError, PlatformError
from neuron_sum.platform.matrix import NEURON_INDEX, PLATFORMS
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.device import VISIBLE, check_cores, check_family, take_cores
from neuron_sum.runtimes.generation import choose_bucket

FOLDER = "optimum"
"""What upstream wrote, in the artifact."""

DISTRIBUTIONS = ("torch", "transformers", "optimum-neuron", "torch-neuronx", "neuronx-distributed")
"""What must be the same where an artifact is compiled and where it runs."""

UNSUPPORTED = {
    "min_new_tokens": "upstream picks the next token in the compiled graph and ignores it",
    "no_repeat_ngram_size": "upstream picks the next token in the compiled graph and ignores it",
}
"""Settings that optimum-neuron's generate() takes and then ignores."""

SHORTEST = 3
"""Tokens of a Llama's prompt: upstream takes the largest position for its last token, and pads with position 1."""

NEVER_GENERATED = 2**30
"""An end token that no vocabulary has."""

NOISE = (
    "The following kwargs are not supported for neuron model",
    "A decoder-only architecture is being used, but right-padding was detected",
    "`logits_processor` will",
    "Padding input tensors",
)
SPEAKERS = (
    "Neuron",
    "transformers.generation.utils",
    "optimum.neuron.generation.utils",
    "optimum.neuron.modeling_traced",
)
"""What these loggers say at every call, about arguments that transformers or upstream itself passes."""


def stack() -> dict[str, str]:
    """The versions that an artifact is bound to.

    Raises:
        PlatformError: If this machine has not all of them.
    """
    found: dict[str, str] = {}
    missing = []
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        platform = PLATFORMS[0]
        pins = {**platform.pins, **platform.vendor_pins, "optimum-neuron": platform.optimum_neuron}
        raise PlatformError(
            f"optimum-neuron's graphs need what this machine lacks: {', '.join(missing)}",
            f"pip install --extra-index-url {NEURON_INDEX} {' '.join(f'{name}=={pins[name]}' for name in missing)} "
            f"(Neuron SDK {platform.neuron_sdk}), or AWS's Neuron image",
        )
    return found


def load(artifact: Artifact) -> "OptimumGenerator":
    """An artifact on its NeuronCores.

    Raises:
        PlatformError: If the Neuron SDK or a device is missing.
        ArtifactError: If they are not what the artifact was compiled for.
    """
    manifest = artifact.manifest
    needed = manifest.compilation.tensor_parallel_size if manifest.compilation is not None else 1
    manifest.check_stack(stack())
    _check_machine(manifest, needed)
    take_cores(0, needed)
    _check_device(manifest)
    for name in SPEAKERS:
        logging.getLogger(name).addFilter(_is_news)
    folder = str(artifact.path / FOLDER)
    if manifest.tokens.decoder_start is None:
        from optimum.neuron import NeuronModelForCausalLM

        model: Any = NeuronModelForCausalLM.from_pretrained(folder)
    else:
        model = _load_t5(folder, manifest)
    return OptimumGenerator(model, manifest.buckets, manifest.num_beams, manifest.tokens)


@dataclass(frozen=True)
class OptimumGenerator:
    """A `CompiledGenerator` over optimum-neuron's model; see base.py for what is not documented here.

    Attributes:
        model: Upstream's; it keeps the state of one batch at a time.
        buckets: One: upstream pads smaller batches and shorter prompts to it.
        num_beams: One width.
        tokens: The model's special ids.
        max_prompts: Prompts at a time; None for as many as the bucket takes.
        used: The bucket, once it was used.
        adapters: None, for LoRA is merged before the export.
        default_adapter: None.
        unsupported: What upstream ignores.
    """

    model: Any
    buckets: Sequence[Bucket]
    num_beams: Sequence[int]
    tokens: SpecialTokens
    max_prompts: int | None = None
    used: set[Bucket] = field(default_factory=set, compare=False)
    adapters: None = None
    default_adapter: None = None
    unsupported: Mapping[str, str] = field(default_factory=lambda: UNSUPPORTED)

    @property
    def batch_size(self) -> int:
        """Prompts at a time."""
        return self.max_prompts or max(bucket.batch for bucket in self.buckets)

    def with_batch_size(self, prompts: int) -> "OptimumGenerator":
        """See `CompiledGenerator`."""
        return replace(self, max_prompts=prompts)

    def warm_up(self) -> None:
        """Runs every graph once; two tokens, for the second is another graph's than the first."""
        for bucket in self.buckets:
            rows = [[self.tokens.eos] * bucket.source_len] * bucket.batch
            settings = GenerateConfig(max_new_tokens=min(2, bucket.target_len), num_beams=self.num_beams[0])
            self._run(rows, settings, NEVER_GENERATED)

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerateConfig, adapters: Sequence[str | None] | None = None
    ) -> list[list[int]]:
        """See `CompiledGenerator`."""
        if name := next((name for name in adapters or () if name), None):
            raise ArtifactError(
                f"adapter {name!r}: optimum-neuron's graphs have no adapter slots", "compile the run with its adapter"
            )
        check_settings(settings)
        results: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = [prompts[index] for index in batch]
            self.used.add(choose_bucket(self, len(rows), max(map(len, rows)), settings))
            for index, tokens in zip(batch, self._run(rows, settings, self.tokens.eos), strict=True):
                results[index] = tokens
        return results

    def _run(self, rows: Sequence[Sequence[int]], settings: GenerateConfig, eos: int) -> list[list[int]]:
        """One batch that fits the bucket."""
        with torch.inference_mode():
            made = self._llama(rows, settings, eos) if self._is_decoder_only else self._t5(rows, settings, eos)
        return [row[: row.index(eos) + 1] if eos in row else row for row in made]

    @property
    def _is_decoder_only(self) -> bool:
        return self.tokens.decoder_start is None

    def _llama(self, rows: Sequence[Sequence[int]], settings: GenerateConfig, eos: int) -> list[list[int]]:
        if (shortest := min(map(len, rows))) < SHORTEST:
            raise ArtifactError(
                f"a prompt of {shortest} tokens: upstream needs {SHORTEST} to find its last one", "a longer prompt"
            )
        longest = max(map(len, rows))
        input_ids = torch.full((len(rows), longest), self.tokens.pad)
        mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):  # padded on the right: upstream refuses the left
            input_ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        config = self._config(eos, max_new_tokens=settings.max_new_tokens)
        made = self.model.generate(
            input_ids, attention_mask=mask, generation_config=config, use_model_defaults=False
        ).tolist()
        return [row[longest:] for row in made]

    def _t5(self, rows: Sequence[Sequence[int]], settings: GenerateConfig, eos: int) -> list[list[int]]:
        [prompt] = rows  # batch 1 is all that upstream gets right
        input_ids = torch.tensor([list(prompt)])
        # Of no meaning without beams, and transformers would say so.
        beams = settings.model_dump(include={"num_beams", "length_penalty", "early_stopping"})
        config = self._config(eos, **beams if settings.num_beams > 1 else {})
        made = self.model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=config,
            max_length=1 + settings.max_new_tokens,  # the start token counts
        )
        return [row[1:] for row in made.tolist()]

    def _config(self, eos: int, **settings: Any) -> GenerationConfig:
        return GenerationConfig(
            **settings,
            do_sample=False,
            pad_token_id=self.tokens.pad,
            eos_token_id=eos,
            decoder_start_token_id=self.tokens.decoder_start,
        )


def check_settings(settings: GenerateConfig) -> None:
    """Refuses what upstream would ignore without a word.

    Raises:
        ArtifactError: With the setting.
    """
    for name, reason in UNSUPPORTED.items():
        default = GenerateConfig.model_fields[name].default
        if (asked := getattr(settings, name)) != default:
            raise ArtifactError(f"generate.{name} = {asked}: {reason}", f"generate.{name}={default}")


def _load_t5(folder: str, manifest: Manifest) -> Any:
    import torch_neuronx
    from optimum.neuron import NeuronModelForSeq2SeqLM

    model = NeuronModelForSeq2SeqLM.from_pretrained(folder)
    if manifest.compilation is not None and not manifest.compilation.inline_weights:
        # Upstream moves the decoder's weights to its core and leaves the encoder's to be copied at each call.
        torch_neuronx.move_trace_to_device(model.encoder.model, 0)
    return model


def _check_device(manifest: Manifest) -> None:
    from optimum.neuron.utils.system import get_neuron_major

    if get_neuron_major() == -1:
        raise PlatformError(
            f"target: compiled for {manifest.target}, and this machine has no Neuron device",
            f"run it on {manifest.target}, or compile another artifact with --target cpu",
        )


def _check_machine(manifest: Manifest, needed: int) -> None:
    """What can be told without an import of upstream's, which may bring torch_neuronx."""
    check_family(manifest)
    check_cores(
        0,
        needed,
        f"compilation.tensor_parallel_size: compiled for {needed} NeuronCores",
        f"{VISIBLE}=0-{needed - 1}, or compile again with compile.neuron.tensor_parallel_size=1",
    )
    if "," in (listed := os.environ.get(VISIBLE, "")):  # get_available_cores: a list counts as one, or does not parse
        raise PlatformError(
            f"{VISIBLE}={listed}: optimum-neuron reads one core or a range", f"{VISIBLE}=0, or 0-1 for two"
        )


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NOISE)
