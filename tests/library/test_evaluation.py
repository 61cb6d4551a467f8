"""ROUGE and its protocols compared with known figures, statistics, predictions files, generation."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuron_sum import files
from neuron_sum.data.examples import Example, invented_tags
from neuron_sum.data.rounds import open_rounds
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import DataError, RunError
from neuron_sum.evaluation.baselines import lead, longest
from neuron_sum.evaluation.evaluate import _coverage
from neuron_sum.evaluation.generate import summarize_all
from neuron_sum.evaluation.prediction_files import PredictionColumns
from neuron_sum.evaluation.predictions import Prediction, read_predictions
from neuron_sum.evaluation.rouge import RougeProtocol, human_agreement, rouge
from neuron_sum.evaluation.speaker_tags import tag_fidelity
from neuron_sum.evaluation.statistics import bootstrap, paired_bootstrap
from neuron_sum.evaluation.systems import parse_systems
from neuron_sum.models import base as models
from neuron_sum.models.adapters import attach
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import DataConfig, EvaluateConfig, PromptTuningMethod
from neuron_sum.runtimes.hugging_face import TransformersGenerator

MEAN = RougeProtocol()
KINDS = ("ROUGE-1", "ROUGE-2", "ROUGE-L")


@pytest.fixture(scope="module")
def dialogsum_test(shared_data: Path) -> tuple[Example, ...]:
    return load_dataset(DataConfig(source="dialogsum", path=str(shared_data / "dialogsum")))["test"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("lead-3", (26.95, 6.71, 20.39)), ("longest-3", (23.31, 6.24, 16.88)), ("human", (53.37, 26.73, 44.99))],
)
def test_known_figures_of_dialogsum(
    neuron_sum: Callable[..., object], shared_data: Path, name: str, expected: tuple[float, ...]
) -> None:
    """All three from the single command of docs/results.md."""
    made = neuron_sum(
        "compare",
        "lead-3",
        "longest-3",
        "human",
        "--recipe",
        "t5-scratch",
        "--json",
        "--set",
        f"data.path={shared_data / 'dialogsum'}",
    )
    assert made.returncode == 0, made.stderr
    systems = {system["system"]: system["scores"] for system in json.loads(made.stdout)["systems"]}
    assert [systems[name][kind]["value"] for kind in KINDS] == pytest.approx(expected, abs=0.0051)


def test_the_coverage_is_100_percent_only_if_no_turn_is_cut() -> None:
    shares = [1.0] * 999
    predictions = [Prediction(str(number), "", coverage=share) for number, share in enumerate((*shares, 0.9))]
    assert (_coverage(predictions), _coverage(predictions[:-1])) == (99.9, 100)
    assert _coverage([Prediction("a", "")]) is None


def test_each_protocol_setting_changes_the_score(dialogsum_test: tuple[Example, ...]) -> None:
    predictions = [lead(example.dialogue) for example in dialogsum_test[:100]]
    references = [example.references for example in dialogsum_test[:100]]

    def mean(**changes: object) -> float:
        return float(rouge(predictions, references, RougeProtocol(**changes))["ROUGE-1"].mean())

    assert mean(references="best") - mean() > 3
    assert mean(use_stemmer=False) < mean()
    assert mean(references="first") != mean()


def test_rouge_by_hand() -> None:
    scores = rouge(["the cat sat", "dogs"], [["the cat sat", "a dog"], ["dog"]], MEAN)
    assert scores["ROUGE-1"].tolist() == [50.0, 100.0]  # (1 + 0) / 2; stemmed
    assert rouge(["dogs"], [["dog"]], RougeProtocol(use_stemmer=False))["ROUGE-1"].tolist() == [0.0]
    assert scores["ROUGE-2"].tolist() == [50.0, 0.0]


def test_sentence_splitting_affects_only_lsum() -> None:
    prediction, reference = "B is here. A is there.", "A is there. B is here."
    by_sentence = rouge([prediction], [[reference]], MEAN)
    by_newline = rouge([prediction], [[reference]], RougeProtocol(sentence_splitting="newline"))
    assert by_sentence["ROUGE-Lsum"][0] == 100.0 > by_newline["ROUGE-Lsum"][0]
    assert by_sentence["ROUGE-L"][0] == by_newline["ROUGE-L"][0]


def test_human_agreement_is_the_mean_over_ordered_pairs() -> None:
    references = [("a b", "a b", "c d"), ("x", "x")]
    assert human_agreement(references, MEAN)["ROUGE-1"] == pytest.approx([100 / 3, 100.0])


def test_longest_3_keeps_dialogue_order_and_prefers_the_earlier_turn() -> None:
    dialogue = "A: one\nB: one two three\nA: one two\nB: x y z w\nA: p q"
    assert longest(dialogue) == "B: one two three\nA: one two\nB: x y z w"
    assert lead("A: 1\nB: 2") == "A: 1\nB: 2"


def test_the_bootstrap_is_seeded_and_covers_the_mean() -> None:
    values = np.random.default_rng(0).normal(30, 10, 200)
    config = EvaluateConfig()
    one, two = bootstrap(values, config), bootstrap(values, config)
    assert one == two
    assert one.low < values.mean() < one.high
    assert one.value == pytest.approx(values.mean())
    assert one.high - one.low == pytest.approx(2 * 1.96 * 10 / 200**0.5, rel=0.2)
    assert bootstrap(values, EvaluateConfig(seed=1)) != one


@given(st.lists(st.floats(0, 100), min_size=5, max_size=30), st.floats(5, 20))
def test_the_paired_bootstrap_finds_a_constant_gain_significant(values: list[float], gain: float) -> None:
    config = EvaluateConfig(bootstrap_samples=100)
    base = np.array(values)
    better = paired_bootstrap(base + gain, base, config)
    assert better.interval.value == pytest.approx(gain, abs=1e-6)
    assert better.p_value <= 0.02
    assert paired_bootstrap(base, base, config).p_value == 1.0


def test_speaker_tags() -> None:
    dialogue = "#Person1#: Hi.\n#Person2#: Hello, #Person1#."
    assert invented_tags("#Person2# greets #Pork1# and #Person1#'s friend.", dialogue) == ["#Pork1#"]
    fidelity = tag_fidelity(["#Pork1# and #Pork1#", "#Person1#"], [dialogue, dialogue])
    assert fidelity == {"faithful_percent": 50.0, "invented": 2, "most_common": {"#Pork1#": 2}}


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as text:
        csv.writer(text).writerows(rows)
    return path


def test_a_file_with_a_row_per_prediction_and_reference(tmp_path: Path) -> None:
    rows = [["id", "human", "model"], ["a", "one", "same"], ["a", "two", "same"], ["b", "three", "other"]]
    columns = PredictionColumns("model", ("human",))
    examples, predictions = read_predictions(write_csv(tmp_path / "p.csv", rows), columns, None)
    assert [example.references for example in examples] == [("one", "two"), ("three",)]
    assert [prediction.summary for prediction in predictions] == ["same", "other"]


def test_a_file_with_several_references_in_a_row_and_no_ids(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"prediction": "x", "r1": "a", "r2": "b"}\n{"prediction": "y", "r1": "c", "r2": "d"}\n'
    )
    examples, _ = read_predictions(tmp_path / "p.jsonl", PredictionColumns(references=("r1", "r2")), None)
    assert [example.references for example in examples] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([["id", "text"], ["a", "x"]], "missing column prediction; the columns are id, text"),
        ([["id", "prediction"], ["a", "x"], ["a", "y"]], "a second, different prediction for 'a'"),
        ([["id", "prediction"], ["z", "x"]], "lacks predictions for 1 of 1 examples: a"),
        ([["id", "prediction"]], "contains no rows"),
    ],
)
def test_predictions_that_do_not_match_the_data_are_rejected(
    tmp_path: Path, rows: list[list[str]], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        read_predictions(write_csv(tmp_path / "p.csv", rows), PredictionColumns(), [Example("a", "d", ("s",))])


def test_systems_have_names_and_unknown_ones_are_rejected(tmp_path: Path, micro_run: Path) -> None:
    (tmp_path / "x.csv").touch()
    systems = parse_systems(
        [str(micro_run), "again=" + str(micro_run), "lead-3", f"{tmp_path / 'x.csv'}#peft", "base=untuned"]
    )
    assert [system.name for system in systems] == ["run", "again", "lead-3", "peft", "base"]
    assert systems[3].column == "peft"
    with pytest.raises(RunError, match="two systems are named"):
        parse_systems(["lead-3", "lead-3"])
    with pytest.raises(RunError, match="no system 'nowhere'"):
        parse_systems(["nowhere"])


def untrained(config: dict[str, object]) -> tuple[object, object]:
    recipe = load_recipe("tiny", [f"model.config={json.dumps(config)}"])
    texts = [example.dialogue for example in load_dataset(recipe.data)["validation"]]
    tokenizer = models.load_tokenizer(recipe.model, texts)
    return models.load_base(recipe.model, tokenizer), tokenizer


LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
}
T5 = {
    "model_type": "t5",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "initializer_factor": 4.0,
}


@pytest.mark.parametrize("soft_prompt", [False, True])
@pytest.mark.parametrize("config", [T5, LLAMA], ids=["t5", "llama"])
def test_a_summary_does_not_depend_on_the_rest_of_its_batch(config: dict[str, object], soft_prompt: bool) -> None:
    """Also for a soft prompt on Llama, which PEFT puts before the padding."""
    model, tokenizer = untrained(config)
    if soft_prompt:
        model = attach(model, PromptTuningMethod(num_virtual_tokens=4), seed=0).eval()
    examples = load_dataset(DataConfig())["test"][:6]
    ids, dialogues = [example.id for example in examples], [example.dialogue for example in examples]
    one_by_one, together = (
        summarize_all(
            TransformersGenerator(model, tokenizer, size), tokenizer, load_recipe("tiny"), ids, dialogues, quiet=True
        )
        for size in (1, 6)
    )
    assert [made.summary for made in one_by_one] == [made.summary for made in together]
    assert len({made.summary for made in together}) > 1
    assert all(made.output_tokens <= 48 for made in together)


@pytest.mark.parametrize("config", [T5, LLAMA], ids=["t5", "llama"])
def test_long_dialogues_are_summarized_in_pieces(config: dict[str, object]) -> None:
    model, tokenizer = untrained(config)
    settings = ["data.long=merge", "data.max_source_length=96", "generate.max_new_tokens=8"]
    recipe, generator = load_recipe("tiny", settings), TransformersGenerator(model, tokenizer, 4)
    texts = [example.dialogue for example in load_dataset(DataConfig())["test"][:9]]
    dialogues = ["\n".join(texts), texts[0][:40]]
    long, short = summarize_all(generator, tokenizer, recipe, ["a", "b"], dialogues, quiet=True)
    [rounds] = open_rounds(recipe.prompt.resolve(), tokenizer, dialogues[:1], recipe.data)
    assert len(rounds.prompts) > 8
    while rounds.summary is None:
        rows = generator.generate([prompt.input_ids for prompt in rounds.prompts], recipe.generate)
        rounds.close([tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows])
    assert (long.summary, long.coverage, long.truncated) == (rounds.summary, 1, False)
    [cut] = summarize_all(generator, tokenizer, load_recipe("tiny", settings[1:]), ["a"], dialogues[:1], quiet=True)
    assert cut.truncated and 0 < cut.coverage < 0.5
    assert short == summarize_all(generator, tokenizer, recipe, ["b"], dialogues[1:], quiet=True)[0]


def test_generation_resumes_after_a_kill(tmp_path: Path) -> None:
    model, tokenizer = untrained(T5)
    examples = load_dataset(DataConfig())["test"][:8]
    ids, dialogues = [example.id for example in examples], [example.dialogue for example in examples]
    recipe, generator = load_recipe("tiny"), TransformersGenerator(model, tokenizer, 2)
    whole = summarize_all(generator, tokenizer, recipe, ids, dialogues, quiet=True)
    partial = tmp_path / "partial.jsonl"
    partial.write_text("".join(made.to_json() + "\n" for made in whole[:3]) + '{"id": "test_4", "summ')
    calls = 0

    def count(module: torch.nn.Module, inputs: object, output: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.encoder.register_forward_hook(count)
    again = summarize_all(generator, tokenizer, recipe, ids, dialogues, partial, quiet=True)
    handle.remove()
    assert again == whole
    assert calls == 3  # five dialogues remain, two per batch
    assert len(partial.read_text().splitlines()) == 8


def test_unusual_line_ends_in_a_summary_are_kept(tmp_path: Path) -> None:
    odd = Prediction("a", "one\u2028two\x85three")
    (tmp_path / "p.jsonl").write_text(2 * f"{odd.to_json()}\n", encoding="utf-8")
    assert [Prediction(**entry) for entry in files.read_jsonl(tmp_path / "p.jsonl")] == [odd, odd]


def test_truncation_and_the_token_limit_are_reported() -> None:
    model, tokenizer = untrained(T5)
    recipe = load_recipe("tiny", ["data.max_source_length=40", "generate.max_new_tokens=3"])
    made = summarize_all(
        TransformersGenerator(model, tokenizer, 1), tokenizer, recipe, ["a"], ["#Person1#: word " * 50], quiet=True
    )[0]
    assert made.truncated
    assert made.input_tokens <= 40
    assert made.hit_limit == (made.output_tokens == 3)
