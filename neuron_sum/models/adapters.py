"""LoRA and soft prompts: attach, load, merge, and verify the merge."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from transformers import PretrainedConfig, PreTrainedModel

from neuron_sum.errors import ModelError
from neuron_sum.models.base import is_decoder_only
from neuron_sum.models.configs import DECODER_ONLY, SEQ2SEQ
from neuron_sum.recipes.schema import FullMethod, LoraMethod, Method, PromptTuningMethod

LORA_TARGETS = {
    SEQ2SEQ: ["q", "v"],
    DECODER_ONLY: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
"""T5: Hu et al. 2021, section 7.1. Llama: all seven, because optimum-neuron 0.4.5 cannot consolidate fewer."""

MERGE_TOLERANCE = 1e-4
"""Largest logit difference that fp32 rounding explains, relative to the largest logit."""


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
                return get_peft_model(model, lora_config(method, model.config))
            except ValueError as error:
                raise ModelError(f"method.target_modules: {error}", f"use the default: {LORA_TARGETS}") from error
        return _attach_soft_prompt(model, method)


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
        target_modules=list(method.target_modules or LORA_TARGETS[config.model_type]),
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

    Raises:
        ModelError: If the folder contains no adapter, or one for another base model.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} contains no adapter_model.safetensors", "use the folder adapter/ of a training run")
    try:
        adapted = PeftModel.from_pretrained(base, folder, is_trainable=False).eval()
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{folder} does not fit this base model: {str(error).splitlines()[0]}") from error
    adapted.requires_grad_(False)  # PEFT 0.17 leaves a soft prompt trainable despite is_trainable=False
    return adapted


def merge(adapted: PeftModel, probe: dict[str, torch.Tensor]) -> tuple[PreTrainedModel, float]:
    """Adds LoRA's products to the base weights, and verifies with a probe that nothing else changed.

    Args:
        adapted: A model from `load_adapter`, which must not be used afterwards.
        probe: A real batch for the model's forward: input_ids and labels (batch, length), attention_mask.

    Returns:
        The merged model, and the largest difference of a logit relative to the largest logit.

    Raises:
        ModelError: If the adapter is a soft prompt, or if the logits differ by more than fp32 rounding.
    """
    if adapted.active_peft_config.peft_type.value != "LORA":
        raise ModelError("a soft prompt cannot be merged, because it changes no weights", "use it as an adapter")
    adapted.eval()
    with torch.inference_mode():
        before = adapted(**probe).logits.float()
        merged = adapted.merge_and_unload(safe_merge=True)
        after = merged(**probe).logits.float()
    difference = float((after - before).abs().max() / before.abs().max())
    if not difference <= MERGE_TOLERANCE:
        raise ModelError(
            f"the merged model's logits differ from the adapter's by {difference:.1e} of the largest; "
            f"the limit is {MERGE_TOLERANCE:.0e}",
            "use the adapter without merging, or merge in fp32",
        )
    return merged, difference
