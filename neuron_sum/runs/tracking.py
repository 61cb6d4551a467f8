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

from neuron_sum import console, files
from neuron_sum.errors import MissingExtraError, NeuronSumError, redacted
from neuron_sum.recipes.loading import leaves
from neuron_sum.runs.folder import RunFolder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]

RECORD, STORE = "mlflow.json", "mlflow.db"
"""Names of the files in a run folder: the id and address of the MLflow run, and the local store."""
EXPERIMENT = "neuron-sum"
"""The experiment of new runs if MLFLOW_EXPERIMENT_NAME is not set."""
LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}
"""Limits on a call, in seconds and retries, if they are not set; those of MLflow would stop a training for minutes."""
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Starts of the addresses of databases, which MLflow opens with SQLAlchemy."""
RELATIVE = re.compile(r"(sqlite(?:\+\w+)?:///|file:|)(?![/:]|databricks)([^:?]+)(\?.*)?")
"""An address with a relative path, which another folder would change."""
RETRY_S = 300.0
"""Seconds after a failed call until the next one; the end of the training calls again in any case."""
SECRETS = re.compile(r"(?<=http://)[^/\s]*@|(?<=https://)[^/\s]*@|(?<=://)(?<!http://)(?<!https://)(?!/)\S*@|\?\S*")
"""User name, password and query of an address, which are neither stored nor printed; only that of a database may
have "/" in a password."""
LINES = 50
"""Lines of the log per call, which may have at most 1,000 metrics."""


class MlflowRun:
    """The MLflow run of a training run, which is created by the first call that reaches the store.

    A store that fails ends no training and no evaluation: there is one warning, and later calls send what is missing.

    Args:
        run: The training run.

    Raises:
        RunError: If the record of the MLflow run is damaged.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        path = run.path / RECORD
        hint = "remove the file; another MLflow run is then created"
        self._record: dict[str, Any] = files.read_json(path, hint=hint) if path.is_file() else {}
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
            from mlflow.entities import Metric, RunTag

            client = self._send()
            metrics = [Metric(key, value, _now_ms(), 0) for key, value in (scores or {}).items()]
            entries = {**self._tags(), **(tags or {})}
            client.log_batch(self._id, metrics, tags=[RunTag(key, value) for key, value in entries.items()])
            if status != "FINISHED":
                client.set_terminated(self._id, status)
            elif client.get_run(self._id).info.status != status:
                ended = self._run.results.stat().st_mtime_ns // 1_000_000
                client.set_terminated(self._id, status, ended)

        if not self._attempt(send):
            console.note("MLflow has not received everything; the next `neuron-sum evaluate` sends what is missing")

    def _attempt(self, action: Callable[[], object]) -> bool:
        """Whether the calls of an action succeeded."""
        try:
            with _limited_calls():
                action()
        except NeuronSumError:  # of this machine, such as a full disk
            raise
        except Exception as error:  # noqa: BLE001 - stores and plugins raise exceptions of any kind
            if self._failed_at is None:
                reason = redacted(SECRETS.sub("", (str(error).strip() or type(error).__name__).splitlines()[0]))
                if isinstance(error, ModuleNotFoundError):
                    missing = MissingExtraError(str(error.name), "mlflow")
                    reason = f"{missing.message}; {missing.hint}"
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
        from mlflow.entities import Param, RunTag

        client, address, found = self._open()
        self._id = found.info.run_id
        record = {
            "run_id": self._id,
            "tracking_uri": None if address == _local(self._run) else SECRETS.sub("", address),
        }
        if record != self._record:
            files.write_json(self._run.path / RECORD, record)
            self._record = record
        settings = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in leaves(self._run.recipe.model_dump(mode="json"))
        }
        stored = found.data.params
        other = [key for key in settings.keys() & stored.keys() if not _is_stored(settings[key], stored[key])]
        if other and self._failed_at is None:
            console.note(f"the MLflow run keeps its earlier value of {', '.join(sorted(other))}")
        params = [Param(key, value) for key, value in settings.items() if key not in stored]
        for start in range(0, len(params), 100):
            client.log_batch(self._id, params=params[start : start + 100])
        client.log_batch(self._id, tags=[RunTag(key, value) for key, value in self._tags().items()])
        if not self._run.is_complete:
            client.update_run(self._id, status="RUNNING")
        sent = {
            (key, metric.step, metric.value)
            for key in ("loss", "eval_loss")
            for metric in client.get_metric_history(self._id, key)
        }
        log = self._run.read_log() if self._run.log.is_file() else []
        self._waiting = [
            {**entry, "timestamp": _now_ms()}
            for entry in log
            if not {(key, entry["step"], value) for key, value in entry.items()} & sent
        ]
        self._client = client
        return client

    def _open(self) -> tuple["MlflowClient", str, "Run"]:
        """The client, the address and the MLflow run, which is created if there is none."""
        from mlflow.exceptions import MlflowException

        configured = _absolute(os.environ.get("MLFLOW_TRACKING_URI", ""))
        run_id = self._record.get("run_id") or os.environ.get("MLFLOW_RUN_ID")
        if not self._record:
            addresses = [configured or _local(self._run)]
        elif recorded := self._record.get("tracking_uri"):
            addresses = [configured, recorded] if configured else [recorded]
        else:
            addresses = [_local(self._run)]
        for address in addresses:
            client = _client(address)
            try:
                return client, address, client.get_run(run_id) if run_id else _create(client, self._run)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST" or address == addresses[-1]:
                    raise
        raise AssertionError("the last address returns or raises")

    def _tags(self) -> dict[str, str]:
        """The run folder, the version that trained, and every part of the fingerprint."""
        record = self._run.read_record()
        parts = {"run": self._run.path.resolve().name, "version": record.neuron_sum, **record.fingerprint}
        return {f"neuron_sum.{part}": value for part, value in parts.items()}


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
        for key, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
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


@contextmanager
def _limited_calls() -> Iterator[None]:
    added = LIMITS.keys() - os.environ.keys()
    os.environ.update({name: LIMITS[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _client(address: str) -> "MlflowClient":
    from mlflow import MlflowClient

    if address.startswith(DATABASES):  # MLflow would try to open it for 100 s
        import sqlalchemy

        engine = sqlalchemy.create_engine(address)
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()
    return MlflowClient(address)


def _create(client: "MlflowClient", run: RunFolder) -> "Run":
    from mlflow.exceptions import MlflowException

    number, name = os.environ.get("MLFLOW_EXPERIMENT_ID"), os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    if not number and (experiment := client.get_experiment_by_name(name)) is not None:
        number = experiment.experiment_id
    if not number:
        try:
            number = client.create_experiment(name)
        except MlflowException:  # another training may have created it
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
            number = experiment.experiment_id
    return client.create_run(number, run_name=run.recipe.name)


def _is_stored(value: str, stored: str) -> bool:
    """Whether a parameter has a value, of which a store may have cut the end."""
    return stored == value[: max(len(stored), 250)]


def _local(run: RunFolder) -> str:
    return f"sqlite:///{(run.path / STORE).resolve()}"


def _absolute(address: str) -> str:
    found = RELATIVE.fullmatch(address)
    return f"{found[1]}{Path(found[2]).resolve()}{found[3] or ''}" if found else address


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
