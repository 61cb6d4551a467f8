"""The outcomes of `compile verify`, with constructed summaries instead of models."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import compile.verify as module
from compile import command
from neuron_sum.artifact import Bucket, Verification
from neuron_sum.data.examples import Example
from neuron_sum.errors import ArtifactError, DataError, RecipeError
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import DataConfig, GenerateConfig, OutputConfig

BUCKET = Bucket(batch=1, source_len=8, target_len=8)
WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "looked", "at", "the", "dog"]
REFERENCE = " ".join(WORDS)


def summary(kept: int) -> str:
    """About 9 points of ROUGE-1 recall for each word that is kept."""
    return " ".join([*WORDS[:kept], *["x"] * (len(WORDS) - kept)])


class Case:
    """An artifact whose summaries keep some words of the reference, and a source that keeps five.

    Args:
        kept: The words that each summary of the artifact keeps.
        exact: Whether the artifact is fp32.
        reference: The human summary.
        greedy_steps: The number of greedy steps per call of a further graph.
    """

    def __init__(
        self, kept: list[int], *, exact: bool = False, reference: str = REFERENCE, greedy_steps: int = 1
    ) -> None:
        self.kept, self.exact, self.greedy_steps = kept, exact, greedy_steps
        self.examples = tuple(Example(f"e{number}", "a: b", (reference,)) for number in range(len(kept)))
        self.written: list[Any] = []

    def install(self, patch: pytest.MonkeyPatch) -> "Case":
        made = [Prediction(example.id, summary(5)) for example in self.examples]
        compiled = [
            Prediction(example.id, summary(count)) for example, count in zip(self.examples, self.kept, strict=True)
        ]
        generator = SimpleNamespace(with_batch_size=lambda size: "artifact", used=[BUCKET])
        patch.setattr(module, "open_source", lambda *_: SimpleNamespace(load=lambda: (None, None)))
        patch.setattr(module, "_check_same_weights", lambda *_: None)
        patch.setattr(module, "load_recipe", lambda _, overrides: load_recipe("tiny", overrides))
        patch.setattr(module, "load_dataset", self._load_dataset)
        patch.setattr(module, "TransformersGenerator", lambda *_: "transformers")
        patch.setattr(module, "load_generator", lambda *_: (generator, None))
        patch.setattr(
            module,
            "summarize_all",
            lambda generator, tokenizer, recipe, ids, *_, **__: (compiled if generator == "artifact" else made)[
                : len(ids)
            ],
        )
        patch.setattr(module, "write_manifest", lambda path, manifest: self.written.append(manifest))
        patch.setattr("neuron_sum.artifact.open_artifact", lambda _: self.artifact)
        return self

    def _load_dataset(self, config: DataConfig, _: OutputConfig) -> dict[str, tuple[Example, ...]]:
        self.config = config
        return {"test": self.examples[: config.max_test_examples], "validation": self.examples[:11]}

    @property
    def artifact(self) -> Any:
        manifest = SimpleNamespace(
            source=SimpleNamespace(path="run"),
            num_beams=(1,),
            greedy_steps=self.greedy_steps,
            buckets=(BUCKET,),
            is_exact=self.exact,
            dtype="fp32" if self.exact else "int8",
            prompt=load_recipe("tiny").prompt.resolve(),
            model_copy=lambda update: update["verified"],
        )
        return SimpleNamespace(manifest=manifest, recipe=load_recipe("tiny"), path=Path("artifact"))

    def verify(self, examples: int | None = 1000, max_drop: float = 1.0) -> Verification:
        record = module.verify(self.artifact, None, examples, max_drop).record
        assert self.written == [record]
        return record


@pytest.mark.parametrize(
    ("kept", "outcome"),
    [
        ([5] * 12, "passed"),
        ([6] * 12, "passed"),
        ([4] * 12, "failed"),
        ([5] * 95 + [4] * 5, "passed"),  # a loss of 0.5 points
        ([3, 7] * 12, "undecided"),
        ([3, 7] * 6 + [3] * 2, "undecided"),
        ([5] * 9, "undecided"),
    ],
)
def test_a_loss_is_shown_refuted_or_undecided(
    kept: list[int], outcome: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Case(kept).install(monkeypatch).verify()
    assert (record.passed, record.undecided) == (outcome == "passed", outcome == "undecided")
    assert (record.examples_needed is not None) == (outcome == "undecided")
    if outcome == "passed":
        command.verify(Path("artifact"), max_drop=1.0, examples=100)
    else:
        words = {
            "failed": "it loses more than 1 point of ROUGE-1, and an artifact in int8 may lose at most 1 point",
            "undecided": "undecided: ",
        }[outcome]
        with pytest.raises(ArtifactError, match=words):
            command.verify(Path("artifact"), max_drop=1.0, examples=100)
    assert "ROUGE is artifact minus transformers" in capsys.readouterr().out


def test_an_undecided_artifact_passes_with_the_examples_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """At first it seems to lose 1.5 points; all of its summaries together lose none."""
    kept = [4, 6, 5, 4, 5, 6, 4, 5, 6, 5, 4, 5] + [5, 6, 4, 5] * 200
    case = Case(kept).install(monkeypatch)
    with pytest.raises(ArtifactError) as error:
        command.verify(Path("artifact"), max_drop=1.0, examples=12)
    needed = case.written[-1].examples_needed
    assert error.value.hint == f"run `neuron-sum compile verify artifact --examples {needed}`"
    assert "an artifact in int8 may lose at most 1 point of ROUGE-1" in error.value.message
    assert f"about {needed:,} are needed, and the split has 812" in error.value.message
    assert case.written[-1].checks[0].rouge1_interval is not None
    command.verify(Path("artifact"), max_drop=1.0, examples=round(1.2 * needed))
    assert case.written[-1].passed


@pytest.mark.parametrize(("differing", "passed"), [(0, True), (1, True), (2, False)])
def test_equality_decides_for_fp32(differing: int, passed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([0] * differing + [5] * 30, exact=True).install(monkeypatch)
    record = case.verify(max_drop=0.0)
    assert (record.passed, record.undecided, record.examples_needed) == (passed, False, None)
    if not passed:
        with pytest.raises(ArtifactError, match="at most 2% of the summaries of an fp32 artifact may differ"):
            command.verify(Path("artifact"), max_drop=0.0, examples=100)


@pytest.mark.parametrize(
    ("kept", "outcome"), [([5] * 9, "passed"), ([0] + [5] * 8, "undecided"), ([0], "undecided"), ([0] * 10, "failed")]
)
def test_few_equal_summaries_do_not_excuse_a_difference(
    kept: list[int], outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Case(kept, exact=True).install(monkeypatch)
    if outcome == "passed":
        command.verify(Path("artifact"))
        return
    with pytest.raises(ArtifactError) as error:
        command.verify(Path("artifact"))
    assert error.value.message.startswith("undecided: ") == (outcome == "undecided")
    assert "ROUGE-1" not in error.value.message


@pytest.mark.parametrize(("exact", "default"), [(True, 32), (False, 100)])
def test_the_number_of_dialogues_is_its_own(
    exact: bool, default: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case([5] * 200, exact=exact).install(monkeypatch)
    assert case.verify(None).examples == default
    limits = [f"data.{name}=7" for name in ("max_examples", "max_validation_examples", "max_test_examples")]
    monkeypatch.setattr(module, "load_recipe", lambda _, overrides: load_recipe("tiny", [*limits, *overrides]))
    command.verify(Path("artifact"))
    assert case.written[-1].examples == default, "the recipe's limits are those of its evaluations"
    told = capsys.readouterr()
    assert f"on {default} of 200 test dialogues" in told.out
    assert "instead of" not in told.err
    command.verify(Path("artifact"), overrides=["data.max_test_examples=24"])
    assert case.written[-1].examples == 24
    assert f"24 dialogues instead of {default}: the test split has no more" in capsys.readouterr().err
    command.verify(Path("artifact"), overrides=["evaluate.split=validation"])
    assert case.written[-1].examples == 11


def test_the_dialogues_are_evenly_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    case, seen = Case([5] * 20).install(monkeypatch), list[list[str]]()
    summarize = module.summarize_all
    monkeypatch.setattr(
        module, "summarize_all", lambda *words, **options: seen.append(words[3]) or summarize(*words, **options)
    )
    case.verify(10)
    assert seen[0] == [f"e{number}" for number in range(0, 20, 2)]


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        (["max_new_tokens=8", "num_beams=1"], 1),  # the usual case: one summary of transformers for both graphs
        (["max_new_tokens=2", "num_beams=1"], 2),
        (["max_new_tokens=8", "no_repeat_ngram_size=3"], 2),
    ],
)
def test_a_graph_of_several_steps_is_compared_with_settings_that_use_it(
    settings: list[str], reference: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, asked = Case([5] * 12, exact=True, greedy_steps=4).install(monkeypatch), list[tuple[str, GenerateConfig]]()
    summarize, changes = module.summarize_all, [f"generate.{change}" for change in settings]
    monkeypatch.setattr(
        module,
        "summarize_all",
        lambda *words, **options: asked.append((words[0], words[2].generate)) or summarize(*words, **options),
    )
    monkeypatch.setattr(module, "load_recipe", lambda _, overrides: load_recipe("tiny", [*changes, *overrides]))
    checks = case.verify().checks
    assert [check.steps for check in checks] == [1, 4]
    assert [name for name, _ in asked].count("transformers") == reference
    several = asked[-1][1]
    assert several.max_new_tokens == BUCKET.target_len, "the loop calls the graph only if all of its steps are wanted"
    assert not several.no_repeat_ngram_size and not several.min_new_tokens


def test_another_prompt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Case([5] * 20).install(monkeypatch)
    with pytest.raises(ArtifactError, match="prompt: differs"):
        command.verify(Path("artifact"), overrides=["prompt.preset=course"])


@pytest.mark.parametrize("change", ["generate.max_new_tokens=1", "evaluate.confidence=0.1", "data.max_source_length=8"])
def test_what_makes_the_verification_easier_is_refused(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case([5] * 20).install(monkeypatch)
    with pytest.raises(RecipeError, match="would make the verification easier"):
        command.verify(Path("artifact"), overrides=[change])
    assert not case.written


def test_the_suggested_command_repeats_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    Case([3, 7] * 600).install(monkeypatch)
    with pytest.raises(ArtifactError) as error:
        command.verify(Path("artifact"), Path("a run"), ["evaluate.seed=1"], 100, 1.5)
    expected = "neuron-sum compile verify artifact --source 'a run' --set evaluate.seed=1 --max-drop 1.5 --examples "
    assert expected in error.value.hint


def test_a_protocol_that_drops_letters_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"evaluate\.tokenizer=ascii drops letters"):
        Case([5] * 12, reference="Müller grüßt Jörg").install(monkeypatch).verify()


def test_an_adapter_is_verified_on_the_base_of_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its revision is a part of the base."""
    case, given = Case([5] * 12).install(monkeypatch), list[Any]()
    source = SimpleNamespace(load=lambda: (None, None))
    monkeypatch.setattr(module, "open_source", lambda *arguments: given.append(arguments[3]) or source)
    monkeypatch.setattr(module, "is_adapter", lambda _: True)
    case.verify()
    assert given == [case.artifact.recipe.model]


@pytest.mark.parametrize("max_drop", [0.0, 1.0])
def test_a_split_that_is_too_small_is_named(max_drop: float, monkeypatch: pytest.MonkeyPatch) -> None:
    Case([5] * 9).install(monkeypatch)
    with pytest.raises(ArtifactError, match="the test split has 9 dialogues, and at least 10"):
        command.verify(Path("artifact"), max_drop=max_drop, examples=100)
    Case([5] * 12).install(monkeypatch)
    with pytest.raises(ArtifactError) as error:
        command.verify(Path("artifact"), max_drop=max_drop, examples=9)
    changed = "" if max_drop == 1 else " --max-drop 0"
    assert error.value.hint == f"run `neuron-sum compile verify artifact{changed} --examples 10`"
