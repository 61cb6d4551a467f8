"""Greedy and beam search over the candidates of every step, with the same tokens as transformers' generate().

Follows GenerationMixin of transformers 4.57 (`_sample` with do_sample=False, `_beam_search`), including the stopping
rule, and its processors NoRepeatNGramLogitsProcessor and MinNewTokensLengthLogitsProcessor. The arrays are small, and
NumPy's calls take a third of the time of torch's. Letters in shapes: B examples, K beams, M candidates, V tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuron_sum.errors import ArtifactError
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import Candidates, Session, Steps, until_end
from neuron_sum.runtimes.sections import ANY, REMOVED, Allowed, SectionRules, State

NEVER = np.float32(-1.0e9)
"""A score below that of every beam; the same constant as in transformers."""
NOTHING = -1
"""The place of a token before the first of a prompt."""

Scores = NDArray[np.float32]
Tokens = NDArray[np.int64]


@dataclass
class Counts:
    """The number of steps, and of those that read all logits because too few candidates were allowed."""

    steps: int = 0
    all_logits: int = 0


def search(
    session: Session,
    prompts: Tokens,
    ends: Sequence[int],
    settings: GenerateConfig,
    counts: Counts,
    sections: SectionRules | None = None,
) -> list[list[int]]:
    """The new tokens of every example, up to and including the end token if there is one.

    Args:
        session: A batch.
        prompts: (B, n), the tokens before the first new one: the decoder start, or prompts padded on the left.
        ends: The tokens that end a summary.
        settings: The settings of the search.
        counts: Incremented by the search.
        sections: The rules that force headings; None for a text without sections.
    """
    rows = range(len(prompts))
    found = new_search(len(prompts), ends, settings, counts, sections)
    for row in rows:
        found.start(row, prompts[row], session.start[row])
    while found.is_running.any():
        found.step(session)
    return [found.result(row) for row in rows]


class Search(ABC):
    """The search for summaries in the rows of a batch; every row has its own step, and starts and ends by itself.

    Args:
        batch: The number of rows, B.
        ends: The tokens that end a summary.
        settings: The settings of the search.
        counts: Incremented at every step.
        sections: The rules that force headings; None for a text without sections.

    Attributes:
        is_running: (B,), whether a row has an unfinished summary.
        tokens: (B, K), the input tokens of the next step.
        beams: (B, K), the beam of its example that each beam continues.
    """

    def __init__(
        self,
        batch: int,
        ends: Sequence[int],
        settings: GenerateConfig,
        counts: Counts,
        sections: SectionRules | None = None,
    ) -> None:
        self._settings, self._ends, self._counts, self._sections = settings, tuple(ends), counts, sections
        shape, self._most = (batch, settings.num_beams), settings.max_new_tokens
        self.is_running = np.zeros(batch, dtype=bool)
        self.tokens = np.zeros(shape, dtype=np.int64)
        self.beams = np.zeros(shape, dtype=np.int64) + np.arange(settings.num_beams)
        self._new = np.zeros(batch, dtype=np.int64)  # tokens written so far
        self._written = np.full((*shape, self._most + 1), ends[0])  # behind the last place, finished rows write
        # For bans: the prompt and the new tokens of every beam, the newest at the end, NOTHING before the first.
        self._history = np.full((*shape, self._most + 1), NOTHING)
        self._states = np.empty(shape, dtype=object)  # the place of every beam in its sections

    def start(self, row: int, prompt: "Sequence[int] | Tokens", tokens: Tokens) -> None:
        """Start a new summary in a row.

        Args:
            row: The row; a summary that was there is forgotten.
            prompt: The tokens before the first new one.
            tokens: (K,), the input tokens of the first step.
        """
        if missing := max(0, len(prompt) + self._most - self._history.shape[2]):
            before = np.full((*self.tokens.shape, missing), NOTHING)
            self._history = np.concatenate([before, self._history], axis=2)
        self._history[row] = NOTHING
        self._history[row, :, self._history.shape[2] - len(prompt) :] = prompt
        self.is_running[row], self.tokens[row], self._new[row] = True, tokens, 0
        self.beams[row] = np.arange(self.beams.shape[1])
        for beam in range(self.beams.shape[1]):
            self._states[row, beam] = State()

    def move(self, source: int, target: int) -> None:
        """Move a running row to another one, which is not running."""
        for array in vars(self).values():
            if isinstance(array, np.ndarray):
                array[target] = array[source]
        self.is_running[source] = False

    def step(self, session: Steps, count: int | None = None) -> None:
        """Run the next step of a session; or the next ones, if it needs no candidates.

        Args:
            session: The session.
            count: The number of rows at the beginning that have a step; those behind them are not running. Default:
                all rows.
        """
        self.advance(session.step(self.tokens[:count], self.beams[:count]))

    @abstractmethod
    def advance(self, candidates: Candidates) -> None:
        """Choose the next tokens of the first rows.

        Args:
            candidates: The candidates of a step of the first rows; those behind them are not running.
        """

    @abstractmethod
    def result(self, row: int) -> list[int]:
        """The new tokens of a row that is finished, up to and including the end token if there is one."""

    def _append(self, tokens: Tokens, beams: Tokens | None = None) -> None:
        """Append the tokens (count, K) of a step to the history of the beams (count, K) that they continue."""
        if self._settings.no_repeat_ngram_size:
            past = self._history[: len(tokens)]
            past[..., :-1] = (past if beams is None else past[np.arange(len(tokens))[:, None], beams])[..., 1:]
            past[..., -1] = tokens

    def _limits(self, count: int) -> "_Limits | None":
        """What the first rows do not allow next; None if they allow all tokens."""
        banned, rules = self._banned(count), self._sections
        if rules is None:
            return _Limits(banned) if banned is not None else None
        new, is_running = self._new.tolist(), self.is_running.tolist()
        allowed = [
            [rules.allowed(state, new[row]) if is_running[row] else ANY for state in self._states[row]]
            for row in range(count)
        ]
        return _Limits(banned, rules, allowed)

    def _follow(self, tokens: Tokens, beams: Tokens, limits: "_Limits | None") -> None:
        """Set the places in the sections after a step.

        Args:
            tokens: (count, K), the tokens of the step.
            beams: (count, K), the beams that they continue.
            limits: The limits of the step.
        """
        if limits is None or limits.rules is None:
            return
        for row in self.is_running[: len(tokens)].nonzero()[0].tolist():
            states, replaced = self._states[row, beams[row]], limits.replaced[row, beams[row]]
            for beam, token in enumerate(tokens[row].tolist()):
                self._states[row, beam] = limits.rules.after(states[beam], token, replaces_end=bool(replaced[beam]))

    def _is_end(self, tokens: Tokens) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = tokens == self._ends[0]
        for end in self._ends[1:]:
            found |= tokens == end
        return found

    def _banned(self, count: int) -> tuple[Tokens, Tokens] | None:
        """The tokens that no_repeat_ngram_size and min_new_tokens do not allow next.

        Args:
            count: The number of rows.

        Returns:
            Rows of count * K, and a token for each; None if all tokens are allowed.
        """
        size, beams, found = self._settings.no_repeat_ngram_size, self.tokens.shape[1], []
        if self._settings.min_new_tokens and self._sections is None:
            short = (self._new[:count] < self._settings.min_new_tokens).repeat(beams).nonzero()[0]
            found.append((short.repeat(len(self._ends)), np.tile(self._ends, len(short))))
        if 0 < size <= self._history.shape[2]:
            history = self._history[:count].reshape(count * beams, -1)
            follows, length = history[:, size - 1 :], history.shape[1]
            same = follows != NOTHING
            for place in range(size - 1):  # the last tokens of the history, compared with every earlier place
                same &= history[:, place : place + follows.shape[1]] == history[:, length - size + 1 + place, None]
            rows, places = same.nonzero()
            found.append((rows, follows[rows, places]))
        found = [pair for pair in found if len(pair[0])]
        if len(found) < 2:
            return found[0] if found else None
        return np.concatenate([rows for rows, _ in found]), np.concatenate([tokens for _, tokens in found])


def new_search(
    batch: int, ends: Sequence[int], settings: GenerateConfig, counts: Counts, sections: SectionRules | None = None
) -> Search:
    """The search that the settings request; see `Search`."""
    return (_Greedy if settings.num_beams == 1 else _BeamSearch)(batch, ends, settings, counts, sections)


class _Limits:
    """What a step does not allow.

    Args:
        banned: Rows of B * K, and a token for each that the settings ban.
        rules: The rules of the sections; None without sections.
        allowed: The tokens that they allow, of each beam of each row.

    Attributes:
        replaced: (B, K), the result of `SectionRules.apply`.
    """

    def __init__(
        self,
        banned: tuple[Tokens, Tokens] | None,
        rules: SectionRules | None = None,
        allowed: Sequence[Sequence[Allowed]] = (),
    ) -> None:
        self._banned, self.rules, self._allowed = banned, rules, allowed
        self.replaced = np.zeros((0, 0), dtype=bool)

    def apply(self, scores: Scores, tokens: Tokens) -> bool:
        """Change candidates (B, K, M) in place; returns whether any is no longer allowed."""
        removed = False
        if self._banned is not None:
            rows, not_allowed = self._banned
            width = scores.shape[-1]
            pairs, places = (tokens.reshape(-1, width)[rows] == not_allowed[:, None]).nonzero()
            scores.reshape(-1, width)[rows[pairs], places] = REMOVED
            removed = len(pairs) > 0
        if self.rules is not None:
            self.replaced = self.rules.apply(self._allowed, scores, tokens)
        return removed or self.rules is not None

    def apply_to_all(self, scores: Scores) -> Tokens:
        """Change the scores (B, K, V) of the whole vocabulary in place; returns their tokens."""
        if self._banned is not None:
            scores.reshape(-1, scores.shape[-1])[self._banned] = REMOVED
        tokens = np.broadcast_to(np.arange(scores.shape[-1]), scores.shape)
        if self.rules is not None:
            tokens = tokens.copy()
            self.replaced = self.rules.apply(self._allowed, scores, tokens)
        return tokens

    def forced(self, batch: int, beams: int) -> NDArray[np.bool_]:
        """(B, K), the beams for which only one token is allowed."""
        if self.rules is None:
            return np.zeros((batch, beams), dtype=bool)
        return np.array([[each.forced is not None for each in row] for row in self._allowed])


def _log_probabilities(candidates: Candidates, logits: Scores) -> Scores:
    """The steps and the order of torch.log_softmax, for logits (B, K, any)."""
    scores: Scores = (logits - candidates.logits[..., :1]) - candidates.log_sum[..., None]
    return scores


class _Greedy(Search):
    def step(self, session: Steps, count: int | None = None) -> None:
        """See `Search`."""
        several = session.greedy if self._sections is None else None
        if several is not None and not self._settings.no_repeat_ngram_size:
            new = self._new[self.is_running]
            if new.min() >= self._settings.min_new_tokens and new.max() + several.steps <= self._most:
                return self._extend(*several.call(self.tokens[:count]))
        return super().step(session, count)

    def advance(self, candidates: Candidates) -> None:
        """See `Search`."""
        self._counts.steps += 1
        logits, ids, count = candidates.logits, candidates.tokens, len(candidates.logits)
        is_running, new = self.is_running[:count], self._new[:count]
        _check_finite(logits[..., 0][is_running])
        if (limits := self._limits(count)) is not None:
            logits, ids = logits.copy(), ids.copy()
            limits.apply(logits, ids)
            if np.isneginf(logits.max(-1)[is_running]).any() and ids.shape[-1] < candidates.vocabulary:
                self._counts.all_logits += 1
                logits = candidates.all_logits().copy()
                ids = limits.apply_to_all(logits)
        # Of several largest logits, the first token, as argmax does.
        best = np.where(logits == logits.max(-1, keepdims=True), ids, candidates.vocabulary).min(-1)
        best[~is_running] = self._ends[0]
        self._written[np.arange(count), 0, new] = best[:, 0]
        self._append(best)
        self._follow(best, np.zeros_like(best), limits)
        self.tokens[:count] = best
        new += is_running
        is_running &= ~self._is_end(best[:, 0]) & (new < self._most)

    def _extend(self, tokens: Tokens, logits: Scores) -> None:
        """Append the tokens of several steps to the first rows, with their logits: both (count, steps)."""
        count, steps = tokens.shape
        self._counts.steps += steps
        is_running, new = self.is_running[:count], self._new[:count]
        places = new[:, None] + np.arange(steps)
        ended = self._is_end(tokens) | (places >= self._most - 1)
        is_new = is_running[:, None] & (ended.cumsum(axis=1) == ended)  # up to the end of a row
        _check_finite(logits[is_new])
        self._written[np.arange(count)[:, None], 0, np.where(is_new, places, self._most)] = tokens
        self.tokens[:count] = tokens[:, -1:]
        new += is_new.sum(axis=1)
        is_running &= ~ended.any(axis=1)

    def result(self, row: int) -> list[int]:
        """See `Search`."""
        return until_end(self._written[row, 0, : self._new[row]].tolist(), self._ends)


class _BeamSearch(Search):
    """The best finished beam of every example.

    `_written` are the unfinished beams, `_finished` the best ended ones. Every step has 2 K candidates, because K of
    them may end at the same step; with several end tokens, K more for each.
    """

    def __init__(
        self,
        batch: int,
        ends: Sequence[int],
        settings: GenerateConfig,
        counts: Counts,
        sections: SectionRules | None = None,
    ) -> None:
        super().__init__(batch, ends, settings, counts, sections)
        self._scores = np.full(self.tokens.shape, NEVER)
        self._finished, self._finished_scores = self._written.copy(), self._scores.copy()
        self._is_finished = np.zeros(self.tokens.shape, dtype=bool)
        self._can_improve = np.ones((batch, 1), dtype=bool)
        self._scales = [np.float32(max(new, 1) ** settings.length_penalty) for new in range(self._most + 1)]

    def start(self, row: int, prompt: "Sequence[int] | Tokens", tokens: Tokens) -> None:
        """See `Search`."""
        super().start(row, prompt, tokens)
        self._written[row] = self._finished[row] = self._ends[0]
        self._scores[row] = self._finished_scores[row] = NEVER
        self._scores[row, 0] = 0  # all beams are still equal, so only the first counts
        self._is_finished[row], self._can_improve[row] = False, True

    def advance(self, candidates: Candidates) -> None:
        """See `Search`."""
        count, beams = len(candidates.logits), self.tokens.shape[1]
        kept, example = (1 + len(self._ends)) * beams, np.arange(count)[:, None]
        self._counts.steps += 1
        is_running, can_improve = self.is_running[:count], self._can_improve[:count]
        _check_finite(candidates.logits[..., 0][is_running])
        limits = self._limits(count)
        top_scores, top_beams, top_tokens = _top(
            candidates, self._scores[:count], limits, is_running, kept, self._counts
        )
        chosen = self._written[example, top_beams]
        new = self._new[:count]
        chosen[example, np.arange(kept), new[:, None]] = top_tokens
        new += is_running
        ended = self._is_end(top_tokens) | (new == self._most)[:, None]

        continuing = np.where(ended, top_scores + NEVER, top_scores)
        best = _largest(continuing, beams)
        self._written[:count], self._scores[:count] = chosen[example, best], continuing[example, best]
        self.tokens[:count], self.beams[:count] = top_tokens[example, best], top_beams[example, best]
        self._append(self.tokens[:count], self.beams[:count])
        self._follow(self.tokens[:count], self.beams[:count], limits)

        scale = np.array([self._scales[length] for length in new.tolist()])[:, None]
        finished_scores, is_finished = self._finished_scores[:count], self._is_finished[:count]
        counted = ended & (np.arange(kept) < beams) & can_improve & is_running[:, None]
        if self._settings.early_stopping:
            counted &= ~is_finished.all(axis=1, keepdims=True)
        if counted.any():
            scores = np.where(counted, top_scores / scale, NEVER)
            merged = np.concatenate([finished_scores, scores], axis=1)
            best = _largest(merged, beams)
            finished_scores[:] = merged[example, best]
            self._finished[:count] = np.concatenate([self._finished[:count], chosen], axis=1)[example, best]
            is_finished[:] = np.concatenate([is_finished, counted], axis=1)[example, best]

        # The rule of transformers, a heuristic for early_stopping=False: continue if the best running beam, at its
        # present length, can still beat the worst finished one.
        worst = np.where(is_finished, finished_scores.min(axis=1, keepdims=True), NEVER)
        can_improve &= (self._scores[:count, :1] / scale > worst).any(axis=1, keepdims=True)
        is_running &= can_improve[:, 0] & ~ended.all(axis=1)
        if self._settings.early_stopping:
            is_running &= ~is_finished.all(axis=1)

    def result(self, row: int) -> list[int]:
        """See `Search`."""
        return until_end(self._finished[row, 0, : self._most].tolist(), self._ends)


def _check_finite(largest: Scores) -> None:
    """Raise if the graphs computed no numbers, such as values that overflow in bf16, for the largest logits."""
    if not np.isfinite(largest).all():
        raise ArtifactError(
            "the graphs computed logits that are not finite",
            "compile again with `--set compile.dtype=fp32`; if that does not help, train with a lower learning rate",
        )


def _top(
    candidates: Candidates,
    running: Scores,
    limits: _Limits | None,
    is_running: NDArray[np.bool_],
    count: int,
    counts: Counts,
) -> tuple[Scores, Tokens, Tokens]:
    """The best continuations of the beams of every example.

    Args:
        candidates: The candidates of a step.
        running: (B, K), the scores of the beams.
        limits: The tokens that are not allowed; None without limits.
        is_running: (B,), the rows that matter.
        count: Number of continuations.
        counts: Incremented if all logits are read.

    Returns:
        Scores, beams and tokens, each (B, count).
    """
    scores, ids = _log_probabilities(candidates, candidates.logits), candidates.tokens.copy()
    batch, beams, listed = scores.shape
    example = np.arange(batch)[:, None]
    unlisted = scores[..., -1] + running  # no token outside the list has a larger score
    removed = limits is not None and limits.apply(scores, ids)
    if limits is not None:
        unlisted[limits.forced(batch, beams)] = REMOVED
    totals = (scores + running[..., None]).reshape(batch, beams * listed)
    best = _largest(totals, count)
    top = totals[example, best]
    is_complete = listed == candidates.vocabulary or (not removed and listed >= count)
    if is_complete or not (unlisted > top[:, -1:])[is_running].any():
        return top, best // listed, ids.reshape(batch, -1)[example, best]
    counts.all_logits += 1
    vocabulary = candidates.vocabulary
    scores = _log_probabilities(candidates, candidates.all_logits())
    if limits is not None:
        limits.apply_to_all(scores)
    totals = (scores + running[..., None]).reshape(batch, beams * vocabulary)
    best = np.argpartition(-totals, count - 1, axis=1)[:, :count]
    best = best[example, _largest(totals[example, best], count)]
    return totals[example, best], best // vocabulary, best % vocabulary


def _largest(values: Scores, count: int) -> Tokens:
    """The places of the largest values of every row, in descending order; of equal ones, the first."""
    return np.argsort(-values, axis=1, kind="stable")[:, :count]
