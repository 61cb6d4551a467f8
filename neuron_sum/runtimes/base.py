"""Interfaces: the runtime that the generation loop requires, and the generators that all other code uses."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from neuron_sum.artifact import Bucket, SpecialTokens
from neuron_sum.recipes.schema import GenerateConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from neuron_sum.runtimes.slots import AdapterSlots


def until_end(row: Sequence[int], ends: Collection[int]) -> list[int]:
    """The tokens of a row up to and including the first end token; all of them if there is none."""
    last = next((index for index, token in enumerate(row) if token in ends), len(row))
    return list(row[: last + 1])


@dataclass(frozen=True, slots=True)
class Candidates:
    """The most probable next tokens of every beam, selected by a step.

    Attributes:
        logits: (examples, K, M) float32, in descending order.
        tokens: (examples, K, M) int64.
        log_sum: (examples, K) float32, the logarithm of the sum of exp(logit - largest logit) over the vocabulary.
        vocabulary: The number of tokens; M is at most this.
        all_logits: A function that returns all logits, (examples, K, vocabulary) float32. On a device, only this
            transfers them.
    """

    logits: "NDArray[np.float32]"
    tokens: "NDArray[np.int64]"
    log_sum: "NDArray[np.float32]"
    vocabulary: int
    all_logits: "Callable[[], NDArray[np.float32]]"


@dataclass(frozen=True, slots=True)
class Greedy:
    """Several steps of a greedy search in one call.

    Attributes:
        steps: The number of steps.
        call: A function of the input tokens of the first step, (examples, 1) int64, that returns the tokens of all
            steps, (examples, steps) int64, and their logits, (examples, steps) float32.
    """

    steps: int
    call: "Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.float32]]]"


class Steps(Protocol):
    """The steps of a batch.

    Attributes:
        greedy: Several steps in one call; None without a graph of several steps.
    """

    greedy: Greedy | None

    def step(self, tokens: "NDArray[np.int64]", rows: "NDArray[np.int64]") -> Candidates:
        """Process one token per beam.

        Args:
            tokens: (examples, K) int64.
            rows: (examples, K) int64, the row of its example that each beam continues.
        """


class Session(Steps, Protocol):
    """The generation of one batch: its constants, its state and its position.

    Attributes:
        start: (examples, K) int64, the input tokens of the first step.
    """

    start: "NDArray[np.int64]"


class Shapes(Protocol):
    """The compiled shapes."""

    @property
    def buckets(self) -> Sequence[Bucket]:
        """The compiled shapes."""

    @property
    def num_beams(self) -> Sequence[int]:
        """The compiled beam widths."""


class StepRuntime(Protocol):
    """Static graphs that generate one token per step.

    Attributes:
        buckets: The compiled shapes.
        num_beams: The compiled beam widths.
        tokens: The special token ids of the model.
        adapters: The adapter slots; None for graphs without slots.
    """

    buckets: Sequence[Bucket]
    num_beams: Sequence[int]
    tokens: SpecialTokens
    adapters: "AdapterSlots | None"

    def turn(self) -> AbstractContextManager[Any]:
        """A context held from `begin` to the last step of a batch; exclusive if the graphs store the batch's state."""

    def begin(self, bucket: Bucket, num_beams: int, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Session:
        """Encode a batch.

        Args:
            bucket: A bucket of `buckets` that fits the prompts.
            num_beams: A beam width of `num_beams`.
            prompts: At most bucket.batch rows of at most bucket.source_len token ids.
            slots: The adapter slot of each prompt.
        """


class Generator(Protocol):
    """An object that generates the tokens of summaries from prompts."""

    @property
    def ends(self) -> Sequence[int]:
        """The ids of the tokens that end a summary."""

    @property
    def batch_size(self) -> int:
        """The largest number of prompts that are generated together."""

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerateConfig) -> list[list[int]]:
        """Generate the new tokens of each prompt, up to and including the end token if there is one.

        Args:
            prompts: Token ids.
            settings: Lengths, beams and penalties; `batch_size` is ignored.
        """

    def first_logits(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> "NDArray[np.float32]":
        """The logits of some tokens as the first new token of each prompt, (prompts, tokens).

        Args:
            prompts: Token ids, any number of rows.
            tokens: The tokens to compare.

        Raises:
            ArtifactError: If no bucket fits, or the graphs return no logits.
        """


class RunningBatch(Protocol):
    """A batch that prompts join while others run. All have the same settings, and each has its adapter."""

    @property
    def running(self) -> int:
        """The number of unfinished summaries."""

    def room(self, waiting: int) -> int:
        """The number of prompts that should join together, of `waiting` ones; 0 if all rows are in use."""

    def join(self, prompts: Sequence[Sequence[int]], adapters: Sequence[str | None]) -> list[int]:
        """Start the summaries of prompts, at most as many as there is `room` for.

        Args:
            prompts: Token ids.
            adapters: The adapter name of each prompt, None for the base model.

        Returns:
            A number for each prompt, by which `step` names it.

        Raises:
            ArtifactError: If a prompt is too long, or adapters are not supported. After an error, none has joined.
            ModelError: If an adapter is not loaded.
        """

    def step(self) -> list[tuple[int, list[int]]]:
        """Generate one token of every unfinished summary, of which there must be one.

        Returns:
            The number of each prompt whose summary is finished now, and its new tokens.
        """

    def close(self) -> None:
        """Release the adapters of the unfinished summaries. The batch cannot be used again."""


class CompiledGenerator(Shapes, Protocol):
    """A generator over an artifact of neuron-sum or optimum-neuron, for serving and `compile verify`.

    Its `generate` is that of `Generator`, with the adapters of a batch.
    """

    @property
    def ends(self) -> Sequence[int]:
        """The ids of the tokens that end a summary."""

    @property
    def batch_size(self) -> int:
        """The largest number of prompts that are generated together."""

    @property
    def adapters(self) -> "AdapterSlots | None":
        """The adapter slots; None for graphs without slots."""

    @property
    def default_adapter(self) -> str | None:
        """The adapter used if none is requested; None for the base model."""

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Fields of GenerateConfig that must have their default, with the reason."""

    @property
    def used(self) -> set[Bucket]:
        """The buckets used so far."""

    def with_batch_size(self, prompts: int) -> "CompiledGenerator":
        """The same generator with another batch size; `used` is shared."""

    def warm_up(self) -> None:
        """Run every graph once, so that the first request is not slow."""

    def first_logits(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> "NDArray[np.float32]":
        """See `Generator.first_logits`."""

    def roll(self, settings: GenerateConfig) -> RunningBatch | None:
        """An empty running batch for prompts with these settings; None if prompts cannot join a running batch.

        Raises:
            ArtifactError: If no bucket fits.
        """

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerateConfig, adapters: Sequence[str | None] | None = None
    ) -> list[list[int]]:
        """Generate the new tokens of each prompt, up to and including the end token if there is one.

        Args:
            prompts: Token ids, any number of rows.
            settings: Lengths, beams and penalties.
            adapters: The adapter name of each prompt, None for the base model. Default: default_adapter for all.

        Raises:
            ArtifactError: If no bucket fits, or the settings are not supported.
            ModelError: If an adapter is not loaded.
        """
