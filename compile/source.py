"""The input of a compilation: a run, or a checkpoint or an adapter with a recipe."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from neuron_sum.artifact import SourceRecord
from neuron_sum.errors import RecipeError, RunError
from neuron_sum.models import base as models
from neuron_sum.models.adapter_config import PromptTuningFile, base_of, check_unused_base, is_adapter, nested_hint
from neuron_sum.models.adapter_files import read_adapter
from neuron_sum.models.adapters import check_mergeable, merge
from neuron_sum.models.chat import not_rendered, render_chat
from neuron_sum.prompts import CHAT
from neuron_sum.recipes.loading import NAME_RECIPE, RecipeSource, load_recipe
from neuron_sum.recipes.schema import FullMethod, LoraMethod, Method, ModelConfig, PromptTuningMethod, Recipe
from neuron_sum.runs import fingerprint as fingerprints
from neuron_sum.runs import trained
from neuron_sum.runs.fingerprint import DATA, open_trained
from neuron_sum.runs.folder import RunFolder
from neuron_sum.runtimes.slots import AdapterSlots

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Source:
    """A trained model on disk.

    Attributes:
        path: The folder of the run, the checkpoint or the adapter.
        recipe: The recipe with prompt, lengths, generation settings and the compile section.
        run: The run; None for a plain checkpoint or adapter.
        base: The base model of an adapter that is not a run.
    """

    path: Path
    recipe: Recipe
    run: RunFolder | None
    base: ModelConfig | None = None

    @property
    def weights(self) -> Path:
        """The folder of the checkpoint or adapter."""
        return self.run.weights if self.run is not None else self.path

    def default_output(self, dtype: str) -> Path:
        """The default folder of its artifact."""
        parent = self.path if self.run is not None else self.path.resolve().parent
        return parent / "artifacts" / f"{self.recipe.compile.target}-{dtype}"

    @property
    def uses_adapter_slot(self) -> bool:
        """Whether the adapter goes into a slot instead of into the weights."""
        return self.recipe.compile.adapters is not None and self.is_adapter

    @property
    def is_adapter(self) -> bool:
        """Whether the trained model is an adapter on a base model."""
        return is_adapter(self.weights)

    def config(self) -> PretrainedConfig:
        """The configuration of the base model; its weights are not read."""
        if self.run is not None:
            origin = self.run.model_source() if self.is_adapter else str(self.weights)
            return models.load_config(ModelConfig(name_or_path=origin, revision=self.recipe.model.revision))
        if self.base is not None:
            return trained.adapter_config(self.path, self.base)
        return models.load_config(ModelConfig(name_or_path=str(self.path)))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that the model was trained with."""
        if self.base is not None:
            tokenizer = trained.adapter_tokenizer(self.path, self.base)
        else:
            tokenizer = models.load_tokenizer(ModelConfig(name_or_path=str(self.weights)))
        render_chat(self.recipe, tokenizer)
        return tokenizer

    def load(self) -> "tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerFast]":
        """The transformers model with its adapter attached, and its tokenizer."""
        return trained.load_trained(self.run) if self.run is not None else trained.load_weights(self.path, self.base)

    def check_adapter(self, slots: AdapterSlots | None) -> None:
        """Checks before compiling that the adapter, if there is one, fits its slot, or can be merged.

        Args:
            slots: The slots of the graphs; None to merge the adapter.

        Raises:
            ModelError: If it is damaged or not supported, does not fit, or adapts a layer that shares its weights.
        """
        if not self.is_adapter:
            return
        if slots is not None:
            slots.check(self.weights)
            return
        lora = read_adapter(self.weights).lora
        check_mergeable({name: module.embedding for name, module in lora.items()}, self.config())

    def load_for_compile(self) -> tuple[PreTrainedModel, Tensor | None]:
        """The plain model to compile, with LoRA merged unless it gets a slot, and the soft prompt if it is compiled in.

        Returns:
            The model, and the soft prompt (tokens, width) or None.

        Raises:
            ModelError: If the merged model does not compute the same as its adapter.
        """
        if self.uses_adapter_slot:
            if self.base is not None:
                return models.load_base(self.base, self.tokenizer()), None
            assert self.run is not None
            return trained.load_untuned(self.run)[0], None
        model, _ = self.load()
        if not self.is_adapter:
            return model, None
        if self.soft_prompt_tokens:
            return model.get_base_model(), model.get_prompt(batch_size=1)[0].detach().float()
        return merge(model)[0], None

    @property
    def soft_prompt_tokens(self) -> int:
        """The number of tokens of the trained soft prompt; 0 without one."""
        method = self.recipe.method
        return method.num_virtual_tokens if self.is_adapter and isinstance(method, PromptTuningMethod) else 0

    @property
    def lora(self) -> LoraMethod | None:
        """The LoRA settings of the training; None if the trained model is not a LoRA adapter."""
        return self.recipe.method if self.is_adapter and isinstance(self.recipe.method, LoraMethod) else None

    def copy_adapter(self, folder: Path) -> None:
        """Copies only the files that an adapter slot needs."""
        folder.mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(self.weights / name, folder / name)

    def fingerprint(self) -> fingerprints.Fingerprint:
        """The hash of each part that the weights depend on; for a run, also of the data of its recipe."""
        if self.run is not None:
            record = self.run.read_record().fingerprint
            same_data = fingerprints.is_same_data(self.recipe.data, self.run.recipe.data)
            return {part: value for part, value in record.items() if same_data or part not in DATA.values()}
        return fingerprints.of_weights(self.path, self.base)

    def record(self) -> SourceRecord:
        """The source as recorded in the manifest of its artifact."""
        return SourceRecord(
            path=str(self.path.resolve()),
            fingerprint=self.fingerprint(),
            train_examples=self.run.read_results().get("train_examples") if self.run is not None else None,
        )

    def weights_hash(self) -> str:
        """One hash of all parts of the model."""
        return fingerprints.digest(fingerprints.model_parts(self.fingerprint()))


def open_source(
    path: Path, recipe: RecipeSource | None, overrides: Sequence[str], base: str | ModelConfig | None = None
) -> Source:
    """A run with its recipe, or a checkpoint or an adapter with the named one.

    Args:
        path: The folder.
        recipe: The recipe; None for that of the run.
        overrides: Changes to the recipe.
        base: The base model of an adapter, in place of the one that its adapter_config.json names.

    Raises:
        RecipeError: If an override sets another method than that of the training.
        RunError: If the path is something else, or if no recipe is named for a checkpoint or an adapter, or if a run
            was changed.
        ModelError: If an adapter is damaged or not supported, or has no base.
    """
    if not is_adapter(path) or (path / "recipe.yaml").is_file():
        check_unused_base(base, path)
    if (path / "recipe.yaml").is_file():
        run = open_trained(path)
        loaded = load_recipe(recipe or run.recipe_path, overrides)
        return _rendered(Source(path, _with_method(loaded, run.recipe.method, overrides, path), run))
    if not is_adapter(path) and not (path / "config.json").is_file():
        raise RunError(
            f"{path} is neither a run nor a checkpoint nor an adapter",
            nested_hint(path) or "run `neuron-sum train RECIPE` to create a run",
        )
    if recipe is None:
        kind = "an adapter" if is_adapter(path) else "a checkpoint"
        raise RunError(f"{path} is {kind} without a recipe", f"{NAME_RECIPE}, which supplies prompt, lengths and beams")
    loaded = load_recipe(recipe, overrides)
    if is_adapter(path):
        origin = base if isinstance(base, ModelConfig) else base_of(path, base)
        loaded = _with_method(loaded, _method(path), overrides, path).model_copy(update={"model": origin})
        return _rendered(Source(path, loaded, None, origin))
    return _rendered(Source(path, _with_method(loaded, FullMethod(), overrides, path), None))


def _rendered(source: Source) -> Source:
    """The source with the text of its tokenizer's chat template, if its recipe uses that and is not that of a run."""
    if source.recipe.prompt.preset != CHAT or (source.run is not None and source.recipe.prompt.rendered is not None):
        return source
    source = replace(source, recipe=not_rendered(source.recipe))
    return replace(source, recipe=render_chat(source.recipe, source.tokenizer()))


def _with_method(recipe: Recipe, method: Method, overrides: Sequence[str], path: Path) -> Recipe:
    """The recipe with the method that the model was trained with.

    Raises:
        RecipeError: If an override sets another method.
    """
    changes = [override for override in overrides if override.partition("=")[0].split(".")[0] == "method"]
    if changes and recipe.method != method:
        raise RecipeError(
            f"{path} was trained with another method than that of {', '.join(changes)}",
            "remove the overrides of method, or train another run",
        )
    return recipe.model_copy(update={"method": method})


def _method(folder: Path) -> LoraMethod | PromptTuningMethod:
    """The method of an adapter that others trained, as far as slots and the artifact's recipe need it."""
    adapter = read_adapter(folder)
    if isinstance(adapter.config, PromptTuningFile):
        return PromptTuningMethod(num_virtual_tokens=adapter.config.num_virtual_tokens)
    return LoraMethod(
        r=max(len(lora.a) for lora in adapter.lora.values()),
        lora_alpha=max(1, round(adapter.config.lora_alpha)),
        target_modules=tuple(sorted({name.rpartition(".")[2] for name in adapter.lora})),
    )
