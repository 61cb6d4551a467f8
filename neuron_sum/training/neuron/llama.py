"""Conversion of a Llama or Qwen3 to the class of optimum-neuron and back to the plain Hugging Face class.

A Hugging Face Llama trains on Neuron only with a wrong loss, so optimum-neuron has custom classes with fused and
sharded projections, which have the names of the plain ones. This module creates one from the base model and
consolidates its shards; the plain model, which stays on the `meta` device without weights during training, writes the
files of the run.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch_xla.core.xla_model as xm
from neuronx_distributed.parallel_layers.parallel_state import get_data_parallel_rank, get_tensor_model_parallel_rank
from optimum.neuron.models import training
from optimum.neuron.models.training import (
    TrainingNeuronConfig,
    create_parameter_metadata,
    specialize_transformation_specs_for_model,
)
from optimum.neuron.models.training.checkpointing import consolidate_model_parallel_checkpoints
from optimum.neuron.peft import get_peft_model
from optimum.neuron.peft.utils.save_and_load import get_peft_model_state_dict
from peft import PeftModel

from neuron_sum import console
from neuron_sum.errors import ModelError
from neuron_sum.models import adapters
from neuron_sum.models.families import family_of
from neuron_sum.recipes.schema import LoraMethod
from neuron_sum.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neuron_sum.training.neuron.trainer import ResumableNeuronTrainer

ADAPTER = "default"
"""PEFT's name for the only adapter."""


def load(plain: "PreTrainedModel | PeftModel", run: RunFolder, trn_config: TrainingNeuronConfig) -> Any:
    """Load optimum-neuron's model with the base model's weights, and a new adapter if the plain model has one.

    Args:
        plain: The prepared model with its adapter. Its weights are released, so that a process has them only once.
        run: The run folder, for the location of the base model.
        trn_config: The layout of the sharded model.
    """
    plain.to("meta")
    xm.rendezvous("base_written")  # the first process writes a base model with random weights
    model = getattr(training, family_of(plain.config).model_name).from_pretrained(
        run.model_source(),
        trn_config,
        config=plain.config,
        revision=run.recipe.model.revision or "main",
        use_safetensors=True,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    method = run.recipe.method
    if isinstance(method, LoraMethod):
        with torch.random.fork_rng():
            torch.manual_seed(run.recipe.train.seed)
            return get_peft_model(model, adapters.lora_config(method, plain.config), adapter_name=ADAPTER)
    return model


def consolidate(
    plain: "PreTrainedModel | PeftModel", trainer: "ResumableNeuronTrainer", folder: Path
) -> "PreTrainedModel | PeftModel":
    """Consolidate the trained shards, and assign them to the plain model.

    Args:
        plain: The model without weights after `load`.
        trainer: The trainer after training.
        folder: A folder for the shards, on a disk that all processes share; removed after consolidation.

    Returns:
        The plain model; in all processes except the first, still without weights.

    Raises:
        ModelError: If the weights do not match the plain model.
    """
    model, state = trainer.model, trainer.state_dict_on_host()
    adapter = isinstance(model, PeftModel)
    if adapter:
        state = get_peft_model_state_dict(model, state_dict=state, adapter_name=ADAPTER)
    if console.is_main_process():  # shards of a killed process would be consolidated with these
        shutil.rmtree(folder, ignore_errors=True)
    xm.rendezvous("shards_begin")
    if get_data_parallel_rank() == 0:  # upstream's consolidation expects these names
        shards = folder / "model"
        shards.mkdir(parents=True, exist_ok=True)
        torch.save(state, shards / f"dp_rank_00_tp_rank_{get_tensor_model_parallel_rank():02d}_pp_rank_00.pt")
    if console.is_main_process():
        specialize_transformation_specs_for_model(model)
        (folder / "mp_metadata_pp_rank_0.json").write_text(json.dumps(create_parameter_metadata(model)))
    xm.rendezvous("shards_written")
    if console.is_main_process():
        weights = consolidate_model_parallel_checkpoints(folder, adapter_name=ADAPTER if adapter else None)
        _assign_weights(plain, weights)
        shutil.rmtree(folder)
    return plain


def _assign_weights(plain: "PreTrainedModel | PeftModel", state: dict[str, torch.Tensor]) -> None:
    if isinstance(plain, PeftModel):  # its parameter names include the adapter's name
        state = {name.replace(".weight", f".{ADAPTER}.weight"): value for name, value in state.items()}
        expected = {name for name, value in plain.named_parameters() if value.requires_grad}
    else:
        expected = plain.state_dict().keys() - set(plain._tied_weights_keys or ())
    # Assigned, because tensors on the meta device have no storage to copy into.
    unexpected = plain.load_state_dict(state, strict=False, assign=True).unexpected_keys
    strange = f"the trained weights are not those of a Hugging Face {plain.config.model_type} model"
    if missing := expected - state.keys():
        raise ModelError(f"{strange}: missing {sorted(missing)}")
    if unexpected:
        raise ModelError(f"{strange}: unexpected {unexpected}")
    plain.tie_weights()
