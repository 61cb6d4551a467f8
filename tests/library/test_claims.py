"""True and false claims made of summaries, and a checker that is trained on them and scores claims."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from micro_models import LLAMA_CONFIG, MICRO, MICRO_LLAMA, compiled
from transformers import AutoTokenizer, LlamaConfig

from neuron_sum.artifact import SpecialTokens
from neuron_sum.data.encoding import IGNORED, encode, share_prefix
from neuron_sum.data.perturbations import PERTURBATIONS, perturb
from neuron_sum.data.rows import Collator, FilledRow
from neuron_sum.data.shapes import check_packing, choose_plan
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ArtifactError, RecipeError, RunError
from neuron_sum.evaluation.claims import Checker, claim_scores, score_claims
from neuron_sum.models.base import load_base, load_tokenizer
from neuron_sum.prompts import Prompt
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import CheckerConfig, Perturbation, PromptConfig, PromptTuningMethod, Recipe, ServeConfig
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.trained import load_trained
from neuron_sum.runtimes.optimum import OptimumGenerator
from neuron_sum.training.neuron.limits import neuron_faults
from serving import properties

CommandLine = Callable[..., subprocess.CompletedProcess[str]]
DIALOGUE = "Ann: I bought four red apples on Monday.\nBob: I don't like fruit. Rosa sells it."
CLAIMS = (
    "data: {claims: {}, max_examples: 24, max_validation_examples: 8, max_test_examples: 8, max_source_length: 320}"
)
OTHERS = ["Carla visits a museum in Lisbon.", "Victor wants a bicycle."]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("speakers", "Ann tells Bob about apples.", {"Bob tells Ann about apples."}),
        ("speakers", "Ann buys apples.", {"Bob buys apples."}),
        ("speakers", "Ann and Bob talk.", {None}),
        ("negation", "Bob doesn't like fruit.", {"Bob does like fruit."}),
        ("negation", "Ann will not come.", {"Ann will come."}),
        ("negation", "Ann tries it.", {"Ann doesn't try it."}),
        ("negation", "No verb here", {None}),
        ("antonym", "Rosa sells fruit.", {"Rosa buys fruit."}),
        ("other", "Rosa sells fruit.", set(OTHERS)),
    ],
)
def test_a_change_makes_a_true_text_false(kind: Perturbation, text: str, expected: set[str | None]) -> None:
    assert perturb(text, DIALOGUE, kind, OTHERS, random.Random(0)) in expected


def test_speakers_are_swapped_as_whole_words() -> None:
    dialogue = "Ann: hi\nAnna: hello"
    assert perturb("Ann annoys Anna.", dialogue, "speakers", OTHERS, random.Random(0)) == "Anna annoys Ann."
    assert perturb("Annette comes.", dialogue, "speakers", OTHERS, random.Random(0)) is None
    huge = f"Ann has {'9' * 400} apples."
    assert perturb(huge, dialogue, "number", OTHERS, random.Random(0)) is None


def test_changed_facts_do_not_occur_in_the_dialogue() -> None:
    text = "Ann bought four apples from Rosa on Monday at half past five."
    for seed in range(20):
        for kind, kept in (
            ("number", "from Rosa on Monday"),
            ("name", "four apples"),
            ("time", "four apples from Rosa"),
        ):
            changed = perturb(text, DIALOGUE, kind, OTHERS, random.Random(seed))
            assert changed is not None
            assert changed != text
            assert kept in changed
    assert perturb("Nothing.", DIALOGUE, "number", OTHERS, random.Random(0)) is None
    assert perturb(text, DIALOGUE, "other", [], random.Random(0)) is None
    assert set(PERTURBATIONS) >= {"detail", "time", "antonym"}


def recipe_of(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "checker.yaml"
    path.write_text(text)
    return load_recipe(str(path), overrides)


def llama_recipe(folder: Path, *overrides: str) -> Recipe:
    lines = [line for line in MICRO_LLAMA.splitlines() if not line.startswith(("data:", "prompt:"))]
    text = "\n".join([*lines, CLAIMS, "prompt: {preset: claim}"])
    return recipe_of(folder, text.replace("config: null", f"config: {json.dumps(LLAMA_CONFIG)}"), *overrides)


def test_generated_claims_are_the_same_each_time(tmp_path: Path) -> None:
    recipe = llama_recipe(tmp_path)
    first, again = (load_dataset(recipe.data)["train"] for _ in range(2))
    assert first == again
    assert first != load_dataset(llama_recipe(tmp_path, "data.claims.seed=1").data)["train"]
    assert {example.references for example in first} == {("yes",), ("no",)}
    assert len({example.id for example in first}) == len(first)
    assert len({example.dialogue for example in first}) == 24
    true = [example for example in first if example.references == ("yes",)]
    assert len(true) < len(first) - len(true) <= 2 * len(true)


def test_claims_of_a_dialogue_share_its_tokens(tmp_path: Path) -> None:
    """A row with branches has the same logits as separate rows."""
    recipe = llama_recipe(tmp_path)
    dataset = load_dataset(recipe.data)
    tokenizer = load_tokenizer(recipe.model, dataset.training_texts())
    examples = dataset["train"]
    encoded = encode(examples, tokenizer, recipe.prompt.resolve(), recipe.data, decoder_only=True)
    assert (len(encoded), encoded.sources_cut) == (24, 0)
    model = load_base(recipe.model, tokenizer).eval()
    plan = choose_plan(recipe, encoded, None, decoder_only=True)
    batch = Collator(plan, model.config)([FilledRow([feature], None) for feature in encoded.features[:2]])
    labels = batch.pop("labels")
    merged = model(**batch).logits
    at = 0
    for row, feature in enumerate(encoded.features[:2]):
        answers = (labels[row] != IGNORED).nonzero()[:, 0].tolist()
        starts = [place for place in answers if place - 1 not in answers]
        for first in starts:
            example = examples[at]
            [prompt] = recipe.prompt.resolve().encode_claims(tokenizer, [example.dialogue], [str(example.claim)], 320)
            alone = model(input_ids=torch.tensor([prompt.input_ids])).logits[0, -1]
            torch.testing.assert_close(merged[row, first - 1], alone, rtol=1e-4, atol=1e-4)
            assert labels[row, first] == tokenizer(example.references[0], add_special_tokens=False)["input_ids"][0]
            at += 1
        assert len(feature["input_ids"]) == len(feature["position_ids"]) == len(feature["branches"])


def test_a_single_claim_and_equal_claims_keep_their_answers() -> None:
    one = {"input_ids": [3, 4, 5, 9], "labels": [IGNORED] * 3 + [9]}
    other = {"input_ids": [3, 4, 5, 8], "labels": [IGNORED] * 3 + [8]}
    assert share_prefix([one, other]) == {
        "input_ids": [3, 4, 5, 9, 5, 8],
        "labels": [IGNORED] * 3 + [9, IGNORED, 8],
        "branches": [0, 0, 1, 1, 2, 2],
        "position_ids": [0, 1, 2, 3, 2, 3],
    }
    assert share_prefix([one])["input_ids"] == one["input_ids"]


def test_a_claim_is_text_and_is_never_cut(bases: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bases / "t5")
    prompt = Prompt("predict: {dialogue}</s>{claim}")
    [short] = prompt.encode_claims(tokenizer, ["A: hi {claim}"], ["{dialogue} </s>"], 100)
    assert short.input_ids.count(tokenizer.eos_token_id) == 2, "one of the template, one at the end"
    [cut] = prompt.encode_claims(tokenizer, ["A: hi there " * 50], ["Ann is here."], 60)
    assert cut.truncated
    assert len(cut.input_ids) <= 60
    text = tokenizer.decode(cut.input_ids)
    assert text.replace(" ", "").endswith("</s>Annishere.</s>")
    with pytest.raises(RecipeError, match="this model checks claims"):
        prompt.encode(tokenizer, ["A: hi"], 100)


@pytest.fixture(scope="session")
def checkers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of checkers: a T5 and a Llama."""
    from neuron_sum.training.train import train

    folder = tmp_path_factory.mktemp("checkers")
    lines = [line for line in MICRO.splitlines() if not line.startswith("data:")]
    t5 = recipe_of(folder, "\n".join([*lines, CLAIMS, "prompt: {preset: claim}"]))
    train(t5, folder / "t5")
    train(llama_recipe(folder), folder / "llama")
    return {"t5": folder / "t5", "llama": folder / "llama"}


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_trained_checker_scores_claims(checkers: dict[str, Path], family: str) -> None:
    run = open_run(checkers[family])
    model, tokenizer = load_trained(run)
    checker = Checker(CheckerConfig(model=str(checkers[family]), batch_size=2))
    claims = ["Ann bought apples.", "Bob likes fruit and apples very much.", "Rosa sells fruit."]
    scores = checker.probabilities(claims, [DIALOGUE] * 3)
    yes, no = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("yes", "no"))
    for claim, score in zip(claims, scores, strict=True):
        ids = torch.tensor(
            [run.recipe.prompt.resolve().encode_claims(tokenizer, [DIALOGUE], [claim], 320)[0].input_ids]
        )
        inputs = {"input_ids": ids}
        if family == "t5":
            inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id]])
        with torch.inference_mode():
            logits = model(**inputs).logits[0, -1]
        assert score == pytest.approx(torch.softmax(logits[[yes, no]], 0)[0].item(), abs=1e-5)
    [checked, empty] = checker.check(["Ann bought apples. Rosa sells fruit.", ""], [DIALOGUE] * 2)
    assert [claim.text for claim in checked] == ["Ann bought apples.", "Rosa sells fruit."]
    assert [claim.probability for claim in checked] == pytest.approx([scores[0], scores[2]], abs=1e-5)
    assert empty == ()
    assert claim_scores([checked, empty]).tolist() == pytest.approx([50 * (scores[0] + scores[2]), 0])
    for long in ("\n".join([DIALOGUE] * 40), " ".join([DIALOGUE.replace("\n", " ")] * 40)):
        parts = checker._parts("Rosa sells fruit.", long)
        assert len(parts) > 1
        assert not any(part.truncated for part in parts), "every word is in one of the parts"
        assert 0 < checker.probabilities(["Rosa sells fruit."], [long])[0] < 1
    with pytest.raises(RecipeError, match=r"a claim of 2000 words does not fit into 320 tokens: 'no no"):
        checker.check(["no " * 2000], [DIALOGUE])


def test_claim_scores_are_reused_until_something_changes(
    checkers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Checker(CheckerConfig(model=str(checkers["t5"])))
    summaries, dialogues, folder = ["Ann bought apples. Rosa sells fruit.", ""], [DIALOGUE] * 2, tmp_path / "system"
    scored = score_claims(first, summaries, dialogues, folder)
    assert [len(each) for each in scored] == [2, 0]

    def refuse(*_: object) -> None:
        pytest.fail("the claims were scored again")

    with monkeypatch.context() as patch:
        patch.setattr(Checker, "probabilities", refuse)
        again = Checker(CheckerConfig(model=str(checkers["t5"]), batch_size=3))
        assert score_claims(again, summaries, dialogues, folder) == scored
    for checker, texts, part in (
        (first, ["Ann bought apples.", ""], "summaries"),
        (Checker(CheckerConfig(model=str(checkers["t5"]), max_source_length=200)), summaries, "max_source_length"),
        (Checker(CheckerConfig(model=str(checkers["llama"]))), summaries, "weights of the trained model"),
    ):
        capsys.readouterr()
        score_claims(checker, texts, dialogues, folder)
        assert part in capsys.readouterr().err
        assert score_claims(first, summaries, dialogues, folder) == scored
    content = folder / "claims.jsonl"
    content.write_text(content.read_text().replace("Ann", "Bob"))
    assert score_claims(first, summaries, dialogues, folder) == scored


@pytest.mark.parametrize("family", [pytest.param("t5", marks=pytest.mark.thorough), "llama"])
def test_an_artifact_scores_as_its_run_does(checkers: dict[str, Path], family: str, tmp_path: Path) -> None:
    artifact = compiled(checkers[family], tmp_path / "artifact", "compile.source_lens=[320]")
    claims = ["Ann bought apples.", "Bob likes fruit.", "Rosa sells fruit.", "Ann is here."]
    one, other = (
        Checker(CheckerConfig(model=str(path))).probabilities(claims, [DIALOGUE] * 4)
        for path in (checkers[family], artifact.path)
    )
    np.testing.assert_allclose(one, other, atol=1e-4)
    long = Checker(CheckerConfig(model=str(artifact.path), max_source_length=4000))
    assert 0 < long.probabilities(claims[:1], ["\n".join([DIALOGUE] * 40)])[0] < 1, "in parts that fit the bucket"
    with pytest.raises(ArtifactError, match="writes no summaries"):
        properties.render(artifact, ServeConfig())


def answers_of(base: Path) -> tuple[str, str]:
    """Two words that begin with different tokens."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    first = {tokenizer(word, add_special_tokens=False)["input_ids"][0]: word for word in DIALOGUE.split()}
    return tuple(list(first.values())[:2])  # type: ignore[return-value]


def test_any_model_that_answers_can_check(bases: Path, checkers: dict[str, Path], micro_run: Path) -> None:
    config = CheckerConfig(model=str(bases / "t5"), answers=answers_of(bases / "t5"))
    assert config.prompt.resolve().template == "predict: {dialogue}</s>{claim}", "MiniCheck's"
    scores = Checker(config).probabilities(["Ann is here."], [DIALOGUE])
    assert 0 < scores[0] < 1
    answers = answers_of(bases / "llama")
    own = CheckerConfig(model=str(bases / "llama"), prompt=PromptConfig(preset="claim"), answers=answers)
    assert 0 < Checker(own).probabilities(["Ann is here."], [DIALOGUE])[0] < 1
    with pytest.raises(RunError, match="was not trained to check claims"):
        Checker(CheckerConfig(model=str(micro_run)))
    with pytest.raises(RecipeError, match="begin with the same token"):
        Checker(CheckerConfig(model=str(bases / "t5"), answers=("same", "same")))
    with pytest.raises(RecipeError, match="or with an unknown one or none"):
        Checker(CheckerConfig(model=str(bases / "t5"), answers=(answers_of(bases / "t5")[0], "\u4e2d")))
    with pytest.raises(RecipeError, match="cannot be set for"):
        Checker(CheckerConfig(model=str(checkers["t5"]), answers=("a", "b")))
    generator = OptimumGenerator(None, (), (), SpecialTokens(pad=0, ends=(1,), decoder_start=0))
    with pytest.raises(ArtifactError, match="return no logits"):
        generator.first_logits([[1]], [2])


def test_compare_with_a_checker(checkers: dict[str, Path], tmp_path: Path, neuron_sum: CommandLine) -> None:
    shutil.copytree(checkers["t5"], tmp_path / "checker")
    checking = ("--recipe", "tiny", "--set", "data.max_test_examples=4", "--set", "evaluate.claims.model=checker")
    made = neuron_sum("compare", "lead-3", "longest-3", *checking, "--fail-below", "claims=1", "--json")
    assert made.returncode == 3, "built-in systems are not checked"
    made = neuron_sum("compare", "lead-3", "longest-3", *checking, "--json")
    assert made.returncode == 0, made.stderr
    systems = json.loads(made.stdout)["systems"]
    for system in systems:
        assert 0 < system["faithfulness"]["scores"]["claims"]["value"] < 100
    assert "claims" in systems[1]["improvement"]
    scores = tmp_path / "comparison" / "lead-3" / "claims.jsonl"
    before = scores.stat().st_mtime_ns
    assert json.loads(neuron_sum("compare", "lead-3", "longest-3", *checking, "--json").stdout)["systems"] == systems
    assert scores.stat().st_mtime_ns == before, "the claims are not scored again"
    (tmp_path / "own.csv").write_text("id,prediction,human\n1,Hi,Hello\n")
    own = ("compare", "own.csv", "--reference-column", "human", *checking[2:])
    refused = neuron_sum(*own)
    assert refused.returncode == 4
    assert "evaluate.claims: 1 of 1 examples have no dialogue" in refused.stderr
    line = json.loads((tmp_path / "comparison" / "summaries.jsonl").read_text().splitlines()[0])
    scored = line["summaries"]["lead-3"]["claim_scores"]
    assert scored[0]["text"] in line["dialogue"]
    shown = [json.loads(line) for line in (tmp_path / "comparison" / "summaries.jsonl").read_text().splitlines()]
    probabilities = [
        claim["probability"]
        for text in shown
        for summary in text["summaries"].values()
        for claim in summary["claim_scores"]
    ]
    marks = (tmp_path / "comparison" / "report.html").read_text().count('<mark class="claim" title="probability')
    assert marks == sum(probability < 0.5 for probability in probabilities)
    data = neuron_sum("data", "checker/recipe.yaml", "--json")
    assert data.returncode == 0, data.stderr
    refused = neuron_sum("summarize", "checker", stdin=DIALOGUE)
    assert refused.returncode == 3
    assert "this model checks claims and writes no summaries" in refused.stderr


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.claims={}"], "data.claims requires a prompt with {claim}"),
        (["prompt={preset: claim}"], "a prompt with {claim} requires data.claims"),
        (["data.claims={kinds: [spelling]}", "prompt={preset: claim}"], "data.claims.kinds"),
        (["evaluate.claims={model: x, prompt: {preset: course}}"], "prompt must contain {claim}"),
    ],
)
def test_recipes_of_checkers_are_checked(overrides: list[str], expected: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("tiny", overrides)
    assert expected in error.value.message


def test_backends_and_methods_that_cannot_train_on_claims_reject_it(tmp_path: Path) -> None:
    config = load_recipe("smollm2-claims", ["data.source=sample"])
    check_packing(config, decoder_only=True)
    soft = config.model_copy(update={"method": PromptTuningMethod()})
    with pytest.raises(RecipeError, match=r"data\.claims with prompt_tuning"):
        check_packing(soft, decoder_only=True)
    check_packing(soft, decoder_only=False)
    llama = LlamaConfig(**{name: value for name, value in LLAMA_CONFIG.items() if name != "model_type"})
    assert "data.claims" in {fault.field for fault in neuron_faults(llama, config)}
