"""A Generator over transformers' generate(), for checkpoints and adapters on a CPU or a GPU."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerFast

from neuron_sum.models.base import is_decoder_only
from neuron_sum.recipes.schema import GenerateConfig
from neuron_sum.runtimes.base import until_end
from neuron_sum.runtimes.sections import SectionRules, State
from neuron_sum.sections import SectionCoder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

MAX_ALIKE = 16
"""The most prompts that are computed in one row."""


class TransformersGenerator:
    """See `neuron_sum.runtimes.base.Generator`.

    Args:
        model: The model in evaluation mode; moved to the GPU if there is one.
        tokenizer: The tokenizer of the model, for padding.
        batch_size: The number of prompts per batch.
        sections: The sections of the summaries, whose headings are forced; None for a text without sections.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        tokenizer: PreTrainedTokenizerFast,
        batch_size: int,
        sections: SectionCoder | None = None,
    ) -> None:
        self._model = model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        self._tokenizer, self._batch_size, self._sections = tokenizer, batch_size, sections

    @property
    def ends(self) -> Sequence[int]:
        """The ids of the tokens that end a summary."""
        ends = self._model.config.eos_token_id
        return ends if isinstance(ends, list) else [ends]

    @property
    def batch_size(self) -> int:
        """The number of prompts per batch."""
        return self._batch_size

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerateConfig) -> list[list[int]]:
        """See `Generator.generate`."""
        # T5's rows begin with the decoder's start token, Llama's with the prompt unless it came as embeddings.
        outputs, skipped = self._run(prompts, settings, self._sections)
        return [until_end(row, self.ends) for row in outputs.sequences[:, skipped:].tolist()]

    def first_logits(self, prompts: Sequence[Sequence[int]], tokens: Sequence[int]) -> NDArray[np.float32]:
        """See `Generator.first_logits`. Prompts of a decoder-only model that begin alike share these tokens."""
        results = np.zeros((len(prompts), len(tokens)), dtype=np.float32)
        if self._can_share:
            for group in _alike(prompts):
                results[group] = self._shared_logits([prompts[index] for index in group])[:, list(tokens)]
            return results
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            outputs, _ = self._run([prompts[index] for index in batch], GenerateConfig(max_new_tokens=1))
            results[batch] = outputs.logits[0][:, list(tokens)].float().cpu().numpy()
        return results

    @property
    def _can_share(self) -> bool:
        """Whether the model accepts a custom mask: not with a soft prompt or a sliding window."""
        adapter = getattr(self._model, "active_peft_config", None)
        has_soft_prompt = adapter is not None and adapter.is_prompt_learning
        config = self._model.config
        return is_decoder_only(config) and not has_soft_prompt and getattr(config, "sliding_window", None) is None

    def _shared_logits(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The logits after each prompt, (prompts, vocabulary), from one row in which the common tokens occur once."""
        shared = _common(prompts)
        ids, positions, branches, ends = list(prompts[0][:shared]), list(range(shared)), [0] * shared, []
        for branch, prompt in enumerate(prompts, 1):
            ids += prompt[shared:]
            positions += range(shared, len(prompt))
            branches += [branch] * (len(prompt) - shared)
            ends.append(len(ids) - 1)
        device, dtype = self._model.device, self._model.dtype
        branch_ids = torch.tensor(branches)
        sees = ((branch_ids == 0)[None, :] | (branch_ids[:, None] == branch_ids[None, :])).tril()
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor([ids], device=device),
                attention_mask=mask[None, None].to(device),
                position_ids=torch.tensor([positions], device=device),
                logits_to_keep=torch.tensor(ends, device=device),
            ).logits[0]
        result: NDArray[np.float32] = logits.float().cpu().numpy()
        return result

    def _run(
        self, prompts: Sequence[Sequence[int]], settings: GenerateConfig, sections: SectionCoder | None = None
    ) -> tuple[Any, int]:
        """The output of transformers' generate() with logits, and the number of tokens before the first new one."""
        model, config = self._model, self._model.config
        decoder_only = is_decoder_only(config)
        batch = self._tokenizer.pad(
            {"input_ids": [list(prompt) for prompt in prompts]},
            padding_side="left" if decoder_only else "right",
            return_tensors="pt",
        ).to(model.device)
        # Without beams these have no effect, and transformers would log a warning.
        unused = set() if settings.num_beams > 1 else {"early_stopping", "length_penalty"}
        if sections is not None:  # the minimum applies to the last section
            unused.add("min_new_tokens")
        generation = GenerationConfig(
            **settings.model_dump(exclude={"batch_size", *unused}),
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=settings.max_new_tokens == 1,
            pad_token_id=config.pad_token_id,
            eos_token_id=self.ends,
            bos_token_id=config.bos_token_id,
            decoder_start_token_id=None if decoder_only else config.decoder_start_token_id,
        )
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        generator: Any = model
        if decoder_only and getattr(model, "active_peft_config", None) and model.active_peft_config.is_prompt_learning:
            inputs, generator = _soft_prompt_inputs(model, **inputs), model.base_model
        skipped = (inputs["input_ids"].shape[1] if "input_ids" in inputs else 0) if decoder_only else 1
        processors = LogitsProcessorList()
        if sections is not None:
            rules = SectionRules(sections, self.ends, settings)
            processors.append(_SectionsProcessor(rules, skipped, settings.num_beams))
        with torch.inference_mode():
            # Otherwise the checkpoint's defaults (sampling, penalties) replace values equal to transformers' defaults.
            outputs = generator.generate(
                **inputs, generation_config=generation, use_model_defaults=False, logits_processor=processors
            )
        return outputs, skipped


class _SectionsProcessor:
    """Forces the headings of sections in transformers' generate(), after its other processors.

    Args:
        rules: The rules of the sections.
        skipped: The number of tokens before the first new one.
        num_beams: The number of beams of each example, whose rows are next to each other.
    """

    def __init__(self, rules: SectionRules, skipped: int, num_beams: int) -> None:
        self._rules, self._skipped, self._num_beams = rules, skipped, num_beams
        # The state of every beam of the last step by example and new tokens, and whether the token that an end token
        # stands for has its score.
        self._last: dict[tuple[int, tuple[int, ...]], tuple[State, bool]] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores (rows, vocabulary) of the next tokens of input_ids (rows, length)."""
        found: dict[tuple[int, tuple[int, ...]], tuple[State, bool]] = {}
        values = scores.float().cpu().numpy().copy()[:, None]
        tokens = np.broadcast_to(np.arange(values.shape[-1]), values.shape).copy()
        rows = input_ids[:, self._skipped :].tolist()
        states = [self._state(number // self._num_beams, row) for number, row in enumerate(rows)]
        allowed = [[self._rules.allowed(state, len(row))] for state, row in zip(states, rows, strict=True)]
        replaced = self._rules.apply(allowed, values, tokens)[:, 0]
        for number, (state, row) in enumerate(zip(states, rows, strict=True)):
            found[number // self._num_beams, tuple(row)] = state, bool(replaced[number])
        self._last = found
        return torch.from_numpy(values[:, 0]).to(scores)

    def _state(self, example: int, row: list[int]) -> State:
        if not row:
            return State()
        state, replaced = self._last[example, tuple(row[:-1])]
        return self._rules.after(state, row[-1], replaces_end=replaced)


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """The number of first tokens that all prompts have in common, without the last token of any."""
    limit = min(map(len, prompts)) - 1
    return next((at for at in range(limit) if len({prompt[at] for prompt in prompts}) > 1), limit)


def _alike(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The indices of the prompts, in groups that have most of their tokens in common."""
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: list(prompts[index])):
        if groups and len(groups[-1]) < MAX_ALIKE:
            first = prompts[groups[-1][0]]
            if 2 * _common([first, prompts[index]]) > len(prompts[index]):
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups


def _soft_prompt_inputs(
    model: "PeftModel", input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Left-padded rows with the soft prompt directly before the first token of each row.

    PEFT 0.17 puts it before the padding, so that the rotary positions of a row, and its summary, would depend on the
    length of the other rows.

    Args:
        model: A decoder-only model with a soft prompt.
        input_ids: Left-padded token ids, (batch, source_len).
        attention_mask: The mask of the padding, (batch, source_len).

    Returns:
        The inputs_embeds (batch, source_len + num_virtual_tokens, hidden) and attention_mask.
    """
    soft = model.get_prompt(batch_size=1)[0]
    words = model.get_input_embeddings()(input_ids)
    padding = (attention_mask == 0).sum(dim=1).tolist()
    rows = [torch.cat([row[:pads], soft.to(row.dtype), row[pads:]]) for row, pads in zip(words, padding, strict=True)]
    added = attention_mask.new_ones(len(attention_mask), len(soft))
    return {"inputs_embeds": torch.stack(rows), "attention_mask": torch.cat([attention_mask, added], dim=1)}
