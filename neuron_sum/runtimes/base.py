"""What the generation loop needs of any target, and what everybody else needs of any generator."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from neuron_sum.artifact import Bucket, SpecialTokens
from neuron_sum.recipes.schema import GenerateConfig

if TYPE_CHECKING:
    from torch import Tensor

    from neuron_sum.runtimes.slots import AdapterSlots


class Session(Protocol):
    """One batch on its way: its constants, its state and its position.

    Attributes:
        start: (examples, K) int64, the tokens that the first step takes.
    """

    start: "Tensor"

    def step(self, tokens: "Tensor", rows: "Tensor") -> "Tensor":
        """One token for every beam.

        Args:
            tokens: (examples, K) int64.
            rows: (examples, K) int64, for each beam the row of its example that it continues.

        Returns:
            Logits (examples, K, vocab), float32.
        """


class Shapes(Protocol):
    """What was compiled."""

    @property
    def buckets(self) -> Sequence[Bucket]:
        """The shapes there are."""

    @property
    def num_beams(self) -> Sequence[int]:
        """The beam widths there are."""


class StepRuntime(Protocol):
    """Static graphs that can be stepped.

    Attributes:
        buckets: The shapes there are.
        num_beams: The beam widths there are.
        tokens: The model's special ids.
        adapters: What fills the adapter slots; None for graphs without.
    """

    buckets: Sequence[Bucket]
    num_beams: Sequence[int]
    tokens: SpecialTokens
    adapters: "AdapterSlots | None"

    def turn(self) -> AbstractContextManager[Any]:
        """Held from `begin` to a batch's last step; where the graphs keep the state, it lets one batch in at a time."""

    def begin(self, bucket: Bucket, num_beams: int, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Session:
        """Encodes a batch.

        Args:
            bucket: One of `buckets` that fits the prompts.
            num_beams: One of `num_beams`.
            prompts: At most bucket.batch rows of at most bucket.source_len token ids.
            slots: For each, its adapter's.
        """


class Generator(Protocol):
    """Anything that turns prompts into summaries' tokens."""

    @property
    def batch_size(self) -> int:
        """How many prompts it takes at once without splitting them."""

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerateConfig) -> list[list[int]]:
        """New tokens for each prompt, up to and with the end token if it came.

        Args:
            prompts: Token ids.
            settings: Lengths, beams, penalties; `batch_size` is not read.
        """


class CompiledGenerator(Shapes, Protocol):
    """A generator over an artifact, ours or an upstream one: what serving and `compile verify` need of either.

    Its `generate` is `Generator`'s, with the adapters of a batch.
    """

    @property
    def batch_size(self) -> int:
        """How many prompts it takes at once without splitting them."""

    @property
    def adapters(self) -> "AdapterSlots | None":
        """What fills the adapter slots; None where there are none."""

    @property
    def default_adapter(self) -> str | None:
        """Who answers where no adapters are asked for; None for the base model."""

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Fields of GenerateConfig that must keep their default, and why."""

    @property
    def used(self) -> set[Bucket]:
        """The buckets that generated something so far."""

    def with_batch_size(self, prompts: int) -> "CompiledGenerator":
        """The same, with so many prompts at a time; `used` is shared."""

    def warm_up(self) -> None:
        """Runs every graph once: the first request must not pay for that."""

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: GenerateConfig, adapters: Sequence[str | None] | None = None
    ) -> list[list[int]]:
        """New tokens for each prompt, up to and with the end token if it came.

        Args:
            prompts: Token ids, any number of rows.
            settings: Lengths, beams, penalties.
            adapters: For each prompt the name of its adapter, None for the base model; default: default_adapter.

        Raises:
            ArtifactError: If no bucket fits, or it cannot follow the settings.
            ModelError: For an adapter that is not loaded.
        """
