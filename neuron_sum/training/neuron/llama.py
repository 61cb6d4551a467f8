"""A Llama as optimum-neuron trains it, and back to a plain one.

A Hugging Face Llama trains on Neuron only with a wrong loss, so optimum-neuron has a class of its own, with fused and
sharded projections. Here it is made from the base model, and its shards are put together again; the files that a run
leaves are written by the plain model, which waits on the `meta` device without weights.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch_xla.core.xla_model as xm
from neuronx_distributed.parallel_layers.parallel_state import get_data_parallel_rank, get_tensor_model_parallel_rank
from optimum.neuron.models.training import (
    LlamaForCausalLM,
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
from neuron_sum.recipes.schema import LoraMethod
from neuron_sum.runs.folder import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neuron_sum.training.neuron.trainer import ResumableNeuronTrainer

ADAPTER = "default"
"""PEFT's name for the only adapter."""


def load(plain: "PreTrainedModel | PeftModel", run: RunFolder, trn_config: TrainingNeuronConfig) -> Any:
    """optimum-neuron's Llama with the base model's weights, and with a fresh adapter if the plain model has one.

    Args:
        plain: The model that was prepared, with its adapter. Its weights are given up, so that a process has them once.
        run: Knows where the base model is.
        trn_config: How the model is sharded.
    """
    plain.to("meta")
    xm.rendezvous("base_written")  # the first process writes the base of random weights
    model = LlamaForCausalLM.from_pretrained(
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
    """Puts the trained shards together, and gives them to the plain model.

    Args:
        plain: Without weights, as `load` left it.
        trainer: After training.
        folder: For the shards, on a disk that all processes see; removed when they are put together.

    Returns:
        The plain model; in processes but the first, still without weights.

    Raises:
        ModelError: If the weights are not the plain model's.
    """
    model, state = trainer.model, trainer.state_dict_on_host()
    adapter = isinstance(model, PeftModel)
    if adapter:
        state = get_peft_model_state_dict(model, state_dict=state, adapter_name=ADAPTER)
    if console.is_main_process():  # what a kill has left would be put together with these
        shutil.rmtree(folder, ignore_errors=True)
    xm.rendezvous("shards_begin")
    if get_data_parallel_rank() == 0:  # the names are those that upstream's consolidation looks for
        shards = folder / "model"
        shards.mkdir(parents=True, exist_ok=True)
        torch.save(state, shards / f"dp_rank_00_tp_rank_{get_tensor_model_parallel_rank():02d}_pp_rank_00.pt")
    if console.is_main_process():
        specialize_transformation_specs_for_model(model)
        (folder / "mp_metadata_pp_rank_0.json").write_text(json.dumps(create_parameter_metadata(model)))
    xm.rendezvous("shards_written")
    if console.is_main_process():
        whole = consolidate_model_parallel_checkpoints(folder, adapter_name=ADAPTER if adapter else None)
        _give(plain, whole)
        shutil.rmtree(folder)
    return plain


def _give(plain: "PreTrainedModel | PeftModel", state: dict[str, torch.Tensor]) -> None:
    if isinstance(plain, PeftModel):  # whose own names have the adapter's name in them
        state = {name.replace(".weight", f".{ADAPTER}.weight"): value for name, value in state.items()}
        wanted = {name for name, value in plain.named_parameters() if value.requires_grad}
    else:
        wanted = plain.state_dict().keys() - set(plain._tied_weights_keys or ())
    # Assigned, for there is nothing on the meta device to copy into.
    unexpected = plain.load_state_dict(state, strict=False, assign=True).unexpected_keys
    if missing := wanted - state.keys():
        raise ModelError(f"the trained weights are not those of a Hugging Face Llama: missing {sorted(missing)}")
    if unexpected:
        raise ModelError(f"the trained weights are not those of a Hugging Face Llama: unexpected {unexpected}")
    plain.tie_weights()
