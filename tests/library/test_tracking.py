"""train.report_to=[mlflow], with the real package: a local store, and a server on 127.0.0.1 that stops."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from micro_models import NEURON, ROOT
from neuron_packages import make_packages
from transformers import TrainerCallback
from xla_environment import XLA_ENVIRONMENT, XLA_PYTHON

from neuron_sum.errors import DivergedError, MissingExtraError
from neuron_sum.evaluation.api import evaluate
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.runs import tracking
from neuron_sum.runs.folder import RunFolder
from neuron_sum.training import callbacks
from neuron_sum.training.train import train

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # SQLAlchemy's, of MLflow's models
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
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
    for entry in predictions:
        for line in entry["dialogue"].splitlines():
            assert line.partition(": ")[2] not in content


def test_the_default_store_is_in_the_run_folder(tmp_path: Path, micro: Path, empty_store: Path) -> None:
    folder = tmp_path / "run"
    recipe = load_recipe(str(micro), [MLFLOW])

    class Copy(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            shutil.copy(empty_store, folder / "mlflow.db")

    original = callbacks.Log.on_train_begin

    def begin(self: callbacks.Log, *args: Any, **options: Any) -> None:
        Copy().on_train_begin()
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
    # What a kill after step 7 leaves: a line that the resumed run writes again.
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
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **environment}, stderr=(tmp_path / "server.log").open("wb")
    )
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
    ("missing", "address"), [("mlflow", ""), ("sagemaker_mlflow", "arn:aws:sagemaker:us-east-1:1:mlflow-app/a")]
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


def test_a_run_that_does_not_report_to_mlflow_does_not_import_it(micro_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(micro_run, tmp_path / "run")
    evaluate(RunFolder(run, load_recipe(str(run / "recipe.yaml"))))
    assert not (run / "mlflow.json").exists()
