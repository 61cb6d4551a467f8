"""What bf16 training on a CPU does to a model: frozen weights in bf16, and another form of attention."""

from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from neuron_sum.models.base import is_decoder_only
from neuron_sum.recipes.schema import TrainConfig
from neuron_sum.training.torch.attention import recompute_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare_for_bf16(model: "PreTrainedModel | PeftModel", train: TrainConfig) -> None:
    """Reduces the memory and time of training with autocast to bf16 on a CPU; does nothing otherwise.

    Args:
        model: The model with its adapter.
        train: The train section.
    """
    if not prepares(train):
        return
    convert_frozen(model)
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and all(isinstance(each, nn.Identity) for each in layer.lora_dropout.values()):
            layer.cast_input_dtype_enabled = False  # PEFT would copy an input to fp32, and autocast that back to bf16
    if is_decoder_only(model.config):
        recompute_attention(model.get_base_model() if isinstance(model, PeftModel) else model)


def prepares(train: TrainConfig) -> bool:
    """Whether `prepare_for_bf16` changes the model; DeepSpeed and the Neuron backend have their own precision."""
    on_cpu = not torch.cuda.is_available()  # on GPUs, DataParallel would compute without autocast
    return train.bf16 and train.backend == "torch" and train.deepspeed is None and on_cpu


def convert_frozen(model: "PreTrainedModel | PeftModel") -> None:
    """Keeps the frozen weights that autocast converts in every pass in bf16, which gives the same results.

    Those are the weights of linear layers; one that is also an embedding stays in fp32. All frozen weights are copied,
    because those of a file are mapped, and its memory is free only when none of them is left.

    Args:
        model: A model that is trained with autocast to bf16; one without frozen weights stays unchanged.
    """
    modules = list(model.modules())
    others = {id(weight) for layer in modules if not isinstance(layer, nn.Linear) for weight in _frozen(layer)}
    for weight in {id(weight): weight for layer in modules for weight in _frozen(layer)}.values():
        dtype = weight.dtype if id(weight) in others else torch.bfloat16
        weight.data = weight.data.to(dtype, copy=True)


def _frozen(layer: nn.Module) -> list[nn.Parameter]:
    """The frozen parameters of a module, without those of its parts."""
    return [parameter for parameter in layer.parameters(recurse=False) if not parameter.requires_grad]
