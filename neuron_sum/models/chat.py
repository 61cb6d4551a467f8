"""The chat template of a tokenizer as a prompt: rendered once, then stored as text in the recipe of the run."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from neuron_sum.errors import ModelError, RecipeError, reading
from neuron_sum.prompts import CHAT, INSTRUCTION, Prompt
from neuron_sum.recipes.schema import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

    from neuron_sum.models.fast_tokenizer import FastTokenizer

MARK, ANSWER = "NEURON-SUM-DIALOGUE", "NEURON-SUM-ANSWER"
"""Texts that no template contains, in place of the dialogue and the summary."""

HINT = "use prompt.preset: course, or write the whole text in prompt.template"


def render_chat(recipe: Recipe, tokenizer: "PreTrainedTokenizerFast") -> Recipe:
    """Applies the tokenizer's chat template to the instruction, if the recipe asks for it.

    The token that ends an answer in the template becomes the tokenizer's eos_token, which ends every summary in
    training and generation, and which is saved with the tokenizer.

    Args:
        recipe: Any recipe; returned unchanged if its prompt is not `chat`, or already rendered.
        tokenizer: The tokenizer of the model; its eos_token is changed.

    Raises:
        RecipeError: If the tokenizer has no chat template.
        ModelError: If the template fails, changes the text of a message, or has no token that ends an answer.
    """
    if recipe.prompt.preset != CHAT or (recipe.prompt.rendered is not None and tokenizer.chat_template is None):
        return recipe
    if tokenizer.chat_template is None:
        raise RecipeError("prompt.preset = 'chat': the tokenizer of the model has no chat template", HINT)
    user = {"role": "user", "content": INSTRUCTION.replace("{dialogue}", MARK)}
    prompt = _apply(tokenizer, [user], add_generation_prompt=True)
    whole = _apply(tokenizer, [user, {"role": "assistant", "content": ANSWER}], add_generation_prompt=False)
    if prompt.count(MARK) != 1 or whole.count(ANSWER) != 1 or "{dialogue}" in prompt:
        raise ModelError("the chat template of the tokenizer changes or drops the text of a message", HINT)
    before, after = whole.split(ANSWER)
    if not before.startswith(prompt):
        raise ModelError("the chat template of the tokenizer starts an answer differently in a conversation", HINT)
    # Models that can reason have an empty chain of thought here, without which they would start one.
    prompt, after = before, after.strip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not ids or ids[0] not in special:
        raise ModelError(
            f"the chat template of the tokenizer ends an answer with {after[:20]!r}, not with a token", HINT
        )
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids[0])
    if recipe.prompt.rendered is not None:
        return recipe
    text = prompt.replace(MARK, "{dialogue}")
    return recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"rendered": text})})


def not_rendered(recipe: Recipe) -> Recipe:
    """The recipe without the text of a chat template, which may be that of another model's tokenizer."""
    return recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"rendered": None})})


def token_warnings(
    prompt: Prompt, tokenizer: "PreTrainedTokenizerFast | FastTokenizer", config: "PretrainedConfig | None"
) -> list[str]:
    """Faults of special tokens that make a model worse without an error.

    Args:
        prompt: The rendered prompt.
        tokenizer: The tokenizer, with its final eos_token.
        config: The configuration of the base model; None for one without end tokens.
    """
    found = []
    ids, begin = replace(prompt, claim="").encode(tokenizer, [""], sys.maxsize)[0].input_ids, tokenizer.bos_token_id
    if begin is not None and ids[:2] == [begin, begin]:
        found.append(
            f"every prompt starts with two begin tokens {tokenizer.bos_token!r}, one of the tokenizer and one of the "
            "template: remove it from prompt.template"
        )
    ends = config.eos_token_id if config is not None else None
    stored = ends if isinstance(ends, list) else [ends]
    if stored != [None] and tokenizer.eos_token_id not in stored:
        names = ", ".join(repr(tokenizer.convert_ids_to_tokens(number)) for number in stored if number is not None)
        found.append(
            f"the end token of the tokenizer is {tokenizer.eos_token!r}, that of the model's configuration is {names}: "
            f"summaries are trained to end with {tokenizer.eos_token!r}, and generation stops at each of them"
        )
    return found


def _apply(tokenizer: "PreTrainedTokenizerFast", messages: list[dict[str, str]], **options: Any) -> str:
    from jinja2 import TemplateError

    # A template may raise any error: it is a program in the sandbox of Jinja.
    with reading("the chat template of the tokenizer", ModelError, HINT):
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except TemplateError as error:
            raise ModelError(f"the chat template of the tokenizer fails: {error.message!s:.200}", HINT) from error
    return text
