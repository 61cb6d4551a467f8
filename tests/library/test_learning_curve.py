"""The learning curve and the side-by-side summaries, from the files of `neuron-sum compare`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from in_process import neuron_sum

from benchmarks import learning_curve, side_by_side


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
