"""Summaries from a transformers model: batched, in order of length, and going on where a killed run stopped."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from neuron_sum import console, files
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.models import is_decoder_only
from neuron_sum.prompts import EncodedPrompt
from neuron_sum.recipe import GenerateConfig, Recipe

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def fingerprint(recipe: Recipe, ids: Sequence[str], dialogues: Sequence[str], weights: Sequence[Path]) -> str:
    """What predictions depend on: dialogues, prompt, generation settings and the very weights.

    Args:
        recipe: For the model's name, prompt, max_source_length and generation.
        ids: One per dialogue.
        dialogues: The texts, in order.
        weights: Folders with safetensors; one that is a hub id is known by the recipe's model section.
    """
    settings = {
        "model": recipe.model.model_dump(mode="json"),
        "prompt": recipe.prompt.resolve().sha256,
        "max_source_length": recipe.data.max_source_length,
        "generate": recipe.generate.model_dump(exclude={"batch_size"}),
        "examples": list(zip(ids, dialogues, strict=True)),
        "weights": [files.sha256(file) for folder in weights for file in sorted(folder.glob("*.safetensors"))],
    }
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def summarize_all(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerFast",
    recipe: Recipe,
    ids: Sequence[str],
    dialogues: Sequence[str],
    partial: Path | None = None,
    description: str = "summarizing",
    quiet: bool = False,
) -> list[Prediction]:
    """A prediction for every dialogue.

    Args:
        model: In evaluation mode; moved to the GPU if there is one.
        tokenizer: Its tokenizer.
        recipe: For prompt, max_source_length and generation.
        ids: One per dialogue.
        dialogues: The texts.
        partial: Where finished predictions are kept on the way; what stands there already is not made again.
        description: For the progress bar.
        quiet: Whether to show none.
    """
    prompts = recipe.prompt.resolve().encode(tokenizer, dialogues, recipe.data.max_source_length)
    done = {entry["id"]: Prediction(**entry) for entry in files.read_jsonl(partial)} if partial is not None else {}
    if partial is not None:  # what a kill cut off in the middle of a line goes
        files.write_text(partial, "".join(prediction.to_json() + "\n" for prediction in done.values()))
    # The longest first: a batch that does not fit into memory fails at once, and batches hold little padding.
    order = sorted((i for i in range(len(ids)) if ids[i] not in done), key=lambda i: -len(prompts[i].input_ids))
    size = recipe.generate.batch_size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    with console.progress(description, len(ids), len(done), quiet=quiet) as bar:
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            made = _generate(model, tokenizer, recipe.generate, [ids[i] for i in batch], [prompts[i] for i in batch])
            if partial is not None:
                with partial.open("a", encoding="utf-8") as lines:
                    lines.writelines(prediction.to_json() + "\n" for prediction in made)
            done.update((prediction.id, prediction) for prediction in made)
            bar.advance(len(batch))
    return [done[example_id] for example_id in ids]


def _generate(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerFast",
    generate: GenerateConfig,
    ids: Sequence[str],
    prompts: Sequence[EncodedPrompt],
) -> list[Prediction]:
    decoder_only = is_decoder_only(model.config)
    batch = tokenizer.pad(
        {"input_ids": [prompt.input_ids for prompt in prompts]},
        padding_side="left" if decoder_only else "right",
        return_tensors="pt",
    ).to(model.device)
    settings = GenerationConfig(
        **generate.model_dump(exclude={"batch_size"}),
        do_sample=False,
        pad_token_id=model.config.pad_token_id,
        eos_token_id=model.config.eos_token_id,
        bos_token_id=model.config.bos_token_id,
        decoder_start_token_id=None if decoder_only else model.config.decoder_start_token_id,
    )
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    generator: Any = model
    if decoder_only and getattr(model, "active_peft_config", None) and model.active_peft_config.is_prompt_learning:
        inputs, generator = _soft_prompt_inputs(model, batch["input_ids"], batch["attention_mask"]), model.base_model
    with torch.inference_mode():
        rows = generator.generate(**inputs, generation_config=settings)
    # T5's rows begin with the decoder's start token, Llama's with the prompt unless it came as embeddings.
    skipped = (inputs["input_ids"].shape[1] if "input_ids" in inputs else 0) if decoder_only else 1
    made: list[Prediction] = []
    for example_id, prompt, row in zip(ids, prompts, rows[:, skipped:].tolist(), strict=True):
        output = row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row
        made.append(
            Prediction(
                id=example_id,
                summary=tokenizer.decode(output, skip_special_tokens=True).strip(),
                truncated=prompt.truncated,
                input_tokens=len(prompt.input_ids),
                output_tokens=len(output),
                hit_limit=tokenizer.eos_token_id not in row,
            )
        )
    return made


def _soft_prompt_inputs(model: "PeftModel", input_ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Left-padded rows with the soft prompt right before each row's first token.

    PEFT 0.17 puts it before the padding, so that a row's rotary positions, and with them its summary, depend on
    how long its neighbours are.

    Args:
        model: A soft prompt on a decoder-only model.
        input_ids: (batch, source_len)
        mask: (batch, source_len)

    Returns:
        inputs_embeds (batch, source_len + num_virtual_tokens, hidden) and attention_mask.
    """
    soft = model.get_prompt(batch_size=1)[0]
    words = model.get_input_embeddings()(input_ids)
    padding = (mask == 0).sum(dim=1).tolist()
    rows = [torch.cat([row[:pads], soft.to(row.dtype), row[pads:]]) for row, pads in zip(words, padding, strict=True)]
    return {
        "inputs_embeds": torch.stack(rows),
        "attention_mask": torch.cat([mask, mask.new_ones(len(mask), len(soft))], dim=1),  # left padding stays left
    }
