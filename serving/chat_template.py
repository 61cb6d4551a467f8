"""The prompt of a model as the chat template of its tokenizer, so that a chat completion has the prompt of training.

The only message is the dialogue; the template adds the text around it, and the tokens that the tokenizer adds in
training. vLLM renders it with the function of transformers and adds no special tokens (vllm 0.11.0,
entrypoints/chat_utils.py, and add_special_tokens in ChatCompletionRequest).
"""

from transformers import PreTrainedTokenizerFast

from neuron_sum.errors import ModelError
from neuron_sum.prompts import Prompt, control_ids

ONE_MESSAGE = "send one message with the role user that contains the dialogue"
SAMPLE = "#Person1#: Hello,\n how are you?\n#Person2#: I am fine; it's 8 o'clock. \\n {} \"{{ x }}\" été 你好 🙂\n"
"""A text with everything that a template could change."""


def chat_template(prompt: Prompt, tokenizer: PreTrainedTokenizerFast) -> str:
    """The Jinja template of a prompt.

    As in training, the text of a control token in a dialogue, such as `</s>`, is not that token.

    Args:
        prompt: The prompt of training.
        tokenizer: The tokenizer of the model; not changed.

    Raises:
        ModelError: If the tokenizer reads the rendered template differently from the prompt.
    """
    before, after = prompt.template.split("{dialogue}")
    if not prompt.is_chat:
        first, last = _added(tokenizer)
        before, after = first + before, after + last
    marks = sorted(str(token) for token in tokenizer.convert_ids_to_tokens(sorted(control_ids(tokenizer))))
    safe = "".join(f"|replace({_literal(mark)}, {_literal(f'{mark[:1]} {mark[1:]}')})" for mark in marks)
    template = (
        "{%- if messages|length != 1 or messages[0]['role'] != 'user' -%}"
        f"{{{{ raise_exception({_literal(ONE_MESSAGE)}) }}}}"
        "{%- endif -%}"
        f"{{{{ {_literal(before)} + (messages[0]['content']{safe}) + {_literal(after)} }}}}"
    )
    for dialogue in (SAMPLE, SAMPLE + "".join(marks)):
        message = [{"role": "user", "content": dialogue}]
        text = tokenizer.apply_chat_template(message, chat_template=template, tokenize=False)
        [expected] = prompt.encode(tokenizer, [dialogue], 1 << 20)
        if tokenizer(text, add_special_tokens=False)["input_ids"] != expected.input_ids:
            raise ModelError(
                "the tokenizer reads the prompt in a chat template differently from the prompt of training",
                "run `neuron-sum compile RUN`, then `neuron-sum package ARTIFACT` for neuron-sum's container",
            )
    return template


def _added(tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """The text of the special tokens that the tokenizer adds before and after a text."""
    mask = tokenizer("a", return_special_tokens_mask=True)
    ids, special = mask["input_ids"], mask["special_tokens_mask"]
    first, last = special.index(0), len(special) - special[::-1].index(0)
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    return "".join(tokens[:first]), "".join(tokens[last:])


def _literal(text: str) -> str:
    """A string literal of Jinja, which reads the escape sequences of Python."""
    escaped = text.replace("\\", r"\\").replace("'", r"\'").replace("\n", r"\n").replace("\r", r"\r")
    return f"'{escaped}'"
