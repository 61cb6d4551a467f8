"""Fuzzing of a real DJL Serving with thousands of requests generated from the OpenAPI document, and invalid ones.

    python benchmarks/serving_fuzz.py ARTIFACT [--requests 5000]

Prints the number of answers by status, whether a worker was lost, and the resident memory of the worker and of Java
after a fifth of the requests (warmed up) and after all of them. Exits with 1 if a status is not listed in
docs/serving.md, or if a worker was lost.
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
from serving import djl, package
from serving.local import LocalServer, Model
from serving.schema import openapi

ALLOWED = {200, 400, 404, 413, 415, 422, 503}
KEYS = ["inputs", "parameters", "adapter", "num_beams", "max_new_tokens", "x"]
CONTENT_TYPES = st.sampled_from(
    ["application/json", "application/jsonlines", "text/plain", "multipart/form-data", "text/html", "x", ""]
)


ACCEPTED = st.sampled_from(["*/*", "application/json", "application/jsonlines", "text/event-stream", "x"])


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
    """A strategy for valid requests, arbitrary JSON, and bytes."""
    document = openapi(limits)
    anything = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    )
    described = conforming(document["components"]["schemas"]["Request"], document)
    return (described | anything).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=200)


def main() -> None:
    """Send the requests, count the statuses and measure the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="folder of a compiled artifact")
    parser.add_argument("--requests", type=int, default=5000, help="number of requests")
    options = parser.parse_args()
    limits, log = ServeConfig(), list[str]()
    with tempfile.TemporaryDirectory(prefix="nsum-fuzz-") as folder:
        package.write_folder(open_artifact(options.artifact), limits, Path(folder))
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
                statuses[http.post("/invocations", content=body, headers=headers).status_code] += 1
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
    if lost or not set(statuses) <= ALLOWED:
        console.note("a worker was lost" if lost else f"unexpected statuses: {sorted(set(statuses) - ALLOWED)}")
        sys.exit(1)
    console.note("no worker was lost")


if __name__ == "__main__":
    main()
