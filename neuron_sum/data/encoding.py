"""Tokenization of examples for training; counts the texts that are cut."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from neuron_sum.data.examples import Example
from neuron_sum.prompts import (
    MAX_CHARACTERS_PER_TOKEN,
    Prompt,
    Tokenizer,
    control_ids,
    start_of,
    token_rows,
    without_control,
)
from neuron_sum.recipes.schema import DataConfig
from neuron_sum.sections import SectionCoder, Sections

IGNORED = -100
"""The label that torch's cross entropy ignores."""

Features = Mapping[str, Sequence[int]]

HIGH_SHARE = 0.05
"""The share of unknown tokens from which a model cannot read the text."""
UNKNOWN_TEXTS, UNKNOWN_SHOWN = 200, 12
"""Number of texts that are searched for unknown characters, and number of characters that are shown."""


@dataclass(frozen=True)
class Encoded:
    """Tokenized examples for Collator.

    Attributes:
        features: One entry per (dialogue, reference): input_ids and labels. The claims about one dialogue are one entry
            for a decoder-only model, with branches and position_ids (`share_prefix`).
        sources_cut: Number of dialogues cut to max_source_length, or of claims left out because theirs would be cut.
        targets_cut: Number of summaries cut to max_target_length.
    """

    features: tuple[Features, ...]
    sources_cut: int
    targets_cut: int

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Features:
        return self.features[index]

    @property
    def source_tokens(self) -> int:
        """Input tokens of one epoch, without padding."""
        return sum(len(feature["input_ids"]) for feature in self.features)

    @property
    def target_tokens(self) -> int:
        """Label tokens of one epoch that count in the loss."""
        return sum(label != IGNORED for feature in self.features for label in feature["labels"])


def encode(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    prompt: Prompt,
    data: DataConfig,
    *,
    decoder_only: bool,
    sections: Sections = (),
) -> Encoded:
    """Tokenizes examples for training; an example with several references becomes one entry per reference.

    An encoder-decoder model receives the prompt as input_ids and the summary as labels. A decoder-only model receives
    both in one row, and labels that ignore the prompt, so that it learns to answer and not to repeat the dialogue.
    The claims about a dialogue share its tokens there, which takes a fraction of the time of separate rows. Claims of
    a dialogue that would be cut are left out, because its end may make them true.

    Args:
        examples: The examples to tokenize.
        tokenizer: The model's tokenizer; its eos_token ends every summary.
        prompt: The text around the dialogue.
        data: The recipe's section with max_source_length and max_target_length.
        decoder_only: Whether the model is decoder-only.
        sections: The sections of the summaries, whose headings always have the same tokens.
    """
    dialogues = [example.dialogue for example in examples]
    if prompt.has_claim:
        claims = [str(example.claim) for example in examples]
        sources = prompt.encode_claims(tokenizer, dialogues, claims, data.max_source_length)
    else:
        sources = prompt.encode(tokenizer, dialogues, data.max_source_length)
    references = [reference for example in examples for reference in example.references]
    tokenized, is_cut = target_tokens(references, tokenizer, data.max_target_length, sections)
    end = tokenizer.eos_token_id
    assert end is not None  # every tokenizer of a model has one
    targets = ([*target[: data.max_target_length - 1], end] for target in tokenized)
    features: list[Features] = []
    used: list[Example] = []
    for example, source in zip(examples, sources, strict=True):
        for _, target in zip(example.references, targets, strict=False):
            if prompt.has_claim and source.truncated:
                continue
            used.append(example)
            if decoder_only:
                labels = [IGNORED] * len(source.input_ids) + target
                features.append(_compact({"input_ids": source.input_ids + target, "labels": labels}))
            else:
                features.append(_compact({"input_ids": source.input_ids, "labels": target}))
    if prompt.has_claim and decoder_only:
        pairs = groupby(zip(used, features, strict=True), key=lambda pair: pair[0].dialogue)
        features = [_compact(share_prefix([feature for _, feature in group])) for _, group in pairs]
    return Encoded(tuple(features), sources_cut=sum(source.truncated for source in sources), targets_cut=sum(is_cut))


def _compact(feature: Features) -> Features:
    """The features of one example as arrays of 32-bit integers."""
    return {name: array("i", values) for name, values in feature.items()}


def target_tokens(
    references: Sequence[str], tokenizer: Tokenizer, longest: int, sections: Sections
) -> tuple[list[list[int]], list[bool]]:
    """The tokens of summaries without an end token, and whether each is cut.

    Args:
        references: The summaries.
        tokenizer: A fast tokenizer.
        longest: Maximum number of tokens with the end token; longer summaries are not cut here.
        sections: The sections of the summaries.

    Raises:
        RecipeError: If the headings of the sections do not fit into `longest`.
    """
    if sections:
        coder = SectionCoder(sections, tokenizer)
        coder.check_length("data.max_target_length", longest, has_end=True)
        coded = [coder.encode(reference) for reference in references]
        return [tokens for tokens, _ in coded], [is_cut or len(tokens) >= longest for tokens, is_cut in coded]
    starts = [start_of(reference, MAX_CHARACTERS_PER_TOKEN * longest) for reference in references]
    tokenized = token_rows(tokenizer, starts)
    control = control_ids(tokenizer)
    for number, row in enumerate(tokenized):
        if not control.isdisjoint(row):
            text = without_control(tokenizer, starts[number])
            tokenized[number] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenized, [
        len(target) >= longest or len(start) < len(reference)
        for target, start, reference in zip(tokenized, starts, references, strict=True)
    ]


def share_prefix(examples: Sequence[Features]) -> Features:
    """Examples of a decoder-only model as one row, in which their common first tokens occur once.

    Returns:
        input_ids and labels; branches, 0 for the common tokens and then 1, 2, … for those of each example; and
        position_ids, which in each branch continue those of the common tokens. A token attends to the common tokens and
        to its branch.
    """
    prompts = [[token for token, label in zip(*each.values(), strict=True) if label == IGNORED] for each in examples]
    limit = min(map(len, prompts)) - 1  # the last token of a prompt predicts the answer, so that it is in the branch
    shared = next((at for at in range(limit) if len({prompt[at] for prompt in prompts}) > 1), limit)
    merged = {name: list(examples[0][name][:shared]) for name in ("input_ids", "labels")}
    merged["branches"], merged["position_ids"] = [0] * shared, list(range(shared))
    for branch, each in enumerate(examples, 1):
        length = len(each["input_ids"])
        merged["input_ids"] += each["input_ids"][shared:]
        merged["labels"] += each["labels"][shared:]
        merged["branches"] += [branch] * (length - shared)
        merged["position_ids"] += range(shared, length)
    return merged


@dataclass(frozen=True)
class UnknownTokens:
    """The tokens of a split that stand for text which the vocabulary lacks.

    Attributes:
        count: Number of unknown tokens.
        total: Number of all tokens of the prompts and summaries.
        characters: The most frequent of the missing characters.
    """

    count: int
    total: int
    characters: str

    @property
    def share(self) -> float:
        """The share of all tokens."""
        return self.count / max(self.total, 1)

    def __str__(self) -> str:
        found = f": {' '.join(self.characters)}" if self.characters else ""
        return f"{self.count:,} of {self.total:,} ({100 * self.share:.1f} %){found}"

    def warning(self, split: str) -> str | None:
        """The warning if the model cannot read the text; None if it can.

        Args:
            split: The name of the split.
        """
        if self.share < HIGH_SHARE:
            return None
        return (
            f"{100 * self.share:.0f} % of the tokens of {split} are unknown: the tokenizer lacks "
            f"{' '.join(self.characters)}; use a model whose vocabulary has this script, or the model learns nothing"
        )


def unknown_tokens(
    encoded: Encoded, examples: Sequence[Example], tokenizer: Tokenizer, *, decoder_only: bool
) -> UnknownTokens:
    """Counts the unknown tokens of a split; a tokenizer that falls back to bytes has none.

    Args:
        encoded: The tokenized examples.
        examples: The same examples as text.
        tokenizer: A fast tokenizer.
        decoder_only: Whether input_ids contain the summary.
    """
    unknown = tokenizer.unk_token_id
    rows = [feature[name] for feature in encoded.features for name in ("input_ids", "labels")[: 2 - decoder_only]]
    count = sum(row.count(unknown) for row in rows) if unknown is not None else 0
    characters: Counter[str] = Counter()
    texts = [text for example in examples for text in (example.dialogue, *example.references)] if count else []
    step = max(len(texts) // UNKNOWN_TEXTS, 1)
    for text in (start_of(text, 2000) for text in texts[::step]):
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = zip(made["input_ids"], made["offset_mapping"], strict=True)
        characters.update("".join(text[start:end] for token, (start, end) in spans if token == unknown))
    shown = [character for character, _ in characters.most_common() if not character.isspace()][:UNKNOWN_SHOWN]
    return UnknownTokens(count, sum(map(len, rows)), "".join(shown))
