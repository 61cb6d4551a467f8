"""What a training backend is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from neuron_sum.data.encoding import Encoded
from neuron_sum.data.layouts import Shape
from neuron_sum.data.shapes import ShapePlan
from neuron_sum.recipes.schema import Recipe, TrainConfig
from neuron_sum.runs.folder import RunFolder
from neuron_sum.training.estimate.memory import Memory

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from neuron_sum.models.base import ParameterCount


@dataclass(frozen=True)
class TrainingData:
    """What a model learns from, and what its loss is measured on.

    Attributes:
        train: The training split.
        validation: The validation split; None if the source has none.
    """

    train: Encoded
    validation: Encoded | None


class Trainer(Protocol):
    """A backend: built for a run folder, it trains once. Every backend leaves the same files.

    Attributes:
        computes_here: Whether a step by torch in this process tells how long its steps will take.
    """

    computes_here: ClassVar[bool]

    def __init__(self, run: RunFolder, tokenizer: "PreTrainedTokenizerFast", resume_from: Path | None) -> None:
        """Takes the folder to write to, and the checkpoint to go on from."""

    @staticmethod
    def check(config: TrainConfig, processes: int | None = None) -> None:
        """Finds out what this backend lacks here, before anything is written.

        Args:
            config: The recipe's train section.
            processes: How many other ones are to train; None: this one trains.

        Raises:
            MissingExtraError: Naming what to install.
            RecipeError: If the recipe needs another number of processes.
            PlatformError: If this is no machine for it.
        """

    @staticmethod
    def check_model(config: "PretrainedConfig", recipe: Recipe) -> None:
        """Finds out whether this backend can train this model by the recipe's method.

        Raises:
            RecipeError: With everything that it cannot.
        """

    @staticmethod
    def memory(
        config: "PretrainedConfig", parameters: "ParameterCount", shape: Shape, train: TrainConfig, processes: int
    ) -> Memory:
        """What a run needs of this backend's devices, and what they have.

        Args:
            config: The base model's configuration.
            parameters: Of the model with its adapter.
            shape: The longest row.
            train: The recipe's train section.
            processes: How many train together.
        """
        ...

    def train(
        self, model: "PreTrainedModel | PeftModel", data: TrainingData, plan: ShapePlan, config: TrainConfig
    ) -> Path | None:
        """Trains, saving on the way; returns the folder of the trained weights, or None for a rehearsal without any.

        Raises:
            Interrupted: After a signal, once a checkpoint is saved.
        """
        ...
