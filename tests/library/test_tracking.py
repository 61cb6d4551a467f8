"""train.report_to=[mlflow], with the real package: a local store, and a server on 127.0.0.1 that stops."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from micro_models import NEURON, ROOT
from neuron_packages import make_packages
from xla_environment import XLA_ENVIRONMENT, XLA_PYTHON

from neuron_sum.errors import DivergedError, MissingExtraError, RunError
from neuron_sum.evaluation.api import evaluate
from neuron_sum.recipes.loading import leaves, load_recipe
from neuron_sum.runs import tracking
from neuron_sum.runs.folder import RunFolder
from neuron_sum.training import callbacks
from neuron_sum.training.train import train
from sagemaker_jobs.aws.names import AwsContext
from sagemaker_jobs.stack.template import Settings, render

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # SQLAlchemy's, of MLflow's models
    pytest.mark.filterwarnings("ignore:unclosed database in <sqlite3:ResourceWarning"),  # MLflow's engines
    pytest.mark.filterwarnings("ignore:.*sqlite3.Connection:pytest.PytestUnraisableExceptionWarning"),
]
CommandLine = Callable[..., subprocess.CompletedProcess[str]]
MLFLOW = "train.report_to=[mlflow]"


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with MLflow's tables, whose creation takes seconds."""
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a local store, in MLFLOW_TRACKING_URI."""
    path = shutil.copy(empty_store, tmp_path / "store.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    return f"sqlite:///{path}"


def mlflow_run(folder: Path, address: str) -> tuple["MlflowClient", Any]:
    from mlflow import MlflowClient

    client = MlflowClient(address)
    return client, client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])


def losses(client: "MlflowClient", run: Any) -> list[tuple[int, float]]:
    return sorted((each.step, each.value) for each in client.get_metric_history(run.info.run_id, "loss"))


def logged(folder: Path) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]


def test_recipe_losses_and_scores_are_in_one_mlflow_run(tmp_path: Path, micro: Path, store: str) -> None:
    from mlflow import MlflowClient

    folder = tmp_path / "run"
    trained = train(load_recipe(str(micro), [MLFLOW]), folder)
    evaluate(trained)
    client, run = mlflow_run(folder, store)
    assert losses(client, run) == logged(folder)
    assert len(logged(folder)) == 12
    assert run.data.params["train.learning_rate"] == str(trained.recipe.train.learning_rate)
    assert run.data.params["name"] == "micro"
    assert run.data.metrics["eval_loss"] == trained.read_results()["eval_loss"]
    metrics = json.loads((folder / "evaluation" / "test" / "metrics.json").read_text())
    assert run.data.metrics["test/ROUGE-1"] == pytest.approx(metrics["scores"]["ROUGE-1"]["value"])
    assert run.data.tags["neuron_sum.run"] == "run"
    recorded = trained.read_record().fingerprint["weights of the trained model"]
    assert run.data.tags["neuron_sum.weights of the trained model"] == recorded
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "micro"
    assert not client.list_artifacts(run.info.run_id)
    assert len(MlflowClient(store).search_runs([run.info.experiment_id])) == 1


def test_no_text_of_the_data_is_sent(tmp_path: Path, micro: Path, store: str) -> None:
    folder = tmp_path / "run"
    evaluate(train(load_recipe(str(micro), [MLFLOW]), folder))
    content = Path(store.removeprefix("sqlite:///")).read_bytes().decode("latin-1")
    predictions = [json.loads(line) for line in (folder / "evaluation/test/summaries.jsonl").read_text().splitlines()]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    for entry in predictions:
        texts = [line.partition(": ")[2] for line in entry["dialogue"].splitlines()]
        texts += [*entry["references"], *(made["text"] for made in entry["summaries"].values())]
        assert not [text for text in texts if len(text) > 3 and text in content]


def test_the_default_store_is_in_the_run_folder(tmp_path: Path, micro: Path, empty_store: Path) -> None:
    folder = tmp_path / "run"
    recipe = load_recipe(str(micro), [MLFLOW])

    original = callbacks.Log.on_train_begin

    def begin(self: callbacks.Log, *args: Any, **options: Any) -> None:
        shutil.copy(empty_store, folder / "mlflow.db")
        original(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Log, "on_train_begin", begin)
        train(recipe, folder)
    assert json.loads((folder / "mlflow.json").read_text())["tracking_uri"] is None
    shutil.move(folder, tmp_path / "moved")
    client, run = mlflow_run(tmp_path / "moved", f"sqlite:///{tmp_path / 'moved' / 'mlflow.db'}")
    assert losses(client, run) == logged(tmp_path / "moved")


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Stops a training after a step, as Ctrl-C does."""
    original = callbacks.StopOnSignal.on_step_end

    def at(step: int) -> None:
        def on_step_end(self: callbacks.StopOnSignal, args: Any, state: Any, control: Any, **options: Any) -> None:
            self.requested = state.global_step == step
            original(self, args, state, control, **options)

        monkeypatch.setattr(callbacks.StopOnSignal, "on_step_end", on_step_end)

    yield at


def test_a_resumed_run_continues_its_mlflow_run(
    tmp_path: Path, micro: Path, store: str, stopped: Callable[[int], None]
) -> None:
    folder, recipe = tmp_path / "run", load_recipe(str(micro), [MLFLOW])
    stopped(6)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, folder)
    first, run = mlflow_run(folder, store)
    assert run.info.status == "KILLED"
    # A kill after step 7 leaves its loss, and the resumed run sends another one.
    first.log_metric(run.info.run_id, "loss", 99.0, step=7)
    stopped(99)
    train(recipe, folder, resume=True)
    client, resumed = mlflow_run(folder, store)
    assert resumed.info.run_id == run.info.run_id
    assert resumed.info.status == "FINISHED"
    assert [step for step, _ in losses(client, resumed)] == [*range(1, 8), *range(7, 13)]
    assert logged(folder) == [each for each in losses(client, resumed) if each[1] != 99.0]


def test_a_diverged_run_has_the_status_failed(tmp_path: Path, micro: Path, store: str) -> None:
    with pytest.raises(DivergedError):
        train(load_recipe(str(micro), [MLFLOW, "train.learning_rate=1e30"]), tmp_path / "run")
    assert mlflow_run(tmp_path / "run", store)[1].info.status == "FAILED"


def test_a_run_that_sagemaker_created_is_used(
    tmp_path: Path, micro: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    created = client.create_run(client.create_experiment("job"), run_name="job")
    monkeypatch.setenv("MLFLOW_RUN_ID", created.info.run_id)
    train(load_recipe(str(micro), [MLFLOW]), tmp_path / "run")
    run = client.get_run(created.info.run_id)
    assert losses(client, run) == logged(tmp_path / "run")
    assert run.data.params["name"] == "micro"


@pytest.fixture
def server(empty_store: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """MLflow's real tracking server; mlflow-skinny contains its routes, and the tests have Flask."""
    shutil.copy(empty_store, tmp_path / "server.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = f"from mlflow.server import app; app.run('127.0.0.1', {port}, threaded=True)"
    environment = {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{tmp_path / 'server.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": str(tmp_path / "artifacts"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **environment}, stderr=log)
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    try:
        yield process, f"http://user:secret@127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def test_a_server_that_stops_in_the_middle_does_not_end_the_training(
    tmp_path: Path,
    micro: Path,
    server: tuple[subprocess.Popen[bytes], str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    process, address = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    folder, sent = tmp_path / "run", tracking.MlflowRun.log

    def log(self: tracking.MlflowRun, entry: dict[str, Any]) -> None:
        if entry["step"] == 5 and process.poll() is None:
            process.kill()
            process.wait()
        sent(self, entry)

    monkeypatch.setattr(tracking.MlflowRun, "log", log)
    trained = train(load_recipe(str(micro), [MLFLOW]), folder)
    assert trained.is_complete
    assert [step for step, _ in logged(folder)] == list(range(1, 13))
    output = capfd.readouterr()
    assert not output.out
    assert output.err.count("MLflow does not record this run for now") == 1
    assert "MLflow has not received everything" in output.err
    assert "secret" not in output.err + (folder / "mlflow.json").read_text()
    client, run = mlflow_run(folder, f"sqlite:///{tmp_path / 'server.db'}")
    assert [step for step, _ in losses(client, run)] == [1, 2, 3, 4]
    # The server's store is there again: an evaluation sends the rest and its scores.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'server.db'}")
    evaluate(trained)
    client, run = mlflow_run(folder, f"sqlite:///{tmp_path / 'server.db'}")
    assert losses(client, run) == logged(folder)
    assert run.info.status == "FINISHED"
    assert "test/ROUGE-1" in run.data.metrics


def test_the_plugin_of_sagemaker_reports_with_the_rights_of_a_job(
    tmp_path: Path, micro: Path, server: tuple[subprocess.Popen[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """sagemaker-mlflow signs the calls; its custom endpoint is MLflow's real server. The role allows each call."""
    pytest.importorskip("sagemaker_mlflow")
    arn = "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/ours"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", arn)
    monkeypatch.setenv("SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT", server[1])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    train(load_recipe(str(micro), [MLFLOW]), tmp_path / "run")
    client, run = mlflow_run(tmp_path / "run", arn)
    assert losses(client, run) == logged(tmp_path / "run") and run.info.status == "FINISHED"
    assert json.loads((tmp_path / "run" / "mlflow.json").read_text())["tracking_uri"] == arn
    called = set(re.findall(r'"(?:GET|POST) /api/2.0/mlflow/([a-z-]+/[a-z-]+)', (tmp_path / "server.log").read_text()))
    actions = {
        "experiments/get-by-name": "GetExperimentByName", "experiments/create": "CreateExperiment",
        "runs/create": "CreateRun", "runs/get": "GetRun", "runs/update": "UpdateRun", "runs/log-batch": "LogBatch",
        "metrics/get-history": "GetMetricHistory",
    }  # fmt: skip
    site = AwsContext("123456789012", "us-east-1")
    template = json.dumps(render(site, Settings(mlflow_servers=[arn]).parameters(site, {})))
    allowed = set(re.findall(r"sagemaker-mlflow:(\w+)", template))
    assert called >= {"runs/create", "runs/log-batch"} and {actions[path] for path in called} == allowed


def test_an_outage_that_ends_leaves_no_gap_and_no_duplicate(
    tmp_path: Path, micro: Path, store: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(tracking, "RETRY_S", 0.0)
    original = MlflowClient.log_batch

    def log_batch(self: MlflowClient, run_id: str, *args: Any, **options: Any) -> Any:
        steps = {metric.step for metric in options.get("metrics", ())}
        if steps & {5, 6} and len(steps) < 3:  # the reply to step 5 is lost, step 6 does not arrive
            if 5 in steps:
                original(self, run_id, *args, **options)
            raise OSError("no route to the server")
        return original(self, run_id, *args, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    folder = tmp_path / "run"
    train(load_recipe(str(micro), [MLFLOW, "train.eval_steps=100"]), folder)
    monkeypatch.undo()
    client, run = mlflow_run(folder, store)
    assert losses(client, run) == logged(folder)
    assert capfd.readouterr().err.count("MLflow does not record") == 1


def test_a_server_that_never_answers_costs_one_warning(
    tmp_path: Path, micro: Path, nowhere: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nowhere)
    assert train(load_recipe(str(micro), [MLFLOW]), tmp_path / "run").is_complete
    assert capfd.readouterr().err.count("MLflow does not record") == 1
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_several_processes_make_one_mlflow_run(
    tmp_path: Path, micro: Path, store: str, neuron_sum: CommandLine
) -> None:
    from mlflow import MlflowClient

    made = neuron_sum("train", str(micro), MLFLOW, "--processes", "2", "--output", "run")
    assert made.returncode == 0, made.stderr
    client, run = mlflow_run(tmp_path / "run", store)
    assert losses(client, run) == logged(tmp_path / "run")
    assert len(MlflowClient(store).search_runs([run.info.experiment_id])) == 1


@pytest.mark.slow
def test_the_neuron_backend_makes_one_mlflow_run(tmp_path: Path, micro: Path, store: str) -> None:
    import mlflow

    if not XLA_PYTHON.exists():
        pytest.skip(f"no {XLA_PYTHON}: `make test` installs it")
    make_packages(tmp_path / "packages")
    cases = [{"name": "run", "recipe": str(micro), "overrides": [*NEURON, MLFLOW]}]
    (tmp_path / "cases").write_text(json.dumps(cases))
    paths = [tmp_path / "packages", ROOT, Path(mlflow.__file__).parents[1]]
    made = subprocess.run(
        [XLA_PYTHON, ROOT / "tests/stand_ins/xla/observe.py", "cases", tmp_path],
        cwd=tmp_path,
        env={**os.environ, **XLA_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    client, run = mlflow_run(tmp_path / "run", store)
    assert losses(client, run) == logged(tmp_path / "run")
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("missing", "address"),
    [
        ("mlflow", ""),
        ("sqlalchemy", ""),
        ("alembic", "postgresql://host/mlflow"),
        ("sagemaker_mlflow", "arn:aws:sagemaker:us-east-1:1:mlflow-app/a"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_loaded(
    tmp_path: Path, micro: Path, monkeypatch: pytest.MonkeyPatch, missing: str, address: str
) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name) or object())
    with pytest.raises(MissingExtraError, match=missing) as raised:
        train(load_recipe(str(micro), [MLFLOW]), tmp_path / "run")
    assert raised.value.hint == "run `pip install 'neuron-sum[mlflow]'`"
    assert not (tmp_path / "run").exists()


@pytest.mark.new_interpreter
def test_a_run_that_does_not_report_to_mlflow_does_not_import_it(micro_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(micro_run, tmp_path / "run")
    code = (
        "import sys, neuron_sum; neuron_sum.evaluate(sys.argv[1]); "
        "sys.exit(any(name.startswith('mlflow') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code, run], cwd=tmp_path, check=False).returncode == 0
    assert (run / "evaluation/test/metrics.json").exists() and not (run / "mlflow.json").exists()


def finished(micro_run: Path, folder: Path, *overrides: str) -> RunFolder:
    """A finished run that has not reported to MLflow yet, although its recipe says so."""
    shutil.copytree(micro_run, folder)
    return RunFolder(folder, load_recipe(str(folder / "recipe.yaml"), [MLFLOW, *overrides]))


def content_of(client: "MlflowClient", run: Any) -> tuple[dict[str, str], dict[str, float], dict[str, str]]:
    data = client.get_run(run.info.run_id).data
    return data.params, data.metrics, {key: tag for key, tag in data.tags.items() if key.startswith("neuron_sum.")}


def test_a_failure_of_any_call_loses_nothing(
    tmp_path: Path, micro_run: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, log, scores and tags: the next evaluation sends what the failed call did not."""
    from mlflow import MlflowClient

    names = ("create_run", "log_batch", "get_metric_history", "set_terminated")
    originals = {name: getattr(MlflowClient, name) for name in names}
    whole = finished(micro_run, tmp_path / "whole")
    calls = list[str]()

    def counted(name: str, fails_at: int | None) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) - 1 == fails_at:
                raise OSError("connection reset")
            return originals[name](*arguments, **options)

        return call

    def end(run: RunFolder, fails_at: int | None) -> None:
        calls.clear()
        for name in names:
            monkeypatch.setattr(MlflowClient, name, counted(name, fails_at))
        tracking.MlflowRun(run).end("FINISHED", {"test/x": 1.0})

    end(whole, None)
    client, expected = mlflow_run(whole.path, store)
    assert len(content_of(client, expected)[0]) > 100
    assert losses(client, expected) == logged(whole.path)
    for number in range(len(list(calls))):
        run = finished(micro_run, tmp_path / str(number) / "whole")
        end(run, number)
        end(run, None)
        client, found = mlflow_run(run.path, store)
        assert content_of(client, found) == content_of(client, expected), number
        assert (losses(client, found), found.info.status) == (logged(run.path), "FINISHED")


def test_a_run_with_other_parameters_keeps_them(
    tmp_path: Path, micro_run: Path, store: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    created = client.create_run("0")
    client.log_param(created.info.run_id, "name", "job-7")
    monkeypatch.setenv("MLFLOW_RUN_ID", created.info.run_id)
    run = finished(micro_run, tmp_path / "run")
    tracking.MlflowRun(run).end("FINISHED")
    parameters = client.get_run(created.info.run_id).data.params
    assert parameters["name"] == "job-7"
    assert parameters.keys() == {key for key, _ in leaves(run.recipe.model_dump(mode="json"))}
    assert "the MLflow run keeps its earlier value of name" in capfd.readouterr().err


def test_an_evaluation_does_not_change_what_the_training_recorded(
    tmp_path: Path, micro_run: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(micro_run, tmp_path / "run")
    tracking.MlflowRun(run).end("FINISHED")
    client, before = mlflow_run(run.path, store)
    assert before.info.end_time == run.results.stat().st_mtime_ns // 1_000_000
    monkeypatch.setattr("neuron_sum.__version__", "9")
    tracking.MlflowRun(run).end("FINISHED", {"test/x": 1.0})
    after = client.get_run(before.info.run_id)
    assert after.info == before.info or vars(after.info) == vars(before.info)
    assert after.data.tags == before.data.tags
    assert after.data.metrics == before.data.metrics | {"test/x": 1.0}


def test_the_address_of_another_store_does_not_replace_the_recorded_one(
    tmp_path: Path, micro_run: Path, store: str, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(micro_run, tmp_path / "run")
    tracking.MlflowRun(run).end("FINISHED")
    record = (run.path / "mlflow.json").read_text()
    other = shutil.copy(empty_store, tmp_path / "other.db")
    for number, address in enumerate((f"sqlite:///{other}", "")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        tracking.MlflowRun(run).end("FINISHED", {f"test/{number}": 1.0})
        assert (run.path / "mlflow.json").read_text() == record
    assert {"test/0", "test/1"} <= mlflow_run(run.path, store)[1].data.metrics.keys()


def test_a_relative_address_is_found_from_another_folder(
    tmp_path: Path, micro_run: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    run = finished(micro_run, tmp_path / "run")
    tracking.MlflowRun(run).end("FINISHED")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    tracking.MlflowRun(run).end("FINISHED", {"test/x": 1.0})
    assert not list(Path().iterdir())
    assert "test/x" in mlflow_run(run.path, f"sqlite:///{tmp_path / 'mlflow.db'}")[1].data.metrics


def test_a_damaged_record_is_an_error_of_this_machine(tmp_path: Path, micro_run: Path, store: str) -> None:
    run = finished(micro_run, tmp_path / "run")
    (run.path / "mlflow.json").write_text("{")
    with pytest.raises(RunError, match=r"mlflow\.json") as raised:
        tracking.MlflowRun(run)
    assert raised.value.hint == "remove the file; another MLflow run is then created"


def test_an_evaluation_without_the_package_names_the_extra(
    tmp_path: Path, micro_run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", None)
    tracking.MlflowRun(finished(micro_run, tmp_path / "run")).end("FINISHED")
    output = " ".join(capfd.readouterr().err.split())
    assert "run `pip install 'neuron-sum[mlflow]'`" in output
    assert "the next `neuron-sum evaluate` sends what is missing" in output


@pytest.mark.parametrize(
    ("address", "clean"),
    [
        ("http://u:p@ss@h:5000/x", "http://h:5000/x"),
        ("https://h/users/a@b", "https://h/users/a@b"),
        ("postgresql://u:se/cret@db/m", "postgresql://db/m"),
        ("postgresql://db/m?user=u&password=secret", "postgresql://db/m"),
        ("mysql+pymysql://u:s@c:r@t/@db:3306/m?a=b", "mysql+pymysql://db:3306/m"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
        ("arn:aws:sagemaker:us-east-1:1:mlflow-app/a", "arn:aws:sagemaker:us-east-1:1:mlflow-app/a"),
    ],
)
def test_secrets_of_addresses_are_removed(address: str, clean: str) -> None:
    assert tracking.SECRETS.sub("", address) == clean


def test_a_store_that_cannot_be_used_does_not_stop_the_training_for_long(
    tmp_path: Path, micro_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.send_header("Retry-After", "40")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "damaged.db").write_bytes(b"no database" * 1000)
    run = finished(micro_run, tmp_path / "run")
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        busy = f"http://127.0.0.1:{server.server_port}"
        for address in (f"sqlite:///{tmp_path}", f"sqlite:///{tmp_path}/damaged.db", busy):
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            started = time.monotonic()
            tracking.MlflowRun(run).start()
            assert time.monotonic() - started < 20, address
        server.shutdown()
