"""A real DJL Serving with the handler: the contract, adapters, faults, several models, and leftovers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from artifacts import with_data
from hypothesis import HealthCheck, given, settings
from service_requests import DIALOGUE, LIMITS, REFUSED

from benchmarks import drill, serving_fuzz
from neuron_sum.artifact import Artifact, open_artifact
from neuron_sum.data.sources import load_dataset
from neuron_sum.errors import ServerError
from neuron_sum.evaluation.generate import summarize_all
from neuron_sum.recipes.schema import DataConfig
from neuron_sum.runtimes.load import load_generator
from neuron_sum.subprocesses import printed_document
from serving import package, properties
from serving.local import LocalServer, Model, java_options

pytestmark = pytest.mark.slow
CommandLine = Callable[..., subprocess.CompletedProcess[str]]


class Endpoint:
    """A server that tests share, and its output."""

    def __init__(self, server: LocalServer, said: list[str]) -> None:
        self.server, self.said = server, said

    def post(self, body: Any, content_type: str = "application/json", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        return httpx.post(
            f"{self.server.url}/invocations",
            content=content,
            timeout=60,
            headers={"content-type": content_type, **headers},
        )

    def adapters(self, method: str, path: str = "", **query: str) -> httpx.Response:
        url = f"{self.server.url}/models/model/adapters{path}"
        return httpx.request(method, url, params=query, headers=self.server.headers, timeout=60)

    def adapter_names(self) -> list[str]:
        return [adapter["name"] for adapter in self.adapters("GET").json()["adapters"]]


@pytest.fixture(scope="module")
def endpoint(
    djl_serving: Path, lora_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    folder, said = tmp_path_factory.mktemp("served"), list[str]()
    package.write_folder(lora_artifact, LIMITS, folder)
    with LocalServer([Model("model", folder)], LIMITS, on_line=said.append) as server:
        yield Endpoint(server, said)


@pytest.mark.parametrize(("content_type", "body", "code", "field"), REFUSED)
def test_rejected_requests_have_their_status_and_the_same_shape(
    endpoint: Endpoint, content_type: str, body: bytes, code: int, field: str | None
) -> None:
    answer = endpoint.post(body, content_type)
    assert answer.status_code == code
    assert answer.json()["error"].keys() == {"code", "message", "field"}
    assert (answer.json()["error"]["code"], answer.json()["error"]["field"]) == (code, field)


def test_a_client_of_another_server_receives_the_correct_request(endpoint: Endpoint) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": DIALOGUE}], "max_tokens": 3, "temperature": 0}
    answer = httpx.post(f"{endpoint.server.url}/v1/chat/completions", json=chat, timeout=60)
    assert answer.status_code == 422
    correct = {"inputs": DIALOGUE, "parameters": {"max_new_tokens": 3}}
    assert f"Send {json.dumps(correct)} with Content-Type application/json" in answer.json()["error"]["message"]
    assert endpoint.post(correct).status_code == 200


FORM = "application/x-www-form-urlencoded"
HELLO = b'{"inputs": "Hello."}'


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "code", "field"),
    [
        ("POST", "/invocations", {"content-type": FORM}, HELLO, 415, "Content-Type"),
        ("POST", "/invocations", {"content-type": FORM}, b"", 415, "Content-Type"),
        ("POST", "/predictions/model", {"content-type": f"{FORM.upper()}; charset=utf-8"}, HELLO, 415, "Content-Type"),
        ("POST", "/models/model/invoke", {"content-type": FORM}, b"", 415, "Content-Type"),
        ("POST", "/invocations", {"content-type": "multipart/form-data; boundary=x"}, b"--x", 415, "Content-Type"),
        ("POST", "/invocations", {"content-type": "multipart/form-data; boundary="}, b"", 415, "Content-Type"),
        ("POST", "/invocations?adapter=default", {}, HELLO, 400, "adapter"),
        ("POST", "/predictions/model?adapter=", {}, HELLO, 400, "adapter"),
        ("POST", "/v1/chat/completions?adapter=default", {}, HELLO, 400, "adapter"),
        ("POST", "/invocations?data=x", {}, HELLO, 400, "data"),
        ("POST", "/invocations?a=%zz", {}, HELLO, 400, None),
        ("POST", "/predictions/%zz", {}, HELLO, 400, None),
        ("POST", "/predictions/other", {}, HELLO, 404, None),
        ("POST", "/invocations?model_name=other", {}, HELLO, 404, None),
        ("POST", "/invocations", {"x-synchronous": "false"}, HELLO, 400, None),
        ("POST", "/invocations", {"X-Amzn-SageMaker-Custom-Attributes": "x-synchronous=false"}, HELLO, 400, None),
        ("POST", "/invocations", {"handler": "register_adapter"}, HELLO, 400, None),
        ("POST", "/invocations", {"x-long": "x" * 9000}, HELLO, 400, None),
        ("GET", "/invocations", {}, b"", 400, "inputs"),
        ("PUT", "/invocations", {}, b"", 400, "inputs"),
        ("PUT", "/invocations", {}, HELLO, 200, None),
        ("OPTIONS", "/invocations", {}, b"", 200, None),
        ("OPTIONS", "/invocations", {"content-type": FORM}, b"", 415, "Content-Type"),
    ],
)
def test_answers_of_the_server_itself_have_a_documented_status(
    endpoint: Endpoint, method: str, path: str, headers: dict[str, str], body: bytes, code: int, field: str | None
) -> None:
    answer = httpx.request(method, f"{endpoint.server.url}{path}", headers=headers, content=body, timeout=60)
    assert answer.status_code == code, answer.text
    if code != 200:
        assert answer.json()["error"].keys() == {"code", "message", "field"}
        assert (answer.json()["error"]["code"], answer.json()["error"]["field"]) == (code, field)


def test_sagemaker_calls_ping_and_invocations(endpoint: Endpoint) -> None:
    assert httpx.get(f"{endpoint.server.url}/ping").status_code == 200
    answer = endpoint.post({"inputs": DIALOGUE, "parameters": {"max_new_tokens": 3}})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    [summary] = answer.json()
    assert summary.keys() == {"summary_text", "truncated", "coverage", "input_tokens", "output_tokens"}
    assert summary["output_tokens"] <= 3
    text = endpoint.post(DIALOGUE, "text/plain")
    assert (text.status_code, text.headers["content-type"]) == (200, "text/plain; charset=utf-8")


def test_json_lines_of_dialogsum_match_summarize(
    endpoint: Endpoint, lora_artifact: Artifact, shared_data: Path
) -> None:
    config = DataConfig(source="dialogsum", path=str(shared_data / "dialogsum"))
    dialogues = [example.dialogue for example in load_dataset(config).splits["test"]]
    assert len(dialogues) == 500
    size = LIMITS.max_items
    bodies = [
        "".join(json.dumps({"inputs": text}) + "\n" for text in dialogues[start : start + size])
        for start in range(0, len(dialogues), size)
    ]
    with ThreadPoolExecutor(8) as clients:  # so that rows of different requests share batches
        answers = list(clients.map(lambda body: endpoint.post(body, "application/jsonlines"), bodies))
    assert {answer.status_code for answer in answers} == {200}
    rows = [json.loads(line) for answer in answers for line in answer.text.splitlines()]
    generator, tokenizer = load_generator(lora_artifact)
    ids = [str(index) for index in range(len(dialogues))]
    expected = summarize_all(generator, tokenizer, lora_artifact.recipe, ids, dialogues, quiet=True)
    assert rows == [
        {
            "summary_text": made.summary,
            "truncated": made.truncated,
            "coverage": pytest.approx(made.coverage, abs=1e-4),
            "input_tokens": made.input_tokens,
            "output_tokens": made.output_tokens,
        }
        for made in expected
    ]


def test_adapters_are_managed_through_the_api_of_djl(endpoint: Endpoint, micro_lora_run: Path, tmp_path: Path) -> None:
    source = str(micro_lora_run / "adapter")
    assert endpoint.adapters("POST", name="mine").status_code == 400
    refused = endpoint.adapters("POST", name="mine", src=str(tmp_path))
    assert refused.status_code == 422 and "adapter_config.json" in refused.json()["error"]["message"]
    assert endpoint.adapters("POST", name="mine", src=source).status_code == 200
    assert endpoint.adapter_names() == ["default", "mine"]
    page = endpoint.adapters("GET", limit="1").json()
    assert [adapter["name"] for adapter in page["adapters"]] == ["default"]
    rest = endpoint.adapters("GET", next_page_token=page["nextPageToken"]).json()
    assert [(adapter["name"], adapter["src"]) for adapter in rest["adapters"]] == [("mine", source)]
    assert endpoint.adapters("GET", limit="-1").status_code == endpoint.adapters("GET", limit="x").status_code == 400
    assert endpoint.adapters("GET", "/default").json()["src"] == "artifact/adapters/default"
    assert endpoint.adapters("GET", "/mine").json()["src"] == source
    assert endpoint.adapters("GET", "/none").status_code == 404
    for refused in (endpoint.adapters("DELETE", "/default"), endpoint.adapters("POST", "/default/update", src=source)):
        assert refused.status_code == 409 and "part of the artifact" in refused.json()["error"]["message"]
    asked = {"inputs": DIALOGUE, "parameters": {"adapter": "mine"}}
    tuned = endpoint.post(asked).json()
    assert endpoint.post({"inputs": DIALOGUE}, **{"X-Amzn-SageMaker-Adapter-Identifier": "mine"}).json() == tuned
    assert endpoint.adapters("POST", "/mine/update", src=source).status_code == 200
    assert endpoint.adapters("DELETE", "/mine").status_code == 200
    gone = endpoint.post(asked)
    assert gone.status_code == 404 and "existing: default" in gone.json()["error"]["message"]
    assert endpoint.adapters("DELETE", "/mine").status_code == 404


def test_the_log_has_one_line_per_request_without_its_text_and_metrics_count(endpoint: Endpoint) -> None:
    endpoint.post({"inputs": "a very particular sentence"})
    metrics = httpx.get(f"{endpoint.server.url}/server/metrics").text
    for name in ("queue_seconds", "batch_seconds", "request_seconds"):
        assert re.search(rf"^neuron_sum_{name}_count", metrics, re.M), name
    for name in ("requests", "tokens", "truncated", "batch_items", "adapter_items"):
        assert re.search(rf"^neuron_sum_{name}_total", metrics, re.M), name
    lines = [json.loads(line.partition("INFO::")[2]) for line in endpoint.said if '"request"' in line]
    assert {"request", "status", "seconds", "queue_seconds", "batch", "adapters"} <= lines[-1].keys()
    assert not any("particular sentence" in line for line in endpoint.said)


@settings(max_examples=300, database=None, suppress_health_check=list(HealthCheck))
@given(body=serving_fuzz.bodies(LIMITS), content_type=serving_fuzz.CONTENT_TYPES)
def test_no_request_body_stops_the_endpoint(endpoint: Endpoint, body: bytes, content_type: str) -> None:
    assert serving_fuzz.faults(endpoint.post(body, content_type)) == []


def test_the_worker_is_still_the_first_one(endpoint: Endpoint) -> None:
    """After all tests above: none of them ended a worker."""
    assert len(endpoint.server.workers()) == 1
    assert not any("Restarting python worker" in line for line in endpoint.said)


@pytest.mark.parametrize(
    ("scenario", "statuses", "note"),
    [
        (drill.kill_idle, {"200", "503"}, ""),
        (drill.kill_busy, {"503"}, ""),
        (drill.kill_under_traffic, {"200", "503"}, "1 worker, thread [1]"),
        (drill.kill_while_sending, {"503"}, "1 worker, thread [1]"),
        (drill.past_deadline, {"503"}, ""),
        (drill.flood, {"200", "503"}, "/ping 200 meanwhile"),
    ],
)
def test_faults_are_answered_and_the_service_recovers(
    djl_serving: Path, lora_artifact: Artifact, scenario: Callable[[Path], drill.Outcome], statuses: set[str], note: str
) -> None:
    outcome = scenario(lora_artifact.path)
    assert set(outcome.statuses) == statuses
    assert outcome.back_s is not None and outcome.back_s < drill.BACK_LIMIT_S
    assert outcome.note == note


def test_answers_as_events_reset_the_failures(djl_serving: Path, lora_artifact: Artifact, tmp_path: Path) -> None:
    artifact = with_data(lora_artifact, tmp_path / "merging", long="merge")
    with drill.server(artifact.path, LIMITS) as running:

        def is_answered() -> bool:
            body, headers = {"inputs": "\n".join([DIALOGUE] * 12)}, {"Accept": "text/event-stream"}
            answer = httpx.post(f"{running.url}/invocations", json=body, headers=headers, timeout=60)
            assert answer.status_code == 503 or "event: piece" in answer.text
            return "event: answer" in answer.text

        for _ in range(3):  # more failures than one worker may have in a row
            [worker] = running.workers()
            worker.kill()
            worker.wait(10)
            assert drill._until(is_answered, drill.BACK_LIMIT_S)
            assert drill._ping(running.url) == 200


def test_too_little_memory_is_rejected(djl_serving: Path, lora_artifact: Artifact) -> None:
    outcome = drill.out_of_memory(lora_artifact.path)
    assert {"503"} <= set(outcome.statuses) <= {"200", "503"}
    assert outcome.back_s is not None and outcome.back_s < drill.BACK_LIMIT_S


def test_accepted_requests_are_answered_after_sigterm(djl_serving: Path, lora_artifact: Artifact) -> None:
    outcome = drill.sigterm_under_load(lora_artifact.path)
    assert set(outcome.statuses) == {"200"}
    assert "server ended" in outcome.note


def test_unanswerable_requests_get_503_after_sigterm(djl_serving: Path, lora_artifact: Artifact) -> None:
    outcome = drill.sigterm_while_silent(lora_artifact.path)
    assert outcome.statuses == {"503": 16}


def test_ping_fails_if_a_worker_cannot_restart(djl_serving: Path, lora_artifact: Artifact) -> None:
    outcome = drill.broken_for_good(lora_artifact.path)
    assert set(outcome.statuses) == {"503"}
    assert outcome.note == "/ping 500"


@pytest.mark.parametrize(("java", "size"), [("17.0.15", 1), ("21", 1), ("25.0.3", 1024)])
def test_the_thread_pool_option_matches_the_java_version(java: str, size: int, tmp_path: Path) -> None:
    assert f"-Djava.util.concurrent.ForkJoinPool.common.parallelism={size}" in java_options(tmp_path, java)


def unpacked(artifact: Artifact, folder: Path, *names: str) -> list[Model]:
    """The same archive under each of these names, unpacked as a container does it."""
    archive = folder / "model.tar.gz"
    package.write_archive(artifact, LIMITS, archive)
    models = [Model(name, folder / name) for name in names]
    for model in models:
        model.folder.mkdir()
        package.unpack(archive, model.folder)
    return models


def test_models_are_loaded_and_unloaded_like_on_a_multi_model_endpoint(
    djl_serving: Path, lora_artifact: Artifact, tmp_path: Path
) -> None:
    models = unpacked(lora_artifact, tmp_path, "first", "second")
    with LocalServer(models, LIMITS) as server:
        one, two = (f"{server.url}/models/{model.name}/invoke" for model in models)
        body = {"inputs": DIALOGUE}
        assert httpx.post(one, json=body, timeout=60).json() == httpx.post(two, json=body, timeout=60).json()
        server.unload("first")
        assert httpx.post(one, json=body).status_code == 404
        assert httpx.post(two, json=body, timeout=60).status_code == 200
        assert drill._until(lambda: len(server.workers()) == 1, 10)
        server.load(models[0])
        assert httpx.post(one, json=body, timeout=60).status_code == 200
        versioned = {"url": models[0].folder.as_uri(), "model_name": "third", "model_version": "2", "engine": "Python"}
        httpx.post(f"{server.url}/models", params=versioned, headers=server.headers, timeout=60).raise_for_status()
        assert len(server.workers()) == 3
        httpx.delete(f"{server.url}/models/third/2", headers=server.headers).raise_for_status()
        java = psutil.Process(server.pid)
        assert drill._until(lambda: len(java.children(recursive=True)) == 2, 10)  # the third has ended and is reaped
        children = server.workers()
        assert len(children) == 2
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_answers_of_one_model_do_not_reset_the_failures_of_another(
    djl_serving: Path, lora_artifact: Artifact, tmp_path: Path
) -> None:
    models = unpacked(lora_artifact, tmp_path, "dead", "alive")
    with LocalServer(models, LIMITS) as server:
        dead, alive = (f"{server.url}/models/{model.name}/invoke" for model in models)
        [worker] = [worker for worker in server.workers() if Path(worker.cwd()) == models[0].folder]
        (models[0].folder / properties.ARTIFACT / "weights.safetensors").write_bytes(b"")
        worker.kill()
        assert drill._until(lambda: drill._ping(server.url) == 500, drill.BACK_LIMIT_S)
        assert httpx.options(dead).status_code == 200
        assert httpx.post(alive, json={"inputs": DIALOGUE}, timeout=60).status_code == 200
        assert drill._ping(server.url) == 500
        assert httpx.post(dead, json={"inputs": DIALOGUE}, timeout=60).status_code == 503


def test_an_adapter_is_served_after_a_restart_also_without_its_folder(
    djl_serving: Path, lora_artifact: Artifact, micro_lora_run: Path, tmp_path: Path
) -> None:
    folder, source = tmp_path / "model", tmp_path / "adapter"
    package.write_folder(lora_artifact, LIMITS, folder)
    shutil.copytree(micro_lora_run / "adapter", source)
    with LocalServer([Model("model", folder)], LIMITS) as server:
        endpoint, asked = Endpoint(server, []), {"inputs": DIALOGUE, "parameters": {"adapter": "mine"}}
        assert endpoint.adapters("POST", name="mine", src=str(source)).status_code == 200
        before = endpoint.post(asked)
        shutil.rmtree(source)
        server.workers()[0].kill()
        assert drill._until_back(server).back_s != float("inf")
        after = endpoint.post(asked)
        assert (after.status_code, after.json()) == (200, before.json())
        assert endpoint.adapter_names() == ["default", "mine"]
        assert endpoint.adapters("POST", "/mine/update").status_code == 422
        assert endpoint.adapters("POST", name="mine", src=str(source)).status_code == 409
        assert endpoint.adapters("DELETE", "/mine").status_code == 200
        assert endpoint.adapters("DELETE", "/mine").status_code == 404
        assert endpoint.adapter_names() == ["default"]


def test_a_model_may_load_longer_than_the_import_limit(
    djl_serving: Path, lora_artifact: Artifact, tmp_path: Path
) -> None:
    package.write_folder(lora_artifact, LIMITS, tmp_path)
    handler = tmp_path / "serving" / "model.py"
    text, changed = re.subn(r"^IMPORT_S = .*$", "IMPORT_S = 0.0", handler.read_text(), flags=re.M)
    assert changed
    handler.unlink()  # the link to the handler of this package
    handler.write_text(text)
    with LocalServer([Model("model", tmp_path)], LIMITS) as server:
        assert httpx.post(f"{server.url}/invocations", json={"inputs": DIALOGUE}, timeout=60).status_code == 200


def test_a_damaged_artifact_is_not_served(djl_serving: Path, lora_artifact: Artifact, tmp_path: Path) -> None:
    folder, copy = tmp_path / "model", Path(shutil.copytree(lora_artifact.path, tmp_path / "artifact"))
    package.write_folder(open_artifact(copy), LIMITS, folder)
    damaged = copy / "recipe.yaml"
    damaged.write_text(damaged.read_text().replace("max_new_tokens: 12", "max_new_tokens: 11"))
    with pytest.raises(ServerError, match=r"files\.recipe\.yaml: sha256"), LocalServer([Model("m", folder)], LIMITS):
        pass


def test_serve_answers_until_ctrl_c_and_leaves_no_process(
    djl_serving: Path, lora_artifact: Artifact, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "neuron_sum", "serve", str(lora_artifact.path), "--port", "0", "--json"]
    deep = tmp_path / ("deeper-than-a-socket-may-be-" * 4)
    deep.mkdir(parents=True)
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(deep)},
    )
    try:
        assert process.stdout is not None
        document = printed_document(process.stdout)
        assert document is not None
        url = document["url"]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.post(f"{url}/invocations", json={"inputs": DIALOGUE}, timeout=60).status_code == 200
        taken = subprocess.run(
            [*command[:5], "--port", url.rpartition(":")[2]], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert taken.returncode == 11 and "is in use" in taken.stderr
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert not psutil.wait_procs(children, timeout=5)[1]


def test_a_second_stop_ends_serve_at_once_and_leaves_nothing(
    djl_serving: Path, lora_artifact: Artifact, tmp_path: Path
) -> None:
    """Its processes are suspended, so that they answer no SIGTERM."""
    command = [sys.executable, "-m", "neuron_sum", "serve", str(lora_artifact.path), "--port", "0", "--json", "--quiet"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        document = printed_document(process.stdout)
        assert document is not None
        children = psutil.Process(process.pid).children(recursive=True)
        try:
            for child in children:
                child.suspend()
            process.send_signal(signal.SIGTERM)
            assert any("stop immediately" in line for line in process.stderr)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 130
            assert not psutil.wait_procs(children, timeout=10)[1]
        finally:
            for ended in (process, *children):
                with suppress(psutil.NoSuchProcess):
                    ended.kill()
    assert not Path(document["token_file"]).parent.exists()


def test_a_killed_serve_ends_its_server(djl_serving: Path, lora_artifact: Artifact, tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv")
    command = [sys.executable, "-m", "neuron_sum", "serve", str(lora_artifact.path), "--port", "0", "--json", "--quiet"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "{\n"
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(children) == 2 and not psutil.wait_procs(children, timeout=10)[1]
