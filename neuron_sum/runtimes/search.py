"""Greedy and beam search over the candidates of every step, with the same tokens as transformers' generate().

Follows GenerationMixin of transformers 4.57 (`_sample` with do_sample=False, `_beam_search`), including the stopping
rule, and its processors NoRepeatNGramLogitsProcessor and MinNewTokensLengthLogitsProcessor. The arrays are small, and
NumPy's calls take a third of the time of torch's. Letters in shapes: B examples, K beams, M candidates, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import Candidates, Session

NEVER = np.float32(-1.0e9)
"""A score below that of every beam; the same constant as in transformers."""
REMOVED = np.float32("-inf")
"""The score of a token that is not allowed."""

Scores = NDArray[np.float32]
Tokens = NDArray[np.int64]


@dataclass
class Counts:
    """The number of steps, and of those that read all logits because too few candidates were allowed."""

    steps: int = 0
    all_logits: int = 0


def search(
    session: Session, prompts: Tokens, ends: Sequence[int], settings: GenerateConfig, counts: Counts
) -> list[list[int]]:
    """The new tokens of every example; behind an end token, they have no meaning.

    Args:
        session: A batch.
        prompts: (B, n), the tokens before the first new one: the decoder start, or prompts padded on the left.
        ends: The tokens that end a summary.
        settings: The settings of the search.
        counts: Incremented by the search.
    """
    bans = _Bans(prompts, ends, settings)
    found = (_greedy if settings.num_beams == 1 else _beam_search)(session, bans, np.array(ends), settings, counts)
    rows: list[list[int]] = found.tolist()
    return rows


class _Bans:
    """The tokens that no_repeat_ngram_size and min_new_tokens do not allow."""

    def __init__(self, prompts: Tokens, ends: Sequence[int], settings: GenerateConfig) -> None:
        self._prompts, self._ends = prompts, np.array(ends)
        self._ngram, self._min_new = settings.no_repeat_ngram_size, settings.min_new_tokens

    def find(self, written: Tokens) -> tuple[Tokens, Tokens] | None:
        """The tokens that may not follow.

        Args:
            written: (B, K, new), the new tokens of every beam.

        Returns:
            Rows of B * K, and a token for each; None if all tokens are allowed.
        """
        batch, beams, new = written.shape
        found = []
        if new < self._min_new:
            rows = np.arange(batch * beams).repeat(len(self._ends))
            found.append((rows, np.tile(self._ends, batch * beams)))
        size, length = self._ngram, self._prompts.shape[1] + new
        if 0 < size <= length:
            before = np.broadcast_to(self._prompts[:, None], (batch, beams, self._prompts.shape[1]))
            history = np.concatenate([before, written], axis=2).reshape(batch * beams, length)
            follows = history[:, size - 1 :]
            same = np.ones(follows.shape, dtype=bool)
            for place in range(size - 1):  # the last tokens of the history, compared with every earlier place
                same &= history[:, place : place + follows.shape[1]] == history[:, length - size + 1 + place, None]
            rows, places = same.nonzero()
            if len(rows):
                found.append((rows, follows[rows, places]))
        if not found:
            return None
        return np.concatenate([rows for rows, _ in found]), np.concatenate([tokens for _, tokens in found])


def _remove(scores: Scores, tokens: Tokens, banned: tuple[Tokens, Tokens]) -> bool:
    """Removes banned tokens from candidates (B, K, M) in place; returns whether there were any."""
    rows, not_allowed = banned
    width = scores.shape[-1]
    pairs, places = (tokens.reshape(-1, width)[rows] == not_allowed[:, None]).nonzero()
    scores.reshape(-1, width)[rows[pairs], places] = REMOVED
    return len(pairs) > 0


def _log_probabilities(candidates: Candidates, logits: Scores) -> Scores:
    """The steps and the order of torch.log_softmax, for logits (B, K, any)."""
    scores: Scores = (logits - candidates.logits[..., :1]) - candidates.log_sum[..., None]
    return scores


def _greedy(session: Session, bans: _Bans, ends: Tokens, settings: GenerateConfig, counts: Counts) -> Tokens:
    """Greedy search: (B, new tokens)."""
    batch = len(session.start)
    written = np.full((batch, 1, settings.max_new_tokens), ends[0])
    tokens, rows = session.start, np.zeros_like(session.start)
    finished = np.zeros(batch, dtype=bool)
    for new in range(settings.max_new_tokens):
        candidates = session.step(tokens, rows)
        counts.steps += 1
        logits, ids = candidates.logits, candidates.tokens
        if (banned := bans.find(written[:, :, :new])) is not None:
            logits = logits.copy()
            _remove(logits, ids, banned)
            if np.isneginf(logits.max(-1)).any() and ids.shape[-1] < candidates.vocabulary:
                counts.all_logits += 1
                logits = candidates.all_logits().copy()
                logits.reshape(-1, logits.shape[-1])[banned] = REMOVED
                ids = np.broadcast_to(np.arange(candidates.vocabulary), logits.shape)
        # Of several largest logits, the first token, as argmax does.
        best = np.where(logits == logits.max(-1, keepdims=True), ids, candidates.vocabulary).min(-1)[:, 0]
        best[finished] = ends[0]
        written[:, 0, new] = best
        finished |= np.isin(best, ends)
        if finished.all():
            break
        tokens = best[:, None]
    return written[:, 0]


def _beam_search(session: Session, bans: _Bans, ends: Tokens, settings: GenerateConfig, counts: Counts) -> Tokens:
    """The best finished beam of every example: (B, max_new_tokens).

    `running` are the unfinished beams, `finished` the best ended ones. Every step has 2 K candidates, because K of them
    may end at the same step; with several end tokens, K more for each.
    """
    batch, beams, most = len(session.start), settings.num_beams, settings.max_new_tokens
    kept = (1 + len(ends)) * beams
    example = np.arange(batch)[:, None]
    running = np.full((batch, beams, most), ends[0])
    running_scores = np.full((batch, beams), NEVER)
    running_scores[:, 0] = 0  # all beams are still equal, so only the first counts
    finished, finished_scores = running.copy(), np.full((batch, beams), NEVER)
    is_finished = np.zeros((batch, beams), dtype=bool)
    can_improve = np.ones((batch, 1), dtype=bool)
    tokens, rows = session.start, np.zeros((batch, beams), dtype=np.int64) + np.arange(beams)
    for new in range(1, most + 1):
        candidates = session.step(tokens, rows)
        counts.steps += 1
        banned = bans.find(running[:, :, : new - 1])
        top_scores, top_rows, top_tokens = _top(candidates, running_scores, banned, kept, counts)
        chosen = running[example, top_rows]
        chosen[:, :, new - 1] = top_tokens
        ended = np.isin(top_tokens, ends)
        if new == most:
            ended[:] = True

        continuing = np.where(ended, top_scores + NEVER, top_scores)
        best = _largest(continuing, beams)
        running, running_scores = chosen[example, best], continuing[example, best]
        tokens, rows = top_tokens[example, best], top_rows[example, best]

        scale = np.float32(new**settings.length_penalty)
        counted = ended & (np.arange(kept) < beams) & can_improve
        if settings.early_stopping:
            counted &= ~is_finished.all(axis=1, keepdims=True)
        if counted.any():
            scores = np.where(counted, top_scores / scale, NEVER)
            merged = np.concatenate([finished_scores, scores], axis=1)
            best = _largest(merged, beams)
            finished_scores = merged[example, best]
            finished = np.concatenate([finished, chosen], axis=1)[example, best]
            is_finished = np.concatenate([is_finished, counted], axis=1)[example, best]

        # The rule of transformers, a heuristic for early_stopping=False: continue if the best running beam, at its
        # present length, can still beat the worst finished one.
        worst = np.where(is_finished, finished_scores.min(axis=1, keepdims=True), NEVER)
        can_improve &= (running_scores[:, :1] / scale > worst).any(axis=1, keepdims=True)
        if not can_improve.any() or ended.all() or (settings.early_stopping and is_finished.all()):
            break
    return finished[:, 0]


def _top(
    candidates: Candidates, running: Scores, banned: tuple[Tokens, Tokens] | None, count: int, counts: Counts
) -> tuple[Scores, Tokens, Tokens]:
    """The best continuations of the beams of every example.

    Args:
        candidates: The candidates of a step.
        running: (B, K), the scores of the beams.
        banned: The tokens that are not allowed.
        count: Number of continuations.
        counts: Incremented if all logits are read.

    Returns:
        Scores, beams and tokens, each (B, count).
    """
    scores, ids = _log_probabilities(candidates, candidates.logits), candidates.tokens
    batch, beams, listed = scores.shape
    example = np.arange(batch)[:, None]
    unlisted = scores[..., -1] + running  # no token outside the list has a larger score
    removed = banned is not None and _remove(scores, ids, banned)
    totals = (scores + running[..., None]).reshape(batch, beams * listed)
    best = _largest(totals, count)
    top = totals[example, best]
    is_complete = listed == candidates.vocabulary or (not removed and listed >= count)
    if is_complete or not (unlisted > top[:, -1:]).any():
        return top, best // listed, ids.reshape(batch, -1)[example, best]
    counts.all_logits += 1
    vocabulary = candidates.vocabulary
    scores = _log_probabilities(candidates, candidates.all_logits())
    if banned is not None:
        scores.reshape(batch * beams, vocabulary)[banned] = REMOVED
    totals = (scores + running[..., None]).reshape(batch, beams * vocabulary)
    best = np.argpartition(-totals, count - 1, axis=1)[:, :count]
    best = best[example, _largest(totals[example, best], count)]
    return totals[example, best], best // vocabulary, best % vocabulary


def _largest(values: Scores, count: int) -> Tokens:
    """The places of the largest values of every row, in descending order; of equal ones, the first."""
    return np.argsort(-values, axis=1, kind="stable")[:, :count]
