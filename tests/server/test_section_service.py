"""A model with sections from its training to the answers of the endpoint, also of a real DJL Serving.

That server also has a model that merges long dialogues.
"""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from artifacts import with_data
from hypothesis import HealthCheck, given, settings
from micro_models import MICRO, compiled
from playwright.sync_api import Browser, Route, expect
from section_models import eager_generator
from service_requests import DIALOGUE, LIMITS

from benchmarks import attack, serving_fuzz
from benchmarks.attack_target import Target
from compile.exporters.optimum import _faults
from compile.exporters.own import make_plan
from compile.source import open_source
from neuron_sum.artifact import Artifact
from neuron_sum.errors import ArtifactError, ModelError, RecipeError
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import SectionConfig, ServeConfig
from neuron_sum.runs.folder import open_run
from neuron_sum.runs.trained import load_trained
from neuron_sum.runtimes.load import load_generator
from neuron_sum.sections import SectionCoder, parse_sections
from neuron_sum.training.train import train
from serving import neuronx_container, package, vllm_container
from serving.client import Answer as ClientAnswer
from serving.local import LocalServer, Model
from serving.playground import page_with
from serving.schema import EVENTS, JSON, JSON_LINES, ServiceError, openapi
from serving.service import Answer, Service

SECTIONS = [
    "output.sections=[{name: topic, max_tokens: 6}, summary]",
    "data.columns.sections={topic: topic, summary: summary}",
    "generate.max_new_tokens=30",
]
CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def section_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sections")
    (folder / "micro.yaml").write_text(MICRO)
    train(load_recipe(str(folder / "micro.yaml"), ["name=micro-sections", *SECTIONS]), folder / "run")
    return folder / "run"


def test_summarize_and_compare_have_sections(section_run: Path, tmp_path: Path, neuron_sum: CommandLine) -> None:
    shutil.copytree(section_run, tmp_path / "run")
    made = neuron_sum("summarize", "run", "--json", stdin=DIALOGUE)
    assert made.returncode == 0, made.stderr
    answer = json.loads(made.stdout)
    assert list(answer["sections"]) == ["topic", "summary"] and answer["sections"]["topic"]
    assert answer["summary_text"].startswith(f"Topic: {answer['sections']['topic']}\nSummary: ")

    made = neuron_sum("compare", "untuned", "run", "lead-3", "human", "--output", "comparison")
    assert made.returncode == 0, made.stderr
    assert "unexpected" in made.stdout and "summaries with text outside the sections: lead-3 12" in made.stdout
    systems = json.loads((tmp_path / "comparison" / "comparison.json").read_text())["systems"]
    found = {each["system"]: each["sections"]["by_section"]["topic"] for each in systems}
    assert {name: each["missing"] for name, each in found.items()} == {"untuned": 0, "run": 0, "lead-3": 12, "human": 0}
    assert found["lead-3"]["scores"]["ROUGE-1"]["value"] == 0 and found["human"]["scores"]["ROUGE-1"]["value"] > 50
    lead = next(each for each in systems if each["system"] == "lead-3")
    assert lead["scores"]["ROUGE-1"]["value"] > 0, "headings do not count in the scores of the whole summary"
    page = (tmp_path / "comparison" / "report.html").read_text()
    assert '<table id="sections">' in page and "12 of 12" in page


@pytest.fixture(scope="module")
def ask(section_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Answer]:
    """A service over graphs that are not compiled."""
    run = open_run(section_run)
    model, tokenizer = load_trained(run)
    coder = SectionCoder.of(run.recipe.output.sections, tokenizer)
    generator = eager_generator(model, coder, 512, 30, [tokenizer.eos_token_id])
    artifact: Any = SimpleNamespace(recipe=run.recipe, manifest=SimpleNamespace(adapter_names=()))
    service = Service(artifact, generator, tokenizer, LIMITS, tmp_path_factory.mktemp("state") / "adapters")
    return lambda body, kind=JSON: asyncio.run(service.answer(body, kind, None, None, "test"))


@pytest.mark.parametrize("parameters", [{}, {"num_beams": 3}, {"checks": True}, {"max_new_tokens": 12}])
def test_every_answer_of_the_endpoint_has_its_sections(
    section_run: Path, ask: Callable[..., Answer], parameters: dict[str, Any]
) -> None:
    texts = [DIALOGUE, "#Person1#: Hi.", "Topic: none\nSummary: none", "{}", "\n".join([DIALOGUE] * 20)]
    answers = json.loads(ask(json.dumps({"inputs": texts, "parameters": parameters}).encode()).body)
    sections = open_run(section_run).recipe.output.sections
    for answer in answers:
        parsed = parse_sections(answer["summary_text"], sections)
        assert parsed.texts == answer["sections"] and not parsed.missing(sections) and not parsed.outside
        for check in answer.get("checks", ()):
            assert answer["summary_text"][check["start"] : check["end"]] == check["text"]
    [line] = ask(json.dumps({"inputs": DIALOGUE, "parameters": parameters}).encode(), JSON_LINES).body.splitlines()
    assert json.loads(line) == answers[0]


def test_too_few_tokens_for_the_headings_are_refused(ask: Callable[..., Answer]) -> None:
    with pytest.raises(ServiceError) as refused:
        ask(json.dumps({"inputs": DIALOGUE, "parameters": {"max_new_tokens": 2}}).encode())
    assert (refused.value.code, refused.value.field) == (422, "parameters.max_new_tokens")


@pytest.mark.parametrize("field", ["compile.target_len", "generate.max_new_tokens"])
def test_graphs_with_too_few_tokens_for_the_headings_are_not_compiled(section_run: Path, field: str) -> None:
    with pytest.raises(RecipeError, match=rf"{field} = 5: the headings of output\.sections, .* take \d+ tokens"):
        make_plan(open_source(section_run, None, [f"{field}=5"]))


def test_the_local_server_recognizes_that_a_model_with_sections_is_loaded(ask: Callable[..., Answer]) -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        if not loaded:
            return httpx.Response(503)
        try:
            return httpx.Response(200, text=ask(request.content).body)
        except ServiceError as error:
            return httpx.Response(error.code, json=error.body())

    server = LocalServer([], LIMITS)
    server._http = httpx.Client(base_url=server.url, transport=httpx.MockTransport(reply))
    for loaded in (False, True):
        assert server._ready("model") == loaded


def test_the_contract_and_the_client_have_sections() -> None:
    schema = openapi()["components"]["schemas"]["Summary"]["properties"]["sections"]
    assert schema["anyOf"][0] == {"additionalProperties": {"type": "string"}, "type": "object"}
    assert ClientAnswer("a", sections={"topic": "a"}).as_dict()["sections"] == {"topic": "a"}
    assert "sections" not in ClientAnswer("a").as_dict()


def test_the_playground_shows_headings_and_marks(browser: Browser) -> None:
    text = "Reason: 😀 The line is cut.\nFollow up:\nActions: A visit on Friday: at ten."
    check = {"kind": "date", "text": "Friday", "start": text.index("Friday"), "end": text.index("Friday") + 6}
    answer = {
        "summary_text": text,
        "sections": parse_sections(
            text, [SectionConfig(name=name) for name in ("reason", "follow_up", "actions")]
        ).texts,
        "truncated": False,
        "input_tokens": 9,
        "output_tokens": 20,
        "checks": [{**check, "message": "not there"}],
    }

    def reply(route: Route) -> None:
        path = urlsplit(route.request.url).path
        if path == "/":
            route.fulfill(body=page_with({}), content_type="text/html")
        else:
            route.fulfill(json={"m": None} if path.endswith("playground/models") else [answer])

    with closing(browser.new_page()) as page:
        page.route("**/*", reply)
        page.goto("http://127.0.0.1:9/")
        page.locator("#dialogue").fill(DIALOGUE)
        page.locator("#go").click()
        shown = page.locator(".card .text")
        expect(shown.locator("strong")).to_have_text(["Reason:", "Follow up:", "Actions:"])
        expect(shown.locator("mark")).to_have_text("Friday")
        assert shown.text_content() == text


def test_runtimes_that_choose_the_tokens_reject_sections_by_name(section_run: Path, tmp_path: Path) -> None:
    recipe = open_run(section_run).recipe
    upstream: Any = SimpleNamespace(recipe=recipe, manifest=SimpleNamespace(runtime="optimum"))
    with pytest.raises(ArtifactError, match=r"output\.sections: the upstream compiled graph"):
        load_generator(upstream)
    with pytest.raises(ModelError, match=r"output\.sections: .* cannot force headings"):
        neuronx_container.write_archive(open_run(section_run), tmp_path / "model.tar.gz")
    with pytest.raises(RecipeError, match=r"compile\.greedy_steps = 2"):
        load_recipe(recipe, ["compile.greedy_steps=2"])
    assert next(iter(vllm_container._generation_faults(recipe))).startswith("output.sections: ")
    source: Any = SimpleNamespace(recipe=recipe, soft_prompt_tokens=0)
    assert any(fault.startswith("output.sections: ") for fault in _faults(source, (1,)))
    assert not [*tmp_path.iterdir()]


@pytest.fixture(scope="module")
def server(
    djl_serving: Path, section_run: Path, lora_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """A model with sections, and one that merges long dialogues."""
    folder, limits = tmp_path_factory.mktemp("served"), ServeConfig(deadline_s=3)
    artifacts = {
        "sections": compiled(section_run, folder / "artifact", "compile.num_beams=[1,2]"),
        "merging": with_data(lora_artifact, folder / "merging-artifact", long="merge"),
    }
    for name, artifact in artifacts.items():
        package.write_folder(artifact, limits, folder / name)
    with LocalServer([Model(name, folder / name) for name in artifacts], limits, playground=True) as running:
        workers = {worker.pid for worker in running.workers()}
        yield running
        assert {worker.pid for worker in running.workers()} == workers, "a request ended a worker"


def url_of(server: LocalServer, model: str) -> str:
    return f"{server.url}/models/{model}/invoke"


@pytest.mark.slow
def test_answers_of_a_server_have_sections_in_every_form(
    server: LocalServer, section_run: Path, tmp_path: Path, neuron_sum: CommandLine
) -> None:
    sections, url = open_run(section_run).recipe.output.sections, url_of(server, "sections")
    texts = [DIALOGUE, "#Person1#: Hi.", "\n".join([DIALOGUE] * 20)]
    parameters = {"checks": True, "num_beams": 2}
    made = httpx.post(url, json={"inputs": texts, "parameters": parameters}, timeout=60)
    answers = made.raise_for_status().json()
    assert serving_fuzz.faults(made, sections) == []
    assert [list(answer["sections"]) for answer in answers] == [["topic", "summary"]] * 3
    assert all(isinstance(answer["checks"], list) for answer in answers)
    assert [(answer["truncated"], answer["coverage"] == 1) for answer in answers] == [(False, True)] * 2 + [
        (True, False)
    ]

    lines = "".join(json.dumps({"inputs": text, "parameters": parameters}) + "\n" for text in texts)
    batch = httpx.post(url, content=lines, headers={"content-type": JSON_LINES}, timeout=60)
    assert [json.loads(line) for line in batch.raise_for_status().text.splitlines()] == answers
    events = httpx.post(
        url, json={"inputs": texts[0], "parameters": parameters}, headers={"accept": EVENTS}, timeout=60
    )
    assert json.loads(events.text.removeprefix("event: answer\ndata: ")) == answers[:1]

    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"inputs": text}) + "\n" for text in texts))
    words = ("request", url, "texts.jsonl", "--checks", "--num-beams", "2", "--output", "answers.jsonl")
    sent = neuron_sum(*words)
    assert sent.returncode == 0, sent.stderr
    assert "1 of 3 dialogues were cut at the end" in sent.stderr
    assert [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()] == answers
    single = neuron_sum("request", url, "--checks", "--num-beams", "2", stdin=texts[0])
    found = [f"{check['text']}: {check['message']}" for check in answers[0]["checks"]]
    assert single.stdout.split() == "\n".join([answers[0]["summary_text"], *found]).split(), single.stderr
    plain = httpx.post(url_of(server, "merging"), json={"inputs": texts}, timeout=60).json()
    assert all("sections" not in answer and answer["coverage"] == 1 for answer in plain)


@pytest.mark.slow
def test_the_playground_shows_the_sections_of_a_server(server: LocalServer, browser: Browser) -> None:
    [answer] = httpx.post(url_of(server, "sections"), json={"inputs": DIALOGUE}, timeout=60).json()
    with closing(browser.new_page()) as page:
        page.goto(f"{server.url}/")
        page.get_by_label("Model").select_option("sections")
        page.locator("#dialogue").fill(DIALOGUE)
        page.locator("#go").click()
        shown = page.locator(".card .text")
        expect(shown.locator("strong")).to_have_text(["Topic:", "Summary:"])
        assert shown.text_content() == answer["summary_text"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sections", "merging"])
def test_costly_dialogues_stop_neither_model(server: LocalServer, model: str) -> None:
    finding = attack.costly_dialogues(Target(server.url, "", model))
    assert finding.requests == 20 and finding.faults == []
    assert httpx.post(url_of(server, model), json={"inputs": DIALOGUE}, timeout=60).status_code == 200


@pytest.mark.slow
@settings(max_examples=300, database=None, suppress_health_check=list(HealthCheck))
@given(
    body=serving_fuzz.bodies(LIMITS),
    content_type=serving_fuzz.CONTENT_TYPES,
    accept=serving_fuzz.ACCEPTED,
    model=serving_fuzz.st.sampled_from(["sections", "merging"]),
)
def test_every_answer_to_any_body_has_its_form(
    server: LocalServer, section_run: Path, body: bytes, content_type: str, accept: str, model: str
) -> None:
    sections = open_run(section_run).recipe.output.sections if model == "sections" else ()
    headers = {"content-type": content_type, "accept": accept}
    answer = httpx.post(url_of(server, model), content=body, headers=headers, timeout=60)
    assert serving_fuzz.faults(answer, sections) == []
