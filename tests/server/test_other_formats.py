"""Requests that other clients send: each is answered with the correct request, which has their text and parameters."""

import json
import re
from typing import Any

import pytest
from service_requests import DIALOGUE, LIMITS

from neuron_sum.recipes.schema import ServeConfig
from serving.other_formats import MAX_SHOWN, correct_request
from serving.parsing import check_media_type, parse
from serving.schema import JSON, JSON_LINES, TEXT, Parameters, ServiceError

SAID = "#Person1#: Hi."
TWO = [SAID, "#Person2#: Bye."]
CHAT = [{"role": "system", "content": "Summarize."}, {"role": "user", "content": SAID}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": SAID}]}]
TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Bye."}]

OTHERS: list[tuple[str, Any, int, Any, dict[str, Any]]] = [
    # Hugging Face
    (JSON, {"inputs": SAID, "parameters": {"max_length": 60, "do_sample": False}}, 422, SAID, {"max_new_tokens": 60}),
    (JSON, {"inputs": TWO, "parameters": {"min_length": 5}}, 422, [*TWO, "…"], {}),
    (JSON, {"inputs": SAID, "options": {"wait_for_model": True}}, 422, SAID, {}),
    (JSON, {"inputs": {"text": SAID}}, 422, SAID, {}),
    (JSON, {"inputs": {"past_user_inputs": ["a"], "generated_responses": ["b"], "text": SAID}}, 422, SAID, {}),
    (JSON, {"inputs": SAID, "parameters": None}, 422, SAID, {}),
    (JSON, [{"inputs": SAID}], 422, SAID, {}),
    (JSON, SAID, 422, SAID, {}),
    (JSON, TWO, 422, [*TWO, "…"], {}),
    # TGI
    (JSON, {"inputs": SAID, "parameters": {"max_new_tokens": 20, "details": True}}, 422, SAID, {"max_new_tokens": 20}),
    (JSON, {"inputs": SAID, "stream": True}, 422, SAID, {}),
    (JSON, {"inputs": SAID, "parameters": {"max_new_tokens": 20, "temperature": 0.7}},
     422, SAID, {"max_new_tokens": 20}),
    # JumpStart
    (JSON, {"text_inputs": SAID, "max_length": 50, "num_beams": 2, "top_k": 5},
     422, SAID, {"max_new_tokens": 50, "num_beams": 2}),
    (JSON, {"text_inputs": TWO}, 422, [*TWO, "…"], {}),
    # OpenAI
    (JSON, {"model": "m", "messages": CHAT, "max_tokens": 64, "temperature": 0}, 422, SAID, {"max_new_tokens": 64}),
    (JSON, {"messages": PARTS, "max_completion_tokens": 9}, 422, SAID, {"max_new_tokens": 9}),
    (JSON, {"messages": TURNS}, 422, "user: Hi.\nassistant: Bye.", {}),
    (JSON, {"messages": []}, 422, "text", {}),
    (JSON, {"messages": [{"role": "user", "content": None}]}, 422, "text", {}),
    (JSON, {"model": "m", "prompt": SAID, "max_tokens": 16, "stop": ["\n"]}, 422, SAID, {"max_new_tokens": 16}),
    (JSON, {"prompt": TWO}, 422, [*TWO, "…"], {}),
    (JSON, {"model": "m", "input": PARTS, "max_output_tokens": 16}, 422, SAID, {"max_new_tokens": 16}),
    # Bedrock, Anthropic, vLLM
    (JSON, {"prompt": SAID, "max_gen_len": 16}, 422, SAID, {"max_new_tokens": 16}),
    (JSON, {"inputText": SAID, "textGenerationConfig": {"maxTokenCount": 16, "topP": 1}},
     422, SAID, {"max_new_tokens": 16}),
    (JSON, {"messages": [{"role": "user", "content": [{"text": SAID}]}], "inferenceConfig": {"maxTokens": 7}},
     422, SAID, {"max_new_tokens": 7}),
    (JSON, {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 8, "messages": PARTS},
     422, SAID, {"max_new_tokens": 8}),
    (JSON, {"prompt": SAID, "sampling_params": {"max_tokens": 3}}, 422, SAID, {"max_new_tokens": 3}),
    # Gemini, Ollama, KServe, Triton, TensorFlow Serving, and any other
    (JSON, {"contents": [{"role": "user", "parts": [{"text": SAID}]}], "generationConfig": {"maxOutputTokens": 4}},
     422, SAID, {"max_new_tokens": 4}),
    (JSON, {"model": "m", "prompt": SAID, "stream": False, "options": {"num_predict": 5}},
     422, SAID, {"max_new_tokens": 5}),
    (JSON, {"instances": TWO}, 422, [*TWO, "…"], {}),
    (JSON, {"instances": [{"text": SAID}]}, 422, SAID, {}),
    (JSON, {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [SAID]}]}, 422, SAID, {}),
    (JSON, {"text_input": SAID, "max_tokens": 5}, 422, SAID, {"max_new_tokens": 5}),
    (JSON, {"dialogue": SAID, "summary": ""}, 422, SAID, {}),
    (JSON, {"transcript": SAID, "id": "7"}, 422, SAID, {}),
    (JSON, {"inputs": 3}, 422, "text", {}),
    (JSON, {"inputs": SAID, "parameters": {"num_beams": "2", "max_new_tokens": 0}}, 422, SAID, {}),
    (JSON, {"inputs": SAID, **{f"k{n}": n for n in range(99)}}, 422, SAID, {}),
    (JSON, {"prompt": "x" * 900}, 422, "x" * (MAX_SHOWN - 1) + "…", {}),
    # Not JSON, or another content type
    (JSON, SAID.encode(), 400, SAID, {}),
    (JSON, b"{'inputs': 'Hi.'}", 400, "text", {}),
    (JSON, b'{"inputs": "Hi."', 400, "text", {}),
    ("text/csv", f'"{SAID}",7\n"b",8\n'.encode(), 415, SAID, {}),
    ("text/csv", b"", 415, "text", {}),
    ("application/x-www-form-urlencoded", b"inputs=Hi.", 415, "inputs=Hi.", {}),
    ("multipart/form-data; boundary=x", b"--x\r\n", 415, "--x\r\n", {}),
    ("application/x-npy", b"\x93NUMPY\x01\x00", 415, "text", {}),
    ("application/octet-stream", json.dumps({"inputs": SAID}).encode(), 415, SAID, {}),
    ("application/vnd.api+json", json.dumps({"prompt": SAID, "max_tokens": 2}).encode(),
     415, SAID, {"max_new_tokens": 2}),
    (TEXT, {"inputs": SAID}, 415, SAID, {}),
    (TEXT, {"messages": CHAT}, 415, SAID, {}),
    (JSON, json.dumps({"prompt": SAID}).encode() + b"\n" + json.dumps({"prompt": "b"}).encode(), 400, SAID, {}),
]  # fmt: skip
"""(content type, body, status, inputs and parameters of the correct request)."""


def refusal(content_type: str, body: Any, limits: ServeConfig = LIMITS) -> ServiceError:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ServiceError) as caught:
        kind = check_media_type(content_type, content, limits)
        for item in parse(content, kind, limits):
            if item.error is not None:
                raise item.error
    return caught.value


def suggestion(message: str) -> tuple[dict[str, Any], str]:
    start = message.index("Send {") + len("Send ")
    body, length = json.JSONDecoder().raw_decode(message[start:])
    kind = re.match(r" with Content-Type ([a-z/]+)", message[start + length :])
    assert kind is not None
    return body, kind[1]


@pytest.mark.parametrize(("content_type", "body", "code", "inputs", "parameters"), OTHERS)
def test_the_correct_request_is_shown(
    content_type: str, body: Any, code: int, inputs: Any, parameters: dict[str, Any]
) -> None:
    error = refusal(content_type, body)
    assert error.code == code
    shown, kind = suggestion(error.message)
    assert (shown["inputs"], shown.get("parameters", {})) == (inputs, parameters)
    items = parse(json.dumps(shown).encode(), kind, LIMITS)
    assert all(item.error is None for item in items)
    assert all(name in error.message for name in Parameters.model_fields)
    assert len(error.message) < 1500


def test_parameters_without_a_counterpart_are_named() -> None:
    error = refusal(JSON, {"messages": CHAT, "temperature": 0.2, "top_p": 1, "stream": True})
    assert error.message.endswith("; without a counterpart: temperature, top_p, stream")


def test_lines_of_other_clients_are_refused_one_by_one() -> None:
    lines = [json.dumps(line) for line in ({"inputs": SAID}, {"prompt": "b", "max_tokens": 3}, "c", {"messages": CHAT})]
    lines.append("plain text")
    items = parse("\n".join(lines).encode(), JSON_LINES, LIMITS)
    assert [item.error.code if item.error else 200 for item in items] == [200, 422, 422, 422, 400]
    shown = [suggestion(item.error.message) for item in items if item.error]
    assert [body["inputs"] for body, _ in shown] == ["b", "c", SAID, "plain text"]
    assert {kind for _, kind in shown} == {JSON_LINES}
    assert all("(one object per line)" in item.error.message for item in items if item.error)


def test_a_dialogue_that_looks_like_json_is_a_text() -> None:
    for text in ("{laughs} Hi.", '{"a": 1}', '["inputs"]', DIALOGUE):
        assert parse(text.encode(), TEXT, LIMITS)[0].text == text


@pytest.mark.parametrize(
    "content",
    [
        {"prompt": "\ud800" * 200},
        {"x" * 100_000: 1},
        {"parameters": {f"{n}": n for n in range(9000)}},
        {"messages": [{"role": {"a": []}, "content": [[[["deep"]]]]}] * 3},
        {"messages": "x", "instances": {}, "inputs": [[], {}, None]},
        [[[[[[[[[["ten levels"]]]]]]]]]],
        {"inputs": {"inputs": {"inputs": {"inputs": 3}}}},
        {"max_tokens": 10**400, "prompt": ""},
        [None] * 9000,
        3,
        None,
    ],
)
@pytest.mark.parametrize("kind", [JSON, JSON_LINES])
def test_any_other_content_gives_a_short_valid_request(content: Any, kind: str) -> None:
    message = correct_request(content, kind)
    assert len(message.encode()) < 3000
    shown, _ = suggestion(message)
    assert all(item.error is None for item in parse(json.dumps(shown).encode(), kind, LIMITS))
