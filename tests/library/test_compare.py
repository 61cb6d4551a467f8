"""`evaluate`, `compare` and `summarize` as commands, and the report in a real browser."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import ModelCard
from markupsafe import Markup

from neuron_sum.errors import RecipeError
from neuron_sum.evaluation.claims import Claim
from neuron_sum.evaluation.faithfulness import check_summary
from neuron_sum.evaluation.minimum import parse_minimum
from neuron_sum.evaluation.report import mark_summary, marks_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser

RESULTS = "human,original,peft\nA cat sat.,A dog ran.,A cat sat.\nHe left.,She left.,He left.\n"
CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def runs(tmp_path: Path, micro_run: Path, micro_lora_run: Path) -> Path:
    """Copies of the two runs that a test may write to."""
    shutil.copytree(micro_run, tmp_path / "full")
    shutil.copytree(micro_run, tmp_path / "t5-scratch")  # a run may have a shipped recipe's name
    shutil.copytree(micro_lora_run, tmp_path / "lora")
    return tmp_path


def test_compare_reports_every_system_and_the_human_summaries(runs: Path, neuron_sum: CommandLine) -> None:
    made = neuron_sum("compare", "untuned", "full", "lora", "lead-3", "human", "--output", "comparison")
    assert made.returncode == 0, made.stderr
    out = made.stdout
    for expected in (
        "12 of 48 dialogues: the bundled sample, test split",
        "untuned",
        "points above untuned",
        "human 1",
        "Porter stemming",
    ):
        assert expected in out
    assert "report: comparison/report.html" in out
    result = json.loads((runs / "comparison" / "comparison.json").read_text())
    systems = {system["system"]: system for system in result["systems"]}
    assert list(systems) == ["untuned", "full", "lora", "lead-3", "human"]
    assert systems["full"]["run"]["trainable_parameters"] > systems["lora"]["run"]["trainable_parameters"]
    untuned = systems["untuned"]["run"]
    assert untuned["trainable_parameters"] == 0
    assert untuned["all_parameters"] == systems["full"]["run"]["all_parameters"]
    assert untuned["weights_bytes"] == (runs / "full" / "base" / "model.safetensors").stat().st_size
    assert systems["untuned"]["improvement"] == systems["human"]["improvement"] == {}
    assert {"value", "low", "high", "p_value"} == set(systems["lora"]["improvement"]["ROUGE-1"])
    gain = systems["lead-3"]["scores"]["ROUGE-1"]["value"] - systems["untuned"]["scores"]["ROUGE-1"]["value"]
    assert systems["lead-3"]["improvement"]["ROUGE-1"]["value"] == pytest.approx(gain, abs=1e-3)
    assert systems["lead-3"]["faithfulness"]["scores"]["facts"]["value"] == 100.0, "it quotes the dialogue"
    assert {"facts", "support"} < set(systems["lead-3"]["improvement"])
    first = json.loads((runs / "comparison" / "summaries.jsonl").read_text().splitlines()[0])["summaries"]["lead-3"]
    assert first["facts"] == 100.0
    assert first["findings"] == []

    predictions = runs / "full" / "evaluation" / "test" / "predictions.jsonl"
    assert len(predictions.read_text().splitlines()) == 12
    stamp = predictions.stat().st_mtime_ns
    again = neuron_sum("compare", "untuned", "full", "lora", "lead-3", "human", "--output", "comparison", "--json")
    assert json.loads(again.stdout)["systems"] == result["systems"]
    assert predictions.stat().st_mtime_ns == stamp, "the same weights and settings were generated again"


def test_evaluate_writes_metrics_report_and_card(runs: Path, neuron_sum: CommandLine) -> None:
    made = neuron_sum(
        "evaluate", "lora", "--set", "evaluate.split=validation", "--set", "generate.num_beams=2", "--json"
    )
    assert made.returncode == 0, made.stderr
    folder = runs / "lora" / "evaluation" / "validation"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["examples"] == 12
    assert (folder / "report.html").is_file()
    card = ModelCard.load(runs / "lora" / "adapter" / "README.md")
    assert card.data.license == "apache-2.0"
    results = {result.metric_name: result for result in card.data.eval_results}
    assert results["ROUGE-1"].metric_value == pytest.approx(metrics["scores"]["ROUGE-1"]["value"], abs=0.01)
    assert results["ROUGE-1"].dataset_split == "validation"
    assert "Licence of the data: Apache-2.0" in card.text


def test_predictions_of_other_systems_can_be_evaluated(tmp_path: Path, neuron_sum: CommandLine) -> None:
    """In the form of the course's results file: one row per prediction and reference, one column per system."""
    (tmp_path / "results.csv").write_text(RESULTS)
    made = neuron_sum("evaluate", "results.csv#peft", "--reference-column", "human", "--json")
    assert made.returncode == 0, made.stderr
    assert "each row counts as a separate example" in made.stderr
    system = json.loads(made.stdout)["systems"][0]
    assert system["scores"]["ROUGE-1"]["value"] == 100.0
    assert system["speaker_tags"]["faithful_percent"] is None  # without dialogues, tags cannot be checked
    made = neuron_sum("evaluate", "results.csv", "--reference-column", "human")
    assert made.returncode == 4
    assert "missing column prediction" in made.stderr


def test_systems_in_one_file_are_compared_on_its_references(tmp_path: Path, neuron_sum: CommandLine) -> None:
    (tmp_path / "results.csv").write_text(RESULTS)
    made = neuron_sum("compare", "results.csv#original", "results.csv#peft", "--reference-column", "human", "--json")
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert result["reference"] == "original"
    assert result["systems"][1]["improvement"]["ROUGE-1"]["value"] > 0


def test_a_score_below_the_minimum_stops_a_script(tmp_path: Path, neuron_sum: CommandLine) -> None:
    """`peft` has 100 points of ROUGE-1, `original` fewer; differences are to the first system."""
    (tmp_path / "results.csv").write_text(RESULTS)

    def compare(*minima: str, systems: tuple[str, ...] = ("original", "peft")) -> tuple[int, str]:
        shutil.rmtree(tmp_path / "comparison", ignore_errors=True)
        options = [word for minimum in minima for word in ("--fail-below", minimum)]
        columns = [f"results.csv#{name}" for name in systems]
        made = neuron_sum("compare", *columns, "--reference-column", "human", *options)
        assert (tmp_path / "comparison" / "report.html").exists() == (made.returncode in (0, 16))
        return made.returncode, made.stderr

    assert compare("ROUGE-1=1", "ROUGE-L=+10")[0] == 0
    assert "original has ROUGE-1" in compare("ROUGE-1=100")[1]
    assert compare("ROUGE-1=-0.5", systems=("peft", "original"))[0] == 16
    assert compare("ROUGE-1= -0.5", systems=("peft", "original"))[0] == 16
    code, error = compare("ROUGE-1=100.5", "ROUGE-2=0", "ROUGE-L=+99")
    assert code == 16
    assert "peft has ROUGE-1 100.00, below 100.5; peft has ROUGE-L +" in error
    assert "relative to original, below +99" in error
    assert compare("ROUGE-1=99", systems=("peft",))[0] == 0
    assert compare("ROUGE-1=99", systems=("original",))[0] == 16
    code, error = compare("ROUGE-1=+1", systems=("peft",))
    assert code == 3
    assert "--fail-below ROUGE-1=+1: no model other than the first system or untuned is among the systems" in error
    for wrong in ("ROUGE-9=1", "ROUGE-1", "ROUGE-1=", "ROUGE-1=nan", "ROUGE-1=a", "=1", "reason=1"):
        with pytest.raises(
            RecipeError, match=f"--fail-below {wrong}: not SCORE=POINTS with a score of ROUGE-1, ROUGE-2"
        ):
            parse_minimum(wrong)


def test_a_minimum_of_a_score_that_a_system_lacks_is_an_error(tmp_path: Path, neuron_sum: CommandLine) -> None:
    (tmp_path / "results.csv").write_text(RESULTS)
    command = ("compare", "results.csv#original", "--reference-column", "human", "--fail-below")
    for score, fault in (
        ("facts", "examples without a dialogue have no score facts"),
        ("support", "examples without a dialogue have no score support"),
        ("claims", "no model scores the claims"),
    ):
        made = neuron_sum(*command, f"{score}=90")
        assert made.returncode == 3
        assert f"--fail-below {score}=90: {fault}" in made.stderr
        assert not list((tmp_path / "comparison").iterdir()), "it is not an error before the evaluation"
    dialogues = "dialogue,human,original\nA: Hi.,A says hi.,A says hi to Bo.\n"
    (tmp_path / "results.csv").write_text(dialogues)
    made = neuron_sum(*command, "facts=1")
    assert made.returncode == 16
    assert "original has facts 0.00, below 1" in made.stderr


def test_checkpoints_and_adapters_are_systems_too(runs: Path, neuron_sum: CommandLine) -> None:
    """The parts of a run, and the output of merge, on another recipe's data; names may look like formulas."""
    merged = neuron_sum("merge", "lora", "--output", "merged")
    assert merged.returncode == 0, merged.stderr
    systems = ("c$1$=full/checkpoint", "adapter=lora/adapter", "merged", "full")
    few = ("--set", "data.max_test_examples=5", "--set", "generate.max_new_tokens=12")
    made = neuron_sum("compare", *systems, "--recipe", "tiny", *few, "--output", "parts", "--json")
    assert made.returncode == 0, made.stderr
    names = ("c$1$", "adapter", "merged", "full")
    read = {name: (runs / "parts" / name / "predictions.jsonl").read_text() for name in names}
    assert read["c$1$"] == read["full"]
    assert read["adapter"] == read["merged"]
    assert not (runs / "full" / "evaluation").exists(), "other data's figures stand in the run"


def test_the_model_card_names_the_licence_of_the_training_data(runs: Path, neuron_sum: CommandLine) -> None:
    (runs / "mine").mkdir()
    row = {"dialogue": "#Person1#: Hello.", "summary": "#Person1# greets."}
    (runs / "mine" / "test.jsonl").write_text(json.dumps(row) + "\n")
    (runs / "mine.yaml").write_text("name: mine\nextends: tiny\ndata: {source: jsonl, path: mine, license: secret}\n")
    made = neuron_sum("evaluate", "full", "--recipe", "mine.yaml")
    assert made.returncode == 0, made.stderr
    card = ModelCard.load(runs / "full" / "checkpoint" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results[0].dataset_name == "mine"


def test_compare_rejects_invalid_systems(runs: Path, neuron_sum: CommandLine) -> None:
    for arguments, code, expected in (
        (("compare", "lead-3"), 8, "no run or artifact determines the data"),
        (("compare", "nowhere"), 8, "no system 'nowhere'"),
        (("evaluate", "full", "--set", "evaluate.split=tset"), 3, "evaluate.split = 'tset'"),
        (("compare", "human", "-r", "tiny", "-s", "evaluate.split=train"), 4, "have only one reference"),
    ):
        made = neuron_sum(*arguments)
        assert made.returncode == code, made.stderr
        assert expected in made.stderr
        assert "hint: " in made.stderr


def test_summarize_reads_a_file_or_standard_input(runs: Path, neuron_sum: CommandLine) -> None:
    dialogue = "#Person1#: Can I book a table for two?\n#Person2#: Of course. When?"
    piped = neuron_sum("summarize", "full", "--json", stdin=dialogue)
    namesake = neuron_sum("summarize", "t5-scratch", "--json", stdin=dialogue)
    assert namesake.stdout == piped.stdout
    assert piped.returncode == 0, piped.stderr
    answer = json.loads(piped.stdout)
    assert set(answer) == {"summary_text", "truncated", "coverage", "input_tokens", "output_tokens"}
    (runs / "dialogue.txt").write_text(dialogue)
    from_file = neuron_sum("summarize", "full", "dialogue.txt")
    assert from_file.stdout.strip() == answer["summary_text"]
    empty = neuron_sum("summarize", "full", stdin="  \n")
    assert (empty.returncode, "contains no dialogue" in empty.stderr) == (4, True)
    assert neuron_sum("summarize", "full", "missing.txt").returncode == 4
    assert neuron_sum("summarize", "nowhere", stdin="x").returncode == 8


def marked(summary: str, dialogue: str, reference: str, claims: tuple[Claim, ...] = ()) -> Markup:
    return mark_summary(summary, marks_of(summary, reference, check_summary(summary, dialogue), claims))


def test_unsupported_parts_of_a_summary_are_marked() -> None:
    dialogue = "#Person1#: a\n#Person2#: b"
    invented = '<mark class="invented" title="the dialogue has no such speaker">#Pork1#</mark>'
    other = '<mark class="other" title="another speaker than in the human summary">#Person2#</mark>'
    assert marked("#Person1# asks #Person2#.", dialogue, "#Person1# asks #Person2#.") == "#Person1# asks #Person2#."
    assert marked("#Person2# & #Pork1#", dialogue, "#Person1# and #Person2#") == f"{other} &amp; {invented}"
    assert marked("#Pork1#", "", "#Person1#") == "#Pork1#", "nothing is known without a dialogue"
    summary = "#Person2# sings. <b>"
    claim = Claim("#Person2# sings.", 0, 16, 0.25)
    nested = f'<mark class="claim" title="probability 0.25">{other} sings.</mark> &lt;b&gt;'
    assert marked(summary, dialogue, "#Person1# sings.", (claim,)) == nested


@pytest.mark.parametrize(("width", "height"), [(375, 812), (1440, 900)], ids=["phone", "desktop"])
def test_the_report_in_a_browser(
    runs: Path, neuron_sum: CommandLine, browser: "Browser", width: int, height: int
) -> None:
    made = neuron_sum("compare", "untuned", "full", "lora", "human", "--output", "comparison")
    assert made.returncode == 0, made.stderr
    page = browser.new_page(viewport={"width": width, "height": height})
    requests: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    url = (runs / "comparison" / "report.html").as_uri()
    page.goto(url)
    assert [request for request in requests if not request.startswith("data:")] == [url], "the report needs a network"
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert page.locator("#scores tbody tr").count() == page.locator("#faithfulness tbody tr").count() == 4
    assert page.locator("figure svg").count() == 3
    assert page.locator("article").count() == 12
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))"
    )
    assert smallest >= 8, "chart text is too small to read"
    page.close()
