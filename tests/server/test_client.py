"""The client and `request` against a test server (far_end.py): order, retries, rejections, and kept answers.

test_transport.py tests the connections.
"""

import inspect
import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from far_end import BUSY, TOO_LONG, FarEnd, Held, capitals

from neuron_sum.errors import RequestError
from serving.client import Answer, Client
from serving.command import request

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


def test_answers_come_in_order_whatever_the_batches(far_end: FarEnd) -> None:
    dialogues = [f"dialogue {number}" for number in range(21)]
    done: list[int] = []
    far_end.script += ["late"]
    with Client(far_end.url, batch_size=4, concurrency=3) as client:
        answers = client.summarize(dialogues, {"num_beams": 2, "adapter": None}, done.append)
        assert client.summarize([]) == []
    assert [answer.summary_text for answer in answers] == [text.upper() for text in dialogues]
    assert (answers[0].truncated, answers[0].input_tokens, answers[0].output_tokens) == (False, 10, 3)
    assert sorted(map(len, far_end.sent)) == sorted(done) == [1, 4, 4, 4, 4, 4]
    assert all(path == "/invocations" and body["parameters"] == {"num_beams": 2} for path, body, _ in far_end.seen)


def test_a_single_text_is_rejected_as_a_list_of_texts(far_end: FarEnd) -> None:
    with Client(far_end.url) as client, pytest.raises(TypeError, match="must be a list"):
        client.summarize("Hello.")
    assert far_end.seen == []


def test_any_text_arrives_unchanged(far_end: FarEnd) -> None:
    dialogues = ['quote " and \\ and\nline', "naïve 日本 🙂", "half a pair \ud83d"]
    far_end.script += [(200, capitals(["a", "b", " "]), {})]  # no endpoint returns half of a surrogate pair
    with Client(far_end.url) as client:
        client.summarize(dialogues)
    assert far_end.sent == [dialogues]


def test_503_is_retried_after_retry_after(far_end: FarEnd) -> None:
    told: list[str] = []
    far_end.script += [(503, BUSY, {"Retry-After": "0.1"}), (503, BUSY, {})]
    with Client(far_end.url, backoff_s=0, on_retry=told.append) as client:
        assert client.summarize(["Hello."])[0].summary_text == "HELLO."
    assert [line.split("; ")[1] for line in told] == ["attempt 2 of 5 in 0.1 s", "attempt 3 of 5 in 0.0 s"]
    assert "9 items wait" in told[0]


def test_a_retry_after_of_an_hour_is_not_awaited(far_end: FarEnd) -> None:
    far_end.script += [(503, BUSY, {"Retry-After": "3600"})]
    with Client(far_end.url) as client, pytest.raises(RequestError, match="9 items wait") as caught:
        client.summarize(["Hello."])
    assert caught.value.hint == "send the request again after 3600 s"


def test_the_client_gives_up_after_the_last_attempt(far_end: FarEnd) -> None:
    far_end.script += [(503, BUSY, {})] * 9
    with Client(far_end.url, attempts=3, backoff_s=0) as client, pytest.raises(RequestError, match="answered 503"):
        client.summarize(["Hello."])
    assert len(far_end.seen) == 3


def test_dropped_connections_are_retried(far_end: FarEnd) -> None:
    far_end.script += ["drop", "drop"]
    with Client(far_end.url, backoff_s=0) as client:
        assert client.summarize(["Hello."])[0].summary_text == "HELLO."
    assert len(far_end.seen) == 3


def test_a_late_answer_is_an_error_and_not_retried(far_end: FarEnd) -> None:
    far_end.script += ["late"]
    with (
        Client(far_end.url, timeout_s=0.03) as client,
        pytest.raises(RequestError, match=r"not answered within 0\.03 s"),
    ):
        client.summarize(["Hello."])
    assert len(far_end.seen) == 1


def test_a_rejected_request_reports_the_message_of_the_endpoint(far_end: FarEnd) -> None:
    far_end.script += [(422, TOO_LONG, {})]
    with Client(far_end.url, concurrency=1, batch_size=1) as client, pytest.raises(RequestError) as caught:
        client.summarize(["Hello."], {"max_new_tokens": 99})
    assert caught.value.message.endswith(
        "answered 422: max_new_tokens is 99; compiled for at most 40 (field parameters.max_new_tokens)"
    )
    assert caught.value.hint is not None and "parameters" in caught.value.hint
    assert (caught.value.exit_code, len(far_end.seen)) == (12, 1)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, "no such page\n", "answered 404: no such page"),
        (413, "", "answered 413: "),
        (500, {"error": "other shape"}, "answered 500: "),
        (301, "", "answered 301: Moved Permanently"),
        (200, "<html>", "answered no summaries: <html>"),
        (200, [], "answered 0 of 1 dialogues"),
    ],
)
def test_other_servers_are_recognized(far_end: FarEnd, status: int, body: Any, message: str) -> None:
    far_end.script += [(status, body, {})]
    with Client(far_end.url) as client, pytest.raises(RequestError, match=message) as caught:
        client.summarize(["Hello."])
    assert caught.value.hint
    assert len(far_end.seen) == 1


def test_a_rejected_dialogue_keeps_its_place_and_the_others_are_answered(far_end: FarEnd) -> None:
    with Client(far_end.url, batch_size=2) as client:
        answers = client.summarize(["a", "b", "c", " ", "e"])
    assert [answer.summary_text for answer in answers] == ["A", "B", "C", "", "E"]
    assert answers[3].as_dict() == {"error": {"code": 422, "message": "inputs[3] holds no text", "field": "inputs[3]"}}


def test_only_the_busy_dialogues_of_a_request_are_sent_again(far_end: FarEnd) -> None:
    first = [capitals(["a"])[0], BUSY, capitals([" "])[0], BUSY]
    far_end.script += [(200, first, {}), (200, [BUSY, *capitals(["d"])], {})]
    with Client(far_end.url, attempts=2, backoff_s=0) as client:
        answers = client.summarize(["a", "b", " ", "d"])
    assert far_end.sent == [["a", "b", " ", "d"], ["b", "d"]]
    assert [answer.summary_text for answer in answers] == ["A", "", "", "D"]
    assert [answer.error and answer.error.code for answer in answers] == [None, 503, 422, None]
    assert [answer.answered for answer in answers] == [True, False, True, True]


def test_nothing_is_sent_after_a_rejection(far_end: FarEnd) -> None:
    far_end.script += [(422, TOO_LONG, {})]
    with Client(far_end.url, batch_size=1, concurrency=1) as client, pytest.raises(RequestError, match="answered 422"):
        client.summarize([str(number) for number in range(50)])
    assert len(far_end.seen) == 1


@pytest.mark.parametrize(
    ("steps", "code", "message"),
    [
        ([(503, BUSY, {})] * 2, 503, "answered 503: 9 items wait"),
        ([(503, BUSY, {"Retry-After": "3600"})], 503, "answered 503: 9 items wait"),
        (["drop"] * 2, 503, "no answer from"),
        (["gone"], 503, "no answer from"),
        ([Held(threading.Event())], 504, "not answered within 0.5 s"),
        ([(404, "no such adapter", {})], 404, "answered 404: no such adapter"),
        ([(200, "<html>", {})], 502, "answered no summaries"),
    ],
    ids=["busy", "busy for an hour", "dropped", "gone", "late", "refused", "another server"],
)
def test_answers_before_a_failure_are_kept(far_end: FarEnd, steps: list[Any], code: int, message: str) -> None:
    far_end.script += [None, None, *steps]
    done: list[int] = []
    with Client(far_end.url, batch_size=2, concurrency=1, attempts=2, backoff_s=0, timeout_s=0.5) as client:
        answers = client.summarize(["a", " ", "c", "d", "e", "f", "g"], on_answers=done.append)
    assert [answer.summary_text for answer in answers] == ["A", "", "C", "D", "", "", ""]
    assert [answer.answered for answer in answers] == [True] * 4 + [False] * 3
    assert [answer.error and answer.error.code for answer in answers] == [None, 422, None, None, code, code, code]
    assert all(answer.error is not None and message in answer.error.message for answer in answers[4:])
    assert sum(done) == 4
    assert len(far_end.seen) == 2 + len(steps), "something was sent after the failure"
    for step in steps:
        if isinstance(step, Held):
            step.until.set()


def test_answers_of_running_requests_are_collected_after_a_failure(far_end: FarEnd) -> None:
    failed = threading.Event()
    far_end.script += [Held(failed), (422, TOO_LONG, {})]
    with Client(far_end.url, batch_size=1, concurrency=2) as client:
        answers = client.summarize(["a", "b", "c", "d"], on_answers=lambda _: failed.set())
    assert len(far_end.seen) == 2
    answered = [answer for answer in answers if answer.answered]
    assert answered in ([Answer("A", False, 1, 3, 1.0)], [Answer("B", False, 1, 3, 1.0)])
    assert [answer.error.code for answer in answers if answer.error is not None] == [422, 422, 422]


def test_waiting_retries_are_abandoned_after_a_failure(far_end: FarEnd) -> None:
    waits = threading.Event()
    far_end.script += [(503, BUSY, {"Retry-After": "100"}), None, Held(waits, (422, TOO_LONG, {}))]
    with Client(far_end.url, batch_size=1, concurrency=2, on_retry=lambda _: waits.set()) as client:
        answers = client.summarize(["a", "b", "c"])
    assert len(far_end.seen) == 3
    assert sum(answer.answered for answer in answers) == 1
    assert [answer.error.code for answer in answers if answer.error is not None] == [422, 422]


def test_no_retry_is_announced_after_a_failure(far_end: FarEnd) -> None:
    failed = threading.Event()
    told: list[str] = []
    far_end.script += [Held(failed, (503, BUSY, {})), (422, TOO_LONG, {})]
    with (
        Client(far_end.url, batch_size=1, concurrency=2, on_retry=told.append) as client,
        pytest.raises(RequestError, match="answered 422"),
    ):
        client.summarize(["a", "b"], on_answers=lambda _: failed.set())
    assert (told, len(far_end.seen)) == ([], 2)


def test_answers_of_a_request_that_finally_fails_are_kept(far_end: FarEnd) -> None:
    far_end.script += [(200, [*capitals(["a"]), BUSY], {}), (503, BUSY, {})]
    with Client(far_end.url, attempts=2, backoff_s=0) as client:
        first, second = client.summarize(["a", "b"])
    assert (first.summary_text, second.answered) == ("A", False)
    assert second.error is not None and second.error.message.endswith("answered 503: 9 items wait")


def test_the_command_and_the_client_have_the_same_defaults() -> None:
    command, client = inspect.signature(request).parameters, inspect.signature(Client.__init__).parameters
    for name in ("batch_size", "concurrency", "target_model"):
        assert command[name].default == client[name].default


def test_a_dialogue_from_standard_input(neuron_sum: CommandLine, far_end: FarEnd) -> None:
    made = neuron_sum("request", far_end.url, "--adapter", "b", stdin="a dialogue of many :smile: words\n")
    assert (made.returncode, made.stdout) == (0, "A DIALOGUE OF MANY :SMILE: WORDS\n")
    assert made.stderr == "warning: the dialogue was cut at the end to fit the longest compiled input\n"
    assert far_end.seen[0][1] == {"inputs": ["a dialogue of many :smile: words"], "parameters": {"adapter": "b"}}
    machine = neuron_sum("request", far_end.url, "--json", stdin="Hello.")
    assert json.loads(machine.stdout) == {
        "summary_text": "HELLO.",
        "truncated": False,
        "coverage": 1.0,
        "input_tokens": 6,
        "output_tokens": 3,
    }


def test_the_findings_of_an_answer_are_printed(neuron_sum: CommandLine, far_end: FarEnd) -> None:
    check = {"kind": "name", "text": "Anna", "start": 0, "end": 4, "message": "the name does not occur in the dialogue"}
    answer = {
        "summary_text": "Anna.",
        "truncated": False,
        "coverage": 1.0,
        "input_tokens": 6,
        "output_tokens": 3,
        "checks": [check],
    }
    far_end.script += [(200, [answer], {})] * 2
    made = neuron_sum("request", far_end.url, "--checks", stdin="Hello.")
    assert (made.returncode, made.stdout) == (0, "Anna.\nAnna: the name does not occur in the dialogue\n")
    assert far_end.seen[0][1]["parameters"] == {"checks": True}
    machine = neuron_sum("request", far_end.url, "--checks", "--json", stdin="Hello.")
    assert json.loads(machine.stdout) == answer


def test_many_dialogues_from_a_file(neuron_sum: CommandLine, far_end: FarEnd, tmp_path: Path) -> None:
    rows = [{"inputs": "one"}, {"dialogue": "two", "summary": "of a data set"}, {"inputs": " "}]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = neuron_sum("request", far_end.url, "many.jsonl", "--batch-size", "1")
    assert made.returncode == 12
    lines = [json.loads(line) for line in made.stdout.splitlines()]
    assert [line.get("summary_text") for line in lines] == ["ONE", "TWO", None]
    assert "1 of 3 dialogues were refused; the first: inputs[2] holds no text" in made.stderr
    written = neuron_sum("request", far_end.url, "many.jsonl", "--output", "answers.jsonl", "--json")
    assert json.loads(written.stdout) == {
        "dialogues": 3,
        "truncated": 0,
        "refused": 1,
        "unanswered": 0,
        "output": "answers.jsonl",
    }
    assert [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == lines


def test_answers_before_a_failure_are_written(neuron_sum: CommandLine, far_end: FarEnd, tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"inputs": text}) + "\n" for text in ("a", " ", "c", "d")))
    far_end.script += [None, None, (503, BUSY, {"Retry-After": "3600"})]
    single = ("--batch-size", "1", "--concurrency", "1", "--output", "answers.jsonl")
    made = neuron_sum("request", far_end.url, "many.jsonl", *single, "--json")
    assert made.returncode == 12
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line.get("summary_text") for line in lines] == ["A", None, None, None]
    assert [line["error"]["code"] for line in lines[1:]] == [422, 503, 503]
    told = json.loads(made.stdout)
    assert (told["dialogues"], told["refused"], told["unanswered"]) == (4, 1, 2)
    error = json.loads(made.stderr)["error"]
    assert error["message"] == (
        f"2 of 4 dialogues were not answered; the first: {far_end.url} answered 503: 9 items wait; "
        "1 of 4 dialogues were refused; the first: inputs[1] holds no text"
    )
    assert "into a .jsonl" in error["hint"] and "--batch-size" in error["hint"]


def test_a_single_dialogue_without_an_answer_is_an_error(
    far_end: FarEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.txt").write_text("Hello.")
    monkeypatch.setitem(Client.__init__.__kwdefaults__, "attempts", 1)
    far_end.script += [(200, [BUSY], {}), (200, capitals([" "]), {})]
    with pytest.raises(RequestError, match="did not answer: 9 items wait") as caught:
        request(far_end.url, tmp_path / "one.txt")
    assert "again later" in (caught.value.hint or "")
    with pytest.raises(RequestError, match=r"refused the dialogue: inputs\[0\] holds no text"):
        request(far_end.url, tmp_path / "one.txt")


def test_input_without_a_dialogue_is_not_sent(neuron_sum: CommandLine, far_end: FarEnd, tmp_path: Path) -> None:
    assert neuron_sum("request", far_end.url, stdin=" \n").returncode == 4
    (tmp_path / "bad.jsonl").write_text('{"inputs": 3}\n\n[\n{"inputs": "a", "parameters": {}}\n')
    made = neuron_sum("request", far_end.url, "bad.jsonl")
    assert made.returncode == 4
    assert all(part in made.stderr for part in ("line 1 has no text", "line 3 is not JSON", "line 4 has parameters"))
    assert far_end.seen == []
