"""The interface of a training backend."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from neuron_sum.data.encoding import Encoded
from neuron_sum.data.layouts import Shape
from neuron_sum.data.shapes import ShapePlan
from neuron_sum.errors import MissingExtraError
from neuron_sum.recipes.schema import Recipe, TrainConfig
from neuron_sum.runs.folder import RunFolder
from neuron_sum.runs.tracking import DATABASES
from neuron_sum.training.estimate.memory import Memory

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

    from neuron_sum.models.base import ParameterCount


@dataclass(frozen=True)
class TrainingData:
    """The examples for training, and those for measuring the validation loss.

    Attributes:
        train: The training split.
        validation: The validation split; None if the source has none.
    """

    train: Encoded
    validation: Encoded | None


class Trainer(Protocol):
    """A backend: created for a run folder, it trains once. Every backend writes the same files.

    Attributes:
        computes_here: Whether timing a torch step in this process predicts the duration of the backend's steps.
    """

    computes_here: ClassVar[bool]

    def __init__(self, run: RunFolder, tokenizer: "PreTrainedTokenizerFast", resume_from: Path | None) -> None:
        """Store the folder to write to, and the checkpoint to continue from."""

    @staticmethod
    def check(config: TrainConfig, processes: int | None = None) -> None:
        """Check this machine's requirements for the backend before anything is written.

        Args:
            config: The recipe's train section.
            processes: The number of processes that will be started to train; None if this process trains.

        Raises:
            MissingExtraError: If a package is missing; names it.
            RecipeError: If the recipe needs another number of processes.
            PlatformError: If the backend cannot run on this machine.
        """

    @staticmethod
    def check_model(config: "PretrainedConfig", recipe: Recipe) -> None:
        """Check that this backend can train this model with the recipe's method.

        Raises:
            RecipeError: Listing everything that is not supported.
        """

    @staticmethod
    def memory(
        config: "PretrainedConfig", parameters: "ParameterCount", shape: Shape, recipe: Recipe, processes: int
    ) -> Memory:
        """The memory that a run needs on this backend's devices, and the memory available there.

        Args:
            config: The base model's configuration.
            parameters: The parameter count of the model with its adapter.
            shape: The longest row; for a decoder-only model, target_len is the number of positions with labels.
            recipe: The recipe.
            processes: The number of processes that train together.
        """
        ...

    def train(
        self,
        model: "PreTrainedModel | PeftModel",
        data: TrainingData,
        plan: ShapePlan,
        config: TrainConfig,
        callbacks: "Sequence[TrainerCallback]" = (),
    ) -> Path | None:
        """Train and save checkpoints; return the folder of the trained weights, or None for a rehearsal without any.

        Args:
            model: The model with its adapter.
            data: The examples.
            plan: The shapes.
            config: The recipe's train section.
            callbacks: Further callbacks, called after the line of the log is written; none are called in a rehearsal.

        Raises:
            Interrupted: After a signal, as soon as a checkpoint is saved.
        """
        ...


def check_reporting(config: TrainConfig) -> None:
    """Check that the packages of train.report_to are installed.

    Raises:
        MissingExtraError: If a package is missing; names it.
    """
    modules: list[tuple[str, str]] = [(package, package) for package in config.report_to]
    if "mlflow" in config.report_to:
        address = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite"  # the local store
        if address.startswith("arn:"):
            modules.append(("sagemaker_mlflow", "mlflow"))  # the plugin for addresses of SageMaker
        if address.startswith(DATABASES):
            modules += [("sqlalchemy", "mlflow"), ("alembic", "mlflow")]
    for module, extra in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(module, extra)
