"""Fuzzing of a real DJL Serving with thousands of requests generated from the OpenAPI document, and invalid ones.

    python benchmarks/serving_fuzz.py ARTIFACT [--requests 5000]

Prints the number of answers by status, whether a worker was lost, and the resident memory of the worker and of Java
after a fifth of the requests (warmed up) and after all of them. Exits with 1 if a status is not listed in
docs/serving.md, if an answer does not have the documented form (sections, checks, coverage), or if a worker was lost.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import psutil
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from neuron_sum import console
from neuron_sum.artifact import open_artifact
from neuron_sum.recipes.schema import ServeConfig
from neuron_sum.sections import Sections, parse_sections
from serving import djl, package
from serving.client import ANSWERS
from serving.local import LocalServer, Model
from serving.schema import EVENTS, JSON_LINES, TEXT, Summary, openapi

ALLOWED = {200, 400, 404, 413, 415, 422, 503}
KEYS = ["inputs", "parameters", "adapter", "num_beams", "max_new_tokens", "x"]
CONTENT_TYPES = st.sampled_from(
    ["application/json", "application/jsonlines", "text/plain", "multipart/form-data", "text/html", "x", ""]
)

ACCEPTED = st.sampled_from(["*/*", "application/json", "application/jsonlines", "text/event-stream", "x"])
TURNS = st.sampled_from(
    [
        "#Person1#: Hello, Anna.",
        "Anna: At 8 on Friday.",
        "[doctor] 20 mg.",
        "Topic: None",
        "Summary:",
        "</s>",
        "\u4e2d" * 90,
    ]
)
CONVERSATIONS = st.lists(TURNS | st.text(max_size=20), min_size=1, max_size=60).map("\n".join)
"""Dialogues, some of which are longer than a bucket, with headings and facts."""


def conforming(schema: dict[str, Any], document: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A strategy for the values that a schema of the OpenAPI document allows."""
    if "$ref" in schema:
        return conforming(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if "anyOf" in schema:
        return st.one_of([conforming(branch, document) for branch in schema["anyOf"]])
    low, high = schema.get("minimum"), schema.get("maximum")
    if schema["type"] == "object":
        fields = {name: conforming(value, document) for name, value in schema["properties"].items()}
        required = {name: fields.pop(name) for name in schema.get("required", [])}
        return st.fixed_dictionaries(required, optional=fields)
    simple: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
        "string": lambda: (
            st.from_regex(schema["pattern"]) if "pattern" in schema else st.text(max_size=schema.get("maxLength", 300))
        ),
        "integer": lambda: st.integers(low, high),
        "number": lambda: st.floats(low, high),
        "boolean": st.booleans,
        "null": st.none,
        "array": lambda: st.lists(conforming(schema["items"], document), max_size=7),
    }
    return simple[schema["type"]]()


def bodies(limits: ServeConfig) -> st.SearchStrategy[bytes]:
    """A strategy for valid requests, many of which are answered with a summary, arbitrary JSON, and bytes."""
    document = openapi(limits)
    anything = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    )
    described = conforming(document["components"]["schemas"]["Request"], document)
    parameters = {"checks": st.booleans(), "num_beams": st.integers(1, 2), "max_new_tokens": st.integers(1, 40)}
    answered = st.fixed_dictionaries(
        {"inputs": CONVERSATIONS | st.lists(CONVERSATIONS, max_size=3)},
        optional={"parameters": st.fixed_dictionaries({}, optional=parameters)},
    )
    return (answered | described | anything).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=200)


def faults(answer: httpx.Response, sections: Sections = ()) -> list[str]:
    """The differences of an answer from docs/serving.md.

    Args:
        answer: The answer to any request.
        sections: The sections of the model.
    """
    if answer.status_code not in ALLOWED:
        return [f"status {answer.status_code}"]
    if answer.status_code != 200:
        code = answer.json()["error"]["code"]
        return [] if code == answer.status_code else [f"status {answer.status_code} with the error {code}"]
    kind, body = answer.headers["content-type"].partition(";")[0], answer.text
    if kind == TEXT:
        return _section_faults(body, parse_sections(body, sections).texts, sections)
    if kind == EVENTS:
        *_, last = body.rstrip("\n").split("\n\n")
        name, _, data = last.partition("\ndata: ")
        if name != "event: answer":
            return [f"the last event is {last[:200]!r}"]
        body = data
    elif kind == JSON_LINES:
        body = f"[{','.join(body.splitlines())}]"
    return [
        fault for item in ANSWERS.validate_json(body) if isinstance(item, Summary) for fault in _faults(item, sections)
    ]


def _faults(summary: Summary, sections: Sections) -> list[str]:
    text = summary.summary_text
    found = _section_faults(text, summary.sections, sections)
    found += [f"check {each!r}" for each in summary.checks or () if text[each.start : each.end] != each.text]
    if not summary.truncated and summary.coverage != 1:
        found.append(f"coverage {summary.coverage} of a dialogue that was not truncated")
    return found


def _section_faults(text: str, texts: dict[str, str] | None, sections: Sections) -> list[str]:
    if not sections:
        return [] if not texts else [f"the sections {texts} of a model without sections"]
    parsed = parse_sections(text, sections)
    if parsed.texts == texts and not parsed.missing(sections) and not parsed.outside:
        return []
    return [f"the sections {texts} of {text!r}"]


def main() -> None:
    """Send the requests, count the statuses and measure the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="folder of a compiled artifact")
    parser.add_argument("--requests", type=int, default=5000, help="number of requests")
    options = parser.parse_args()
    limits, log, different = ServeConfig(), list[str](), list[str]()
    artifact = open_artifact(options.artifact)
    with tempfile.TemporaryDirectory(prefix="nsum-fuzz-") as folder:
        package.write_folder(artifact, limits, Path(folder))
        with LocalServer([Model("model", Path(folder))], limits, on_line=log.append) as server:
            [worker] = server.workers()
            java = psutil.Process(server.pid)
            statuses, measured = Counter[int](), dict[int, tuple[int, int]]()
            http = httpx.Client(base_url=server.url, timeout=60)

            @settings(
                max_examples=options.requests,
                phases=[Phase.generate],
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(body=bodies(limits), content_type=CONTENT_TYPES, accept=ACCEPTED)
            def send(body: bytes, content_type: str, accept: str) -> None:
                headers = {"content-type": content_type, "accept": accept}
                answer = http.post("/invocations", content=body, headers=headers)
                statuses[answer.status_code] += 1
                different.extend(faults(answer, artifact.recipe.output.sections))
                sent = statuses.total()
                if sent in (options.requests // 5, options.requests):
                    measured[sent] = (worker.memory_info().rss, java.memory_info().rss)
                shown.advance()

            with http, console.progress("requests", options.requests) as shown:
                send()
            lost = server.workers() != [worker] or any("Restarting python worker" in line for line in log)

    title = f"DJL Serving {djl.VERSION}, hypothesis {hypothesis.__version__}, {statuses.total()} requests"
    table = console.table("status", "answers", title=title)
    for status, answers in sorted(statuses.items()):
        table.add_row(str(status), str(answers))
    console.emit({}, table)
    table = console.table("resident memory", *(f"after {sent}" for sent in measured), "growth")
    for name, (first, last) in zip(("worker", "Java"), zip(*measured.values(), strict=True), strict=True):
        table.add_row(name, f"{first / 1e6:.0f} MB", f"{last / 1e6:.0f} MB", f"{(last - first) / first:.1%}")
    console.emit({}, table)
    for fault in different[:5]:
        console.note(f"unexpected answer: {fault}")
    console.note("a worker was lost" if lost else "no worker was lost")
    if lost or different:
        sys.exit(1)


if __name__ == "__main__":
    main()
