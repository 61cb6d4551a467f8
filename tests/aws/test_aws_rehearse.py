"""A job's container on this machine, and the rehearsal of a recipe's whole life in it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from aws_container import DEAF, SIGTERM_NOTED, container, orphan, request_for
from in_process import neuron_sum as in_process
from micro_models import SHAPE
from training_runs import LONG

from neuron_sum import files
from neuron_sum.errors import AwsError
from sagemaker_jobs.launch.call import Call
from sagemaker_jobs.rehearsal import commands as own_commands
from sagemaker_jobs.rehearsal import image as local_image
from sagemaker_jobs.rehearsal import namespace
from sagemaker_jobs.rehearsal.container import Container, running
from sagemaker_jobs.rehearsal.image import LocalImage
from sagemaker_jobs.rehearsal.store import LocalStore

SEES = """
import json, pathlib, socket, sys
import psutil
base = pathlib.Path(BASE)
print(json.dumps({
    "arguments": sys.argv[1:], "python": sys.prefix, "base": BASE,
    "recipe": (base / "input/data/recipe/recipe.yaml").read_text(),
    "config": {p.name: json.loads(p.read_text()) for p in (base / "input/config").iterdir()},
    "environment": dict(os.environ), "pid": os.getpid(), "processes": len(psutil.pids()),
    "out": socket.socket().connect_ex(("192.0.2.1", 9)) if os.getpid() == 1 else None,
    "loopback": socket.create_server(("127.0.0.1", 0)).getsockname()[0],
}))
(base / "model" / "weights").write_text("w")
(base / "checkpoints" / "one").write_text("c")
"""


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalImage]:
    folder = tmp_path_factory.mktemp("image")
    made = {name: folder / name for name in ("folders", "namespaces")}
    for each in made.values():
        each.mkdir()
    return {name: local_image.make(each, namespaces=name == "namespaces") for name, each in made.items()}


@pytest.fixture(params=["folders", "namespaces", "user's namespaces"])
def image(request: pytest.FixtureRequest, images: dict[str, LocalImage]) -> LocalImage:
    made = images["folders" if request.param == "folders" else "namespaces"]
    if request.param != "folders" and not made.isolated:
        pytest.skip(made.why_folders)
    if request.param == "user's namespaces":
        words = (*namespace.UNSHARE, *namespace.AS_USER)
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this kernel gives users no namespaces")
        return LocalImage(made.folder, made.environment, words)
    return made


def gone(job: str) -> bool:
    """Whether no process of it is left, once killed ones have been reaped."""
    psutil.wait_procs(running(job), timeout=10)
    return running(job) == []


def test_a_container_has_the_inputs_and_outputs_of_sagemaker(image: LocalImage, tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "from before").touch()
    with container(SEES, image, tmp_path, lines.append, Environment={"MINE": "1"}) as made:
        ended = made.wait()
        made.write_model(tmp_path / "out" / "model.tar.gz")
    assert ended is not None and ended.status == "Completed", lines
    seen = json.loads(lines[0])
    base = "/opt/ml" if image.isolated else str(tmp_path / "ml")
    assert seen["base"] == base and seen["arguments"] == ["--an", f"{base}/input/data/recipe"]
    assert seen["recipe"] == f"data: {base}/input/data/data\n"
    assert Path(seen["python"]) == image.folder / "python", "python3 is not the throw-away one"
    resources = seen["config"]["resourceconfig.json"]
    assert (resources["hosts"], resources["current_instance_type"]) == (["algo-1"], "ml.c7i.4xlarge")
    assert seen["config"]["inputdataconfig.json"]["code"]["TrainingInputMode"] == "File"
    assert seen["config"]["hyperparameters.json"] == {}
    environment = seen["environment"]
    assert environment["TRAINING_JOB_NAME"] == made.name and environment["MINE"] == "1"
    assert environment["TRAINING_JOB_ARN"] == f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{made.name}"
    assert "PYTEST_CURRENT_TEST" not in environment, "the image must not get the environment of this process"
    if image.isolated:
        assert seen["pid"] == seen["processes"] == 1
        assert os.strerror(seen["out"]) == "Network is unreachable"
    with tarfile.open(tmp_path / "out" / "model.tar.gz") as packed:
        assert packed.getnames() == ["weights"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["from before", "one"]
    assert not Path("/opt/ml").exists() or os.environ.get("SM_CURRENT_HOST"), "a mount got out of its namespace"


def test_a_failure_is_reported_like_in_sagemaker(images: dict[str, LocalImage], tmp_path: Path) -> None:
    script = "open(BASE + '/output/failure', 'w').write('no such data' * 200); print('a line'); raise SystemExit(3)"
    with container(script, images["namespaces"], tmp_path) as made:
        ended = made.wait()
    assert ended is not None and (ended.status, ended.code, ended.last_lines) == ("Failed", 3, ("a line",))
    assert ended.reason is not None and ended.reason.startswith("AlgorithmError: no such data")
    assert ended.reason.endswith(", exit code: 3") and len(ended.reason) < 1100


def ready(made: Container, lines: list[str]) -> None:
    assert made.wait(lambda: "ready" in lines) is None, lines


def test_stopping_is_sigterm_then_sigkill(image: LocalImage, tmp_path: Path) -> None:
    lines: list[str] = []
    with container(SIGTERM_NOTED, image, tmp_path, lines.append) as made:
        ready(made, lines)
        made.stop()
        ended = made.wait()
    assert ended is not None and (ended.status, ended.code) == ("Stopped", 0)
    assert (tmp_path / "ml" / "model" / "saved").read_text() == "in time"
    lines.clear()
    with container(DEAF, image, tmp_path, lines.append) as made:
        ready(made, lines)
        assert running(made.name)
        made.stop(grace_s=0)
        ended = made.wait()
        assert gone(made.name), "processes in another session must end, too"
    assert ended is not None and ended.status == "Stopped" and ended.code != 0


@pytest.mark.parametrize("owner, name", [(subprocess.Popen, "__init__"), (threading.Thread, "start")])
def test_an_interrupted_start_leaves_no_process(
    owner: type, name: str, image: LocalImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, interrupted = getattr(owner, name), list[Any]()

    def interrupt(self: object, *words: Any, **options: Any) -> None:
        if owner is subprocess.Popen:
            original(self, *words, **options)
        if owner is threading.Thread or options.get("start_new_session"):
            interrupted.append(self)
            raise KeyboardInterrupt

    made = container(DEAF, image, tmp_path)
    monkeypatch.setattr(owner, name, interrupt)
    with pytest.raises(KeyboardInterrupt), made:
        raise AssertionError("the start was not interrupted")
    monkeypatch.undo()
    assert interrupted and gone(made.name)
    if owner is subprocess.Popen:  # Python itself leaves these to the end of the process
        interrupted[0].communicate()


def test_the_time_limit_is_that_of_the_request(images: dict[str, LocalImage], tmp_path: Path) -> None:
    lines: list[str] = []
    limit = {"MaxRuntimeInSeconds": 0}
    with container(SIGTERM_NOTED, images["folders"], tmp_path, lines.append, StoppingCondition=limit) as made:
        while "ready" not in lines:
            threading.Event().wait(0.01)
        ended = made.wait()
    assert ended is not None and ended.status == "Stopped" and (tmp_path / "ml" / "model" / "saved").exists()


def test_a_container_ends_with_its_parent(image: LocalImage, tmp_path: Path) -> None:
    if not image.isolated:
        pytest.skip("folders have nobody who would see to it")
    with orphan(image, tmp_path) as process:
        assert process.stdout is not None
        job = process.stdout.readline().split()[1]
        assert running(job)
        process.kill()
    assert gone(job)


def test_unsupported_requests_are_rejected(images: dict[str, LocalImage], tmp_path: Path, micro: Path) -> None:
    resources = {"InstanceType": "ml.trn1.32xlarge", "InstanceCount": 2}
    with pytest.raises(AwsError, match="2 machines"):
        container("", images["folders"], tmp_path, ResourceConfig=resources)
    channel = request_for()["InputDataConfig"][0]
    with pytest.raises(AwsError, match="nothing is uploaded there"):
        LocalStore(tmp_path).fetch(channel, tmp_path)
    request = request_for()
    del request["OutputDataConfig"]
    with pytest.raises(AwsError, match=r"CreateTrainingJob: invalid request: .*OutputDataConfig"):
        Call("sagemaker", "create_training_job", request).validate()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    for words, told in (
        (["--instance", "ml.trn1.2xlarge"], "Neuron devices"),
        (["train.backend=neuron", "train.shapes.plan=fixed"], "train.backend=torch"),
        (["--keep-files", str(tmp_path / "mine")], "contains files that no rehearsal created"),
    ):
        refused = in_process("aws", "rehearse", str(micro), *words)
        assert refused.exit_code == 14 and told in refused.stderr, refused.stderr
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_dry_run_prints_the_requests_and_starts_nothing(
    micro: Path, temporaries: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started_something(*words: object, **_: object) -> None:
        raise AssertionError(f"started {words}")

    monkeypatch.setattr("subprocess.Popen.__init__", started_something)
    kept = temporaries.parent / "kept"
    words = ("aws", "rehearse", str(micro), "--dry-run", "--keep-files", str(kept), "--json")
    alone = in_process(*words)
    assert alone.exit_code == 0 and "first builds neuron-sum's wheel" in alone.stderr, alone.stderr
    done = in_process(*words, "--wheelhouse", str(wheels))
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert {each["operation"] for each in told["requests"]} == {"create_training_job"}
    first, second, compiling = (each["request"] for each in told["requests"])
    for request in (first, second, compiling):
        Call("sagemaker", "create_training_job", request).validate()
    names = [request["TrainingJobName"] for request in (first, second, compiling)]
    assert names == [f"neuron-sum-{told['run']}-{stage}" for stage in ("train", "train-2", "compile")]
    assert {**first, "TrainingJobName": names[1]} == second
    given = {
        channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"]
        for channel in compiling["InputDataConfig"]
    }
    assert given["run"].endswith(f"/{names[1]}/output/model.tar.gz") and "wheelhouse" in given
    assert not kept.exists() and list(temporaries.iterdir()) == []


@pytest.fixture
def temporaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of commands."""
    folder = tmp_path / "temporaries"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_the_wheel_has_every_file_that_the_packages_need(own_wheel: Path) -> None:
    import zipfile

    [wheel] = own_wheel.iterdir()
    names = set(zipfile.ZipFile(wheel).namelist())
    root = Path(local_image.__file__).parents[2]
    packages = ("neuron_sum", "compile", "serving", "sagemaker_jobs")
    wanted = {
        path.relative_to(root).as_posix()
        for name in packages
        for path in (root / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= names, wanted - names


@pytest.mark.slow
def test_a_recipe_from_data_to_an_answered_request_to_nothing_left(
    djl_serving: Path,
    micro: Path,
    own_wheel: Path,
    temporaries: Path,
    tmp_path: Path,
    neuron_sum: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = neuron_sum(
        "aws", "rehearse", str(micro), *LONG, *SHAPE, "--wheelhouse", str(own_wheel), "--keep-files", "kept", "--json"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [stage["name"] for stage in told["stages"]] == [
        "wheelhouse",
        "container",
        "data",
        "requests",
        "kill",
        "resume",
        "evaluate",
        "compile",
        "package",
        "serve",
        "down",
    ]
    assert [stage["skipped"] for stage in told["stages"]] == [None] * 11
    assert told["summary"] and told["scores"].keys() == {"ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"}
    assert {"IAM", "S3", "Neuron devices", "the image"} <= told["needs_aws"].keys()
    isolated = "the paths below /opt/ml" not in told["needs_aws"]
    first, second = sorted((tmp_path / "kept" / "logs").glob("*-train*.log"), key=lambda log: len(log.name))
    assert second.stem == f"{first.stem}-2"
    assert "trained " not in first.read_text(), "the first attempt came to its end"
    [since] = [line for line in second.read_text().splitlines() if line.startswith("continuing from checkpoint-")]
    [run] = (tmp_path / "kept" / "s3").rglob("checkpoints/run")
    steps = [entry["step"] for entry in files.read_jsonl(run / "log.jsonl") if "loss" in entry]
    assert steps == sorted(set(steps)) and steps[0] <= int(since.rpartition("-")[2]) < steps[-1] == 80
    python = tmp_path / "kept" / "image" / "python"
    installed = python.glob("lib/*/site-packages/neuron_sum/recipes/shipped/tiny.yaml")
    assert len(list(installed)) == 1, "the entry script did not install the wheelhouse"
    where = "/opt/ml" if isolated else str(tmp_path / "kept" / "ml")
    assert f"pip install --no-index --no-deps --quiet {where}/input/data/wheelhouse/" in second.read_text()
    assert list(temporaries.iterdir()) == []
    for log in (first, second):
        assert gone(log.stem)
    assert running(str(tmp_path / "kept"), own_commands.MARK) == []


@pytest.mark.slow
def test_a_failure_names_its_stage_and_a_stop_leaves_nothing(
    micro: Path,
    own_wheel: Path,
    temporaries: Path,
    tmp_path: Path,
    neuron_sum: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    words = ["aws", "rehearse", str(micro), *LONG, "--wheelhouse", str(own_wheel)]
    failed = neuron_sum(*words, "data.max_source_length=8")
    assert failed.returncode == 14, failed.stderr
    error = next(line for line in failed.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith("error: rehearsing kill: the container ended with exit code 3: AlgorithmError: error: ")
    assert list(temporaries.iterdir()) == []

    command = [sys.executable, "-m", "neuron_sum", *words, "train.save_steps=100000", "--json"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        wait_for_log(temporaries, process)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read() if process.stderr is not None else ""
    assert process.returncode == 130, errors
    error = json.loads(errors.splitlines()[-1])["error"]
    assert "stopped while rehearsing kill; 0 of its processes still run; all files are deleted" in error["message"]
    assert list(temporaries.iterdir()) == []
    for left in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert not left.environ().get("TRAINING_JOB_NAME", "").startswith("neuron-sum-micro-")


def wait_for_log(folder: Path, process: subprocess.Popen[str]) -> None:
    while not list(folder.glob("*/logs/*.log")):
        assert process.poll() is None
        threading.Event().wait(0.01)
