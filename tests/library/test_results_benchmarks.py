"""The benchmarks of docs/results.md: its systems, the learning curve and the side-by-side summaries."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from in_process import neuron_sum
from paper_artifacts import paper_artifact

from benchmarks import learning_curve, results, side_by_side
from compile.source import open_source
from neuron_sum.artifact import SourceRecord
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import RunError
from neuron_sum.evaluation import evaluate as evaluation
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.evaluation.systems import System


@pytest.fixture(scope="module")
def compared(micro_lora_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    shutil.copytree(micro_lora_run, folder / "lora")
    few = ("--set", "generate.max_new_tokens=4", "--set", "evaluate.bootstrap_samples=100")
    made = neuron_sum("compare", "lead-3", str(folder / "lora"), "human", "--output", str(folder / "comparison"), *few)
    assert made.exit_code == 0, made.output
    return folder / "comparison"


def changed(compared: Path, folder: Path, name: str, **values: Any) -> Path:
    """A comparison whose trained system has other values."""
    content = json.loads((compared / "comparison.json").read_text())
    for system in content["systems"]:
        if "run" in system:
            system |= {"system": name, **{key: value for key, value in values.items() if key in system}}
            system["run"] |= {key: value for key, value in values.items() if key in system["run"]}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_curve_has_a_point_for_each_training(
    compared: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    few, full = (
        changed(compared, tmp_path, "few", train_examples=8),
        changed(compared, tmp_path, "all", method="full", train_examples=2000),
    )
    output = tmp_path / "images" / f"curve{suffix}"
    assert learning_curve.main([str(compared), str(full), str(few), "--output", str(output)]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[:2] for line in table] == [
        ["| system", "training examples"],
        ["| lead-3", ""],
        ["| human", ""],
        ["| all", "2,000"],
        ["| few", "8"],
        ["| lora", "64"],
    ]
    score = json.loads((compared / "comparison.json").read_text())["systems"][0]["scores"]["ROUGE-1"]
    assert f"{score['value']:.2f} [{score['low']:.1f}, {score['high']:.1f}]" in table[1]
    drawn = output.read_bytes()
    assert drawn.startswith(b"<?xml" if suffix == ".svg" else b"\x89PNG")
    if suffix == ".svg":
        assert all(text in drawn.decode() for text in ("ROUGE-L", "lead-3", "2,000", "training examples"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fingerprint": {"examples": "others"}}, "other dialogues or another protocol"),
        ({"train_examples": None}, "lacks train_examples"),
    ],
)
def test_comparisons_that_do_not_fit_are_rejected(
    compared: Path, tmp_path: Path, values: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = changed(compared, tmp_path, "wrong", **values)
    output = tmp_path / "curve.svg"
    assert learning_curve.main([str(compared), str(wrong), "--output", str(output)]) == 8
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_rule_selects_the_dialogues_side_by_side(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = side_by_side.read_texts(compared, "lead-3")
    assert len(entries) == 12
    assert all(set(entry["summaries"]) == {"lead-3", "lora"} for entry in entries)
    scores = sorted(entry["summaries"]["lead-3"]["ROUGE-1"] for entry in entries)
    chosen = side_by_side.choose(entries, "lead-3", [0, 10, 50, 100])
    assert [entry["summaries"]["lead-3"]["ROUGE-1"] for entry in chosen] == [scores[index] for index in (0, 1, 6, 11)]
    assert side_by_side.main([str(compared), "--system", "lead-3"]) == 0
    text = capsys.readouterr().out
    assert "Of 12 dialogues, those at the percentiles 10, 50, 90 of the ROUGE-1 of `lead-3`" in text
    assert text.count("\n### Percentile ") == 3
    assert text.count("\n| human | ") == 9
    assert side_by_side.main([str(compared), "--system", "full"]) == 8
    assert "no system 'full'; valid: lead-3, lora" in capsys.readouterr().err
    assert side_by_side.main([str(compared.parent), "--system", "lora"]) == 8


def test_markdown_is_escaped() -> None:
    made = {"text": "a|b\n<b> *c*", "ROUGE-1": 1.0}
    entry = {"id": "x", "dialogue": "a: 1|2", "references": ["r_s"], "summaries": {"one": made}}
    text = side_by_side.markdown([entry], "one", [50])
    assert "> a: 1\\|2<br>" in text
    assert "| one | a\\|b / \\<b> \\*c\\* | 1.0 |" in text
    assert "| human | r\\_s |  |" in text


def test_an_artifact_has_the_training_of_its_run(
    micro_lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older artifacts do not record the number of training examples."""
    run = Path(shutil.copytree(micro_lora_run, tmp_path / "run"))
    source = open_source(run, None, [])
    record, recipe = source.record(), source.recipe
    examples = load_dataset(recipe.data)["test"]
    made = [Prediction(example.id, example.references[0]) for example in examples]
    monkeypatch.setattr(evaluation, "predict", lambda *_: made)

    paper = paper_artifact(tmp_path / "artifact")

    def curve(source: SourceRecord) -> learning_curve.System:
        artifact = replace(paper, manifest=paper.manifest.model_copy(update={"source": source}), recipe=recipe)
        system = System("compiled", artifact=artifact)
        metrics = evaluation.evaluate_system(system, recipe, examples, tmp_path / "none").metrics
        (tmp_path / "comparison.json").write_text(json.dumps({"systems": [metrics]}))
        [found] = learning_curve.read_systems([tmp_path])
        return found

    moved = record.model_copy(update={"path": str(tmp_path / "moved")})
    assert (curve(moved).method, curve(moved).train_examples) == ("lora", 64)
    older = record.model_copy(update={"train_examples": None})
    assert (curve(older).method, curve(older).train_examples) == ("lora", 64)
    weights = run / "run.json"
    weights.write_text(weights.read_text().replace(record.fingerprint["weights of the trained model"], "0" * 64))
    with pytest.raises(RunError, match="compiled lacks train_examples"):
        curve(older)
    checkpoint = SourceRecord(path="checkpoint", fingerprint={"weights of the trained model": "0" * 64})
    assert (curve(checkpoint).method, curve(checkpoint).train_examples) == (None, None)


def test_every_system_has_a_curve_or_a_line(tmp_path: Path) -> None:
    """More than there are colours."""
    scores = {kind: {"value": 30.0, "low": 29.0, "high": 31.0} for kind in learning_curve.KINDS}
    systems = [learning_curve.System(f"line {number}", None, None, scores, 9) for number in range(12)]
    systems += [learning_curve.System(f"s{number}", f"curve {number}", 8, scores, 9) for number in range(12)]
    learning_curve.draw(systems, tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text()
    assert all(f">{kind} {number}<" in drawn for kind in ("line", "curve") for number in range(12))


def test_a_system_is_a_method_a_number_of_examples_and_a_type(tmp_path: Path) -> None:
    systems = ("untuned", "lora-125", "lora-500-int8", "prompt-tuning-500-bf16")
    assert [results.parse(system) for system in systems] == [
        ("untuned", "0", "fp32"),
        ("lora", "125", "fp32"),
        ("lora", "500", "int8"),
        ("prompt-tuning", "500", "bf16"),
    ]
    for system in ("lora", "lora-many", "qlora-500", "lora-500-fp8"):
        with pytest.raises(SystemExit, match="is not METHOD-EXAMPLES"):
            results.parse(system)


def test_the_parts_of_a_file_are_joined_again_if_they_change(tmp_path: Path) -> None:
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    first.write_bytes(b"GG")
    second.write_bytes(b"UF")
    assert results.join([first, second], whole).read_bytes() == b"GGUF"
    second.write_bytes(b"other")
    assert results.join([first, second], whole).read_bytes() == b"GGother"
