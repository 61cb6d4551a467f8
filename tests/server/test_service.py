"""Requests, the batching queue and the service with real graphs, without a server."""

import asyncio
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from service_requests import DIALOGUE, LIMITS, REFUSED

from neuron_sum.artifact import Artifact
from neuron_sum.errors import RecipeError
from neuron_sum.evaluation.generate import summarize_all
from neuron_sum.prompts import Prompt
from neuron_sum.recipes.schema import ServeConfig
from neuron_sum.runtimes.generation import StepGenerator
from neuron_sum.runtimes.rolling import RollingBatch
from serving import properties
from serving.parsing import parse
from serving.schema import (
    DEFECT,
    JSON,
    JSON_LINES,
    TEXT,
    Parameters,
    ServiceError,
    answer_type,
    media_type,
    openapi,
    wants_events,
)
from serving.service import HANG_EXIT_CODE, HANG_FACTOR, Answer, Service
from serving.worker import Worker


@pytest.mark.parametrize("text", ["x", "\ufdfa", "\n"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_characters_of_a_request_are_limited_in_every_form(text: str, ascii_only: bool) -> None:
    limits = LIMITS.model_copy(update={"max_request_characters": 12_000})

    def body(size: int) -> bytes:
        return json.dumps({"inputs": [text * size] * 2}, ensure_ascii=ascii_only).encode()

    with pytest.raises(ServiceError) as refused:
        parse(body(6200), JSON, limits)
    assert (refused.value.code, refused.value.field) == (413, "inputs")
    if text != "\n":  # JSON writes two characters for it
        assert len(parse(body(4900), JSON, limits)) == 2


@pytest.fixture(scope="module")
def ask(lora_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Answer]:
    service = Service.load(lora_artifact.path, LIMITS, tmp_path_factory.mktemp("state") / "adapters")

    def answer(
        body: Any, content_type: str | None = JSON, accept: str | None = None, adapter: str | None = None
    ) -> Any:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return asyncio.run(service.answer(raw, content_type, accept, adapter, "test"))

    answer.service = service  # type: ignore[attr-defined]
    return answer


@pytest.mark.parametrize(("content_type", "body", "code", "field"), REFUSED)
def test_rejected_requests_name_the_field(
    ask: Callable[..., Answer], content_type: str, body: bytes, code: int, field: str | None
) -> None:
    with pytest.raises(ServiceError) as refused:
        ask(body, content_type)
    assert (refused.value.code, refused.value.field) == (code, field)


def test_a_single_text_and_a_list_are_answered_in_order(ask: Callable[..., Answer]) -> None:
    one = json.loads(ask({"inputs": DIALOGUE}).body)
    assert one[0].keys() == {"summary_text", "truncated", "coverage", "input_tokens", "output_tokens"}
    many = json.loads(ask({"inputs": [DIALOGUE, "", DIALOGUE * 60]}).body)
    assert many[0] == one[0]
    assert many[1]["error"] == {"code": 422, "message": "inputs[1] holds no text", "field": "inputs[1]"}
    assert many[2]["truncated"] and many[2]["input_tokens"] == 192
    assert one[0]["coverage"] == 1 and 0 < many[2]["coverage"] < 0.2


def with_data(service: Service, **settings: Any) -> Service:
    """A service of the same model whose recipe has other settings for long dialogues."""
    recipe = service._artifact.recipe
    changed = recipe.model_copy(update={"data": recipe.data.model_copy(update=settings)})
    generator, tokenizer, limits = service._generator, service._tokenizer, service._limits
    return Service(replace(service._artifact, recipe=changed), generator, tokenizer, limits, Path("none"))


def answer_of(service: Service, body: dict[str, Any]) -> Any:
    return json.loads(asyncio.run(service.answer(json.dumps(body).encode(), JSON, None, None, "test")).body)


def test_a_long_dialogue_is_summarized_in_pieces(ask: Callable[..., Answer]) -> None:
    service = with_data(ask.service, long="merge")  # type: ignore[attr-defined]
    long = "\n".join([DIALOGUE] * 60)
    [short], [whole] = (answer_of(service, {"inputs": text}) for text in (DIALOGUE, long))
    assert short == json.loads(ask({"inputs": DIALOGUE}).body)[0]
    assert (whole["truncated"], whole["coverage"]) == (False, 1)
    assert whole["input_tokens"] > 3 * 192 and whole["output_tokens"] <= 12
    many = answer_of(service, {"inputs": [DIALOGUE, "", long], "parameters": {"checks": True}})
    assert [many[0], many[2]] == [{**answer, "checks": many[at]["checks"]} for at, answer in ((0, short), (2, whole))]
    assert many[1]["error"]["code"] == 422
    generator, tokenizer, recipe = service._generator, service._tokenizer, service._artifact.recipe
    [expected] = summarize_all(generator, tokenizer, recipe, ["a"], [long], quiet=True)
    assert (whole["summary_text"], whole["input_tokens"]) == (expected.summary, expected.input_tokens)
    joined = with_data(ask.service, long="merge", merge_until=10_000)  # type: ignore[attr-defined]
    assert answer_of(joined, {"inputs": long})[0]["summary_text"].count("\n") >= 3


def events_of(service: Service, body: object) -> list[tuple[str, Any]]:
    """The names and contents of the server-sent events."""

    async def collect() -> list[tuple[str, bool]]:
        return [event async for event in service.stream(json.dumps(body).encode(), JSON, None, "test")]

    events = asyncio.run(collect())
    assert [last for _, last in events] == [False] * (len(events) - 1) + [True]
    found = [re.fullmatch(r"event: (\w+)\ndata: (.*)\n\n", text) for text, _ in events]
    return [(match[1], json.loads(match[2])) for match in found if match is not None]


def test_finished_pieces_are_events_before_the_answer(ask: Callable[..., Answer]) -> None:
    service = with_data(ask.service, long="merge")  # type: ignore[attr-defined]
    long = "\n".join([DIALOGUE] * 60)
    *pieces, last = events_of(service, {"inputs": [DIALOGUE, long]})
    assert last == ("answer", answer_of(service, {"inputs": [DIALOGUE, long]}))
    assert {(name, content["input"]) for name, content in pieces} == {("piece", 1)}
    by_round: dict[int, list[Any]] = {}
    for _, piece in pieces:
        by_round.setdefault(piece["round"], []).append(piece)
    assert list(by_round) == [*range(1, len(by_round) + 1)] and len(by_round) > 1
    for made in by_round.values():
        assert sorted(piece["piece"] for piece in made) == [*range(1, made[0]["pieces"] + 1)]
    assert by_round[len(by_round)][0]["summary_text"] == last[1][1]["summary_text"]
    assert events_of(service, {"inputs": DIALOGUE}) == [("answer", answer_of(service, {"inputs": DIALOGUE}))]
    with pytest.raises(ServiceError, match="inputs holds no text"):
        events_of(service, {"inputs": " "})


def test_an_error_after_the_first_piece_is_an_event(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = with_data(ask.service, long="merge")  # type: ignore[attr-defined]

    def late(self: object, summaries: object) -> None:
        raise service._late()

    monkeypatch.setattr("serving.service.Rounds.close", late)
    *pieces, last = events_of(service, {"inputs": "\n".join([DIALOGUE] * 60)})
    assert pieces and all(name == "piece" for name, _ in pieces)
    assert (last[0], last[1]["error"]["code"]) == ("error", 503)


def test_a_request_accepts_events_by_name() -> None:
    assert wants_events("text/html, Text/Event-Stream; q=1") and wants_events("text/event-stream")
    assert wants_events("text/event-stream, application/json")
    assert not any(map(wants_events, (None, "", "*/*", JSON, "application/json, text/event-stream")))
    assert not wants_events("application/x-ndjson, text/event-stream")


def test_a_failing_piece_is_the_error_of_its_dialogue(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = with_data(ask.service, long="merge")  # type: ignore[attr-defined]
    body = {"inputs": [DIALOGUE, "\n".join([DIALOGUE] * 60)], "parameters": {"adapter": "base"}}
    monkeypatch.setattr(service.adapters, "check", lambda name: None)
    answers = answer_of(service, {**body, "parameters": {"adapter": "gone"}})
    assert [answer["error"]["code"] for answer in answers] == [404, 404]
    assert all("summary_text" in answer for answer in answer_of(service, body))


def test_a_long_dialogue_can_be_refused(ask: Callable[..., Answer]) -> None:
    service = with_data(ask.service, long="refuse")  # type: ignore[attr-defined]
    good, bad = answer_of(service, {"inputs": [DIALOGUE, DIALOGUE * 60]})
    assert good == json.loads(ask({"inputs": DIALOGUE}).body)[0]
    assert (bad["error"]["code"], bad["error"]["field"]) == (422, "inputs[1]")
    assert re.match(
        r"inputs\[1\]: the dialogue has [\d,]+ tokens with the prompt; data.long=refuse allows 192; send a shorter",
        bad["error"]["message"],
    )
    with pytest.raises(ServiceError, match="inputs: the dialogue has"):
        answer_of(service, {"inputs": DIALOGUE * 60})


def test_every_content_type_is_answered_in_that_type(ask: Callable[..., Answer]) -> None:
    summary = json.loads(ask({"inputs": DIALOGUE}).body)[0]["summary_text"]
    text = ask(DIALOGUE.encode(), "text/plain; charset=UTF-8")
    assert (text.body, text.content_type) == (summary, "text/plain; charset=utf-8")
    assert json.loads(ask(DIALOGUE.encode(), TEXT, accept="application/json").body)[0]["summary_text"] == summary
    lines = ask(b'{"inputs": "a"}\n\nno\n{"inputs": ["a"]}\n', "application/x-ndjson").body.splitlines()
    assert ["error" in json.loads(line) for line in lines] == [False, True, True]
    assert json.loads(lines[1])["error"]["field"] == "line 3" or "line 3" in json.loads(lines[1])["error"]["message"]


def test_parameters_override_and_the_header_names_an_adapter(ask: Callable[..., Answer]) -> None:
    short = json.loads(ask({"inputs": DIALOGUE, "parameters": {"max_new_tokens": 2, "num_beams": 2}}).body)[0]
    assert short["output_tokens"] <= 2
    tuned = ask({"inputs": DIALOGUE}).body
    assert ask({"inputs": DIALOGUE}, adapter="default").body == tuned
    assert ask({"inputs": DIALOGUE}, adapter="base").body != tuned
    assert ask({"inputs": DIALOGUE, "parameters": {"adapter": "default"}}, adapter="base").body == tuned


def test_an_answer_lists_unsupported_facts_if_asked(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = {"inputs": DIALOGUE, "parameters": {"checks": True}}
    summary = json.loads(ask(checked).body)[0]
    assert isinstance(summary["checks"], list)
    service: Service = ask.service  # type: ignore[attr-defined]
    monkeypatch.setattr(service._tokenizer, "decode", lambda *_, **__: "🙂 #Person3# comes at nine with Anna.")
    found = json.loads(ask(checked).body)[0]["checks"]
    assert [(check["kind"], check["text"], check["start"]) for check in found] == [
        ("tag", "#Person3#", 2),
        ("number", "nine", 21),
        ("name", "Anna", 31),
    ]
    assert found[0]["message"] == "the dialogue has no such speaker"
    assert "checks" not in json.loads(ask({"inputs": DIALOGUE, "parameters": {"checks": False}}).body)[0]
    lines = ask((json.dumps(checked) + "\n").encode(), JSON_LINES).body
    assert json.loads(lines)["checks"] == found


def test_a_request_uses_an_adapter_that_another_worker_has_registered(
    lora_artifact: Artifact, micro_lora_run: Path, tmp_path: Path
) -> None:
    one, other = (Service.load(lora_artifact.path, LIMITS, tmp_path) for _ in range(2))
    body = json.dumps({"inputs": DIALOGUE, "parameters": {"adapter": "late"}}).encode()
    with pytest.raises(ServiceError, match="no adapter 'late'; existing: default"):
        asyncio.run(other.answer(body, JSON, None, None, "test"))
    asyncio.run(one.adapters.register("late", str(micro_lora_run / "adapter"), known=False))
    assert [asyncio.run(each.answer(body, JSON, None, None, "test")).body for each in (one, other)] == [
        asyncio.run(one.answer(body, JSON, None, "late", "test")).body
    ] * 2
    asyncio.run(other.adapters.unregister("late"))
    with pytest.raises(ServiceError, match="no adapter 'late'; existing: default"):
        asyncio.run(one.answer(body, JSON, None, None, "test"))


def test_the_media_type_of_a_request_and_of_its_answer() -> None:
    assert [media_type(header) for header in (None, "Application/JSON ; charset=utf-8", "application/jsonl")] == [
        JSON,
        JSON,
        JSON_LINES,
    ]
    assert answer_type("text/html, application/json;q=0.5", TEXT, 1) == JSON
    assert answer_type("text/plain", JSON, 2) == JSON
    assert answer_type("*/*", JSON_LINES, 3) == JSON_LINES


def test_concurrent_requests_get_the_summaries_that_they_get_alone(ask: Callable[..., Answer]) -> None:
    service: Service = ask.service  # type: ignore[attr-defined]
    bodies = [
        {
            "inputs": DIALOGUE * (1 + number % 4) + f" {number}",
            "parameters": {"num_beams": 1 + number % 2, "adapter": ("default", "base")[number // 2 % 2]},
        }
        for number in range(16)
    ]
    alone = [json.loads(ask(body).body) for body in bodies]

    async def together() -> list[Any]:
        raw = [json.dumps(body).encode() for body in bodies]
        return list(await asyncio.gather(*(service.answer(body, JSON, None, None, "test") for body in raw)))

    assert [json.loads(answer.body) for answer in asyncio.run(together())] == alone
    assert isinstance(service._generator, StepGenerator)
    rolling = service._batcher._rolling
    assert rolling is not None and rolling[1] is not None


@pytest.fixture
def held(lora_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service with a short deadline whose graphs do not end before the test does."""
    service = Service.load(lora_artifact.path, LIMITS.model_copy(update={"deadline_s": 0.3}), tmp_path / "adapters")
    go = threading.Event()
    monkeypatch.setattr(StepGenerator, "roll", lambda *_: None)
    monkeypatch.setattr(StepGenerator, "generate", lambda *_: go.wait(30) and [[1]])
    yield service
    go.set()


def test_a_late_request_is_rejected_and_a_hanging_one_ends_the_worker(
    held: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)

    def late() -> ServiceError:
        with pytest.raises(ServiceError) as refused:
            asyncio.run(held.answer(DIALOGUE.encode(), TEXT, None, None, "test"))
        return refused.value

    first = late()
    assert (first.code, first.retry_after_s) == (503, 1) and "0.3 s" in first.message
    assert not ended
    time.sleep(0.3 * HANG_FACTOR)
    late()
    assert ended and set(ended) == {HANG_EXIT_CODE}


def test_a_text_that_is_slow_to_tokenize_does_not_delay_others(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    go, encode = threading.Event(), Prompt.encode

    def slowly(self: Any, tokenizer: Any, texts: Sequence[str], length: int) -> Any:
        if texts == ["long"]:
            go.wait(30)
        return encode(self, tokenizer, texts, length)

    monkeypatch.setattr(Prompt, "encode", slowly)
    service: Service = ask.service  # type: ignore[attr-defined]

    async def both() -> None:
        long = asyncio.create_task(service.answer(b"long", TEXT, None, None, "long"))
        await asyncio.wait_for(service.answer(b"short", TEXT, None, None, "short"), 20)
        assert not long.done()
        go.set()
        await long

    asyncio.run(both())


def test_a_defect_has_a_status_and_does_not_affect_others(
    ask: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    join = RollingBatch.join

    def broken(self: RollingBatch, prompts: Sequence[Any], *others: Any) -> Any:
        if any(len(prompt) > 100 for prompt in prompts):
            raise RuntimeError("a kernel that fails")
        return join(self, prompts, *others)

    monkeypatch.setattr(RollingBatch, "join", broken)
    good, bad = json.loads(ask({"inputs": ["a", DIALOGUE * 60]}).body)
    assert good["output_tokens"] and bad["error"] == {"code": 500, "message": DEFECT, "field": None}
    monkeypatch.setattr(Prompt, "encode", None)
    with pytest.raises(ServiceError) as refused:
        ask({"inputs": "a"})
    assert refused.value.code == 500


def test_a_rejected_item_is_never_an_empty_text(ask: Callable[..., Answer]) -> None:
    for body, kind in ((b'{"inputs": [""]}', JSON), (b'{"inputs": ""}\n', JSON_LINES)):
        assert "error" in ask(body, kind).body
        with pytest.raises(ServiceError) as refused:
            ask(body, kind, accept=TEXT)
        assert refused.value.code == 422


def test_a_worker_detects_that_its_model_was_unloaded(tmp_path: Path) -> None:
    model, other = tmp_path / "model", tmp_path / "other"

    def starts(folder: Path, socket: str) -> bool:
        worker = Worker(folder, socket, tmp_path)
        wanted = worker.is_wanted()
        if wanted:
            worker.adapters.mkdir(exist_ok=True)
        return wanted

    assert starts(model, "1") and starts(other, "2")
    assert starts(model, "1"), "it died, and is started again"
    assert Worker(model, "1", tmp_path).adapters.exists()
    name = hashlib.sha256(str(model.resolve()).encode()).hexdigest()[:16]
    (tmp_path / f"neuron-sum-unloaded-{name}").touch()
    assert not Worker(model, "1", tmp_path).is_wanted(), "unloaded"
    assert not Worker(model, "1", tmp_path).adapters.exists()
    assert starts(model, "3"), "loaded again"
    (tmp_path / f"neuron-sum-unloaded-{name}").touch()
    assert starts(model, "4"), "unloaded and loaded again before the orphan started"
    assert not starts(model, "3")
    assert starts(model, "4") and starts(other, "2")


def test_all_workers_of_an_unloaded_model_are_detected(tmp_path: Path) -> None:
    def starts(socket: str) -> bool:
        return Worker(tmp_path / "model", socket, tmp_path).is_wanted()

    name = hashlib.sha256(str((tmp_path / "model").resolve()).encode()).hexdigest()[:16]
    assert starts("1") and starts("2") and starts("2")
    (tmp_path / f"neuron-sum-unloaded-{name}").touch()
    assert starts("3"), "loaded again"
    assert not starts("2") and not starts("1")
    assert starts("4") and starts("3")


def test_limits_are_passed_in_serving_properties(lora_artifact: Artifact, tmp_path: Path) -> None:
    limits = ServeConfig(deadline_s=7.5, log_text=True, queue_size=9)
    (tmp_path / "serving.properties").write_text(properties.render(lora_artifact, limits))
    read = properties.read(tmp_path / "serving.properties")
    assert properties.read_limits(read) == limits
    assert read["option.async_mode"] == "true" and read["option.enable_lora"] == "true"
    with pytest.raises(RecipeError, match="serve_deadline_s"):
        properties.read_limits({"option.serve_deadline_s": "soon"})


def test_the_openapi_document_describes_the_parsed_requests() -> None:
    document = openapi(LIMITS)
    assert document["components"]["schemas"]["Parameters"]["properties"].keys() == Parameters.model_fields.keys()
    responses = document["paths"]["/invocations"]["post"]["responses"]
    assert " ".join(responses) == "200 400 404 413 415 422 500 503"
    assert (
        parse(json.dumps({"inputs": "a", "parameters": {"num_beams": 2}}).encode(), JSON, LIMITS)[
            0
        ].parameters.num_beams
        == 2
    )
