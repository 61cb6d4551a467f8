"""Generation loop over static graphs: greedy and beam search with the same tokens as transformers' generate().

Follows GenerationMixin of transformers 4.57 (`_sample` with do_sample=False, `_beam_search`), including the stopping
rule, and uses its logits processors. Used by evaluation, `compile verify` and serving.
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
from neuron_sum.runtimes.base import Session, Shapes, StepRuntime, until_end
from neuron_sum.runtimes.slots import AdapterSlots

NEVER = -1.0e9
"""A score below that of every beam; the same constant as in transformers."""


@dataclass(frozen=True)
class StepGenerator:
    """A `CompiledGenerator` over a StepRuntime.

    Attributes:
        runtime: The runtime of the graphs.
        default_adapter: The adapter used if none is requested; None for the base model.
        max_prompts: The number of prompts per batch; None for the batch size of the largest bucket.
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
        for bucket in self.runtime.buckets:
            rows = [[self.runtime.tokens.ends[0]] * bucket.source_len] * bucket.batch
            for num_beams in self.runtime.num_beams:
                with self.runtime.turn(), torch.inference_mode():
                    session = self.runtime.begin(bucket, num_beams, rows, [0] * bucket.batch)
                    session.step(session.start, torch.zeros_like(session.start))

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerateConfig, adapters: Sequence[str | None] | None = None
    ) -> list[list[int]]:
        """See `CompiledGenerator`.

        All prompts of a batch use the same version of an adapter; later batches may use a newer version.
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
                outputs = _search(session, rows, self.runtime, settings)
            for index, tokens in zip(batch, outputs, strict=True):
                results[index] = tokens
        return results


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
            MinNewTokensLengthLogitsProcessor(history.shape[1], settings.min_new_tokens, list(runtime.tokens.ends))
        )
    search: Callable[..., Tensor] = _greedy if settings.num_beams == 1 else _beam_search
    ends = torch.tensor(runtime.tokens.ends)
    rows = search(session, history, processors, ends, settings)[:, history.shape[1] :].tolist()
    return [until_end(row, runtime.tokens.ends) for row in rows]


def _history(start: Tensor, prompts: Sequence[Sequence[int]], runtime: StepRuntime) -> Tensor:
    """Input of the processors before the first new token: the decoder start or left-padded prompts, (examples, n)."""
    if runtime.tokens.decoder_start is not None:
        return start[:, :1]
    longest = max(map(len, prompts))
    return torch.tensor([[runtime.tokens.pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])


def _greedy(
    session: Session, history: Tensor, processors: LogitsProcessorList, end_ids: Tensor, settings: GenerateConfig
) -> Tensor:
    """Greedy search: (examples, length + new tokens); a finished row continues with end tokens."""
    tokens, rows = session.start, torch.zeros_like(session.start)
    finished = torch.zeros(len(history), dtype=torch.bool)
    for _ in range(settings.max_new_tokens):
        scores = processors(history, session.step(tokens, rows)[:, 0])
        chosen = scores.argmax(-1).masked_fill(finished, int(end_ids[0]))
        history = torch.cat([history, chosen[:, None]], dim=1)
        finished |= torch.isin(chosen, end_ids)
        if finished.all():
            break
        tokens = chosen[:, None]
    return history


def _beam_search(
    session: Session, history: Tensor, processors: LogitsProcessorList, end_ids: Tensor, settings: GenerateConfig
) -> Tensor:
    """The best finished beam of every example: (examples, length + max_new_tokens), padded with end tokens.

    `running` are the unfinished beams, `finished` the best ended ones. Every step has 2 K candidates, because K of them
    may end at the same step; with several end tokens, K more for each.
    """
    examples, beams, first = len(history), settings.num_beams, history.shape[1]
    length = first + settings.max_new_tokens
    running = torch.full((examples, beams, length), int(end_ids[0]))
    running[:, :, :first] = history[:, None]
    running_scores = torch.full((examples, beams), NEVER)
    running_scores[:, 0] = 0.0  # all beams are still equal, so only the first counts
    finished, finished_scores = running.clone(), torch.full((examples, beams), NEVER)
    is_finished = torch.zeros(examples, beams, dtype=torch.bool)
    can_improve = torch.ones(examples, 1, dtype=torch.bool)
    candidates_kept = (1 + len(end_ids)) * beams
    in_top = torch.arange(candidates_kept) < beams
    tokens, rows = session.start, torch.arange(beams).expand(examples, beams)
    for new in range(1, settings.max_new_tokens + 1):
        at = first + new - 1
        scores = torch.log_softmax(session.step(tokens, rows), dim=-1)
        vocab = scores.shape[-1]
        scores = processors(running[:, :, :at].reshape(examples * beams, at), scores.reshape(examples * beams, vocab))
        totals = (scores.view(examples, beams, vocab) + running_scores[:, :, None]).view(examples, beams * vocab)
        top_scores, top = torch.topk(totals, candidates_kept)
        top_rows, top_tokens = top // vocab, top % vocab
        candidates = _pick(running, top_rows)
        candidates[:, :, at] = top_tokens
        ends = torch.isin(top_tokens, end_ids) | (new == settings.max_new_tokens)

        continuing = top_scores + ends.float() * NEVER
        best = torch.topk(continuing, beams).indices
        running, running_scores = _pick(candidates, best), continuing.gather(1, best)
        tokens, rows = top_tokens.gather(1, best), top_rows.gather(1, best)

        ended = ends & in_top
        ended_scores = top_scores / new**settings.length_penalty
        if settings.early_stopping:
            ended_scores += is_finished.all(dim=1, keepdim=True).float() * NEVER
        ended_scores += (~can_improve).float() * NEVER + (~ended).float() * NEVER
        merged_scores = torch.cat([finished_scores, ended_scores], dim=1)
        finished_scores, best = torch.topk(merged_scores, beams)
        finished = _pick(torch.cat([finished, candidates], dim=1), best)
        is_finished = torch.cat([is_finished, ended], dim=1).gather(1, best)

        # The rule of transformers, a heuristic for early_stopping=False: continue if the best running beam, at its
        # present length, can still beat the worst finished one.
        worst = torch.where(is_finished, finished_scores.min(dim=1, keepdim=True).values, NEVER)
        can_improve &= (running_scores[:, :1] / new**settings.length_penalty > worst).any(dim=1, keepdim=True)
        if not can_improve.any() or ends.all() or (settings.early_stopping and is_finished.all()):
            break
    return finished[:, 0]


def _pick(rows: Tensor, index: Tensor) -> Tensor:
    """Select rows: (examples, many, length) with index (examples, few) -> (examples, few, length)."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[2]))
