"""The rounds in which a dialogue is summarized: its prompt or its pieces, then the summaries of the pieces.

Callers generate a summary for each prompt of a round, until there is a summary of the whole dialogue:

    rounds = Rounds(...)
    while rounds.summary is None:
        rounds.close([summary of prompt for prompt in rounds.prompts])
"""

from collections.abc import Sequence

from neuron_sum.data.pieces import Piece, Splitter
from neuron_sum.errors import DataError
from neuron_sum.prompts import EncodedPrompt, Prompt, Tokenizer, turns_of, without_control
from neuron_sum.recipes.schema import DataConfig

LISTED = 5


class Rounds:
    """The rounds of one dialogue.

    Args:
        prompts: The prompts of the first round, at least one.
        coverage: The share of the dialogue's turns that they contain uncut, from 0 to 1.
        splitter: Groups the summaries of a round; None for a dialogue with a single prompt.
        merge_until: See DataConfig.

    Attributes:
        prompts: The prompts of the current round.
        number: The number of finished rounds.
        summary: The summary of the whole dialogue; None before the last round is finished.
        coverage: As above.
        truncated: Whether a part of the dialogue was cut off.
        input_tokens: The number of tokens of the prompts of the first round.
    """

    def __init__(
        self, prompts: Sequence[EncodedPrompt], coverage: float, splitter: Splitter | None, merge_until: int
    ) -> None:
        self.prompts, self.number = list(prompts), 0
        self.summary: str | None = None
        self.coverage, self._splitter, self._merge_until = coverage, splitter, merge_until
        self.truncated = any(prompt.truncated for prompt in prompts)
        self.input_tokens = sum(len(prompt.input_ids) for prompt in prompts)

    def close(self, summaries: Sequence[str]) -> None:
        """Finish a round: set `summary`, or the prompts of the next round, which are fewer.

        Summaries that cannot be merged, because no two of them fit into a prompt, are the answer, one per line.

        Args:
            summaries: The summary of each prompt of the round.
        """
        self.number += 1
        texts = [text for summary in summaries if (text := " ".join(summary.split()))]
        joined = "\n".join(texts)
        pieces = self._merges(joined, len(texts)) if self._splitter is not None and len(texts) > 1 else []
        if pieces:
            self.prompts = [piece.prompt for piece in pieces]
        else:
            self.summary = summaries[0] if len(summaries) == 1 else joined

    def _merges(self, joined: str, count: int) -> list[Piece]:
        """The pieces to summarize next; none if the joined summaries are short enough, or no two fit into a piece."""
        assert self._splitter is not None
        if sum(self._splitter.count(joined.split("\n"))) <= self._merge_until:
            return []
        pieces = self._splitter.split(joined)
        return pieces if len(pieces) < count else []


def open_rounds(
    prompt: Prompt,
    tokenizer: Tokenizer,
    dialogues: Sequence[str],
    data: DataConfig,
    ids: Sequence[str] = (),
) -> list[Rounds]:
    """The rounds of each dialogue, as `data.long` determines.

    Args:
        prompt: The text around a dialogue.
        tokenizer: A fast tokenizer.
        dialogues: The dialogues.
        data: The section with max_source_length, long and merge_until.
        ids: The id of each dialogue, for the error.

    Raises:
        DataError: With long `refuse`, if a dialogue does not fit.
        RecipeError: If the prompt without a dialogue does not fit.
    """
    encoded = prompt.encode(tokenizer, dialogues, data.max_source_length)
    if data.long == "refuse":
        check_lengths(prompt, tokenizer, dialogues, encoded, data.max_source_length, ids)
    splitter = Splitter(prompt, tokenizer, data.max_source_length) if data.long == "merge" else None
    return [
        _split(splitter, dialogue, data.merge_until)
        if splitter is not None and first.truncated
        else Rounds([first], first.coverage, None, 0)
        for dialogue, first in zip(dialogues, encoded, strict=True)
    ]


def _split(splitter: Splitter, dialogue: str, merge_until: int) -> Rounds:
    pieces = splitter.split(dialogue)
    cut = {number for piece in pieces if piece.prompt.truncated for number in piece.turns}
    count = len(turns_of(dialogue))
    return Rounds([piece.prompt for piece in pieces], 1 - len(cut) / max(count, 1), splitter, merge_until)


def check_lengths(
    prompt: Prompt,
    tokenizer: Tokenizer,
    dialogues: Sequence[str],
    encoded: Sequence[EncodedPrompt],
    limit: int,
    ids: Sequence[str],
) -> None:
    """Checks that every dialogue fits into its prompt.

    Args:
        prompt: The text around a dialogue.
        tokenizer: A fast tokenizer.
        dialogues: The dialogues.
        encoded: Their prompts.
        limit: Maximum number of tokens of a prompt.
        ids: The id of each dialogue, for the error.

    Raises:
        DataError: If one does not fit; names the first ones.
    """
    long = [index for index, each in enumerate(encoded) if each.truncated]
    if not long:
        return
    hint = "shorten it, or use --set data.long=merge (pieces) or data.long=truncate (cuts its end)"
    first = prompt.count(tokenizer, without_control(tokenizer, dialogues[long[0]]))
    if len(dialogues) == 1:
        raise DataError(f"the dialogue has {first:,} tokens with the prompt; data.long=refuse allows {limit:,}", hint)
    names = ", ".join(ids[index] for index in long[:LISTED]) + (" …" if len(long) > LISTED else "") if ids else ""
    raise DataError(
        f"{len(long):,} of {len(dialogues):,} dialogues have more than {limit:,} tokens with the prompt, which "
        f"data.long=refuse does not allow{f': {names}' if names else ''} (the first has {first:,})",
        hint,
    )
