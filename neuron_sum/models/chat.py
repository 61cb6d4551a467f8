"""The chat template of a tokenizer as a prompt: rendered once, then stored as text in the recipe of the run."""

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from neuron_sum.errors import ModelError, RecipeError, reading
from neuron_sum.prompts import CHAT, INSTRUCTION
from neuron_sum.recipes.schema import Recipe

MARK, ANSWER = "NEURON-SUM-DIALOGUE", "NEURON-SUM-ANSWER"
"""Texts that no template contains, in place of the dialogue and the summary."""

HINT = "use prompt.preset: course, or write the whole text in prompt.template"


def render_chat(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Recipe:
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
    after = whole.split(ANSWER)[1].strip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    if not ids or ids[0] not in special:
        raise ModelError(
            f"the chat template of the tokenizer ends an answer with {after[:20]!r}, not with a token", HINT
        )
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids[0])
    if recipe.prompt.rendered is not None:
        return recipe
    text = prompt.replace(MARK, "{dialogue}")
    return recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"rendered": text})})


def _apply(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]], **options: Any) -> str:
    # A template may raise any error: it is a program in the sandbox of Jinja.
    with reading("the chat template of the tokenizer", ModelError, HINT):
        try:
            text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except TemplateError as error:
            raise ModelError(f"the chat template of the tokenizer fails: {error.message!s:.200}", HINT) from error
    return text
