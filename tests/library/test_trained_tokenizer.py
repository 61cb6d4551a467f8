"""Trained tokenizers: counted words train the same tokenizer as texts, and have the same tokens as texts."""

import subprocess
import sys

import pytest
from micro_models import ROOT
from tokenizers import Tokenizer, trainers

from neuron_sum.data.sources import load_dataset
from neuron_sum.models.base import load_tokenizer
from neuron_sum.models.trained_tokenizer import SPECIAL, WordTokenizer, train_tokenizer
from neuron_sum.prompts import control_ids, without_control
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import ModelConfig, TrainedTokenizer

ODD = (
    "naïve café 日本語 🎉\tx",
    "\x00\x1b[31m\u200b\ufeff\u202e\u00a0\u3000\r\n▁▁ ▁a<0x0A> ▁",
    "one \u00a8two ¨ three\u00a8 four",
    "ﬁ ½ ㎏ 👨‍👩‍👧 cafe\u0301 ＜/s＞",
)
TEXTS = (
    "",
    " ",
    "#Person1#: Hi, Mr. Smith. I'm Doctor Hawkins.\n#Person2#: Isn't it 5 o'clock ?",
    "</s> <pad>x<unk> x</s>y <s>,</s>. ..a",
    *ODD,
)
WHOLE = [*list(load_dataset(load_recipe("tiny").data).training_texts()), *ODD, *ODD]


def test_counted_words_train_the_tokenizer_of_the_texts() -> None:
    trained = train_tokenizer(WHOLE, 800, decoder_only=False)
    direct = Tokenizer.from_str(trained.to_str())
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    direct.train_from_iterator(WHOLE, trainer)
    assert direct.to_str() == trained.to_str()
    assert trained.get_vocab_size() == 800


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_the_tokens_of_a_text_are_those_of_its_words(family: str) -> None:
    expected = load_tokenizer(ModelConfig(config={"model_type": family}, tokenizer=TrainedTokenizer()), WHOLE)
    actual = WordTokenizer(train_tokenizer(WHOLE, 2000, decoder_only=family == "llama"))
    texts = [*TEXTS, *(f"a{chr(code)}b {chr(code)}" for code in range(0x3100))]  # all white space is below
    for special in (True, False):
        found = actual(texts, add_special_tokens=special)["input_ids"]
        assert found == expected(texts, add_special_tokens=special)["input_ids"]
    assert control_ids(actual) == control_ids(expected)
    for text in TEXTS:
        assert actual(text) == {"input_ids": expected(text)["input_ids"]}
        assert without_control(actual, text) == without_control(expected, text)


def test_data_of_a_trained_tokenizer_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "from neuron_sum.cli import build\n"
        "try:\n"
        "    build()(['data', 'tiny'])\n"
        "finally:\n"
        "    print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "shapes (dynamic): " in made.stdout
    assert made.stdout.splitlines()[-1] == "[]"
