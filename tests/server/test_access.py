"""Permissions on a running server: web pages in a real browser, raw requests, the owner, and SageMaker."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser
from service_requests import DIALOGUE, LIMITS

from benchmarks import attack, attack_target
from benchmarks.attack_target import Target
from neuron_sum.artifact import Artifact
from serving import djl, package
from serving.local import LocalServer, Model

pytestmark = pytest.mark.slow

PAGE = """<!doctype html><title>foreign</title>
<form id="form" method="post" action="URL/models?url=SOURCE&amp;model_name=x&amp;device=-1" target="frame">
<input name="a" value="b"></form><iframe name="frame"></iframe>
<script>
window.results = {};
const post = (path, options) => fetch("URL" + path, {method: "POST", ...options});
const tries = {
  simple: () => post("/invocations", {body: "text"}),
  opaque: () => post("/models?url=SOURCE&model_name=x", {mode: "no-cors"}),
  preflight: () => post("/models", {headers: {"Content-Type": "application/json"}, body: "{}"}),
  remove: () => fetch("URL/models/model", {method: "DELETE"}),
  metrics: () => fetch("URL/server/metrics"),
};
const loaded = (element, path) => new Promise((done) => {
  element.onload = () => done("loaded"); element.onerror = () => done("error");
  element.src = "URL" + path; document.head.append(element);
});
window.attack = async () => {
  for (const [name, run] of Object.entries(tries))
    results[name] = await run().then((answer) => answer.type + answer.status, (error) => "error");
  results.image = await loaded(new Image(), "/models?url=SOURCE&model_name=x");
  results.script = await loaded(document.createElement("script"), "/server/logging?level=debug");
  results.socket = await new Promise((done) => {
    const socket = new WebSocket("URL/models".replace("http", "ws"));
    socket.onopen = () => done("open"); socket.onerror = () => done("error");
  });
  navigator.sendBeacon("URL/workflows?url=SOURCE");
  document.getElementById("form").submit();
};
</script>"""


def page_of(target: Target, source: str) -> str:
    return PAGE.replace("URL", target.url).replace("SOURCE", f"{source}/x.tar.gz")


@pytest.fixture(scope="module")
def server(
    djl_serving: Path, lora_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("served") / "model"
    package.write_folder(lora_artifact, LIMITS, folder)
    with LocalServer([Model("model", folder)], LIMITS, playground=True) as running:
        yield running


@pytest.fixture
def target(server: LocalServer) -> Target:
    return Target.find(server.url, server.token_file)


@pytest.mark.parametrize("name", attack.ATTACKS)
def test_the_server_withstands_an_attack(name: str, target: Target, server: LocalServer) -> None:
    finding = attack.ATTACKS[name](target)
    assert finding.requests and finding.faults == []
    assert len(server.workers()) == 1
    assert httpx.post(f"{server.url}/invocations", json={"inputs": DIALOGUE}, timeout=60).status_code == 200


def test_texts_that_expand_are_cut_before_they_are_tokenized(target: Target) -> None:
    body = {"inputs": [attack.EXPANDING * 900] * LIMITS.max_items, "parameters": {"max_new_tokens": 1}}
    answers = httpx.post(f"{target.url}/invocations", json=body, timeout=60).raise_for_status().json()
    assert [answer["truncated"] for answer in answers] == [True] * LIMITS.max_items


def test_every_request_handler_of_the_server_is_known(djl_serving: Path) -> None:
    """A handler that a newer DJL Serving adds has routes that Access.java must be checked against."""
    [jar] = (djl_serving / djl.LIBRARIES).glob("djl-serving-*.jar")
    with zipfile.ZipFile(jar) as content:
        names = {Path(name).stem for name in content.namelist() if name.startswith("ai/djl/serving/http/")}
    assert {name for name in names if name.endswith("RequestHandler")} == {
        "AdapterManagementRequestHandler",
        "ClusterRequestHandler",
        "ConfigurableHttpRequestHandler",
        "HttpRequestHandler",
        "InferenceRequestHandler",
        "InvalidRequestHandler",
        "ManagementRequestHandler",
    }


def test_a_foreign_page_in_a_browser_is_rejected_on_every_route(
    browser: Browser, target: Target, tmp_path: Path
) -> None:
    before, statuses = target.state(), list[tuple[str, int]]()
    with attack_target.listener() as (source, fetched), attack_target.listener(page_of(target, source)) as (foreign, _):
        page = browser.new_page()
        page.on("response", lambda answer: statuses.append((answer.url, answer.status)))
        page.goto(foreign.replace("127.0.0.1", "foreign.example"))
        with page.expect_response(lambda answer: "device=-1" in answer.url):
            page.evaluate("attack()")
        results = page.evaluate("results")
        page.close()
    assert results["opaque"] in ("opaque0", "error")
    assert {name: result for name, result in results.items() if name != "opaque"} == dict.fromkeys(
        ("simple", "preflight", "remove", "metrics", "image", "socket", "script"), "error"
    )
    seen = [(url, status) for url, status in statuses if url.startswith(target.url)]
    assert seen and {status for _, status in seen} == {403}
    assert fetched == []
    assert target.state() == before


def test_a_host_name_rebound_to_this_machine_is_rejected(browser: Browser, target: Target) -> None:
    page = browser.new_page()
    answer = page.goto(f"http://rebound.example:{target.port}/playground")
    assert answer is not None and answer.status == 403
    assert page.evaluate("fetch('/playground/models').then((answer) => answer.status)") == 403
    page.close()


def test_the_playground_works_and_reads_nothing_else(browser: Browser, server: LocalServer) -> None:
    page = browser.new_page()
    answer = page.goto(f"{server.url}/")
    assert answer is not None and answer.status == 200
    assert page.evaluate("fetch('/models').then((answer) => answer.status)") == 401
    assert page.evaluate("fetch('/playground/models').then((answer) => answer.json())") == {"model": []}
    page.close()


def test_the_owner_manages_the_server_with_its_current_token(server: LocalServer) -> None:
    assert server.token_file.stat().st_mode & 0o777 == 0o600
    assert httpx.get(f"{server.url}/models").status_code == 401
    listed = httpx.get(f"{server.url}/models", headers=server.headers).json()["models"]
    assert [model["modelName"] for model in listed] == ["model"]
    assert httpx.get(f"{server.url}/server/logging?level=warn", headers=server.headers).status_code == 200


IMAGE = {"NEURON_SUM_HOSTS": "*", "NEURON_SUM_TOKEN_FILE": ""}
"""The variables of the serving image."""


def test_an_image_with_one_model_rejects_changes(djl_serving: Path, lora_artifact: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    package.write_folder(lora_artifact, LIMITS, folder)
    with LocalServer([Model("model", folder)], LIMITS, environment=IMAGE) as server:
        host = {"Host": "model.aws.local:8080"}
        assert httpx.get(f"{server.url}/ping", headers=host).status_code == 200
        body = {"inputs": DIALOGUE}
        assert httpx.post(f"{server.url}/invocations", json=body, headers=host, timeout=60).status_code == 200
        foreign = {**host, "Origin": "http://evil.example"}
        assert httpx.post(f"{server.url}/invocations", json=body, headers=foreign).status_code == 403
        for method, path in attack_target.management_routes("model"):
            answer = httpx.request(method, server.url + path, headers={**host, **server.headers})
            assert answer.status_code == 403, (method, path)


def test_sagemaker_loads_and_unloads_models_in_multi_model_mode_only(
    djl_serving: Path, lora_artifact: Artifact, tmp_path: Path
) -> None:
    folders = {name: tmp_path / "models" / name for name in ("one", "two")}
    for folder in folders.values():
        package.write_folder(lora_artifact, LIMITS, folder)
    outside = tmp_path / "outside"
    package.write_folder(lora_artifact, LIMITS, outside)
    models = [Model(name, folder) for name, folder in folders.items()]
    environment = {**IMAGE, "SAGEMAKER_MULTI_MODEL": "true"}
    with LocalServer(models, LIMITS, environment=environment) as server:
        sagemaker = httpx.Client(base_url=server.url, headers={"Host": "model.aws.local"}, timeout=60)
        with sagemaker:
            assert sagemaker.delete("/models/two").status_code == 200
            assert [each["modelName"] for each in sagemaker.get("/models").json()["models"]] == ["one"]
            body = {"model_name": "two", "url": str(folders["two"])}
            assert sagemaker.post("/models", json=body).status_code == 200
            assert sagemaker.get("/models/two").status_code == 200
            assert sagemaker.post("/models/two/invoke", json={"inputs": DIALOGUE}).status_code == 200
            assert sagemaker.post("/models", json={"model_name": "x", "url": str(outside)}).status_code == 400
            assert sagemaker.put("/models/two?min_worker=2").status_code == 403
            assert sagemaker.post("/workflows", params={"url": outside.as_uri()}).status_code == 403
            assert sagemaker.post("/models/one/adapters", params={"name": "x", "src": "/"}).status_code == 403
