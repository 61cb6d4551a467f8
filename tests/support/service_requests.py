"""Requests to a service: a dialogue, limits, and requests that are rejected under them."""

import json

from neuron_sum.recipes.schema import ServeConfig
from serving.schema import JSON, JSON_LINES, TEXT

LIMITS = ServeConfig(max_items=5, max_characters=5000, max_body_bytes=100_000)
DIALOGUE = "#Person1#: Are you coming tonight?\n#Person2#: Yes, at eight."
REFUSED: list[tuple[str, bytes, int, str | None]] = [
    (JSON, b"", 400, "inputs"),
    (JSON, b"{", 400, None),
    (JSON, b"\xff\xfe", 400, None),
    (JSON, b'{"inputs": NaN}', 400, None),
    (JSON, b"[" * 50_000, 400, None),
    (JSON, b"[]", 422, "body"),
    (JSON, b"{}", 422, "inputs"),
    (JSON, b'{"inputs": ""}', 422, "inputs"),
    (JSON, b'{"inputs": []}', 422, "inputs"),
    (JSON, b'{"inputs": 3}', 422, "inputs"),
    (JSON, b'{"inputs": "\\ud800"}', 422, "inputs"),
    (JSON, b'{"inputs": "a", "more": 1}', 422, "more"),
    (JSON, b'{"inputs": "a", "parameters": {"adapter": "x"}}', 404, "parameters.adapter"),
    (JSON, b'{"inputs": "a", "parameters": {"num_beams": 9}}', 422, "parameters.num_beams"),
    (JSON, b'{"inputs": "a", "parameters": {"num_beams": "2"}}', 422, "parameters.num_beams"),
    (JSON, b'{"inputs": "a", "parameters": {"max_new_tokens": 13}}', 422, "parameters.max_new_tokens"),
    (JSON, b'{"inputs": "a", "parameters": {"max_new_tokens": 0}}', 422, "parameters.max_new_tokens"),
    (JSON, b'{"inputs": "a", "parameters": {"max_new_tokens": 3, "min_new_tokens": 4}}', 422, "parameters"),
    (JSON, json.dumps({"inputs": "x" * 5001}).encode(), 422, "inputs"),
    (JSON, json.dumps({"inputs": ["x"] * 6}).encode(), 413, "inputs"),
    (JSON, json.dumps({"inputs": "a", "parameters": {"adapter": "a/b"}}).encode(), 422, "parameters.adapter"),
    (JSON, json.dumps({"inputs": "a", "parameters": {"adapter": "x" * 65}}).encode(), 422, "parameters.adapter"),
    (JSON, b" " * 100_001, 413, None),
    (JSON_LINES, b'{"inputs": "a"}\n' * 6, 413, "inputs"),
    (TEXT, b"  ", 400, None),
    (JSON, b'{"model": "m", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 9}', 422, "inputs"),
    (JSON, b'{"inputs": "a", "parameters": {"temperature": 0.5}}', 422, "parameters.temperature"),
    (TEXT, b'{"text_inputs": "a"}', 415, "Content-Type"),
    ("text/csv", b"a,b", 415, "Content-Type"),
    ("image/png", b"a", 415, "Content-Type"),
    ("application/json; charset=latin-1", b"{}", 415, "Content-Type"),
]
"""(content type, body, status, field) under LIMITS; tests/server/test_serving.py sends the same to a real server."""
