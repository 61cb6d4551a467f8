"""LoRA and soft prompts: attach, load, merge, and verify the merge."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from neuron_sum.errors import ModelError
from neuron_sum.models.adapter_config import CONFIG, MERGE_HINT, LoraFile, PromptTuningFile
from neuron_sum.models.adapter_files import Adapter, read_adapter
from neuron_sum.models.base import is_decoder_only
from neuron_sum.models.families import family_of
from neuron_sum.recipes.schema import FullMethod, LoraMethod, Method, PromptTuningMethod

MERGE_TOLERANCE = 1e-4
"""Largest logit difference that fp32 rounding explains, relative to the largest logit."""

LARGEST_IN_FP64 = 300_000_000
"""Parameters up to which a merge is verified in fp64: rounding may add up in a small model with random weights."""

PROBE_SHAPE = (4, 48)
"""Rows and tokens of the batch that verifies a merge."""


def attach(model: PreTrainedModel, method: Method, seed: int) -> PreTrainedModel | PeftModel:
    """Prepares a model for training with a method.

    Args:
        model: The base model, which is frozen if an adapter is attached.
        method: The recipe's method; `full` returns the model unchanged.
        seed: The seed of the adapter's initial weights.

    Raises:
        ModelError: If no layer matches target_modules.
    """
    if isinstance(method, FullMethod):
        return model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(method, LoraMethod):
            try:
                adapted = get_peft_model(model, lora_config(method, model.config))
            except ValueError as error:
                default = ", ".join(family_of(model.config).lora_targets)
                raise ModelError(f"method.target_modules: {error}", f"use the default: {default}") from error
        else:
            adapted = _attach_soft_prompt(model, method)
    # Training does not resize embeddings. PEFT would look for the base model on a hub to find out, at each save.
    adapted.save_pretrained = MethodType(_save_adapter, adapted)  # a method, which optimum-neuron wraps
    return adapted


def _save_adapter(model: PeftModel, *arguments: Any, **options: Any) -> None:
    PeftModel.save_pretrained(model, *arguments, save_embedding_layers=False, **options)


def lora_config(method: LoraMethod, config: PretrainedConfig) -> LoraConfig:
    """PEFT's configuration for a recipe with LoRA.

    Args:
        method: The recipe's method.
        config: The configuration of the base model.
    """
    return LoraConfig(
        task_type=_task(config),
        r=method.r,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        target_modules=list(method.target_modules or family_of(config).lora_targets),
        bias="none",
    )


def _task(config: PretrainedConfig) -> TaskType:
    return TaskType.CAUSAL_LM if is_decoder_only(config) else TaskType.SEQ_2_SEQ_LM


def _attach_soft_prompt(model: PreTrainedModel, method: PromptTuningMethod) -> PeftModel:
    """Attaches a soft prompt initialized with random word embeddings, which are better than noise (Lester et al., 3.2).

    By default, PEFT creates a second set of vectors for the decoder of an encoder-decoder model, which prompt tuning
    never reads; num_transformer_submodules=1 omits it, so that all counted parameters are used.
    """
    config = PromptTuningConfig(
        task_type=_task(model.config), num_virtual_tokens=method.num_virtual_tokens, num_transformer_submodules=1
    )
    tuned = get_peft_model(model, config)
    words = model.get_input_embeddings().weight
    soft_prompt = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        soft_prompt.copy_(words[torch.randint(len(words), (len(soft_prompt),))])
    return tuned


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """Loads an adapter on its base for inference, without trainable parameters.

    PEFT gets a configuration made here, and the weights are copied into its layers, so that nothing that the files
    contain is ignored or executed.

    Args:
        base: The base model, with as many embeddings as the adapter saved, if it saved any.
        folder: A LoRA adapter or a soft prompt in PEFT's layout.

    Raises:
        ModelError: If the adapter is damaged, of a type that is not supported, or for another base model.
    """
    adapter = read_adapter(folder)
    if isinstance(adapter.config, PromptTuningFile):
        return _load_soft_prompt(base, adapter)
    _replace_parameters(base, adapter)
    layers = {name: layer for name, layer in base.named_modules() if isinstance(layer, nn.Linear | nn.Embedding)}
    adapter.check_modules(layers, head_name(base))
    for name, lora in adapter.lora.items():
        rows, columns = layers[name].weight.shape
        if isinstance(layers[name], nn.Embedding):  # its weight is (tokens, width)
            rows, columns = columns, rows
        if (len(lora.b), lora.a.shape[1]) != (rows, columns) or lora.embedding != isinstance(
            layers[name], nn.Embedding
        ):
            raise _unfit(folder, name, (len(lora.b), lora.a.shape[1]), (rows, columns))
    config = LoraConfig(
        task_type=_task(base.config),
        r=adapter.config.r,
        rank_pattern={re.escape(name): len(lora.a) for name, lora in adapter.lora.items()},
        target_modules=list(adapter.lora),
        inference_mode=True,
    )
    with warnings.catch_warnings():  # about tied layers, which `merge` checks
        warnings.simplefilter("ignore")
        adapted = get_peft_model(base, config).eval()
    for name, lora in adapter.lora.items():
        layer = adapted.get_base_model().get_submodule(name)
        down, up = (layer.lora_embedding_A, layer.lora_embedding_B) if lora.embedding else (layer.lora_A, layer.lora_B)
        for target, value in ((down["default"], lora.a), (up["default"], lora.b)):
            getattr(target, "weight", target).data.copy_(value)
        layer.scaling["default"] = lora.scale
    adapted.requires_grad_(False)
    return adapted


def head_name(model: PreTrainedModel) -> str:
    """The name of a model's output layer."""
    head = model.get_output_embeddings()
    return str(next(name for name, layer in model.named_modules() if layer is head))


def _load_soft_prompt(base: PreTrainedModel, adapter: Adapter) -> PeftModel:
    assert adapter.vectors is not None
    task = adapter.config.task_type
    if task not in (None, _task(base.config).value):
        raise ModelError(
            f"{adapter.folder / CONFIG}: task_type = {task!r}, but the base is a {base.config.model_type} model",
            f"use a soft prompt with task_type {_task(base.config).value}",
        )
    width = base.get_input_embeddings().weight.shape[1]
    if adapter.vectors.shape[1] != width:
        raise _unfit(adapter.folder, "prompt_embeddings", tuple(adapter.vectors.shape), (len(adapter.vectors), width))
    tuned = _attach_soft_prompt(base, PromptTuningMethod(num_virtual_tokens=len(adapter.vectors))).eval()
    tuned.active_peft_config.inference_mode = True
    tuned.prompt_encoder["default"].embedding.weight.data.copy_(adapter.vectors)
    tuned.requires_grad_(False)
    return tuned


def _replace_parameters(base: PreTrainedModel, adapter: Adapter) -> None:
    """Copies whole parameters of an adapter (resized embeddings, modules_to_save) into its base.

    Raises:
        ModelError: If the base has no such parameter, or PEFT would use it only in one of several places that share it.
    """
    assert isinstance(adapter.config, LoraFile)
    parameters = dict(base.named_parameters(remove_duplicate=False))
    modules = {name for name, _ in base.named_modules() if adapter.config.saves(name)}
    replaced = {name for name in parameters if name.rpartition(".")[0] in modules}
    if missing := sorted(replaced - adapter.saved.keys() - {f"{name}.weight" for name in adapter.lora}):
        raise ModelError(f"{adapter.folder} contains no {missing[0]}, which modules_to_save includes", "copy it again")
    embeddings = {id(layer.weight) for layer in (base.get_input_embeddings(), base.get_output_embeddings())}
    for name, value in adapter.saved.items():
        parameter = parameters.get(name)
        if parameter is None or not (name in replaced or id(parameter) in embeddings):
            raise ModelError(
                f"{adapter.folder} contains {name}, which is neither LoRA, an embedding, nor in modules_to_save",
                "use the base model that the adapter was trained on",
            )
        if parameter.shape != value.shape:
            raise _unfit(adapter.folder, name, tuple(value.shape), tuple(parameter.shape))
        others = [other for other, shared in parameters.items() if shared is parameter and other != name]
        kept = [other for other in others if name in replaced and other not in adapter.saved]
        different = [other for other in others if not torch.equal(adapter.saved.get(other, value), value)]
        if different or (kept and not torch.equal(parameter, value)):
            raise ModelError(
                f"{adapter.folder} has its own {name}, but the base model shares it with {(different or kept)[0]}",
                "modules_to_save is supported for layers that are not tied; " + MERGE_HINT,
            )
    with torch.no_grad():
        for name, value in adapter.saved.items():
            parameters[name].copy_(value)


def _unfit(folder: Path, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> ModelError:
    return ModelError(
        f"{folder} does not fit this base model: {name} is {found}, not {expected}",
        "use the base model that the adapter was trained on",
    )


def check_mergeable(embeddings: Mapping[str, bool], config: PretrainedConfig) -> None:
    """Checks by name that merging changes only the adapted layers.

    Args:
        embeddings: The adapted modules, and whether each is an embedding.
        config: The configuration of the base model.

    Raises:
        ModelError: If the weights of an adapted layer are also those of another.
    """
    for name, embedding in embeddings.items():
        if (config.tie_word_embeddings and name.endswith("lm_head")) or (
            embedding and (config.tie_word_embeddings or not is_decoder_only(config))
        ):
            raise ModelError(
                f"LoRA on {name} cannot be merged, because other layers of this model share its weights",
                "evaluate the adapter without merging, or train one on other method.target_modules",
            )


def merge(adapted: PeftModel) -> tuple[PreTrainedModel, float]:
    """Adds LoRA's products to the base weights, and verifies with a probe that nothing else changed.

    Args:
        adapted: A model from `load_adapter`, which must not be used afterwards.

    Returns:
        The merged model, and the largest difference of a logit relative to the largest logit.

    Raises:
        ModelError: If the adapter is a soft prompt, if the base shares an adapted weight, or if the logits differ by
            more than fp32 rounding.
    """
    if adapted.active_peft_config.peft_type.value != "LORA":
        raise ModelError("a soft prompt cannot be merged, because it changes no weights", "use it as an adapter")
    base = adapted.get_base_model()
    layers = {name: layer for name, layer in base.named_modules() if isinstance(layer, LoraLayer)}
    check_mergeable({name: isinstance(layer.base_layer, nn.Embedding) for name, layer in layers.items()}, base.config)
    adapted.eval()
    if base.num_parameters() <= LARGEST_IN_FP64:
        adapted.double()
    probe = _probe(base.config)
    with torch.no_grad():
        before = adapted(**probe).logits
        merged = adapted.merge_and_unload()
        after = merged(**probe).logits
    merged.float()
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= MERGE_TOLERANCE:
        raise ModelError(
            f"the merged model's logits differ from the adapter's by {difference:.1e} of the largest; "
            f"the limit is {MERGE_TOLERANCE:.0e}",
            "use the adapter without merging",
        )
    return merged, difference


def _probe(config: PretrainedConfig) -> dict[str, torch.Tensor]:
    """A batch of random tokens, which reaches more of the vocabulary than real dialogues and needs no data."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, PROBE_SHAPE, generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
