"""Headings of sections forced in a search: a state for each beam, and the tokens that it allows next.

In a heading, only its next token is allowed. In the text of a section every token is allowed, with these exceptions:

- An end token before the last section counts as the next token of the next heading, of which the rest follows.
- A required section does not end before it has a visible character.
- A section of max_tokens tokens ends, as does one after which the remaining tokens only suffice for the later sections.

A model that writes the next heading itself begins that section, as a trained model does. An allowed token keeps its
probability, and a forced one has the probability 1, so that beams at different headings compare by their texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.sections import SectionCoder

Scores = NDArray[np.float32]
Tokens = NDArray[np.int64]
REMOVED = np.float32("-inf")
"""The score of a token that is not allowed."""


class State(NamedTuple):
    """The place of a beam.

    Attributes:
        section: The index of the section.
        heading: The number of its heading's tokens that are written.
        length: The number of tokens after the heading.
        matched: The number of last tokens that begin the next heading.
        has_text: Whether the tokens before those have a visible character.
        is_ending: Whether an end token was replaced by the next heading, the rest of which is forced.
    """

    section: int = 0
    heading: int = 0
    length: int = 0
    matched: int = 0
    has_text: bool = False
    is_ending: bool = False


@dataclass(frozen=True, slots=True)
class Allowed:
    """The tokens that may follow.

    Attributes:
        forced: The only one; None without such.
        banned: Tokens that may not follow.
        end_as: The token that an end token stands for; None if it ends the summary.
    """

    forced: int | None = None
    banned: tuple[int, ...] = ()
    end_as: int | None = None


ANY = Allowed()


class SectionRules:
    """The rules of a search.

    Args:
        coder: The sections and their headings as tokens.
        ends: The tokens that end a summary.
        settings: The settings of the search.

    Raises:
        RecipeError: If max_new_tokens is too small for all headings.
    """

    def __init__(self, coder: SectionCoder, ends: Sequence[int], settings: GenerateConfig) -> None:
        coder.check_length("generate.max_new_tokens", settings.max_new_tokens)
        self._sections, self._headings, self._ends = coder.sections, coder.headings, tuple(ends)
        self._most, self._least = settings.max_new_tokens, settings.min_new_tokens
        self._blank = coder.blank
        needed = [
            len(heading) + section.required for section, heading in zip(self._sections, self._headings, strict=True)
        ]
        self._needed = [sum(needed[index + 1 :]) for index in range(len(needed))]  # by the sections after each one

    def allowed(self, state: State, new: int) -> Allowed:
        """The tokens that may follow a beam.

        Args:
            state: The state of the beam.
            new: The number of its new tokens.
        """
        section, heading = self._sections[state.section], self._headings[state.section]
        if state.heading < len(heading):
            return Allowed(forced=heading[state.heading])
        is_last = state.section == len(self._sections) - 1
        following = self._ends[:1] if is_last else self._headings[state.section + 1]
        spare = self._most - new - self._needed[state.section]
        own = section.max_tokens - state.length if section.max_tokens is not None else spare
        if state.is_ending or own <= 0 or spare <= 0:
            return Allowed(forced=following[state.matched])
        if section.required and not state.has_text:
            banned = (*self._ends, *((following[state.matched],) if state.matched == len(following) - 1 else ()))
            if min(own, spare) == 1:
                banned = (*banned, *self._blank, following[0], following[state.matched])
            return Allowed(banned=banned)
        if is_last:
            return Allowed(banned=self._ends) if new < self._least else ANY
        return Allowed(end_as=following[state.matched])

    def after(self, state: State, token: int, *, replaces_end: bool) -> State:
        """The state of a beam after its next token.

        Args:
            state: The state before it.
            token: The token.
            replaces_end: Whether an end token was at least as probable as this one, which it stands for.
        """
        heading = self._headings[state.section]
        if state.heading < len(heading):
            return state._replace(heading=state.heading + 1)
        if state.section == len(self._sections) - 1:
            has_text = state.has_text or token not in self._blank
            return state._replace(length=state.length + 1, has_text=has_text)
        following = self._headings[state.section + 1]
        seen = [*following[: state.matched], token]
        matched = next(size for size in range(len(seen), -1, -1) if seen[len(seen) - size :] == following[:size])
        if matched == len(following):
            return State(state.section + 1, matched)
        text = seen[: len(seen) - matched]
        return State(
            state.section,
            state.heading,
            state.length + 1,
            matched,
            state.has_text or any(token not in self._blank for token in text),
            state.is_ending or (replaces_end and matched == state.matched + 1),
        )

    def apply(self, allowed: Sequence[Sequence[Allowed]], scores: Scores, tokens: Tokens) -> NDArray[np.bool_]:
        """Change the scores of candidates in place to those of the allowed tokens.

        Args:
            allowed: The allowed tokens of each beam of the first rows.
            scores: (B, K, M), logits or log probabilities.
            tokens: (B, K, M), the token of each score; changed where a forced token is not among them.

        Returns:
            (B, K), whether a token that an end token stands for has the end token's score.
        """
        replaced = np.zeros(scores.shape[:2], dtype=bool)
        for place in np.ndindex(*replaced.shape):
            rule = allowed[place[0]][place[1]]
            if rule is not ANY:
                replaced[place] = self._apply(rule, scores[place], tokens[place])
        return replaced

    def _apply(self, rule: Allowed, scores: Scores, tokens: Tokens) -> bool:
        if rule.forced is not None:
            scores[:] = REMOVED
            [at] = _places(tokens, rule.forced)[:1] or [0]
            tokens[at], scores[at] = rule.forced, 0
            return False
        if rule.banned:
            scores[np.isin(tokens, rule.banned)] = REMOVED
        if rule.end_as is None or not (ends := [at for end in self._ends for at in _places(tokens, end)]):
            return False
        best = max(ends, key=lambda at: scores[at])
        score = scores[best]
        scores[ends] = REMOVED
        [at] = _places(tokens, rule.end_as)[:1] or [best]
        if tokens[at] == rule.end_as and scores[at] > score:
            return False
        tokens[at], scores[at] = rule.end_as, score
        return bool(score > REMOVED)


def _places(tokens: Tokens, token: int) -> list[int]:
    places: list[int] = (tokens == token).nonzero()[0].tolist()
    return places
