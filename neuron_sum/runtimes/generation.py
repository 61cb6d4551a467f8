"""Generation over static graphs, in batches that fit their buckets, for evaluation, `compile verify` and serving."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuron_sum.artifact import Bucket, SpecialTokens
from neuron_sum.errors import ArtifactError
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import Shapes, StepRuntime
from neuron_sum.runtimes.rolling import RollingBatch, rolling_session
from neuron_sum.runtimes.search import Counts, new_search, search
from neuron_sum.runtimes.sections import SectionRules
from neuron_sum.sections import SectionCoder

if TYPE_CHECKING:
    from neuron_sum.runtimes.slots import AdapterSlots


@dataclass(frozen=True)
class StepGenerator:
    """A `CompiledGenerator` over a StepRuntime.

    Attributes:
        runtime: The runtime of the graphs.
        default_adapter: The adapter used if none is requested; None for the base model.
        max_prompts: The number of prompts per batch; None for the batch size of the largest bucket.
        one_step: Whether the graphs of several greedy steps are not used.
        sections: The sections of the summaries, whose headings are forced; None for a text without sections.
        used: See `CompiledGenerator`.
        counts: The steps so far.
    """

    runtime: StepRuntime
    default_adapter: str | None = None
    max_prompts: int | None = None
    one_step: bool = False
    sections: SectionCoder | None = None
    used: set[Bucket] = field(default_factory=set, compare=False)
    counts: Counts = field(default_factory=Counts, compare=False)

    @property
    def buckets(self) -> Sequence[Bucket]:
        """See `Shapes`."""
        return self.runtime.buckets

    @property
    def num_beams(self) -> Sequence[int]:
        """See `Shapes`."""
        return self.runtime.num_beams

    @property
    def adapters(self) -> "AdapterSlots | None":
        """See `CompiledGenerator`."""
        return self.runtime.adapters

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Empty, because this loop supports all settings."""
        return {}

    def with_batch_size(self, prompts: int) -> "StepGenerator":
        """See `CompiledGenerator`."""
        return replace(self, max_prompts=prompts)

    @property
    def ends(self) -> Sequence[int]:
        """The ids of the tokens that end a summary."""
        return self.runtime.tokens.ends

    @property
    def batch_size(self) -> int:
        """The number of prompts per batch."""
        return self.max_prompts or max(bucket.batch for bucket in self.runtime.buckets)

    def warm_up(self) -> None:
        """Load every graph and run it once, so that the first request of a bucket is not slow."""
        if self.sections is not None:
            _ = self.sections.blank  # decodes the whole vocabulary
        for bucket in self.runtime.buckets:
            rows = [[self.runtime.tokens.ends[0]] * bucket.source_len] * bucket.batch
            for num_beams in self.runtime.num_beams:
                with self.runtime.turn():
                    session = self.runtime.begin(bucket, num_beams, rows, [0] * bucket.batch)
                    session.step(session.start, np.zeros_like(session.start))
                    if session.greedy is not None:
                        session.greedy.call(session.start)

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerateConfig, adapters: Sequence[str | None] | None = None
    ) -> list[list[int]]:
        """See `CompiledGenerator`.

        All prompts of a batch use the same version of an adapter; later batches may use a newer version.
        """
        names = list(adapters) if adapters is not None else [self.default_adapter] * len(prompts)
        if len(names) != len(prompts):
            raise ValueError(f"{len(names)} adapters for {len(prompts)} prompts")
        results: list[list[int]] = [[] for _ in prompts]
        order, rules = sorted(range(len(prompts)), key=lambda index: -len(prompts[index])), self._rules(settings)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = [prompts[index] for index in batch]
            bucket = choose_bucket(self, len(rows), max(map(len, rows)), settings)
            self.used.add(bucket)
            with self.lease([names[index] for index in batch]) as leased, self.runtime.turn():
                session = self.runtime.begin(bucket, settings.num_beams, rows, leased)
                if self.one_step:
                    session.greedy = None
                before = _before(session.start, rows, self.runtime.tokens)
                outputs = search(session, before, self.ends, settings, self.counts, rules)
            for index, tokens in zip(batch, outputs, strict=True):
                results[index] = tokens
        return results

    def first_logits(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> NDArray[np.float32]:
        """See `Generator.first_logits`. The prompts use the default adapter."""
        settings = GenerateConfig(max_new_tokens=1, num_beams=min(self.num_beams))
        results = np.zeros((len(prompts), len(tokens)), dtype=np.float32)
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = [prompts[index] for index in batch]
            bucket = choose_bucket(self, len(rows), max(map(len, rows)), settings)
            self.used.add(bucket)
            names = [self.default_adapter] * len(batch)
            with self.lease(names) as leased, self.runtime.turn():
                session = self.runtime.begin(bucket, settings.num_beams, rows, leased)
                candidates = session.step(session.start, np.zeros_like(session.start))
                results[batch] = candidates.all_logits()[:, 0, list(tokens)]
        return results

    def roll(self, settings: GenerateConfig, *, independent: bool = False) -> RollingBatch | None:
        """See `CompiledGenerator`; and `RollingSession` for `independent`."""
        choose_bucket(self, 1, 1, settings)
        session = rolling_session(
            self.runtime, settings.num_beams, settings.max_new_tokens, self.batch_size, independent=independent
        )
        if session is None:
            return None
        if self.one_step:
            session.greedy = None
        search = new_search(session.rows, self.ends, settings, self.counts, self._rules(settings))
        return RollingBatch(session, search, self.lease, self.used)

    def _rules(self, settings: GenerateConfig) -> SectionRules | None:
        return SectionRules(self.sections, self.ends, settings) if self.sections is not None else None

    def lease(self, names: Sequence[str | None]) -> AbstractContextManager[list[int]]:
        """Reserve the slots of adapters until the context ends; see `AdapterSlots.lease`.

        Raises:
            ArtifactError: If an adapter is named and the graphs have no slots.
        """
        if self.runtime.adapters is not None:
            return self.runtime.adapters.lease(names)
        if any(names):
            raise ArtifactError(
                f"adapter {next(filter(None, names))!r}: the graphs have no adapter slots",
                "compile with compile.adapters",
            )
        return nullcontext([0] * len(names))


def choose_bucket(compiled: Shapes, examples: int, source_len: int, settings: GenerateConfig) -> Bucket:
    """Choose the smallest bucket that fits.

    Raises:
        ArtifactError: If no bucket fits; names the compiled ones.
    """
    if settings.num_beams not in compiled.num_beams:
        raise ArtifactError(
            f"generate.num_beams = {settings.num_beams}: compiled for {', '.join(map(str, compiled.num_beams))}",
            "use one of these, or compile again with compile.num_beams",
        )
    longest = max(bucket.source_len for bucket in compiled.buckets)
    if source_len > longest:
        raise ArtifactError(
            f"a prompt has {source_len} tokens, the longest bucket takes {longest}",
            f"set data.max_source_length={longest} to truncate and count long dialogues, or compile a longer bucket",
        )
    fitting = [
        bucket
        for bucket in compiled.buckets
        if bucket.batch >= examples and bucket.source_len >= source_len and bucket.target_len >= settings.max_new_tokens
    ]
    if not fitting:
        longest = max(bucket.target_len for bucket in compiled.buckets)
        raise ArtifactError(
            f"generate.max_new_tokens = {settings.max_new_tokens} with {examples} prompts of {source_len} tokens: "
            f"no bucket of {', '.join(map(str, compiled.buckets))} (batch x source x target) fits",
            f"use --set generate.max_new_tokens={longest}, or compile again with a larger compile.target_len",
        )
    return min(fitting, key=lambda bucket: (bucket.batch, bucket.source_len, bucket.target_len))


def _before(start: NDArray[np.int64], prompts: Sequence[Sequence[int]], tokens: SpecialTokens) -> NDArray[np.int64]:
    """The tokens before the first new one: the decoder start, or prompts padded on the left, (examples, n)."""
    if tokens.decoder_start is not None:
        return start[:, :1]
    longest = max(map(len, prompts))
    return np.array([[tokens.pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
