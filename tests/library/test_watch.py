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

from neuron_sum.data.examples import invented_tags
from neuron_sum.data.sources import load_dataset
from neuron_sum.data.statistics import STATISTICS, DialogueStatistics, unknown_ids
from neuron_sum.errors import DataError, RecipeError, RunError
from neuron_sum.evaluation.api import evaluate
from neuron_sum.evaluation.predictions import Prediction
from neuron_sum.models.base import load_tokenizer
from neuron_sum.monitoring.drift import Measure, binomial_p_value, fisher_p_value, ks_distance, ks_p_value
from neuron_sum.monitoring.redaction import load_hook, redact_files
from neuron_sum.monitoring.requests import Found, Item, Unreadable, find_files, read_items
from neuron_sum.monitoring.watch import Watched, read_evaluated, watch
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
    """A run whose evaluation has the human summaries of the training data as predictions."""
    shutil.copytree(micro_run, tmp_path / "run")
    run = open_run(tmp_path / "run")
    evaluated(run, [text for _, text in training_pairs(run)])
    return run


def evaluated(run: RunFolder, summaries: Sequence[str], faithful: float = 100.0) -> None:
    folder = run.path / "evaluation" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{Prediction(str(number), text).to_json()}\n" for number, text in enumerate(summaries)]
    (folder / "predictions.jsonl").write_text("".join(lines))
    metrics = {"examples": len(summaries), "speaker_tags": {"faithful_percent": faithful}}
    (folder / "metrics.json").write_text(json.dumps(metrics))


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
        "dialogues with unknown tokens": lambda dialogue, text: (dialogue + " ☃", text),
        "summaries with invented tags": lambda dialogue, text: (dialogue, text + " #Pork7#"),
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


def test_long_dialogues_are_counted_although_the_endpoint_summarized_them_in_pieces(
    run: RunFolder, tmp_path: Path
) -> None:
    lines = [
        line(part(json.dumps({"inputs": dialogue * (9 if number < 16 else 1)})), part(json.dumps([summary(text)])))
        for number, (dialogue, text) in enumerate(training_pairs(run))
    ]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    data = run.recipe.data.model_copy(update={"long": "merge"})
    merging = replace(run, recipe=run.recipe.model_copy(update={"data": data}))
    counts = [measure(watch([tmp_path / "a.jsonl"], each), "dialogues truncated").requests for each in (run, merging)]
    assert counts == [0, 0.25]


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


def test_a_request_that_is_rejected_because_of_its_form_counts_as_rejected(run: RunFolder, tmp_path: Path) -> None:
    error, good = {"error": {"code": 422, "message": SECRET}}, json.dumps({"inputs": "a: hi"})
    whole = part(json.dumps(error))
    forms = [
        (part('{"text": "hi"}'), whole, [None]),
        (part("{"), whole, [None]),
        (part("x") | {"encoding": "BASE64", "data": "%%%"}, whole, [None]),
        (part('{"inputs": []}'), whole, [None]),
        (part('{"inputs": ["a", "b"]}'), whole, ["a", "b"]),
        (part(f"{good}\n{good}\n", LINES), part(f"{json.dumps(error)}\n", LINES), ["a: hi", "a: hi"]),
    ]
    for request, answer, dialogues in forms:
        (tmp_path / "a.jsonl").write_text(line(request, answer))
        location = f"{tmp_path}/a.jsonl:1"
        assert list(read_items(tmp_path / "a.jsonl")) == [Item(location, each, rejected=True) for each in dialogues]
    answers = "".join(f"{json.dumps(each)}\n" for each in (summary("x"), summary("y"), error, error))
    request = part(f'{good}\n{good}\n{{\n{{"inputs": ["a"]}}\n', LINES)
    (tmp_path / "a.jsonl").write_text(line(request, part(answers, LINES)))
    items = [each for each in read_items(tmp_path / "a.jsonl") if isinstance(each, Item)]
    assert [(each.dialogue, each.summary) for each in items] == [
        ("a: hi", "x"),
        ("a: hi", "y"),
        (None, None),
        ("a", None),
    ]
    (tmp_path / "b.jsonl").write_text(f"{good}\nno JSON\n")
    (tmp_path / "b.jsonl.out").write_text(f"{json.dumps(summary('x'))}\n{json.dumps(error)}\n")
    assert list(read_items(tmp_path / "b.jsonl"))[1] == Item(f"{tmp_path}/b.jsonl:2", rejected=True)
    captured(tmp_path / "a.jsonl", training_pairs(run))
    with (tmp_path / "a.jsonl").open("a") as output:
        output.write(line(part('{"text": "hi"}'), whole) * 16)
    watched = watch([tmp_path / "a.jsonl"], run)
    assert (measure(watched, "dialogues rejected").requests, watched.unreadable.total()) == (0.2, 0)
    assert verdicts(watched)["dialogues rejected"] == "drift"


def test_a_few_rejections_are_undecided_and_many_unreadable_lines_are_drift(run: RunFolder, tmp_path: Path) -> None:
    path = captured(tmp_path / "a.jsonl", training_pairs(run)[:9])
    with path.open("a") as output:
        output.write(line(part('{"inputs": "a: hi"}'), part('{"error": {"code": 413}}')))
    watched = watch([path], run)
    assert verdicts(watched)["dialogues rejected"] == "undecided"
    assert verdicts(watched)["lines not readable"] == "same"
    with path.open("a") as output:
        output.write("{\n" * 30)
    unreadable = measure(watch([path], run), "lines not readable")
    assert (unreadable.requests, unreadable.verdict) == (0.75, "drift")


def test_answers_are_compared_with_those_of_the_evaluation(run: RunFolder, tmp_path: Path) -> None:
    """A model that differs from the human summaries, as it did in its evaluation, does not drift."""
    short = [(dialogue, text[:9] + " #Pork7#") for dialogue, text in training_pairs(run)]
    path = captured(tmp_path / "a.jsonl", short)
    assert {"tokens per summary", "summaries with invented tags"} == {m.name for m in watch([path], run).drifted}
    evaluated(run, [text for _, text in short], faithful=0.0)
    found = watch([path], run)
    assert set(verdicts(found).values()) == {"same"}
    assert found.as_dict()["measures"][3]["compared_with"] == "evaluation"
    with (run.path / "evaluation/test/predictions.jsonl").open("a") as output:
        output.write(Prediction("x", "y").to_json() + "\n")
    with pytest.raises(RunError, match="has 65 predictions and metrics of 64"):
        watch([path], run)
    shutil.rmtree(run.path / "evaluation")
    found = watch([path], run)
    assert not found.drifted
    for name in ("tokens per summary", "summaries with invented tags"):
        assert verdicts(found)[name] == "not measured"
    made = neuron_sum("watch", str(path), "--run", str(run.path))
    assert "answers are not compared: run `neuron-sum evaluate" in " ".join(made.output.split())


def test_the_predictions_of_an_evaluation_are_the_baseline(micro_run: Path, tmp_path: Path) -> None:
    shutil.copytree(micro_run, tmp_path / "run")
    run = open_run(tmp_path / "run")
    metrics = evaluate(run).comparison.evaluations[0].metrics
    answers = read_evaluated(run, load_tokenizer(ModelConfig(name_or_path=str(run.weights))))
    assert answers is not None
    assert answers.tokens.total() == answers.paired == metrics["examples"]
    assert answers.invented == sum(
        bool(entry["summaries"])
        and bool(invented_tags(next(iter(entry["summaries"].values()))["text"], entry["dialogue"]))
        for entry in map(json.loads, (run.path / "evaluation/test/summaries.jsonl").read_text().splitlines())
    )


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
    assert find_files([tmp_path]) == Found([tmp_path / "a.jsonl"], [])
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
    "a line without inputs": line(part('{"inputs": [1]}', LINES), None),
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
    assert {name for name, verdict in verdicts(watched).items() if verdict != "same"} == {"lines not readable"}


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


def test_statistics_contain_no_text(run: RunFolder, tmp_path: Path) -> None:
    path = run.weights / STATISTICS
    written = DialogueStatistics.model_validate_json(path.read_bytes())
    fields = " ".join(DialogueStatistics.model_fields)
    words = {word for dialogue, _ in training_pairs(run) for word in dialogue.split() if len(word) > 4}
    assert len(words) > 100 and not any(word in path.read_text() for word in words if word not in fields)
    captured(tmp_path / "a.jsonl", training_pairs(run))
    path.write_text(written.model_dump_json().replace('"dialogues"', '"dialogue"'))
    with pytest.raises(RunError, match="cannot be read"):
        watch([tmp_path / "a.jsonl"], run)
    path.unlink()
    with pytest.raises(RunError, match="does not exist") as raised:
        watch([tmp_path / "a.jsonl"], run)
    assert "neuron-sum train" in str(raised.value.hint)


def test_statistics_of_a_decoder_only_model(micro_llama: Path, tmp_path: Path) -> None:
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.training.train import train

    run = train(load_recipe(str(micro_llama)), tmp_path / "run")
    watched = watch([captured(tmp_path / "a.jsonl", training_pairs(run))], run)
    lengths = measure(watched, "tokens per dialogue")
    assert (lengths.count, lengths.difference) == (64, 0)


def test_the_tests_have_their_published_values() -> None:
    # Kolmogorov's table: 1.3581 at 5 %, 1.6276 at 1 %.
    assert ks_p_value(1.3581 / 50**0.5, 100, 100) == pytest.approx(0.05, abs=2e-4)
    assert ks_p_value(1.6276 / 50**0.5, 100, 100) == pytest.approx(0.01, abs=1e-4)
    assert ks_p_value(0.0, 10, 10) == 1.0
    # Fisher's tea tasting: 3 of 4 cups.
    assert fisher_p_value(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert fisher_p_value(4, 4, 0, 4) == pytest.approx(1 / 70)
    assert fisher_p_value(0, 5, 0, 7) == pytest.approx(1.0)
    # 9 or 10 heads of 10 coins.
    assert binomial_p_value(9, 10, 0.5) == pytest.approx(11 / 1024)
    assert binomial_p_value(0, 10, 0.05) == pytest.approx(1.0)
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
    deep = f'{"[" * 600}"{SECRET}"{"]" * 600}'
    (folder / "c.jsonl").write_text(f"{deep}\n{line(part(deep), None)}")
    (tmp_path / "target").write_text(line(part(SECRET, TEXT), None))
    (folder / "d.jsonl").symlink_to(tmp_path / "target")
    before = [type(item) for path in find_files([folder]).captured for item in read_items(path)]
    (tmp_path / "hook.py").write_text(f"def redact(text):\n    return text.replace({SECRET!r}, '[NAME]')\n")
    monkeypatch.chdir(tmp_path)
    made = neuron_sum("watch", str(folder), "--run", str(run.path), "--redact", "hook:redact", "--json")
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["redacted"] == {"files": 5, "emptied_lines": 3}
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "b.jsonl", "b.jsonl.out", "c.jsonl", "d.jsonl"]
    assert (folder / "d.jsonl").is_symlink()
    for path in folder.iterdir():
        assert SECRET not in path.read_text()
        assert base64.b64encode(SECRET.encode()).decode()[:-2] not in path.read_text()
    after = [item for path in find_files([folder]).captured for item in read_items(path)]
    assert [type(item) for item in after] == before
    assert sum(isinstance(item, Item) and "[NAME]" in (item.dialogue or "") for item in after) == 4


@pytest.mark.parametrize(("body", "message"), [("1 / 0", "ZeroDivisionError"), ("None", "NoneType instead of str")])
def test_a_hook_that_fails_changes_no_file(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        path.write_text(line(part(json.dumps({"inputs": path.stem})), None))
    content = [path.read_text() for path in paths]
    code = f"def redact(text):\n    return {body} if text == 'b' else text\n"
    (tmp_path / f"hook_{len(body)}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"b.jsonl:1.*{message}"):
        redact_files(paths, load_hook(f"hook_{len(body)}:redact"))
    assert [path.read_text() for path in paths] == content
    assert not list(tmp_path.glob(".*tmp*"))


def test_a_file_with_another_name_is_not_redacted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line(part(SECRET, TEXT), None))
    (tmp_path / "copy").hardlink_to(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="hard link"):
        redact_files([tmp_path / "a.jsonl"], str.lower)


def test_files_that_are_not_read_are_named_and_not_left_by_a_redaction(run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "capture"
    folder.mkdir()
    captured(folder / "a.jsonl", training_pairs(run))
    for name in ("c.jsonl.out", "d.jsonl.gz"):
        (folder / name).write_text(SECRET)
    words = ("watch", str(folder), "--run", str(run.path), "--json")
    made = neuron_sum(*words)
    assert (made.exit_code, json.loads(made.stdout)["other_files"]) == (0, 2)
    refused = neuron_sum(*words, "--redact", "builtins:ascii")
    assert refused.exit_code == 4
    assert "2 other files" in refused.stderr and "c.jsonl.out" in refused.stderr
    assert "would not be redacted" in refused.stderr


def test_files_that_cannot_be_compared_are_redacted(run: RunFolder, tmp_path: Path) -> None:
    """Such as chat completions, which `watch` does not read."""
    words = ("watch", str(tmp_path / "a.jsonl"), "--run", str(run.path), "--redact", "urllib.parse:quote_plus")
    (tmp_path / "a.jsonl").write_text(line(part(json.dumps({"messages": [f"{SECRET} and"]})), None))
    made = neuron_sum(*words)
    assert made.exit_code == 4
    assert "redacted: 1 files replaced" in made.stderr and "no line of" in made.stderr
    assert f"{SECRET}+and" in (tmp_path / "a.jsonl").read_text()


@pytest.mark.parametrize("name", ["nowhere:redact", "json:nothing", "json", ":", "json:__doc__"])
def test_an_unknown_hook_is_an_error_before_anything_is_read(name: str) -> None:
    with pytest.raises(RecipeError, match="--redact"):
        load_hook(name)
