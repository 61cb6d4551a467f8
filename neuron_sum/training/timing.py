"""How long a run will take, from one step of the very model on this machine."""

import time
from typing import TYPE_CHECKING

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from neuron_sum.data.encoding import IGNORED, Encoded
from neuron_sum.recipe import TrainConfig

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WARM_S = 2.0
"""A first step shorter than this says more about warming up than about the steps to come: measure another."""


def seconds_per_step(
    model: "PreTrainedModel | PeftModel", tokenizer: PreTrainedTokenizerFast, data: Encoded, train: TrainConfig
) -> float:
    """Measures forward and backward on a batch of middling examples; weights and random state stay as they are.

    Args:
        model: With its adapter; moved to the GPU if there is one.
        tokenizer: Its tokenizer.
        data: The training split.
        train: Batch size, accumulation, precision.

    Returns:
        Seconds of one optimizer step, without the optimizer's own work.
    """
    by_length = sorted(data.features, key=lambda feature: len(feature["input_ids"]))
    rows = min(train.per_device_train_batch_size, len(by_length))
    first = (len(by_length) - rows) // 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    collator = DataCollatorForSeq2Seq(tokenizer, model, label_pad_token_id=IGNORED)
    batch = collator(by_length[first : first + rows]).to(device)
    model.to(device).train()
    if train.gradient_checkpointing:  # as Trainer will
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.random.fork_rng(), torch.autocast(device.type, torch.bfloat16, enabled=train.bf16):
        seconds = _forward_and_backward(model, batch)
        for _ in range(2):
            if seconds < WARM_S:
                seconds = _forward_and_backward(model, batch)
    model.eval()
    return seconds * train.gradient_accumulation_steps


def _forward_and_backward(model: "PreTrainedModel | PeftModel", batch: dict[str, torch.Tensor]) -> float:
    start = time.perf_counter()
    loss: torch.Tensor = model(**batch).loss
    loss.backward()  # type: ignore[no-untyped-call]
    loss.item()  # waits for a GPU
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - start
