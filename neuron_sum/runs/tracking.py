"""The MLflow run of a training run: its recipe as parameters, its log and scores as metrics, its fingerprint as tags.

transformers' MLflowCallback is not used: it logs TrainingArguments and the model's configuration instead of the recipe,
uses the process-wide active run, which may be that of the caller, and raises if the server does not answer.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neuron_sum import __version__, console, files
from neuron_sum.recipes.loading import leaves
from neuron_sum.runs.contents import DAMAGED
from neuron_sum.runs.folder import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

RECORD, STORE = "mlflow.json", "mlflow.db"
"""Names of the files in a run folder: the id and address of the MLflow run, and the local store."""
EXPERIMENT = "neuron-sum"
"""The experiment of new runs if MLFLOW_EXPERIMENT_NAME is not set."""
LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""Limits on a call, in seconds and retries, if they are not set; those of MLflow would stop a training for minutes."""
RETRY_S = 300.0
"""Seconds after a failed call until the next one; the end of the training calls again in any case."""
PASSWORD = re.compile(r"//[^/@\s]+@")
"""User name and password in an address, which are neither stored nor printed."""
LINES = 50
"""Lines of the log per call, which may have at most 1,000 metrics."""


class MlflowRun:
    """The MLflow run of a training run, which is created by the first call that reaches the store.

    A store that fails ends no training and no evaluation: there is one warning, and later calls send what is missing.

    Args:
        run: The training run.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._client: MlflowClient | None = None
        self._id = ""
        self._waiting: list[dict[str, Any]] = []
        self._failed_at: float | None = None

    def log(self, entry: Mapping[str, Any]) -> None:
        """Send one line of the training log, to which it is already written.

        Args:
            entry: The line, with its step.
        """
        if self._client is not None:  # otherwise connecting reads the line in the log
            self._waiting.append({**entry, "timestamp": _now_ms()})
        if self._failed_at is None or time.monotonic() - self._failed_at >= RETRY_S:
            self._attempt(self._send)

    def start(self) -> None:
        """Create the MLflow run, or continue it."""
        self._attempt(self._send)

    def end(
        self, status: Status, scores: Mapping[str, float] | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """Send everything that is missing, and end the MLflow run.

        Args:
            status: The status of the MLflow run.
            scores: Metrics without a step.
            tags: Tags.
        """

        def send() -> None:
            client = self._send()
            for key, value in (scores or {}).items():
                client.log_metric(self._id, key, value)
            for key, tag in (tags or {}).items():
                client.set_tag(self._id, key, tag)
            client.set_terminated(self._id, status)

        if not self._attempt(send):
            console.note("MLflow has not received everything; `neuron-sum evaluate` sends what is missing")

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Whether the calls of an action succeeded."""
        try:
            with _limited_calls():
                action()
        except Exception as error:  # noqa: BLE001 - stores and plugins raise exceptions of any kind
            if self._failed_at is None:
                reason = PASSWORD.sub("//", (str(error).strip() or type(error).__name__).splitlines()[0])
                console.warn(f"MLflow does not record this run for now ({self._run.log} is complete): {reason:.300}")
            self._failed_at, self._client = time.monotonic(), None  # a call that failed late may have been received
            return False
        return True

    def _send(self) -> "MlflowClient":
        """Send the waiting lines of the log."""
        from mlflow.entities import Metric

        client = self._client or self._connect()
        while batch := self._waiting[:LINES]:
            metrics = [
                Metric(key, value, entry["timestamp"], entry["step"])
                for entry in batch
                for key, value in entry.items()
                if key not in ("step", "timestamp") and isinstance(value, int | float)
            ]
            client.log_batch(self._id, metrics=metrics)
            del self._waiting[:LINES]
        return client

    def _connect(self) -> "MlflowClient":
        """Create the MLflow run or continue it, and queue the lines of the log that it lacks."""
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        address = _address(self._run)
        client = MlflowClient(address)
        self._id = _record(self._run).get("run_id") or os.environ.get("MLFLOW_RUN_ID") or _create(client, self._run)
        is_local = address == _local(self._run)
        content = {"run_id": self._id, "tracking_uri": None if is_local else PASSWORD.sub("//", address)}
        files.write_json(self._run.path / RECORD, content)
        if "name" not in client.get_run(self._id).data.params:
            settings = leaves(self._run.recipe.model_dump(mode="json"))
            params = [Param(key, value if isinstance(value, str) else json.dumps(value)) for key, value in settings]
            for start in range(0, len(params), 100):
                client.log_batch(self._id, params=params[start : start + 100])
        tags = {"neuron_sum.run": self._run.path.resolve().name, "neuron_sum.version": __version__}
        client.log_batch(self._id, tags=[RunTag(key, value) for key, value in tags.items()])
        client.update_run(self._id, status="RUNNING")
        stored = {
            (key, metric.step) for key in ("loss", "eval_loss") for metric in client.get_metric_history(self._id, key)
        }
        log = self._run.read_log() if self._run.log.is_file() else []
        self._waiting = [
            {**entry, "timestamp": _now_ms()} for entry in log if not {(key, entry["step"]) for key in entry} & stored
        ]
        self._client = client
        return client


def log_scores(run: RunFolder, metrics: Mapping[str, Any]) -> None:
    """Add the scores of an evaluation to the MLflow run of a training run.

    Args:
        run: The finished run; nothing happens if its recipe does not report to MLflow.
        metrics: The content of metrics.json.
    """
    if "mlflow" not in run.recipe.train.report_to:
        return
    split = metrics["split"]
    scores = {
        f"{split}/{name}{suffix}": value[key]
        for name, value in metrics["scores"].items()
        for key, suffix in (("value", ""), ("low", "/low"), ("high", "/high"))
    }
    for name in ("examples", "empty", "dialogues_cut", "hit_max_new_tokens", "words_mean"):
        scores[f"{split}/{name}"] = metrics[name]
    scores[f"{split}/invented_speaker_tags"] = metrics["speaker_tags"]["invented"]
    MlflowRun(run).end("FINISHED", scores, {f"neuron_sum.{split}_data": Path(metrics["data"]).name})


@contextmanager
def reporting(run: RunFolder, *, active: bool) -> Iterator["MlflowRun | None"]:
    """The MLflow run during a training; after an exception it has the status KILLED (interrupted) or FAILED.

    Args:
        run: The training run; its log exists up to the step from which the training continues.
        active: Whether the training is reported; if not, the value is None.
    """
    if not active:
        yield None
        return
    mlflow_run = MlflowRun(run)
    try:
        yield mlflow_run
    except BaseException as error:
        mlflow_run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


def fingerprint_tags(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """The parts that a run depends on, as tags.

    Args:
        fingerprint: The content of the run's record.
    """
    return {f"neuron_sum.{part}": value for part, value in fingerprint.items()}


@contextmanager
def _limited_calls() -> Iterator[None]:
    added = LIMITS.keys() - os.environ.keys()
    os.environ.update({name: LIMITS[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _create(client: "MlflowClient", run: RunFolder) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment is not None else client.create_experiment(name)
    return str(client.create_run(number, run_name=run.recipe.name).info.run_id)


def _record(run: RunFolder) -> dict[str, Any]:
    path = run.path / RECORD
    content: dict[str, Any] = files.read_json(path, hint=DAMAGED) if path.is_file() else {}
    return content


def _local(run: RunFolder) -> str:
    return f"sqlite:///{(run.path / STORE).resolve()}"


def _address(run: RunFolder) -> str:
    """The store of a run's MLflow run: the one that it was started in, which MLFLOW_TRACKING_URI may have moved."""
    record, configured = _record(run), os.environ.get("MLFLOW_TRACKING_URI")
    if record and record.get("tracking_uri") is None:
        return _local(run)
    return configured or record.get("tracking_uri") or _local(run)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
