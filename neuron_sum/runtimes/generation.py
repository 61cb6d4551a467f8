"""The one generation loop over static graphs: greedy and beam search, token for token transformers' generate().

Follows transformers 4.57's GenerationMixin (`_sample` with do_sample=False, `_beam_search`), stopping rule included,
and takes its logits processors. Used by evaluation, by the check after a compile, and by serving.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
)

from neuron_sum.artifact import Bucket
from neuron_sum.errors import ArtifactError
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import Session, Shapes, StepRuntime
from neuron_sum.runtimes.slots import AdapterSlots

NEVER = -1.0e9
"""A score that no beam reaches; transformers' own constant."""


@dataclass(frozen=True)
class StepGenerator:
    """A `CompiledGenerator` over a StepRuntime.

    Attributes:
        runtime: What is stepped.
        default_adapter: Who answers where no adapters are asked for; None for the base model.
        max_prompts: Prompts at a time; None for as many as the largest bucket takes.
        used: See `CompiledGenerator`.
    """

    runtime: StepRuntime
    default_adapter: str | None = None
    max_prompts: int | None = None
    used: set[Bucket] = field(default_factory=set, compare=False)

    @property
    def buckets(self) -> Sequence[Bucket]:
        """See `Shapes`."""
        return self.runtime.buckets

    @property
    def num_beams(self) -> Sequence[int]:
        """See `Shapes`."""
        return self.runtime.num_beams

    @property
    def adapters(self) -> AdapterSlots | None:
        """See `CompiledGenerator`."""
        return self.runtime.adapters

    @property
    def unsupported(self) -> Mapping[str, str]:
        """None: the loop below follows them all."""
        return {}

    def with_batch_size(self, prompts: int) -> "StepGenerator":
        """See `CompiledGenerator`."""
        return replace(self, max_prompts=prompts)

    @property
    def batch_size(self) -> int:
        """Prompts at a time."""
        return self.max_prompts or max(bucket.batch for bucket in self.runtime.buckets)

    def warm_up(self) -> None:
        """Loads every graph and runs it once: the first request of a bucket must not pay for that."""
        for bucket in self.runtime.buckets:
            rows = [[self.runtime.tokens.eos] * bucket.source_len] * bucket.batch
            for num_beams in self.runtime.num_beams:
                with self.runtime.turn(), torch.inference_mode():
                    session = self.runtime.begin(bucket, num_beams, rows, [0] * bucket.batch)
                    session.step(session.start, torch.zeros_like(session.start))

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerateConfig, adapters: Sequence[str | None] | None = None
    ) -> list[list[int]]:
        """See `CompiledGenerator`.

        All prompts of a batch see the same version of an adapter; of several batches, a later one may see a newer.
        """
        names = list(adapters) if adapters is not None else [self.default_adapter] * len(prompts)
        if len(names) != len(prompts):
            raise ValueError(f"{len(names)} adapters for {len(prompts)} prompts")
        if self.runtime.adapters is None and any(names):
            raise ArtifactError(
                f"adapter {next(filter(None, names))!r}: the graphs have no adapter slots",
                "compile with compile.adapters",
            )
        results: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = [prompts[index] for index in batch]
            bucket = choose_bucket(self, len(rows), max(map(len, rows)), settings)
            self.used.add(bucket)
            slots = self.runtime.adapters
            lease = (
                slots.lease([names[index] for index in batch]) if slots is not None else nullcontext([0] * len(batch))
            )
            with lease as leased, self.runtime.turn(), torch.inference_mode():
                session = self.runtime.begin(bucket, settings.num_beams, rows, leased)
                made = _search(session, rows, self.runtime, settings)
            for index, tokens in zip(batch, made, strict=True):
                results[index] = tokens
        return results


def choose_bucket(compiled: Shapes, examples: int, source_len: int, settings: GenerateConfig) -> Bucket:
    """The smallest bucket that fits.

    Raises:
        ArtifactError: If none does, with what there is.
    """
    if settings.num_beams not in compiled.num_beams:
        raise ArtifactError(
            f"generate.num_beams = {settings.num_beams}: compiled for {', '.join(map(str, compiled.num_beams))}",
            "ask for one of these, or compile again with compile.num_beams",
        )
    longest = max(bucket.source_len for bucket in compiled.buckets)
    if source_len > longest:
        raise ArtifactError(
            f"a prompt of {source_len} tokens, the longest bucket takes {longest}",
            f"data.max_source_length={longest} cuts dialogues to fit and counts them, or compile a longer bucket",
        )
    fitting = [
        bucket
        for bucket in compiled.buckets
        if bucket.batch >= examples and bucket.source_len >= source_len and bucket.target_len >= settings.max_new_tokens
    ]
    if not fitting:
        raise ArtifactError(
            f"generate.max_new_tokens = {settings.max_new_tokens} with {examples} prompts of {source_len} tokens: "
            f"no bucket of {', '.join(map(str, compiled.buckets))} (batch x source x target) fits",
            f"--set generate.max_new_tokens={max(bucket.target_len for bucket in compiled.buckets)}, or compile again "
            "with a larger compile.target_len",
        )
    return min(fitting, key=lambda bucket: (bucket.batch, bucket.source_len, bucket.target_len))


def _search(
    session: Session, prompts: Sequence[Sequence[int]], runtime: StepRuntime, settings: GenerateConfig
) -> list[list[int]]:
    """Greedy or beam search over one batch."""
    history = _history(session.start, prompts, runtime)
    processors = LogitsProcessorList()
    if settings.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
    if settings.min_new_tokens:
        processors.append(
            MinNewTokensLengthLogitsProcessor(history.shape[1], settings.min_new_tokens, runtime.tokens.eos)
        )
    search: Callable[..., Tensor] = _greedy if settings.num_beams == 1 else _beam_search
    rows = search(session, history, processors, runtime.tokens.eos, settings)[:, history.shape[1] :].tolist()
    return [row[: row.index(runtime.tokens.eos) + 1] if runtime.tokens.eos in row else row for row in rows]


def _history(start: Tensor, prompts: Sequence[Sequence[int]], runtime: StepRuntime) -> Tensor:
    """What processors see before the first new token: the decoder's start, or left-padded prompts; (examples, n)."""
    if runtime.tokens.decoder_start is not None:
        return start[:, :1]
    longest = max(map(len, prompts))
    return torch.tensor([[runtime.tokens.pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])


def _greedy(
    session: Session, history: Tensor, processors: LogitsProcessorList, eos: int, settings: GenerateConfig
) -> Tensor:
    """(examples, length + new tokens); a finished row goes on with end tokens."""
    tokens, rows = session.start, torch.zeros_like(session.start)
    finished = torch.zeros(len(history), dtype=torch.bool)
    for _ in range(settings.max_new_tokens):
        scores = processors(history, session.step(tokens, rows)[:, 0])
        chosen = scores.argmax(-1).masked_fill(finished, eos)
        history = torch.cat([history, chosen[:, None]], dim=1)
        finished |= chosen == eos
        if finished.all():
            break
        tokens = chosen[:, None]
    return history


def _beam_search(
    session: Session, history: Tensor, processors: LogitsProcessorList, eos: int, settings: GenerateConfig
) -> Tensor:
    """The best finished beam of every example: (examples, length + max_new_tokens), padded with end tokens.

    `running` are the beams that go on, `finished` the best ones that have ended; 2 K candidates are kept at every step,
    for K of them may end at once.
    """
    examples, beams, first = len(history), settings.num_beams, history.shape[1]
    length = first + settings.max_new_tokens
    running = torch.full((examples, beams, length), eos)
    running[:, :, :first] = history[:, None]
    running_scores = torch.full((examples, beams), NEVER)
    running_scores[:, 0] = 0.0  # the beams are still the same: only the first counts
    finished, finished_scores = running.clone(), torch.full((examples, beams), NEVER)
    is_finished = torch.zeros(examples, beams, dtype=torch.bool)
    can_improve = torch.ones(examples, 1, dtype=torch.bool)
    in_top = torch.arange(2 * beams) < beams
    tokens, rows = session.start, torch.arange(beams).expand(examples, beams)
    for new in range(1, settings.max_new_tokens + 1):
        at = first + new - 1
        scores = torch.log_softmax(session.step(tokens, rows), dim=-1)
        vocab = scores.shape[-1]
        scores = processors(running[:, :, :at].reshape(examples * beams, at), scores.reshape(examples * beams, vocab))
        totals = (scores.view(examples, beams, vocab) + running_scores[:, :, None]).view(examples, beams * vocab)
        top_scores, top = torch.topk(totals, 2 * beams)
        top_rows, top_tokens = top // vocab, top % vocab
        candidates = _pick(running, top_rows)
        candidates[:, :, at] = top_tokens
        ends = (top_tokens == eos) | (new == settings.max_new_tokens)

        going_on = top_scores + ends.float() * NEVER
        best = torch.topk(going_on, beams).indices
        running, running_scores = _pick(candidates, best), going_on.gather(1, best)
        tokens, rows = top_tokens.gather(1, best), top_rows.gather(1, best)

        ended = ends & in_top
        ended_scores = top_scores / new**settings.length_penalty
        if settings.early_stopping:
            ended_scores += is_finished.all(dim=1, keepdim=True).float() * NEVER
        ended_scores += (~can_improve).float() * NEVER + (~ended).float() * NEVER
        merged_scores = torch.cat([finished_scores, ended_scores], dim=1)
        finished_scores, kept = torch.topk(merged_scores, beams)
        finished = _pick(torch.cat([finished, candidates], dim=1), kept)
        is_finished = torch.cat([is_finished, ended], dim=1).gather(1, kept)

        # Upstream's rule, a heuristic for early_stopping=False: could the best running beam, at its present length,
        # still beat the worst finished one?
        worst = torch.where(is_finished, finished_scores.min(dim=1, keepdim=True).values, NEVER)
        can_improve &= (running_scores[:, :1] / new**settings.length_penalty > worst).any(dim=1, keepdim=True)
        if not can_improve.any() or ends.all() or (settings.early_stopping and is_finished.all()):
            break
    return finished[:, 0]


def _pick(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (examples, many, length), index (examples, few) -> (examples, few, length)."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[2]))
