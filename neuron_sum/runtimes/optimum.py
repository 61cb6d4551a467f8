"""Runtime for artifacts exported by optimum-neuron, with its generate() on NeuronCores.

Importing this module does not import optimum-neuron, so that a machine without it can report what is missing. Based on
optimum-neuron 0.4.5: optimum/neuron/models/inference/backend (Llama) and optimum/neuron/modeling_seq2seq.py (T5).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig

from neuron_sum.artifact import Artifact, Bucket, Manifest, SpecialTokens
from neuron_sum.errors import ArtifactError, PlatformError
from neuron_sum.platform.matrix import NEURON_INDEX, PLATFORMS
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import until_end
from neuron_sum.runtimes.device import check_family, take_cores
from neuron_sum.runtimes.generation import choose_bucket

FOLDER = "optimum"
"""Folder of the upstream files in the artifact."""

DISTRIBUTIONS = ("torch", "transformers", "optimum-neuron", "torch-neuronx", "neuronx-distributed")
"""Distributions whose versions must be the same for compiling and running an artifact."""

UNSUPPORTED = {
    "min_new_tokens": "the upstream compiled graph chooses the next token and ignores it",
    "no_repeat_ngram_size": "the upstream compiled graph chooses the next token and ignores it",
}
"""Settings that optimum-neuron's generate() accepts but ignores."""

NO_SECTIONS = "the upstream compiled graph chooses the next token, so that headings cannot be forced"
"""The reason why these graphs support no output.sections."""

SHORTEST = 3
"""Minimum tokens of a Llama prompt: upstream pads with position 1 and expects the last token at the largest one."""

NEVER_GENERATED = 2**30
"""An end token outside every vocabulary."""

NOISY_MESSAGES = (
    "The following kwargs are not supported for neuron model",
    "A decoder-only architecture is being used, but right-padding was detected",
    "`logits_processor` will",
    "Padding input tensors",
)
NOISY_LOGGERS = (
    "Neuron",
    "transformers.generation.utils",
    "optimum.neuron.generation.utils",
    "optimum.neuron.modeling_traced",
)
"""Messages of these loggers at every call about arguments that transformers or optimum-neuron passes."""


def stack() -> dict[str, str]:
    """The versions that an artifact requires.

    Raises:
        PlatformError: If a package is not installed.
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
        packages = " ".join(f"{name}=={pins[name]}" for name in missing)
        raise PlatformError(
            f"packages for graphs of optimum-neuron are not installed: {', '.join(missing)}",
            f"run `pip install --extra-index-url {NEURON_INDEX} {packages}` "
            f"(Neuron SDK {platform.neuron_sdk}), or use an AWS Neuron image",
        )
    return found


def load(artifact: Artifact) -> "OptimumGenerator":
    """Load the generator of an artifact onto its NeuronCores.

    Raises:
        PlatformError: If the Neuron SDK, a device or a free core is missing.
        ArtifactError: If the artifact was compiled for other versions or another device.
    """
    manifest = artifact.manifest
    needed = manifest.compilation.tensor_parallel_size if manifest.compilation is not None else 1
    manifest.check_stack(stack())
    check_family(manifest)
    take_cores(needed)
    _check_device(manifest)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_is_not_noise)
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
        model: The upstream model, which stores the state of one batch at a time.
        buckets: A single bucket, to which upstream pads smaller batches and shorter prompts.
        num_beams: A single beam width.
        tokens: The special token ids of the model.
        max_prompts: The number of prompts per batch; None for the batch size of the bucket.
        used: The bucket, if it has been used.
        adapters: None, because LoRA is merged before the export.
        default_adapter: None.
        unsupported: The settings that upstream ignores.
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
    def ends(self) -> Sequence[int]:
        """See `CompiledGenerator`."""
        return self.tokens.ends

    @property
    def batch_size(self) -> int:
        """The number of prompts per batch."""
        return self.max_prompts or max(bucket.batch for bucket in self.buckets)

    def roll(self, settings: GenerateConfig) -> None:
        """None: its graphs process one batch at a time."""

    def with_batch_size(self, prompts: int) -> "OptimumGenerator":
        """See `CompiledGenerator`."""
        return replace(self, max_prompts=prompts)

    def warm_up(self) -> None:
        """Run every graph once, for two tokens, because the second token uses another graph than the first."""
        for bucket in self.buckets:
            rows = [[self.tokens.ends[0]] * bucket.source_len] * bucket.batch
            settings = GenerateConfig(max_new_tokens=min(2, bucket.target_len), num_beams=self.num_beams[0])
            self._run(rows, settings, (NEVER_GENERATED,))

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerateConfig, adapters: Sequence[str | None] | None = None
    ) -> list[list[int]]:
        """See `CompiledGenerator`."""
        if name := next((name for name in adapters or () if name), None):
            raise ArtifactError(
                f"adapter {name!r}: graphs of optimum-neuron have no adapter slots", "compile the run with its adapter"
            )
        check_settings(settings)
        results: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = [prompts[index] for index in batch]
            self.used.add(choose_bucket(self, len(rows), max(map(len, rows)), settings))
            for index, tokens in zip(batch, self._run(rows, settings, self.tokens.ends), strict=True):
                results[index] = tokens
        return results

    def first_logits(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> NoReturn:
        """See `Generator.first_logits`.

        Raises:
            ArtifactError: Always: upstream's graphs return tokens and no logits.
        """
        raise ArtifactError(
            "graphs of optimum-neuron return no logits, with which claims are checked",
            "use the run, or an artifact with --set compile.target=cpu",
        )

    def _run(self, rows: Sequence[Sequence[int]], settings: GenerateConfig, ends: Sequence[int]) -> list[list[int]]:
        """Generate one batch that fits the bucket."""
        with torch.inference_mode():
            outputs = self._causal_lm(rows, settings, ends) if self._is_decoder_only else self._t5(rows, settings, ends)
        return [until_end(row, ends) for row in outputs]

    @property
    def _is_decoder_only(self) -> bool:
        return self.tokens.decoder_start is None

    def _causal_lm(
        self, rows: Sequence[Sequence[int]], settings: GenerateConfig, ends: Sequence[int]
    ) -> list[list[int]]:
        if (shortest := min(map(len, rows))) < SHORTEST:
            raise ArtifactError(
                f"a prompt has {shortest} tokens, optimum-neuron requires at least {SHORTEST}", "use a longer prompt"
            )
        longest = max(map(len, rows))
        input_ids = torch.full((len(rows), longest), self.tokens.pad)
        mask = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):  # padded on the right, because upstream rejects left padding
            input_ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        config = self._config(ends, max_new_tokens=settings.max_new_tokens)
        outputs = self.model.generate(
            input_ids, attention_mask=mask, generation_config=config, use_model_defaults=False
        ).tolist()
        return [row[longest:] for row in outputs]

    def _t5(self, rows: Sequence[Sequence[int]], settings: GenerateConfig, ends: Sequence[int]) -> list[list[int]]:
        [prompt] = rows  # upstream is correct only for batch 1
        input_ids = torch.tensor([list(prompt)])
        # Without beams these have no effect, and transformers would log a warning.
        beams = settings.model_dump(include={"num_beams", "length_penalty", "early_stopping"})
        config = self._config(ends, **beams if settings.num_beams > 1 else {})
        outputs = self.model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=config,
            max_length=1 + settings.max_new_tokens,  # the start token counts
        )
        return [row[1:] for row in outputs.tolist()]

    def _config(self, ends: Sequence[int], **settings: Any) -> GenerationConfig:
        return GenerationConfig(
            **settings,
            do_sample=False,
            pad_token_id=self.tokens.pad,
            eos_token_id=list(ends),
            decoder_start_token_id=self.tokens.decoder_start,
        )


def check_settings(settings: GenerateConfig) -> None:
    """Reject settings that upstream would ignore silently.

    Raises:
        ArtifactError: If a setting is not supported; names it.
    """
    for name, reason in UNSUPPORTED.items():
        default = GenerateConfig.model_fields[name].default
        if (value := getattr(settings, name)) != default:
            raise ArtifactError(f"generate.{name} = {value}: {reason}", f"use generate.{name}={default}")


def _load_t5(folder: str, manifest: Manifest) -> Any:
    import torch_neuronx
    from optimum.neuron import NeuronModelForSeq2SeqLM

    model = NeuronModelForSeq2SeqLM.from_pretrained(folder)
    if manifest.compilation is not None and not manifest.compilation.inline_weights:
        # Upstream moves only the decoder's weights to its core; the encoder's would be copied at each call.
        torch_neuronx.move_trace_to_device(model.encoder.model, 0)
    return model


def _check_device(manifest: Manifest) -> None:
    from optimum.neuron.utils.system import get_neuron_major

    if get_neuron_major() == -1:
        raise PlatformError(
            f"target: compiled for {manifest.target}, but this machine has no Neuron device",
            f"run it on {manifest.target}, or compile another artifact with --target cpu",
        )


def _is_not_noise(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(NOISY_MESSAGES)
