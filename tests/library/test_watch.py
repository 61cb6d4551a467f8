"""`neuron-sum watch`: captured requests next to the training data, and their redaction."""

import base64
import json
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import neuron_sum
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from neuron_sum.data.sources import load_dataset
from neuron_sum.data.statistics import STATISTICS, TextStatistics, unknown_ids
from neuron_sum.errors import DataError, RecipeError, RunError
from neuron_sum.models.base import load_tokenizer
from neuron_sum.monitoring.drift import Measure, fisher_p_value, ks_distance, ks_p_value
from neuron_sum.monitoring.redaction import load_hook, redact_files
from neuron_sum.monitoring.requests import Item, Unreadable, find_files, read_items
from neuron_sum.monitoring.watch import Watched, watch
from neuron_sum.recipes.schema import ModelConfig, PromptConfig
from neuron_sum.runs.folder import RunFolder, open_run

JSON, LINES, TEXT = "application/json", "application/jsonlines", "text/plain"
SECRET = "Zebra"


def part(text: str, kind: str = JSON, encoding: str = "JSON") -> dict[str, str]:
    data = base64.b64encode(text.encode()).decode() if encoding == "BASE64" else text
    return {"observedContentType": kind, "mode": "INPUT", "data": data, "encoding": encoding}


def line(request: dict[str, str] | None, answer: dict[str, str] | None) -> str:
    parts = {"endpointInput": request, "endpointOutput": answer}
    metadata = {"eventId": "e", "customAttributes": [f"user={SECRET}"], "inferenceTime": "2026-11-29T00:00:00Z"}
    content = {name: value for name, value in parts.items() if value is not None}
    return json.dumps({"captureData": content, "eventMetadata": metadata, "eventVersion": "0"}) + "\n"


def summary(text: str, truncated: bool = False) -> dict[str, Any]:
    return {"summary_text": text, "truncated": truncated, "input_tokens": 1, "output_tokens": 1}


def captured(path: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    """Data capture of one request per pair of dialogue and summary."""
    path.write_text(
        "".join(
            line(part(json.dumps({"inputs": dialogue}), encoding="BASE64"), part(json.dumps([{"summary_text": text}])))
            for dialogue, text in pairs
        )
    )
    return path


def training_pairs(run: RunFolder) -> list[tuple[str, str]]:
    return [(each.dialogue, each.references[0]) for each in load_dataset(run.recipe.data)["train"]]


@pytest.fixture
def run(micro_run: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(micro_run, tmp_path / "run")
    return open_run(tmp_path / "run")


def verdicts(watched: Watched) -> dict[str, str]:
    return {measure.name: measure.verdict for measure in watched.measures}


def measure(watched: Watched, name: str) -> Measure:
    return next(each for each in watched.measures if each.name == name)


def test_requests_like_the_training_data_do_not_drift(run: RunFolder, tmp_path: Path) -> None:
    watched = watch([captured(tmp_path / "a.jsonl", training_pairs(run))], run)
    assert watched.dialogues == watched.answers == 64
    assert set(verdicts(watched).values()) == {"same"}
    assert measure(watched, "tokens per dialogue").difference == 0
    assert measure(watched, "tokens per summary").difference == 0


def test_each_measure_finds_its_drift(run: RunFolder, tmp_path: Path) -> None:
    pairs = training_pairs(run)
    changes: dict[str, Callable[[str, str], tuple[str, str]]] = {
        "tokens per dialogue": lambda dialogue, text: (dialogue[: len(dialogue) // 5], text.replace("#", "")),
        "tokens per summary": lambda dialogue, text: (dialogue, text[:9]),
        "dialogues with new letters": lambda dialogue, text: (dialogue + " жук", text),
        "summaries with invented tags": lambda dialogue, text: (dialogue, text + " #Pork7#"),
        "empty summaries": lambda dialogue, text: (dialogue, " "),
        "dialogues truncated": lambda dialogue, text: (dialogue * 9, text),
    }
    for name, change in changes.items():
        watched = watch([captured(tmp_path / "a.jsonl", [change(*pair) for pair in pairs])], run)
        assert verdicts(watched)[name] == "drift", name
        assert verdicts(watched)["dialogues rejected"] == "same"


def test_the_answer_says_whether_the_endpoint_truncated(run: RunFolder, tmp_path: Path) -> None:
    lines = [
        line(part(json.dumps({"inputs": dialogue})), part(json.dumps([summary(text, number < 16)])))
        for number, (dialogue, text) in enumerate(training_pairs(run))
    ]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    assert measure(watch([tmp_path / "a.jsonl"], run), "dialogues truncated").requests == 0.25


def test_rejected_requests_count_as_drift_and_so_do_items(run: RunFolder, tmp_path: Path) -> None:
    dialogue, text = training_pairs(run)[0]
    error = {"error": {"code": 413, "message": f"{SECRET} is too long", "field": "inputs"}}
    lines = [
        line(part(json.dumps({"inputs": [dialogue] * 2})), part(json.dumps([summary(text), error]))),
        line(part(json.dumps({"inputs": [dialogue] * 3})), part(json.dumps(error))),
    ]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    watched = watch([tmp_path / "a.jsonl"], run)
    assert (watched.dialogues, watched.answers, watched.rejected) == (5, 1, 4)
    rejected = measure(watched, "dialogues rejected")
    assert (rejected.requests, rejected.verdict) == (0.8, "drift")


def test_few_requests_are_undecided(run: RunFolder, tmp_path: Path) -> None:
    dialogue, text = training_pairs(run)[0]
    watched = watch([captured(tmp_path / "a.jsonl", [(dialogue, text + " #Pork7#")])], run)
    assert verdicts(watched)["summaries with invented tags"] == "undecided"
    assert verdicts(watched)["tokens per dialogue"] == "undecided"


def test_unknown_tokens_of_both_kinds(run: RunFolder, smollm2: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(run.weights)))
    assert tokenizer.unk_token_id in unknown_ids(tokenizer)
    assert unknown_ids(load_tokenizer(ModelConfig(name_or_path=smollm2))) == frozenset()  # byte-level


def test_byte_tokens_count_as_unknown_except_newlines() -> None:
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a"]
    model = models.BPE(
        {piece: number for number, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>", eos_token="</s>")
    ids = unknown_ids(tokenizer)
    assert not ids & set(tokenizer("a\na\t")["input_ids"])
    assert ids & set(tokenizer("aü")["input_ids"])


FORMS = {
    "several dialogues": (part('{"inputs": ["a", "b"]}'), part(json.dumps([summary("x"), summary("y")])), 2),
    "JSON Lines": (part('{"inputs": "a"}\n{"inputs": "b"}\n', LINES), part(f"{json.dumps(summary('x'))}\n" * 2, LINES), 2),  # noqa: E501
    "text": (part("a: hello", TEXT), part("x", TEXT), 1),
    "text in base64": (part("a: Grüße", TEXT, "BASE64"), part("x", TEXT, "BASE64"), 1),
    "charset": (part('{"inputs": "a"}', "application/json; charset=utf-8"), part(json.dumps([summary("x")])), 1),
    "no content type": ({"data": '{"inputs": "a"}', "encoding": "JSON"}, part(json.dumps([summary("x")])), 1),
    "only requests": (part('{"inputs": "a"}'), None, 1),
    "only answers": (None, part(json.dumps([summary("x")])), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_data_capture_is_read(name: str, tmp_path: Path) -> None:
    request, answer, count = FORMS[name]
    (tmp_path / "a.jsonl").write_text(line(request, answer))
    items = list(read_items(tmp_path / "a.jsonl"))
    assert len(items) == count
    for item in items:
        assert isinstance(item, Item), item
        assert (item.dialogue is None) == (request is None)
        assert (item.summary is None) == (answer is None)


def test_a_batch_is_read_with_its_outputs(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"inputs": "a"}\n{"inputs": "b"}\n{"inputs": "c"}\n')
    answers = [json.dumps([summary("x", True)]), json.dumps({"error": {"code": 422}}), json.dumps(summary("z"))]
    (tmp_path / "a.jsonl.out").write_text("\n".join(answers) + "\nmore\n")
    assert find_files([tmp_path]) == [tmp_path / "a.jsonl"]
    first, second, third, more = read_items(tmp_path / "a.jsonl")
    assert first == Item(f"{tmp_path}/a.jsonl:1", "a", "x", truncated=True)
    assert second == Item(f"{tmp_path}/a.jsonl:2", "b", rejected=True)
    assert third == Item(f"{tmp_path}/a.jsonl:3", "c", "z", truncated=False)
    assert more == Unreadable(f"{tmp_path}/a.jsonl.out:4", "an answer without a request")


BAD = {
    "not JSON": "{",
    "not an object": "[1]",
    "neither part": '{"captureData": {}}',
    "data is a number": '{"captureData": {"endpointInput": {"data": 1}}}',
    "bad base64": line(part("x") | {"encoding": "BASE64", "data": "%%%"}, None),
    "no inputs": line(part('{"text": "a"}'), None),
    "inputs are numbers": line(part('{"inputs": [1]}'), None),
    "an unknown answer": line(None, part('[{"generated_text": "x"}]')),
    "different numbers": line(part('{"inputs": ["a", "b"]}'), part(json.dumps([summary("x")]))),
    "half a character": line(part('{"inputs": "\\ud800"}'), None),
    "deep": "[" * 100_000,
}


def test_lines_that_cannot_be_read_are_counted(run: RunFolder, tmp_path: Path) -> None:
    path = captured(tmp_path / "a.jsonl", training_pairs(run))
    with path.open("ab") as output:
        output.write(b"\n".join([each.strip().encode() for each in BAD.values()]) + b"\n\n\xff\xfe\n")
    (tmp_path / "b.jsonl").write_bytes(b"\x1f\x8b" + b"0" * 20)
    watched = watch([path, tmp_path / "b.jsonl"], run)
    assert watched.dialogues == 64
    assert watched.unreadable.total() == len(BAD) + 2
    assert watched.first_unreadable == f"{path}:65"
    assert set(verdicts(watched).values()) == {"same"}


def test_a_dialogue_that_makes_a_control_token_with_the_prompt_is_counted(run: RunFolder, tmp_path: Path) -> None:
    recipe = run.recipe.model_copy(update={"prompt": PromptConfig(template="{dialogue}s>")})
    path = captured(tmp_path / "a.jsonl", [("a </", "x"), *training_pairs(run)])
    watched = watch([path], replace(run, recipe=recipe))
    assert watched.dialogues == 64
    assert watched.unreadable == {"a dialogue that makes a control token together with the prompt": 1}


def test_only_unreadable_lines_are_an_error(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="not valid JSON"):
        watch([tmp_path / "a.jsonl"], run)
    with pytest.raises(DataError, match=r"no \.jsonl file"):
        find_files([tmp_path / "run" / "base"])
    with pytest.raises(DataError, match="does not exist"):
        find_files([tmp_path / "nowhere"])


@given(content=st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_no_line_ends_the_reading(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    path.write_bytes(content)
    assert all(isinstance(each, Item | Unreadable) for each in read_items(path))


def test_memory_does_not_grow_with_the_number_of_lines(run: RunFolder, tmp_path: Path) -> None:
    pairs, peaks = training_pairs(run), []
    for copies in (10, 60):
        path = captured(tmp_path / f"{copies}.jsonl", pairs * copies)
        tracemalloc.start()
        watch([path], run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000


def test_the_command_prints_no_text_and_fails_only_on_request(run: RunFolder, tmp_path: Path) -> None:
    pairs = [(f"{SECRET}: {dialogue}", f"{text} #Pork7#") for dialogue, text in training_pairs(run)]
    captured(tmp_path / "a.jsonl", pairs)
    words = ("watch", str(tmp_path / "a.jsonl"), "--run", str(run.path))
    made = neuron_sum(*words)
    assert made.exit_code == 0, made.output
    assert "summaries with invented tags" in made.output
    assert "not measured: whether a summary is correct" in made.output
    assert SECRET not in made.output and "Pork7" not in made.output
    failed = neuron_sum(*words, "--fail", "--json")
    assert failed.exit_code == 17
    assert json.loads(failed.stdout)["drift"] == ["summaries with invented tags"]
    error = json.loads(failed.stderr.strip().splitlines()[-1])["error"]
    assert error["exit_code"] == 17 and "summaries with invented tags: 100.0 %" in error["message"]
    shown = json.loads(neuron_sum(*words, "--show", "2", "--json").stdout)["shown"]
    assert len(shown) == 2 and SECRET in shown[0]["dialogue"] and shown[0]["reasons"] == ["invented tags"]


def test_statistics_contain_no_text_and_equal_those_of_the_data(run: RunFolder, tmp_path: Path) -> None:
    path = run.weights / STATISTICS
    written = TextStatistics.model_validate_json(path.read_bytes())
    fields = " ".join(TextStatistics.model_fields)
    words = {word for dialogue, _ in training_pairs(run) for word in dialogue.split() if len(word) > 4}
    assert len(words) > 100 and not any(word in path.read_text() for word in words if word not in fields)
    captured(tmp_path / "a.jsonl", training_pairs(run))
    expected = watch([tmp_path / "a.jsonl"], run).as_dict()
    path.unlink()
    assert watch([tmp_path / "a.jsonl"], run).as_dict() == expected
    path.write_text(written.model_dump_json().replace('"dialogues"', '"dialogue"'))
    with pytest.raises(RunError, match="cannot be read"):
        watch([tmp_path / "a.jsonl"], run)


def test_statistics_of_a_decoder_only_model(micro_llama: Path, tmp_path: Path) -> None:
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.training.train import train

    run = train(load_recipe(str(micro_llama)), tmp_path / "run")
    watched = watch([captured(tmp_path / "a.jsonl", training_pairs(run))], run)
    assert {measure.name: measure.difference for measure in watched.measures[:2]} == {
        "tokens per dialogue": 0,
        "tokens per summary": 0,
    }


def test_the_tests_have_their_published_values() -> None:
    # Kolmogorov's table: 1.3581 at 5 %, 1.6276 at 1 %.
    assert ks_p_value(1.3581 / 50**0.5, 100, 100) == pytest.approx(0.05, abs=2e-4)
    assert ks_p_value(1.6276 / 50**0.5, 100, 100) == pytest.approx(0.01, abs=1e-4)
    assert ks_p_value(0.0, 10, 10) == 1.0
    # Fisher's tea tasting: 3 of 4 cups.
    assert fisher_p_value(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert fisher_p_value(4, 4, 0, 4) == pytest.approx(1 / 70)
    assert fisher_p_value(0, 5, 0, 7) == pytest.approx(1.0)
    assert fisher_p_value(1000, 100_000, 1000, 100_000) == pytest.approx(0.5, abs=0.02)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_the_distance_of_distributions(one: list[int], other: list[int]) -> None:
    expected = max(
        abs(sum(each <= value for each in one) / len(one) - sum(each <= value for each in other) / len(other))
        for value in range(10)
    )
    assert ks_distance(Counter(one), Counter(other)) == pytest.approx(expected)


def test_redaction_replaces_every_text(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "capture"
    folder.mkdir()
    forms = "".join(line(request, answer) for request, answer, _ in FORMS.values())
    secret = part(json.dumps({"inputs": f"{SECRET}: hi", "parameters": {"adapter": SECRET}}), encoding="BASE64")
    error = {"error": {"code": 422, "message": f"inputs: {SECRET}", "field": None}}
    (folder / "a.jsonl").write_text(
        forms + line(secret, part(json.dumps(error))) + f"{SECRET} is not JSON\n\n" + line(part(SECRET, TEXT), None)
    )
    (folder / "b.jsonl").write_text(f'{{"inputs": "{SECRET}"}}\n{{"inputs": "b"}}\n')
    (folder / "b.jsonl.out").write_text(f"{json.dumps([summary(SECRET)])}\n{json.dumps([summary('y')])}\n")
    before = [type(item) for path in find_files([folder]) for item in read_items(path)]
    (tmp_path / "hook.py").write_text(f"def redact(text):\n    return text.replace({SECRET!r}, '[NAME]')\n")
    monkeypatch.chdir(tmp_path)
    made = neuron_sum("watch", str(folder), "--run", str(run.path), "--redact", "hook:redact", "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["redacted"] == {"files": 3, "emptied_lines": 2}
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "b.jsonl", "b.jsonl.out"]
    for path in folder.iterdir():
        assert SECRET not in path.read_text()
        assert base64.b64encode(SECRET.encode()).decode()[:-2] not in path.read_text()
    after = [item for path in find_files([folder]) for item in read_items(path)]
    assert [type(item) for item in after if item != Unreadable(f"{folder}/a.jsonl:11", "a request without inputs")] == [
        kind for kind in before
    ]
    assert sum(isinstance(item, Item) and "[NAME]" in (item.dialogue or "") for item in after) == 3


@pytest.mark.parametrize(("body", "message"), [("1 / 0", "ZeroDivisionError"), ("None", "NoneType instead of str")])
def test_a_hook_that_fails_changes_no_file(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(line(part('{"inputs": "a"}'), None))
    content = path.read_text()
    (tmp_path / f"hook_{len(body)}.py").write_text(f"def redact(text):\n    return {body}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"a.jsonl:1.*{message}"):
        redact_files([path], load_hook(f"hook_{len(body)}:redact"))
    assert path.read_text() == content
    assert not list(tmp_path.glob(".*tmp*"))


@pytest.mark.parametrize("name", ["nowhere:redact", "json:nothing", "json", ":", "json:__doc__"])
def test_an_unknown_hook_is_an_error_before_anything_is_read(name: str) -> None:
    with pytest.raises(RecipeError, match="--redact"):
        load_hook(name)
